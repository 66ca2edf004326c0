"""How a run is carried out, apart from what it computes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ezpyp import Pipeline, as_pickle_step
from ezpyp.folder import events
from ezpyp.run import conductor
from ezpyp.storage.filestore import FileStore


@pytest.mark.parametrize(("executor", "expected"), [("inline", "1s2s3ss"), ("processes", "12s3sss")])
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
    assert log.read_text() == expected, "at last by who ran the steps, and by rank 0"


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
