"""What a step may do to the process that runs it, undone for the step that follows: folder, streams, alarm, threads."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import NoReturn

from ezpyp.system import pools
from ezpyp.system.capture import Capture, Place
from ezpyp.work.tracebacks import frames


class Guards:
    """Stands around each step of a helper, but for those that cannot do anything (`confined`)."""

    def __init__(self, capture: Capture, publish: Callable[[int], None], *, environment: Mapping[str, str]) -> None:
        """The folder that this process is in is where every step begins.

        Args:
            publish: is told where in its log the output of the next step begins.
            environment: what binds this process, whose pools of threads have one each (`helper.prepare`).
        """
        self._capture, self._publish = capture, publish
        self._home = os.open(".", os.O_PATH)
        self._variables = pools.among(environment)
        self._threads = 1
        self._set_variables()

    @property
    def log(self) -> str | None:
        """See `Capture.log`."""
        return self._capture.log

    def enter(self, cpus: int) -> None:
        """A step begins. It gets as many threads as it asked cores for: one, so that sums are added in the same order
        wherever it runs, unless it says `cpus=`.
        """
        if cpus != self._threads:
            self._limit_threads(cpus)
        os.fchdir(self._home)  # the one before may have gone elsewhere
        self._publish(self._capture.begin())

    def leave(self) -> Place | None:
        """The step has come back; where its output is, if there is any."""
        signal.setitimer(signal.ITIMER_REAL, 0)  # or its alarm would end another
        return self._capture.end()

    def _limit_threads(self, cpus: int) -> None:
        self._threads = cpus
        self._set_variables()
        pools.limit_threads(cpus)

    def _set_variables(self) -> None:
        os.environ.update(dict.fromkeys(self._variables, str(self._threads)))


def end_child() -> NoReturn:
    """End a process that a step forked, as it would have ended at the end of a script."""
    error = sys.exc_info()[1]
    code = 0
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        code = 1
        with contextlib.suppress(Exception):
            sys.stderr.write(f"{frames(error)}\n")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code & 0xFF)
