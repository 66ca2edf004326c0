"""A store with one file pair a step.

`STEM.step` is a result in its codec. `STEM.status` vouches for it and decides what is done: JSON with the outcome, the
fingerprint, and the length and checksum (xxh3, 64 bits) of the result. Only what fits both is ever decoded.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from ezpyp.encoding import codecs
from ezpyp.errors import StoreError
from ezpyp.model import outputs
from ezpyp.model.outcomes import Outcome, Place, Status
from ezpyp.storage.patience import blamed, is_late, reason_of, tries, unreadable
from ezpyp.storage.protocol import (
    SHELF,
    Known,
    Placeless,
    Problem,
    Scan,
    Writer,
    checksum,
)
from ezpyp.storage.reading import Reader, read_small
from ezpyp.storage.record import Record, from_json, to_json
from ezpyp.system.files import (
    Buffer,
    is_shared,
    is_temporary,
    link_whole,
    remove,
    size_of,
    sync_files,
    write_vouched,
    write_whole,
)

#: More paths than this need not be remembered for `sync`: then all of the file system is synced.
_REMEMBERED = 1000


class FileStore(Placeless):
    """One file pair a step, in the cache folder itself."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        writer: Writer | None = None,
        *,
        shared: bool | None = None,
        patience: float = 60.0,
    ) -> None:
        """
        Args:
            shared: whether other hosts read and write here; found out from the file system if not given.
            patience: seconds that what another host wrote may take to appear here.

        Raises:
            StoreError: there is no such folder.
        """
        self._folder = os.fspath(folder)
        self._host = os.uname().nodename
        self._writer = writer or Writer(host=self._host)
        self._unsynced: set[str] = set()
        try:
            self._shared = is_shared(self._folder) if shared is None else shared
        except OSError as error:
            raise unreadable(self._folder, error) from error
        self._patience = patience if self._shared else 0.0
        self._reader = Reader(shared=self._shared)

    def put(self, stem: str, record: Record, chunks: Sequence[Buffer] | None) -> Outcome:
        witness = f"{self._folder}/{stem}.status"
        if chunks is None:
            write_whole(witness, [to_json(record, record.outcome)], sync=self._shared)
            self._note(witness)
            return record.outcome
        name = f"{stem}.step{codecs.get(record.outcome.codec).suffix}"
        path = f"{self._folder}/{name}"
        outcome = record.outcome._replace(location=name, bytes=sum(map(size_of, chunks)), checksum=checksum(chunks))
        facts = write_vouched(path, chunks, witness, to_json(record, outcome), sync=self._shared)
        self._reader.trust(path, facts, outcome.checksum)
        self._note(path, witness)
        return outcome

    def get(self, record: Record) -> Buffer:
        outcome = record.outcome
        if not outcome.location or outcome.dropped:
            state = "dropped" if outcome.dropped else outcome.status.name.lower()
            raise StoreError(f"'{record.name}' has no result to read: it is {state}. Run again.")
        path = f"{self._folder}/{outcome.location}"
        error: Exception | None = None
        for _ in tries(self._folder, self._patience if outcome.host != self._host else 0):
            try:
                data = self._reader.read(path, record)
                if wrong := outputs.misfit(self._folder, outcome.files):
                    raise StoreError(f"The result of '{record.name}' is not whole: {wrong}. Run again to remake it.")
                return data
            except (OSError, StoreError) as now:
                error = now
                if not is_late(now):
                    break
        assert error is not None
        raise blamed(path, record, error, self._host, self._patience) from error

    def read(
        self, stem: str, *, wanted: Callable[[Record], bool] | None = None, at: Place | None = None
    ) -> Record | None:
        record = None
        for _ in tries(self._folder, self._patience if wanted else 0):
            try:
                record = from_json(read_small(f"{self._folder}/{stem}.status"), stem)
            except (OSError, ValueError):
                record = None
            if wanted and record and wanted(record):
                break
        return record

    def records(self) -> Scan:
        found: dict[str, Record] = {}
        problems: list[Problem] = []
        leftovers: list[str] = []
        for stem in self._stems():
            path = f"{self._folder}/{stem}.status"
            try:
                record = from_json(read_small(path), stem)
            except FileNotFoundError:  # replaced just now: it will be there the next time
                continue
            except (OSError, ValueError) as error:
                problems.append(Problem(path=path, what=reason_of(error)))
                continue
            if wrong := self._misfit(record):
                problems.append(Problem(path=f"{self._folder}/{record.outcome.location}", what=wrong))
            else:
                found[stem] = record
                if record.outcome.dropped and os.path.exists(f"{self._folder}/{record.outcome.location}"):
                    leftovers.append(stem)
        return Scan(records=Known(found), problems=tuple(problems), leftovers=tuple(leftovers))

    def move(self, stem: str, target: str) -> None:
        record = self.read(stem)
        if record is None:
            return
        folder, witness = self._folder, f"{self._folder}/{target}.status"
        outcome, source = record.outcome, ""
        if target.startswith(SHELF):
            os.makedirs(f"{folder}/{SHELF}", exist_ok=True)
        if outcome.location:
            source = f"{folder}/{outcome.location}"
            outcome = outcome._replace(location=f"{target}{outcome.location.removeprefix(stem)}")
            if not outcome.dropped:
                link_whole(source, f"{folder}/{outcome.location}", void=witness)
        write_whole(witness, [to_json(record, outcome)], sync=self._shared)
        remove(f"{folder}/{stem}.status")
        if source:
            remove(source)
        self._note(witness)

    def drop(self, *stems: str, result_only: bool = False) -> None:
        for stem in stems:
            self._drop(stem, result_only=result_only)

    def _drop(self, stem: str, *, result_only: bool) -> None:
        record = self.read(stem)
        if not result_only:
            remove(f"{self._folder}/{stem}.status")
        elif record is not None:
            # The record first: a kill in between leaves a file too many, not one too few.
            self.put(stem, record._replace(outcome=record.outcome._replace(dropped=True)), None)
        if record is not None and record.outcome.location:
            remove(f"{self._folder}/{record.outcome.location}")
            outputs.discard(self._folder, record.outcome.files)

    def sync(self) -> None:
        unsynced, self._unsynced = self._unsynced, set()
        if unsynced:
            sync_files(unsynced, self._folder)

    def _note(self, *paths: str) -> None:
        if not self._shared and len(self._unsynced) < _REMEMBERED:
            self._unsynced.update(paths)

    def _stems(self) -> list[str]:
        try:
            names = _names(self._folder)
        except OSError as error:
            raise unreadable(self._folder, error) from error
        if SHELF.rstrip("/") in names:
            names += [f"{SHELF}{name}" for name in _names(f"{self._folder}/{SHELF}")]
        return [n.removesuffix(".status") for n in names if n.endswith(".status") and not is_temporary(n)]

    def _misfit(self, record: Record) -> str:
        """What is wrong with the result that a record names, or ""."""
        if record.outcome.status is not Status.DONE or record.outcome.dropped:
            return ""
        try:
            size = os.stat(f"{self._folder}/{record.outcome.location}").st_size
        except OSError as error:
            return f"the result of '{record.name}' is gone ({error.strerror})"
        if size != record.outcome.bytes:
            return f"torn: {size:,} bytes where '{record.name}' wrote {record.outcome.bytes:,}"
        return outputs.misfit(self._folder, record.outcome.files)


def _names(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]
