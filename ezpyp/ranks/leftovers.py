"""Shared memory that an earlier start of a Slurm job left behind, because it was killed.

The ranks of a node make theirs under a name that MPICH (5.0.2, ch4/shm/posix) derives from what PMI-2 calls the world:
by srun, JOB.STEP. That is the same in each start of a job, and who finds it made takes it for ready: on what was left,
all ranks wait in MPI_Init for good.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import time
from collections.abc import Mapping

from ezpyp.system import offspring, proc

#: Where shm_open(3) makes it.
FOLDER = "/dev/shm"


def remove(environ: Mapping[str, str], folder: str = FOLDER) -> None:
    """Remove it before MPI starts. Every rank may, at the same time, while others start."""
    restarts, job, step = map(environ.get, ("SLURM_RESTART_COUNT", "SLURM_JOB_ID", "SLURM_STEP_ID"))
    if not job or not step or not (restarts or "0").strip("0"):
        return
    if (since := _step_began()) is None:
        return
    name = re.compile(f"mpich_(?:shm|vci)_{_fnv1a(f'{job}.{step}'):x}_[0-9]+")
    with contextlib.suppress(OSError):
        for each in filter(name.fullmatch, os.listdir(folder)):
            with contextlib.suppress(OSError):
                _remove_older(os.path.join(folder, each), since)


def _remove_older(path: str, since: float) -> None:
    """Remove a file that was made before that moment, and none that another rank made in its place meanwhile: only who
    has the file locked that lies there may remove it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        mine = os.fstat(descriptor)
        if os.path.samestat(mine, os.stat(path)) and mine.st_ctime < since:
            os.unlink(path)
    finally:
        os.close(descriptor)


def _step_began() -> float | None:
    """When Slurm started the ranks of this node, in seconds since 1970: all of them are slurmstepd's. None where it is
    not to be seen, as from a container with process ids of its own.
    """
    keeper = offspring.ancestor({"slurmstepd"})
    process = proc.look(keeper) if keeper is not None else None
    return None if process is None else time.time() - process.age


def _fnv1a(text: str) -> int:
    """The hash of Fowler, Noll and Vo, FNV-1a with 32 bits (draft-eastlake-fnv)."""
    found = 2166136261
    for byte in text.encode():
        found = (found ^ byte) * 16777619 & 0xFFFFFFFF
    return found
