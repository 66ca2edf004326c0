"""Files written whole or not at all, made lasting, and what kind of file system they are on."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from itertools import count
from typing import TYPE_CHECKING

from ezpyp.errors import StoreError

if TYPE_CHECKING:
    import ctypes

#: What a codec makes: written one after another, never joined.
Buffer = bytes | bytearray | memoryview

_MARK = ".ezpyp-tmp-"
#: The process and the host that write it, as `_draft` names them.
_DRAFT = rf"{re.escape(_MARK)}(\d+)-[0-9a-f]+-(.+)"

#: Up to so many files are synced one by one, which leaves the rest of the file system alone. A file costs about
#: 0.2 ms so, 0.01 ms where all are synced at once.
_FEW = 64

#: Files from this size on have their room reserved first, and each so many bytes are on their way to the disk before
#: the next are written.
_LARGE, _PIECE = 1 << 24, 1 << 23
#: FALLOC_FL_KEEP_SIZE: room beyond the end of the file, which grows with what is written (fallocate(2)).
_KEEP_SIZE = 1
#: SYNC_FILE_RANGE_WRITE: begin, and wait for nothing (sync_file_range(2)).
_BEGIN = 2

#: File systems that several hosts may mount, so that one may see late what another wrote (names as in mount(8)).
_SHARED = frozenset(
    (
        *("nfs", "nfs4", "lustre", "gpfs", "beegfs", "fhgfs", "cifs", "smb3", "ceph", "glusterfs", "pvfs2"),
        *("orangefs", "panfs", "wekafs", "daos", "gfs2", "ocfs2", "afs", "9p", "virtiofs"),
    )
)


def size_of(chunk: Buffer) -> int:
    """The length in bytes, which a memoryview's `len` need not be."""
    return chunk.nbytes if isinstance(chunk, memoryview) else len(chunk)


def write_whole(path: str | os.PathLike[str], chunks: Iterable[Buffer], *, sync: bool = False) -> os.stat_result:
    """Write a file so that its name shows the old content or the new, never a part; how it was when it was written.

    A temporary name in the same folder, then rename(2), which POSIX makes atomic. With `sync` the content is on the
    disk before the name is, and the name when this returns; without, a power failure (but no killed process) may lose
    it.

    Raises:
        StoreError: the disk is full or the folder cannot be written; a former file is untouched.
    """
    target = os.fspath(path)
    draft, facts = _draft(target, chunks, sync)
    _place({draft: target}, sync)
    return facts


def write_vouched(
    path: str, chunks: Iterable[Buffer], witness: str, words: Buffer, *, sync: bool = False
) -> os.stat_result:
    """Write a file and the one that vouches for it, in one folder: where the witness stands, its file is whole. How the
    file was when it was written.

    Both are drafted before a former one is touched, so a full disk costs neither. The former witness is gone before
    the new file appears: a kill in between leaves a file without a witness, never with another's.

    Raises:
        StoreError: as `write_whole`.
    """
    first, facts = _draft(path, chunks, sync)
    try:
        second, _ = _draft(witness, [words], sync)
    except BaseException:
        _remove(first)
        raise
    _place({first: path, second: witness}, sync, void=witness)
    return facts


@contextlib.contextmanager
def part_of(target: str) -> Iterator[str]:
    """A temporary name beside a file, for who must write by name; afterwards the file has what was written there.

    Raises:
        StoreError: it cannot be written; a former file is untouched.
    """
    temporary = os.path.join(os.path.dirname(target), temporary_name())
    try:
        yield temporary
        sync_files([temporary], os.path.dirname(target) or ".")
        os.replace(temporary, target)
    except OSError as error:
        raise refusal(target, error, " Former content is untouched.") from error
    finally:
        _remove(temporary)


def _draft(target: str, chunks: Iterable[Buffer], sync: bool) -> tuple[str, os.stat_result]:
    """Write under a temporary name beside the target, and give that name back, with how the file was then."""
    folder = target[: target.rfind("/") + 1]
    temporary = f"{folder}{temporary_name()}"
    try:
        # 0666 less the umask, as any program would: tempfile's 0600 shuts out colleagues.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            size = sum(map(size_of, chunks)) if isinstance(chunks, (list, tuple)) else 0
            if size >= _LARGE:
                _reserve(descriptor, size)
                _write_large(descriptor, chunks)
            else:
                for chunk in chunks:
                    write_all(descriptor, chunk)
            if sync:
                os.fdatasync(descriptor)
            facts = os.fstat(descriptor)
        finally:
            os.close(descriptor)  # NFS may tell of a full disk only here
    except OSError as error:
        _remove(temporary)
        raise refusal(target, error, " Former content is untouched.") from error
    except BaseException:
        _remove(temporary)
        raise
    return temporary, facts


