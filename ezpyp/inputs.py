"""Files and folders that steps read: they count by base name and content, and each is read once, not once a run.

A digest is remembered with the size, times and inode that stat(2) gave. It is trusted while all are equal and the file
was `SETTLED` old when it was read: a younger one may have changed again within the same tick of the file system's clock
(the "racy" problem of https://git-scm.com/docs/racy-git). The memory, `inputs.json` in the cache folder, may be lost at
any time: then files are read again.
"""

from __future__ import annotations

import glob
import json
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, overload
from zlib import crc32

from ezpyp import fingerprint
from ezpyp.errors import InitializationError, StoreError
from ezpyp.files import write_whole

FORMAT = 1
MEMORY_FILE = "inputs.json"
#: Nanoseconds. The coarsest file systems (FAT) tell times in steps of 2 s.
SETTLED = 2_000_000_000
_PIECE = 1 << 20

#: "changed": read a file again when its size, times or inode differ; "always": in every run.
Verify = Literal["changed", "always"]


class Input:
    """What a step reads: a frozen value that only rank 0 looks at, once a run."""

    __slots__ = ()
    verify: Verify
    #: As the user wrote it.
    given: str

    @property
    def label(self) -> str:
        """What messages call it."""
        raise NotImplementedError

    @property
    def text(self) -> bytes:
        """What tells it from other inputs without a look at the disk."""
        raise NotImplementedError

    def pieces(self, memory: Memory) -> Iterator[tuple[str, str, str]]:
        """(kind, name, content) of everything in it, read through the memory.

        Raises:
            InitializationError: it is not there or cannot be read; the text says which and what to do.
        """
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.given!r})"

    def __ezpyp_identity__(self) -> object:
        """For inputs that code leads to: a global, a default. By content where there is a memory to ask."""
        memory = _active.get()
        if memory is None:
            return self.text
        try:
            return memory.look(self).digest
        except InitializationError as error:
            memory.missed.append((self, error))
            raise


@dataclass(frozen=True, slots=True, init=False, repr=False)
class File(Input, os.PathLike[str]):
    """A file that a step reads, or returns.

    As an argument or in `inputs=` it counts by its name without the folder, and by its content; the step can open it as
    it is. Returned by a step it is moved into the cache, and who takes the result gets it with its place there.

    Args:
        path: relative to the working directory, `~` works.
        verify: "always" reads it in every run, whatever its times say.
    """

    #: Absolute.
    path: str
    verify: Verify
    given: str = field(compare=False)

    def __init__(self, path: str | os.PathLike[str], *, verify: Verify = "changed") -> None:
        _set(self, given=os.fsdecode(path), path=_absolute(path), verify=_verify(verify))

    @property
    def name(self) -> str:
        """The name without the folder."""
        return os.path.basename(self.path)

    @property
    def label(self) -> str:
        return printable(self.name)

    @property
    def text(self) -> bytes:
        return b"file " + os.fsencode(self.path)

    def pieces(self, memory: Memory) -> Iterator[tuple[str, str, str]]:
        yield "file", self.name, memory.content(self.path, verify=self.verify)

    def __fspath__(self) -> str:
        return self.path

    def __str__(self) -> str:
        return self.path

    def __hash__(self) -> int:
        return crc32(self.text)  # the same in every process: so is the order of a set

    def __reduce__(self) -> tuple[Any, ...]:
        returned = _returned.get()
        if returned is not None:
            return returned_file, (returned.setdefault(self.path, len(returned)),)
        return _file, (self.path, self.given, self.verify)


