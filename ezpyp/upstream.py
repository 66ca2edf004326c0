"""Results of earlier steps, for the steps that this process runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ezpyp import codecs
from ezpyp.errors import StoreError
from ezpyp.plan import Plan
from ezpyp.steps import Failed, Status, Step
from ezpyp.store import Record, Store


class Upstream:
    """Reads results of a plan's steps from its store."""

    def __init__(self, *, plan: Plan, fingerprints: Sequence[str], store: Store, folder: str) -> None:
        self._plan, self._fingerprints, self._store, self._folder = plan, fingerprints, store, folder

    def value(self, source: Step | int, *, absent: bool = False) -> Any:
        """The result of an earlier step; Failed where it is `absent`, because its failure was allowed.

        Blocks until a record that another host wrote shows, and is no former one.

        Raises:
            StoreError: the result is gone, or not what its step wrote; the text says what to do.
        """
        plan = self._plan
        k = source if isinstance(source, int) else plan.index[source.name]
        fingerprint = self._fingerprints[k]

        def is_the_one(record: Record) -> bool:
            done = record.outcome.status is Status.DONE
            return record.fingerprint == fingerprint and done is not absent

        record = self._store.read(plan.stems[k], wanted=is_the_one)
        if record is None or record.fingerprint != fingerprint:
            raise StoreError(
                f"The result of '{plan.steps[k].name}' is gone from {self._folder}. Run again to remake it."
            )
        outcome = record.outcome
        if outcome.status is not Status.DONE:
            return Failed(name=record.name, arguments=f"{outcome.args} {outcome.kwargs}", reason=outcome.note)
        return codecs.decode_result(outcome.codec, self._store.get(record), self._folder, outcome.files)
