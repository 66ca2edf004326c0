"""The batch scripts of slurm/, submitted as they are but for their size."""

from __future__ import annotations

import os
import time
from datetime import datetime
from typing import TYPE_CHECKING

import pytest

import ezpyp
from tests.conftest import CHECKOUT
from tests.lab.test_lab import FITTING
from tests.test_launch import program

if TYPE_CHECKING:
    from tests.conftest import Launcher
    from tests.lab.conftest import Slurm

STUDY = """
import os
from ezpyp import Pipeline, as_json_step

pipeline = Pipeline("cache", "study")

@as_json_step(pipeline)
def f(k):
    return k

f.map(range(4))
pipeline.execute()
print("gpu", os.environ.get("CUDA_VISIBLE_DEVICES"), "helpers", os.environ.get("EZPYP_HELPERS"))
if pipeline.is_root:
    print("requeue", os.environ.get("EZPYP_REQUEUE"), "end", os.environ["EZPYP_TIME_LIMIT"])
"""

#: Each script with the flags that make it small, the ranks it then has, and what every rank prints.
SCRIPTS = {
    "one_node": (("--ntasks=2",), 2, "helpers None"),
    "many_nodes": (("--nodes=2", "--ntasks=4", "--ntasks-per-node=2"), 4, "helpers None"),
    "rank_per_node": (("--nodes=2",), 2, "helpers auto"),
    "gpu_per_rank": (("--nodes=2", "--ntasks-per-node=2", "--cpus-per-task=2"), 4, "helpers 2"),
    "site_mpi": (("--nodes=2",), 2, "helpers auto"),
    "apptainer": (("--nodes=2",), 2, "helpers auto"),
}


def test_every_script_is_here() -> None:
    of_arrays = {"array"}  # tests/lab/test_array.py
    assert {path.stem for path in (CHECKOUT / "slurm").glob("*.sbatch")} == SCRIPTS.keys() | of_arrays


@pytest.mark.parametrize("name", SCRIPTS)
def test_script(slurm: Slurm, mpirun: Launcher, name: str) -> None:
    flags, ranks, says = SCRIPTS[name]
    (mpirun.folder / "study.py").write_text(STUDY)
    tools = mpirun.folder / "tools"
    program(tools, "module", f'echo "$@" > {mpirun.folder}/loaded')
    program(tools, "apptainer", f'echo "$1 $2 $4" > {mpirun.folder}/contained; shift 4; exec "$@"')
    env = mpirun.environment({"STUDY_ENV": str(mpirun.bin.parent), "STUDY_PMI": FITTING[mpirun.name]})
    env["PATH"] = f"{tools}{os.pathsep}{env['PATH']}"
    script = CHECKOUT / "slurm" / f"{name}.sbatch"
    job = slurm.sbatch(script, "--time=20", *flags, args=("study.py",), env=env, cwd=mpirun.folder)
    state, log = slurm.ended(job), (mpirun.folder / f"{job}.log").read_text()
    assert state == "COMPLETED", log
    assert log.count(says) == ranks, log
    told = log.partition("requeue ")[2].split()
    assert told[0] == ("1" if name != "apptainer" else "None")
    assert 1100 < datetime.fromisoformat(told[2].removeprefix("@")).timestamp() - time.time() < 1200, log
    begun = ezpyp.open(mpirun.folder / "cache").status.run.started
    assert begun is not None
    assert begun.ranks == ranks
    if name == "gpu_per_rank":
        # Two ranks on a node have different GPUs, and each has one.
        assert (log.count("gpu 0 "), log.count("gpu 1 ")) == (2, 2)
    if name == "site_mpi":
        assert (mpirun.folder / "loaded").read_text() == "load python openmpi\n"
    if name == "apptainer":
        assert (mpirun.folder / "contained").read_text() == "exec --bind study.sif\n"
