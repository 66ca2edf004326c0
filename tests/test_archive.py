"""Journals of old runs are compacted into one line each, and logs that nobody needs go with them."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest

from ezpyp import Pipeline, as_pickle_step, open
from ezpyp.errors import StoreError
from ezpyp.folder import archive, events
from ezpyp.folder.events import Journal, RunEnded, RunStarted, journals
from ezpyp.run import session


def started(run: str) -> RunStarted:
    return RunStarted(
        run=run,
        when=1.0,
        pipeline_id="p",
        folder="f",
        store="files",
        command=("python", "s.py"),
        python="3.11",
        mpi="",
        executor="processes",
        schedule="ready",
        ranks=1,
        hosts=("h",),
        slots=1,
        total=3,
        done=0,
        packages={"numpy": "2.0"},
    )


def ended(run: str) -> RunEnded:
    return RunEnded(
        run=run, when=2.0, seconds=1.0, done=3, failed=0, skipped=0, not_run=0, allowed=0, cached=0, exit_code=0
    )


def history(folder: Path, *runs: str) -> None:
    (folder / "logs").mkdir(exist_ok=True)
    for run in runs:
        journal = Journal(folder, run)
        journal.hear(started(run))
        if run != "r05":  # one was killed
            journal.hear(ended(run))
        journal.close()
        (folder / "logs" / f"{run}.0000.00.log").write_text("printed")


def names(count: int) -> list[str]:
    return [f"r{k:02}" for k in range(count)]


def logs(folder: Path) -> set[str]:
    return {path.name[:3] for path in (folder / "logs").iterdir()}


def test_twenty_runs_are_left_as_they_are(tmp_path: Path) -> None:
    history(tmp_path, *names(20))
    assert archive.compact(tmp_path, current="r19", logged=()) == 0
    assert len(journals(tmp_path)) == len(logs(tmp_path)) == 20


def test_older_ones_become_a_line_each(tmp_path: Path) -> None:
    history(tmp_path, *names(24))
    before = archive.runs_of(tmp_path)
    assert archive.compact(tmp_path, current="r23", logged={"r02"}) == 4
    assert [*journals(tmp_path)] == names(24)[:3:-1]
    lines = (tmp_path / "journal" / "archive.jsonl").read_text().splitlines()
    assert [json.loads(line)["run"] for line in lines] == ["archive", "r00", "r01", "r02", "r03"]
    after = archive.runs_of(tmp_path)
    assert [run for run, _ in after] == [run for run, _ in before]
    assert [(h.started, h.ended, h.seconds) for _, h in after] == [(h.started, h.ended, h.seconds) for _, h in before]
    assert logs(tmp_path) == {"r02", *names(24)[4:]}  # of r02 there still is a record
    history(tmp_path, "r24", "r25", "r26")
    assert archive.compact(tmp_path, current="r26", logged=()) == 3
    assert [run for run, _ in archive.runs_of(tmp_path)] == names(27)[::-1]
    assert dict(archive.runs_of(tmp_path))["r05"].ended is None
    assert dict(archive.runs_of(tmp_path))["r05"].started == started("r05")
    assert logs(tmp_path) == set(names(27)[7:])


def test_the_newest_run_is_never_the_archive(tmp_path: Path) -> None:
    history(tmp_path, *names(22))
    archive.compact(tmp_path, current="r21", logged=())
    assert events.last_run(tmp_path).started == started("r21")


@pytest.mark.parametrize("survived", range(4))
def test_a_kill_loses_no_run(survived: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Killed(BaseException):
        pass

    history(tmp_path, *names(23))
    unlinked = itertools.count()

    def unlink(path: str) -> None:
        if next(unlinked) >= survived:
            raise Killed
        os_unlink(path)

    os_unlink: Any = os.unlink
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", unlink)
        with pytest.raises(Killed):
            archive.compact(tmp_path, current="r22", logged=())
    assert [run for run, _ in archive.runs_of(tmp_path)] == names(23)[::-1]
    history(tmp_path, "r23")
    archive.compact(tmp_path, current="r23", logged=())
    assert [run for run, _ in archive.runs_of(tmp_path)] == names(24)[::-1]
    assert len(journals(tmp_path)) == 20


def test_a_torn_archive_costs_what_is_torn(tmp_path: Path) -> None:
    history(tmp_path, *names(23))
    archive.compact(tmp_path, current="r22", logged=())
    path = tmp_path / "journal" / "archive.jsonl"
    path.write_text(path.read_text()[:-40])
    assert [run for run, _ in archive.runs_of(tmp_path)][-2:] == ["r01", "r00"]


def test_an_archive_of_a_newer_format_is_left_alone(tmp_path: Path) -> None:
    history(tmp_path, *names(23))
    path = tmp_path / "journal" / "archive.jsonl"
    path.write_text('{"event": "Journal", "format": 99, "run": "archive"}\n')
    with pytest.raises(StoreError, match="format 99"):
        archive.compact(tmp_path, current="r22", logged=())
    assert len(journals(tmp_path)) == 23


def test_a_run_compacts_what_is_before_it(tmp_path: Path) -> None:
    """Twenty-five runs of a script: what its steps printed can be read all the time."""

    def say(what: str) -> str:
        print("saying", what)
        return what

    runs: list[str] = []
    for _ in range(25):
        session._folders.clear()
        pipeline = Pipeline(tmp_path / "cache", "many", on_change="extend")
        f = as_pickle_step(pipeline)(say)
        f("first", name="first")
        f.options(always=True)("again", name="again")
        pipeline.execute()
        runs.append(archive.runs_of(tmp_path / "cache")[0][0])
    run = open(tmp_path / "cache")
    assert run.log("first") == "saying first\n"
    assert run.log("again") == "saying again\n"
    assert len(journals(run.folder)) == 20
    assert [name for name, _ in archive.runs_of(run.folder)] == runs[::-1]
    assert len({*runs}) == 25
    assert len(list((tmp_path / "cache" / "logs").iterdir())) <= 22
    assert (tmp_path / "cache" / "logs" / f"{runs[0]}.0000.00.log").exists()
    assert not (tmp_path / "cache" / "logs" / f"{runs[1]}.0000.00.log").exists()
