"""A stop as steps see it: what they are told, what they save, and what the next run finds."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import ezpyp
from ezpyp.system.stopping import Stop, listening, stopping, time_left

if TYPE_CHECKING:
    from tests.conftest import Launcher


def test_outside_of_a_run_nothing_stops_and_time_is_endless() -> None:
    assert (ezpyp.stopping(), ezpyp.time_left()) == (False, math.inf)


def test_after_the_warning_steps_have_until_the_limit() -> None:
    stop = Stop(grace=10.0, limit=time.monotonic() + 300)
    with listening(stop):
        assert not stopping()
        assert 299 < time_left() <= 300
        stop.ask(signal.SIGUSR1)
        assert stopping()
        assert 299 < time_left() <= 300
    assert (stop.reason, stop.exit_code) == ("stopped before its time limit", 85)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 85), (signal.SIGUSR1, 85), (signal.SIGINT, 130)])
def test_after_other_signals_they_have_the_grace_time(number: int, code: int) -> None:
    stop = Stop(grace=10.0, limit=math.inf if number == signal.SIGUSR1 else time.monotonic() + 300)
    with listening(stop):
        stop.ask(number)
        assert 9 < time_left() <= 10
    assert (stop.reason, stop.exit_code) == (f"stopped by {signal.Signals(number).name}", code)


def test_whoever_ends_a_run_that_was_warned_ends_it() -> None:
    stop = Stop(grace=10.0, limit=time.monotonic() + 300)
    with listening(stop):
        stop.hear(signal.SIGUSR1, again=False)
        assert stop.is_for_time
        stop.ask(signal.SIGINT)
        assert not stop.is_for_time
        assert 9 < time_left() <= 10
    assert (stop.reason, stop.exit_code, stop.again) == ("stopped by SIGINT", 130, False)
    stop.hear(signal.SIGUSR1, again=False)
    assert stop.signal == signal.SIGINT


def test_no_grace_lasts_beyond_the_limit() -> None:
    stop = Stop(grace=10.0, limit=time.monotonic() + 3)
    with listening(stop):
        stop.ask(signal.SIGTERM)
        assert 2 < time_left() <= 3


def test_a_stop_of_one_run_is_not_one_of_the_next() -> None:
    with listening(stop := Stop()):
        stop.ask(signal.SIGTERM)
    with listening(Stop()):
        assert (stopping(), time_left()) == (False, math.inf)


def test_a_checkpoint_is_for_steps() -> None:
    with pytest.raises(ezpyp.EzpypError, match="no step runs here"):
        ezpyp.checkpoint_dir()


#: Counts to six and saves where it is, once it is asked to stop.
COUNT = """
import os, time
import ezpyp
from ezpyp import Pipeline, as_json_step

pipeline = Pipeline("cache", "counts")

@as_json_step(pipeline)
def count(k):
    saved = ezpyp.checkpoint_dir() / "at"
    at = int(saved.read_text()) if saved.exists() else 0
    until = time.monotonic() + 30
    while at < 3:
        at += 1
        open(f"counted-{k}", "a").write(f"{at}\\n")
    while not os.path.exists("again") and not ezpyp.stopping():
        assert time.monotonic() < until
        time.sleep(0.01)
    if ezpyp.stopping():
        assert ezpyp.time_left() <= 10
        saved.write_text(str(at))
        raise ezpyp.Interrupted("saved")
    while at < 6:
        at += 1
        open(f"counted-{k}", "a").write(f"{at}\\n")
    return at

count.map(range(4))
pipeline.execute()
"""


def begun(run: subprocess.Popen[str], folder: Path, count: int) -> None:
    """Wait until so many steps wait for the stop."""
    until = time.monotonic() + 30
    while sum(path.read_text().endswith("3\n") for path in folder.glob("counted-*")) < count:
        assert time.monotonic() < until
        assert run.poll() is None
        time.sleep(0.02)


def check_that_it_goes_on(launcher: Launcher, ranks: int, many: int) -> None:
    folder = launcher.folder
    run = launcher.start(ranks, COUNT)
    begun(run, folder, many)
    run.send_signal(signal.SIGUSR1)
    out, _ = run.communicate(timeout=30)
    assert run.returncode == 85 or ranks, out
    assert "[FAIL]" not in out
    assert len(list(folder.glob("cache/checkpoints/*/at"))) == many, out
    assert len(list(folder.glob("counted-*"))) == many, "nothing new starts"
    (folder / "again").touch()
    done = launcher.run(ranks, COUNT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.read_text() for path in folder.glob("counted-*")} == {"1\n2\n3\n4\n5\n6\n"}
    assert not list(folder.glob("cache/checkpoints/*"))


def test_a_step_saves_and_the_next_run_goes_on_from_there(python: Launcher) -> None:
    check_that_it_goes_on(python, 0, 1)


def test_every_rank_hears_of_a_stop(mpirun: Launcher) -> None:
    check_that_it_goes_on(mpirun, 2, 2)


FAILS = """
import ezpyp
from ezpyp import Pipeline, as_json_step

pipeline = Pipeline("cache", "fails")

@as_json_step(pipeline, retry=1)
def step():
    saved = ezpyp.checkpoint_dir() / "at"
    if not saved.exists():
        saved.touch()
        raise ValueError("once")
    return VERSION

step = step()
pipeline.execute()
print("result", step.result())
"""


def test_what_was_saved_survives_an_attempt_and_is_dropped_when_the_step_is_done(python: Launcher) -> None:
    done = python.run(0, FAILS.replace("VERSION", "1"))
    assert "result 1" in done.stdout, done.stdout + done.stderr
    assert os.listdir(python.folder / "cache/checkpoints") == []


def test_a_step_that_changed_finds_nothing_saved(python: Launcher) -> None:
    failing = FAILS.replace("retry=1", "retry=0")
    python.run(0, failing.replace("VERSION", "1"))
    (before,) = os.listdir(python.folder / "cache/checkpoints")
    again = python.run(0, failing.replace("VERSION", "2"), env={"EZPYP_ON_CHANGE": "rerun"})
    assert "result" not in again.stdout, "the other version began where this one was"
    assert before in os.listdir(python.folder / "cache/checkpoints")
    last = python.run(0, failing.replace("VERSION", "2"))
    assert "result 2" in last.stdout, last.stdout + last.stderr
    assert os.listdir(python.folder / "cache/checkpoints") == []


SHORT = """
import os, signal, time
import ezpyp
from ezpyp import Pipeline, as_json_step

pipeline = Pipeline("cache", "short")
with open("agent", "w") as file:
    file.write(str(os.getpid()))

@as_json_step(pipeline)
def step(k):
    open(f"ran-{k}", "x").close()
    if k == 50:
        os.kill(int(open("agent").read()), signal.SIGUSR1)
        until = time.monotonic() + 10
        while not ezpyp.stopping():
            assert time.monotonic() < until
            time.sleep(0.001)
        time.sleep(1)  # the agent, which looks a hundred times a second, sees it meanwhile

step.map(range(100))
pipeline.execute()
"""


@pytest.mark.parametrize("executor", ["processes", "inline"])
def test_what_travels_with_a_step_is_not_begun_after_a_stop(python: Launcher, executor: str) -> None:
    run = python.run(0, SHORT, env={"EZPYP_EXECUTOR": executor})
    assert run.returncode == 85, run.stdout + run.stderr
    assert len(list(python.folder.glob("ran-*"))) == 51
    again = python.run(0, SHORT, env={"EZPYP_EXECUTOR": executor})
    assert again.returncode == 0, again.stdout + again.stderr
    assert len(list(python.folder.glob("ran-*"))) == 100
