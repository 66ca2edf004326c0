"""What each rank holds, as rank 0 counts it: who gets the next lot, and who may have steps to give back. Pure.

Nothing that is asked for every lot takes longer with more ranks: ten thousand of them ask a thousand times a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heapify, heappop, heappush


class Seats:
    """The helpers of all ranks, and the lots that they hold.

    Attributes:
        slots: how many helpers take lots now.
        lots: how many lots are held.
        idle: how many helpers hold nothing.
    """

    def __init__(self, slots: Mapping[int, int]) -> None:
        """`slots` says how many helpers each rank has."""
        self._helpers, self._open, self._idle = dict(slots), dict(slots), dict(slots)
        self._lots = dict.fromkeys(slots, 0)
        self._tasks = dict.fromkeys(slots, 0)
        self.slots = self.idle = sum(slots.values())
        self.lots = 0
        #: (load, rank). The load of a rank changes: only what equals it now counts, and that is always there.
        self._order = [(0.0, rank) for rank in slots]
        heapify(self._order)
        #: Ranks that hold more tasks than helpers, and were not asked since they got the last.
        self._crowded: set[int] = set()

    def choose(self) -> int:
        """The rank that holds the fewest lots for its helpers, the first of several."""
        order = self._order
        while order[0][0] != self._load(order[0][1]):
            heappop(order)
        return order[0][1]

    def give(self, rank: int, tasks: int) -> None:
        """A rank is given a lot of so many tasks."""
        self.lots += 1
        self._lots[rank] += 1
        self._tasks[rank] += tasks
        if self._idle[rank]:
            self._idle[rank] -= 1
            self.idle -= 1
        if self._tasks[rank] > self._helpers[rank]:
            self._crowded.add(rank)
        self._changed(rank)

    def take(self, rank: int, *, lots: int, tasks: int, slots: int, idle: int) -> None:
        """A rank finished so many lots and tasks, and says how many of its helpers take lots and hold nothing now."""
        self.lots -= lots
        self._lots[rank] -= lots
        self._tasks[rank] -= tasks
        self.slots += slots - self._open[rank]
        self._open[rank] = slots
        self.idle += idle - self._idle[rank]
        self._idle[rank] = idle
        if self._tasks[rank] <= self._helpers[rank]:
            self._crowded.discard(rank)
        self._changed(rank)

    def crowded(self) -> list[int]:
        """Ranks with tasks that wait behind others, each once until it is given more."""
        found = sorted(self._crowded)
        self._crowded.clear()
        return found

    def _load(self, rank: int) -> float:
        return self._lots[rank] / (self._open[rank] or 0.1)

    def _changed(self, rank: int) -> None:
        heappush(self._order, (self._load(rank), rank))
        if len(self._order) > 64 + 4 * len(self._lots):  # mostly of former loads
            self._order = [(self._load(each), each) for each in self._lots]
            heapify(self._order)
