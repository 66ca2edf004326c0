"""Whether other hosts see the cache folder that rank 0 holds: by the token in its lock."""

from __future__ import annotations

import os
from collections.abc import Iterable

from ezpyp.folder.lock import NAME
from ezpyp.storage.patience import tries
from ezpyp.system.files import is_shared

#: Seconds that the lock of another host may take to appear here.
PATIENCE = 30.0
#: So many hosts are named.
_MOST = 3


def sees(folder: str, token: str, *, patience: float | None = None) -> bool:
    """Whether what this host has at that path is the folder held with this token.

    Reads one small file. Where it is not there, waits for it only on a file system that other hosts may have too.
    """
    if patience is None:
        patience = PATIENCE if _is_shared(folder) else 0.0
    return any(_is_held(folder, token) for _ in tries(folder, patience))


def refusal(blind: Iterable[tuple[int, str, str]], holder: str, folder: str) -> str:
    """The text for ranks, each with its host and its path of the folder, that do not see what rank 0 holds."""
    found: dict[str, str] = {}
    for rank, host, path in blind:
        found.setdefault(host, f"rank {rank} ({host})" + (f", where it would be {path}" if path != folder else ""))
    more = f" and {len(found) - _MOST} more hosts" if len(found) > _MOST else ""
    named = "; ".join([*found.values()][:_MOST])
    return (
        f"The hosts do not share the cache folder {folder} of rank 0 ({holder}): {named}{more} cannot see what is in "
        "it. Give Pipeline() a folder on a file system that all hosts mount at the same path. Nothing was run."
    )


def _is_held(folder: str, token: str) -> bool:
    try:
        with open(os.path.join(folder, NAME), "rb") as file:
            return token.encode() in file.read()
    except OSError:
        return False


def _is_shared(folder: str) -> bool:
    try:
        return is_shared(folder)
    except OSError:
        return False
