"""How a run is carried out, apart from what it computes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from ezpyp import Pipeline, as_pickle_step
from ezpyp.folder import events
from ezpyp.run import conductor
from ezpyp.storage import packed
from ezpyp.storage.filestore import FileStore
from ezpyp.system import files


@pytest.mark.parametrize(("executor", "expected"), [("inline", "1s2s3ss"), ("processes", "12s3ssss")])
def test_results_are_synced_at_the_border_of_each_phase_when_what_waited_for_them_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: str, expected: str
) -> None:
    log = tmp_path / "syncs"
    original = FileStore.sync

    def note(letter: str) -> None:
        with log.open("a") as file:
            file.write(letter)

    def noted(store: FileStore) -> None:
        note("s")
        original(store)

    def following(number: int) -> int:
        note(str(number + 1))
        return number + 1

    monkeypatch.setattr(FileStore, "sync", noted)
    monkeypatch.setattr(conductor, "SYNC_EVERY", 0.0)
    pipeline = Pipeline(tmp_path / "cache", "sync", executor=executor)
    step = as_pickle_step(pipeline)(following)
    step(step(step(0)))
    assert pipeline.execute().ok
    assert log.read_text() == expected, "at last by who ran the steps, told or not, and by rank 0"


def test_short_phases_are_not_synced_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[FileStore] = []

    def counted(store: FileStore) -> None:
        calls.append(store)

    monkeypatch.setattr(FileStore, "sync", counted)
    pipeline = Pipeline(tmp_path / "cache", "sync", executor="inline")
    step = as_pickle_step(pipeline)(abs)
    last = step(-1)
    for _ in range(20):
        last = step(last)
    assert pipeline.execute().ok
    assert len(calls) <= 3


def test_a_run_of_many_short_steps_is_told_in_lots(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path / "cache", "many", workers=2)
    step = as_pickle_step(pipeline)(abs)
    step.map(range(1500))
    assert pipeline.execute().done == 1500
    (journal,) = events.journals(pipeline.cache_location).values()
    told = list(events.replay(journal))
    lots = [event for event in told if isinstance(event, events.LotEnded)]
    alone = [event for event in told if isinstance(event, events.StepEnded)]
    assert sum(event.steps for event in lots) + len(alone) == 1500
    assert len(lots) + len(alone) < 500
    ended = told[-1]
    assert isinstance(ended, events.RunEnded)
    (durations,) = ended.durations.values()
    assert durations["count"] == 1500
    assert 0 <= durations["mean"] <= durations["longest"]
    assert 0 <= durations["p95"] <= durations["longest"]


def large(x: int) -> bytes:
    return bytes(x) * (1 << 21)


@pytest.mark.parametrize("store", ["files", "packed"])
def test_what_a_killed_helper_had_begun_to_write_is_gone_with_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    write = files.write_all

    def fatal(descriptor: int, chunk: bytes) -> None:
        write(descriptor, chunk)
        if len(chunk) > 1 << 20:
            os.kill(os.getpid(), signal.SIGKILL)

    def run() -> bool:
        pipeline = Pipeline(tmp_path / "cache", "killed", executor="processes", store=store)
        step = as_pickle_step(pipeline)(large)(1)
        summary = pipeline.execute(raise_on_failure=False)
        assert not summary.done or step.result() == large(1)
        return summary.ok

    monkeypatch.setattr(packed, "LARGE", 1 << 20)
    with monkeypatch.context() as patch:
        patch.setattr(files, "write_all", fatal)
        assert not run()
    (left,) = (tmp_path / "cache").rglob(".ezpyp-tmp-*")
    assert left.stat().st_size > 1 << 20
    assert run()
    assert not [*(tmp_path / "cache").rglob(".ezpyp-tmp-*")]
