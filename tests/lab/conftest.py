"""A laboratory: a real Slurm with two nodes, and three hosts without one, in network namespaces of this machine; and a
network file system between them.

    def test_nodes(slurm: Slurm, mpirun: Launcher) -> None:
        job = slurm.sbatch(script_text, "--nodes=2", env=mpirun.environment())
        assert slurm.ended(job) == "COMPLETED"

Each starts once a session, in half a second, and is gone at its end, also where pytest was killed. What they need from
Debian is in `.ci/run`. Without it, or without root, the tests are skipped, or fail where CI=true; but those that need
FUSE are skipped wherever the kernel has none.
"""

from __future__ import annotations

import fcntl
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TextIO

import pytest

from tests.conftest import GAVE_UP, OPEN_MPI, completed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.conftest import Launcher

HERE = Path(__file__).resolve().parent
NEEDED = ("slurmctld", "slurmd", "sbatch", "munged", "ip", "unshare")
#: Between nodes there is no shared memory, though these are one machine; and none is to get all ranks.
ACROSS = {**OPEN_MPI, "OMPI_MCA_btl": "tcp,sm,self", "UCX_TLS": "tcp,self"}
del ACROSS["PRTE_MCA_rmaps_default_mapping_policy"]
#: States in which nothing of a job is left to happen.
OVER = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "DEADLINE"}


