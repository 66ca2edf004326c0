"""Cores, memory, GPUs and threads, with made-up control groups and a made-up NVML."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ezpyp.system import resources
from ezpyp.system.resources import Grant, bind, cores_each, devices, environments, scrubbed, share_of

FOUR = ("GPU-a", "GPU-b", "GPU-c", "GPU-d")


def tree(root: Path, files: dict[str, str]) -> Path:
    """Files under a root, as /proc and /sys have them."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


# ----- cores


def test_without_limits_the_cores_are_those_of_this_process(tmp_path: Path) -> None:
    assert resources.allotted_cores({}, tmp_path) == len(os.sched_getaffinity(0)) == resources.bound_cores()


@pytest.fixture
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node of 128 cores whose launcher bound this process to two of them."""
    sets = {0: {0, 1}, os.getppid(): set(range(128))}
    monkeypatch.setattr(os, "sched_getaffinity", sets.__getitem__)


@pytest.mark.usefixtures("many_cores")
def test_under_a_launcher_the_cores_are_those_of_the_job(tmp_path: Path) -> None:
    assert resources.allotted_cores({"OMPI_COMM_WORLD_RANK": "0"}, tmp_path) == 128
    assert resources.allotted_cores({}, tmp_path) == 2
    assert resources.bound_cores() == 2


def test_a_launcher_with_fewer_cores_than_its_ranks_takes_none_away(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", {0: {0, 1, 2}, os.getppid(): {7}}.__getitem__)
    assert resources.allotted_cores({"PMI_RANK": "0"}, tmp_path) == 4


def test_a_parent_that_cannot_be_asked_says_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def of(pid: int) -> set[int]:
        if pid:
            raise ProcessLookupError
        return {0, 1}

    monkeypatch.setattr(os, "sched_getaffinity", of)
    assert resources.allotted_cores({"PMI_RANK": "0"}, tmp_path) == 2


@pytest.mark.usefixtures("many_cores")
def test_what_slurm_says_limits_the_cores(tmp_path: Path) -> None:
    environ = {"SLURM_STEP_ID": "0", "SLURM_CPUS_ON_NODE": "16"}
    assert resources.allotted_cores(environ, tmp_path) == 16
    assert resources.allotted_cores({**environ, "SLURM_CPUS_ON_NODE": "16(x2)"}, tmp_path) == 128


@pytest.mark.usefixtures("many_cores")
@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "max 100000"}, 128),
        ({"cpu.max": "450000 100000"}, 4),
        ({"cpu.max": "50000 100000"}, 1),
        ({"job/cpu.max": "800000 100000"}, 8),
        ({"job/task/cpu.max": "max 100000", "job/cpu.max": "800000 100000", "cpu.max": "1600000 100000"}, 8),
        ({"other/cpu.max": "100000 100000"}, 128),
    ],
)
def test_the_quota_of_a_control_group_or_one_above_it_limits_the_cores(
    tmp_path: Path, files: dict[str, str], cores: int
) -> None:
    tree(tmp_path, {"proc/self/cgroup": "0::/job/task\n"})
    tree(tmp_path / "sys/fs/cgroup", files)
    assert resources.allotted_cores({"PMI_RANK": "1"}, tmp_path) == cores


@pytest.mark.usefixtures("many_cores")
def test_the_first_version_of_control_groups(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/cpu,cpuacct/slurm/job_7"
    tree(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/x\n3:cpu,cpuacct:/slurm/job_7\n1:name=systemd:/a:b\n",
            f"{group}/cpu.cfs_quota_us": "300000\n",
            f"{group}/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
        },
    )
    assert resources.allotted_cores({"PMI_RANK": "1"}, tmp_path) == 3


def test_helpers_reach_the_cores_of_the_job_where_the_system_lets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    sets = {0: {1}, os.getppid(): {0, 1, 2, 3}}
    allowed = {0, 1, 2}

    def pin(pid: int, cores: set[int]) -> None:
        if not cores & allowed:
            raise OSError
        sets[pid] = cores & allowed

    monkeypatch.setattr(os, "sched_getaffinity", sets.__getitem__)
    monkeypatch.setattr(os, "sched_setaffinity", pin)
    assert resources.reachable_cores({"PMI_RANK": "0"}) == (0, 1, 2)
    assert sets[0] == {1}, "the agent stays where the launcher bound it"
    assert resources.reachable_cores({}) == (1,)
    allowed.clear()
    assert resources.reachable_cores({"PMI_RANK": "0"}) == (1,)


def test_what_this_node_has() -> None:
    stock = resources.stock()
    assert stock.reach == stock.cores == len(stock.numbers) >= 1
    assert stock.memory >= 2**20


@pytest.mark.parametrize(
    ("allotted", "bound", "local_size", "helpers", "each"),
    [
        (128, 128, 1, 1, 128),
        (128, 128, 4, 1, 32),
        (128, 128, 1, 128, 1),
        (128, 1, 2, 1, 1),  # bound to a core
        (32, 8, 4, 2, 4),  # bound to the rank's own eight
        (128, 64, 4, 1, 32),  # two ranks bound to the same socket
        (2, 2, 4, 1, 1),  # more ranks than cores
    ],
)
def test_the_cores_of_a_helper(allotted: int, bound: int, local_size: int, helpers: int, each: int) -> None:
    assert cores_each(allotted=allotted, bound=bound, local_size=local_size, helpers=helpers) == each


# ----- memory


@pytest.mark.parametrize(
    ("written", "amount"),
    [
        (0, 0),
        (123, 123),
        ("123", 123),
        ("4GB", 4 * 10**9),
        ("1.5 TiB", 1.5 * 2**40),
        ("500 mb", 5 * 10**8),
        ("2k", 2000),
    ],
)
def test_an_amount_of_memory_may_be_written_as_people_do(written: Any, amount: float) -> None:
    assert resources.bytes_of(written) == amount


@pytest.mark.parametrize("written", ["many", "4 GBit", "1.2.3GB", "", None])
def test_what_is_no_amount_of_memory_is_refused(written: Any) -> None:
    with pytest.raises(ValueError, match="give a number of bytes"):
        resources.bytes_of(written)


@pytest.mark.parametrize(
    ("files", "environ", "expected"),
    [
        ({"proc/meminfo": "MemFree: 1 kB\nMemTotal:  4096 kB\n"}, {}, 4096 * 1024),
        ({"proc/meminfo": "MemTotal: 4096 kB\n"}, {"SLURM_MEM_PER_NODE": "2"}, 2 * 2**20),
        ({"proc/meminfo": "MemTotal: 4096 kB\n"}, {"SLURM_MEM_PER_NODE": "0"}, 4096 * 1024),
        ({"proc/self/cgroup": "0::/job/task\n", "sys/fs/cgroup/job/memory.max": "777\n"}, {}, 777),
        ({"proc/self/cgroup": "0::/job\n", "sys/fs/cgroup/job/memory.max": "max\n"}, {}, 0),
        ({"proc/self/cgroup": "4:memory:/x\n", "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "555\n"}, {}, 555),
    ],
)
def test_the_memory_that_the_job_may_use(
    tmp_path: Path, files: dict[str, str], environ: dict[str, str], expected: int
) -> None:
    assert resources.memory(environ, tree(tmp_path, files)) == expected


def test_kills_for_lack_of_memory_are_read_from_the_control_group(tmp_path: Path) -> None:
    group = "sys/fs/cgroup/job/memory.events"
    tree(tmp_path, {"proc/self/cgroup": "0::/job\n", group: "low 0\nhigh 5\nmax 9\noom 3\noom_kill 2\n"})
    assert resources.oom_kills(tmp_path) == 2


def test_kills_in_the_first_version_of_control_groups(tmp_path: Path) -> None:
    control = "sys/fs/cgroup/memory/slurm/job_7/memory.oom_control"
    tree(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu:/\n4:memory:/slurm/job_7\n0::/\n",
            control: "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n",
        },
    )
    assert resources.oom_kills(tmp_path) == 4


def test_kills_on_the_node_where_the_group_does_not_tell(tmp_path: Path) -> None:
    assert resources.oom_kills(tmp_path) == 0
    tree(tmp_path, {"proc/self/cgroup": "0::/\n", "proc/vmstat": "pgfault 1\noom_kill 7\n"})
    assert resources.oom_kills(tmp_path) == 7


# ----- GPUs: which there are


@pytest.mark.parametrize(
    ("variable", "tokens"),
    [
        ("", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("0", ("0",)),
        ("2,3", ("2", "3")),
        (" 2 , 0", ("2", "0")),
        ("0,-1,2", ("0",)),
        ("GPU-8932f937,MIG-c7384736", ("GPU-8932f937", "MIG-c7384736")),
    ],
)
def test_the_variable_is_never_widened(monkeypatch: pytest.MonkeyPatch, variable: str, tokens: tuple[str, ...]) -> None:
    monkeypatch.setattr(resources, "_has_driver", pytest.fail)
    assert devices({"CUDA_VISIBLE_DEVICES": variable}) == tokens


def test_without_a_driver_nvml_is_not_imported() -> None:
    code = (
        "import sys; from ezpyp.system import resources; "
        "resources._has_driver = lambda: False; print(resources.devices({}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print('pynvml' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.stdout.split() == ["()", "False"]


class FakeNvml:
    """The C library as pynvml calls it: GPUs by UUID, each with its MIG instances (None: cannot be divided)."""

    OK, NOT_FOUND, NOT_SUPPORTED = 0, 6, 3

    def __init__(self, gpus: dict[str, list[str | None] | None]) -> None:
        self.gpus = list(gpus.items())
        self.open = 0

    def nvmlInitWithFlags(self, _flags: Any) -> int:  # noqa: N802  the names are NVIDIA's
        self.open += 1
        return self.OK

    def nvmlShutdown(self) -> int:  # noqa: N802
        self.open -= 1
        return self.OK

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self.gpus)
        return self.OK

    def nvmlDeviceGetHandleByIndex_v2(self, index: Any, handle: Any) -> int:  # noqa: N802
        self._point(handle, 1 + index.value)
        return self.OK

    def nvmlDeviceGetMigMode(self, handle: Any, current: Any, pending: Any) -> int:  # noqa: N802
        instances = self.gpus[self._number(handle) - 1][1]
        if instances is None:
            return self.NOT_SUPPORTED
        current._obj.value = pending._obj.value = bool(instances)
        return self.OK

    def nvmlDeviceGetMaxMigDeviceCount(self, handle: Any, count: Any) -> int:  # noqa: N802
        count._obj.value = len(self.gpus[self._number(handle) - 1][1] or ())
        return self.OK

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: Any, index: Any, instance: Any) -> int:  # noqa: N802
        gpu = self._number(handle)
        if (self.gpus[gpu - 1][1] or [])[index.value] is None:
            return self.NOT_FOUND
        self._point(instance, 100 * gpu + 1 + index.value)
        return self.OK

    def nvmlDeviceGetUUID(self, handle: Any, buffer: Any, _size: Any) -> int:  # noqa: N802
        gpu, instance = divmod(self._number(handle), 100)
        found = (self.gpus[gpu - 1][1] or [])[instance - 1] if gpu else self.gpus[instance - 1][0]
        assert found is not None
        buffer.value = found.encode()
        return self.OK

    @staticmethod
    def _point(handle: Any, number: int) -> None:
        import ctypes

        ctypes.cast(handle, ctypes.POINTER(ctypes.c_void_p))[0] = number

    @staticmethod
    def _number(handle: Any) -> int:
        import ctypes

        return int(ctypes.cast(handle, ctypes.c_void_p).value or 0)


def install(monkeypatch: pytest.MonkeyPatch, library: Any) -> None:
    """Make pynvml call `library`. `nvmlLib` is its private global: if it is renamed, these tests say so."""
    pynvml = pytest.importorskip("pynvml")
    monkeypatch.setattr(pynvml, "nvmlLib", library)
    # It keeps the functions that it looked up, and counts who initialised it.
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    monkeypatch.setattr(pynvml, "_nvmlLib_refcount", 0)
    monkeypatch.setattr(resources, "_has_driver", lambda: True)


def test_nvml_lists_the_gpus_by_uuid(monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeNvml({"GPU-a": None, "GPU-b": []})
    install(monkeypatch, library)
    assert devices({}) == ("GPU-a", "GPU-b")
    assert library.open == 0


def test_the_instances_of_a_divided_gpu_replace_it(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, FakeNvml({"GPU-a": ["MIG-a0", None, "MIG-a2"], "GPU-b": None, "GPU-c": [None]}))
    assert devices({}) == ("MIG-a0", "MIG-a2", "GPU-b")


def test_a_driver_that_does_not_answer_means_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(FakeNvml):
        def nvmlDeviceGetCount_v2(self, count: Any) -> int:  # noqa: N802
            return 999

    install(monkeypatch, Broken({"GPU-a": None}))
    assert devices({}) == ()


def test_no_library_means_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    pynvml = pytest.importorskip("pynvml")

    def refuse() -> None:
        raise pynvml.NVMLError_LibraryNotFound

    install(monkeypatch, None)
    monkeypatch.setattr(pynvml, "nvmlInit", refuse)
    assert devices({}) == ()


# ----- GPUs: who gets which


@pytest.mark.parametrize(
    ("have", "places", "shares"),
    [
        (0, 3, [[], [], []]),
        (1, 1, [[0]]),
        (4, 1, [[0, 1, 2, 3]]),
        (2, 2, [[0], [1]]),
        (4, 2, [[0, 1], [2, 3]]),
        (8, 3, [[0, 1, 2], [3, 4, 5], [6, 7]]),
        (1, 3, [[0], [0], [0]]),
        (2, 4, [[0], [0], [1], [1]]),
        (3, 4, [[0], [0], [1], [2]]),
    ],
)
def test_shares(have: int, places: int, shares: list[list[int]]) -> None:
    assert [list(share_of(range(have), place, places)) for place in range(places)] == shares


def test_shares_leave_nothing_out_and_overlap_only_where_they_must() -> None:
    for have in range(1, 12):
        for places in range(1, 12):
            given = [one for place in range(places) for one in share_of(range(have), place, places)]
            assert set(given) == set(range(have))
            assert len(given) == max(have, places)


def visible(bound: dict[str, str]) -> str | None:
    return bound.get("CUDA_VISIBLE_DEVICES")


def test_helpers_divide_what_their_rank_has() -> None:
    found = [
        visible(bind(FOUR, local_rank=rank, local_size=2, helper=helper, helpers=2, environ={}))
        for rank in range(2)
        for helper in range(2)
    ]
    assert found == list(FOUR)
    assert visible(bind(FOUR, local_size=2, environ={})) == "GPU-a,GPU-b"


def test_more_helpers_than_gpus_share() -> None:
    found = [visible(bind(("0", "1"), helper=helper, helpers=4, environ={})) for helper in range(4)]
    assert found == ["0", "0", "1", "1"]


def test_a_helper_gets_one_instance_of_a_divided_gpu() -> None:
    assert visible(bind(("MIG-a", "MIG-b"), environ={})) == "MIG-a"


def test_without_gpus_the_variable_is_left_alone() -> None:
    assert visible(bind((), environ={})) is None


def test_the_user_can_leave_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    environ = {"EZPYP_GPU_BIND": "none", "CUDA_VISIBLE_DEVICES": "0,1"}
    assert visible(bind(FOUR, local_size=2, environ=environ)) is None
    monkeypatch.setattr(resources, "devices", pytest.fail)
    assert environments(local_rank=0, local_size=2, helpers=1, cores=1, environ=environ)


def test_a_task_that_sees_only_its_own_keeps_them() -> None:
    for said in ("2", "a100:2"):
        environ = {"SLURM_GPUS_PER_TASK": said}
        assert visible(bind(("0", "1"), local_rank=1, local_size=2, environ=environ)) == "0,1"
        # Not bound by Slurm: four are visible, two of them are this task's.
        assert visible(bind(FOUR, local_rank=1, local_size=2, environ=environ)) == "GPU-c,GPU-d"


def test_the_environments_of_all_helpers() -> None:
    environ = {"CUDA_VISIBLE_DEVICES": "4,5"}
    found = environments(local_rank=0, local_size=1, helpers=2, cores=3, environ=environ)
    assert [visible(each) for each in found] == ["4", "5"]
    assert {each["OMP_NUM_THREADS"] for each in found} == {"3"}


# ----- threads and the environment


def test_threads_are_set_where_the_user_did_not() -> None:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    assert bind((), cores=4, environ={}) == dict.fromkeys(names, "4")
    assert bind((), cores=4, environ={"MKL_NUM_THREADS": "2"}) == dict.fromkeys(set(names) - {"MKL_NUM_THREADS"}, "4")
    assert bind((), cores=4, environ={"OMP_NUM_THREADS": "2"}) == {}


def test_what_makes_a_program_a_rank_is_scrubbed_and_the_sites_settings_stay() -> None:
    rank = {
        "PMI_RANK": "0",
        "PMI_FD": "7",
        "PMIX_NAMESPACE": "x",
        "PRTE_LAUNCHED": "1",
        "HYDI_CONTROL_FD": "8",
        "HYDRA_LAUNCHER": "fork",
        "MPI_LOCALRANKID": "0",
        "OMPI_COMM_WORLD_RANK": "0",
    }
    kept = {"PATH": "/bin", "OMPI_MCA_pml": "ob1", "OMPI_ALLOW_RUN_AS_ROOT": "1", "MPICH_GPU": "1", "SLURM_JOB_ID": "7"}
    assert scrubbed({**rank, **kept}) == kept


def run(code: str, **environ: str) -> str:
    """What a program prints that has ezpyp, numpy and no settings for threads."""
    mine = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**mine, **environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_loaded_nothing_limited() -> None:
    assert run("from ezpyp.system import resources; print(resources.limit_threads(1))") == "{}\n"


LIMIT = """
import numpy
from threadpoolctl import threadpool_info
from ezpyp.system.resources import limit_threads
print(set(limit_threads(1).values()), {pool["num_threads"] for pool in threadpool_info()})
"""


def test_loaded_pools_are_limited_as_another_library_sees_it() -> None:
    pytest.importorskip("threadpoolctl")
    pytest.importorskip("numpy")
    assert run(LIMIT, OPENBLAS_NUM_THREADS="") == "{1} {1}\n"


def test_what_the_user_set_wins_over_the_cores() -> None:
    pytest.importorskip("numpy")
    code = "import numpy; from ezpyp.system.resources import limit_threads; print(set(limit_threads(1).values()))"
    assert run(code, OMP_NUM_THREADS="2,1") == "{2}\n"
    assert run(code, OMP_NUM_THREADS="2", OPENBLAS_NUM_THREADS="3") == "{3}\n"


FORK = """
import ctypes, os, signal
from sklearn.utils import _openmp_helpers
from ezpyp.system import resources
gomp = [path for path in resources._loaded() if "libgomp" in path][0]
library = ctypes.CDLL(gomp)
assert resources.spoilt_pools() == []
assert resources.limit_threads(2)[gomp] == 2
library.GOMP_parallel(library.omp_get_num_threads, None, 2, 0)
assert resources.spoilt_pools(0.3) == [gomp]
child = os.fork()
if child == 0:
    signal.alarm(20)
    assert resources.limit_threads(2)[gomp] == 1
    library.GOMP_parallel(library.omp_get_num_threads, None, 0, 0)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_pool_that_ran_before_the_fork_is_found_and_gets_one_thread() -> None:
    pytest.importorskip("sklearn")
    if "gomp" not in run("import sklearn.utils._openmp_helpers; print(open('/proc/self/maps').read())"):
        pytest.skip("this scikit-learn was built with another OpenMP")
    assert run(FORK) == "0\n"


