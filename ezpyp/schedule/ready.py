"""The steps that may start now, in the order of their priority. Pure."""

from __future__ import annotations

from array import array
from heapq import heapify, heappop, heappush
from itertools import compress, count
from operator import and_
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class Ready:
    """A set of steps, from which those of the highest priority are taken first.

    A byte a step says whether it is in. Every step from a *mark* on is found by a search for that byte; only those
    that come in before the mark, which others have passed, are kept in a heap. So whole runs of steps come and go at
    the price of one.

    Steps that ask for more than a core are apart, by what they ask for: they are not taken, but looked for one by one.
    """

    __slots__ = ("_apart", "_early", "_flags", "_kinds", "_mark", "_order", "_place", "apart", "count")

    def __init__(self, total: int, order: Sequence[int] | None = None, kinds: Sequence[int] | None = None) -> None:
        """Empty. `order` lists all steps by priority; without it they go by their index.

        `kinds` has for each step the number of what it asks for, 0 where that is nothing special.
        """
        self._flags = bytearray(total)
        self._mark = 0
        self._early: list[int] = []
        self._order = order
        self._place: array[int] | None = None
        if order is not None:
            self._place = array("i", bytes(4 * total))
            for place, index in enumerate(order):
                self._place[index] = place
        self._kinds = kinds
        #: For each kind but 0, a heap of places.
        self._apart: dict[int, list[int]] = {}
        #: How many steps are in, and how many of these are apart.
        self.count = self.apart = 0

    def place(self, index: int) -> int:
        """Where a step stands in the order."""
        return index if self._place is None else self._place[index]

    def add(self, index: int) -> None:
        """A step that is not in comes in."""
        place = index if self._place is None else self._place[index]
        self.count += 1
        if self._kinds is not None and self._kinds[index]:
            self.apart += 1
            heappush(self._apart.setdefault(self._kinds[index], []), place)
            return
        self._flags[place] = 1
        if place < self._mark:
            heappush(self._early, place)

    def add_all(self, indices: Sequence[int]) -> None:
        """`add` for each."""
        if self._kinds is not None or self._place is not None:
            for index in indices:
                self.add(index)
            return
        flags, mark, early = self._flags, self._mark, self._early
        self.count += len(indices)
        for index in indices:
            flags[index] = 1
            if index < mark:
                heappush(early, index)

    def fill(self, flags: bytearray) -> None:
        """Begin with the steps that have a 1 in `flags`, by index: they alone are in."""
        self._mark = self.apart = 0
        self._early.clear()
        self._apart.clear()
        self.count = flags.count(1)
        if self._kinds is not None:
            apart = list(compress(count(), map(and_, flags, map(bool, self._kinds))))
            for index in apart:
                flags[index] = 0
                self._apart.setdefault(self._kinds[index], []).append(self.place(index))
            self.apart = len(apart)
            for heap in self._apart.values():
                heapify(heap)
        self._flags = flags if self._order is None else bytearray(map(flags.__getitem__, self._order))

    def heads(self, end: int | None = None) -> list[tuple[int, int]]:
        """Of each kind that is apart the first step that stands before `end`: its place in the order, and the kind."""
        return sorted((heap[0], kind) for kind, heap in self._apart.items() if heap and (end is None or heap[0] < end))

    def take_apart(self, kind: int) -> int:
        """The first step of a kind, no longer in."""
        self.count -= 1
        self.apart -= 1
        place = heappop(self._apart[kind])
        return place if self._order is None else self._order[place]

    def first(self, end: int | None = None) -> int | None:
        """Where the step that would be taken next stands in the order, if that is before `end`."""
        if self._early:
            place = self._early[0]
        else:
            # Nothing is in between the mark and what is found: the next search starts there.
            place = self._flags.find(1, self._mark) if self.count > self.apart else -1
            if place < 0:
                return None
            self._mark = place
        return None if end is not None and place >= end else place

    def index(self, place: int) -> int:
        """The step that stands there in the order."""
        return place if self._order is None else self._order[place]

    def take(self, most: int, end: int | None = None) -> list[int]:
        """Up to `most` steps that stand before `end` in the order, no longer in."""
        flags, early = self._flags, self._early
        end = len(flags) if end is None else end
        left = most = min(most, self.count - self.apart)
        taken: list[int] = []
        while early and left and early[0] < end:
            place = heappop(early)
            flags[place] = 0
            taken.append(place)
            left -= 1
        while left > 0 and self._mark < end:
            start = flags.find(1, self._mark, end)
            if start < 0:
                self._mark = end
                break
            limit = min(start + left, end)
            stop = flags.find(0, start, limit)
            stop = limit if stop < 0 else stop
            flags[start:stop] = bytes(stop - start)
            taken += range(start, stop)
            left -= stop - start
            self._mark = stop
        self.count -= most - left
        order = self._order
        return taken if order is None else [order[place] for place in taken]

    def put_back(self, indices: Sequence[int]) -> None:
        """Steps come in again that were taken and not used."""
        if self._kinds is not None and any(map(self._kinds.__getitem__, indices)):
            for index in indices:
                self.add(index)
            return
        places = indices if self._place is None else [self._place[index] for index in indices]
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
