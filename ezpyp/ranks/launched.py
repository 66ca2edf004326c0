"""What the launcher told this process, and whether the MPI that was loaded understands it.

Read from the environment, which costs nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from ezpyp.tuples import NamedTuple


class Launch(NamedTuple):
    """What the launcher told this process."""

    rank: int
    size: int
    #: Place among the ranks of this node, and their number; -1 where the launcher does not say.
    local_rank: int = -1
    local_size: int = -1
    #: How MPI is meant to be reached: "pmix", "pmi", "" unknown.
    protocol: str = ""


def launch(environ: Mapping[str, str] | None = None) -> Launch | None:
    """The launch this process is part of; None without a launcher or with a single task.

    SLURM_NTASKS is not asked: it is set in every batch shell. Under a foreign mpirun SLURM_PROCID describes the
    daemon, so the launchers' own variables come first.
    """
    env = os.environ if environ is None else environ
    for size, rank, local_rank, local_size, protocol in (
        (
            "OMPI_COMM_WORLD_SIZE",
            "OMPI_COMM_WORLD_RANK",
            "OMPI_COMM_WORLD_LOCAL_RANK",
            "OMPI_COMM_WORLD_LOCAL_SIZE",
            "pmix",
        ),
        ("PMI_SIZE", "PMI_RANK", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", "pmi"),
        ("PALS_SIZE", "PALS_RANKID", "PALS_LOCAL_RANKID", "PALS_LOCAL_SIZE", "pmi"),
        ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "", "pmix" if "PMIX_RANK" in env else ""),
    ):
        if size.startswith("SLURM") and "SLURM_STEP_ID" not in env:
            continue
        if env.get(size, "").isdigit() and env.get(rank, "").isdigit():
            if int(env[size]) < 2:
                return None
            return Launch(
                rank=int(env[rank]),
                size=int(env[size]),
                local_rank=_number(env.get(local_rank)),
                local_size=_number(env.get(local_size)),
                protocol=protocol,
            )
    return None


def _number(text: str | None) -> int:
    return int(text) if text and text.isdigit() else -1


def speaks_for_node() -> bool:
    """Whether this rank is the first of its node, so that it may look at what all ranks there have in common. Where the
    launcher does not say, each may be it.
    """
    told = launch()
    return told is None or told.local_rank <= 0


def cannot_meet(told: Launch, version: str) -> bool:
    """Whether the library does not speak what the launcher offers: it would abort in MPI_Init, or see only itself."""
    if "MPICH" in version:
        return told.protocol == "pmix" and not _speaks_pmix()
    made = re.search(r"Open MPI v(\d+)", version)
    return made is not None and int(made[1]) >= 5 and "PMIX_RANK" not in os.environ


def wrong_launcher(told: Launch, version: str) -> str:
    """Message 3: the launcher and the library do not fit; with the flag that does."""
    found = re.search(r"(Open MPI|MPICH|Intel|MVAPICH)\D*([\d.]+)?", version)
    library = " ".join(part for part in (found.groups() if found else ("an MPI",)) if part)
    pmix = library.startswith("Open MPI")
    offered = {"pmi": "pmi2", "pmix": "pmix"}.get(told.protocol, "none that it knows")
    by = "srun" if "SLURM_STEP_ID" in os.environ else "the launcher"
    return (
        f"The launcher started {told.size} tasks, but each MPI sees only itself: mpi4py uses {library}, {by} offered "
        f"{offered}. Use: srun --mpi={'pmix' if pmix else 'pmi2'} … or mpirun -n {told.size} …. "
        f"Refused, or {told.size} copies would write one cache."
    )


def _speaks_pmix() -> bool:
    """Whether an MPICH that is loaded was built to be started by PMIx. One that was not would end this process, with
    words that help nobody."""
    import ctypes

    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        paths = {line.split(maxsplit=5)[-1].strip() for line in maps if re.search(r"/libmpi\w*\.so", line)}
    return not paths or any(hasattr(ctypes.CDLL(path), "PMIx_Init") for path in paths)
