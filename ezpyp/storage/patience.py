"""Wait for what another host wrote, and say whose it is where it does not show."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator

from ezpyp.errors import StoreError
from ezpyp.storage.record import Record


def tries(folder: str, patience: float) -> Iterator[None]:
    """Once; then again and again, at growing intervals, until so many seconds are over."""
    until = time.monotonic() + patience
    pause = 0.01
    yield
    while (left := until - time.monotonic()) > 0:
        time.sleep(min(pause, left))
        pause = min(1.0, 2 * pause)
        _look_afresh(folder)
        yield


def is_late(error: Exception) -> bool:
    """Whether what another host wrote may look so for a while: not there yet, or as it was before."""
    return isinstance(error, StoreError) or (isinstance(error, OSError) and error.errno in (errno.ENOENT, errno.ESTALE))


def blamed(path: str, record: Record, error: Exception, host: str, patience: float) -> StoreError:
    """Why a result cannot be read here, whose it is, and what to do."""
    if isinstance(error, StoreError):
        return error
    there = record.outcome.host or "another host"
    if patience and there != host and is_late(error):
        return StoreError(
            f"{path} does not show on {host} after {patience:g} s, though '{record.name}' wrote it on "
            f"{there}. Let both hosts see the same folder, or run again to remake it."
        )
    reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({reason_of(error)})"
    return StoreError(f"{path}, which '{record.name}' wrote on {there}, {reason}. Run again to remake it.")


def unreadable(folder: str, error: OSError) -> StoreError:
    return StoreError(f"The cache folder {folder} cannot be read ({error.strerror}). Look at its path and permissions.")


def reason_of(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _look_afresh(folder: str) -> None:
    """Opening a folder makes NFS ask the server for its names anew (close-to-open consistency, nfs(5))."""
    try:
        os.close(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError:
        return
