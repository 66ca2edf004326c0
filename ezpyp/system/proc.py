"""What Linux tells in files: of a process, by proc(5), and of the machine."""

from __future__ import annotations

import os
import time

from ezpyp.tuples import NamedTuple


def told(path: str) -> str:
    """What one of these files says; "" where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""


class Process(NamedTuple):
    """A process, when it was looked at."""

    name: str
    #: A letter: Z for one that has ended and was not waited for.
    state: str
    parent: int
    #: When it started, in ticks since the machine did: with its number, what tells it from all others.
    ticks: int

    @property
    def is_alive(self) -> bool:
        return self.state not in "ZX"

    @property
    def age(self) -> float:
        """The seconds since it started."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self.ticks / os.sysconf("SC_CLK_TCK")


def look(pid: int | str = "self") -> Process | None:
    """The process of that number; None where there is none, or it cannot be read."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            name, _, rest = file.read().partition("(")[2].rpartition(")")
        fields = rest.split()
        return Process(name, fields[0], int(fields[1]), int(fields[19]))
    except (OSError, ValueError, IndexError):
        return None
