"""GPUs of the ranks of a node, by real launchers and an NVML of our own: every row of the policy."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from tests import nvml
from tests.conftest import Launcher

SCRIPT = f"""
import json, os, time
local = int(os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK") or os.environ.get("MPI_LOCALRANKID") or 0)
for name, each in json.loads(os.environ["EACH"]).items():
    os.environ[name] = each[local]
{nvml.DRIVER}
from ezpyp import Pipeline, as_pickle_step

pipeline = Pipeline("cache", "gpus")

def where(k):
    begun = time.monotonic()
    time.sleep(0.04)
    return begun, time.monotonic(), os.environ.get("CUDA_VISIBLE_DEVICES"), os.getpid()

asked = json.loads(os.environ["ASKED"])
steps = as_pickle_step(pipeline, name="plain")(where).map(range(8))
if asked:
    steps = [*steps, *as_pickle_step(pipeline, **asked)(where).map(range(int(os.environ["STEPS"])))]
pipeline.execute()
if pipeline.is_root:
    print("FOUND", json.dumps([step.result() for step in steps]))
"""


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nvml.build(tmp_path_factory.mktemp("nvml"))


class Node:
    """A node of made-up GPUs."""

    def __init__(self, launcher: Launcher, library: Path) -> None:
        self.launcher, self.library, self.said = launcher, library, ""

    def run(
        self,
        ranks: int,
        *,
        each: dict[str, list[str]] | None = None,
        asked: dict[str, float] | None = None,
        steps: int = 8,
        code: int = 0,
        **env: str,
    ) -> list[tuple[float, float, str | None, int]]:
        """What steps saw: eight that ask for nothing, then those that ask. `each` has variables for each rank."""
        shutil.rmtree(self.launcher.folder / "cache", ignore_errors=True)
        told = {"EACH": json.dumps(each or {}), "ASKED": json.dumps(asked or {}), "STEPS": str(steps)}
        environ = {"LD_LIBRARY_PATH": str(self.library.parent), **told, **env}
        done = self.launcher.run(ranks, SCRIPT, env=environ)
        assert done.returncode == code, done.stdout + done.stderr
        self.said = done.stdout + done.stderr
        lines = [line for line in done.stdout.splitlines() if line.startswith("FOUND ")]
        return [tuple(found) for found in json.loads(lines[0].removeprefix("FOUND "))] if lines else []

    def seen(self, ranks: int, each: dict[str, list[str]] | None = None, **env: str) -> set[str | None]:
        """What steps see that ask for nothing."""
        return {found[2] for found in self.run(ranks, each=each, asked=None, steps=8, code=0, **env)}


@pytest.fixture
def node(mpirun: Launcher, library: Path) -> Node:
    return Node(mpirun, library)


def test_one_each(node: Node) -> None:
    assert node.seen(2, FAKE_NVML="GPU-a GPU-b") == {"GPU-a", "GPU-b"}
    assert "share" not in node.said


def test_blocks(node: Node) -> None:
    assert node.seen(2, FAKE_NVML="GPU-a GPU-b GPU-c") == {"GPU-a,GPU-b", "GPU-c"}


def test_shared_with_one_warning(node: Node) -> None:
    assert node.seen(3, FAKE_NVML="GPU-a GPU-b GPU-c", CUDA_VISIBLE_DEVICES="0,2") == {"GPU-a", "GPU-c"}
    assert node.said.count("3 processes share 2 GPUs. Say gpus=1") == 1


def test_a_mask_is_never_widened_and_numbers_become_uuids(node: Node) -> None:
    assert node.seen(2, FAKE_NVML="GPU-a GPU-b GPU-c", CUDA_VISIBLE_DEVICES="0,2") == {"GPU-a", "GPU-c"}


def test_each_sees_its_own_gpu_as_number_0(node: Node) -> None:
    """Under control groups NVML lists what the task may use."""
    each = {"FAKE_NVML": ["GPU-a", "GPU-b"], "CUDA_VISIBLE_DEVICES": ["0", "0"]}
    assert node.seen(2, each) == {"0"}
    assert "share" not in node.said
    found = node.run(2, each=each, asked={"gpus": 1})[8:]
    assert {gpu for *_, gpu, _ in found} == {"GPU-a", "GPU-b"}


def test_disjoint_masks_are_kept(node: Node) -> None:
    each = {"CUDA_VISIBLE_DEVICES": ["1", "0,2"]}
    assert node.seen(2, each, FAKE_NVML="GPU-a GPU-b GPU-c") == {"1", "0,2"}


def test_masks_that_overlap_in_part_are_kept_with_a_warning(node: Node) -> None:
    each = {"CUDA_VISIBLE_DEVICES": ["0,1", "1"]}
    assert node.seen(2, each, FAKE_NVML="GPU-a GPU-b") == {"0,1", "1"}
    assert node.said.count("ranks see some GPUs in common and others not. Left as it is.") == 1


def test_exactly_one_instance_of_a_divided_gpu(node: Node) -> None:
    assert node.seen(2, FAKE_NVML="GPU-a:MIG-1:MIG-2:MIG-3:MIG-4") == {"MIG-1", "MIG-3"}


def test_instances_of_a_divided_gpu_are_granted_one_by_one(node: Node) -> None:
    divided = "GPU-a:MIG-1:MIG-2"
    found = node.run(2, asked={"gpus": 1}, FAKE_NVML=divided)[8:]
    assert {gpu for *_, gpu, _ in found} == {"MIG-1", "MIG-2"}
    assert node.run(2, asked={"gpus": 2}, code=3, FAKE_NVML=divided) == []
    assert "Step 'where[0]' asks for 2 GPUs, and no node has that" in node.said


def test_disjoint_masks_are_what_is_granted_from(node: Node) -> None:
    """A rank's steps get no GPU that the scheduler gave another rank."""
    each = {"CUDA_VISIBLE_DEVICES": ["GPU-b", "GPU-a,GPU-c"]}
    found = node.run(2, each=each, asked={"gpus": 2}, steps=4, FAKE_NVML="GPU-a GPU-b GPU-c")[8:]
    assert {gpu for *_, gpu, _ in found} == {"GPU-a,GPU-c"}


def test_a_node_without_gpus_is_not_touched_and_a_step_that_wants_one_is_refused(node: Node) -> None:
    assert node.seen(2, FAKE_NVML="") == {None}
    assert node.run(2, asked={"gpus": 1}, code=3, FAKE_NVML="") == []
    assert "Step 'where[0]' asks for a GPU, and no node has that" in node.said
    assert "no GPU that this job may use. Ask the scheduler for more, or ask for less. Nothing was run." in node.said


def test_the_user_binds(node: Node) -> None:
    assert node.seen(2, EZPYP_GPU_BIND="none", FAKE_NVML="GPU-a GPU-b", CUDA_VISIBLE_DEVICES="0,1") == {"0,1"}
    assert node.seen(2, EZPYP_GPU_BIND="none", FAKE_NVML="GPU-a GPU-b") == {None}


def test_steps_that_ask_never_overlap_on_a_gpu_and_the_others_see_none(node: Node) -> None:
    found = node.run(2, asked={"gpus": 1}, steps=20, FAKE_NVML="GPU-a GPU-b", EZPYP_HELPERS="2")
    assert {gpu for *_, gpu, _ in found[:8]} == {""}
    steps = found[8:]
    assert len(steps) == 20
    assert {gpu for *_, gpu, _ in steps} == {"GPU-a", "GPU-b"}
    for k, one in enumerate(steps):
        assert not any(one[0] < other[1] and other[0] < one[1] for other in steps[:k] if one[2] == other[2])
    assert "share" not in node.said


def test_one_is_told_of_gpus_that_too_few_helpers_leave_idle(node: Node) -> None:
    four = "GPU-a GPU-b GPU-c GPU-d"
    node.run(2, asked={"gpus": 1}, FAKE_NVML=four)
    assert node.said.count("4 GPUs, at most 2 used, because 2 steps run at a time there. Set EZPYP_HELPERS=2.") == 1
    found = node.run(2, asked={"gpus": 1}, EZPYP_HELPERS="2", FAKE_NVML=four)
    assert "at most" not in node.said
    assert {gpu for *_, gpu, _ in found[8:]} == set(four.split())


@pytest.mark.parametrize(
    ("variable", "given", "nothing"),
    [("ROCR_VISIBLE_DEVICES", "2,3", "-1"), ("HIP_VISIBLE_DEVICES", "2,3", "-1"), ("ZE_AFFINITY_MASK", "2,3", "2,3")],
)
def test_gpus_of_other_vendors(mpirun: Launcher, variable: str, given: str, nothing: str) -> None:
    """Of Intel's it is not known how to hide them."""
    script = VENDORS.replace("VARIABLE", variable)
    done = mpirun.run(2, script, env={variable: given, "EZPYP_HELPERS": "2"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"SEEN ['2', '3'] ['{nothing}']" in done.stdout


VENDORS = """
import os, time
from ezpyp import Pipeline, as_pickle_step
pipeline = Pipeline("cache", "vendors")
def work(k):
    time.sleep(0.02)
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    return os.environ["VARIABLE"]
asked = as_pickle_step(pipeline, gpus=1, name="asked")(work).map(range(8))
plain = as_pickle_step(pipeline, name="plain")(work).map(range(8))
pipeline.execute()
if pipeline.is_root:
    print("SEEN", *(sorted({step.result() for step in steps}) for steps in (asked, plain)))
"""


def test_halves_share(node: Node) -> None:
    steps = node.run(2, asked={"gpus": 0.5}, steps=8, FAKE_NVML="GPU-a", EZPYP_HELPERS="2")[8:]
    assert {gpu for *_, gpu, _ in steps} == {"GPU-a"}
    ends = sorted((each[0], each[1]) for each in steps)
    assert any(after[0] < before[1] for before, after in pairwise(ends))


CUDA = """
import sys, types
torch = sys.modules["torch"] = types.ModuleType("torch")
torch.cuda = types.SimpleNamespace(is_initialized=lambda: True)
class Net:
    def cuda(self): pass
Net().cuda()
from ezpyp import Pipeline, as_pickle_step
pipeline = Pipeline("cache", "early")
@as_pickle_step(pipeline, gpus=GPUS)
def work(k):
    return k
work.map(range(3))
pipeline.execute()
"""


def test_a_script_that_started_cuda_is_refused_where_steps_ask_for_gpus(mpirun: Launcher) -> None:
    done = mpirun.run(2, CUDA.replace("GPUS", "1"), env={"CUDA_VISIBLE_DEVICES": "0"})
    assert done.returncode == 3
    assert (
        "CUDA was started before execute() (torch, script.py:7), and forked helpers cannot use it. "
        "Move that line into the step." in done.stderr
    )
    assert mpirun.run(2, CUDA.replace("GPUS", "0"), env={"CUDA_VISIBLE_DEVICES": "0"}).returncode == 0


USES = f"""
import os, time
{nvml.DRIVER}
from ezpyp import Pipeline, as_pickle_step
pipeline = Pipeline("cache", "uses")
@as_pickle_step(pipeline, gpus=1)
def work(gigabytes, percent):
    with open(os.environ["FAKE_NVML_USE"] + f"/{{os.getpid()}}", "w") as file:
        file.write(f"{{os.environ['CUDA_VISIBLE_DEVICES']}} {{gigabytes << 30}} 0 {{percent}}")
    time.sleep(0.5)
    return os.environ["CUDA_VISIBLE_DEVICES"]
steps = [work(3, 50), work(5, 80)]
summary = pipeline.execute()
if pipeline.is_root:
    for row, step in zip(summary.rows, steps):
        assert row.gpus == (step.result(),)
        print("USED", row.gpu_memory >> 30, row.gpu_mean, row.gpu_peak)
"""


def test_the_summary_tells_what_steps_of_all_ranks_used(mpirun: Launcher, library: Path, tmp_path: Path) -> None:
    environ = {"LD_LIBRARY_PATH": str(library.parent), "FAKE_NVML": "GPU-a GPU-b", "FAKE_NVML_USE": str(tmp_path)}
    done = mpirun.run(2, USES, env=environ)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith("USED")] == [
        "USED 3 50.0 50.0",
        "USED 5 80.0 80.0",
    ]


CRASH = """
import ctypes, os, time
from ezpyp import Pipeline, as_pickle_step
pipeline = Pipeline("cache", "crash")
@as_pickle_step(pipeline, gpus=1)
def work(k):
    if k == 3:
        ctypes.string_at(0)
    return os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"]
steps = work.map(range(10))
summary = pipeline.execute()
if pipeline.is_root:
    good = [step.result() for k, step in enumerate(steps) if k != 3]
    print("ENDED", summary.done, list(summary.failures), len({pid for pid, _ in good}), {gpu for _, gpu in good})
"""


def test_an_illegal_access_in_a_gpu_step_fails_that_step(mpirun: Launcher) -> None:
    done = mpirun.run(2, CRASH, env={"CUDA_VISIBLE_DEVICES": "0,1"})
    assert done.returncode == 1, done.stdout + done.stderr
    assert "ENDED 9 ['work[3]'] 9 " in done.stdout
    assert "ended with signal 11 (Segmentation fault)" in done.stdout
