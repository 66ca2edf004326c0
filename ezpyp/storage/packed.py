"""A store for very many steps: an append-only segment a writer, and an index of each.

Everything is appended: a newer record of a step counts, a moved one says where its result lies, a dropped one that the
step is to be forgotten. What no longer counts stays until the folder is repacked. Results over 16 MiB are files beside
the segments.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import add

from ezpyp.errors import StoreError
from ezpyp.model import outputs
from ezpyp.model.naming import STORE_FOLDER
from ezpyp.model.outcomes import Outcome, Place
from ezpyp.storage import segment
from ezpyp.storage.appender import Appender
from ezpyp.storage.catalog import Catalog
from ezpyp.storage.names import name_of, number_from, number_of
from ezpyp.storage.patience import blamed, is_late, tries, unreadable
from ezpyp.storage.protocol import (
    MOST_TOGETHER,
    Batch,
    Done,
    Places,
    Scan,
    Wanted,
    Writer,
    checksum,
    is_plain,
    one_by_one,
    verified,
)
from ezpyp.storage.reading import Reader
from ezpyp.storage.record import Record, call_of, extras_of, extras_of_call, print_of
from ezpyp.storage.segment import (
    APART,
    DROPPED,
    ELSEWHERE,
    FILES,
    GONE,
    MEMBER,
    MORE,
    ODD,
    PLAIN,
    POINTER,
    WHEREABOUTS,
    Header,
    Segment,
    in_order,
    location_of,
    record_of,
    turn_of,
)
from ezpyp.storage.series import TEXT
from ezpyp.system.files import Buffer, is_shared, remove, size_of, sync_files, write_whole

#: Where segments lie, and results that are too large for them.
FOLDER = STORE_FOLDER
#: Results over this many bytes are files of their own.
LARGE = 1 << 24
#: Segments that are kept open for reading.
_OPEN = 32
#: So many records are read together.
_TOGETHER = 1024
_REMEDY = "Forget it (ezpyp invalidate), and the next run makes it again."


class PackedStore:
    """Records in segments. What is put is buffered until `flush`; who puts it reads it at once."""

    bulk = True

    def __init__(
        self,
        folder: str | os.PathLike[str],
        writer: Writer | None = None,
        *,
        shared: bool | None = None,
        patience: float = 60.0,
    ) -> None:
        """
        Args:
            shared: whether other hosts read and write here; found out from the file system if not given.
            patience: seconds that what another host wrote may take to appear here.

        Raises:
            StoreError: there is no such folder.
        """
        import xxhash

        self._folder = os.fspath(folder)
        self._host = os.uname().nodename
        self._writer = writer or Writer(host=self._host)
        self._number = number_of(self._writer.rank, self._writer.slot)
        try:
            self._shared = is_shared(self._folder) if shared is None else shared
        except OSError as error:
            raise unreadable(self._folder, error) from error
        self._patience = patience if self._shared else 0.0
        self._reader = Reader(shared=self._shared)
        self._digest = xxhash.xxh3_64_intdigest
        self._turn = 0
        self._appender: Appender | None = None
        self._segments: dict[int, Segment] = {}
        self._catalog: Catalog | None = None
        #: What the last scan found, while somebody has it.
        self._scanned: weakref.ref[Catalog] | None = None
        self._unsynced: list[str] = []

    # ----- writing

    def put(self, stem: str, record: Record, chunks: Sequence[Buffer] | None) -> Outcome:
        outcome, place, flags = record.outcome, record.place, PLAIN
        if chunks is not None:
            place, flags = self._lay(outcome.codec, chunks)
            location = location_of(place, stem, outcome.codec, flags)
            sum_ = f"xxh3:{place.checksum:016x}"
            outcome = outcome._replace(location=location, bytes=place.size, checksum=sum_)
        elif not outcome.location:
            place = None
        elif place is None and outcome.dropped:
            outcome = outcome._replace(location="")
        elif place is None:
            place = self._place_of(record)
        if chunks is None and place is not None:
            flags = ELSEWHERE | (APART if "#" not in outcome.location else 0)
        self._append(stem, record._replace(outcome=outcome, place=place), flags, chunks)
        return outcome

    def add(self, done: Done, chunks: Sequence[Buffer]) -> Place:
        stem, name, print_, when, seconds, attempt, codec, args, kwargs = done
        appender = self._appender or self._open()
        data = chunks[0] if len(chunks) == 1 else None
        size = len(data) if type(data) is bytes else sum(map(size_of, chunks))
        if size > LARGE or not name:
            offset = appender.at
            kept = self.put(stem, done.record(self._writer), chunks)
            return Place(self._number, offset, size, _number(kept.checksum))
        if type(data) is not bytes:
            data = b"".join(chunks)  # others may change what they lent
        sum_ = self._digest(data)
        of_stem = stem.encode("utf-8", "surrogatepass")
        of_name = b"" if name == stem else name.encode("utf-8", "surrogatepass")
        order, rank = appender.order(attempt), self._writer.rank
        flags, extras = (MORE, extras_of_call(args, kwargs)) if args or kwargs else (PLAIN, b"")
        offset = appender.append(
            of_stem, of_name, codec.encode(), extras,
            flags, 0, order, attempt, rank, when, seconds, print_, sum_, size, data,
        )  # fmt: skip
        return Place(self._number, offset, size, sum_)

    def add_all(self, batch: Batch) -> Places:
        sizes = [*map(len, batch.results)]
        if sum(sizes) > LARGE or len(sizes) > MOST_TOGETHER:
            return one_by_one(self, batch)
        appender = self._appender or self._open()
        sums = array("Q", map(self._digest, batch.results))
        offset = appender.append_series(batch, sums, self._writer.rank)
        addresses = range(offset + (1 << MEMBER), offset + (len(sizes) + 1 << MEMBER), 1 << MEMBER)
        return Places(self._number, addresses, sizes, sums)

    def flush(self) -> None:
        if self._appender is not None and self._appender.waiting:
            self._appender.flush()

    def begin(self, turn: int = 0) -> int:
        self.flush()
        self._turn = turn = turn or self._next_turn()
        if self._appender is not None:
            self._appender.close()
            self._appender = None
        if self._writer.slot >= 0:  # a helper writes for certain
            self._open()
        return turn

    def sync(self) -> None:
        self.flush()
        if self._appender is not None:
            self._appender.sync()
        unsynced, self._unsynced = self._unsynced, []
        if unsynced:
            sync_files(unsynced, f"{self._folder}/{FOLDER}")

    def _next_turn(self) -> int:
        scanned = self._scanned() if self._scanned is not None else None
        if scanned is not None and scanned.is_current():
            return turn_of(scanned.latest) + 1
        try:
            return turn_of(self._look().latest) + 1
        except OSError as error:
            raise unreadable(self._folder, error) from error

    def _open(self) -> Appender:
        if not self._turn:
            self._turn = self._next_turn()
        with contextlib.suppress(OSError):  # it is there, or what is wrong is told of by what follows
            os.mkdir(f"{self._folder}/{FOLDER}")
        path = f"{self._folder}/{FOLDER}/{name_of(self._number)}"
        writer = self._writer
        self._appender = Appender(path, host=writer.host, turn=self._turn, shared=self._shared)
        return self._appender

    def _lay(self, codec: str, chunks: Sequence[Buffer]) -> tuple[Place, int]:
        """Where a result goes. A large one is written at once: no record vouches for it yet."""
        size = sum(map(size_of, chunks))
        appender = self._appender or self._open()
        if size <= LARGE:
            return Place(self._number, appender.at, size, _number(checksum(chunks))), PLAIN
        path = f"{self._folder}/{location_of(Place(self._number, appender.at, size, 0), '', codec, APART)}"
        facts = write_whole(path, chunks, sync=self._shared)
        self._unsynced.append(path)
        sum_ = checksum(chunks)  # while the disk writes
        self._reader.trust(path, facts, sum_)
        return Place(self._number, appender.at, size, _number(sum_)), APART

    def _append(
        self, stem: str, record: Record, flags: int, chunks: Sequence[Buffer] | None, *, after: int = 0
    ) -> None:
        """Append a record, which counts more than the one of the order `after`."""
        appender = self._appender or self._open()
        outcome, place, more = record.outcome, record.place, {}
        print_ = print_of(record.fingerprint)
        if print_ is None:
            flags |= ODD
            more["fingerprint"] = record.fingerprint
        if not record.name:
            more["name"] = ""
        extras = extras_of(outcome, self._writer.host, **more)
        flags |= (0 if is_plain(outcome) and not more else MORE) | (DROPPED if outcome.dropped else 0)
        flags |= FILES if outcome.files else 0
        if flags & ELSEWHERE and place is not None:
            extras = POINTER.pack(place.segment, place.offset) + extras
        name = b"" if record.name == stem else record.name.encode(*TEXT)
        result = b"" if chunks is None or flags & WHEREABOUTS else b"".join(chunks)
        order, size, sum_ = max(appender.order(outcome.attempt), after), 0, 0
        if place is not None:
            size, sum_ = place.size, place.checksum
        appender.append(
            stem.encode(*TEXT), name, outcome.codec.encode(), extras,
            flags, outcome.status, order, outcome.attempt, outcome.rank, outcome.when, outcome.seconds,
            print_ or segment.NO_PRINT, sum_, size, result,
        )  # fmt: skip

    # ----- reading

    def get(self, record: Record) -> Buffer:
        outcome = record.outcome
        if not outcome.location or outcome.dropped:
            state = "dropped" if outcome.dropped else outcome.status.name.lower()
            raise StoreError(f"'{record.name}' has no result to read: it is {state}. Run again.")
        self.flush()
        error: Exception | None = None
        for _ in tries(self._folder, self._patience if outcome.host != self._host else 0):
            try:
                return self._data(record)
            except (OSError, StoreError) as now:
                error = now
                with contextlib.suppress(OSError, StoreError):
                    if (elsewhere := self._elsewhere(record)) is not None:
                        return self._data(elsewhere)
                if not is_late(now):
                    break
        assert error is not None
        path = f"{self._folder}/{outcome.location}"
        raise blamed(path, record, error, self._host, self._patience) from error

    def _elsewhere(self, record: Record) -> Record | None:
        """The record of the very result where it lies now: the folder may have been repacked since it was looked at."""
        self._forget()
        catalog, print_ = self._look(), record.fingerprint
        for found in map(catalog.get, catalog.under([print_]).get(print_, ())):
            if found is not None and found.outcome.checksum == record.outcome.checksum and not found.outcome.dropped:
                return found
        return None

    def _data(self, record: Record) -> Buffer:
        if wrong := outputs.misfit(self._folder, record.outcome.files):
            raise StoreError(f"The result of '{record.name}' is not whole: {wrong}. Run again to remake it.")
        path = f"{self._folder}/{record.outcome.location}"
        if "#" not in record.outcome.location:
            return self._reader.read(path, record)
        place = record.place or self._place_of(record)
        source = self._segment(place.segment)
        header = source.header(place.offset, place.size)
        if header is None or header.flags & WHEREABOUTS or header.checksum != place.checksum:
            raise StoreError(f"{path} is torn, or not what it was. {_REMEDY}")
        return verified(source.result(place.offset, header), record, path, _REMEDY)

    def _place_of(self, record: Record) -> Place:
        """Where the result of a record that was not read from here lies."""
        stem = record.outcome.location.partition("#")[2]
        found = self.read(stem) if stem else self._apart(record.outcome)
        if found is None or found.place is None:
            raise StoreError(
                f"The result of '{record.name}' is not in {self._folder}/{FOLDER}. Run again to remake it."
            )
        return found.place

    def _apart(self, outcome: Outcome) -> Record | None:
        """The record with which a file of its own came."""
        name, _, rest = os.path.basename(outcome.location).partition("@")
        number, offset = number_from(f"{name}.seg"), int(rest.partition(".")[0])
        header = self._segment(number).header(offset)
        return record_of(self._segment(number), number, offset, header) if header is not None else None

    def read(
        self, stem: str, *, wanted: Callable[[Record], bool] | None = None, at: Place | None = None
    ) -> Record | None:
        self.flush()
        record = None
        for _ in tries(self._folder, self._patience if wanted else 0):
            record = self._at(stem, at) if at is not None else self._search(stem)
            if wanted is None or (record is not None and wanted(record)):
                break
            self._forget()
        return record if record is not None or at is None else self._search(stem)

    def fetch(self, stem: str, fingerprint: str, at: Place) -> tuple[str, Buffer] | None:
        self.flush()
        try:
            source = self._segments.get(at.segment) or self._segment(at.segment)
            header = source.header(at.offset, at.size)
            if (
                header is None
                or header.flags & ~MORE
                or header.status
                or header.stem != stem
                or header.checksum != at.checksum
                or header.fingerprint != bytes.fromhex(fingerprint)
            ):
                return None
            data = source.result(at.offset, header)
        except (OSError, ValueError, StoreError):
            return None
        return (header.codec, data) if self._digest(data) == at.checksum else None

    def fetch_all(self, wanted: Sequence[Wanted]) -> Iterator[tuple[str, Buffer] | None]:
        found: list[tuple[str, Buffer] | None] = [None] * len(wanted)
        for k in self._in_order([each.at for each in wanted]):
            found[k] = self.fetch(*wanted[k])
        return iter(found)

    def locations(self, stems: Sequence[str], segments: Sequence[int], sizes: Sequence[int]) -> Sequence[str | None]:
        before = {each: location_of(Place(each, 0, 0, 0), "", "", PLAIN) for each in {*segments} if each >= 0}
        if before.keys() >= {*segments} and max(sizes) <= LARGE:
            return [*map(add, map(before.__getitem__, segments), stems)]
        return [
            before[segment] + stem if segment >= 0 and size <= LARGE else None
            for stem, segment, size in zip(stems, segments, sizes, strict=True)
        ]

    def calls(self, stems: Sequence[str], places: Sequence[Place]) -> Iterator[tuple[str, str] | None]:
        found: list[tuple[str, str] | None] = [None] * len(places)
        for k in self._in_order(places):
            with contextlib.suppress(OSError, ValueError, StoreError):
                header = self._segment(places[k].segment).header(places[k].offset)
                if header is not None and header.stem == stems[k] and not (header.flags & ~MORE or header.status):
                    found[k] = call_of(header.extras)
        return iter(found)

    def _in_order(self, places: Sequence[Place]) -> Iterator[int]:
        """Which of these to read one after another, so that what lies together is read at once."""
        order = sorted(range(len(places)), key=lambda k: in_order(places[k]))
        for number, same in groupby(order, key=lambda k: places[k].segment):
            together = [*same]
            for some in (together[k : k + _TOGETHER] for k in range(0, len(together), _TOGETHER)):
                with contextlib.suppress(OSError, StoreError):
                    self._segment(number).read_ahead(places[some[0]].offset, places[some[-1]].offset)
                yield from some

    def _at(self, stem: str, place: Place) -> Record | None:
        try:
            source = self._segment(place.segment)
            header = source.header(place.offset, place.size)
            if header is None or header.stem != stem or header.flags & GONE:
                return None
            return record_of(source, place.segment, place.offset, header)
        except (OSError, ValueError):
            return None

    def _search(self, stem: str) -> Record | None:
        return self._look().get(stem)

    def _look(self) -> Catalog:
        """All that is there now."""
        if self._catalog is None or not self._catalog.refresh():
            self._catalog = self._read_anew()
        return self._catalog

    def _read_anew(self) -> Catalog:
        try:
            return Catalog(self._folder)
        except OSError as error:
            raise unreadable(self._folder, error) from error

    def _segment(self, number: int) -> Segment:
        """A segment to read from. Where hosts share it, opened afresh after something was missing in it."""
        found = self._segments.pop(number, None)
        if found is None:
            if len(self._segments) >= _OPEN:
                self._segments.pop(next(iter(self._segments))).close()
            try:
                found = Segment(f"{self._folder}/{FOLDER}/{name_of(number)}")
            except ValueError as error:
                raise StoreError(f"{self._folder}/{FOLDER}/{name_of(number)}: {error}.") from error
        self._segments[number] = found
        return found

    def _forget(self) -> None:
        """Open everything anew."""
        self._segments.clear()
        self._catalog = None

    def records(self) -> Scan:
        self.flush()
        catalog = self._read_anew()
        self._scanned = weakref.ref(catalog)
        leftovers = tuple(catalog.leftovers())
        misfits = [*catalog.misfits()]
        for stem, _ in misfits:
            catalog.leave_out(stem)
        problems = (*catalog.problems, *(problem for _, problem in misfits))
        return Scan(records=catalog, problems=problems, leftovers=leftovers)

    # ----- tidying

    def move(self, stem: str, target: str) -> None:
        self.move_all({stem: target})

    def move_all(self, moves: Mapping[str, str]) -> None:
        self.flush()
        catalog = self._look()
        for stem, target in moves.items():
            found = _of(catalog, stem)
            if found is None:
                continue
            record, header = found
            replaced = _of(catalog, target)
            above = replaced[1].order + 1 if replaced is not None else 0
            flags = ELSEWHERE | header.flags & APART if record.place is not None else PLAIN
            self._append(target, record, flags, None, after=above)
            self._forget_stem(stem, header)

    def drop(self, *stems: str, result_only: bool = False) -> None:
        self.flush()
        catalog, unneeded = self._look(), []
        for stem in stems:
            found = _of(catalog, stem)
            if found is None:
                continue
            record, header = found
            if result_only:
                dropped = record._replace(outcome=record.outcome._replace(dropped=True))
                flags = ELSEWHERE | header.flags & APART if record.place is not None else PLAIN
                self._append(stem, dropped, flags, None, after=header.order + 1)
            else:
                self._forget_stem(stem, header)
            if header.flags & APART or record.outcome.files:
                unneeded.append(found)
        if unneeded:  # the records first: a kill in between leaves a file too many, not one too few
            self.flush()
        for record, header in unneeded:
            if header.flags & APART:
                remove(f"{self._folder}/{record.outcome.location}")
            outputs.discard(self._folder, record.outcome.files)

    def _forget_stem(self, stem: str, header: Header) -> None:
        appender = self._appender or self._open()
        # Below what any attempt of this run, perhaps one by another writer, puts there.
        order = max(appender.order(0), header.order + 1)
        appender.write(stem.encode(*TEXT), flags=GONE, order=order, attempt=header.attempt)


def _of(catalog: Catalog, stem: str) -> tuple[Record, Header] | None:
    """The record under a stem, with its header."""
    spot = catalog.find(stem)
    return catalog.read(*spot) if spot is not None else None


def _number(text: str) -> int:
    return int(text.removeprefix("xxh3:"), 16)
