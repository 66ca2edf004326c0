"""What helpers tell of a lot, and when they leave it to another."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from ezpyp.model.outcomes import Outcome, Status
from ezpyp.work.helper import Reporting

if TYPE_CHECKING:
    from ezpyp.work.lots import Report
    from ezpyp.work.worker import Worker


def reporting(sent: list[tuple[Report, bool]], most_files: int) -> Reporting:
    """Of a worker that has nothing to flush, which just told what waited."""
    upstream = SimpleNamespace(travelling=lambda briefs: {})
    worker: Any = SimpleNamespace(flush=lambda briefs, outcomes: (briefs, outcomes), upstream=upstream, called={})
    found = Reporting(cast("Worker", worker), sent.append, most_files)
    found.until = float("inf")
    return found


def outcome(status: Status) -> Outcome:
    return Outcome(step=3, status=status)


def test_a_step_that_failed_and_left_too_few_files_is_the_last_of_its_helper() -> None:
    """Whatever is next in its lot would fail, too."""
    sent: list[tuple[Report, bool]] = []
    with pytest.raises(EOFError):
        reporting(sent, most_files=0).add(outcome(Status.DONE), outcome(Status.FAILED))
    ((report, finished),) = sent
    assert [each.status for each in report.outcomes] == [Status.DONE, Status.FAILED]
    assert not finished


@pytest.mark.parametrize(("status", "most_files"), [(Status.FAILED, sys.maxsize), (Status.DONE, 0)])
def test_what_came_of_other_steps_waits_for_more(status: Status, most_files: int) -> None:
    sent: list[tuple[Report, bool]] = []
    assert reporting(sent, most_files).add(outcome(status)) == 1
    assert sent == []
