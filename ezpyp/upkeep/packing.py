"""A cache folder as one file: without its lock and what was half written, consistent because nothing runs meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from ezpyp.errors import CacheInUse, StoreError
from ezpyp.folder import lock, runs, shares
from ezpyp.system.files import is_temporary, part_of

#: How files end, and what tarfile calls that.
_COMPRESSIONS: dict[str, Any] = {".tar": "w:", ".gz": "w:gz", ".tgz": "w:gz", ".bz2": "w:bz2", ".xz": "w:xz"}


def pack(folder: str | os.PathLike[str], target: str) -> int:
    """Write a tar file that holds the folder, and give the number of files in it. It is there whole or not at all.

    Raises:
        CacheInUse: a run holds the folder. StoreError: it is no cache folder, or the file cannot be written.
    """
    where = runs.open(folder).folder
    suffix = os.path.splitext(target)[1].lower()
    if suffix not in _COMPRESSIONS:
        raise StoreError(f"{target} is no name for a tar file. Let it end in {', '.join(_COMPRESSIONS)}.")
    if not os.access(where, os.W_OK):  # of another user's, perhaps: nobody can be kept out of it
        if holder := lock.held_by(where):
            raise CacheInUse(f"{where} is in use by {holder}. Pack it when that is over.")
        return _write(where, target, _COMPRESSIONS[suffix])
    with lock.acquire(where):
        return _write(where, target, _COMPRESSIONS[suffix])


def _write(folder: str, target: str, mode: Any) -> int:
    import tarfile

    paths = sorted(path for path in _files(folder) if not _same(path, target))
    with part_of(target) as draft, tarfile.open(draft, mode=mode, format=tarfile.PAX_FORMAT) as tar:
        for path in paths:
            tar.add(path, f"{os.path.basename(folder)}/{os.path.relpath(path, folder)}", recursive=False)
    return len(paths)


def _files(folder: str) -> Iterator[str]:
    for path, _, names in os.walk(folder):
        for name in names:
            is_lock = (path == folder or shares.main_of(path) == folder) and name.startswith(lock.NAME)
            if not is_lock and not is_temporary(name):
                yield f"{path}/{name}"


def _same(path: str, target: str) -> bool:
    return os.path.realpath(path) == os.path.realpath(target)
