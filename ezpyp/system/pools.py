"""The thread pools of OpenMP and BLAS libraries: their limits, and whether forked children can use them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from ezpyp.system.proc import told

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Libraries fall back from their own variable to the first.
_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
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


def variables(cores: int, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The variables that limit a process to so many threads. What the user has set stays: OMP_NUM_THREADS alone
    stands for all.
    """
    if "OMP_NUM_THREADS" in environ:
        return {}
    return {name: str(cores) for name in _VARIABLES if name not in environ}


def among(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Of these variables those that limit threads."""
    return tuple(name for name in _VARIABLES if name in environment)


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
    """The shared libraries of this process, if there is one among them that is known to have a pool."""
    maps = told("/proc/self/maps")
    if not any(name in maps for names, _, _ in _POOLS for name in names):
        return []
    paths = (line.split(maxsplit=5)[5] for line in maps.splitlines() if ".so" in line)
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
