"""What goes wrong beside the steps: processes that are killed, ranks that do not come, scripts that end MPI."""

from __future__ import annotations

import time

import pytest

import ezpyp
from tests.conftest import Launcher

FAULT = """
import os, signal, time
import ezpyp.ranks.mpi
from ezpyp import Pipeline, as_pickle_step

# Not a constant that steps use: ranks would build different plans.
os.environ["THIS_RANK"] = os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK", "0"))
rank = int(os.environ["THIS_RANK"])
pipeline = Pipeline("cache", "fault")

@as_pickle_step(pipeline)
def work(k):
    time.sleep(0.02)
    {step}
    return k

work.map(range(12))
{before}
summary = pipeline.execute(raise_on_failure=False)
{after}
os.write(1, b"END %d %d\\n" % (summary.done, summary.failed))
"""


def script(*, step: str = "", before: str = "", after: str = "") -> str:
    return FAULT.format(step=step, before=before, after=after)


@pytest.mark.parametrize("rank", [0, 1])
def test_the_job_ends_when_what_forks_helpers_is_killed(mpirun: Launcher, rank: int) -> None:
    act = f"if os.environ['THIS_RANK'] == '{rank}': os.kill(os.getppid(), signal.SIGKILL); time.sleep(9)"
    began = time.monotonic()
    done = mpirun.run(2, script(step=act), timeout=30)
    assert time.monotonic() - began < 20
    assert done.returncode != 0
    assert "which forks those that run steps, is gone" in done.stderr
    assert "run again to go on" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_helper_that_is_killed_is_missed_though_its_step_left_a_child(mpirun: Launcher) -> None:
    act = "if k == 5 and os.fork() != 0: os.kill(os.getpid(), signal.SIGKILL)\n    if k == 5: time.sleep(30)"
    began = time.monotonic()
    done = mpirun.run(2, script(step=act))
    assert time.monotonic() - began < 15
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("END 11 1") == 2


def test_why_a_helper_ended_and_its_last_words_are_kept_in_the_folder(mpirun: Launcher) -> None:
    act = "if k == 5: print('farewell', flush=True); os.kill(os.getpid(), signal.SIGSEGV)"
    done = mpirun.run(2, script(step=act))
    assert done.returncode == 0, done.stderr
    run = ezpyp.open(mpirun.folder / "cache")
    kept = run.outcome("work[5]")
    assert kept is not None
    assert (kept.status, kept.cause, kept.note) == (1, "signal", "ended with signal 11 (Segmentation fault)")
    assert "farewell" in run.log("work[5]")


def test_a_helper_that_is_killed_before_it_is_wanted_costs_nothing(mpirun: Launcher) -> None:
    act = """
from ezpyp.system import offspring
pipeline.initialize_schema()
until = time.monotonic() + 10
while len(found := offspring.descendants(os.getpid())) < 2 and time.monotonic() < until:
    time.sleep(0.005)
for each in found:
    if not offspring.children(each):
        os.kill(each, signal.SIGKILL)
        os.write(1, b"KILLED\\n")
"""
    done = mpirun.run(2, script(before=act))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("KILLED") == 2
    assert done.stdout.count("END 12 0") == 2


def test_a_script_may_end_mpi_itself(mpirun: Launcher) -> None:
    done = mpirun.run(2, script(after="from mpi4py import MPI; MPI.COMM_WORLD.Barrier(); MPI.Finalize()"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("END 12 0") == 2
    done = mpirun.run(2, script(before="from mpi4py import MPI; MPI.Finalize()"))
    assert done.returncode != 0
    assert "The script ended MPI (MPI.Finalize) before execute()" in done.stderr


@pytest.mark.parametrize("late", [0, 1])
@pytest.mark.parametrize("first", ["", "from mpi4py import MPI; "])
def test_a_rank_says_that_it_waits_for_others(mpirun: Launcher, late: int, first: str) -> None:
    done = mpirun.run(2, script(before=f"{first}ezpyp.ranks.mpi.PATIENCE = 0.2; rank == {late} and time.sleep(1)"))
    assert done.returncode == 0, done.stderr
    assert f"ezpyp: rank {1 - late} (" in done.stderr
    assert "has waited 0 s for all 2 ranks to come to initialize_schema()" in done.stderr


DAEMONS = """
import subprocess, sys
from ezpyp import Pipeline, as_pickle_step
pipeline = Pipeline("cache", "daemons", capture="off")

@as_pickle_step(pipeline)
def serve(k):
    program = "import os, time; os.fork() and os._exit(0); os.setsid(); os.fork(); time.sleep(60)"
    return subprocess.run([sys.executable, "-c", program]).returncode

serve.map(range(2))
pipeline.execute()
print("END", flush=True)
"""


@pytest.mark.parametrize("ranks", [0, 2])
def test_daemons_that_steps_start_end_with_the_run(mpirun: Launcher, ranks: int) -> None:
    """They hold the job's output open, and whoever reads it would wait for them."""
    began = time.monotonic()
    done = mpirun.run(ranks, DAEMONS)
    assert time.monotonic() - began < 15
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("END") == max(1, ranks)


def test_nobody_waits_for_a_rank_that_sends_too(mpirun: Launcher) -> None:
    done = mpirun.run(
        2,
        """
from ezpyp.ranks import mpi

link = mpi.connect()
for size in (10, 10_000_000):
    link.send(bytes(size), 1 - link.rank)
for size in (10, 10_000_000):
    while (message := link.receive()) is None:
        pass
    assert message == (1 - link.rank, bytes(size))
link.meet(mpi.Mark.BARRIER, b"", lambda: "")
""",
        timeout=20,
    )
    assert done.returncode == 0, done.stderr