#: Tells processes of one number apart: those of other containers, and those before a restart.
_SALT = os.urandom(4).hex()
_HOST = os.uname().nodename
_serial = count()


def temporary_name() -> str:
    """A name that no other process uses, nor this one again."""
    return f"{_MARK}{os.getpid()}-{_SALT}{next(_serial):x}-{_HOST}"


def write_all(descriptor: int, chunk: Buffer) -> None:
    """write(2) takes 2 GiB at most, and less on a whim."""
    written = os.write(descriptor, chunk)
    if written < size_of(chunk):
        rest = memoryview(chunk).cast("B")
        while written < len(rest):
            written += os.write(descriptor, rest[written:])


def _reserve(descriptor: int, size: int) -> None:
    """Have the room on the disk, where the file system can say so: a full disk shows at once, and writing is quicker.

    posix_fallocate, which Python offers, writes zeros where the file system cannot.
    """
    import ctypes

    if _libc().fallocate(descriptor, _KEEP_SIZE, ctypes.c_int64(0), ctypes.c_int64(size)):
        code = ctypes.get_errno()
        if code in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(code, os.strerror(code))


def _write_large(descriptor: int, chunks: Iterable[Buffer]) -> None:
    """Write with the disk beginning at once: whoever makes the file lasting later waits less. It is asked for nothing
    where it cannot.
    """
    import ctypes

    begin, done = _libc().sync_file_range, 0
    for chunk in filter(size_of, chunks):
        rest = memoryview(chunk).cast("B")
        for start in range(0, len(rest), _PIECE):
            piece = rest[start : start + _PIECE]
            write_all(descriptor, piece)
            begin(descriptor, ctypes.c_int64(done), ctypes.c_int64(len(piece)), _BEGIN)
            done += len(piece)


@cache
def _libc() -> ctypes.CDLL:
    """Calls of Linux that Python does not offer."""
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def _place(drafts: Mapping[str, str], sync: bool, void: str = "") -> None:
    """Remove `void`, then give the drafts their names, in this order."""
    target = void
    try:
        if void:
            _unlink(void)
        for temporary, target in drafts.items():
            os.replace(temporary, target)
    except OSError as error:
        for temporary in drafts:
            _remove(temporary)
        raise refusal(target, error) from error
    if sync:
        sync_folder(os.path.dirname(target) or ".")


def link_whole(source: str, path: str, *, void: str) -> None:
    """Give a file a second name, in place of what has it; `void` vouched for that and is removed first.

    A copy where the file system has no hard links, or none between folders (BeeGFS, AFS).

    Raises:
        StoreError: the folder cannot be written.
    """
    temporary = f"{os.path.dirname(path)}/{temporary_name()}"
    try:
        os.link(source, temporary)
    except OSError:
        temporary = _copy(source, path)
    _place({temporary: path}, sync=False, void=void)


def _copy(source: str, target: str) -> str:
    try:
        file = open(source, "rb")  # noqa: SIM115  # what fails below is told of by _draft
    except OSError as error:
        raise refusal(target, error) from error
    with file:
        return _draft(target, iter(lambda: file.read(1 << 20), b""), sync=True)[0]


def remove(path: str) -> None:
    """Remove a file if it is there.

    Raises:
        StoreError: its folder cannot be written.
    """
    try:
        _unlink(path)
    except OSError as error:
        raise refusal(path, error) from error


def _unlink(path: str) -> None:
    # contextlib.suppress would cost as much as the call
    try:
        os.unlink(path)
    except FileNotFoundError:
        return


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


_REMEDIES = {
    errno.ENOSPC: "The disk is full: free space and run again.",
    errno.EDQUOT: "The quota is used up (bytes or files): free some and run again.",
    errno.EFBIG: "It is larger than this process may write: raise `ulimit -f` and run again.",
    errno.EACCES: "This user may not write in its folder: have it made writable, or use another cache folder.",
    errno.EROFS: "The file system is mounted read-only: use another cache folder.",
    errno.ENOENT: "Its folder is gone: make it, or run again.",
}


