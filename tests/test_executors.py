"""What helpers finished and had not reported yet: nobody waits for it, and nothing runs twice."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from ezpyp import Pipeline, as_pickle_step
from ezpyp.model import policy
from ezpyp.run.conductor import Conductor
from ezpyp.schedule import briefs
from ezpyp.schedule.pace import Pace
from ezpyp.storage.packed import PackedStore
from ezpyp.work import executors
from ezpyp.work.executors import Processes
from ezpyp.work.inline import Executor
from ezpyp.work.lots import Report

STEPS = 60
SPECIAL = 50


def count(folder: str, k: int) -> None:
    with open(os.path.join(folder, f"ran-{k}"), "a") as file:
        file.write("x")


def runs(folder: Path) -> list[int]:
    return [path.stat().st_size for path in folder.glob("ran-*")]


def build(folder: Path, act: str, workers: int = 1, store: str = "files") -> Pipeline:
    """Short steps that travel in lots, one among them that crashes or takes long."""

    def work(k: int) -> float:
        count(str(folder), k)
        if k == SPECIAL and act == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if k == SPECIAL and act == "sleep":
            time.sleep(1.5)
        return time.monotonic()

    pipeline = Pipeline(folder / "cache", "lots", workers=workers, store=store)
    as_pickle_step(pipeline)(work).map(range(STEPS))
    return pipeline


@pytest.mark.parametrize("again", range(3))
def test_a_crash_does_not_run_its_neighbours_twice(tmp_path: Path, again: int) -> None:
    pipeline = build(tmp_path, "crash")
    summary = pipeline.execute(raise_on_failure=False)
    assert (summary.done, summary.failed) == (STEPS - 1, 1)
    assert runs(tmp_path) == [1] * STEPS


def test_of_packed_results_a_crash_costs_those_that_nobody_was_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[int] = []
    poll = Processes.poll

    def watched(self: Processes) -> list[Report]:
        reports = poll(self)
        for report in reports:
            told.extend(briefs.steps_of(report.briefs))
            told.extend(outcome.step for outcome in report.outcomes)
        return reports

    monkeypatch.setattr(Processes, "poll", watched)
    summary = build(tmp_path, "crash", store="packed").execute(raise_on_failure=False)
    assert (summary.done, summary.failed) == (STEPS - 1, 1)
    assert sorted(told) == list(range(STEPS))
    ran = [(tmp_path / f"ran-{k}").stat().st_size for k in range(STEPS)]
    assert set(ran[:SPECIAL]) <= {1, 2}
    assert ran[SPECIAL:] == [1] * (STEPS - SPECIAL)


def test_a_long_step_does_not_hold_back_what_waits_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given_back: list[int] = []
    poll = Processes.poll

    def watched(self: Processes) -> list[Report]:
        reports = poll(self)
        given_back.extend(k for report in reports for k in report.returned)
        return reports

    monkeypatch.setattr(Processes, "poll", watched)
    pipeline = build(tmp_path, "sleep", workers=2)
    assert pipeline.execute().done == STEPS
    ended = [pipeline.result(f"work[{k}]") for k in range(STEPS)]
    assert ended[SPECIAL] - max(t for k, t in enumerate(ended) if k != SPECIAL) > 1
    assert runs(tmp_path) == [1] * STEPS


def test_nobody_waits_for_what_ended_before_a_step_that_may_take_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard: list[tuple[float, int]] = []
    poll = Processes.poll

    def watched(self: Processes) -> list[Report]:
        reports = poll(self)
        heard.extend((time.monotonic(), report.ended) for report in reports)
        return reports

    def quick(k: int) -> int:
        return k

    def slow() -> tuple[int, float]:
        there = len(PackedStore(tmp_path / "cache").records().records)
        time.sleep(0.3)
        return there, time.monotonic()

    monkeypatch.setattr(Processes, "poll", watched)
    monkeypatch.setattr(policy, "lot_size", lambda *_, **__: STEPS + 1)
    monkeypatch.setattr(Pace, "_fitting", lambda _, lot, __: len(lot))  # one lot has both
    pipeline = Pipeline(tmp_path / "cache", "long", store="packed")
    as_pickle_step(pipeline)(quick).map(range(STEPS))
    last = as_pickle_step(pipeline)(slow)()
    assert pipeline.execute().done == STEPS + 1
    there, ended = last.result()
    assert there == STEPS
    assert sum(count for when, count in heard if when < ended - 0.1) == STEPS


@pytest.mark.parametrize("crashes", [False, True])
def test_what_is_taken_back_runs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, crashes: bool) -> None:
    """Fences go up at every moment, whether anybody has nothing to do or not."""

    def always(self: Conductor, team: Sequence[Executor]) -> None:
        for executor in team:
            executor.recall()

    def work(k: int) -> None:
        count(str(tmp_path), k)
        if crashes and k % 50 == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.0001 * (k * 7919 % 13))

    given_back = 0
    poll = Processes.poll

    def watched(self: Processes) -> list[Report]:
        nonlocal given_back
        reports = poll(self)
        given_back += sum(len(report.returned) for report in reports)
        return reports

    monkeypatch.setattr(executors, "_HELD_UP", 0.0)
    monkeypatch.setattr(Conductor, "_let_share", always)
    monkeypatch.setattr(Processes, "poll", watched)
    pipeline = Pipeline(tmp_path / "cache", "fences", workers=3)
    as_pickle_step(pipeline)(work).map(range(200))
    summary = pipeline.execute(raise_on_failure=False)
    failed = 4 if crashes else 0
    assert (summary.done, summary.failed, summary.not_run) == (200 - failed, failed, 0)
    assert runs(tmp_path) == [1] * 200
    assert given_back > 10
