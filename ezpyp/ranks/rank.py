"""The first moment of a rank under `ezpyp run`: only rank 0 shows what the script prints. Then the script takes over.

    python -I -S rank.py [flags of python] SCRIPT [arguments]

Run by its path, not as a module: ten thousand ranks pass here, so it imports only what Python has loaded anyway.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal itself would be another import
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn

#: Where launchers say which rank this is.
RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PALS_RANKID")


def rank(environ: Mapping[str, str]) -> int:
    """The rank that the launcher gave this process; 0 without one."""
    # Slurm sets SLURM_PROCID in every batch shell; only beside a step it means a rank.
    names = (*RANKS, "SLURM_PROCID") if "SLURM_STEP_ID" in environ else RANKS
    found = (environ[name] for name in names if name in environ)
    return next((int(text) for text in found if text.isdecimal()), 0)


def main() -> NoReturn:
    """Become the script, deaf to the warning before a time limit until ezpyp listens to it: it would end the rank.

    Not under `ezpyp run`, which may send it for a Ctrl-C.
    """
    if "EZPYP_OUTCOME" not in os.environ:
        _signal.signal(_signal.SIGUSR1, _signal.SIG_IGN)
    if rank(os.environ) != 0 and os.environ.get("EZPYP_ALL_OUTPUT") != "1":
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.close(nowhere)
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])


if __name__ == "__main__":
    main()
