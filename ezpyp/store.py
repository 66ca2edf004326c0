"""Results and outcomes in the cache folder: the Store protocol; memory; one file pair a step.

`STEM.step` is a result in its codec. `STEM.status`, written after it, decides what is done: JSON with the outcome, the
fingerprint, and the length and checksum (xxh3, 64 bits) of the result. Only what fits both is ever decoded.
"""

from __future__ import annotations

import json
import mmap
import os
import re
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

from ezpyp import codecs
from ezpyp.errors import StoreError
from ezpyp.files import Buffer, is_shared, is_temporary, sync_file, sync_file_system, sync_folder, write_whole
from ezpyp.steps import Outcome, Status

__all__ = ["FileStore", "MemoryStore", "Problem", "Record", "Scan", "Store", "open_store", "stems", "write_whole"]

FORMAT = 1
#: Results above this size are mapped, not read.
_MAPPED = 1 << 24
#: From so many files on, flushing the file system is quicker than each of them (measured: 10,000 files 10 s, once 0.3 s).
_MANY = 32
#: Seconds that a result from another host may take to appear on a network file system.
PATIENCE = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What the store knows of a step: its outcome, under the identity that it had."""

    name: str
    fingerprint: str
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A file that is torn, foreign, or does not fit its record."""

    path: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """All readable records by stem, and what is not readable."""

    records: Mapping[str, Record]
    problems: tuple[Problem, ...] = ()


class Store(Protocol):
    """Keeps outcomes and results. Any process that can reach the folder may read while others write."""

    def put(self, stem: str, record: Record, chunks: Sequence[Buffer] | None) -> Outcome:
        """Keep an outcome, with its result where there is one, and give it back with where the result lies.

        Whole or not at all; survives the end of any process when it returns. On a network file system it survives the
        host too, so that others may be told.

        Raises:
            StoreError: it cannot be written. A former outcome and result are untouched.
        """

    def get(self, record: Record) -> Buffer:
        """The bytes of a result, their length and checksum verified. May block for a result of another host.

        Raises:
            StoreError: they are missing, torn or foreign.
        """

    def read(self, stem: str) -> Record | None:
        """The record of one step, None where there is none that can be read."""

    def records(self) -> Scan:
        """Every record, with the presence and length of results checked, and every file that is wrong. Never raises
        for one.
        """

    def sync(self) -> None:
        """Have what this store wrote since the last call survive a power failure. May block for long."""


def checksum(chunks: Sequence[Buffer]) -> str:
    """xxh3 of the chunks as one: https://xxhash.com, XXH3_64bits."""
    import xxhash

    if len(chunks) == 1:
        return f"xxh3:{xxhash.xxh3_64_hexdigest(chunks[0])}"
    whole = xxhash.xxh3_64()
    for chunk in chunks:
        whole.update(chunk)
    return f"xxh3:{whole.hexdigest()}"


def _length(chunks: Sequence[Buffer]) -> int:
    return sum(chunk.nbytes if isinstance(chunk, memoryview) else len(chunk) for chunk in chunks)


def _verified(data: Buffer, record: Record, where: str) -> Buffer:
    outcome = record.outcome
    size = _length([data])
    if size != outcome.bytes:
        raise StoreError(f"{where} is torn: {size:,} bytes where '{record.name}' wrote {outcome.bytes:,}. {_REMAKE}")
    if checksum([data]) != outcome.checksum:
        raise StoreError(f"{where} is not what '{record.name}' wrote: its checksum differs. {_REMAKE}")
    return data


_REMAKE = "Remove it, and the next run makes it again."