def environment(given: dict[str, str], extra: dict[str, str]) -> dict[str, str]:
    """What a program needs to use a part of the laboratory, over what a launcher gives."""
    return {**{key: value for key, value in given.items() if key not in OPEN_MPI}, **extra, **ACROSS}


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """A running cluster: `env` is what its clients need."""

    env: dict[str, str]
    nodes: tuple[str, ...]
    #: What the nodes call themselves: this machine's name where namespaces are not to be had.
    hosts: frozenset[str]

    def run(
        self, *command: str, env: dict[str, str], cwd: Path, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """A program that uses the cluster, to its end."""
        return subprocess.run(
            ["timeout", "-k", "5", str(timeout), *command],
            cwd=cwd,
            env=environment(env, self.env),
            capture_output=True,
            text=True,
            check=False,
        )

    def sbatch(self, script: Path, *flags: str, args: tuple[str, ...] = (), env: dict[str, str], cwd: Path) -> str:
        """Submit a batch script; gives the job's number. What it prints goes to `JOB.log` in `cwd`."""
        told = self.run("sbatch", "--parsable", "--output=%A.log", *flags, str(script), *args, env=env, cwd=cwd)
        assert told.returncode == 0, told.stderr
        return told.stdout.strip()

    def state(self, job: str) -> str:
        """As squeue(1) has it; of an array one state for all, if they agree."""
        told = subprocess.run(
            ["squeue", "-h", "-j", job, "-t", "all", "-o", "%T"],
            env={**os.environ, **self.env},
            capture_output=True,
            text=True,
            check=True,
        )
        states = set(told.stdout.split())
        return states.pop() if len(states) == 1 else "/".join(sorted(states))

    def ended(self, job: str, timeout: float = 60) -> str:
        """Wait until a job is over; its last state."""
        until = time.monotonic() + timeout
        while (state := self.state(job)) not in OVER:
            assert time.monotonic() < until, f"job {job} is {state} after {timeout} s"
            time.sleep(0.1)
        return state


@dataclass(frozen=True, kw_only=True)
class Hosts:
    """Hosts that mpirun reaches by an agent in place of ssh."""

    env: dict[str, str]
    names: tuple[str, ...]
    _script: Path = field(default=HERE / "mpi-hosts")

    def run(
        self, *command: str, env: dict[str, str], cwd: Path, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """A program, such as mpirun, on this machine, which knows the hosts by name."""
        whole = ["timeout", "-k", "5", str(timeout), str(self._script), "head", *command]
        return completed(whole, cwd=cwd, env=environment(env, self.env))

    def command(self, mpirun: Launcher, count: int, *program: str, wrap: tuple[str, ...] = ()) -> list[str]:
        """What starts a Python program, one rank on each of so many hosts; each by way of the program `wrap`."""
        names = self.names[:count]
        where = ["-hosts", ",".join(names), "-ppn", "1"]
        if mpirun.name == "openmpi":
            passed = (word for name in ("PYTHONPATH", "PATH") for word in ("-x", name))
            where = ["--host", ",".join(f"{name}:1" for name in names), *passed]
        return [str(mpirun.bin / "mpirun"), *where, "-n", str(count), *wrap, str(mpirun.bin / "python"), *program]

    def mpirun(
        self, mpirun: Launcher, count: int, *program: str, wrap: tuple[str, ...] = (), timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """The same to its end, in the folder of the test."""
        told = self.command(mpirun, count, *program, wrap=wrap)
        return self.run(*told, env=mpirun.environment(), cwd=mpirun.folder, timeout=timeout)

    @contextmanager
    def running(self, mpirun: Launcher, *command: str, until: Callable[[], bool]) -> Iterator[subprocess.Popen[str]]:
        """A program in the background, once it is so far; all of its output is standard output. MPICH's mpirun knows
        the hosts. It is started once more where its launcher could not.
        """
        listed = mpirun.folder / "hosts"
        listed.write_text("".join(f"{name}:1\n" for name in self.names))
        env, text = environment(mpirun.environment({"HYDRA_HOST_FILE": str(listed)}), self.env), GAVE_UP
        while GAVE_UP in text:
            with subprocess.Popen(
                [str(self._script), "head", *command],
                cwd=mpirun.folder,
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            ) as run:
                patience = time.monotonic() + 30
                while not until() and run.poll() is None and time.monotonic() < patience:
                    time.sleep(0.01)
                if until():
                    yield run
                    return
                run.kill()
                text, _ = run.communicate()
        pytest.fail(f"it did not get so far: {text}")

    def at_work(self, names: tuple[str, ...]) -> list[int]:
        """The processes of Python on hosts, by number."""
        found = []
        for name in names:
            told = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=True)
            for pid in told.stdout.split():
                with suppress(OSError):
                    if Path(f"/proc/{pid}/comm").read_text().startswith("python"):
                        found.append(int(pid))
        return found

    def strike(self, what: Literal["cut", "heal", "crash"], name: str) -> None:
        """Unplug a host from the network, plug it in again, or kill all that runs on it."""
        subprocess.run([self._script, what, name], env={**os.environ, **self.env}, check=True)


@dataclass(frozen=True, kw_only=True)
class Disk:
    """A folder on a network file system, which every host sees by a client of its own."""

    env: dict[str, str]
    _script: Path = field(default=HERE / "network-disk")

    @property
    def root(self) -> Path:
        """Where it is for whatever a host runs by way of `wrap`."""
        return Path(self.env["NETDISK_DIR"], "shared")

    def seen_by(self, host: str) -> Path:
        """The same folder by the client of a host, for the test itself."""
        return Path(self.env["NETDISK_DIR"], host)

    @property
    def wrap(self) -> tuple[str, ...]:
        """What starts a program on a host, so that it sees the folder as that host does."""
        return ("env", *(f"{name}={value}" for name, value in self.env.items()), str(self._script), "on")

    def strike(self, what: Literal["crash", "mend"], host: str) -> None:
        """End the client of a host with all that it has not sent, or give the host a new one."""
        subprocess.run([self._script, what, host], env={**os.environ, **self.env}, check=True)


def refuse(why: str) -> None:
    (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"no laboratory: {why}")


@contextmanager
def place() -> Iterator[int]:
    """A number that no other session on this machine has, while it lasts: names, ports and addresses come from it."""
    for number in range(40):
        file: TextIO
        with open(f"{tempfile.gettempdir()}/ezpyp-lab-{os.getuid()}-{number}.lock", "w", encoding="ascii") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue
            yield number
            return
    raise AssertionError("forty laboratories are at work on this machine")


@contextmanager
def started(program: Path, env: dict[str, str], end: str) -> Iterator[dict[str, str]]:
    """Start a part of the laboratory, and give the variables that its users need.

    A process of its own ends it as soon as the other end of a pipe is closed: by us, or by the death of pytest. What
    one leaves behind that is killed as well is removed by the next who comes to the same place.
    """
    whole = {**os.environ, **env}
    subprocess.run([program, end], env=whole, check=True, capture_output=True)
    guard = subprocess.Popen(
        ["sh", "-c", 'read -r _; exec "$0" "$1" >/dev/null 2>&1', program, end],
        env=whole,
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        begun = subprocess.run([program, "start"], env=whole, capture_output=True, text=True, check=False)
        if begun.returncode:
            refuse(begun.stderr.strip())
        told = subprocess.run([program, "env"], env=whole, capture_output=True, text=True, check=True)
        exports = (word for line in told.stdout.splitlines() for word in shlex.split(line)[1:])
        yield dict(word.split("=", 1) for word in exports)
    finally:
        assert guard.stdin is not None
        guard.stdin.close()
        guard.wait(60)


@pytest.fixture(scope="session")
def slurm() -> Iterator[Slurm]:
    """Two nodes with eight CPUs and two GPUs each, declared, not real. One test at a time uses them."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    missing = [name for name in NEEDED if not shutil.which(name, path=path)]
    if missing:
        refuse(f"{', '.join(missing)} not found; .ci/run says which packages have it")
    with place() as number:
        env = {
            "SLURMLAB_DIR": f"{tempfile.gettempdir()}/ezpyp-slurm-{os.getuid()}-{number}",
            "SLURMLAB_SUBNET": f"198.18.{70 + number}",
            "SLURMLAB_PREFIX": f"n{number}x",
            "SLURMLAB_PORT": str(16817 + 200 * number),
        }
        with started(HERE / "slurm-cluster", env, "wipe") as found:
            told = subprocess.run(
                ["srun", "--nodes=2", "hostname"],
                env={**os.environ, **found},
                capture_output=True,
                text=True,
                check=True,
            )
            yield Slurm(env=found, nodes=(f"n{number}x1", f"n{number}x2"), hosts=frozenset(told.stdout.split()))


@pytest.fixture(scope="session")
def hosts() -> Iterator[Hosts]:
    """Three hosts, each with an address and a name of its own."""
    if os.geteuid() != 0 or not shutil.which("ip", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"):
        refuse("hosts need root and iproute2")
    with place() as number:
        env = {
            "MPIHOSTS_DIR": f"{tempfile.gettempdir()}/ezpyp-hosts-{os.getuid()}-{number}",
            "MPIHOSTS_SUBNET": f"198.18.{110 + number}",
            "MPIHOSTS_PREFIX": f"h{number}x",
            "MPIHOSTS_N": "3",
        }
        with started(HERE / "mpi-hosts", env, "stop") as found:
            yield Hosts(env=found, names=(f"h{number}x1", f"h{number}x2", f"h{number}x3"))


@pytest.fixture(scope="session")
def disk(hosts: Hosts) -> Iterator[Disk]:
    """A network file system between the hosts."""
    if not Path("/dev/fuse").is_char_device():
        pytest.skip("no laboratory: no /dev/fuse")
    if not shutil.which("glusterfs", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"):
        refuse("glusterfs not found; .ci/run says which package has it")
    with place() as number:
        env = {
            "NETDISK_DIR": f"{tempfile.gettempdir()}/ezpyp-disk-{os.getuid()}-{number}",
            "NETDISK_HOSTS": ",".join(hosts.names),
            "NETDISK_PORT": str(24900 + number),
        }
        with started(HERE / "network-disk", env, "stop") as found:
            yield Disk(env=found)
