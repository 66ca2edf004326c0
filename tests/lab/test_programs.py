"""Programs of several nodes, started by steps of a run on a real Slurm."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.conftest import Launcher
    from tests.lab.conftest import Slurm

SCRIPT = """
import sys
from ezpyp import Pipeline

pipeline = Pipeline("cache", "nodes")
size = "from mpi4py import MPI; import os; w = MPI.COMM_WORLD; print(w.rank, w.size, os.environ['SLURMD_NODENAME'])"
wide = pipeline.command("wide", [sys.executable, "-c", size], mpi=2, nodes=2, scratch="scratch", stdout="out")
narrow = pipeline.command("narrow", [sys.executable, "-c", size], mpi=2, env={"SLURMD_NODENAME": "one"}, stdout="out")
pipeline.execute()
if pipeline.is_root:
    for step in (wide, narrow):
        print(step.name, *sorted(open(step.result()).read().splitlines()), sep="; ")
"""


def test_ranks_of_a_program_on_two_nodes(slurm: Slurm, mpirun: Launcher) -> None:
    (mpirun.folder / "study.py").write_text(SCRIPT)
    batch = mpirun.folder / "study.sh"
    batch.write_text("#!/bin/sh\nexec python study.py\n")
    flags = ("--nodes=2", "--ntasks=4", "--ntasks-per-node=2")
    job = slurm.sbatch(batch, *flags, env=mpirun.environment(), cwd=mpirun.folder)
    state = slurm.ended(job)
    log = (mpirun.folder / f"{job}.log").read_text()
    assert state == "COMPLETED", log
    one, two = sorted(slurm.nodes)
    assert {f"wide; 0 2 {one}; 1 2 {two}", "narrow; 0 2 one; 1 2 one"} <= {*log.splitlines()}, log
