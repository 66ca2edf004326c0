"""Edges of a graph as numbers in two arrays: a million steps and what they wait for fit in a few megabytes."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import overload

from ezpyp.system.digests import blake2b


class Edges(Sequence[tuple[int, ...]]):
    """For each step the steps it is joined to: those of step k are `flat[first[k]:first[k + 1]]`.

    It reads as a sequence of tuples. What is made for very many steps reads the arrays.

    Attributes:
        first: one number more than there are steps, typecode "q".
        flat: indices of steps, typecode "i".
    """

    __slots__ = ("first", "flat")

    def __init__(self, first: array[int], flat: array[int]) -> None:
        self.first, self.flat = first, flat

    @classmethod
    def of(cls, listed: Iterable[Sequence[int]]) -> Edges:
        """The edges of steps, one sequence of indices a step."""
        first, flat = array("q", [0]), array("i")
        for each in listed:
            flat.extend(each)
            first.append(len(flat))
        return cls(first, flat)

    @classmethod
    def none(cls, total: int) -> Edges:
        """No edges for so many steps."""
        return cls(array("q", bytes(8 * (total + 1))), array("i"))

    def turned(self) -> Edges:
        """The same edges from their other ends, each step's in increasing order."""
        total, flat = len(self), self.flat
        sizes = array("q", bytes(8 * (total + 1)))
        for end in flat:
            sizes[end + 1] += 1
        first = array("q", accumulate(sizes))
        found, place = array("i", bytes(4 * len(flat))), array("q", first)
        if flat:
            begins = self.first
            for k in range(total):
                for end in flat[begins[k] : begins[k + 1]]:
                    found[place[end]] = k
                    place[end] += 1
        return Edges(first, found)

    def digest(self, start: int, stop: int) -> bytes:
        """A digest of the edges of these steps; nothing where there are none."""
        begin, end = self.first[start], self.first[stop]
        if begin == end:
            return b""
        whole = blake2b(self.flat[begin:end], digest_size=16)
        whole.update(self.first[start : stop + 1])
        return whole.digest()

    def of_all(self, steps: Sequence[int]) -> set[int]:
        """All that any of these steps is joined to."""
        first, flat = self.first, self.flat
        if isinstance(steps, range) and steps.step == 1:
            return {*flat[first[steps.start] : first[steps.stop]]}
        return {end for k in steps for end in flat[first[k] : first[k + 1]]}

    def __len__(self) -> int:
        return len(self.first) - 1

    @overload
    def __getitem__(self, k: int) -> tuple[int, ...]: ...
    @overload
    def __getitem__(self, k: slice) -> tuple[tuple[int, ...], ...]: ...
    def __getitem__(self, k: int | slice) -> tuple[int, ...] | tuple[tuple[int, ...], ...]:
        if isinstance(k, slice):
            return tuple(self[each] for each in range(*k.indices(len(self))))
        if k < 0:
            k += len(self)
        if not 0 <= k < len(self):
            raise IndexError(k)
        begin, end = self.first[k], self.first[k + 1]
        return tuple(self.flat[begin:end]) if begin != end else ()

    def __iter__(self) -> Iterator[tuple[int, ...]]:
        flat, begin = self.flat, 0
        for end in self.first[1:]:
            yield tuple(flat[begin:end]) if begin != end else ()
            begin = end

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Edges):
            return NotImplemented
        return self.first == other.first and self.flat == other.flat

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<Edges of {len(self):,} steps: {len(self.flat):,}>"