def refusal(target: str, error: OSError, more: str = "") -> StoreError:
    """Why a file was not written, and what to do."""
    remedy = _REMEDIES.get(error.errno or 0, "Look at its folder, then run again.")
    return StoreError(f"{target} could not be written ({error.strerror}). {remedy}{more}")


# ----- lasting


def sync_files(paths: Iterable[str], folder: str) -> None:
    """Make files of one folder, and their names, survive a power failure. Files that are gone need none.

    May block for seconds: of many files the whole file system is synced, with what others have written to it.

    Raises:
        StoreError: the disk refused.
    """
    distinct = list(dict.fromkeys(paths))
    try:
        if len(distinct) > _FEW:
            _sync_all(folder)
            return
        for path in distinct:
            _sync(path)
    except OSError as error:
        raise StoreError(
            f"{folder} could not be synced ({error.strerror}): what was written lately may not be on the disk. "
            "Look at the disk, then run again."
        ) from error
    sync_folder(folder)


def _sync(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)


def _sync_all(folder: str) -> None:
    """syncfs(2), which Python does not offer."""
    import ctypes

    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _libc().syncfs(descriptor):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
    finally:
        os.close(descriptor)


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """Make the names in a folder lasting. Does nothing on file systems that do not sync folders."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# ----- what killed writers leave


def is_temporary(name: str) -> bool:
    """True for names that are in use only while a file is written."""
    return name.startswith(_MARK)


def sweep(folder: str | os.PathLike[str]) -> int:
    """Remove what writers of this host that are gone left behind, if there is such a folder; how many files that were.

    Raises:
        OSError: the folder cannot be read.
    """
    removed = 0
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            writer = re.fullmatch(_DRAFT, entry.name, re.DOTALL) if is_temporary(entry.name) else None
            if writer and writer[2] == _HOST and not _lives(int(writer[1])):
                _remove(entry.path)
                removed += 1
    return removed


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


# ----- file systems


@cache
def is_shared(folder: str) -> bool:
    """True if the folder is on a file system that other hosts may mount too.

    Raises:
        OSError: there is no such folder.
    """
    device = os.stat(folder).st_dev
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
            kind = _kind(os.path.realpath(folder), f"{os.major(device)}:{os.minor(device)}", table)
    except OSError:
        return False
    return kind in _SHARED or kind.startswith("fuse.")


def _kind(folder: str, device: str, table: Iterable[str]) -> str:
    """The type of the file system that a folder is on, by proc(5)'s mountinfo.

    By the device's number; else, since some (btrfs) show other numbers in their files than in the table, by the
    longest mount point above the folder.
    """
    nearest, kind = "", ""
    for line in table:
        left, _, right = line.partition(" - ")
        _, _, number, _, point, *_ = left.split(" ")
        if number == device:
            return right.split(" ")[0]
        if "\\" in point:  # few are; the first look for a pattern takes longer than all else here
            point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), point)
        point = point.rstrip("/")
        if len(point) >= len(nearest) and f"{folder}/".startswith(f"{point}/"):
            nearest, kind = point, right.split(" ")[0]
    return kind


def folders_of(value: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> tuple[str, ...]:
    """What a user may write: a folder or several, relative to the working directory."""
    listed = [value] if isinstance(value, (str, os.PathLike)) else [*value]
    return tuple(os.path.abspath(os.path.expanduser(os.fspath(each))) for each in listed)


def make_folder(path: str | os.PathLike[str], *, really: bool = True) -> str:
    """The absolute path of a cache folder, made if it is not there and `really`.

    Raises:
        StoreError: it cannot be made, or is a file, or its name is no text.
    """
    folder = os.path.expanduser(os.fspath(path))
    try:
        folder = os.path.abspath(folder)
        folder.encode()  # files of a run hold it
        if really:
            os.makedirs(folder, exist_ok=True)
    except (OSError, UnicodeEncodeError) as error:
        why = (error.strerror or str(error)) if isinstance(error, OSError) else "its name is not UTF-8"
        if not os.path.isabs(folder):  # which is made so first
            why = "the working folder is gone"
        failure = StoreError(f"The cache folder {folder!a} cannot be made: {why}. Give Pipeline() another.")
        failure.exit_code = 3
        raise failure from error
    return folder