@dataclass(frozen=True, init=False, repr=False)
class Files(Input, Sequence[File]):
    """The files that a pattern finds: `Files("obs/*.nc")`; `**` stands for any number of folders.

    They count by content and by their names from the first folder on that the pattern leaves open. A step gets a
    sequence of `File`, sorted by name, as the folder is when it first looks.

    Args:
        pattern: as for `glob.glob`; relative to the working directory, `~` works.
        verify: "always" reads them in every run, whatever their times say.
    """

    folder: str
    pattern: str
    verify: Verify
    given: str = field(compare=False)

    def __init__(self, pattern: str | os.PathLike[str], *, verify: Verify = "changed") -> None:
        given = os.fsdecode(pattern)
        _set(self, given=given, pattern=os.path.expanduser(given), folder=os.getcwd(), verify=_verify(verify))

    @property
    def label(self) -> str:
        return printable(self.given)

    @property
    def text(self) -> bytes:
        return b"files " + os.fsencode(f"{self.folder}\0{self.pattern}")

    def found(self) -> dict[str, File]:
        """Names, from where the pattern begins, to the files that are there now."""
        start = os.path.dirname(self.pattern)
        while glob.has_magic(start):
            start = os.path.dirname(start)
        found = {}
        for match in sorted(glob.glob(self.pattern, root_dir=self.folder, recursive=True)):
            path = os.path.join(self.folder, match)
            if os.path.isfile(path):
                found[os.path.relpath(match, start or ".")] = _file(os.path.normpath(path), match, self.verify)
        return found

    def pieces(self, memory: Memory) -> Iterator[tuple[str, str, str]]:
        found = self.found()
        if not found:
            raise InitializationError(f"no file in {printable(self.folder)} fits that. {_MAKE}")
        for name, file in found.items():
            yield "file", name, memory.content(file.path, verify=self.verify)

    @cached_property
    def _files(self) -> tuple[File, ...]:
        # Looked up once in each copy of this value: a step has one of its own for each run.
        return tuple(self.found().values())

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, place: int) -> File: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[File, ...]: ...
    def __getitem__(self, place: int | slice) -> File | tuple[File, ...]:
        return self._files[place]

    def __hash__(self) -> int:
        return crc32(self.text)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (Files, self.given, self.verify, {"folder": self.folder, "pattern": self.pattern})


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Tree(Input, os.PathLike[str]):
    """A folder with all that is in it (zarr, a mesh, a model): by its name, and the names and contents inside.

    Symbolic links inside count by what they say, and are not followed. Empty folders count.

    Args:
        path: relative to the working directory, `~` works.
        verify: "always" reads everything in every run, whatever the times say.
    """

    #: Absolute.
    path: str
    verify: Verify
    given: str = field(compare=False)

    def __init__(self, path: str | os.PathLike[str], *, verify: Verify = "changed") -> None:
        _set(self, given=os.fsdecode(path), path=_absolute(path), verify=_verify(verify))

    @property
    def name(self) -> str:
        """The name without the folders above."""
        return os.path.basename(self.path)

    @property
    def label(self) -> str:
        return printable(self.name)

    @property
    def text(self) -> bytes:
        return b"tree " + os.fsencode(self.path)

    def pieces(self, memory: Memory) -> Iterator[tuple[str, str, str]]:
        yield "tree", self.name, ""
        waiting = [""]
        while waiting:
            folder = waiting.pop()
            for entry in _entries(os.path.join(self.path, folder)):
                name = os.path.join(folder, entry.name)
                if entry.is_symlink():
                    yield "link", name, os.readlink(entry.path)
                elif entry.is_dir():
                    yield "folder", name, ""
                    waiting.append(name)
                else:
                    yield "file", name, memory.content(entry.path, verify=self.verify)

    def __fspath__(self) -> str:
        return self.path

    def __str__(self) -> str:
        return self.path

    def __hash__(self) -> int:
        return crc32(self.text)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (Tree, self.given, self.verify, {"path": self.path})


def inputs_of(value: Any) -> tuple[Input, ...]:
    """What a user may write for `inputs=`: an input, a path, a pattern, or several of them."""
    if isinstance(value, (str, Input, os.PathLike)):
        value = [value]
    found = []
    for each in value or ():
        if isinstance(each, Input):
            found.append(each)
        elif isinstance(each, (str, os.PathLike)):
            found.append(Files(each) if glob.has_magic(os.fsdecode(each)) else File(each))
        else:
            raise TypeError(f"inputs= holds {each!r}: give paths, patterns, File(…), Files(…) or Tree(…)")
    return tuple(found)


def printable(text: str) -> str:
    """A file name as messages and JSON can hold it: bytes that are no UTF-8 become �."""
    return os.fsencode(text).decode(errors="replace")


# ----- the memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What an input was found to be."""

    label: str
    digest: bytes
    #: Of inputs that hold several files: names to contents.
    members: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Note:
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


