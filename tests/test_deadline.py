"""What may start before a run has to end, and what is said where nothing can."""

from __future__ import annotations

import math
import re
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ezpyp.errors import InitializationError
from ezpyp.model.kinds import Functions
from ezpyp.schedule.deadline import Deadline, by_function
from ezpyp.system.allocation import seconds_left, seconds_of, spoken

if TYPE_CHECKING:
    from tests.conftest import Launcher

TRAIN = Functions([0], ["train"])
HOUR = 3600.0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("90", 90), ("90s", 90), ("18s", 18), ("2h", 7200), ("1d12h", 129600), ("5min", 300), ("2h30m", 9000)),
        *(("0.5", 0.5), ("30:00", 1800), ("2:30:00", 9000), ("1-12:00:00", 129600), ("1:05", 65)),
        *(
            ("", None),
            ("soon", None),
            ("-1", None),
            ("nan", None),
            ("inf", None),
            ("UNLIMITED", math.inf),
            ("2h soon", None),
        ),
    ],
)
def test_durations_are_read_as_people_and_slurm_write_them(text: str, seconds: float | None) -> None:
    assert seconds_of(text) == seconds


@given(st.integers(0, 10**7))
def test_what_slurm_writes_is_read(seconds: int) -> None:
    days, rest = divmod(seconds, 86400)
    clock = f"{rest // 3600}:{rest // 60 % 60:02}:{rest % 60:02}"
    assert seconds_of(f"{days}-{clock}") == seconds
    assert days or seconds_of(clock) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *(
            (5 * HOUR + 600, "5 h 10 min"),
            (2 * HOUR + 55 * 60 + 4, "2 h 55 min"),
            (2 * HOUR, "2 h"),
            (125, "2 min 5 s"),
        ),
        *((60, "1 min"), (59.7, "1 min"), (18, "18 s"), (5.21, "5.2 s"), (-3, "0.0 s"), (9.97, "10 s")),
    ],
)
def test_durations_are_said_as_people_say_them(seconds: float, text: str) -> None:
    assert spoken(seconds) == text


def test_an_end_is_an_end_whenever_one_starts() -> None:
    assert seconds_left({"EZPYP_TIME_LIMIT": "@1700"}, 1000.0) == 700
    written = time.strftime("@%Y-%m-%dT%H:%M:%S", time.localtime(1700))
    assert seconds_left({"EZPYP_TIME_LIMIT": written}, 1000.0) == 700, "as squeue -o %e writes it"
    assert seconds_left({}, 1000.0) == math.inf
    assert 0 < 3600 - seconds_left({"EZPYP_TIME_LIMIT": "1h"}, time.time()) < 1800, "it counts from the start"


@pytest.mark.parametrize("text", ["@", "@NONE", "@N/A", "@Unknown", "UNLIMITED"])
def test_where_slurm_knows_no_end_it_is_not_asked_again(text: str) -> None:
    assert seconds_left({"EZPYP_TIME_LIMIT": text, "SLURM_JOB_ID": "7", "PATH": ""}, 1000.0) == math.inf


@pytest.mark.parametrize("text", ["soon", "@soon", "@2026-13-01T00:00:00"])
def test_a_limit_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(InitializationError, match=f"EZPYP_TIME_LIMIT='{text}': give seconds"):
        seconds_left({"EZPYP_TIME_LIMIT": text}, 0.0)


def test_message_10() -> None:
    deadline = Deadline(TRAIN, 0.0, 2 * HOUR + 55 * 60, recorded={"train": 5 * HOUR + 600}, declared={})
    assert not deadline.permits(0, 0.0)
    assert deadline.refused
    assert deadline.message(0.0) == (
        "Nothing can start: 'train' took 5 h 10 min in earlier runs, 2 h 55 min are left. Ask --time 6h, or save in "
        "ezpyp.checkpoint_dir(). Stopped, resumable (85)."
    )


def test_what_is_unknown_starts_while_a_quarter_of_the_time_is_left() -> None:
    deadline = Deadline(TRAIN, 0.0, 100.0, recorded={}, declared={})
    assert deadline.permits(0, 75.0)
    assert not deadline.permits(0, 75.1)
    assert "nobody knows how long 'train' takes, 24 s are left" in deadline.message(76.0)


def test_what_is_declared_bounds_what_is_expected() -> None:
    deadline = Deadline(TRAIN, 0.0, 100.0, recorded={}, declared={"train": 10.0})
    assert deadline.permits(0, 90.0)
    assert not deadline.permits(0, 90.1)
    assert "'train' may take 10 s" in deadline.message(91.0)
    assert Deadline(TRAIN, 0.0, 100.0, recorded={"train": 500.0}, declared={"train": 60.0}).permits(0, 40.0)


