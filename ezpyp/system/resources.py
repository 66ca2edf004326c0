"""Cores and memory: what of a node a step asks for and this process may use, and how a helper is bound to its share."""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING, Any, Literal

from ezpyp.system import gpus, pools
from ezpyp.system.proc import told
from ezpyp.tuples import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, MutableMapping, Sequence

#: Which process runs a step: any; one that runs nothing else; one that ran nothing else, or steps on the same GPUs.
Process = Literal["any", "own", "same"]
#: Variables that make an MPI program believe it is a rank of this job.
_LAUNCHER = ("PMI", "PRTE", "HYD", "MPI_LOCAL", "OMPI_COMM_WORLD_")
#: One of these is there when a launcher started this process as one of several, perhaps bound to its own cores.
_LAUNCHED = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "PALS_RANKID", "SLURM_STEP_ID")


class Grant(NamedTuple):
    """What of a node is a step's own while it runs, where it asked for more than a core."""

    #: Numbers of the cores that it is to run on; empty to leave that to the kernel.
    cores: tuple[int, ...] = ()
    #: The devices, by UUID or as the scheduler names them, each with the share of it that is granted.
    gpus: tuple[tuple[str, float], ...] = ()
    #: Bytes; 0 where it asked for none.
    memory: int = 0
    process: Process = "any"

    @property
    def names(self) -> tuple[str, ...]:
        """The devices; none where it is the user who binds them."""
        return () if gpus.left_alone() else tuple(name for name, _ in self.gpus)


class Stock(NamedTuple):
    """What of its node a rank may use."""

    #: Cores of the node that the job was allotted, and how many of them the rank's helpers can run on.
    cores: int = 1
    reach: int = 1
    #: The numbers of the cores that a helper can be pinned to.
    numbers: tuple[int, ...] = ()
    #: By UUID or as the scheduler names them; and whether the same names mean other devices to other ranks.
    gpus: tuple[str, ...] = ()
    own_gpus: bool = False
    #: Bytes of the node; 0 where that is not known.
    memory: int = 0


def stock(*, whole: bool = True) -> Stock:
    """What of this node this process may use; without `whole` only what binds helpers, which costs less to tell.

    Looks at files of the kernel; asks NVML only where a driver is.
    """
    numbers, cores = reachable_cores(), allotted_cores()
    have = gpus.devices() if whole or not gpus.left_alone() else ()
    own = gpus.bound_by_slurm(have)
    if not whole:
        return Stock(cores=cores, reach=min(cores, len(numbers)), gpus=have, own_gpus=own)
    return Stock(
        cores=cores,
        reach=min(cores, len(numbers)),
        numbers=numbers,
        gpus=have,
        own_gpus=own,
        memory=memory(),
    )


# ----- cores


def allotted_cores(environ: Mapping[str, str] = os.environ, root: str | os.PathLike[str] = "/") -> int:
    """The cores of this node that the job may use, whichever of them the launcher bound this process to.

    The least of: the cores this process may be scheduled on (under a launcher its parent, whose set is the job's), the
    control group's CPU quota, and what Slurm says. `root` is where /proc and /sys are.
    """
    limits = [len(_schedulable(environ)), *_quotas(root)]
    slurm = environ.get("SLURM_CPUS_ON_NODE", "")
    if slurm.isdecimal():
        limits.append(int(slurm))
    return max(1, min(limits))


def _schedulable(environ: Mapping[str, str]) -> set[int]:
    own = os.sched_getaffinity(0)
    if any(name in environ for name in _LAUNCHED):
        with contextlib.suppress(OSError):
            own = own | os.sched_getaffinity(os.getppid())
    return own


def reachable_cores(environ: Mapping[str, str] = os.environ) -> tuple[int, ...]:
    """The numbers of the cores that a helper can run on: all that the job may use if the system lets it leave those
    that the launcher bound this process to, else only these.
    """
    own, wanted = os.sched_getaffinity(0), _schedulable(environ)
    if wanted - own:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, wanted)  # succeeds also where only some are granted
            wanted = os.sched_getaffinity(0)
            os.sched_setaffinity(0, own)
            return tuple(sorted(wanted))
    return tuple(sorted(own))


def bound_cores() -> int:
    """The cores this process may be scheduled on."""
    return len(os.sched_getaffinity(0))


