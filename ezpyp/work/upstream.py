"""Results of earlier steps, for the steps that this process runs.

Small results are kept as bytes, those that this process made and those that it read, the youngest in place of the
oldest; each reader gets a value of its own. Large ones are maps of their files (`system.maps`), which the node keeps in
its page cache once for everybody: nothing here could be quicker, or more frugal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ezpyp.encoding import codecs
from ezpyp.errors import StoreError
from ezpyp.model.plan import Plan
from ezpyp.model.steps import Failed, Place, Status, Step
from ezpyp.storage.opening import Record, Store
from ezpyp.system.files import Buffer, size_of

#: Results up to this many bytes are kept.
_SMALL = 1 << 16
#: All that are kept: bytes in a process, of which a node may run one a core.
_MOST = 1 << 24
#: What keeping one costs besides its bytes.
_EACH = 200


class Upstream:
    """Reads results of a plan's steps from its store."""

    def __init__(self, *, plan: Plan, fingerprints: Sequence[str], store: Store, folder: str) -> None:
        self._plan, self._fingerprints, self._store, self._folder = plan, fingerprints, store, folder
        #: Codec and bytes of results, by the indices of their steps, oldest first.
        self._kept: dict[int, tuple[str, bytes]] = {}
        self._size = 0
        #: Whether any step is given a result.
        self.wanted = len(plan.graph.parents.flat) > 0

    def value(self, source: Step | int, *, absent: bool = False, at: Place | None = None) -> Any:
        """The result of an earlier step; Failed where it is `absent`, because its failure was allowed.

        It is the caller's own. Blocks until a record that another host wrote shows, and is no former one.

        Args:
            at: where it lies, if that is known.

        Raises:
            StoreError: the result is gone, or not what its step wrote; the text says what to do.
        """
        plan = self._plan
        k = source if isinstance(source, int) else plan.index[source.name]
        if not absent and (kept := self._kept.get(k)) is not None:
            return codecs.get(kept[0]).decode(kept[1])
        if at is not None and not absent:
            found = self._store.fetch(plan.stems[k], self._fingerprints[k], at)
            if found is not None:
                self.keep(k, found[0], (found[1],))
                return codecs.get(found[0]).decode(found[1])
        record = self._record(k, absent, at)
        outcome = record.outcome
        if outcome.status is not Status.DONE:
            return Failed(name=record.name, arguments=f"{outcome.args} {outcome.kwargs}", reason=outcome.note)
        data = self._store.get(record)
        if not outcome.files:
            self.keep(k, outcome.codec, (data,))
        return codecs.decode_result(outcome.codec, data, self._folder, outcome.files)

    def keep(self, k: int, codec: str, chunks: Sequence[Buffer]) -> None:
        """Keep what a step gave, which is in the store and holds no files, where it is small and may be asked for."""
        if not self.wanted or (size := sum(map(size_of, chunks))) > _SMALL:
            return
        former = self._kept.pop(k, None)
        self._size += size + _EACH - (len(former[1]) + _EACH if former else 0)
        self._kept[k] = codec, b"".join(chunks)
        while self._size > _MOST:
            oldest = next(iter(self._kept))
            self._size -= len(self._kept.pop(oldest)[1]) + _EACH

    def _record(self, k: int, absent: bool, at: Place | None) -> Record:
        plan, fingerprint = self._plan, self._fingerprints[k]

        def is_the_one(record: Record) -> bool:
            done = record.outcome.status is Status.DONE
            return record.fingerprint == fingerprint and done is not absent

        record = self._store.read(plan.stems[k], wanted=is_the_one, at=at)
        if record is None or record.fingerprint != fingerprint:
            raise StoreError(
                f"The result of '{plan.steps[k].name}' is gone from {self._folder}. Run again to remake it."
            )
        return record
