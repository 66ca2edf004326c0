"""What is loaded once for all helpers of a rank."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import ezpyp
from ezpyp import Pipeline, as_pickle_step
from ezpyp.work import preloading
from tests.conftest import Launcher

SCRIPT = """
import os, sys
import ezpyp
from ezpyp import Pipeline, as_pickle_step

def load(path):
    with open("loads", "a") as file:
        file.write(f"{os.getppid()}\\n")
    return list(range(FACTOR))

table = ezpyp.preload(load, "climate.nc")
pipeline = Pipeline("cache", "shared", on_change="rerun", capture="off")

@as_pickle_step(pipeline)
def look(k):
    return table()[k], os.getpid()

@as_pickle_step(pipeline)
def other(k):
    return k

looks = look.map(range(12))
other(1)
summary = pipeline.execute()
os.write(1, f"RAN {summary.done - summary.cached} of {summary.done}\\n".encode())
assert [step.result()[0] for step in looks] == list(range(12))
"""


@pytest.fixture(autouse=True)
def nothing_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preloading, "_asked", [])


def loads(folder: Path) -> int:
    return len((folder / "loads").read_text().splitlines())


def test_helpers_share_what_was_loaded_once(python: Launcher) -> None:
    done = python.run(0, SCRIPT.replace("FACTOR", "99"), env={"EZPYP_WORKERS": "3"})
    assert done.returncode == 0, done.stderr
    assert loads(python.folder) == 1


def test_it_is_loaded_once_a_rank_and_only_where_steps_run(mpirun: Launcher) -> None:
    done = mpirun.run(2, SCRIPT.replace("FACTOR", "99"), env={"EZPYP_HELPERS": "2"})
    assert done.returncode == 0, done.stderr
    assert loads(mpirun.folder) == 2
    done = mpirun.run(2, SCRIPT.replace("FACTOR", "99"))
    assert "RAN 0 of 13" in done.stdout
    assert loads(mpirun.folder) == 2


def test_what_it_is_loaded_from_counts_for_the_steps_that_use_it(python: Launcher) -> None:
    for text, ran in (("99", 13), ("99", 0), ("98", 12)):
        done = python.run(0, SCRIPT.replace("FACTOR", text))
        assert f"RAN {ran} of 13" in done.stdout, done.stderr
    done = python.run(0, SCRIPT.replace("FACTOR", "98").replace("climate.nc", "weather.nc"))
    assert "RAN 12 of 13" in done.stdout, done.stderr


def test_steps_fail_where_it_cannot_be_loaded_and_others_do_not(tmp_path: Path) -> None:
    def load() -> int:
        raise OSError("no such climate")

    table = ezpyp.preload(load)
    pipeline = Pipeline(tmp_path / "cache", "lost")
    needs = as_pickle_step(pipeline, name="needs")(table)()
    other = as_pickle_step(pipeline, name="other")(abs)(-3)
    summary = pipeline.execute(raise_on_failure=False)
    assert (summary.done, summary.failed, other.result()) == (1, 1, 3)
    assert "no such climate" in summary.failures[needs.name]


@pytest.mark.parametrize("end", ["sys.exit(3)", "raise KeyboardInterrupt"])
def test_a_function_that_wants_to_end_the_process_fails_the_steps_that_need_it(python: Launcher, end: str) -> None:
    done = python.run(
        0, SCRIPT.replace('    with open("loads", "a") as file:', f"    {end}\n    with open(path) as file:")
    )
    assert done.returncode == 1, done.stderr
    assert "1 done, 12 failed" in done.stdout


def test_a_function_that_does_not_live_to_return_is_named(python: Launcher) -> None:
    """As one that takes more memory than there is."""
    done = python.run(
        0, SCRIPT.replace('    with open("loads", "a") as file:', "    os.kill(os.getpid(), 9)\n    if True:")
    )
    assert done.returncode == 4
    assert "while it ran load() (" in done.stderr
    assert "script.py:6), which the script gave to ezpyp.preload" in done.stderr


def test_arrays_come_read_only_and_in_line_too(tmp_path: Path) -> None:
    import numpy

    table = ezpyp.preload(numpy.zeros, 3)
    pipeline = Pipeline(tmp_path / "cache", "inline")

    def write() -> int:
        with pytest.raises(ValueError, match="read-only"):
            table()[0] = 1.0
        return os.getpid()

    step = as_pickle_step(pipeline)(write)()
    assert pipeline.execute(executor="inline").ok
    assert step.result() == os.getpid()
