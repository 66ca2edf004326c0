"""Files and folders that steps read, as values: they count by base name and content, not by where they lie."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import Any, overload
from zlib import crc32

from ezpyp.errors import InitializationError
from ezpyp.identity import fingerprint
from ezpyp.identity.contents import MAKE, Contents, Verify, printable, unreadable


class Input:
    """What a step reads: a frozen value that only rank 0 looks at, once a run.

    Attributes:
        verify: how it is looked at.
        given: as the user wrote it, which is not part of the value.
    """

    __slots__ = ("given", "verify")
    given: str
    verify: Verify

    def __init__(self, **fields: Any) -> None:
        for name, each in fields.items():
            object.__setattr__(self, name, each)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{self!r} is a value and stays as it is: make another {type(self).__name__}")

    def __delattr__(self, name: str) -> None:
        self.__setattr__(name, None)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.text == other.text and self.verify == other.verify

    def __hash__(self) -> int:
        return crc32(self.text)  # the same in every process: so is the order of a set

    @property
    def label(self) -> str:
        """What messages call it."""
        raise NotImplementedError

    @property
    def text(self) -> bytes:
        """What tells it from other inputs without a look at the disk."""
        raise NotImplementedError

    def pieces(self, contents: Contents) -> Iterator[tuple[str, str, str]]:
        """(kind, name, content) of everything in it.

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


class _Place(Input, os.PathLike[str]):
    """What lies at one place: it can be opened as it is, and counts by its name without the folders above."""

    __slots__ = ("path",)
    #: Absolute.
    path: str

    def __init__(self, path: str | os.PathLike[str], *, verify: Verify = "changed") -> None:
        super().__init__(given=os.fsdecode(path), path=_absolute(path), verify=_verify(verify))

    @property
    def name(self) -> str:
        """The name without the folders above."""
        return os.path.basename(self.path)

    @property
    def label(self) -> str:
        return printable(self.name)

    def __fspath__(self) -> str:
        return self.path

    def __str__(self) -> str:
        return self.path


class File(_Place):
    """A file that a step reads, or returns.

    As an argument or in `inputs=` it counts by its name without the folder, and by its content; the step can open it as
    it is. Returned by a step it is moved into the cache, and who takes the result gets it with its place there.

    Args:
        path: relative to the working directory, `~` works.
        verify: "always" reads it in every run, whatever its times say.
    """

    __slots__ = ()

    @property
    def text(self) -> bytes:
        return b"file " + os.fsencode(self.path)

    def pieces(self, contents: Contents) -> Iterator[tuple[str, str, str]]:
        yield "file", self.name, contents.digest(self.path, verify=self.verify)

    def __lt__(self, other: File) -> bool:
        return self.path < other.path

    def __reduce__(self) -> tuple[Any, ...]:
        returned = _returned.get()
        if returned is not None:
            return returned_file, (returned.setdefault(self.path, len(returned)),)
        return _file, (self.path, self.given, self.verify)


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

    def __init__(self, pattern: str | os.PathLike[str], *, verify: Verify = "changed") -> None:
        given = os.fsdecode(pattern)
        super().__init__(given=given, pattern=os.path.expanduser(given), folder=os.getcwd(), verify=_verify(verify))

    @property
    def label(self) -> str:
        return printable(self.given)

    @property
    def text(self) -> bytes:
        return b"files " + os.fsencode(f"{self.folder}\0{self.pattern}")

    def found(self) -> dict[str, File]:
        """Names, from where the pattern begins, to the files that are there now."""
        import glob

        start = os.path.dirname(self.pattern)
        while glob.has_magic(start):
            start = os.path.dirname(start)
        found = {}
        for match in sorted(glob.glob(self.pattern, root_dir=self.folder, recursive=True)):
            path = os.path.join(self.folder, match)
            if os.path.isfile(path):
                found[os.path.relpath(match, start or ".")] = _file(os.path.normpath(path), match, self.verify)
        return found

    def pieces(self, contents: Contents) -> Iterator[tuple[str, str, str]]:
        found = self.found()
        if not found:
            raise InitializationError(f"no file in {printable(self.folder)} fits that. {MAKE}")
        for name, file in found.items():
            yield "file", name, contents.digest(file.path, verify=self.verify)

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

    def __reduce__(self) -> tuple[Any, ...]:
        _check_not_returned()
        return _unpickled, (Files, self.given, self.verify, {"folder": self.folder, "pattern": self.pattern})


