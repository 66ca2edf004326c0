"""`ezpyp submit` and what follows, on a real Slurm: with both wheels, by mpirun and by srun."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

import ezpyp
from tests.conftest import CHECKOUT, Launcher
from tests.lab.conftest import Slurm, environment
from tests.lab.test_lab import FITTING

DIGITS = CHECKOUT / "examples" / "digits" / "digits.py"
#: What the digits example finds on one machine (tests/test_examples.py).
BEST = "The best of 69 settings is **support vectors** (C 3, gamma 0.3)"

#: Waits in a step until it is let go; a module of its own says with what result.
STUDY = """
import os, time
import factor
from ezpyp import Pipeline, as_json_step

pipeline = Pipeline("cache", "study")

@as_json_step(pipeline)
def wait():
    open("begun", "w").close()
    until = time.monotonic() + 60
    while not os.path.exists("go") and time.monotonic() < until:
        time.sleep(0.05)
    return 3 * factor.FACTOR

step = wait()
pipeline.execute()
print("result", step.result())
"""


@pytest.fixture
def study(mpirun: Launcher) -> Path:
    (mpirun.folder / "study.py").write_text(STUDY)
    (mpirun.folder / "factor.py").write_text("FACTOR = 10\n")
    return mpirun.folder


def command(slurm: Slurm, mpirun: Launcher, *words: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """`ezpyp …` as a user on a login node types it."""
    ezpyp = (str(mpirun.bin / "python"), "-c", "from ezpyp.cli.main import main; main()")
    return slurm.run(*ezpyp, *words, env=mpirun.environment(), cwd=mpirun.folder, timeout=timeout)


def submitted(slurm: Slurm, mpirun: Launcher, *words: str) -> str:
    """The number of the job."""
    done = command(slurm, mpirun, "submit", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[1]


def appears(path: Path, timeout: float = 30) -> None:
    until = time.monotonic() + timeout
    while not path.exists():
        assert time.monotonic() < until, f"{path} did not appear in {timeout} s"
        time.sleep(0.05)


@pytest.mark.parametrize("way", ["mpirun", "srun"])
def test_the_digits_example_finds_the_same_best_model(slurm: Slurm, mpirun: Launcher, way: str) -> None:
    (mpirun.folder / "digits.py").write_bytes(DIGITS.read_bytes())
    words = ("digits.py", "--nodes", "2", "--time", "10m", "--launcher", way, "--helpers", "1")
    job = submitted(slurm, mpirun, *words)
    slurm.ended(job, timeout=110)
    watched = command(slurm, mpirun, "watch", "digits_cache")
    log = command(slurm, mpirun, "logs", "digits_cache").stdout
    assert watched.returncode == 0, watched.stdout + watched.stderr + log
    assert "75 of 75 done" in watched.stdout, log
    assert f"Job {job}: COMPLETED" in watched.stdout, log
    assert BEST in (mpirun.folder / "digits_report/report.md").read_text()
    begun = ezpyp.open(mpirun.folder / "digits_cache").status.run.started
    assert begun is not None
    assert (begun.ranks, sorted(begun.hosts), begun.job) == (2, sorted(slurm.hosts), job)
    sound = command(slurm, mpirun, "check", "digits_cache")
    assert sound.returncode == 0, sound.stdout
    again = command(slurm, mpirun, "submit", *words)
    assert "There is nothing to do: nothing was submitted." in again.stdout


CORES = """
import os
from ezpyp import Pipeline, as_json_step

pipeline = Pipeline("cache", "cores")

@as_json_step(pipeline)
def nothing():
    return None

