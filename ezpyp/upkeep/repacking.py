"""Turn file pairs into packed results or back, and take back the room of what no longer counts.

The new store is whole before anybody looks into it: a segment counts as soon as it has its name, another kind of store
as soon as the schema says so. A kill leaves the one or the other, and what the same command then removes.
"""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter

from ezpyp.encoding import codecs
from ezpyp.errors import StoreError
from ezpyp.folder import lock, runs
from ezpyp.folder import schema as schemas
from ezpyp.model.naming import SCHEMA_FILE
from ezpyp.storage import packed, segment
from ezpyp.storage.appender import Appender
from ezpyp.storage.filestore import FileStore
from ezpyp.storage.index import index_of, parted
from ezpyp.storage.names import BASE, files_of, name_of, number_from
from ezpyp.storage.opening import SHELF, Problem, Store, open_store
from ezpyp.storage.packed import PackedStore
from ezpyp.storage.protocol import MOST_TOGETHER, Batch, Together, is_plain, place_of
from ezpyp.storage.record import Record, print_of
from ezpyp.storage.series import TEXT
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
    return sum(os.lstat(path).st_size for path in (*_pairs(folder), *files_of(folder)))


# ----- into one segment


class _Draft(PackedStore):
    """A segment that nobody reads before it has its name."""

    def __init__(self, folder: str, path: str, number: int, turn: int) -> None:
        super().__init__(folder)
        self._number, self._turn = number, turn
        self.appender = self._appender = Appender(path, host=self._writer.host, turn=turn, shared=True, base=True)
        #: Where large results lie.
        self.large: set[str] = set()
        #: By label and codec, records of members that follow each other, with their results, to be kept as one.
        self._following: dict[tuple[str, str], list[tuple[Record, bytes]]] = {}
        #: Bytes of these results.
        self._waiting = 0

    def take_together(self, each: Together) -> None:
        """Take results that are kept together, and were verified, as one record again."""
        self._write_as(each.rank, each.host)
        self.add_all(each.batch)

    def take(self, stem: str, record: Record, source: Store) -> None:
        """Take a record with its result.

        Raises:
            StoreError: the result is torn or gone.
        """
        outcome = record.outcome
        self._write_as(outcome.rank, outcome.host)
        if not outcome.location or outcome.dropped:
            self.put(stem, record._replace(place=None), None)
            return
        data = source.get(record)
        if outcome.bytes <= packed.LARGE:
            if stem == record.name and _is_usual(record):
                self._follow(record, bytes(data))
            else:
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

    def finish(self) -> None:
        """Write all that was taken, for good."""
        self._end_all()
        self.sync()

    def _write_as(self, rank: int, host: str) -> None:
        if (rank, host) == (self._writer.rank, self._writer.host):
            return
        self._end_all()
        if host != self._writer.host:
            self.appender.open_for(host)
        self._writer = self._writer._replace(rank=rank, host=host)

    def _follow(self, record: Record, data: bytes) -> None:
        """Take a result that may be kept with those of the steps before it."""
        if self._waiting + len(data) > packed.LARGE:
            self._end_all()
        label, number = _parted(record.name)
        following = self._following.setdefault((label, record.outcome.codec), [])
        if following and (len(following) == MOST_TOGETHER or _parted(following[-1][0].name)[1] != number - 1):
            self._end_series(label, following)
            following.clear()
        following.append((record, data))
        self._waiting += len(data)

    def _end_all(self) -> None:
        for (label, _), following in self._following.items():
            self._end_series(label, following)
        self._following.clear()
        self._waiting = 0

    def _end_series(self, label: str, following: Sequence[tuple[Record, bytes]]) -> None:
        if len(following) < 2:
            for record, data in following:
                self.put(record.name, record, [data])
            return
        first, outcomes = following[0][0], [record.outcome for record, _ in following]
        prints = b"".join(bytes.fromhex(record.fingerprint) for record, _ in following)
        whens, seconds = (array("d", map(attrgetter(name), outcomes)) for name in ("when", "seconds"))
        results = [data for _, data in following]
        self.add_all(Batch(label, _parted(first.name)[1], prints, whens, seconds, first.outcome.codec, results))


def _is_usual(record: Record) -> bool:
    """Whether a record may be one of a series: there is nothing to say of it that only its own could say."""
    outcome = record.outcome
    usual = is_plain(outcome) and outcome.attempt == 1 and not outcome.args and not outcome.kwargs
    return usual and print_of(record.fingerprint) is not None and _parted(record.name)[1] >= 0


def _parted(name: str) -> tuple[str, int]:
    """The label and the number of a member; -1 for what is none."""
    label, number = parted(name.encode(*TEXT))
    return label.decode(*TEXT), number


def _pack(folder: str, store: Store, wrong: list[Problem]) -> int:
    """One segment of all that counts. What there was is void as soon as it has its name."""
    inside = f"{folder}/{packed.FOLDER}"
    if not isinstance(store, PackedStore):
        _sweep_segments(folder)  # of a conversion that was killed
    os.makedirs(inside, exist_ok=True)
    numbers = (number_from(name) for name in os.listdir(inside))
    number = max((each for each in numbers if each >= BASE), default=BASE) + 1
    path, before = f"{inside}/{temporary_name()}.seg", files_of(folder)
    draft = _Draft(folder, path, number, store.begin() or 1)
    try:
        count = _take_all(store, folder, draft.take, wrong, draft.take_together)
        draft.finish()
    except BaseException:
        draft.appender.close()
        for each in (path, index_of(path)):
            remove(each)
        raise
    draft.appender.close()
    final = f"{inside}/{name_of(number)}"
    os.replace(index_of(path), index_of(final))
    os.replace(path, final)
    sync_folder(inside)
    for each in before:
        if each not in draft.large:
            remove(each)
    return count


#: Fewer results that are kept together are taken one by one, for they may go together with others.
_MANY = 64


def _take_all(
    store: Store,
    folder: str,
    take: Callable[[str, Record, Store], None],
    wrong: list[Problem],
    take_together: Callable[[Together], None] | None = None,
) -> int:
    records, count = store.records().records, 0
    rest = [records.alone()]
    for each in records.together():
        if take_together is not None and len(each.checksums) >= _MANY and each.is_whole():
            take_together(each)
            count += len(each.checksums)
        else:
            rest.append(each.stems())
    for stem in chain.from_iterable(rest):
        record = records[stem]
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
    there: dict[str, list[str]] = {}
    for shelf in ("", SHELF):
        with contextlib.suppress(FileNotFoundError):
            for name in sorted(os.listdir(f"{folder}/{shelf}")):
                if not is_temporary(name) and not name.endswith(".partial"):
                    there.setdefault(f"{shelf}{cleaning.stem_of(name)}", []).append(f"{folder}/{shelf}{name}")
    strange = {*runs.open(folder).entries.strange(there)}.difference(FileStore(folder).records().records)
    return [path for stem, paths in there.items() if stem not in strange for path in paths]


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
    for path in files_of(folder):
        remove(path)
    with contextlib.suppress(OSError):
        os.rmdir(f"{folder}/{packed.FOLDER}")
