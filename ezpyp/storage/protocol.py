"""What every store promises, and the values it deals in."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Protocol

import xxhash

from ezpyp.errors import StoreError
from ezpyp.model.outcomes import Outcome, Place, Status
from ezpyp.storage.record import Record
from ezpyp.system.files import Buffer, size_of
from ezpyp.tuples import NamedTuple

#: How the stems of former results begin.
SHELF = "old/"
#: What to do where a file is not what it should be.
REMAKE = "Remove it, and the next run makes it again."


class Problem(NamedTuple):
    """A file that is torn, foreign, or does not fit its record."""

    path: str
    what: str


class Records(Mapping[str, Record]):
    """Records by stem, as they were when they were looked through. A store may read each when it is asked for."""

    def settled(self, fingerprints: bytes, stems: Sequence[str]) -> bytearray:
        """For each step 1 where a done result with its fingerprint lies under its own stem, and there is nothing else
        to say of it; else 0.

        Args:
            fingerprints: 16 bytes a step.
        """
        raise NotImplementedError

    def notable(self) -> Iterator[str]:
        """The stems of all that is not done, or of which there is something else to say."""
        raise NotImplementedError

    def plain(self, stems: Sequence[str]) -> Plain:
        """What is done under these stems, of which there is nothing else to say; and what else is there."""
        raise NotImplementedError

    def together(self) -> Iterator[Together]:
        """Results that are kept together, and read so; nothing is verified. Their stems are their names."""
        return iter(())

    def alone(self) -> Iterator[str]:
        """The stems of all records but of those of `together`."""
        return iter(self)

    def under(self, fingerprints: Collection[str]) -> dict[str, list[str]]:
        """The stems of records with these fingerprints, by those. Looks at all records once."""
        raise NotImplementedError


class Plain(NamedTuple):
    """Of some stems, whether a done result lies under each of which there is nothing else to say."""

    #: 1 for each with one, 2 where there is another record, else 0.
    found: bytearray
    #: How long each took, how many bytes its result has, and when it was made; 0 where there is none.
    seconds: array[float]
    sizes: array[int]
    whens: array[float]

    @classmethod
    def none(cls, count: int) -> Plain:
        zeros = array("d", bytes(8 * count))
        return cls(bytearray(count), zeros, array("q", bytes(8 * count)), zeros[:])


class Known(Records):
    """Records that were read."""

    def __init__(self, found: Mapping[str, Record]) -> None:
        self._found = found

    def __getitem__(self, stem: str) -> Record:
        return self._found[stem]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def settled(self, fingerprints: bytes, stems: Sequence[str]) -> bytearray:
        wanted, width = fingerprints.hex(), 32
        found = bytearray(len(fingerprints) // 16)
        for k, stem in enumerate(stems):
            record = self._found.get(stem)
            found[k] = record is not None and (
                record.fingerprint == wanted[k * width : (k + 1) * width] and is_plain(record.outcome)
            )
        return found

    def notable(self) -> Iterator[str]:
        found = self._found.items()
        return (stem for stem, record in found if len(record.fingerprint) != 32 or not is_plain(record.outcome))

    def plain(self, stems: Sequence[str]) -> Plain:
        plain = Plain.none(len(stems))
        for k, stem in enumerate(stems):
            if (record := self._found.get(stem)) is None:
                continue
            plain.found[k] = 1 if len(record.fingerprint) == 32 and is_plain(record.outcome) else 2
            if plain.found[k] == 1:
                plain.seconds[k], plain.sizes[k] = record.outcome.seconds, record.outcome.bytes
                plain.whens[k] = record.outcome.when
        return plain

    def under(self, fingerprints: Collection[str]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {each: [] for each in fingerprints}
        for stem, record in self._found.items():
            found.get(record.fingerprint, []).append(stem)
        return {each: stems for each, stems in found.items() if stems}


def is_plain(outcome: Outcome) -> bool:
    """Whether a step is done and there is nothing else to say of it but where, when and with what arguments."""
    rest = (outcome.note, outcome.log, outcome.missing, outcome.files, outcome.outputs, outcome.dropped, outcome.gpu)
    return outcome.status is Status.DONE and not any(rest)


class Together(NamedTuple):
    """Results of a family that are kept together, with what they have to be."""

    batch: Batch
    checksums: Sequence[int]
    rank: int
    host: str

    def stems(self) -> Iterator[str]:
        return (f"{self.batch.label}[{self.batch.first + k}]" for k in range(len(self.checksums)))

    def is_whole(self) -> bool:
        """Whether every result is what its step wrote."""
        return [*map(xxhash.xxh3_64_intdigest, self.batch.results)] == [*self.checksums]


class Scan(NamedTuple):
    """All readable records by stem, and what is not readable."""

    records: Records
    problems: tuple[Problem, ...] = ()
    #: Stems of dropped results that are still there: who dropped them was killed.
    leftovers: tuple[str, ...] = ()


class Writer(NamedTuple):
    """Who writes into a store: results made through `Store.add` are known to be its own."""

    rank: int = 0
    host: str = ""
    #: Which helper of its rank it is; -1 for the agent.
    slot: int = -1


def on_shelf(stem: str, record: Record) -> str:
    """The stem of a former result: dated, and different for different results of one second."""
    when = time.strftime("%Y%m%dT%H%M%S", time.gmtime(record.outcome.when))
    return f"{SHELF}{stem}@{when}-{record.fingerprint[:8]}"


class Done(NamedTuple):
    """A step that is done, and of which there is nothing else to say."""

    stem: str
    name: str
    #: 16 bytes.
    fingerprint: bytes
    when: float
    seconds: float
    attempt: int
    codec: str
    #: Its arguments, where they are not those that the plan shows.
    args: str = ""
    kwargs: str = ""

    def record(self, writer: Writer) -> Record:
        """The same as a record, but for the result."""
        outcome = Outcome(
            step=-1,
            status=Status.DONE,
            when=self.when,
            seconds=self.seconds,
            rank=writer.rank,
            host=writer.host,
            attempt=self.attempt,
            args=self.args,
            kwargs=self.kwargs,
            codec=self.codec,
        )
        return Record(name=self.name, fingerprint=self.fingerprint.hex(), outcome=outcome)


#: No more members of a family are kept together: who reads one looks at the columns of all.
MOST_TOGETHER = 1024


class Batch(NamedTuple):
    """Members of a family that follow each other, done at their first attempts, and nothing else to say of them. Their
    stems are their names, from `label[first]` on.
    """

    label: str
    first: int
    #: 16 bytes a step.
    fingerprints: bytes
    whens: array[float]
    seconds: array[float]
    codec: str
    results: Sequence[bytes]


class Places(NamedTuple):
    """Where results lie, in columns; see Place."""

    segment: int
    offsets: Sequence[int]
    sizes: Sequence[int]
    checksums: Sequence[int]


class Wanted(NamedTuple):
    """A result that was added: whose it is, and where it lies."""

    stem: str
    fingerprint: str
    at: Place


class Store(Protocol):
    """Keeps outcomes and results. Any process that can reach the folder may read while others write.

    A store is used by one process at a time, and by one thread of it, which reads what it wrote; others may have to
    wait for `flush`. Stems that begin with `SHELF` are former results, kept apart.
    """

    #: Whether `add_all` is quicker than `add` for each. Else what is done should not wait for what is done with it.
    bulk: bool

    def put(self, stem: str, record: Record, chunks: Sequence[Buffer] | None) -> Outcome:
        """Keep an outcome, with its result where there is one, and give it back with where the result lies.

        Whole or not at all, at the latest when `flush` returns. Without chunks a former result stays where it is.

        Raises:
            StoreError: it cannot be written. A former outcome and result are untouched.
        """

    def add(self, done: Done, chunks: Sequence[Buffer]) -> Place:
        """`put` for the common case, and quicker.

        Raises:
            StoreError: as `put`.
        """

    def add_all(self, batch: Batch) -> Places:
        """`add` for each of a batch.

        Raises:
            StoreError: as `put`; some of them may have been kept.
        """

    def flush(self) -> None:
        """Have what was written so far survive the end of any process, and be there for others to read.

        On a network file system it survives the host too. To be called before anybody is told of it.

        Raises:
            StoreError: it cannot be written, and is lost. Former outcomes and results are untouched.
        """

    def get(self, record: Record) -> Buffer:
        """The bytes of a result, their length and checksum verified. May block for a result of another host.

        Bytes that may be written to are the caller's own (`system.maps`): the store shows them to nobody else.

        Raises:
            StoreError: they are missing, torn or foreign; the text says which, and what to do.
        """

    def read(
        self, stem: str, *, wanted: Callable[[Record], bool] | None = None, at: Place | None = None
    ) -> Record | None:
        """The record of one step, None where there is none that can be read.

        With `wanted` the caller knows what the record must be by now. Where another host may have written it, this
        blocks until it shows; what is there in the end is given back all the same. Who knows the place need not have
        it searched for.
        """

    def fetch(self, stem: str, fingerprint: str, at: Place) -> tuple[str, Buffer] | None:
        """The codec and the bytes of a result that was added and lies at a place: quicker than `read` and `get`.

        None where the store has no places, or that one has not what is wanted (yet): then `read` says why. The bytes
        were verified.
        """

    def fetch_all(self, wanted: Sequence[Wanted]) -> Iterator[tuple[str, Buffer] | None]:
        """`fetch` for each of these; quicker where they lie together."""

    def locations(self, stems: Sequence[str], segments: Sequence[int], sizes: Sequence[int]) -> Sequence[str | None]:
        """Where results of these sizes lie that were added to these segments, as their records say. None where only
        these know.
        """

    def calls(self, stems: Sequence[str], places: Sequence[Place]) -> Iterator[tuple[str, str] | None]:
        """The arguments that the step of each place was called with, as its record says them ("" for what it does not
        say). None where it is not there, or says more.
        """

    def records(self) -> Scan:
        """Every record, with the presence and length of results checked, and every file that is wrong.

        Raises:
            StoreError: the folder itself cannot be read; never for one file.
        """

    def move(self, stem: str, target: str) -> None:
        """Put a record and its result under another stem, in place of what is there.

        At every moment the record is whole under one of the two, so that a kill does not lose it.

        Raises:
            StoreError: the folder cannot be written.
        """

    def move_all(self, moves: Mapping[str, str]) -> None:
        """`move` for each of these stems to its target, none of which is among them. Where it fails, some are moved."""

    def drop(self, *stems: str, result_only: bool = False) -> None:
        """Forget steps: their records and results; or their results only, and then the records say so. What is not
        there need not be dropped.

        Raises:
            StoreError: the folder cannot be written. With `result_only` a step that was not dropped is as it was.
        """

    def begin(self, turn: int = 0) -> int:
        """Let what is written from now on count as newer than all that there is, whatever the clocks say; the number
        that tells other writers of the same run to do the same.

        Called by who holds the folder, and has looked through it or will. Nothing of this store waits to be flushed.

        Raises:
            StoreError: the folder cannot be read.
        """

    def sync(self) -> None:
        """Flush, and have what this store wrote since the last call survive a power failure. May block for seconds.

        Raises:
            StoreError: the disk refused.
        """


class Placeless(Store):
    """What stores have in common whose results have names, not places: nothing is quicker for many than for each."""

    bulk = False
    _writer: Writer

    def add(self, done: Done, chunks: Sequence[Buffer]) -> Place:
        return place_of(self.put(done.stem, done.record(self._writer), chunks))

    def add_all(self, batch: Batch) -> Places:
        return one_by_one(self, batch)

    def flush(self) -> None:
        """What was put is there."""

    def fetch(self, stem: str, fingerprint: str, at: Place) -> None:
        """There are no places."""

    def fetch_all(self, wanted: Sequence[Wanted]) -> Iterator[None]:
        return repeat(None, len(wanted))

    def locations(self, stems: Sequence[str], segments: Sequence[int], sizes: Sequence[int]) -> Sequence[None]:
        """Their records know: in a file's name, the codec is part of it."""
        return [None] * len(stems)

    def calls(self, stems: Sequence[str], places: Sequence[Place]) -> Iterator[None]:
        return repeat(None, len(stems))

    def move_all(self, moves: Mapping[str, str]) -> None:
        for stem, target in moves.items():
            self.move(stem, target)

    def begin(self, turn: int = 0) -> int:
        return turn  # one takes the place of another, whoever writes


