"""What came of a step that its helper died at, told by the agent: the dead cannot."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING

from ezpyp.errors import EzpypError
from ezpyp.model.outcomes import Outcome, Status
from ezpyp.system.capture import tail

if TYPE_CHECKING:
    from ezpyp.system.usage import Use
    from ezpyp.work.lots import Task
    from ezpyp.work.nursery import Ending
    from ezpyp.work.worker import Worker


def cause(ending: Ending, *, timeout: float | None, oom: bool) -> tuple[str, str]:
    """Why a helper ended, as a word and as a line.

    Args:
        timeout: the limit for which it was ended; None where it was not.
        oom: the kernel has ended some process of this machine for want of memory since it was last asked.
    """
    if timeout is not None:
        return "timeout", f"it ran longer than its timeout of {timeout:g} s and was ended"
    if ending.code >= 0:
        return "exit", f"it ended its process with exit code {ending.code} instead of returning"
    if oom and -ending.code == signal.SIGKILL:
        return "oom", f"out of memory: the kernel ended it at a peak of {ending.peak / 2**30:.1f} GiB"
    return "signal", f"ended with signal {-ending.code} ({signal_name(-ending.code)})"


def outcome(worker: Worker, task: Task, *, since: float, cause: str, note: str, gpu: Use | None) -> Outcome:
    """The failure of a step that had begun at that moment of the monotonic clock."""
    args, kwargs = worker.plan.steps[task.step].texts()
    return Outcome(
        step=task.step,
        status=Status.FAILED,
        when=time.time(),
        seconds=max(0.0, time.monotonic() - since),
        rank=worker.rank,
        host=worker.host,
        attempt=task.attempt,
        args=args,
        kwargs=kwargs,
        cause=cause,
        note=note,
        gpu=gpu,
    )


def keep(worker: Worker, outcome: Outcome, *, log: str | None, start: int) -> Outcome:
    """Add what the step printed into its log, from there on, and keep the outcome as far as that can be done."""
    if log is not None:
        with contextlib.suppress(OSError):
            end = os.path.getsize(os.path.join(worker.folder, log))
            place = (log, start, end) if end > start else None
            outcome = outcome._replace(log=place, tail=tail(worker.folder, place))
    with contextlib.suppress(EzpypError, OSError):
        outcome = worker.keep(outcome)
        worker.store.flush()
    return outcome


def signal_name(number: int) -> str:
    """What a signal is called, "unknown" where it has no name."""
    try:
        return signal.strsignal(number) or signal.Signals(number).name
    except ValueError:
        return "unknown"
