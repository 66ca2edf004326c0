"""What each helper is at, in memory that it shares with its agent."""

from __future__ import annotations

import mmap
import os
import time
import weakref

from ezpyp.model.settings import MOST_HELPERS
from ezpyp.work.gauges import Gauges

#: Words of eight bytes for each helper, a cache line of its own: number, fence, offset, since when.
_WORDS = 8
#: No task has such a number.
NO_FENCE = 1 << 62
#: Of a helper: the number of its task and the fence; and since when it is at the task. That is written first.
Here = tuple["memoryview[int]", "memoryview[float]"]


class Position:
    """What each helper is at, in memory that it shares with the agent: the one thing known of a helper that dies.

    Tasks of a helper have running numbers. The agent may set a fence: the helper begins no task from that number on. It
    publishes a task's number *before* it looks at the fence. So when the agent has set a fence, has waited until each
    has surely seen what the other wrote (a millisecond: a store takes nanoseconds to reach another core), and the
    helper is still at a task before the fence, then it will never begin one behind it: it publishes first, and that
    was not seen; so it looks later, and will see the fence. Where it had got further, nothing follows from it.
    """

    __slots__ = ("__weakref__", "_numbers", "_times", "file", "gauges")

    def __init__(self, file: int | None = None) -> None:
        """New memory; or that of another process, which it handed over."""
        size = 8 * _WORDS * MOST_HELPERS
        #: The memory as a file, for programs that this process starts.
        self.file = os.memfd_create("ezpyp") if file is None else file
        weakref.finalize(self, os.close, self.file)
        if file is None:
            os.ftruncate(self.file, size + Gauges.SIZE)
        shared = memoryview(mmap.mmap(self.file, size + Gauges.SIZE))
        self._numbers, self._times = shared[:size].cast("q"), shared[:size].cast("d")
        #: What steps use of their GPUs.
        self.gauges = Gauges(shared[size:])

    def reset(self, slot: int) -> None:
        """Another helper has this slot: it is at no task, and there is no fence."""
        self.begin(slot, -1)
        self.raise_fence(slot, NO_FENCE)

    def begin(self, slot: int, number: int) -> None:
        """The helper of this slot begins a task now; -1 for none."""
        self._times[slot * _WORDS + 3] = time.monotonic()
        self._numbers[slot * _WORDS] = number

    def of(self, slot: int) -> Here:
        """The memory of the helper of this slot, where `begin` and `fence` cost too much."""
        start = slot * _WORDS
        return self._numbers[start : start + 2], self._times[start + 3 : start + 4]

    def end(self, slot: int) -> None:
        """The helper of this slot is at no task."""
        self._numbers[slot * _WORDS] = -1

    def publish_offset(self, slot: int, offset: int) -> None:
        """Where in its log the output of the task begins."""
        self._numbers[slot * _WORDS + 2] = offset

    def fence(self, slot: int) -> int:
        """The number from which on the helper of this slot begins nothing."""
        return self._numbers[slot * _WORDS + 1]

    def raise_fence(self, slot: int, number: int) -> None:
        """From this number on the helper of this slot shall begin nothing."""
        self._numbers[slot * _WORDS + 1] = number

    def get(self, slot: int) -> tuple[int, float, int]:
        """(number, since when on the monotonic clock, offset in the log)."""
        start = slot * _WORDS
        return self._numbers[start], self._times[start + 3], self._numbers[start + 2]
