"""Jobs that stop and go on: before their time limit, on another node, in another job's place, or by a person's hand."""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ezpyp.folder.archive import runs_of
from tests.conftest import CHECKOUT, Launcher, interpreter
from tests.lab.conftest import Slurm
from tests.lab.test_submit import appears, command, submitted

if TYPE_CHECKING:
    from collections.abc import Iterator

#: A rank of a core each, beside other jobs.
SMALL = ("--cpus-per-task", "1", "--helpers", "1", "--time", "10m")

#: Every step says that it began, and then that it came to its end.
STUDY = """
import os, time
import ezpyp
from ezpyp import Pipeline, as_json_step

pipeline = Pipeline("cache", "study")
if pipeline.is_root:
    with open("agent", "w") as file:
        file.write(f"{os.getppid()} {os.getpid()}")

@as_json_step(pipeline)
def step(k):
    with open("begun", "a") as file:
        file.write(f"{k} {os.environ.get('SLURM_RESTART_COUNT', 0)} {os.uname().nodename}\\n")
    time.sleep(SECONDS)
    until = time.monotonic() + 60
    while k == WAITS and not os.path.exists("go") and time.monotonic() < until:
        time.sleep(0.05)
        if ezpyp.stopping():
            raise ezpyp.Interrupted("waits")
    if k == FAILS and not os.path.exists("mended"):
        raise ValueError("bad")
    return 10 * k

@as_json_step(pipeline)
def total(values):
    return sum(values)

result = total(step.map(range(COUNT)))
pipeline.execute()
print("result", result.result())
"""


def study(folder: Path, *, count: int, seconds: float = 0.0, waits: int = -1, fails: int = -1) -> None:
    text = STUDY.replace("COUNT)", f"{count})").replace("SECONDS", str(seconds))
    (folder / "study.py").write_text(text.replace("WAITS", str(waits)).replace("FAILS", str(fails)))


def begun(folder: Path) -> list[list[str]]:
    """Of each execution the step, the start of the job, and the host."""
    return [line.split() for line in (folder / "begun").read_text().splitlines()]


def starts(slurm: Slurm, mpirun: Launcher, job: str) -> int:
    shown = slurm.run("scontrol", "-o", "show", "job", job, env=mpirun.environment(), cwd=mpirun.folder).stdout
    found = re.search(r" Restarts=(\d+)", shown)
    assert found is not None, shown
    return 1 + int(found[1])


def has_begun(folder: Path, count: int) -> None:
    """Wait for so many executions."""
    appears(folder / "begun")
    until = time.monotonic() + 30
    while len(begun(folder)) < count:
        assert time.monotonic() < until
        time.sleep(0.05)


def comes_to(slurm: Slurm, job: str, state: str) -> None:
    until = time.monotonic() + 30
    while slurm.state(job) != state:
        assert time.monotonic() < until
        time.sleep(0.05)


def log_of(folder: Path, job: str) -> str:
    return (folder / f"cache/jobs/{job}.log").read_text()


@pytest.fixture
def alone(tmp_path: Path) -> Launcher:
    """For jobs of one rank, which need no MPI."""
    return interpreter(tmp_path)


@pytest.fixture(scope="module", autouse=True)
def long_job(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Launcher, str]]:
    """A job that needs more than its two minutes, on the second node, beside everything else here."""
    launcher = interpreter(tmp_path_factory.mktemp("long"))
    study(launcher.folder, count=50, seconds=2)
    words = ("--cpus-per-task", "1", "--helpers", "1", "--time", "2m", "--", f"--nodelist={slurm.nodes[1]}")
    job = submitted(slurm, launcher, "study.py", *words)
    yield launcher, job
    slurm.run("scancel", job, env=launcher.environment(), cwd=launcher.folder)


@pytest.mark.timeout(240)
def test_steps_are_run_once_however_often_the_job_stops(slurm: Slurm, mpirun: Launcher) -> None:
    """And an edit between submission and start, or between two starts, changes nothing."""
    folder = mpirun.folder
    study(folder, count=12, seconds=5)
    way = "srun" if mpirun.name == "mpich" else "mpirun"
    environ = mpirun.environment({"EZPYP_TIME_LIMIT": "18s"})
    ezpyp_command = (str(mpirun.bin / "python"), "-c", "from ezpyp.cli.main import main; main()")
    words = ("--ntasks-per-node", "2", "--launcher", way, *SMALL, "--", "--hold")
    done = slurm.run(*ezpyp_command, "submit", "study.py", *words, env=environ, cwd=folder)
    assert done.returncode == 0, done.stderr
    job = done.stdout.split()[1]
    (folder / "study.py").write_text("raise SystemExit('edited')\n")
    slurm.run("scontrol", "release", job, env=environ, cwd=folder)
    assert slurm.ended(job, timeout=180) == "COMPLETED", log_of(folder, job)
    log, ran = log_of(folder, job), begun(folder)
    assert Counter(int(step) for step, _, _ in ran) == Counter(range(12)), log
    assert "result 660\n" in log
    stops = log.count("stopped before its time limit")
    assert stops == log.count(f"Job {job} is requeued, and goes on from here.") == starts(slurm, mpirun, job) - 1, log
    assert stops >= 1, log
    assert "[STOP]" not in log


