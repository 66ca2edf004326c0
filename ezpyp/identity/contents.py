"""What files hold, as digests that are remembered from run to run.

A digest is remembered with the size, times and inode that stat(2) gave. It is trusted while all are equal and the file
was `SETTLED` old when it was read: a younger one may have changed again within the same tick of the file system's clock
(the "racy" problem of https://git-scm.com/docs/racy-git). The memory, `inputs.json` in the cache folder, may be lost at
any time: then files are read again.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Literal

from ezpyp.errors import InitializationError, StoreError
from ezpyp.system.files import write_whole
from ezpyp.tuples import NamedTuple

FORMAT = 1
MEMORY_FILE = "inputs.json"
#: Nanoseconds. The coarsest file systems (FAT) tell times in steps of 2 s.
SETTLED = 2_000_000_000
_PIECE = 1 << 20

#: "changed": read a file again when its size, times or inode differ; "always": in every run.
Verify = Literal["changed", "always"]

#: What to do about a file that is not there.
MAKE = "Make it before the run; where a step makes it, let that step return File(path) and pass on the step."


class _Note(NamedTuple):
    """A content with what stat(2) said before it was read, and when that was."""

    size: int
    mtime: int
    ctime: int
    inode: int
    read: int
    content: str

    def holds(self, now: os.stat_result) -> bool:
        """Whether the file has the same content for sure."""
        same = (self.size, self.mtime, self.ctime, self.inode) == (
            *(now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino),
        )
        return same and self.read - max(self.mtime, self.ctime) >= SETTLED


class Contents:
    """Digests of files. One is made for one run; in that run it looks at each file once."""

    def __init__(self, folder: str | None = None, *, clock: Callable[[], int] = time.time_ns) -> None:
        """`folder` is the cache folder that keeps it; without one it knows nothing at first."""
        self._folder, self._clock = folder, clock
        self._former = _read_notes(folder) if folder is not None else {}
        self._notes: dict[str, _Note] = {}
        #: Files that were read in this run.
        self._read: set[str] = set()

    def digest(self, path: str, *, verify: Verify = "changed") -> str:
        """The digest of a file's content.

        Raises:
            InitializationError: it is not there or cannot be read; the text says what to do.
        """
        known = self._notes.get(path)
        if known is not None and (verify != "always" or path in self._read):
            return known.content
        try:
            now = os.stat(path)
            _check_kind(path, now)
            known = known or self._former.get(path)
            if known is None or verify == "always" or not known.holds(now):
                # What stat said before it was read: a change in the meantime then shows the next time.
                known = _note(now, self._clock(), content_of(path))
                self._read.add(path)
        except OSError as error:
            raise unreadable(path, error) from error
        self._notes[path] = known
        return known.content

    def save(self) -> None:
        """Keep what was seen for the next run; nothing is written if that is what is known already."""
        if self._folder is None or self._notes == self._former:
            return
        files = {p: [n.size, n.mtime, n.ctime, n.inode, n.read, n.content] for p, n in sorted(self._notes.items())}
        content = json.dumps({"format": FORMAT, "files": files}, indent=0)
        with suppress(StoreError):  # a folder that cannot be written: the files are read again the next time
            write_whole(os.path.join(self._folder, MEMORY_FILE), [content.encode()])


def content_of(path: str) -> str:
    """xxh3 (128 bits, https://xxhash.com) of a file's bytes, read in pieces.

    Raises:
        OSError: it cannot be read.
    """
    import xxhash

    whole = xxhash.xxh3_128()
    buffer = memoryview(bytearray(_PIECE))
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(buffer):
            whole.update(buffer[:size])
    return f"xxh3-128:{whole.hexdigest()}"


def _note(now: os.stat_result, read: int, content: str) -> _Note:
    return _Note(now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino, read, content)


def _read_notes(folder: str) -> dict[str, _Note]:
    """The former notes; none where the file is torn, foreign or of another format."""
    try:
        with open(os.path.join(folder, MEMORY_FILE), "rb") as file:
            content = json.loads(file.read())
        if content["format"] != FORMAT:
            return {}
        return {path: _checked_note(*each) for path, each in content["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _checked_note(size: int, mtime: int, ctime: int, inode: int, read: int, content: str) -> _Note:
    if not all(type(each) is int for each in (size, mtime, ctime, inode, read)) or type(content) is not str:
        raise ValueError("not a note that ezpyp wrote")
    return _Note(size, mtime, ctime, inode, read, content)


def _check_kind(path: str, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise InitializationError(f"{printable(path)} is a folder. Give it as Tree(…).")
    if not stat.S_ISREG(status.st_mode):
        raise InitializationError(
            f"{printable(path)} is neither file nor folder, and has no content to identify it by. Pass it as a text."
        )


def unreadable(path: str, error: OSError) -> InitializationError:
    """The error for what cannot be looked at."""
    if isinstance(error, FileNotFoundError):
        return InitializationError(f"{printable(path)} is not there. {MAKE}")
    return InitializationError(
        f"{printable(path)} cannot be read ({error.strerror}). Have it made readable for this user."
    )


def printable(text: str) -> str:
    """A file name as messages and JSON can hold it: bytes that are no UTF-8 become �."""
    return os.fsencode(text).decode(errors="replace")
