"""Files written whole or not at all, and what kind of file system they are on."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterable
from functools import cache
from typing import NoReturn
from uuid import uuid4

from ezpyp.errors import StoreError

#: What a codec makes: written one after another, never joined.
Buffer = bytes | bytearray | memoryview

_MARK = ".ezpyp-tmp-"

#: File systems whose other hosts may see a file late (mount(8) names; fuse covers sshfs and the like).
_SHARED = frozenset(
    {"nfs", "nfs4", "lustre", "gpfs", "beegfs", "cifs", "smb3", "ceph", "glusterfs", "pvfs2", "orangefs", "9p", "afs"}
)


def write_whole(path: str | os.PathLike[str], chunks: Iterable[Buffer], *, sync: bool = False) -> None:
    """Write a file so that its name shows the old content or the new, never a part.

    A temporary name in the same folder, then rename(2), which POSIX makes atomic. With `sync` the content is on the
    disk before the name is, and the name when this returns; without, a power failure (but no killed process) may lose
    it.

    Raises:
        StoreError: the disk is full or the folder cannot be written; a former file is untouched.
    """
    target = os.fspath(path)
    temporary = f"{target[: target.rfind('/') + 1]}{_MARK}{socket.gethostname()}-{os.getpid()}-{uuid4().hex[:8]}"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            for chunk in chunks:
                _write_all(descriptor, chunk)
            if sync:
                os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, target)
        if sync:
            sync_folder(os.path.dirname(target) or ".")
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        _refuse(target, error)


def _write_all(descriptor: int, chunk: Buffer) -> None:
    written = os.write(descriptor, chunk)
    size = chunk.nbytes if isinstance(chunk, memoryview) else len(chunk)
    if written < size:
        rest = memoryview(chunk).cast("B")
        while written < size:
            written += os.write(descriptor, rest[written:])


def _refuse(target: str, error: OSError) -> NoReturn:
    remedies = {
        errno.ENOSPC: "The disk is full: free space and run again",
        errno.EDQUOT: "The quota is used up (bytes or files): free some and run again",
        errno.EFBIG: "It is larger than this process may write (ulimit -f)",
        errno.EACCES: "Its folder may not be written by this user",
        errno.EROFS: "The file system is mounted read-only",
        errno.ENOENT: "Its folder is gone",
    }
    remedy = remedies.get(error.errno or 0, "Look at its folder, then run again")
    raise StoreError(
        f"{target} could not be written ({error.strerror}). {remedy}. Former content is untouched."
    ) from error


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Make names in a folder lasting. Does nothing where a folder cannot be synced."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def sync_file(path: str | os.PathLike[str]) -> None:
    """Make the content of a file lasting. A file that is gone needs none."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)


def is_temporary(name: str) -> bool:
    """True for names that `write_whole` uses on the way."""
    return name.startswith(_MARK)


def sweep(folder: str | os.PathLike[str]) -> int:
    """Remove what writers of this host that are gone left behind; how many files that were."""
    own = f"{_MARK}{socket.gethostname()}-"
    removed = 0
    for entry in os.scandir(folder):
        if entry.name.startswith(own):
            pid = entry.name[len(own) :].partition("-")[0]
            if pid.isdigit() and not _alive(int(pid)):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)
                    removed += 1
    return removed


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@cache
def is_shared(folder: str) -> bool:
    """True if the folder is on a file system that other hosts may mount too (proc(5), mountinfo)."""
    device = os.stat(folder).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError), open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as mounts:
        for line in mounts:
            left, _, right = line.partition(" - ")
            if left.split()[2] == wanted:
                kind = right.split()[0]
                return kind in _SHARED or kind.startswith("fuse.")
    return False
