"""Pipelines on a real Slurm with two nodes, by every way to start them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import ezpyp

if TYPE_CHECKING:
    from tests.conftest import Launcher
    from tests.lab.conftest import Slurm

#: As many steps as ranks that wait for each other, so that each rank has one; the last has results of all hosts.
STUDY = """
import os, pathlib, sys, time
from ezpyp import Pipeline, as_json_step

count = int(sys.argv[1])
pipeline = Pipeline("cache", "study")

@as_json_step(pipeline)
def meet(k):
    pathlib.Path(f"here{k}").touch()
    until = time.monotonic() + 30
    while not all(os.path.exists(f"here{other}") for other in range(count)):
        if time.monotonic() > until:
            raise TimeoutError("the others did not come")
        time.sleep(0.01)
    return os.uname().nodename

@as_json_step(pipeline)
def met(hosts):
    return sorted(set(hosts))

hosts = met(meet.map(range(count)))
pipeline.execute()
if pipeline.is_root:
    print("met on", *hosts.result())
"""

#: What `srun --mpi` has to be for the library.
FITTING = {"mpich": "pmi2", "openmpi": "pmix"}


@pytest.mark.parametrize("way", ["mpirun", "srun"])
def test_two_nodes_by_every_way_that_fits(slurm: Slurm, mpirun: Launcher, way: str) -> None:
    script = mpirun.folder / "study.py"
    script.write_text(STUDY)
    launch = "mpirun -n 4" if way == "mpirun" else f"srun --mpi={FITTING[mpirun.name]}"
    batch = mpirun.folder / "study.sh"
    batch.write_text(f"#!/bin/sh\nexec {launch} python study.py 4\n")
    flags = ("--nodes=2", "--ntasks=4", "--ntasks-per-node=2")
    job = slurm.sbatch(batch, *flags, env=mpirun.environment(), cwd=mpirun.folder)
    state = slurm.ended(job)
    log = (mpirun.folder / f"{job}.log").read_text()
    assert state == "COMPLETED", log
    assert log.count(f"met on {' '.join(sorted(slurm.hosts))}\n") == 1
    begun = ezpyp.open(mpirun.folder / "cache").status.run.started
    assert begun is not None
    assert (begun.ranks, sorted(begun.hosts)) == (4, sorted(slurm.hosts))


#: Memory that was used and freed is not zero: what a library sends unfinished is then seen.
USED_MEMORY = """
import ctypes

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
blocks = [(libc.malloc(size), size) for size in range(16, 9000, 8) for _ in range(3)]
for block, size in blocks:
    ctypes.memset(block, 0x41, size)
for block, _ in blocks[::2]:
    libc.free(block)
"""


def test_a_script_that_imported_much_starts_by_srun_too(slurm: Slurm, mpirun: Launcher) -> None:
    script = mpirun.folder / "study.py"
    script.write_text(USED_MEMORY + STUDY)
    done = slurm.run(
        *("srun", "--nodes=2", "--ntasks=2", f"--mpi={FITTING[mpirun.name]}", "python", str(script), "2"),
        env=mpirun.environment(),
        cwd=mpirun.folder,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert ezpyp.open(mpirun.folder / "cache")["met"] == sorted(slurm.hosts)


@pytest.mark.parametrize("unfit", ["the other", "none"])
def test_the_wrong_process_manager_is_refused_with_the_right_flag(slurm: Slurm, mpirun: Launcher, unfit: str) -> None:
    """Four copies of rank 0 and exit code 0, or an abort without a remedy, is what one gets without a look first."""
    (other,) = {*FITTING.values()} - {FITTING[mpirun.name]}
    wrong = other if unfit == "the other" else unfit
    script = mpirun.folder / "study.py"
    script.write_text(STUDY)
    done = slurm.run(
        *("srun", "--nodes=2", "--ntasks=4", f"--mpi={wrong}", "python", str(script), "4"),
        env=mpirun.environment(),
        cwd=mpirun.folder,
        timeout=30,
    )
    assert done.returncode == 3, done.stderr
    assert f"srun --mpi={FITTING[mpirun.name]}" in done.stderr
    assert not (mpirun.folder / "cache/pipeline.schema").exists()
