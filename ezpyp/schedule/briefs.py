"""What came of the steps of a run, as rank 0 knows it: numbers for most of them, objects where there is more to say.

A Brief is packed by the helper that ran the step, and travels and stays so: rank 0 copies the bytes of a whole lot to
their place in one table, which is why a million steps fit. An Outcome is made of one where somebody looks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, compress
from struct import Struct
from typing import TYPE_CHECKING, Any

from ezpyp.model.outcomes import Brief, Outcome, Place
from ezpyp.tuples import NamedTuple

if TYPE_CHECKING:
    from ezpyp.storage.opening import Store

#: step, attempt, rank, segment, when, seconds, offset, size, checksum. Words of four bytes, then of eight.
_LAYOUT = Struct("<iiiiddqqQ")
SIZE = _LAYOUT.size
_WORDS, _LONG_WORDS, _SECONDS = SIZE // 4, SIZE // 8, 3

#: Of no more steps the arguments are kept as texts.
_MOST_CALLED = 1 << 16

#: From (step, attempt, rank, segment, when, seconds, offset, size, checksum) to the bytes of a Brief.
pack = _LAYOUT.pack


def unpack(packed: bytes | bytearray | memoryview) -> Iterator[Brief]:
    """The briefs of bytes that follow each other."""
    for step, attempt, rank, segment, when, seconds, offset, size, checksum in _LAYOUT.iter_unpack(packed):
        yield Brief(step, attempt, rank, when, seconds, Place(segment, offset, size, checksum))


def places_of(packed: bytes) -> Iterator[tuple[int, Place]]:
    """The steps, each with where its result lies."""
    for step, _, _, segment, _, _, offset, size, checksum in _LAYOUT.iter_unpack(packed):
        yield step, Place(segment, offset, size, checksum)


def place_at(packed: bytes | bytearray, number: int) -> Place:
    """Where the result of one of these briefs lies."""
    _, _, _, segment, _, _, offset, size, checksum = _LAYOUT.unpack_from(packed, number * SIZE)
    return Place(segment, offset, size, checksum)


def steps_of(packed: bytes) -> list[int]:
    """The indices of the steps."""
    found: list[int] = memoryview(packed).cast("i")[::_WORDS].tolist()
    return found


def seconds_of(packed: bytes | bytearray) -> list[float]:
    """The durations of the steps."""
    words: Any = memoryview(packed).cast("d")[_SECONDS::_LONG_WORDS]
    found: list[float] = words.tolist()
    return found


def as_range(indices: Sequence[int]) -> Sequence[int]:
    """A range in place of numbers that follow each other: it travels and is settled as one."""
    if not indices:
        return indices
    run = range(indices[0], indices[0] + len(indices))
    return run if indices[-1] == run[-1] and list(indices) == list(run) else indices


class Plain(NamedTuple):
    """What is told of steps that are done and of which there is no more to say, by columns."""

    #: Which they are of those that were asked for.
    at: Sequence[int]
    seconds: Sequence[float]
    ranks: Sequence[int]
    hosts: Sequence[str]
    attempts: Sequence[int]
    locations: Sequence[str]
    #: The arguments as texts, positional and by name, "" for those that were planned; None for all that were.
    called: Sequence[tuple[str, str] | None]


class Outcomes(Mapping[int, Outcome]):
    """The last outcome of each step that this run settled, by its index."""

    def __init__(self, stems: Sequence[str], store: Store, hosts: Sequence[str] = ()) -> None:
        """`hosts` has one for each rank."""
        self._stems, self._store, self._hosts = stems, store, hosts
        self._told: dict[int, Outcome] = {}
        #: Arguments as texts of some that have a brief, oldest first.
        self._called: dict[int, tuple[str, str]] = {}
        #: A Brief a step; all zero where there is none.
        self._table = bytearray(SIZE * len(stems))

    def take(self, packed: bytes) -> Sequence[int]:
        """Keep briefs, in place of what was known of their steps; which steps these are."""
        steps = as_range(steps_of(packed))
        if isinstance(steps, range):
            self._table[steps[0] * SIZE : (steps[-1] + 1) * SIZE] = packed
        else:
            for k, start in zip(steps, range(0, len(packed), SIZE), strict=True):
                self._table[k * SIZE : (k + 1) * SIZE] = packed[start : start + SIZE]
        if self._told:
            for k in self._told.keys() & set(steps):
                del self._told[k]
        return steps

    def put(self, outcome: Outcome) -> None:
        """Keep an outcome, in place of what was known of its step."""
        k = outcome.step
        if self._is_brief(k):
            self._table[k * SIZE : (k + 1) * SIZE] = bytes(SIZE)
        self._told[k] = outcome

    def hear(self, called: Mapping[int, tuple[str, str]]) -> None:
        """What steps that are done were called with, as their records say it. What is too much to keep is read there
        again.
        """
        self._called.update(called)
        while len(self._called) > _MOST_CALLED:
            del self._called[next(iter(self._called))]

    def drop(self, k: int) -> None:
        """The result of a step was dropped: what came of it is not where it was."""
        if self._is_brief(k):
            self._table[k * SIZE + 12 : k * SIZE + 16] = b"\xff" * 4
        elif k in self._told:
            self._told[k] = self._told[k]._replace(dropped=True)

    def brief(self, k: int) -> Brief:
        """The brief of a step that has one."""
        return next(unpack(self._table[k * SIZE : (k + 1) * SIZE]))

    def packed(self, steps: Sequence[int]) -> bytes:
        """The briefs of those of these steps that have one."""
        table = self._table
        return b"".join(table[k * SIZE : (k + 1) * SIZE] for k in steps if self._is_brief(k))

    def seconds(self, steps: range) -> list[float]:
        """The durations of those of these steps that are done."""
        table = self._table[steps.start * SIZE : steps.stop * SIZE]
        there = memoryview(table).cast("i")[1::_WORDS].tolist()
        plain = seconds_of(table) if all(there) else [*compress(seconds_of(table), there)]
        told = (self._told[k] for k in self._told.keys() & set(steps)) if self._told else ()
        return [*plain, *(each.seconds for each in told if not each.status)]

    def __getitem__(self, k: int) -> Outcome:
        if k in self._told:
            return self._told[k]
        if not self._is_brief(k):
            raise KeyError(k)
        place = self.brief(k).place
        record = self._store.read(self._stems[k], at=place if place.segment >= 0 else None)
        if record is None:
            raise KeyError(k)
        return record.outcome._replace(step=k)

    def plain(self, steps: Sequence[int], stems: Sequence[str], given: Sequence[bool]) -> Plain:
        """What is told without their records of those of these steps, with these stems, of which there is no more to
        say. The arguments of those that were `given` others' results are found out.
        """
        packed, asked = self._cut(steps), list[int]()
        _, attempts, ranks, segments, _, seconds, *where = zip(*_LAYOUT.iter_unpack(packed), strict=True)
        locations = [*self._store.locations(stems, segments, where[1])]
        called = [*map(self._called.get, steps)]
        for i in compress(range(len(steps)), given):
            if called[i] is None and attempts[i] and locations[i] is not None:
                asked.append(i)
        said = self._store.calls([stems[i] for i in asked], [place_at(packed, i) for i in asked]) if asked else ()
        for i, call in zip(asked, said, strict=True):
            called[i] = call
            if call is None:
                locations[i] = None
        at = [i for i, (attempt, each) in enumerate(zip(attempts, locations, strict=True)) if attempt and each]
        hosts = [*map(self._hosts.__getitem__, ranks)]
        columns: list[Sequence[Any]] = [seconds, ranks, hosts, attempts, locations, called]
        return Plain(at, *(columns if len(at) == len(steps) else [[column[i] for i in at] for column in columns]))

    def _cut(self, steps: Sequence[int]) -> bytes | bytearray:
        """Of these steps the briefs, all zero where there is none."""
        table = self._table
        if isinstance(steps, range) and steps.step == 1:
            return table[steps.start * SIZE : steps.stop * SIZE]
        return b"".join(table[k * SIZE : (k + 1) * SIZE] for k in steps)

    def __contains__(self, k: object) -> bool:
        return k in self._told or (isinstance(k, int) and self._is_brief(k))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __iter__(self) -> Iterator[int]:
        attempts: Any = memoryview(self._table).cast("i")[1::_WORDS]
        return chain(self._told, (k for k, attempt in enumerate(attempts) if attempt))

    def _is_brief(self, k: int) -> bool:
        """Attempts count from one."""
        return self._table[k * SIZE + 4 : k * SIZE + 8] != b"\0\0\0\0"
