"""A store that keeps results in this process."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from ezpyp.errors import StoreError
from ezpyp.model.outcomes import Outcome, Place
from ezpyp.storage.protocol import (
    Known,
    Placeless,
    Scan,
    Writer,
    checksum,
    verified,
)
from ezpyp.storage.record import Record
from ezpyp.system.files import Buffer, size_of


class MemoryStore(Placeless):
    """Keeps everything in this process: for tests, and for pipelines run in line that want no files."""

    def __init__(self, folder: str | os.PathLike[str] = "", writer: Writer | None = None) -> None:
        """The folder is taken, as every kind of store takes one, and not used."""
        self._writer = writer or Writer()
        self._records: dict[str, Record] = {}
        self._results: dict[str, bytes] = {}

    def put(self, stem: str, record: Record, chunks: Sequence[Buffer] | None) -> Outcome:
        outcome = record.outcome
        if chunks is not None:
            self._results[stem] = b"".join(chunks)
            outcome = outcome._replace(location=stem, bytes=sum(map(size_of, chunks)), checksum=checksum(chunks))
        self._records[stem] = record._replace(outcome=outcome._replace(step=-1, tail=""))
        return outcome

    def get(self, record: Record) -> Buffer:
        data = self._results.get(record.outcome.location)
        if data is None:
            raise StoreError(f"The result of '{record.name}' is not in memory. Run it first.")
        return verified(data, record, f"the result of '{record.name}'")

    def read(
        self, stem: str, *, wanted: Callable[[Record], bool] | None = None, at: Place | None = None
    ) -> Record | None:
        return self._records.get(stem)

    def records(self) -> Scan:
        return Scan(records=Known(dict(self._records)))

    def move(self, stem: str, target: str) -> None:
        if record := self._records.pop(stem, None):
            outcome = record.outcome
            if outcome.location:
                self._results.pop(target, None)
                if stem in self._results:  # else it was dropped
                    self._results[target] = self._results.pop(stem)
                outcome = outcome._replace(location=target)
            self._records[target] = record._replace(outcome=outcome)

    def drop(self, *stems: str, result_only: bool = False) -> None:
        for stem in stems:
            self._results.pop(stem, None)
            record = self._records.pop(stem, None)
            if record is not None and result_only:
                self._records[stem] = record._replace(outcome=record.outcome._replace(dropped=True))

    def sync(self) -> None:
        """Nothing outlives the process."""


_opened: dict[str, MemoryStore] = {}


def of_folder(folder: str, writer: Writer | None) -> MemoryStore:
    """The one of this process for that folder: there is no other place to find results in."""
    return _opened.setdefault(os.path.abspath(folder), MemoryStore(folder, writer))
