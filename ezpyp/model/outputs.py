"""Files that steps leave beside their results: those that they return, moved into the cache, and those of `outputs=`.

A returned file becomes `files/STEM/NAME` in the cache folder; the record of its step has its place, size and checksum.
Declared outputs stay where they are; the record has their sizes, times and digests.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from ezpyp.errors import InitializationError, StoreError
from ezpyp.identity.contents import content_of, printable
from ezpyp.identity.inputs import File, Files, Input, Memory, Tree
from ezpyp.system.files import sync_files, write_whole
from ezpyp.tuples import NamedTuple

#: A returned file: its place in the cache folder, size and checksum.
Kept = tuple[str, int, str]
#: A declared output: its pattern, name, size, times of modification and change, and digest.
Left = tuple[str, str, int, int, int, str]

FOLDER = "files"
_PIECE = 1 << 20
#: Nanoseconds by which the times of files lag behind the clock: the tick of a slow kernel (HZ=100), twice.
_TICK = 20_000_000


# ----- declared


class Outputs(NamedTuple):
    """Names and patterns of what a step has to leave, relative to a folder."""

    patterns: tuple[str, ...] = ()
    folder: str = ""

    @classmethod
    def of(cls, value: Any) -> Outputs:
        """What a user may write for `outputs=`: paths and patterns, relative to the working directory."""
        if isinstance(value, (str, os.PathLike)):
            value = [value]
        if not isinstance(value or (), (list, tuple)) or not all(
            isinstance(e, (str, os.PathLike)) for e in value or ()
        ):
            raise TypeError(f"outputs={value!r}: give paths or patterns")
        given = (each.given if isinstance(each, (File, Tree)) else os.fsdecode(each) for each in value or ())
        return cls(tuple(map(os.path.expanduser, given)), os.getcwd())

    def find(self, pattern: str) -> list[str]:
        """The names that are there now."""
        if os.path.lexists(os.path.join(self.folder, pattern)):
            return [pattern]
        import glob

        return sorted(glob.glob(pattern, root_dir=self.folder, recursive=True)) if glob.has_magic(pattern) else []

    def path(self, name: str) -> str:
        return os.path.normpath(os.path.join(self.folder, name))


def left(outputs: Outputs) -> tuple[Left, ...]:
    """What a step left of what it has to; reads all of it.

    Raises:
        FileNotFoundError: something is not there; the text says what.
    """
    memory, found = Memory(), []
    for pattern in outputs.patterns:
        names = outputs.find(pattern)
        if not names:
            raise FileNotFoundError(
                f"its output '{printable(pattern)}' is not there when it ends: it has to be {outputs.path(pattern)}"
            )
        found += [
            (pattern, name, *_signature(outputs.path(name)), _digest(outputs.path(name), memory)) for name in names
        ]
    return tuple(found)


def lost(outputs: Outputs, recorded: Sequence[Left], memory: Memory) -> str:
    """Which of a step's outputs is not as the step left it: `output model.bin is gone`; "" if all are."""
    known = {each[0] for each in recorded}
    for pattern in outputs.patterns:
        if pattern not in known:
            return f"output {printable(pattern)} was not asked for before"
    for pattern, name, *signature, digest in recorded:
        if pattern not in outputs.patterns:
            continue
        path = outputs.path(name)
        try:
            now = _signature(path)
            if (now == _OPEN or now != tuple(signature)) and _digest(path, memory) != digest:
                return f"output {printable(name)} changed"
        except FileNotFoundError:
            return f"output {printable(name)} is gone"
        except (OSError, InitializationError) as error:
            return f"output {printable(name)} cannot be read ({error})"
    return ""


def _signature(path: str) -> tuple[int, int, int]:
    """Size and times; nothing of a folder, whose own times do not say what is in it."""
    now = os.stat(path)
    if stat.S_ISDIR(now.st_mode):
        return _OPEN
    return now.st_size, now.st_mtime_ns, now.st_ctime_ns


_OPEN = (-1, 0, 0)


def _digest(path: str, memory: Memory) -> str:
    return memory.look(Tree(path)).digest.hex() if os.path.isdir(path) else memory.contents.digest(path)


# ----- returned


def keep(
    paths: Iterable[str],
    folder: str,
    stem: str,
    *,
    inputs: Sequence[Input] = (),
    since: float = 0.0,
    base: str = "",
) -> tuple[Kept, ...]:
    """Move files that a step returned into the cache folder, in the order of `paths`. Lasting when this returns.

    Of those below `base`, the step's own folder, the names from there on are kept, and they stay together.

    What the step did not make is copied: its inputs, results of other steps, and whatever has not changed since it
    began. Nothing in the cache is replaced: two files of a name get folders of their own.

    Raises:
        FileNotFoundError, IsADirectoryError: one is no file; the text says which. None was moved.
        StoreError, OSError: the cache folder cannot be written; all are where they were.
    """
    listed = [*paths]
    together = {path: os.path.relpath(path, base) for path in listed if base and path.startswith(f"{base}/")}
    for path in listed:
        _check(path, together.get(path))
    found, taken = [], list[_Taken]()
    room = room_for(together.values(), folder, stem)
    try:
        for path in listed:
            place = f"{room}/{together[path]}" if path in together else _free(folder, stem, os.path.basename(path))
            # A link is only a name: what it points to may be anybody's.
            mine = not (os.path.islink(path) or _is_older(path, since) or _is_input(path, inputs))
            taken.append(_Taken(path, place, mine=mine))
            taken[-1].take(folder)
            found.append((place, os.stat(f"{folder}/{place}").st_size, content_of(f"{folder}/{place}")))
    except BaseException:
        for each in reversed(taken):
            each.give_back(folder)
        raise
    for each in taken:
        if each.mine:
            with suppress(OSError):
                os.unlink(each.path)
    return tuple(found)