class FileStore:
    """One file pair a step, in the cache folder itself."""

    def __init__(self, folder: str | os.PathLike[str], *, shared: bool | None = None) -> None:
        """`shared` says whether other hosts read here; found out from the file system if not given."""
        self._folder = os.fspath(folder)
        self._shared = is_shared(self._folder) if shared is None else shared
        self._host = socket.gethostname()
        self._unsynced: list[str] = []

    def put(self, stem: str, record: Record, chunks: Sequence[Buffer] | None) -> Outcome:
        outcome = record.outcome
        if chunks is not None:
            name = f"{stem}.step{codecs.get(outcome.codec).suffix}"
            path = f"{self._folder}/{name}"
            write_whole(path, chunks, sync=self._shared)
            outcome = replace(outcome, location=name, bytes=_length(chunks), checksum=checksum(chunks))
            self._unsynced.append(path)
        status = f"{self._folder}/{stem}.status"
        write_whole(status, [_to_json(record, outcome)], sync=self._shared)
        self._unsynced.append(status)
        return outcome

    def get(self, record: Record) -> Buffer:
        path = f"{self._folder}/{record.outcome.location}"
        elsewhere = self._shared and record.outcome.host != self._host
        until = time.monotonic() + (PATIENCE if elsewhere else 0)
        pause = 0.01
        while True:
            try:
                return _verified(_read(path, record.outcome.bytes), record, path)
            except (OSError, StoreError) as error:
                if time.monotonic() >= until:
                    raise self._missing(path, record, error) from None
                # A new name or length may be late here: close, wait, open afresh.
                time.sleep(pause)
                pause = min(1.0, 2 * pause)

    def read(self, stem: str) -> Record | None:
        try:
            with open(f"{self._folder}/{stem}.status", "rb") as file:
                return _from_json(file.read())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def records(self) -> Scan:
        found: dict[str, Record] = {}
        problems: list[Problem] = []
        for entry in os.scandir(self._folder):
            if not entry.name.endswith(".status") or is_temporary(entry.name):
                continue
            try:
                record = _from_json(Path(entry.path).read_bytes())
            except FileNotFoundError:
                continue
            except (OSError, ValueError, KeyError, TypeError) as error:
                problems.append(Problem(path=entry.path, what=f"not a status that ezpyp wrote ({error})"))
                continue
            wrong = self._misfit(record)
            if wrong:
                problems.append(Problem(path=f"{self._folder}/{record.outcome.location}", what=wrong))
            else:
                found[entry.name.removesuffix(".status")] = record
        return Scan(records=found, problems=tuple(problems))

    def sync(self) -> None:
        unsynced, self._unsynced = dict.fromkeys(self._unsynced), []
        if self._shared or not unsynced:
            return
        if len(unsynced) > _MANY:
            sync_file_system(self._folder)
            return
        for path in unsynced:
            sync_file(path)
        sync_folder(self._folder)

    def _misfit(self, record: Record) -> str:
        """What is wrong with the result that a record names, or ""."""
        if record.outcome.status is not Status.DONE:
            return ""
        try:
            size = os.stat(f"{self._folder}/{record.outcome.location}").st_size
        except OSError as error:
            return f"the result of '{record.name}' is gone ({error.strerror})"
        if size != record.outcome.bytes:
            return f"torn: {size:,} bytes where '{record.name}' wrote {record.outcome.bytes:,}"
        return ""

    def _missing(self, path: str, record: Record, error: Exception) -> StoreError:
        if isinstance(error, StoreError):
            return error
        late = f" after {PATIENCE:.0f} s" if self._shared else ""
        return StoreError(
            f"{path}, which '{record.name}' wrote on {record.outcome.host or 'some host'}, cannot be read on "
            f"{self._host}{late} ({error}). Do both hosts see this folder? {_REMAKE}"
        )


def _read(path: str, size: int) -> Buffer:
    with open(path, "rb") as file:
        if size < _MAPPED:
            return file.read()
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


#: Fields of an Outcome that outlive its run. The index in the plan does not.
_LASTING = (
    *("status", "codec", "bytes", "checksum", "location", "seconds", "rank", "host", "attempt"),
    *("args", "kwargs", "note", "cause", "traceback", "log", "missing"),
)


