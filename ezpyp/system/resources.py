"""Cores, memory and GPUs: what a step asks for, what this node has, and how a helper is bound to its share."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, MutableMapping, Sequence

T = TypeVar("T")

#: Variables that make an MPI program believe it is a rank of this job.
_LAUNCHER = ("PMI", "PRTE", "HYD", "MPI_LOCAL", "OMPI_COMM_WORLD_")
#: One of these is there when a launcher started this process as one of several, perhaps bound to its own cores.
_LAUNCHED = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK", "PALS_RANKID", "SLURM_STEP_ID")
#: Libraries fall back from their own variable to the first.
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What of a node is a step's own while it runs, where it asked for more than a core."""

    #: Numbers of the cores that it is to run on; empty to leave that to the kernel.
    cores: tuple[int, ...] = ()
    #: The devices, as CUDA_VISIBLE_DEVICES names them, each with the share of it that is granted.
    gpus: tuple[tuple[str, float], ...] = ()
    #: Bytes; 0 where it asked for none.
    memory: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stock:
    """What of its node a rank may use."""

    #: Cores of the node that the job was allotted, and how many of them the rank's helpers can run on.
    cores: int = 1
    reach: int = 1
    #: The numbers of the cores that a helper can be pinned to.
    numbers: tuple[int, ...] = ()
    #: What CUDA_VISIBLE_DEVICES may name; and whether the same names mean other devices to other ranks.
    gpus: tuple[str, ...] = ()
    own_gpus: bool = False
    #: Bytes of the node; 0 where that is not known.
    memory: int = 0


def stock(*, whole: bool = True) -> Stock:
    """What of this node this process may use; without `whole` its cores alone, which costs less to find and to tell.

    Looks at files of the kernel; asks NVML only where a driver is.
    """
    numbers, cores = reachable_cores(), allotted_cores()
    if not whole:
        return Stock(cores=cores, reach=min(cores, len(numbers)))
    have = devices()
    return Stock(
        cores=cores,
        reach=min(cores, len(numbers)),
        numbers=numbers,
        gpus=have,
        own_gpus=bool(have) and _is_bound_by_slurm(have, os.environ),
        memory=memory(),
    )


# ----- cores