def cores_each(*, allotted: int, bound: int, local_size: int, helpers: int) -> int:
    """The cores that each helper owns: its share of the node, or of what its rank was bound to where that is less."""
    return max(1, min(bound, allotted // local_size) // helpers)


def _quotas(root: str | os.PathLike[str]) -> Iterator[int]:
    """Whole cores of every CPU quota above this process; versions 1 and 2 of control groups."""
    for controllers, group in _groups(root):
        if controllers == "":
            for folder in _upwards(root, controllers, group):
                yield from _whole(*told(f"{folder}/cpu.max").split()[:2])
        elif "cpu" in controllers.split(","):
            for folder in _upwards(root, controllers, group):
                yield from _whole(told(f"{folder}/cpu.cfs_quota_us"), told(f"{folder}/cpu.cfs_period_us"))


def _whole(quota: str = "", period: str = "") -> Iterator[int]:
    """Nothing for `max` and -1, which say that there is no limit."""
    if quota.strip().isdecimal() and period.strip().isdecimal():
        yield int(quota) // int(period)


def _groups(root: str | os.PathLike[str]) -> Iterator[tuple[str, str]]:
    """The control groups of this process: their controllers ("" for version 2) and their path."""
    for line in told(os.path.join(root, "proc/self/cgroup")).splitlines():
        _, controllers, group = line.split(":", 2)
        yield controllers, group


def _upwards(root: str | os.PathLike[str], controllers: str, group: str) -> Iterator[str]:
    """A group's folder and those above it. In a container the path may be the host's: no file there, no limit."""
    names = [name for name in group.split("/") if name]
    for count in range(len(names), -1, -1):
        yield os.path.join(root, "sys/fs/cgroup", controllers, *names[:count])


# ----- memory


def bytes_of(value: Any) -> int:
    """An amount of memory: a number of bytes, or a text such as "512MB", "4GB", "1.5 TiB"."""
    text = str(value).strip()
    found = re.fullmatch(r"([\d.]+)\s*([kMGT]?)(i?)B?", text, re.IGNORECASE)
    try:
        if found is None:
            return int(value)
        number, prefix, binary = found.groups()
        return int(float(number) * (1024 if binary else 1000) ** " KMGT".index(prefix.upper() or " "))
    except (TypeError, ValueError):
        raise ValueError(f'memory={value!r}: give a number of bytes, or "500MB", "4GB", "1.5TiB"') from None


def memory(environ: Mapping[str, str] = os.environ, root: str | os.PathLike[str] = "/") -> int:
    """The bytes of this node's memory that the job may use; 0 where nobody says.

    The least of what the node has, the limits of the control groups above this process, and what Slurm says.
    """
    limits = [*_memory_limits(root)]
    slurm = environ.get("SLURM_MEM_PER_NODE", "")
    if slurm.isdecimal() and int(slurm):
        limits.append(int(slurm) * 2**20)
    for line in told(os.path.join(root, "proc/meminfo")).splitlines():
        if line.startswith("MemTotal:"):
            limits.append(int(line.split()[1]) * 2**10)
    return min(limits, default=0)


def _memory_limits(root: str | os.PathLike[str]) -> Iterator[int]:
    """Version 1 writes a number beyond any memory for no limit, version 2 the word max."""
    for controllers, group in _groups(root):
        if controllers == "" or "memory" in controllers.split(","):
            name = "memory.max" if controllers == "" else "memory.limit_in_bytes"
            for folder in _upwards(root, controllers, group):
                text = told(f"{folder}/{name}").strip()
                if text.isdecimal():
                    yield int(text)


def oom_kills(root: str | os.PathLike[str] = "/") -> int:
    """How many processes the kernel killed for lack of memory: in this control group, or else on this node."""
    for controllers, group in _groups(root):
        if controllers and "memory" not in controllers.split(","):
            continue
        folder = next(_upwards(root, controllers, group))
        if (count := _count(told(f"{folder}/{'memory.oom_control' if controllers else 'memory.events'}"))) is not None:
            return count
    return _count(told(os.path.join(root, "proc/vmstat"))) or 0


def _count(text: str) -> int | None:
    fields = dict(line.split(maxsplit=1) for line in text.splitlines() if " " in line)
    return int(fields["oom_kill"]) if "oom_kill" in fields else None


# ----- a helper's surroundings


def scrubbed(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment in which an MPI program is alone, not a rank of this job. The site's OMPI_MCA_* stay."""
    return {name: value for name, value in environ.items() if not name.startswith(_LAUNCHER)}


def environments(
    own: Sequence[str],
    *,
    have: Sequence[str],
    helpers: int,
    cores: int,
    hidden: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> list[dict[str, str]]:
    """The variables that bind each helper: to so many cores, and to its part of what of `have`, the GPUs that this
    process sees, is this rank's own; to none of them where they are `hidden`, because steps are granted them.
    """
    threads = pools.variables(cores, environ)
    if gpus.left_alone(environ):
        return [threads] * helpers
    if hidden:
        return [{**threads, **gpus.hiding(have, environ)}] * helpers
    return [
        {**threads, **gpus.binding(gpus.share_of(own, helper, helpers), have, environ)} for helper in range(helpers)
    ]


@contextlib.contextmanager
def granted(grant: Grant, environ: MutableMapping[str, str] = os.environ) -> Iterator[None]:
    """Run something on the cores and with the GPUs of a grant, and what it starts too.

    EZPYP_GPU_BIND=none leaves the GPUs alone.
    """
    cores = os.sched_getaffinity(0)
    if grant.cores:
        with contextlib.suppress(OSError):  # cores that another rank of the node can reach and this one cannot
            os.sched_setaffinity(0, grant.cores)
    try:
        with gpus.granted(grant.gpus, environ):
            yield
    finally:
        if grant.cores:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, cores)
