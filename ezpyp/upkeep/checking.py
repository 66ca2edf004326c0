"""Look at every file of a cache folder: what is torn, emptied, foreign or orphaned. Changes nothing."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from ezpyp.errors import StoreError
from ezpyp.folder import events, lock, runs, shares
from ezpyp.folder import schema as schemas
from ezpyp.identity.contents import MEMORY_FILE
from ezpyp.model import outputs
from ezpyp.model.naming import SCHEMA_FILE, STORE_FOLDER, SUMMARY_FILE
from ezpyp.model.outcomes import Status
from ezpyp.storage import catalog, index, segment
from ezpyp.storage.names import files_of
from ezpyp.storage.opening import Problem, Scan, Store, open_store
from ezpyp.storage.record import Record
from ezpyp.storage.transfer import wrong_files
from ezpyp.system.files import is_temporary
from ezpyp.upkeep import cleaning


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a look at everything found."""

    folder: str
    #: Results that are what their steps wrote, and their bytes.
    results: int
    bytes: int
    #: Bytes in segments that no longer count.
    dead: int
    wrong: tuple[Problem, ...]

    @property
    def sound(self) -> bool:
        return not self.wrong


def check(folder: str | os.PathLike[str]) -> Verdict:
    """Verify every checksum and account for every file.

    Raises:
        StoreError: it is no cache folder, or cannot be read.
    """
    where = runs.open(folder).folder
    kind, wrong = "files", []
    try:
        kind = (schemas.read(where) or {})["ezpyp"]["store"]
    except StoreError as error:
        wrong.append(Problem(path=f"{where}/{SCHEMA_FILE}", what=str(error)))
    store = open_store(kind, where)
    scan = store.records()
    wrong += [*_indexes(where)] if kind == "packed" else []
    count = size = 0
    inside = {*files_of(where)} if kind == "packed" else set()
    doubtful = [scan.records.alone()]
    for each in scan.records.together():
        if each.is_whole():
            count, size = count + len(each.checksums), size + sum(map(len, each.batch.results))
        else:
            doubtful.append(each.stems())
    logs: dict[str, int] = {}
    for record in map(scan.records.__getitem__, chain.from_iterable(doubtful)):
        if problems := [*_unsound(record, store, where)]:
            wrong += problems
        elif _has_result(record):
            count, size = count + 1, size + record.outcome.bytes + sum(size for _, size, _ in record.outcome.files)
        if record.outcome.log is not None:
            name, _, end = record.outcome.log
            logs[name] = max(end, logs.get(name, 0))
    spoilt = {problem: _record_of(problem, store, where) for problem in scan.problems}
    for problem, torn in spoilt.items():
        wrong += (torn and [*wrong_files(torn, where)]) or [problem]
    wrong += [*_cut_logs(logs, where), *_history(where), *_of_run(where)]
    told = {problem.path for problem in (*scan.problems, *wrong)}
    segments = {path for path in inside if path.endswith((".seg", index.SUFFIX)) and "/.ezpyp" not in path}
    wrong += _strangers(scan, where, told | segments, [record for record in spoilt.values() if record])
    dead = scan.records.dead() if isinstance(scan.records, catalog.Catalog) else 0
    within = [check(share) for _, share in shares.found(where)]
    return Verdict(
        folder=where,
        results=count + sum(each.results for each in within),
        bytes=size + sum(each.bytes for each in within),
        dead=dead + sum(each.dead for each in within),
        wrong=(*wrong, *(problem for each in within for problem in each.wrong)),
    )


def _indexes(folder: str) -> Iterator[Problem]:
    """Indexes that do not list what is in their segments."""
    for path in files_of(folder):
        if path.endswith(".seg") and not is_temporary(os.path.basename(path)):
            try:
                source = segment.Segment(path)
            except (OSError, ValueError):
                continue  # told of already
            if not index.is_right(source):
                yield Problem(path=index.index_of(path), what="not what its segment holds. Remove it: it is made anew")


def _has_result(record: Record) -> bool:
    return record.outcome.status is Status.DONE and not record.outcome.dropped


def _unsound(record: Record, store: Store, folder: str) -> Iterator[Problem]:
    if _has_result(record):
        try:
            store.get(record)
        except StoreError as error:
            yield Problem(path=f"{folder}/{record.outcome.location}", what=str(error))
        yield from wrong_files(record, folder)