def allotted_cores(environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> int:
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


def _quotas(root: Path) -> Iterator[int]:
    """Whole cores of every CPU quota above this process; versions 1 and 2 of control groups."""
    for controllers, group in _groups(root):
        if controllers == "":
            for folder in _upwards(root / "sys/fs/cgroup", group):
                yield from _whole(*_read(folder / "cpu.max").split()[:2])
        elif "cpu" in controllers.split(","):
            for folder in _upwards(root / "sys/fs/cgroup" / controllers, group):
                yield from _whole(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _whole(quota: str = "", period: str = "") -> Iterator[int]:
    """Nothing for `max` and -1, which say that there is no limit."""
    if quota.strip().isdecimal() and period.strip().isdecimal():
        yield int(quota) // int(period)


def _groups(root: Path) -> Iterator[tuple[str, str]]:
    """The control groups of this process: their controllers ("" for version 2) and their path."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        yield controllers, group


def _upwards(mount: Path, group: str) -> Iterator[Path]:
    """A group's folder and those above it. In a container the path may be the host's: no file there, no limit."""
    folder = mount / group.lstrip("/")
    while folder != mount:
        yield folder
        folder = folder.parent
    yield mount


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


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


def memory(environ: Mapping[str, str] = os.environ, root: Path = Path("/")) -> int:
    """The bytes of this node's memory that the job may use; 0 where nobody says.

    The least of what the node has, the limits of the control groups above this process, and what Slurm says.
    """
    limits = [*_memory_limits(root)]
    slurm = environ.get("SLURM_MEM_PER_NODE", "")
    if slurm.isdecimal() and int(slurm):
        limits.append(int(slurm) * 2**20)
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            limits.append(int(line.split()[1]) * 2**10)
    return min(limits, default=0)


def _memory_limits(root: Path) -> Iterator[int]:
    """Version 1 writes a number beyond any memory for no limit, version 2 the word max."""
    for controllers, group in _groups(root):
        if controllers == "" or "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup" / controllers
            for folder in _upwards(mount, group):
                text = _read(folder / ("memory.max" if controllers == "" else "memory.limit_in_bytes")).strip()
                if text.isdecimal():
                    yield int(text)


def oom_kills(root: Path = Path("/")) -> int:
    """How many processes the kernel killed for lack of memory: in this control group, or else on this node."""
    for controllers, group in _groups(root):
        if controllers == "":
            path = root / "sys/fs/cgroup" / group.lstrip("/") / "memory.events"
        elif "memory" in controllers.split(","):
            path = root / "sys/fs/cgroup" / controllers / group.lstrip("/") / "memory.oom_control"
        else:
            continue
        if (count := _count(_read(path))) is not None:
            return count
    return _count(_read(root / "proc/vmstat")) or 0


def _count(text: str) -> int | None:
    fields = dict(line.split(maxsplit=1) for line in text.splitlines() if " " in line)
    return int(fields["oom_kill"]) if "oom_kill" in fields else None


# ----- GPUs


def devices(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The GPUs this process may use: the tokens of CUDA_VISIBLE_DEVICES where it is set, else what NVML lists.

    Never more than the scheduler gave. Without a driver nothing is imported and there are none.
    """
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return _listed() if _has_driver() else ()
    tokens: list[str] = []
    for token in visible.split(","):
        # CUDA sees what stands before the first invalid one; some schedulers write -1 or NoDevFiles for none.
        if token.strip() in ("", "NoDevFiles") or token.strip().startswith("-"):
            break
        tokens.append(token.strip())
    return tuple(tokens)


def share_of(have: Sequence[T], place: int, places: int) -> tuple[T, ...]:
    """The part of one place: a contiguous block, the remainder to the first places; or one thing that others share."""
    if not have:
        return ()
    if places >= len(have):
        return (have[place * len(have) // places],)
    size, extra = divmod(len(have), places)
    begin = place * size + min(place, extra)
    return tuple(have[begin : begin + size + (place < extra)])


def bind(
    have: Sequence[str],
    *,
    local_rank: int = 0,
    local_size: int = 1,
    helper: int = 0,
    helpers: int = 1,
    cores: int = 1,
    environ: Mapping[str, str] = os.environ,
) -> dict[str, str]:
    """The environment that binds one helper to its share of the rank's share of `have`, and to its cores.

    What the user has set stays: EZPYP_GPU_BIND=none leaves the GPUs alone, OMP_NUM_THREADS all numbers of threads.
    """
    found = {}
    if "OMP_NUM_THREADS" not in environ:
        found = {name: str(cores) for name in _THREADS if name not in environ}
    if have and environ.get("EZPYP_GPU_BIND", "").lower() != "none":
        own = have if _is_bound_by_slurm(have, environ) else share_of(have, local_rank, local_size)
        mine = share_of(own, helper, helpers)
        # A process of CUDA uses one instance of a divided GPU, whatever it sees.
        found["CUDA_VISIBLE_DEVICES"] = ",".join(mine[:1] if mine[0].startswith("MIG-") else mine)
    return found


def environments(
    *, local_rank: int, local_size: int, helpers: int, cores: int, environ: Mapping[str, str] = os.environ
) -> list[dict[str, str]]:
    """What `bind` gives for each helper of this rank."""
    unbound = environ.get("EZPYP_GPU_BIND", "").lower() == "none"
    have = () if unbound else devices(environ)
    return [
        bind(
            have,
            local_rank=local_rank,
            local_size=local_size,
            helper=helper,
            helpers=helpers,
            cores=cores,
            environ=environ,
        )
        for helper in range(helpers)
    ]


def thread_variables(bound: Mapping[str, str]) -> tuple[str, ...]:
    """Of what `bind` gave, the variables that limit threads."""
    return tuple(name for name in _THREADS if name in bound)


def _is_bound_by_slurm(have: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether this task already sees just its own: `--gpus-per-task=[type:]n`, and n are visible."""
    return environ.get("SLURM_GPUS_PER_TASK", "").rpartition(":")[2] == str(len(have))


def _has_driver() -> bool:
    """Whether asking NVML is worth its import, which ten thousand ranks would pay. /dev/dxg is how WSL has it."""
    return any(os.path.exists(path) for path in ("/dev/nvidiactl", "/proc/driver/nvidia", "/dev/dxg"))


def _listed() -> tuple[str, ...]:
    """The UUIDs of all GPUs of this node, in NVML's order. The instances of a divided GPU replace it."""
    try:
        import pynvml as nvml

        nvml.nvmlInit()
    except Exception:  # no library, no driver, or one that is just being replaced: no GPU can be used
        return ()
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(k) for k in range(nvml.nvmlDeviceGetCount())]
        return tuple(_uuid(nvml, one) for handle in handles for one in _instances(nvml, handle))
    except nvml.NVMLError:
        return ()
    finally:
        nvml.nvmlShutdown()


def _instances(nvml: Any, handle: Any) -> Iterator[Any]:
    """The GPU itself, or the instances that exist on one in MIG mode."""
    try:
        divided, _ = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:
        divided = 0
    if not divided:
        yield handle
        return
    for k in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        try:
            yield nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, k)
        except nvml.NVMLError:
            continue


def _uuid(nvml: Any, handle: Any) -> str:
    uuid = nvml.nvmlDeviceGetUUID(handle)
    return uuid.decode() if isinstance(uuid, bytes) else str(uuid)


# ----- a helper's surroundings


def scrubbed(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment in which an MPI program is alone, not a rank of this job. The site's OMPI_MCA_* stay."""
    return {name: value for name, value in environ.items() if not name.startswith(_LAUNCHER)}


#: Part of a library's file name; the variable its user sets; its functions that set the number of threads.
_POOLS = (
    (("libgomp", "libiomp", "libomp"), "OMP_NUM_THREADS", ("omp_set_num_threads",)),
    (
        ("openblas",),
        "OPENBLAS_NUM_THREADS",
        tuple(f"{by}openblas_set_num_threads{width}" for by in ("", "scipy_") for width in ("", "64_")),
    ),
    (("libmkl_rt",), "MKL_NUM_THREADS", ("MKL_Set_Num_Threads",)),
    (("libblis",), "BLIS_NUM_THREADS", ("bli_thread_set_num_threads",)),
)


@contextlib.contextmanager
def granted(grant: Grant, environ: MutableMapping[str, str] = os.environ) -> Iterator[None]:
    """Run something on the cores and with the GPUs of a grant, and what it starts too.

    EZPYP_GPU_BIND=none leaves the GPUs alone.
    """
    cores = os.sched_getaffinity(0)
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if grant.cores:
        with contextlib.suppress(OSError):  # cores that another rank of the node can reach and this one cannot
            os.sched_setaffinity(0, grant.cores)
    if grant.gpus and environ.get("EZPYP_GPU_BIND", "").lower() != "none":
        environ["CUDA_VISIBLE_DEVICES"] = ",".join(token for token, _ in grant.gpus)
    try:
        yield
    finally:
        if grant.cores:
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, cores)
        if visible is not None:
            environ["CUDA_VISIBLE_DEVICES"] = visible
        else:
            environ.pop("CUDA_VISIBLE_DEVICES", None)


def limit_threads(cores: int) -> dict[str, int]:
    """Limit the OpenMP and BLAS pools of libraries already loaded to `cores`, or to what the user's variables say.

    Variables alone come too late for a library that a forked process inherited. One that `spoilt_pools` names gets one
    thread. Returns the files of the libraries with their numbers of threads.
    """
    limits = {
        path: (functions, _threads(variable, cores))
        for path in _loaded()
        for names, variable, functions in _POOLS
        if any(name in os.path.basename(path) for name in names)
    }
    spoilt = spoilt_pools() if any(threads > 1 for _, threads in limits.values()) else ()
    found = {path: 1 if path in spoilt else threads for path, (_, threads) in limits.items()}
    return {path: threads for path, threads in found.items() if _call(path, limits[path][0], threads)}


def spoilt_pools(patience: float = 1.0) -> list[str]:
    """The GNU OpenMP libraries with which a parallel region hangs in forked children of this process.

    It is so where a region ran before: the child believes in threads that the fork did not copy. Tried out in a child,
    which takes about a millisecond where all is well and `patience` seconds where not.
    """
    libraries = [path for path in _loaded() if "libgomp" in os.path.basename(path)]
    return [path for path in libraries if not _survives_fork(path, patience)]


def _survives_fork(path: str, patience: float) -> bool:
    import ctypes
    import select
    import warnings

    library = _open(path)
    region = getattr(library, "GOMP_parallel", None)
    if region is None:
        return True
    watched, held = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Python 3.12 warns of forks beside threads, which is what is tried here
        child = os.fork()
    if child == 0:
        # Two threads that do next to nothing. The end of the process closes the pipe.
        try:
            region(library.omp_get_num_threads, None, ctypes.c_uint(2), ctypes.c_uint(0))
        finally:
            os._exit(0)
    os.close(held)
    poll = select.poll()
    poll.register(watched, 0)
    ended = bool(poll.poll(patience * 1000))
    if not ended:
        os.kill(child, 9)
    os.waitpid(child, 0)
    os.close(watched)
    return ended


def _loaded() -> list[str]:
    """The shared libraries of this process."""
    lines = _read(Path("/proc/self/maps")).splitlines()
    paths = (line.split(maxsplit=5)[5] for line in lines if ".so" in line)
    return list(dict.fromkeys(path for path in paths if ".so" in os.path.basename(path)))


def _threads(variable: str, cores: int) -> int:
    said = os.environ.get(variable) or os.environ.get("OMP_NUM_THREADS", "")
    first = said.partition(",")[0].strip()  # "4,2": nested levels
    return int(first) if first.isdecimal() and int(first) else cores


def _call(path: str, functions: Sequence[str], threads: int) -> bool:
    """Call the first of the functions that the library has."""
    import ctypes

    library = _open(path)
    for name in functions:
        function = getattr(library, name, None)
        if function is not None:
            function(ctypes.c_int(threads))
            return True
    return False


def _open(path: str) -> Any:
    """A library that is loaded; None where it cannot be opened again, being replaced on disk."""
    import ctypes

    try:
        return ctypes.CDLL(path, mode=os.RTLD_NOLOAD)
    except OSError:
        return None