class Tree(_Place):
    """A folder with all that is in it (zarr, a mesh, a model): by its name, and the names and contents inside.

    Symbolic links inside count by what they say, and are not followed. Empty folders count.

    Args:
        path: relative to the working directory, `~` works.
        verify: "always" reads everything in every run, whatever the times say.
    """

    __slots__ = ()

    @property
    def text(self) -> bytes:
        return b"tree " + os.fsencode(self.path)

    def pieces(self, contents: Contents) -> Iterator[tuple[str, str, str]]:
        yield "tree", self.name, ""
        waiting = [""]
        while waiting:
            folder = waiting.pop()
            for entry in _entries(os.path.join(self.path, folder) if folder else self.path):
                name = os.path.join(folder, entry.name)
                if entry.is_symlink():
                    yield "link", name, os.readlink(entry.path)
                elif entry.is_dir():
                    yield "folder", name, ""
                    waiting.append(name)
                else:
                    yield "file", name, contents.digest(entry.path, verify=self.verify)

    def __reduce__(self) -> tuple[Any, ...]:
        _check_not_returned()
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
            found.append(Files(each) if _is_pattern(each) else File(each))
        else:
            raise TypeError(f"inputs= holds {each!r}: give paths, patterns, File(…), Files(…) or Tree(…)")
    return tuple(found)


def _is_pattern(path: str | os.PathLike[str]) -> bool:
    from glob import has_magic

    return has_magic(os.fsdecode(path))


# ----- looking at them


class Seen:
    """What an input was found to be. Of inputs that hold several files, `members` has names to contents."""

    def __init__(self, label: str, digest: bytes, members: Mapping[str, str]) -> None:
        self.label, self.digest, self.members = label, digest, members


class Memory:
    """What inputs are now, as far as it was asked: each is looked at once. One is made for one run."""

    def __init__(self, folder: str | None = None) -> None:
        """`folder` is the cache folder that keeps what is known of files."""
        self.contents = Contents(folder)
        #: Inputs that code leads to, and why they could not be looked at.
        self.missed: list[tuple[Input, InitializationError]] = []
        self._seen: dict[Input, Seen] = {}

    def look(self, thing: Input) -> Seen:
        """What an input is now.

        Raises:
            InitializationError: it is not there or cannot be read; the text says what to do.
        """
        seen = self._seen.get(thing)
        if seen is None:
            pieces = list(thing.pieces(self.contents))
            parts = (part.encode("utf-8", "surrogateescape") for piece in pieces for part in piece)
            digest = bytes.fromhex(fingerprint.combine(*parts))
            members = {} if isinstance(thing, File) else {printable(n): c or k for k, n, c in pieces if k != "tree"}
            seen = self._seen[thing] = Seen(label=thing.label, digest=digest, members=members)
        return seen

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Meanwhile inputs that code leads to are looked at here."""
        token = _active.set(self)
        try:
            yield
        finally:
            _active.reset(token)


#: Asked by inputs that code leads to, while a plan is identified.
_active: ContextVar[Memory | None] = ContextVar("ezpyp_inputs", default=None)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except NotADirectoryError:
        raise InitializationError(f"{printable(folder)} is no folder. Give it as File(…).") from None
    except OSError as error:
        raise unreadable(folder, error) from error


# ----- files that are returned


#: Paths of returned files to their numbers, while a result is encoded.
_returned: ContextVar[dict[str, int] | None] = ContextVar("ezpyp_returned", default=None)
#: Where the returned files are while a result is decoded: a folder, and places in it by number.
_places: ContextVar[tuple[str, Sequence[str]]] = ContextVar("ezpyp_places", default=("", ()))


class Returning:
    """Meanwhile every `File` that is pickled becomes a number; the dict fills with their paths."""

    __slots__ = ("_token",)

    def __enter__(self) -> dict[str, int]:
        found: dict[str, int] = {}
        self._token = _returned.set(found)
        return found

    def __exit__(self, *_: object) -> None:
        _returned.reset(self._token)


@contextmanager
def placed(folder: str, places: Sequence[str]) -> Iterator[None]:
    """Meanwhile numbers that are unpickled become files at these places in a folder."""
    token = _places.set((folder, places))
    try:
        yield
    finally:
        _places.reset(token)


def _check_not_returned() -> None:
    if _returned.get() is not None:
        raise TypeError("only single files are moved into the cache: return File(path), or several in a list")


def returned_file(number: int) -> File:
    """What a returned file is in the pickle of a result. Only ezpyp knows where the file is."""
    folder, places = _places.get()
    place = places[number] if number < len(places) else f"returned-file-{number}"
    return _file(os.path.join(folder, place), place, "changed")


# ----- making values


def _absolute(path: str | os.PathLike[str]) -> str:
    return os.path.abspath(os.path.expanduser(os.fsdecode(path)))


def _verify(word: Any) -> Any:
    if word not in ("changed", "always"):
        raise ValueError(f"verify={word!r}: choose 'changed' or 'always'")
    return word


def _file(path: str, given: str, verify: Verify) -> File:
    file: File = _unpickled(File, given, verify, {"path": path})
    return file


def _unpickled(kind: type[Input], given: str, verify: Verify, fields: dict[str, Any]) -> Any:
    value = kind.__new__(kind)
    Input.__init__(value, given=given, verify=verify, **fields)
    return value