def _to_json(record: Record, outcome: Outcome) -> bytes:
    when = datetime.fromtimestamp(outcome.when, UTC).isoformat(timespec="microseconds")
    content: dict[str, Any] = {"format": FORMAT, "name": record.name, "fingerprint": record.fingerprint, "when": when}
    for key in _LASTING:
        content[key] = getattr(outcome, key)
    content["status"] = int(outcome.status)
    return json.dumps(content, ensure_ascii=False).encode()


def _from_json(text: bytes) -> Record:
    content = json.loads(text)
    if content["format"] > FORMAT:
        raise ValueError(f"format {content['format']}; this ezpyp reads up to {FORMAT}")
    lasting = {key: content[key] for key in _LASTING}
    lasting["status"] = Status(lasting["status"])
    lasting["log"] = tuple(lasting["log"]) if lasting["log"] else None
    lasting["missing"] = tuple(lasting["missing"])
    when = datetime.fromisoformat(content["when"]).timestamp()
    outcome = Outcome(step=-1, when=when, **lasting)
    return Record(name=content["name"], fingerprint=content["fingerprint"], outcome=outcome)


class MemoryStore:
    """Keeps everything in this process: for tests, and for pipelines run in line that want no files."""

    def __init__(self, folder: str | os.PathLike[str] = "") -> None:
        self._records: dict[str, Record] = {}
        self._results: dict[str, bytes] = {}

    def put(self, stem: str, record: Record, chunks: Sequence[Buffer] | None) -> Outcome:
        outcome = record.outcome
        if chunks is not None:
            self._results[stem] = b"".join(chunks)
            outcome = replace(outcome, location=stem, bytes=_length(chunks), checksum=checksum(chunks))
        self._records[stem] = replace(record, outcome=replace(outcome, step=-1, tail=""))
        return outcome

    def get(self, record: Record) -> Buffer:
        data = self._results.get(record.outcome.location)
        if data is None:
            raise StoreError(f"The result of '{record.name}' is not in memory. Run it first.")
        return _verified(data, record, f"the result of '{record.name}'")

    def read(self, stem: str) -> Record | None:
        return self._records.get(stem)

    def records(self) -> Scan:
        return Scan(records=dict(self._records))

    def sync(self) -> None:
        """Nothing outlives the process."""


_KINDS: dict[str, Callable[[str], Store]] = {"files": FileStore, "memory": MemoryStore}


def open_store(kind: str, folder: str | os.PathLike[str]) -> Store:
    """The store of that kind.

    Raises:
        StoreError: there is none; the text lists those that are known.
    """
    if kind not in _KINDS:
        raise StoreError(f"There is no store '{kind}'. Known: {', '.join(sorted(_KINDS))}.")
    return _KINDS[kind](os.fspath(folder))


_SAFE = re.compile(r"[A-Za-z0-9_+=,-][A-Za-z0-9_+=,.\[\]-]*\Z")
_RESERVED = frozenset({"pipeline", "journal", "logs", "store", "report.html", "code"})


def stems(names: Sequence[str]) -> dict[str, str]:
    """File stems for step names: the name itself where it is safe, else a readable part, `~` and a digest of the name.

    Pure, and injective without regard to case: of names that differ only in case, the later gets the digest too.
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        stem = name if _is_safe(name) else _digested(name)
        if stem.casefold() in taken:
            stem = _digested(name)
        taken.add(stem.casefold())
        found[name] = stem
    return found


def _is_safe(name: str) -> bool:
    return (
        len(name) <= 100
        and _SAFE.match(name) is not None
        and ".." not in name
        and not name.endswith(".")
        and name.casefold() not in _RESERVED
        and not re.search(r"\.(step|status|partial|schema|summary)(\.|$)", name.casefold())
    )


def _digested(name: str) -> str:
    readable = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-")[:60]
    return f"{readable}~{blake2b(name.encode('utf-8', 'surrogatepass'), digest_size=5).hexdigest()}"
