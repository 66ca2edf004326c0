"""Programs that are MPI programs, started by steps of a run that is one too."""

from __future__ import annotations

import os

import pytest

from tests.conftest import OPEN_MPI, Launcher

#: Without what makes Open MPI bear more ranks than slots: a step has to do that by itself.
PLAIN = {"PRTE_MCA_rmaps_default_mapping_policy": ""}

SCRIPT = """
import os, sys
from ezpyp import Pipeline

pipeline = Pipeline("cache", "ranks")
size = "from mpi4py import MPI; import os; w = MPI.COMM_WORLD; print(w.rank, w.size, sorted(os.sched_getaffinity(0)))"
alone = [pipeline.command("alone", [sys.executable, "-c", f"{size} # {k}"], stdout="out") for k in range(2)]
two = pipeline.command("two", [sys.executable, "-c", size], stdout="out", mpi=2)
pipeline.execute()
if pipeline.is_root:
    for step in (*alone, two):
        print("RANKS", sorted(line.split(" ", 2)[:2] for line in open(step.result()).read().splitlines()))
"""


@pytest.mark.parametrize("ranks", [0, 2])
def test_a_program_is_alone_or_has_the_ranks_that_were_asked(mpirun: Launcher, ranks: int) -> None:
    env = {name: value for name, value in OPEN_MPI.items() if name not in PLAIN}
    done = mpirun.run(ranks, SCRIPT, env={**env, **(PLAIN if not ranks else {})}, timeout=100)
    found = [line.removeprefix("RANKS ") for line in done.stdout.splitlines() if line.startswith("RANKS")]
    assert found == ["[['0', '1']]", "[['0', '1']]", "[['0', '2'], ['1', '2']]"], done.stdout + done.stderr


TOGETHER = """
import os, sys
from ezpyp import Pipeline, as_command_step

pipeline = Pipeline("cache", "together", workers=2)
clock = "import time; began = time.time(); time.sleep(0.3); print(began, time.time(), flush=True) # "

@as_command_step(pipeline, mpi=2, stdout="out")
def two(k):
    return [sys.executable, "-S", "-c", clock + str(k)]

@as_command_step(pipeline, stdout="out")
def one(k):
    return [sys.executable, "-S", "-c", clock + str(k)]

steps = [step(k) for k in range(3) for step in (one, two)]
pipeline.execute()
if pipeline.is_root:
    spans = [tuple(map(float, line.split())) for step in steps for line in open(step.result()).read().splitlines()]
    print("RAN", len(spans), "AT ONCE", max(sum(b <= now < e for b, e in spans) for now, _ in spans))
"""


@pytest.mark.skipif(len(os.sched_getaffinity(0)) != 2, reason="as many cores as ranks are needed")
@pytest.mark.parametrize("ranks", [0, 2])
def test_programs_on_several_cores_share_them_with_nobody(mpirun: Launcher, ranks: int) -> None:
    done = mpirun.run(ranks, TOGETHER, timeout=100)
    assert "RAN 9 AT ONCE 2" in done.stdout, done.stdout + done.stderr


PINNED = """
import os, subprocess, sys
from ezpyp.system import launch, resources

os.sched_setaffinity(0, {{{core}}})  # as a grant does it
environ = resources.scrubbed(os.environ)
program = "from mpi4py import MPI; import os; w = MPI.COMM_WORLD; print(w.size, *os.sched_getaffinity(0))"
command = launch.ranks_of([sys.executable, "-c", program], ranks=2, environ=environ)
subprocess.run(command, env=environ, check=True)
"""


@pytest.mark.parametrize("core", sorted(os.sched_getaffinity(0))[:2])
def test_ranks_stay_on_the_cores_of_their_step(mpirun: Launcher, core: int) -> None:
    """Two programs at once own different cores: the launcher must not bind both to the first ones."""
    done = mpirun.run(0, PINNED.format(core=core), env={"PRTE_MCA_rmaps_default_mapping_policy": ""})
    assert done.stdout.splitlines() == [f"2 {core}"] * 2, done.stderr


TOO_MANY = """
from ezpyp import Pipeline

pipeline = Pipeline("cache", "many")
pipeline.command("sim", ["true"], mpi=1000)
pipeline.execute()
"""


def test_more_ranks_than_any_node_has_cores_are_refused_before_the_run(mpirun: Launcher) -> None:
    done = mpirun.run(0, TOO_MANY)
    assert done.returncode == 3
    assert "Step 'sim' asks for 1000 cores, and no node has that" in done.stderr


NODES = """
from ezpyp import Pipeline

pipeline = Pipeline("cache", "nodes")
pipeline.command("sim", ["true"], mpi=4, nodes=2, scratch="scratch")
pipeline.execute()
"""


def test_nodes_without_slurm_are_refused_before_the_run(python: Launcher) -> None:
    done = python.run(0, NODES, env={"PATH": f"{python.bin}:/bin"})
    assert done.returncode == 3
    assert "mpi=4, nodes=2 needs srun and a Slurm job of 2 nodes or more; this is no Slurm job" in done.stderr
    assert "On one node it could run: take nodes= away." in done.stderr


def test_ranks_without_a_launcher_are_refused_before_the_run(python: Launcher) -> None:
    script = "import sys; sys.executable = '/nowhere/python'\n" + NODES.replace(
        ", nodes=2", ", env={'PATH': '/nowhere'}"
    )
    done = python.run(0, script.replace('"true"', '"/bin/true"'))
    assert done.returncode == 3
    assert "mpi= needs an mpirun, and there is none on the PATH of the step" in done.stderr