def misfit(folder: str, kept: Iterable[Kept]) -> str:
    """Which returned file is gone or torn, or ""."""
    for place, size, _ in kept:
        try:
            now = os.stat(f"{folder}/{place}").st_size
        except OSError as error:
            return f"its file {printable(place)} is gone ({error.strerror})"
        if now != size:
            return f"its file {printable(place)} is torn: {now:,} bytes instead of {size:,}"
    return ""


def discard(folder: str, kept: Iterable[Kept]) -> None:
    """Remove returned files whose record is gone, and folders that this empties."""
    for place, *_ in kept:
        with suppress(OSError):
            os.unlink(f"{folder}/{place}")
        with suppress(OSError):
            while (place := os.path.dirname(place)) not in ("", FOLDER):
                os.rmdir(f"{folder}/{place}")


def _check(path: str, name: str | None) -> None:
    """Refuse what cannot be kept. `name` is that of an output in the step's own folder, None of a returned file."""
    try:
        kind = os.stat(path).st_mode
    except FileNotFoundError:
        if name is None:
            raise FileNotFoundError(f"it returned File({path!r}), which is not there") from None
        raise FileNotFoundError(
            f"its output '{printable(name)}' is a link to {printable(os.readlink(path))}, which is not there"
        ) from None
    if stat.S_ISREG(kind):
        return
    if name is None:
        raise IsADirectoryError(f"it returned File({path!r}), which is no file. Return the files in it, or pack them")
    what = "a link to a folder: name the folder" if stat.S_ISDIR(kind) else "no file, but a pipe, socket or device"
    raise IsADirectoryError(f"its output '{printable(name)}' is {what}")


def room_for(names: Collection[str], folder: str, stem: str) -> str:
    """A folder for files of a step, relative to the cache folder, in which none of the names is taken."""
    room, number = f"{FOLDER}/{stem}", 1
    while any(os.path.lexists(f"{folder}/{room}/{name}") for name in names):
        number += 1
        room = f"{FOLDER}/{stem}/{number}"
    return room


def _free(folder: str, stem: str, name: str) -> str:
    place, number = f"{FOLDER}/{stem}/{name}", 1
    while os.path.lexists(f"{folder}/{place}"):
        number += 1
        place = f"{FOLDER}/{stem}/{number}/{name}"
    return place


def _is_older(path: str, since: float) -> bool:
    return os.stat(path).st_ctime_ns < since * 1e9 - _TICK


def _is_input(path: str, inputs: Sequence[Input]) -> bool:
    real = os.path.realpath(path)
    for each in inputs:
        paths = [file.path for file in each.found().values()] if isinstance(each, Files) else [str(each)]
        for known in map(os.path.realpath, paths):
            if real == known or real.startswith(f"{known}/"):
                return True
    return False


class _Taken:
    """A file on its way to its place in the cache folder."""

    def __init__(self, path: str, place: str, *, mine: bool) -> None:
        self.path, self.place = path, place
        #: Whether the step made it, and it is still to be removed where it was.
        self.mine = mine
        self.is_moved = False

    def take(self, folder: str) -> None:
        """Put it at its place, whole, by the cheapest way that is safe."""
        path, target = self.path, f"{folder}/{self.place}"
        try:
            os.makedirs(os.path.dirname(target), exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"{os.path.dirname(target)} cannot be made ({error.strerror}). Look at the disk."
            ) from error
        if os.path.realpath(path).startswith(f"{os.path.realpath(folder)}/{FOLDER}/"):
            self.mine = False
            if _done(os.link, os.path.realpath(path), target):
                return
        elif self.mine and _done(os.rename, path, target):
            self.mine, self.is_moved = False, True
            _open_up(target)
            sync_files([target], os.path.dirname(target))
            return
        if self.mine:
            _open_up(path)  # what its program may not read, we may not either
        write_whole(target, _pieces(path), sync=True)  # another file system, or one that does not link
        if (mode := os.stat(path).st_mode) & 0o111:
            _open_up(target, mode & 0o111)

    def give_back(self, folder: str) -> None:
        """Leave nothing at its place."""
        if not self.is_moved or _done(os.rename, f"{folder}/{self.place}", self.path):
            discard(folder, [(self.place, 0, "")])


def _done(change: Callable[[str, str], None], path: str, target: str) -> bool:
    try:
        change(path, target)
    except OSError:
        return False
    return True


def _open_up(path: str, more: int = 0) -> None:
    """As any new file: what was made by `tempfile` is for its owner alone. `more` is what a program needs."""
    mask = os.umask(0o077)
    os.umask(mask)
    mode = os.stat(path).st_mode
    with suppress(OSError):
        os.chmod(path, stat.S_IMODE(mode) | more | (0o666 & ~mask))


def _pieces(path: str) -> Iterator[bytes]:
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(_PIECE):
            yield piece