def test_a_function_declares_what_all_its_steps_do() -> None:
    functions = Functions([0, 0, 1, 1], ["a", "b"])
    assert by_function(functions, [(0, 5.0), (1, 7.0), (2, 3.0), (3, None)]) == {"a": 7.0}


@given(st.lists(st.floats(0.1, 50.0), min_size=1, max_size=20))
def test_nothing_starts_that_would_take_as_long_as_the_one_before(seconds: list[float]) -> None:
    deadline = Deadline(TRAIN, 0.0, 100.0, recorded={}, declared={})
    for each in seconds:
        deadline.learn(0, each)
    assert not deadline.permits(0, 100.0 - seconds[-1] + 0.01)


STUDY = """
import time
from ezpyp import Pipeline, as_json_step

pipeline = Pipeline("cache", "study")

@as_json_step(pipeline)
def train(k):
    open("executions", "a").write(f"{k}\\n")
    time.sleep(1)
    return k

train.map(range(12))
pipeline.execute()
"""


def test_what_cannot_end_is_left_to_the_next_start(mpirun: Launcher) -> None:
    """12 steps of 1 s on 2 ranks, each start with 7 s: no step is ended before its time, none runs twice."""
    starts, limit = 0, {"EZPYP_TIME_LIMIT": "7s"}
    while (run := mpirun.run(2, STUDY, env=limit)).returncode:
        starts += 1
        assert starts < 8, run.stdout + run.stderr
        assert "stopped before its time limit" in run.stdout
        assert not re.search("FAIL|interrupted", run.stdout + run.stderr), run.stdout + run.stderr
    assert starts >= 1
    assert len((mpirun.folder / "executions").read_text().split()) == 12


def test_what_is_known_not_to_end_does_not_start(python: Launcher) -> None:
    """The first run ends what it tried; the second knows better."""
    long = STUDY.replace("sleep(1)", "sleep(3)").replace("range(12)", "range(2)")
    first = python.run(0, long, env={"EZPYP_TIME_LIMIT": "7s"})
    assert first.returncode == 85, first.stdout + first.stderr
    assert (python.folder / "executions").read_text() == "0\n"
    second = python.run(0, long, env={"EZPYP_TIME_LIMIT": "4s"})
    assert second.returncode == 85, second.stdout + second.stderr
    said = r"Nothing can start: 'train' took 3\.0 s in earlier runs, [0-2]\.\d s are left\. Ask --time 14s, or save in "
    assert re.search(said, second.stderr), second.stderr
    assert (python.folder / "executions").read_text() == "0\n"


def test_what_runs_at_the_limit_is_told_and_ended(python: Launcher) -> None:
    """Nobody sends a signal."""
    long = STUDY.replace("sleep(1)", "sleep(60)").replace("range(12)", "range(2)")
    began = time.monotonic()
    run = python.run(0, long, env={"EZPYP_TIME_LIMIT": "5s"})
    assert time.monotonic() - began < 20
    assert run.returncode == 85, run.stdout + run.stderr
    assert "stopped before its time limit" in run.stdout
    assert "FAIL" not in run.stdout


def test_all_ranks_refuse_a_limit_that_makes_no_sense(mpirun: Launcher) -> None:
    run = mpirun.run(2, STUDY, env={"EZPYP_TIME_LIMIT": "soon"})
    assert run.returncode == 3, "refused before running"
    assert run.stderr.count("EZPYP_TIME_LIMIT='soon': give seconds") == 1, run.stderr
    assert not (mpirun.folder / "executions").exists()


GREEDY = """
from ezpyp import Pipeline, as_json_step

pipeline = Pipeline("cache", "greedy")

@as_json_step(pipeline, timeout=3600, cpus=2)
def long(k):
    return k

@as_json_step(pipeline, timeout=3600)
def longer(k):
    return k

@as_json_step(pipeline)
def short(k):
    return k

long.map(range(3)), longer.map(range(3)), short.map(range(3))
pipeline.execute()
"""


def test_what_can_end_starts_beside_what_cannot(python: Launcher) -> None:
    run = python.run(0, GREEDY, env={"EZPYP_TIME_LIMIT": "60s", "EZPYP_WORKERS": "2"})
    assert run.returncode == 85, run.stdout + run.stderr
    assert "3 done, 6 not run" in run.stdout
    assert "Nothing can start: 'long" in run.stderr