def checksum(chunks: Sequence[Buffer]) -> str:
    """xxh3 of the chunks as one: https://xxhash.com, XXH3_64bits."""
    if len(chunks) == 1:
        return f"xxh3:{xxhash.xxh3_64_hexdigest(chunks[0])}"
    whole = xxhash.xxh3_64()
    for chunk in chunks:
        whole.update(chunk)
    return f"xxh3:{whole.hexdigest()}"


def place_of(outcome: Outcome) -> Place:
    return Place(0, 0, outcome.bytes, int(outcome.checksum.removeprefix("xxh3:"), 16))


def one_by_one(store: Store, batch: Batch) -> Places:
    """`Store.add_all` by `Store.add`."""
    found = []
    for k, result in enumerate(batch.results):
        name, print_ = f"{batch.label}[{batch.first + k}]", batch.fingerprints[16 * k : 16 * k + 16]
        done = Done(name, name, print_, batch.whens[k], batch.seconds[k], attempt=1, codec=batch.codec)
        found.append(store.add(done, (result,)))
    segments, offsets, sizes, checksums = zip(*found, strict=True)
    return Places(segments[0], offsets, sizes, checksums)


def verified(data: Buffer, record: Record, where: str, remedy: str = REMAKE) -> Buffer:
    """The bytes of a result, if they are what its record says.

    Raises:
        StoreError: they are not.
    """
    outcome = record.outcome
    size = size_of(data)
    if size != outcome.bytes:
        raise StoreError(f"{where} is torn: {size:,} bytes where '{record.name}' wrote {outcome.bytes:,}. {remedy}")
    if checksum([data]) != outcome.checksum:
        raise StoreError(f"{where} is not what '{record.name}' wrote: its checksum differs. {remedy}")
    return data
