"""Why a helper ended, in words."""

from __future__ import annotations

import signal

import pytest

from ezpyp.work.nursery import Ending
from ezpyp.work.postmortem import cause, signal_name


@pytest.mark.parametrize(
    ("code", "timeout", "oom", "word", "line"),
    [
        (3, None, False, "exit", "it ended its process with exit code 3 instead of returning"),
        (0, None, True, "exit", "it ended its process with exit code 0 instead of returning"),
        (-9, 2.5, True, "timeout", "it ran longer than its timeout of 2.5 s and was ended"),
        (-9, None, True, "oom", "out of memory: the kernel ended it at a peak of 1.5 GiB"),
        (-9, None, False, "signal", "ended with signal 9 (Killed)"),
        (-11, None, True, "signal", "ended with signal 11 (Segmentation fault)"),
    ],
)
def test_why_a_helper_ended(code: int, timeout: float | None, oom: bool, word: str, line: str) -> None:
    assert cause(Ending(code=code, peak=3 << 29), timeout=timeout, oom=oom) == (word, line)


def test_a_number_that_is_no_signal_has_no_name() -> None:
    assert signal_name(signal.SIGTERM) == "Terminated"
    assert signal_name(77_777) == "unknown"