@pytest.mark.parametrize("requeued", [True, False])
def test_a_script_of_ones_own_goes_on(slurm: Slurm, mpirun: Launcher, requeued: bool) -> None:
    """Requeued, or in the place of a job that may not be."""
    folder = mpirun.folder
    study(folder, count=3, waits=2)
    env = mpirun.environment({"STUDY_ENV": str(mpirun.bin.parent)})
    flags = ("--ntasks=2", "--signal=B:USR1@60", *(() if requeued else ("--no-requeue",)))
    job = slurm.sbatch(CHECKOUT / "slurm/one_node.sbatch", *flags, args=("study.py",), env=env, cwd=folder)
    has_begun(folder, 3)
    slurm.run("scancel", "--batch", "--signal=USR1", job, env=env, cwd=folder)
    if requeued:
        comes_to(slurm, job, "PENDING")
    else:
        assert slurm.ended(job) == "FAILED"
    (folder / "go").touch()
    said = (folder / f"{job}.log").read_text()
    assert f"Job {job} is requeued, and goes on from here.\n" in said
    follower = re.search(r"job (\d+) takes its place", said)
    assert (follower is None) == requeued, said
    assert slurm.ended(follower[1] if follower is not None else job) == "COMPLETED", said
    assert Counter(step for step, _, _ in begun(folder)) == {"0": 1, "1": 1, "2": 2}


def test_where_a_job_may_not_be_requeued_another_goes_on(slurm: Slurm, alone: Launcher) -> None:
    """And what failed is not tried again by it."""
    folder = alone.folder
    study(folder, count=2, waits=1, fails=0)
    job = submitted(slurm, alone, "study.py", *SMALL, "--", "--no-requeue")
    has_begun(folder, 2)
    (folder / "mended").touch()
    slurm.run("scancel", "--batch", "--signal=USR1", job, env=alone.environment(), cwd=folder)
    assert slurm.ended(job) == "FAILED"
    (folder / "go").touch()
    log = log_of(folder, job)
    found = re.search(r"job (\d+) takes its place", log)
    assert found is not None, log
    assert slurm.ended(found[1]) == "FAILED"
    assert [step for step, _, _ in begun(folder)] == ["0", "1", "1"]
    assert "not tried again by the job in which they failed: 'step[0]'" in log_of(folder, found[1])
    assert f"Job {found[1]}: FAILED" in command(slurm, alone, "watch", "cache").stdout


def test_a_job_whose_node_is_lost_goes_on_on_another(slurm: Slurm, alone: Launcher) -> None:
    """Nothing of it could end in order, and its lock is there."""
    folder, environ = alone.folder, alone.environment()
    study(folder, count=3, waits=2)

    def node(name: str, *words: str) -> None:
        slurm.run("scontrol", "update", f"NodeName={name}", *words, env=environ, cwd=folder)

    first, second = slurm.nodes
    node(second, "State=DRAIN", "Reason=test")
    job = submitted(slurm, alone, "study.py", *SMALL)
    has_begun(folder, 3)
    node(second, "State=RESUME")
    keeper, agent = map(int, (folder / "agent").read_text().split())
    os.kill(keeper, signal.SIGSTOP)  # who would tell Slurm
    os.kill(agent, signal.SIGKILL)
    assert (folder / "cache/.lock").exists()
    node(first, "State=DRAIN", "Reason=test")  # or it would be back at once, for its slurmd answers
    node(first, "State=DOWN", "Reason=test")
    try:
        comes_to(slurm, job, "PENDING")
        (folder / "go").touch()
        assert slurm.ended(job) == "COMPLETED", log_of(folder, job)
    finally:
        os.kill(keeper, signal.SIGCONT)
        node(first, "State=RESUME")
        until = time.monotonic() + 60
        while slurm.run("srun", "--nodes=2", "true", env=environ, cwd=folder).returncode:
            assert time.monotonic() < until, "the node does not come back"
            time.sleep(0.5)
    assert begun(folder)[2:] == [["2", "0", first], ["2", "1", second]]
    assert "result 30\n" in log_of(folder, job)


#: Of its first start no rank could end in order, nor MPI.
KILLED = """
import os, signal
from ezpyp import Pipeline, as_json_step

pipeline = Pipeline("cache", "study")

@as_json_step(pipeline)
def step(k):
    return 10 * k

step.map(range(4))
pipeline.initialize_schema()
if "SLURM_RESTART_COUNT" not in os.environ:
    pipeline.barrier()
    open(f"killed{os.environ['SLURM_PROCID']}", "w").close()
    os.kill(os.getpid(), signal.SIGKILL)
pipeline.execute()
"""


