"""How a run is carried out, apart from what it computes."""

from __future__ import annotations

from pathlib import Path

import pytest

from ezpyp import Pipeline, as_pickle_step, conductor
from ezpyp.store import FileStore


@pytest.mark.parametrize("executor", ["inline", "processes"])
def test_results_are_synced_at_the_border_of_each_phase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: str
) -> None:
    log = tmp_path / "syncs"
    original = FileStore.sync

    def counted(store: FileStore) -> None:
        with log.open("a") as file:
            file.write("x")
        original(store)

    monkeypatch.setattr(FileStore, "sync", counted)
    monkeypatch.setattr(conductor, "SYNC_EVERY", 0.0)
    pipeline = Pipeline(tmp_path / "cache", "sync", executor=executor)
    step = as_pickle_step(pipeline)(abs)
    step(step(step(-1)))
    assert pipeline.execute().ok
    assert len(log.read_text()) == 4  # after each of three phases, and at the end


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
