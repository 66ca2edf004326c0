"""Stopping a run before its end: what was asked for, by a signal here or on another rank."""

from __future__ import annotations

import mmap
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ezpyp.system.running import inside_step

#: One byte that the agent shares with all that is forked from it: whether it heard that the run is to stop.
_heard = mmap.mmap(-1, 1)


class Stop:
    """A stop that was asked for, by a signal here or on another rank: `signal` is its number, 0 for none."""

    def __init__(self) -> None:
        self.signal = 0
        self.again = False
        self.since = 0.0
        self._came_here = False

    def ask(self, number: int) -> None:
        """A signal came here. A second one is meant to end the run at once."""
        self.hear(number, again=self._came_here)
        self._came_here = True

    def hear(self, number: int, *, again: bool) -> None:
        """A signal came to some rank. Launchers signal every rank: what two ranks tell is still one signal."""
        self.again = self.again or again
        self.signal = self.signal or number
        self.since = self.since or time.monotonic()
        _heard[0] = 1

    @property
    def exit_code(self) -> int:
        return 130 if self.signal == signal.SIGINT else 85

    @property
    def reason(self) -> str:
        return f"stopped by {signal.Signals(self.signal).name}" if self.signal else ""


def was_asked(patience: float = 0.0) -> bool:
    """Whether the agent on this node heard, or hears within `patience` seconds, that the run is to stop."""
    until = time.monotonic() + patience
    while not _heard[0] and time.monotonic() < until:
        time.sleep(0.01)
    return bool(_heard[0])


@contextmanager
def listening(stop: Stop) -> Iterator[None]:
    """Turn INT, TERM and USR1 into a stop for as long as a run lasts. Only the main thread may set handlers."""
    _heard[0] = 0
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
