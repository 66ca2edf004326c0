"""The argument list of a program: what may stand in it, and how each thing is written."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any
from zlib import crc32

from ezpyp.errors import CommandFailed, InitializationError, LauncherError
from ezpyp.identity.contents import Contents, Verify, printable
from ezpyp.identity.inputs import File, Files, Input, Tree
from ezpyp.identity.outline import shorten
from ezpyp.model.arguments import Deferred
from ezpyp.model.outcomes import Failed
from ezpyp.programs import surroundings
from ezpyp.scripts.loading import main_script
from ezpyp.system import launch


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Executable(Input):
    """The program of a command: counts by its name without the folder, and by its content, unless it is not tracked."""

    #: As the user wrote it: a name to be found on PATH, or a path relative to `folder`.
    given: str
    folder: str
    #: The PATH on which it is found, "" for that of the process.
    search: str = ""
    setup: tuple[str, ...] = ()
    track: bool = True
    verify: Verify = field(default="changed", compare=False)

    @property
    def label(self) -> str:
        return printable(os.path.basename(self.given))

    @property
    def text(self) -> bytes:
        return b"program " + os.fsencode("\0".join((self.given, self.folder, self.search, *self.setup)))

    def __repr__(self) -> str:
        return repr(self.given)

    def __hash__(self) -> int:
        return crc32(self.text)

    def pieces(self, contents: Contents) -> Iterator[tuple[str, str, str]]:
        environ = surroundings.difference(self.setup).applied(os.environ)
        path = self.find(self.search or environ.get("PATH", os.defpath))
        if path is None:
            where = self.folder if "/" in self.given else "any folder of its PATH"
            raise InitializationError(
                f"there is no program {printable(self.given)} in {printable(where)}. Build or install it first, load "
                "its module with setup=, or let a step make it and put that step in its place."
            )
        if not os.access(path, os.X_OK):
            raise InitializationError(
                f"{printable(self.given)} may not be run: it is not executable. chmod +x {shlex.quote(self.given)}, "
                "or name its interpreter first, as in ['python3', …]."
            )
        yield "program", os.path.basename(self.given), contents.digest(path) if self.track else ""

    def find(self, search: str) -> str | None:
        """The path of the program, None where there is none."""
        if "/" in self.given:
            path = os.path.join(self.folder, os.path.expanduser(self.given))
            return path if os.path.isfile(path) else None
        return _on_path(self.given, search)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class RankLauncher(Input):
    """What starts a program on several ranks: it has to be there, and does not count."""

    ranks: int
    nodes: int
    search: str = ""
    setup: tuple[str, ...] = ()
    given: str = "mpirun"
    verify: Verify = field(default="changed", compare=False)

    @property
    def label(self) -> str:
        return self.given

    @property
    def text(self) -> bytes:
        return b"launcher"

    def __repr__(self) -> str:
        return self.given

    def __hash__(self) -> int:
        return crc32(self.text)

    def pieces(self, contents: Contents) -> Iterator[tuple[str, str, str]]:
        environ = surroundings.difference(self.setup).applied(os.environ)
        if self.search:
            environ["PATH"] = self.search
        try:
            launch.check_ranks(self.ranks, self.nodes, environ)
        except LauncherError as error:
            raise InitializationError(str(error)) from None
        yield "launcher", self.given, ""


@cache
def _on_path(name: str, search: str) -> str | None:
    return shutil.which(name, path=search)


@dataclass(frozen=True, slots=True)
class Output:
    """One of the files that a command leaves, for the argument list of another: `Output(sim, "restart.nc")`."""

    step: Any
    name: str

    def __repr__(self) -> str:
        return f"{self.name} of {self.step!r}"

    def __fspath__(self) -> str:
        path: str = os.fspath(self.step[self.name])
        return path


#: What a step looks like inside a text, where its result was meant.
_STEP_IN_TEXT = re.compile(r" Step Object '|\bTMP for ")


def script_folder() -> str:
    """What relative paths of a command refer to: its steps run elsewhere."""
    script = main_script()
    return os.path.dirname(script) if script else os.getcwd()


def rooted(value: Any, folder: str) -> Any:
    """The same with relative files taken from this folder, in lists, tuples and dicts too."""
    if isinstance(value, (File, Tree)):
        path = os.path.expanduser(value.given)
        return value if os.path.isabs(path) else type(value)(os.path.join(folder, path), verify=value.verify)
    if isinstance(value, Files):
        path = os.path.expanduser(value.given)
        return value if os.path.isabs(path) else Files(os.path.join(folder, path), verify=value.verify)
    if type(value) in (list, tuple):
        return type(value)(rooted(each, folder) for each in value)
    if type(value) is dict:
        return {key: rooted(each, folder) for key, each in value.items()}
    return value


def check(value: Any, of: str) -> None:
    """Refuse at the call what could not be written later.

    Raises:
        TypeError: with what it is and what to give.
    """
    if isinstance(value, str) and _STEP_IN_TEXT.search(value):
        raise TypeError(
            f"{shorten(value)} in the command '{of}' holds a step inside a text. Put the step into the list by itself; "
            "a tuple becomes one argument: ('--mesh=', step)."
        )
    if isinstance(value, (list, tuple)):
        for each in value:
            check(each, of)
    elif not isinstance(value, (Deferred, Output)):
        try:
            _text(value)
        except TypeError as error:
            raise TypeError(f"The command '{of}' has {error}") from None


def written(words: Sequence[Any]) -> list[str]:
    """The arguments as texts: a tuple makes one, a list as many as it holds. Failed ones of a list are left out.

    Raises:
        CommandFailed: one cannot be written; the text says which.
    """
    found: list[str] = []
    for place, word in enumerate(words):
        try:
            found += _texts(word)
        except (TypeError, LookupError) as error:
            raise CommandFailed(f"its argument {place} is {error}", cause="input") from None
    return found


def line(words: str | Sequence[Any]) -> str:
    """A line for a shell: texts as they are, everything else as one argument or several."""
    if isinstance(words, str):
        return words
    return " ".join(word if isinstance(word, str) else shlex.join(written([word])) for word in words)


def _texts(word: Any) -> list[str]:
    if isinstance(word, tuple):
        return ["".join(text for part in word for text in _texts(part))]
    if isinstance(word, (list, Files)):
        return [text for part in word if not isinstance(part, Failed) for text in _texts(part)]
    return [_text(word)]


def _text(word: Any) -> str:
    if isinstance(word, (str, bytes, os.PathLike)):
        return _encodable(os.fsdecode(word))
    if isinstance(word, Executable):
        return word.given
    if getattr(word, "shape", None) == () and hasattr(word, "item"):
        word = word.item()  # a scalar of numpy
    if isinstance(word, (bool, int, float)):
        return str(word)
    if isinstance(word, Failed):
        raise TypeError(f"the result of '{word.name}', which failed")
    raise TypeError(
        f"{shorten(word)}, which cannot be written as text: give texts, numbers, paths, File(…), steps, lists of them"
    )


def _encodable(text: str) -> str:
    """The same text, if a program can be given it."""
    try:
        if b"\0" not in os.fsencode(text):
            return text
        why = "a zero byte"
    except UnicodeEncodeError:
        why = "a character that the encoding of file names does not have"
    raise TypeError(f"{shorten(text)}, which has {why}: put it into a file and give File(…)")


def linked(links: Mapping[str, Any]) -> list[str]:
    """Put links to files into the working directory, under the names that the user chose; all the names.

    Raises:
        CommandFailed: a name is taken, or a value is no file.
    """
    found = []
    for name, value in links.items():
        targets = {name: value}
        if isinstance(value, Files):
            targets = {f"{name}/{inner}": file for inner, file in value.found().items()}
        for each, target in targets.items():
            try:
                if folder := os.path.dirname(each):
                    os.makedirs(folder, exist_ok=True)
                os.symlink(os.path.abspath(os.fspath(target)), each)
            except (OSError, TypeError, LookupError) as error:
                raise CommandFailed(
                    f"its input '{printable(each)}' cannot be linked in: {error}", cause="input"
                ) from None
            found.append(each)
    return found
