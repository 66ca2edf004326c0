"""Remove what ezpyp wrote into a cache folder, and nothing else."""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING

from ezpyp.contents import MEMORY_FILE
from ezpyp.files import is_temporary
from ezpyp.naming import SCHEMA_FILE, SUMMARY_FILE
from ezpyp.store import SHELF, open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ezpyp.runs import Run

_OF_STEP = re.compile(r"(.+)\.(?:status|partial|step(?:\.\w+)?)", re.DOTALL)
_OF_RUN = (SUMMARY_FILE, MEMORY_FILE, "report.html")
#: Of a lock, and of what takes it over.
_LOCK = ".lock"
_FOLDERS = ("journal", "logs", SHELF)


def files(run: Run) -> list[str]:
    """Every file in a cache folder that ezpyp wrote; the schema last, so that what was begun can be done again."""
    # A stem is ours by the plan, or by a record, as those of former plans.
    records = open_store("files", run.folder).records().records
    stems = {entry.stem for entry in run.entries} | set(records)
    return [
        *(f"{run.folder}/{place}" for record in records.values() for place, *_ in record.outcome.files),
        *_of_steps(run.folder, "", stems),
        *_of_steps(run.folder, SHELF, stems),
        *_plain(run.folder, lambda name: name in _OF_RUN or name.startswith(_LOCK)),
        *_plain(f"{run.folder}/journal", lambda name: name.endswith(".jsonl")),
        *_plain(f"{run.folder}/logs", lambda name: name.endswith(".log")),
        f"{run.folder}/{SCHEMA_FILE}",
    ]


def remove(folder: str, paths: Sequence[str]) -> None:
    """Remove these files of a cache folder, and the folders that this empties."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
    emptied = {f"{folder}/{each}" for each in ("", *_FOLDERS)}
    for path in paths:
        while len(path := os.path.dirname(path)) > len(folder):
            emptied.add(path)
    for each in sorted(emptied, key=len, reverse=True):
        with contextlib.suppress(OSError):
            os.rmdir(each)


def _of_steps(folder: str, shelf: str, stems: set[str]) -> Iterator[str]:
    for name in _names(f"{folder}/{shelf}"):
        of_step = _OF_STEP.fullmatch(name)
        if is_temporary(name) or (of_step and f"{shelf}{of_step[1]}" in stems):
            yield f"{folder}/{shelf}{name}"


def _plain(folder: str, wanted: Callable[[str], bool]) -> Iterator[str]:
    return (f"{folder}/{name}" for name in _names(folder) if wanted(name) and os.path.isfile(f"{folder}/{name}"))


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
