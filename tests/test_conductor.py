"""What cannot be written ends neither the run nor what it says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ezpyp import Pipeline, Status, as_pickle_step
from ezpyp.errors import StoreError
from ezpyp.model.outcomes import Outcome
from ezpyp.storage.filestore import FileStore


def bad(x: int) -> int:
    raise ValueError(x)


def test_a_skip_that_cannot_be_stored_is_told_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put = FileStore.put

    def full(self: FileStore, stem: str, record: Any, chunks: Any) -> Outcome:
        if record.outcome.status is Status.SKIPPED:
            raise StoreError("the disk is full")
        return put(self, stem, record, chunks)

    monkeypatch.setattr(FileStore, "put", full)
    pipeline = Pipeline(tmp_path / "cache", "full")
    failed = as_pickle_step(pipeline)(bad)(1)
    skipped = as_pickle_step(pipeline)(abs)(failed)
    other = as_pickle_step(pipeline, name="other")(abs)(-3)
    last = as_pickle_step(pipeline, name="last")(abs)(other)
    summary = pipeline.execute(raise_on_failure=False)
    assert (summary.done, summary.failed, summary.skipped) == (2, 1, 1)
    assert (skipped.get_status(), last.result()) == (Status.SKIPPED, 3)


def test_steps_run_where_no_log_can_be_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pipeline = Pipeline(tmp_path / "cache", "silent")
    (tmp_path / "cache" / "logs").write_text("not a folder")
    step = as_pickle_step(pipeline)(print)("hello from a step")
    assert pipeline.execute().ok
    assert step.result() is None
    shown = capfd.readouterr()
    assert "hello from a step" in shown.out
    assert "what steps print is not kept" in shown.err