def test_a_job_that_was_killed_starts_again_on_the_same_node(slurm: Slurm, mpirun: Launcher) -> None:
    """MPICH would wait for good on the shared memory that it left there."""
    folder, environ = mpirun.folder, mpirun.environment()
    (folder / "study.py").write_text(KILLED)
    speaks = {"mpich": "pmi2", "openmpi": "pmix"}[mpirun.name]
    words = f"#!/bin/bash\nsrun --mpi={speaks} {mpirun.bin}/python study.py || sleep 60\n"
    (folder / "job.sbatch").write_text(words)
    flags = ("--nodes=1", "--ntasks=2", f"--nodelist={slurm.nodes[0]}", "--time=10", "--requeue", "--open-mode=append")
    job = slurm.sbatch(folder / "job.sbatch", "--output=log", *flags, env=environ, cwd=folder)
    appears(folder / "killed0")
    appears(folder / "killed1")
    requeued = slurm.run("scontrol", "requeue", job, env=environ, cwd=folder)
    assert requeued.returncode == 0, requeued.stderr
    until = time.monotonic() + 60
    while slurm.state(job) != "COMPLETED":
        assert time.monotonic() < until, (folder / "log").read_text()
        time.sleep(0.1)
    assert "4 done" in (folder / "log").read_text()


def test_a_cancelled_job_stays_so_and_the_next_goes_on(slurm: Slurm, alone: Launcher) -> None:
    folder = alone.folder
    study(folder, count=3, waits=2)
    job = submitted(slurm, alone, "study.py", *SMALL)
    has_begun(folder, 3)
    command(slurm, alone, "cancel", "cache")
    assert slurm.ended(job) == "CANCELLED"
    (folder / "go").touch()
    second = submitted(slurm, alone, "study.py", *SMALL)
    assert slurm.ended(second) == "COMPLETED"
    asked = [
        path.read_text().partition("--signal=")[2].split()[0] for path in sorted(folder.glob("cache/jobs/*.sbatch"))
    ]
    assert asked == ["B:USR1@150", "B:USR1@60"], "the first knows nothing, and has ten minutes; then steps are short"
    assert "result 30\n" in log_of(folder, second)
    assert [step for step, _, _ in begun(folder)] == ["0", "1", "2", "2"]
    assert (slurm.state(job), starts(slurm, alone, job)) == ("CANCELLED", 1)


#: What takes its time before ezpyp can listen.
SLOW = """
import os, time
open("importing", "w").close()
until = time.monotonic() + 30
while not os.path.exists("go") and time.monotonic() < until:
    time.sleep(0.05)
"""


@pytest.mark.parametrize("way", ["mpirun", "srun"])
def test_a_warning_before_anyone_listens_ends_nothing(slurm: Slurm, mpirun: Launcher, way: str) -> None:
    folder = mpirun.folder
    study(folder, count=2)
    (folder / "study.py").write_text(SLOW + (folder / "study.py").read_text())
    setting_up = "touch setting-up; until [ -e proceed ]; do sleep 0.05; done"
    (folder / "ezpyp.toml").write_text(f"setup = ['{setting_up}', 'export PATH={mpirun.bin}:$PATH']\n")
    (folder / "proceed").touch()  # `ezpyp submit` comes by here, too
    (folder / "go").touch()
    job = submitted(slurm, mpirun, "study.py", "--ntasks-per-node", "2", "--launcher", way, *SMALL, "--", "--hold")
    for name in ("proceed", "setting-up", "importing", "go"):
        (folder / name).unlink()
    slurm.run("scontrol", "release", job, env=mpirun.environment(), cwd=folder)
    for seen, then in (("setting-up", "proceed"), ("importing", "go")):
        appears(folder / seen)
        slurm.run("scancel", "--batch", "--signal=USR1", job, env=mpirun.environment(), cwd=folder)
        time.sleep(0.3)  # for launchers to pass it on: nothing tells when they have
        (folder / then).touch()
    assert slurm.ended(job) == "COMPLETED", log_of(folder, job)
    assert starts(slurm, mpirun, job) == 1


def test_a_job_outlives_its_time_limit(slurm: Slurm, long_job: tuple[Launcher, str]) -> None:
    """Nobody says the limit but Slurm, which warns of it."""
    launcher, job = long_job
    folder = launcher.folder
    assert slurm.ended(job, timeout=240) == "COMPLETED", log_of(folder, job)
    log, ran = log_of(folder, job), begun(folder)
    assert "result 12250\n" in log
    assert Counter(int(step) for step, _, _ in ran) == Counter(range(50)), log
    assert starts(slurm, launcher, job) == 2
    assert log.count("stopped before its time limit") == 1
    events = [run.ended.reason for _, run in runs_of(folder / "cache") if run.ended]
    assert events == ["", "stopped before its time limit"]
