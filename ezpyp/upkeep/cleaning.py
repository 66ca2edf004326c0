"""Which files of a cache folder are whose, and how to remove what ezpyp wrote, and nothing else."""

from __future__ import annotations

import contextlib
import os
import re
from typing import TYPE_CHECKING

from ezpyp.folder import runs, shares
from ezpyp.identity.contents import MEMORY_FILE
from ezpyp.model.naming import SCHEMA_FILE, STORE_FOLDER, SUMMARY_FILE
from ezpyp.model.outcomes import Status
from ezpyp.storage.names import files_of
from ezpyp.storage.opening import SHELF, open_store
from ezpyp.system.files import is_temporary
from ezpyp.work import checkpoints

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from ezpyp.folder.runs import Run
    from ezpyp.storage.opening import Record

_OF_STEP = re.compile(r"(.+)\.(?:status|partial|step(?:\.\w+)?)", re.DOTALL)
_OF_RUN = (SUMMARY_FILE, MEMORY_FILE, "report.html")
#: Of a lock, and of what takes it over.
_LOCK = ".lock"
_FOLDERS = ("journal", "logs", "jobs", "code", checkpoints.FOLDER, SHELF, STORE_FOLDER, shares.FOLDER)
#: Stands between a folder and the stem of a step whose result is packed: there is no file to name.
_PACKED = f"/{STORE_FOLDER}#"


def files(run: Run) -> list[str]:
    """Every file in a cache folder that ezpyp wrote; the schema last, so that what was begun can be done again."""
    # A stem is ours by the plan, or by a record, as those of former plans.
    records = _records(run)
    there = {f"{shelf}{stem_of(name)}" for shelf in ("", SHELF) for name in _names(f"{run.folder}/{shelf}")}
    there |= {checkpoints.stem_of(name) for name in _names(f"{run.folder}/{checkpoints.FOLDER}")}
    strange = {*run.entries.strange(there)}
    stems = {stem for stem in there if stem not in strange or stem in records}
    temporary = (
        f"{run.folder}/{shelf}{name}"
        for shelf in ("", SHELF)
        for name in _names(f"{run.folder}/{shelf}")
        if is_temporary(name)
    )
    of_steps = [path for path in _of_steps(run, stems, records) if _PACKED not in path]
    inside = files_of(run.folder)
    of_shares = [path for _, folder in shares.found(run.folder) for path in files(runs.open(folder))]
    return [*of_shares, *of_steps, *inside, *temporary, *of_run(run.folder), f"{run.folder}/{SCHEMA_FILE}"]


def of_run(folder: str) -> list[str]:
    """The files that belong to no step: of runs, and of the folder as a whole, but for the schema."""
    return [
        *plain(folder, lambda name: name in _OF_RUN or name.startswith(_LOCK)),
        *plain(f"{folder}/journal", lambda name: name.endswith(".jsonl")),
        *plain(f"{folder}/logs", lambda name: name.endswith((".log", ".progress"))),
        *plain(f"{folder}/jobs", lambda name: name.endswith((".sbatch", ".json", ".log"))),
        *_below(f"{folder}/code", lambda name: re.fullmatch("[0-9a-f]{16}", name) is not None),
        *_below(f"{folder}/{checkpoints.FOLDER}", lambda name: checkpoints.stem_of(name) != ""),
    ]


def _below(folder: str, belongs: Callable[[str], bool]) -> Iterator[str]:
    """All files in those folders of a folder whose names belong there."""
    for name in _names(folder):
        if belongs(name):
            for path, _, files in os.walk(f"{folder}/{name}"):
                yield from (f"{path}/{file}" for file in files)


def of_steps(run: Run, names: Iterable[str], *, failed: bool = False) -> list[str]:
    """The files of these steps, or of those of them that failed or were skipped: without them, they run again."""
    records = _records(run)
    stems = {run.entries[run.index[name]].stem for name in names}
    if failed:
        wrong = (Status.FAILED, Status.SKIPPED)
        stems = {stem for stem in stems if stem in records and records[stem].outcome.status in wrong}
    return _of_steps(run, stems, records)


def of_shelf(run: Run) -> list[str]:
    """The files of former results."""
    records = _records(run)
    return _of_steps(run, {stem for stem in records if stem.startswith(SHELF)}, records)


def stem_of(path: str) -> str:
    """The path of a step's file without what says which of its files it is; "" for other files."""
    of_step = _OF_STEP.fullmatch(path)
    return of_step[1] if of_step and os.path.basename(of_step[1]) else ""


def remove(folder: str, paths: Sequence[str]) -> None:
    """Remove these files and packed results of a cache folder, and the folders that this empties.

    Raises:
        StoreError: packed results cannot be dropped.
    """
    beginning = f"{folder}{_PACKED}"
    stems = [path.removeprefix(beginning) for path in paths if path.startswith(beginning)]
    if stems:
        store = open_store("packed", folder)
        store.drop(*stems)
        store.sync()
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


def size_of(run: Run, paths: Iterable[str]) -> int:
    """How many bytes these take: of packed results, what repacking will take back."""
    records, beginning, total = _records(run), f"{run.folder}{_PACKED}", 0
    for path in paths:
        record = records.get(path.removeprefix(beginning)) if path.startswith(beginning) else None
        with contextlib.suppress(FileNotFoundError):
            total += record.outcome.bytes if record is not None else os.lstat(path).st_size
    return total


def _records(run: Run) -> Mapping[str, Record]:
    return open_store(run.store, run.folder).records().records


def _of_steps(run: Run, stems: Collection[str], records: Mapping[str, Record]) -> list[str]:
    """Statuses first: a kill leaves files without a status, which are noticed, never a status without its files."""
    found = [
        f"{run.folder}/{shelf}{name}"
        for shelf in ("", SHELF)
        for name in _names(f"{run.folder}/{shelf}")
        if not is_temporary(name) and f"{shelf}{stem_of(name)}" in stems
    ]
    found += _below(f"{run.folder}/{checkpoints.FOLDER}", lambda name: checkpoints.stem_of(name) in stems)
    if run.store == "packed":
        # With the record goes what it names.
        return [*found, *(f"{run.folder}{_PACKED}{stem}" for stem in stems if stem in records)]
    returned = (f"{run.folder}/{p}" for stem in stems if stem in records for p, *_ in records[stem].outcome.files)
    return [*sorted(found, key=lambda path: not path.endswith(".status")), *returned]


def plain(folder: str, wanted: Callable[[str], bool]) -> Iterator[str]:
    """The files right in a folder whose names are wanted."""
    return (f"{folder}/{name}" for name in _names(folder) if wanted(name) and os.path.isfile(f"{folder}/{name}"))


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