def _record_of(problem: Problem, store: Store, folder: str) -> Record | None:
    """The record that a file belongs to, if it can be read."""
    return store.read(cleaning.stem_of(problem.path).removeprefix(f"{folder}/"))


def _cut_logs(ends: Mapping[str, int], folder: str) -> Iterator[Problem]:
    """Logs that end before what records say is in them."""
    for name, end in ends.items():
        path = f"{folder}/{name}"
        try:
            size = os.stat(path).st_size
        except OSError as error:
            yield Problem(path=path, what=f"what steps printed is gone ({error.strerror})")
        else:
            if size < end:
                yield Problem(path=path, what=f"torn: {size:,} bytes where steps printed {end:,}")


def _history(folder: str) -> Iterator[Problem]:
    """Journals that are not, or have a torn line before their end."""
    archived = cleaning.plain(f"{folder}/{events.FOLDER}", lambda name: name == events.ARCHIVE)
    for path in [*events.journals(folder).values(), *archived]:
        with open(path, "rb") as file:
            lines = file.read().split(b"\n")
        parsed = [events.parse(line.decode(errors="replace")) for line in lines]
        if parsed[0].get("event") != "Journal":
            yield Problem(path=path, what="emptied" if lines == [b""] else "foreign: it is no journal")
        elif number := next((k for k, each in enumerate(parsed[:-1], 1) if not each), 0):
            yield Problem(path=path, what=f"torn: line {number} is no event")


def _of_run(folder: str) -> Iterator[Problem]:
    """The files that are there once, as far as they can be told from others."""
    for name, beginning in ((SUMMARY_FILE, b"Pipeline "), (MEMORY_FILE, b"{")):
        path = f"{folder}/{name}"
        if os.path.exists(path):
            with open(path, "rb") as file:
                start = file.read(len(beginning))
            if start != beginning:
                yield Problem(path=path, what="foreign: ezpyp did not write it" if start else "emptied")


def _strangers(scan: Scan, folder: str, told: set[str], torn: Iterable[Record]) -> Iterator[Problem]:
    """Files that no record vouches for, and those that ezpyp did not write. Of what is `told`, nothing is repeated."""
    known = told | {*cleaning.of_run(folder), f"{folder}/{SCHEMA_FILE}"}
    for stem in scan.records.alone():
        outcome = scan.records[stem].outcome
        if stem not in scan.leftovers and outcome.location and "#" not in outcome.location:
            known.add(f"{folder}/{outcome.location}")
        known |= {f"{folder}/{place}" for place, *_ in outcome.files}
    known |= {f"{folder}/{place}" for record in torn for place, *_ in record.outcome.files}
    spoilt = {cleaning.stem_of(path) for path in told}
    leftovers = {f"{folder}/{scan.records[stem].outcome.location}" for stem in scan.leftovers}
    held = bool(lock.held_by(folder))
    apart = tuple(f"{share}/" for _, share in shares.found(folder))
    for path in _everything(folder):
        if path.startswith(apart):  # is looked at by itself
            continue
        stem = cleaning.stem_of(path)
        if path in known or (stem and stem in spoilt):
            continue
        if path.endswith((".status", ".partial")) and stem.removeprefix(f"{folder}/") in scan.records:
            continue
        if is_temporary(os.path.basename(path)):
            if not held:
                yield Problem(path=path, what="left by a process that was killed. Remove it")
        elif path in leftovers:
            yield Problem(path=path, what="orphaned: it was to be dropped. The next run removes it")
        elif path.startswith(f"{folder}/{STORE_FOLDER}/"):
            yield Problem(path=path, what="orphaned: no record vouches for it. ezpyp repack removes it")
        elif stem or path.startswith(f"{folder}/{outputs.FOLDER}/"):
            yield Problem(path=path, what="orphaned: no status vouches for it. Remove it")
        else:
            yield Problem(path=path, what="foreign: ezpyp did not write it. Put it elsewhere")


def _everything(folder: str) -> Iterator[str]:
    for path, folders, names in os.walk(folder):
        folders.sort()
        yield from (f"{path}/{name}" for name in sorted(names))
