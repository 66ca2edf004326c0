"""What shares made, taken into the folder that they are shares of."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field

from ezpyp.errors import CacheInUse, StoreError
from ezpyp.folder import archive, lock, shares
from ezpyp.folder import schema as schemas
from ezpyp.model.outcomes import Status
from ezpyp.storage import transfer
from ezpyp.storage.opening import Problem, Record, Store, on_shelf, open_store
from ezpyp.storage.protocol import Records
from ezpyp.work import checkpoints


@dataclass(slots=True)
class Collected:
    """What came of it."""

    #: Results that were taken.
    results: int = 0
    problems: list[Problem] = field(default_factory=list)
    #: For people.
    remarks: list[str] = field(default_factory=list)
    #: Shares of which all is here, with the locks that keep them as they are.
    emptied: list[tuple[str, lock.Lock]] = field(default_factory=list)

    def remove(self) -> None:
        """Remove the shares of which all is here, and lasting. What cannot be removed does no harm."""
        for folder, hold in self.emptied:
            shutil.rmtree(folder, ignore_errors=True)
            hold.release()
            with contextlib.suppress(OSError):
                os.rmdir(os.path.dirname(folder))
        self.emptied.clear()


def collect(wanted: Mapping[str, str], folder: str, store: Store, records: Records) -> Collected:
    """Take what the shares of a folder made, results verified: also what failed there, and what was saved on the way.

    A share that is at work, or has results that nothing here wants, stays as it is.

    Args:
        wanted: fingerprints of steps that would run to their stems.
        records: what is here already.
    """
    collecting = _Collecting(wanted, folder, store, records)
    begun = shares.found(folder)
    for share, there in begun:
        hold = collecting.hold(f"share {share}", there)
        try:
            strange = collecting.take_all(there)
        except (StoreError, OSError) as error:
            strange = 1
            collecting.came.problems.append(Problem(path=there, what=f"its results were not taken: {error}"))
        if hold is not None and not strange:
            collecting.came.emptied.append((there, hold))
        elif hold is not None:
            hold.release()
    collecting.take_rest()
    came = collecting.came
    if came.results:
        came.remarks.insert(0, f"{came.results:,} results of {len(begun):,} shares were taken in.")
    return came


class _Collecting:
    """What is wanted still, and what came."""

    def __init__(self, wanted: Mapping[str, str], folder: str, store: Store, records: Records) -> None:
        self._wanted, self._folder, self._store, self._records = wanted, folder, store, records
        self._left = dict(wanted)
        #: What is wanted and not done, by fingerprint: where a share has it.
        self._rest: dict[str, tuple[Record, str]] = {}
        self.came = Collected()

    def hold(self, share: str, there: str) -> lock.Lock | None:
        """Keep a share from going on meanwhile; None where it is at work."""
        try:
            return lock.acquire(there)
        except CacheInUse:
            self.came.remarks.append(
                f"{share} is at work ({lock.held_by(there)}): what it has not done yet is run here, too."
            )
        except StoreError as error:
            self.came.problems.append(Problem(path=there, what=str(error)))
        return None

    def take_all(self, there: str) -> int:
        """What one share made; how many results it has that nobody wants."""
        schema = schemas.read(there)
        if schema is None:
            raise StoreError(f"{there} has no schema any more.")
        source = open_store(schema["ezpyp"]["store"], there)
        strange, logs = set[str](), set[str]()
        for record in source.records().records.values():
            stem = self._left.get(record.fingerprint)
            if stem is None:
                if self._is_unwanted(record):
                    strange.add(record.fingerprint)
            elif record.outcome.status is Status.DONE:
                self._take(record, source, there, stem)
            else:
                self._rest.setdefault(record.fingerprint, (record, there))
            logs |= {record.outcome.log[0]} if record.outcome.log else set()
        archive.link(there, self._folder, logs)
        _move_saved(there, self._folder)
        strange -= self._records.under(strange).keys()
        if strange:
            self.came.remarks.append(
                f"{there} stays: {len(strange):,} of its results are of no step of this plan. To remove them: "
                f"ezpyp clean {there}"
            )
        return len(strange)

    def _is_unwanted(self, record: Record) -> bool:
        """Whether a result is of no step that wants one."""
        outcome, print_ = record.outcome, record.fingerprint
        is_result = outcome.status is Status.DONE and not outcome.dropped and len(print_) == 32
        return is_result and print_ not in self._wanted

    def _take(self, record: Record, source: Store, there: str, stem: str) -> None:
        here = self._records.get(stem)
        place = stem if here is None or here.outcome.status is not Status.DONE else on_shelf(stem, record)
        try:
            transfer.take(record, source, there, self._store, self._folder, place, files=stem)
        except StoreError as error:
            self.came.problems.append(Problem(path=there, what=f"a result was not taken: {error}"))
            return
        del self._left[record.fingerprint]
        self.came.results += 1

    def take_rest(self) -> None:
        """What is known of steps that no share has done."""
        for print_, (record, there) in self._rest.items():
            stem = self._left.get(print_)
            if stem is not None and stem not in self._records:
                transfer.take(record, self._store, there, self._store, self._folder, stem)


def _move_saved(there: str, folder: str) -> None:
    """What steps that did not end saved."""
    root = f"{there}/{checkpoints.FOLDER}"
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(root):
            os.makedirs(f"{folder}/{checkpoints.FOLDER}", exist_ok=True)
            with contextlib.suppress(OSError):  # there is one already
                os.rename(f"{root}/{name}", f"{folder}/{checkpoints.FOLDER}/{name}")
