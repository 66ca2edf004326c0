"""Where a run comes from: what its journal says besides what happened. Nothing here may fail a run."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

#: Seconds that git may take.
_ANSWER = 2.0
#: Variables that change what a run does or where it runs.
_RELEVANT = re.compile(r"EZPYP_(?!OUTCOME$).*|CUDA_VISIBLE_DEVICES|OMP_NUM_THREADS|SLURM_JOB_.*")


def gather(script: str, packages: Mapping[str, str], environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Fields of a RunStarted. Asks git once where the script is in a repository, and blocks for 2 s at most."""
    try:
        directory = os.getcwd()
    except OSError:  # removed since
        directory = ""
    commit, dirty = _state_of_repository(os.path.dirname(script) or directory)
    return {
        "script": script,
        "directory": directory,
        "commit": commit,
        "dirty": dirty,
        "packages": dict(packages),
        "job": environ.get("SLURM_JOB_ID", ""),
        "environment": {k: environ[k] for k in sorted(environ) if _RELEVANT.fullmatch(k)},
    }


def _state_of_repository(folder: str) -> tuple[str, bool | None]:
    """The commit, and whether tracked files differ from it; ("", None) where git does not say."""
    if not folder or not any(os.path.lexists(each / ".git") for each in (Path(folder), *Path(folder).parents)):
        return "", None
    import subprocess

    try:
        told = subprocess.run(
            [
                *("git", "-c", "core.fsmonitor=false", "-C", folder),
                *("status", "--porcelain=v2", "--branch", "--untracked-files=no"),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_ANSWER,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"},
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return "", None
    lines = told.stdout.splitlines()
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid ")), "")
    if told.returncode or not re.fullmatch("[0-9a-f]{40,64}", commit):
        return "", None
    return commit, any(not line.startswith("#") for line in lines)
