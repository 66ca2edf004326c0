"""GPU steps on a real Slurm, whose GPUs are declared and not there."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import ezpyp
from tests.conftest import CHECKOUT
from tests.lab.test_lab import FITTING

if TYPE_CHECKING:
    from tests.conftest import Launcher
    from tests.lab.conftest import Slurm

CRASH = """
import ctypes, os, time
from ezpyp import Pipeline, as_json_step
pipeline = Pipeline("cache", "crash")

@as_json_step(pipeline, gpus=1)
def work(k):
    if k == 3:
        ctypes.string_at(0)
    begun = time.time()
    time.sleep(0.2)
    gpu = {"host": os.environ["SLURMD_NODENAME"], "gpu": os.environ["CUDA_VISIBLE_DEVICES"]}
    return {"begun": begun, "ended": time.time(), **gpu}

work.map(range(10))
pipeline.execute()
"""


def test_an_illegal_access_fails_one_of_ten_and_no_two_have_the_same_gpu(slurm: Slurm, mpirun: Launcher) -> None:
    (mpirun.folder / "crash.py").write_text(CRASH)
    command = ("srun", f"--mpi={FITTING[mpirun.name]}", "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=2")
    environ = mpirun.environment({"EZPYP_HELPERS": "3"})
    done = slurm.run(*command, "--cpus-per-task=3", "python", "crash.py", env=environ, cwd=mpirun.folder)
    assert done.returncode == 1, done.stdout + done.stderr
    run = ezpyp.open(mpirun.folder / "cache")
    assert list(run.summary().failures) == ["work[3]"]
    steps = list(run.select("work").values())
    assert len(steps) == 9
    assert {(step["host"], step["gpu"]) for step in steps} == {(host, gpu) for host in slurm.nodes for gpu in "01"}
    for k, one in enumerate(steps):
        same = [other for other in steps[:k] if (other["host"], other["gpu"]) == (one["host"], one["gpu"])]
        assert not any(one["begun"] < other["ended"] and other["begun"] < one["ended"] for other in same)
    assert {(row.gpus, row.attempts) for row in run.summary().rows} == {(("0",), 1), (("1",), 1)}


def test_the_example_as_a_batch_job(slurm: Slurm, mpirun: Launcher) -> None:
    for name in ("sweep.py", "sweep.sbatch"):
        shutil.copy(CHECKOUT / "examples" / "gpu" / name, mpirun.folder)
    environ = mpirun.environment({"STUDY_ENV": str(mpirun.bin.parent), "EPOCHS": "2"})
    flags = ("--time=20", "--gpus-per-node=2", "--cpus-per-task=4")
    job = slurm.sbatch(mpirun.folder / "sweep.sbatch", *flags, env=environ, cwd=mpirun.folder)
    state, log = slurm.ended(job), (mpirun.folder / f"{job}.log").read_text()
    assert state == "COMPLETED", log
    assert "4 slots on 1 node" in log
    assert "Best of 24 by" in log


FRESH = """
import os
mask = os.environ["CUDA_VISIBLE_DEVICES"]
from mpi4py import MPI
size = MPI.COMM_WORLD.Get_size()
from ezpyp import Pipeline, as_json_step
pipeline = Pipeline("cache", "fresh")

@as_json_step(pipeline, gpus=1)
def work(k):
    return [size, mask, os.environ["CUDA_VISIBLE_DEVICES"], os.environ["SLURMD_NODENAME"]]

work.map(range(8))
pipeline.execute()
if pipeline.is_root:
    print("RANKS", size)
"""


def test_new_interpreters_under_srun_are_no_ranks_and_have_the_gpu_of_their_step(
    slurm: Slurm, mpirun: Launcher
) -> None:
    (mpirun.folder / "fresh.py").write_text(FRESH)
    command = ("srun", f"--mpi={FITTING[mpirun.name]}", "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=2")
    environ = mpirun.environment({"EZPYP_HELPERS": "2", "EZPYP_START": "fresh"})
    done = slurm.run(*command, "--cpus-per-task=3", "python", "fresh.py", env=environ, cwd=mpirun.folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "RANKS 2" in done.stdout
    steps = list(ezpyp.open(mpirun.folder / "cache").select("work").values())
    assert len(steps) == 8
    assert all(size == 1 and early == mask in "01" for size, early, mask, _ in steps)
    assert {(host, mask) for _, _, mask, host in steps} == {(host, gpu) for host in slurm.nodes for gpu in "01"}
