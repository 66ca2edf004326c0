"""How long the steps of each function took in earlier runs of a folder, as their journals end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

from ezpyp.folder import events, shares

#: Journals that are looked at, the newest first; and how many bytes at the end of each. A run's last event is there.
_JOURNALS = 5
_TAIL = 1 << 18


def remembered(folder: str | os.PathLike[str], fact: str = "mean") -> dict[str, float]:
    """The seconds of a step of each function, from the newest run that tells of it. Reads no whole journal.

    A share also knows what the folder does that it is a share of. `fact` says which: "mean", "p95" or "longest".
    """
    found: dict[str, float] = {}
    folders = filter(None, (os.fspath(folder), shares.main_of(os.fspath(folder))))
    for path in chain.from_iterable(islice(events.journals(each).values(), _JOURNALS) for each in folders):
        for function, facts in _durations(path).items():
            with contextlib.suppress(TypeError, KeyError, ValueError):
                found.setdefault(function, float(facts[fact]))
    return found


def _durations(path: str) -> dict[str, Any]:
    for line in _last_lines(path):
        content = events.parse(line) if '"RunEnded"' in line else {}
        if content.get("event") == "RunEnded":
            durations = content.get("durations")
            return durations if isinstance(durations, dict) else {}
    return {}


def _last_lines(path: str) -> Iterator[str]:
    """The last lines, the last one first; one that is torn among them."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
        yield from reversed(file.read().decode(errors="replace").splitlines())
