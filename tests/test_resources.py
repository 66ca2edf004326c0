"""Cores and memory, with made-up control groups, and the binding of helpers and steps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ezpyp.system import resources
from ezpyp.system.resources import Grant, cores_each, scrubbed


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


# ----- the environment


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
