"""How far running programs are: told by lines that they write, noted in `logs/` for whoever looks.

One small file a helper, written over in place at most once a second: no helper waits for anyone, and nobody is told who
does not ask.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from typing import Any

from ezpyp.model.scratch import Place
from ezpyp.tuples import NamedTuple

SUFFIX = ".progress"
_EVERY = 1.0
_SIZE = 512
_LONGEST_LINE = 4096
_LINES = re.compile(rb"[\r\n]+")


class Position(NamedTuple):
    """How far a step is: `done` of `total`, which is None where the program does not say."""

    name: str
    done: float
    total: float | None
    when: float

    def __str__(self) -> str:
        if not self.total:
            return f"{self.done:g}"
        return f"{self.done:g} of {self.total:g} ({100 * self.done / self.total:.0f} %)"


class Meter:
    """Reads what a program writes, and notes how far it is."""

    def __init__(self, pattern: str, name: str, path: str) -> None:
        self._pattern, self._name, self._path = re.compile(pattern.encode()), name, path
        self._rest, self._file, self._noted = b"", -1, 0.0
        #: What was read and not noted.
        self._latest: re.Match[bytes] | None = None

    @classmethod
    def of(cls, pattern: str, place: Place) -> Meter | None:
        """For the step at a place; None where there is no pattern, or no log to be beside of."""
        if not pattern or not place.log:
            return None
        return cls(pattern, place.name, os.path.join(place.cache, place.log.removesuffix(".log") + SUFFIX))

    def read(self, piece: bytes) -> None:
        """What the program wrote next."""
        *lines, self._rest = _LINES.split(self._rest + piece)
        self._rest = self._rest[-_LONGEST_LINE:]
        found = next((each for line in reversed(lines) if (each := self._pattern.search(line))), None)
        if found is not None:
            self._latest = found
            self.idle()

    def idle(self) -> None:
        """Note what is new, if a second has gone by since the last note."""
        now = time.monotonic()
        if self._latest is None or now - self._noted < _EVERY:
            return
        groups, self._latest, self._noted = self._latest.groups(), None, now
        with contextlib.suppress(OSError, ValueError):
            self._note(*(float(each) for each in groups if each is not None))

    def close(self) -> None:
        """It has ended."""
        if self._file >= 0:
            os.close(self._file)
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    def _note(self, done: float, total: float | None = None) -> None:
        if self._file < 0:
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        text = json.dumps({"name": self._name, "done": done, "total": total, "when": time.time()})
        os.pwrite(self._file, text.encode()[: _SIZE - 1].ljust(_SIZE - 1) + b"\n", 0)


def positions(folder: str | os.PathLike[str], run: str) -> dict[str, Position]:
    """By name, how far the steps of a run are that tell."""
    logs, names = os.path.join(folder, "logs"), list[str]()
    with contextlib.suppress(OSError):
        names = [name for name in os.listdir(logs) if name.startswith(f"{run}.") and name.endswith(SUFFIX)]
    return {each.name: each for name in names for each in _position(f"{logs}/{name}")}


def _position(path: str) -> Iterator[Position]:
    """Nothing where it is torn, or gone meanwhile."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError), open(path, encoding="utf-8") as file:
        content: dict[str, Any] = json.load(file)
        total = content["total"]
        yield Position(
            name=str(content["name"]),
            done=float(content["done"]),
            total=None if total is None else float(total),
            when=float(content["when"]),
        )
