"""The steps that may start now, in the order of their priority. Pure."""

from __future__ import annotations

from array import array
from heapq import heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Ready:
    """A set of steps, from which those of the highest priority are taken first.

    A byte a step says whether it is in. Every step from a *mark* on is found by a search for that byte; only those
    that come in before the mark, which others have passed, are kept in a heap. So whole runs of steps come and go at
    the price of one.
    """

    __slots__ = ("_early", "_flags", "_mark", "_order", "_place", "count")

    def __init__(self, total: int, order: Sequence[int] | None = None) -> None:
        """Empty. `order` lists all steps by priority; without it they go by their index."""
        self._flags = bytearray(total)
        self._mark = 0
        self._early: list[int] = []
        self._order = order
        self._place: array[int] | None = None
        if order is not None:
            self._place = array("i", bytes(4 * total))
            for place, index in enumerate(order):
                self._place[index] = place
        self.count = 0

    def place(self, index: int) -> int:
        """Where a step stands in the order."""
        return index if self._place is None else self._place[index]

    def add(self, index: int) -> None:
        """A step that is not in comes in."""
        place = index if self._place is None else self._place[index]
        self._flags[place] = 1
        self.count += 1
        if place < self._mark:
            heappush(self._early, place)

    def fill(self, flags: bytearray) -> None:
        """Begin with the steps that have a 1 in `flags`, by index: they alone are in."""
        self._mark = 0
        self._early.clear()
        self.count = flags.count(1)
        self._flags = flags if self._order is None else bytearray(map(flags.__getitem__, self._order))

    def discard(self, index: int) -> None:
        """Take out a step that may be in. Only before anything was taken."""
        assert not self._early
        place = self.place(index)
        self.count -= self._flags[place]
        self._flags[place] = 0

    def first(self, end: int | None = None) -> int | None:
        """The step that would be taken next, of those that stand before `end` in the order."""
        if self._early:
            place = self._early[0]
        else:
            # Nothing is in between the mark and what is found: the next search starts there.
            found = self._flags.find(1, self._mark) if self.count else -1
            if found < 0:
                return None
            place = self._mark = found
        if end is not None and place >= end:
            return None
        return place if self._order is None else self._order[place]

    def take(self, count: int, end: int | None = None) -> list[int]:
        """Up to `count` steps that stand before `end` in the order, no longer in."""
        count = min(count, self.count)
        flags, early = self._flags, self._early
        end = len(flags) if end is None else end
        taken: list[int] = []
        while early and len(taken) < count and early[0] < end:
            place = heappop(early)
            flags[place] = 0
            taken.append(place)
        left = count - len(taken)
        while left > 0 and self._mark < end:
            start = flags.find(1, self._mark, end)
            if start < 0:
                self._mark = end
                break
            most = min(start + left, end)
            stop = flags.find(0, start, most)
            stop = most if stop < 0 else stop
            flags[start:stop] = bytes(stop - start)
            taken += range(start, stop)
            left -= stop - start
            self._mark = stop
        self.count -= len(taken)
        order = self._order
        return taken if order is None else [order[place] for place in taken]

    def put_back(self, indices: Iterable[int]) -> None:
        """Steps come in again that were taken and not used."""
        places = [*indices] if self._place is None else [self._place[index] for index in indices]
        if not places:
            return
        for place in places:
            self._flags[place] = 1
        self.count += len(places)
        if not self._early:
            # All that is in is found from the least of them on.
            self._mark = min(self._mark, *places)
            return
        for place in places:
            if place < self._mark:
                heappush(self._early, place)