class Memory:
    """The contents of files as digests. One is made for one run; in that run it looks at each file once."""

    def __init__(self, folder: str | None = None, *, clock: Callable[[], int] = time.time_ns) -> None:
        """`folder` is the cache folder that keeps it; without one it knows nothing at first."""
        self._folder, self._clock = folder, clock
        self._former = _read_notes(folder) if folder is not None else {}
        self._notes: dict[str, _Note] = {}
        self._seen: dict[Input, Seen] = {}
        #: Files that were read in this run.
        self._read: set[str] = set()
        #: Inputs that code leads to, and why they could not be looked at.
        self.missed: list[tuple[Input, InitializationError]] = []

    def look(self, thing: Input) -> Seen:
        """What an input is now.

        Raises:
            InitializationError: it is not there or cannot be read; the text says what to do.
        """
        seen = self._seen.get(thing)
        if seen is None:
            pieces = list(thing.pieces(self))
            parts = (part.encode("utf-8", "surrogateescape") for piece in pieces for part in piece)
            digest = bytes.fromhex(fingerprint.combine(*parts))
            members = {} if isinstance(thing, File) else {printable(n): c or k for k, n, c in pieces if k != "tree"}
            seen = self._seen[thing] = Seen(label=thing.label, digest=digest, members=members)
        return seen

    def content(self, path: str, *, verify: Verify = "changed") -> str:
        """The digest of a file's content.

        Raises:
            InitializationError: as `look`.
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
            raise _unreadable(path, error) from error
        self._notes[path] = known
        return known.content

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Meanwhile inputs that code leads to are looked at here."""
        token = _active.set(self)
        try:
            yield
        finally:
            _active.reset(token)

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


#: Asked by inputs that code leads to, while a plan is identified.
_active: ContextVar[Memory | None] = ContextVar("ezpyp_inputs", default=None)


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


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except NotADirectoryError:
        raise InitializationError(f"{printable(folder)} is no folder. Give it as File(…).") from None
    except OSError as error:
        raise _unreadable(folder, error) from error


_MAKE = "Make it before the run; where a step makes it, let that step return File(path) and pass on the step."


def _check_kind(path: str, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise InitializationError(f"{printable(path)} is a folder. Give it as Tree(…).")
    if not stat.S_ISREG(status.st_mode):
        raise InitializationError(
            f"{printable(path)} is neither file nor folder, and has no content to identify it by. Pass it as a text."
        )


def _unreadable(path: str, error: OSError) -> InitializationError:
    if isinstance(error, FileNotFoundError):
        return InitializationError(f"{printable(path)} is not there. {_MAKE}")
    return InitializationError(
        f"{printable(path)} cannot be read ({error.strerror}). Have it made readable for this user."
    )


# ----- files that are returned


#: Paths of returned files to their numbers, while a result is encoded.
_returned: ContextVar[dict[str, int] | None] = ContextVar("ezpyp_returned", default=None)
#: Where the returned files are, by number, while a result is decoded.
_places: ContextVar[Sequence[str]] = ContextVar("ezpyp_places", default=())


@contextmanager
def returning() -> Iterator[dict[str, int]]:
    """Meanwhile every `File` that is pickled becomes a number; the dict fills with their paths."""
    found: dict[str, int] = {}
    token = _returned.set(found)
    try:
        yield found
    finally:
        _returned.reset(token)


@contextmanager
def placed(paths: Iterable[str]) -> Iterator[None]:
    """Meanwhile numbers that are unpickled become files at these paths."""
    token = _places.set([*paths])
    try:
        yield
    finally:
        _places.reset(token)


def returned_file(number: int) -> File:
    """What a returned file is in the pickle of a result. Only ezpyp knows where the file is."""
    places = _places.get()
    return File(places[number]) if number < len(places) else File(f"returned-file-{number}")


# ----- making values


def _set(value: Input, **fields: Any) -> None:
    for name, each in fields.items():
        object.__setattr__(value, name, each)


def _absolute(path: str | os.PathLike[str]) -> str:
    return os.path.abspath(os.path.expanduser(os.fsdecode(path)))


def _verify(word: Any) -> Any:
    if word not in ("changed", "always"):
        raise ValueError(f"verify={word!r}: choose 'changed' or 'always'")
    return word


def _file(path: str, given: str, verify: Verify) -> File:
    file = File(path, verify=verify)
    _set(file, given=given)
    return file


def _unpickled(kind: Callable[..., Any], given: str, verify: Verify, fields: dict[str, Any]) -> Any:
    value = kind(given, verify=verify)
    _set(value, **fields)
    return value