# ----- grants


def test_a_grant_holds_for_what_a_step_starts_and_ends_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    before = os.sched_getaffinity(0)
    core = max(before)
    tell = "import os; print(sorted(os.sched_getaffinity(0)), os.environ.get('CUDA_VISIBLE_DEVICES'))"
    with resources.granted(Grant(cores=(core,), gpus=(("2", 1.0), ("3", 0.5)))):
        told = subprocess.run([sys.executable, "-c", tell], capture_output=True, text=True, check=True).stdout
    assert told == f"[{core}] 2,3\n"
    assert (os.sched_getaffinity(0), os.environ["CUDA_VISIBLE_DEVICES"]) == (before, "0,1,2,3")


def test_cores_that_cannot_be_had_leave_a_step_where_it_is() -> None:
    before = os.sched_getaffinity(0)
    with resources.granted(Grant(cores=(1023,))):
        assert os.sched_getaffinity(0) == before
    assert os.sched_getaffinity(0) == before


def test_after_a_grant_the_variable_is_gone_where_there_was_none() -> None:
    environ: dict[str, str] = {}
    with resources.granted(Grant(gpus=(("1", 1.0),)), environ):
        assert environ == {"CUDA_VISIBLE_DEVICES": "1"}
        environ["CUDA_VISIBLE_DEVICES"] = "a step may do so"
    assert environ == {}


def test_a_user_who_binds_gpus_alone_gets_no_grant_of_them_set() -> None:
    environ = {"EZPYP_GPU_BIND": "none"}
    with resources.granted(Grant(gpus=(("1", 1.0),)), environ):
        assert environ == {"EZPYP_GPU_BIND": "none"}
