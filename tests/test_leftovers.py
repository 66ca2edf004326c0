"""Shared memory of an earlier start of a job is removed, and nothing else is."""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

import pytest

from ezpyp.ranks import leftovers
from ezpyp.system import offspring, proc

STEP = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_RESTART_COUNT": "1"}
#: What MPICH 5.0.2 was seen to make for the step 1.0 of a job.
NAME = "mpich_shm_eb421bf2_0"


@pytest.fixture(autouse=True)
def keeper(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process stands for Slurm's: what was made before it started is an earlier start's."""
    monkeypatch.setattr(offspring, "ancestor", lambda names: os.getpid() if names == {"slurmstepd"} else None)


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that is older than this process, as far as one can tell."""
    path = tmp_path / NAME
    path.touch()
    later = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: later)
    monkeypatch.setattr(proc.Process, "age", 60.0)
    return path


def test_what_an_earlier_start_left_is_removed(left: Path) -> None:
    other = left.with_name("mpich_shm_eb421bf3_0")
    other.touch()
    leftovers.remove(STEP, str(left.parent))
    assert os.listdir(left.parent) == [other.name]


@pytest.mark.parametrize(
    "changed",
    [{"SLURM_RESTART_COUNT": "0"}, {"SLURM_RESTART_COUNT": ""}, {"SLURM_STEP_ID": "1"}, {"SLURM_JOB_ID": "2"}],
)
def test_a_first_start_or_another_job_removes_nothing(left: Path, changed: dict[str, str]) -> None:
    leftovers.remove(STEP | changed, str(left.parent))
    assert left.exists()


def test_what_this_start_made_stays(tmp_path: Path) -> None:
    (tmp_path / NAME).touch()
    leftovers.remove(STEP, str(tmp_path))
    assert (tmp_path / NAME).exists()


def test_what_another_rank_made_in_its_place_stays(left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rank that found the old one, and was late."""
    locked = fcntl.flock

    def late(descriptor: int, how: int) -> None:
        locked(descriptor, how)
        left.unlink()
        left.write_text("new")

    monkeypatch.setattr(fcntl, "flock", late)
    leftovers.remove(STEP, str(left.parent))
    assert left.read_text() == "new"


def test_where_slurm_is_not_to_be_seen_nothing_is_removed(left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offspring, "ancestor", lambda names: None)
    leftovers.remove(STEP, str(left.parent))
    assert left.exists()
