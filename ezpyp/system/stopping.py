"""Stopping a run before its end: what was asked for, by a signal here or on another rank, and how long steps have."""

from __future__ import annotations

import math
import mmap
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ezpyp.system.running import inside_step

_shared = memoryview(mmap.mmap(-1, 16))
#: What an agent shares with all that is forked from it: whether it heard that the run is to stop; and in the second
#: word, on the monotonic clock, when what runs is ended.
_heard, _end = _shared.cast("q"), _shared.cast("d")
_end[1] = math.inf


#: Seconds that running steps are given after a stop was asked for.
GRACE = 10.0


class Stop:
    """A stop that was asked for, by a signal here or on another rank: `signal` is its number, 0 for none.

    SIGUSR1 is the warning before a time limit: what runs has until then. After other signals it has a grace time.
    """

    def __init__(self, grace: float = GRACE, limit: float = math.inf, warning: float = math.inf) -> None:
        """On the monotonic clock, `limit` is when the run has to end, less what its end takes, and `warning` when
        nothing new is to start at the latest.
        """
        self.grace, self.limit, self.warning = grace, limit, warning
        self.signal = 0
        self.again = False
        self.since = 0.0
        self._came_here = False

    @classmethod
    def within(cls, grace: float, left: float) -> Stop:
        """For a run that has to have ended in `left` seconds: with time for its end, and for steps to save."""
        if left == math.inf:
            return cls(grace)
        now, margin = time.monotonic(), min(30.0, max(1.0, 0.02 * left))
        limit = now + left - margin
        return cls(grace, limit, warning=limit - min(60.0, 0.1 * left))

    def look(self, now: float) -> None:
        """Nobody need warn a run that knows its limit."""
        if now > self.warning and not self.signal:
            self.hear(signal.SIGUSR1, again=False)

    def ask(self, number: int) -> None:
        """A signal came here. A second one is meant to end the run at once."""
        self.hear(number, again=self._came_here)
        self._came_here = True

    def hear(self, number: int, *, again: bool) -> None:
        """A signal came to some rank. Launchers signal every rank: what two ranks tell is still one signal.

        Whoever ends a run that was warned wants more than the warning.
        """
        self.again = self.again or again
        if not self.signal or (self.signal == signal.SIGUSR1 and number != signal.SIGUSR1):
            self.signal, self.since = number, time.monotonic()
        _heard[0], _end[1] = 1, self.end

    @property
    def is_warning(self) -> bool:
        """Whether it is the warning before a time limit that is known."""
        return self.signal == signal.SIGUSR1 and self.limit < math.inf

    @property
    def is_for_time(self) -> bool:
        """Whether nothing but the warning asked for it: nobody wants this run to end."""
        return self.signal == signal.SIGUSR1 and not self.again

    @property
    def end(self) -> float:
        """When what runs is ended, on the monotonic clock."""
        if not self.signal or self.is_warning:
            return self.limit
        return min(self.limit, self.since + self.grace)

    @property
    def exit_code(self) -> int:
        return 130 if self.signal == signal.SIGINT else 85

    @property
    def reason(self) -> str:
        if self.is_warning:
            return "stopped before its time limit"
        return f"stopped by {signal.Signals(self.signal).name}" if self.signal else ""


def stopping() -> bool:
    """Whether the run is to stop: what this step does should soon end.

    A step that takes long looks at it now and then; when it is True, it saves in `checkpoint_dir()` and raises
    `Interrupted`. Costs less than a microsecond. False outside of a run.
    """
    return bool(_heard[0])


def time_left() -> float:
    """The seconds that this step has before it is ended, by what is known now: infinite where no end is known.

    Before a stop is asked for, it is the time until the time limit of the run; then, what is left of the grace.
    """
    return max(0.0, _end[1] - time.monotonic())


def was_asked(patience: float = 0.0) -> bool:
    """Whether the agent on this node heard, or hears within `patience` seconds, that the run is to stop."""
    until = time.monotonic() + patience
    while not _heard[0] and time.monotonic() < until:
        time.sleep(0.01)
    return bool(_heard[0])


@contextmanager
def listening(stop: Stop) -> Iterator[None]:
    """Turn INT, TERM and USR1 into a stop for as long as a run lasts. Only the main thread may set handlers."""
    _heard[0], _end[1] = 0, stop.limit
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def heard(number: int, frame: FrameType | None) -> None:
        stop.ask(number)
        if number == signal.SIGINT and inside_step():
            raise KeyboardInterrupt  # in line, the step itself is what the person wants ended

    former = {n: signal.signal(n, heard) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
