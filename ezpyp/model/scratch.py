"""A folder of its own for a step: on node-local scratch, empty when the step starts, gone when it is done."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING, Any

from ezpyp.errors import EzpypError
from ezpyp.identity.contents import printable
from ezpyp.model.outputs import Outputs
from ezpyp.system.digests import blake2b
from ezpyp.system.offspring import is_alive
from ezpyp.tuples import NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

#: Where node-local scratch is said to be; /tmp where nothing says so.
_VARIABLES = ("SLURM_TMPDIR", "TMPDIR")


class Room(NamedTuple):
    """Where a step asked to run."""

    #: The folder in which the step's own one is made; "" for node-local scratch.
    scratch: str = ""
    #: A folder to run in instead of one of its own.
    cwd: str = ""
    #: Names and patterns of what it has to leave in its own folder, which is moved into the cache.
    outputs: tuple[str, ...] = ()

    @classmethod
    def of(cls, value: Any) -> Room | None:
        """What a user may write for `workdir=`: True, False, or the folder in which it is to be made."""
        if value is None or value is False:
            return None
        if value is True:
            return cls()
        if isinstance(value, (str, os.PathLike)):
            return cls(scratch=os.path.abspath(os.path.expanduser(os.fsdecode(value))))
        raise TypeError(f"workdir={value!r}: give True, or the folder in which each step's own is made")

    def leaving(self, patterns: tuple[str, ...]) -> Room:
        """The same, with what is to be left in it.

        Raises:
            ValueError: a pattern that leads out of the folder.
        """
        for pattern in patterns:
            if os.path.isabs(pattern) or ".." in pattern.split("/"):
                raise ValueError(
                    f"outputs= has '{printable(pattern)}': what a step leaves in its folder is named from there, as in "
                    "'out.nc' or 'plots/*.png'"
                )
        return Room(scratch=self.scratch, cwd=self.cwd, outputs=patterns)


class Place:
    """Where a step is at work."""

    def __init__(
        self, room: Room, *, name: str, stem: str, host: str, attempt: int, cache: str = "", log: str = ""
    ) -> None:
        """Make the folder of a step and go there.

        Raises:
            OSError: it cannot be made, or `cwd` is not there.
        """
        self.room, self.name = room, name
        #: The cache folder, and in it the file that gets what the step prints.
        self.cache, self.log = cache, log
        self._made = not room.cwd
        self.path = (
            make(room.scratch or node_local(), cache=cache, stem=stem, host=host, attempt=attempt)
            if self._made
            else room.cwd
        )
        #: Names in the folder that were put there for the step.
        self.given: set[str] = set()
        #: Where the process was before.
        self.before = os.getcwd()
        self._before = os.open(".", os.O_PATH | os.O_CLOEXEC)
        try:
            os.chdir(self.path)
        except OSError:
            os.close(self._before)
            raise

    @property
    def own(self) -> bool:
        """Whether nobody else uses the folder."""
        return self._made

    def outputs(self) -> dict[str, tuple[str, ...]]:
        """By pattern, the names of the files that it has to leave here, those in folders too.

        Raises:
            FileNotFoundError: something is not there; the text says what.
        """
        asked = Outputs(self.room.outputs, self.path)
        return {pattern: tuple(self._files_of(pattern, asked.find(pattern))) for pattern in self.room.outputs}

    def _files_of(self, pattern: str, names: list[str]) -> Iterator[str]:
        found = False
        for name in names:
            for each in _files(self.path, os.path.normpath(name)):
                if each not in self.given:
                    found = True
                    yield each
        if not found:
            raise FileNotFoundError(
                f"its output '{printable(pattern)}' is not there when it ends" + (" (an empty folder)" if names else "")
            )

    def kept(self) -> str:
        """Keep the folder after a failure, and say where it is; "" if nothing is in it."""
        if not self._made:
            return ""
        with contextlib.suppress(OSError):
            if os.listdir(self.path):
                self._made = False
                return f"Folder kept: {self.path}."
        return ""

    def leave(self) -> None:
        """Go back to where the process was, and remove the folder unless it is kept."""
        os.fchdir(self._before)
        os.close(self._before)
        if self._made:
            remove(self.path)


_here: Place | None = None


@contextlib.contextmanager
def at(place: Place) -> Iterator[None]:
    """For as long as the step runs that was given this place."""
    global _here
    former, _here = _here, place
    try:
        yield
    finally:
        _here = former
        place.leave()


def here() -> Place | None:
    """Where the step of this process is at work, None where it asked for no place."""
    return _here


def workdir() -> Path:
    """The folder of the step that runs here, which is its own: empty when it starts, gone when it is done.

    Raises:
        EzpypError: no step runs here, or it did not ask for one by `workdir=True`.
    """
    if _here is None or not _here.own:
        raise EzpypError(
            "There is no folder of a step here. Call ezpyp.workdir() inside a step whose decorator says workdir=True."
        )
    from pathlib import Path

    return Path(_here.path)


def node_local() -> str:
    """The folder of this node for what nobody else needs."""
    said = (os.environ.get(name, "") for name in _VARIABLES)
    return next((folder for folder in said if folder and os.path.isdir(folder)), "/tmp")


def make(scratch: str, *, cache: str, stem: str, host: str, attempt: int) -> str:
    """A new folder for one attempt of a step."""
    for path in _candidates(os.path.realpath(scratch), cache, stem, host, attempt, os.getpid()):
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:  # kept from a process that had the same id
            continue
        except FileNotFoundError:
            os.makedirs(scratch, exist_ok=True)
            os.mkdir(path, 0o700)
        return path
    raise AssertionError("the candidates have no end")


def left_behind(room: Room, *, cache: str, stem: str, host: str, attempt: int, pid: int) -> str:
    """The folder that a step of this host had in a process that is gone; "" if there is none."""
    found = ""
    for path in _candidates(room.scratch or node_local(), cache, stem, host, attempt, pid):
        if room.cwd or not os.path.isdir(path):
            break
        found = path
    return found


def abandoned(cache: str) -> list[str]:
    """Folders on the scratch of this node that steps of a cache folder left: they failed, or all was killed."""
    scratch, start = node_local(), f"{_owner(cache, os.uname().nodename)}."
    found = []
    with contextlib.suppress(OSError), os.scandir(scratch) as entries:
        for entry in entries:
            pid = entry.name.removeprefix(start).partition(".")[0]
            if entry.name.startswith(start) and pid.isdecimal() and entry.is_dir(follow_symlinks=False):
                is_mine = entry.stat(follow_symlinks=False).st_uid == os.geteuid()
                found += [entry.path] if is_mine and not is_alive(int(pid)) else []
    return sorted(found)


def _candidates(scratch: str, cache: str, stem: str, host: str, attempt: int, pid: int) -> Iterator[str]:
    """Names for a folder, which say whose it is: hosts may share the scratch, and a folder may outlive its process."""
    name = f"{_owner(cache, host)}.{pid}.{attempt}.{_readable(stem)[:80]}"
    yield f"{scratch}/{name}"
    for number in count(2):
        yield f"{scratch}/{name}.{number}"


def _owner(cache: str, host: str) -> str:
    """How the names of all folders begin that steps of a cache folder have on a host."""
    return f"ezpyp.{blake2b(os.fsencode(os.path.realpath(cache)), digest_size=4).hexdigest()}.{_readable(host)[:64]}"


def _readable(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_+=,.-]+", "_", text).strip("_")


def remove(path: str) -> None:
    """Remove a folder with all that is in it, as far as that is allowed. "" is none."""
    if not path:
        return
    with contextlib.suppress(OSError):
        os.rmdir(path)  # nearly always there is nothing left in it
        return
    import shutil

    for folder, names, _ in os.walk(path):
        for inner in (os.path.join(folder, name) for name in names):
            with contextlib.suppress(OSError):
                if not os.path.islink(inner):  # what it leads to is not the step's
                    os.chmod(inner, stat.S_IRWXU)
    shutil.rmtree(path, ignore_errors=True)


def _files(folder: str, name: str) -> Iterator[str]:
    """The name itself, or the names of all files below it."""
    path = os.path.join(folder, name)
    if not os.path.isdir(path) or os.path.islink(path):
        yield name
        return
    for entry in sorted(os.listdir(path)):
        yield from _files(folder, os.path.normpath(os.path.join(name, entry)))