nothing()
pipeline.execute()
print("cores", len(os.sched_getaffinity(0)), "helpers", os.environ["EZPYP_HELPERS"])
"""


@pytest.mark.parametrize("way", ["mpirun", "srun"])
def test_one_rank_a_node_has_all_its_cores(slurm: Slurm, mpirun: Launcher, way: str) -> None:
    """Launchers bind a rank to a core, if they are not told otherwise; then all helpers would share that one."""
    (mpirun.folder / "cores.py").write_text(CORES)
    job = submitted(slurm, mpirun, "cores.py", "--nodes", "2", "--launcher", way)
    state, log = slurm.ended(job), (mpirun.folder / f"cache/jobs/{job}.log").read_text()
    assert state == "COMPLETED", log
    assert f"cores {len(os.sched_getaffinity(0))} helpers auto\n" in log


@pytest.mark.parametrize("unfit", ["the other", "none"])
def test_a_launcher_that_does_not_fit_is_refused_within_seconds(
    slurm: Slurm, mpirun: Launcher, study: Path, unfit: str
) -> None:
    (other,) = {*FITTING.values()} - {FITTING[mpirun.name]}
    wrong = other if unfit == "the other" else unfit
    job = submitted(slurm, mpirun, "study.py", "--nodes", "2", "--launcher", f"srun --mpi={wrong}")
    assert slurm.ended(job, timeout=20) == "FAILED"
    log = command(slurm, mpirun, "logs", "cache").stdout
    assert f"Use: srun --mpi={FITTING[mpirun.name]}" in log
    assert not (study / "begun").exists()


def test_an_edit_between_submission_and_start_changes_nothing(slurm: Slurm, mpirun: Launcher, study: Path) -> None:
    job = submitted(slurm, mpirun, "study.py", "--", "--hold")
    (study / "study.py").write_text("raise SystemExit('edited')\n")
    (study / "factor.py").write_text("FACTOR = 0\n")
    (study / "go").touch()
    slurm.run("scontrol", "release", job, env=mpirun.environment(), cwd=study)
    assert slurm.ended(job) == "COMPLETED"
    assert "result 30\n" in (study / f"cache/jobs/{job}.log").read_text()
    assert str(study / "factor.py") in command(slurm, mpirun, "show", "cache", "--code").stdout


def test_watch_follows_a_job_from_the_queue_to_its_end(slurm: Slurm, mpirun: Launcher, study: Path) -> None:
    job = submitted(slurm, mpirun, "study.py", "--", "--hold")
    ezpyp = (str(mpirun.bin / "python"), "-c", "from ezpyp.cli.main import main; main()")
    with subprocess.Popen(
        ["timeout", "40", *ezpyp, "watch", "cache", "--every", "0.2"],
        cwd=study,
        env=environment(mpirun.environment({"PYTHONUNBUFFERED": "1"}), slurm.env),
        stdout=subprocess.PIPE,
        text=True,
    ) as watch:
        assert watch.stdout is not None
        assert watch.stdout.readline().startswith(f"Job {job}: PENDING (JobHeldUser)")
        slurm.run("scontrol", "release", job, env=mpirun.environment(), cwd=study)
        appears(study / "begun")
        (study / "go").touch()
        assert watch.stdout.read().count("1 of 1 done") == 1
    assert watch.returncode == 0


def test_with_live_it_does(slurm: Slurm, mpirun: Launcher, study: Path) -> None:
    job = submitted(slurm, mpirun, "study.py", "--live", "--", "--hold")
    (study / "factor.py").write_text("FACTOR = 2 * 10\n")
    (study / "go").touch()
    slurm.run("scontrol", "release", job, env=mpirun.environment(), cwd=study)
    assert slurm.ended(job) == "COMPLETED"
    assert "result 60\n" in (study / f"cache/jobs/{job}.log").read_text()


def test_a_folder_has_one_job_at_a_time(slurm: Slurm, mpirun: Launcher, study: Path) -> None:
    """A second is refused at submission, one that gets past that when it starts, and a cancelled one is followed."""
    first = submitted(slurm, mpirun, "study.py", "--cpus-per-task", "1")
    appears(study / "begun")
    second = command(slurm, mpirun, "submit", "study.py")
    assert second.returncode == 3
    assert f"Job {first} of this folder is RUNNING" in second.stderr
    assert "ezpyp cancel cache" in second.stderr
    third = slurm.sbatch(next(study.glob("cache/jobs/*.sbatch")), env=mpirun.environment(), cwd=study)
    assert slurm.ended(third) == "FAILED"
    assert f"job {first}" in (study / f"{third}.log").read_text()
    cancelled = command(slurm, mpirun, "cancel", "cache")
    assert cancelled.stdout == f"Job {first} was running, and is cancelled.\n"
    assert slurm.ended(first) == "CANCELLED"
    assert command(slurm, mpirun, "cancel", "cache").stdout == "No job of this folder waits or runs.\n"
    (study / "go").touch()
    fourth = submitted(slurm, mpirun, "study.py")
    assert slurm.ended(fourth) == "COMPLETED"


def test_what_slurm_refuses_is_not_submitted(slurm: Slurm, mpirun: Launcher, study: Path) -> None:
    done = command(slurm, mpirun, "submit", "study.py", "--partition", "nowhere")
    assert done.returncode == 3
    assert "Slurm would refuse the job: invalid partition specified: nowhere" in done.stderr
    assert not list(study.glob("cache/jobs/*"))


def test_a_dry_run_writes_nothing(slurm: Slurm, mpirun: Launcher, study: Path) -> None:
    before = sorted(study.iterdir())
    done = command(
        slurm, mpirun, "submit", "study.py", "--nodes", "2", "--dry-run", "--", "-q", "normal", "--comment=a b"
    )
    assert done.returncode == 0, done.stderr
    assert '#SBATCH -q normal\n#SBATCH --comment="a b"\n' in done.stdout
    assert "1 steps would run" in done.stderr
    left = [path for path in sorted(study.iterdir()) if path.name != "__pycache__"]
    assert left == before


def test_the_doctor_sees_hosts_that_do_not_share_a_folder(slurm: Slurm, mpirun: Launcher) -> None:
    """Every node has memory of its own where this machine has /dev/shm."""
    ezpyp = (str(mpirun.bin / "python"), "-c", "from ezpyp.cli.main import main; main()")
    ask = ("salloc", "--quiet", "--nodes=2", "--ntasks-per-node=1", *ezpyp, "doctor")
    good = slurm.run(*ask, ".", "-n", "2", env=mpirun.environment(), cwd=mpirun.folder)
    assert good.returncode == 0, good.stdout
    assert f"2 ranks see each other, on {', '.join(slurm.nodes)}" in good.stdout
    apart = slurm.run(*ask, "/dev/shm", "-n", "2", env=mpirun.environment(), cwd=mpirun.folder)
    assert apart.returncode == 1
    assert f"/dev/shm is not seen by {', '.join(slurm.nodes)}" in apart.stdout
    assert "Put the cache on a file system that all hosts share." in apart.stdout
    wrong = ("-n", "2", "--launcher", "srun --mpi=none")
    refused = slurm.run(*ask, ".", *wrong, env=mpirun.environment(), cwd=mpirun.folder)
    assert refused.returncode == 1
    assert f"Use: srun --mpi={FITTING[mpirun.name]}" in refused.stdout
