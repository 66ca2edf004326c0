"""Turn file pairs into packed results or back, and take back the room of what no longer counts.

The new store is whole before anybody looks into it: a segment counts as soon as it has its name, another kind of store
as soon as the schema says so. A kill leaves the one or the other, and what the same command then removes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass

from ezpyp.encoding import codecs
from ezpyp.errors import StoreError
from ezpyp.folder import lock, runs
from ezpyp.folder import schema as schemas
from ezpyp.model.naming import SCHEMA_FILE
from ezpyp.storage import packed, segment
from ezpyp.storage.appender import Appender
from ezpyp.storage.filestore import FileStore
from ezpyp.storage.index import index_of
from ezpyp.storage.opening import SHELF, Problem, Store, open_store
from ezpyp.storage.packed import PackedStore
from ezpyp.storage.protocol import place_of
from ezpyp.storage.record import Record
from ezpyp.system.files import is_temporary, link_whole, remove, sync_folder, temporary_name, write_whole
from ezpyp.upkeep import cleaning


@dataclass(frozen=True, slots=True, kw_only=True)
class Repacked:
    """What came of it."""

    folder: str
    kind: str
    records: int
    #: Bytes of all that keeps results, before and after.
    before: int
    after: int
    #: Results that are torn or gone. Their steps run again.
    wrong: tuple[Problem, ...]


def repack(folder: str | os.PathLike[str], kind: str | None = None) -> Repacked:
    """Write the results of a folder anew, as that kind of store or as the one it has.

    Every result is verified on the way. Needs room for what is packed, once more; large results are linked.

    Raises:
        CacheInUse: a run holds the folder. StoreError: it is no cache folder, or cannot be read or written.
    """
    where = runs.open(folder).folder
    with lock.acquire(where):
        content = schemas.read(where)
        assert content is not None
        there = content["ezpyp"]["store"]
        if there == "memory":
            raise StoreError(f"{where} has store='memory': nothing is kept in it that could be repacked.")
        kind = kind or there
        before = size_of(where)
        store = open_store(there, where)
        scan = store.records()
        wrong = [*scan.problems]
        if kind == "packed":
            count = _pack(where, store, wrong)
        elif there == "packed":
            count = _unpack(where, store, wrong)
        else:
            count = len(scan.records)
        if kind != there:
            content["ezpyp"]["store"] = kind
            write_whole(f"{where}/{SCHEMA_FILE}", schemas.encoded(content), sync=True)
        (_sweep_pairs if kind == "packed" else _sweep_segments)(where)
        runs.open(where).summary().write()
        return Repacked(folder=where, kind=kind, records=count, before=before, after=size_of(where), wrong=tuple(wrong))


def size_of(folder: str) -> int:
    """Bytes of everything that keeps results: file pairs, segments, large results."""
    return sum(os.lstat(path).st_size for path in (*_pairs(folder), *packed.files_of(folder)))


# ----- into one segment


class _Draft(PackedStore):
    """A segment that nobody reads before it has its name."""

    def __init__(self, folder: str, path: str, number: int, turn: int) -> None:
        super().__init__(folder)
        self._number, self._turn = number, turn
        self.appender = self._appender = Appender(path, host=self._writer.host, turn=turn, shared=True, base=True)
        #: Where large results lie.
        self.large: set[str] = set()

    def take(self, stem: str, record: Record, source: Store) -> None:
        """Take a record with its result.

        Raises:
            StoreError: the result is torn or gone.
        """
        outcome = record.outcome
        if outcome.host != self._writer.host:
            self._writer = self._writer._replace(host=outcome.host)
            self.appender.open_for(outcome.host)
        if not outcome.location or outcome.dropped:
            self.put(stem, record._replace(place=None), None)
            return
        data = source.get(record)
        if outcome.bytes <= packed.LARGE:
            self.put(stem, record, [data])
            return
        place = record.place
        if place is None:
            place = place_of(outcome)._replace(segment=self._number, offset=self.appender.at)
            location = segment.location_of(place, stem, outcome.codec, segment.APART)
            link_whole(f"{self._folder}/{outcome.location}", f"{self._folder}/{location}", void="")
            outcome = outcome._replace(location=location)
        self.large.add(f"{self._folder}/{outcome.location}")
        self.put(stem, record._replace(outcome=outcome, place=place), None)


def _pack(folder: str, store: Store, wrong: list[Problem]) -> int:
    """One segment of all that counts. What there was is void as soon as it has its name."""
    inside = f"{folder}/{packed.FOLDER}"
    if not isinstance(store, PackedStore):
        _sweep_segments(folder)  # of a conversion that was killed
    os.makedirs(inside, exist_ok=True)
    numbers = (segment.number_from(name) for name in os.listdir(inside))
    number = max((each for each in numbers if each >= segment.BASE), default=segment.BASE) + 1
    path, before = f"{inside}/{temporary_name()}.seg", packed.files_of(folder)
    draft = _Draft(folder, path, number, store.begin() or 1)
    try:
        count = _take_all(store, folder, draft.take, wrong)
        draft.sync()
    except BaseException:
        draft.appender.close()
        for each in (path, index_of(path)):
            remove(each)
        raise
    draft.appender.close()
    final = f"{inside}/{segment.name_of(number)}"
    os.replace(index_of(path), index_of(final))
    os.replace(path, final)
    sync_folder(inside)
    for each in before:
        if each not in draft.large:
            remove(each)
    return count


def _take_all(store: Store, folder: str, take: Callable[[str, Record, Store], None], wrong: list[Problem]) -> int:
    count = 0
    for stem, record in store.records().records.items():
        try:
            take(stem, record, store)
            count += 1
        except StoreError as error:
            wrong.append(Problem(path=f"{folder}/{record.outcome.location}", what=str(error)))
    return count


def _sweep_pairs(folder: str) -> None:
    """Remove the file pairs of steps whose results are packed. By its status a pair is known: that goes last."""
    for path in sorted(_pairs(folder), key=lambda path: path.endswith(".status")):
        remove(path)
    with contextlib.suppress(OSError):
        os.rmdir(f"{folder}/{SHELF}")


def _pairs(folder: str) -> list[str]:
    """The files of all steps that ezpyp knows in a folder: what others put there is not among them."""
    run = runs.open(folder)
    stems = {entry.stem for entry in run.entries} | {*FileStore(folder).records().records}
    found = []
    for shelf in ("", SHELF):
        with contextlib.suppress(FileNotFoundError):
            for name in sorted(os.listdir(f"{folder}/{shelf}")):
                ours = not is_temporary(name) and not name.endswith(".partial")
                if ours and f"{shelf}{cleaning.stem_of(name)}" in stems:
                    found.append(f"{folder}/{shelf}{name}")
    return found


# ----- into file pairs


def _unpack(folder: str, store: Store, wrong: list[Problem]) -> int:
    """A file pair for all that counts. Nobody looks at them before the schema says so."""
    target = FileStore(folder)

    def take(stem: str, record: Record, source: Store) -> None:
        outcome = record.outcome
        name = f"{stem}.step{codecs.get(outcome.codec).suffix}" if outcome.location else ""
        os.makedirs(os.path.dirname(f"{folder}/{name}"), exist_ok=True)
        if not outcome.location or outcome.dropped:
            target.put(stem, record._replace(outcome=outcome._replace(location=name)), None)
            return
        data = source.get(record)
        if outcome.bytes <= packed.LARGE:
            target.put(stem, record, [data])
            return
        link_whole(f"{folder}/{outcome.location}", f"{folder}/{name}", void=f"{folder}/{stem}.status")
        target.put(stem, record._replace(outcome=outcome._replace(location=name)), None)

    count = _take_all(store, folder, take, wrong)
    target.sync()
    return count


def _sweep_segments(folder: str) -> None:
    for path in packed.files_of(folder):
        remove(path)
    with contextlib.suppress(OSError):
        os.rmdir(f"{folder}/{packed.FOLDER}")
