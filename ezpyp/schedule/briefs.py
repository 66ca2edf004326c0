"""What came of the steps of a run, as rank 0 knows it: numbers for most of them, objects where there is more to say.

A Brief is packed by the helper that ran the step, and travels and stays so: rank 0 copies the bytes of a whole lot to
their place in one table, which is why a million steps fit. An Outcome is made of one where somebody looks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, compress
from struct import Struct
from typing import TYPE_CHECKING, Any

from ezpyp.model.outcomes import Brief, Outcome, Place, Status

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


def place_at(packed: bytes, number: int) -> Place:
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

    def outlines(self, steps: Sequence[int], stems: Sequence[str], given: Sequence[bool]) -> list[Outcome | None]:
        """What is told of steps with these stems without their records: all but codec and checksum, and the arguments,
        which are found out of those that were given others' results. None where that is not enough to say where a
        result lies.
        """
        found: list[Outcome | None] = []
        asked: list[tuple[int, str, Place]] = []
        unpack_from, table, hosts, location_of = _LAYOUT.unpack_from, self._table, self._hosts, self._store.location
        called = self._called
        for k, stem, is_asked in zip(steps, stems, given, strict=True):
            if k in self._told or not self._is_brief(k):
                found.append(self._told.get(k))
                continue
            _, attempt, rank, segment, when, seconds, *where = unpack_from(table, k * SIZE)
            place = Place(segment, *where)
            location = location_of(stem, place)
            if location is None:
                found.append(None)
                continue
            args, kwargs = called.get(k, ("", ""))
            if is_asked and not args:
                asked.append((len(found), stem, place))
            told = when, seconds, rank, hosts[rank], attempt, args, kwargs
            found.append(Outcome(k, Status.DONE, *told, location=location, bytes=place.size))
        if asked:
            places, its_stems, at = zip(*asked, strict=True)
            for i, said in zip(places, self._store.calls(its_stems, at), strict=True):
                outcome = found[i]
                found[i] = outcome._replace(args=said[0], kwargs=said[1]) if outcome and said is not None else None
        return found

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
