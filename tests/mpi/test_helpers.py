"""Helpers of ranks: as many as the node allots, on the cores that the job has, with the GPUs that were granted."""

from __future__ import annotations

import json
import os
from itertools import pairwise

import pytest

from ezpyp.system import resources
from tests.conftest import Launcher

SCRIPT = """
import json, os, time
from ezpyp import Pipeline, as_pickle_step

pipeline = Pipeline("cache", "helpers")

@as_pickle_step(pipeline, **json.loads(os.environ["ASKED"]))
def where(k):
    begun = time.monotonic()
    time.sleep(0.05)
    cores = sorted(os.sched_getaffinity(0))
    return begun, time.monotonic(), os.getpid(), cores, os.environ.get("CUDA_VISIBLE_DEVICES")

steps = where.map(range(12))
summary = pipeline.execute()
if pipeline.is_root:
    print("FOUND", json.dumps([step.result() for step in steps]))
"""


#: Has Open MPI bind each rank to a core, as it does unless it may have more ranks than cores.
BOUND = {"PRTE_MCA_rmaps_default_mapping_policy": "core"}


def found(
    launcher: Launcher, ranks: int, asked: str = "{}", **env: str
) -> list[tuple[float, float, int, list[int], str]]:
    done = launcher.run(ranks, SCRIPT, env={"ASKED": asked, **env})
    assert done.returncode == 0, done.stdout + done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("FOUND "))
    return [tuple(each) for each in json.loads(line.removeprefix("FOUND "))]


@pytest.mark.parametrize("ranks", [1, 2])
def test_auto_uses_all_cores_that_are_allotted_also_where_the_launcher_binds(mpirun: Launcher, ranks: int) -> None:
    allotted = resources.allotted_cores()
    if ranks > allotted:
        pytest.skip("a launcher that binds needs a core for each rank")
    steps = found(mpirun, ranks, EZPYP_HELPERS="auto", **BOUND)
    helpers = {pid for _, _, pid, _, _ in steps}
    assert len(helpers) == max(ranks, allotted // ranks * ranks)
    assert len({core for *_, cores, _ in steps for core in cores}) >= min(allotted, 12)


def test_without_mpi_auto_is_one_worker_a_core(python: Launcher) -> None:
    assert len({pid for _, _, pid, _, _ in found(python, 0, EZPYP_WORKERS="auto")}) == resources.allotted_cores()


def test_ranks_of_a_node_share_its_gpus_and_no_two_steps_have_one_at_once(mpirun: Launcher) -> None:
    steps = found(mpirun, 2, '{"gpus": 1}', EZPYP_HELPERS="2", CUDA_VISIBLE_DEVICES="3,5")
    assert {gpu for *_, gpu in steps} == {"3", "5"}
    for k, one in enumerate(steps):
        assert not any(one[0] < other[1] and other[0] < one[1] for other in steps[:k] if one[4] == other[4])


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core cannot tell")
def test_a_wide_step_has_its_cores_also_where_the_launcher_bound_the_rank_to_one(mpirun: Launcher) -> None:
    steps = found(mpirun, 2, '{"cpus": 2}', **BOUND)
    assert {len(cores) for *_, cores, _ in steps} == {2}
    ends = sorted((begun, ended) for begun, ended, *_ in steps)
    if resources.allotted_cores() == 2:
        assert all(before[1] <= after[0] for before, after in pairwise(ends))
