"""Results of earlier steps, for the steps that this process runs.

Small results are kept as bytes, those that this process made and those that it read, the youngest in place of the
oldest; each reader gets a value of its own. Large ones are maps of their files (`system.maps`), which the node keeps in
its page cache once for everybody: nothing here could be quicker, or more frugal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from itertools import count
from pickle import Unpickler
from typing import Any

from ezpyp.encoding import codecs
from ezpyp.errors import StoreError
from ezpyp.model.outcomes import Failed, Place, Status
from ezpyp.model.plan import Plan
from ezpyp.model.steps import Step
from ezpyp.schedule.briefs import place_at, places_of, steps_of
from ezpyp.storage.opening import Record, Store
from ezpyp.storage.protocol import Wanted
from ezpyp.system.confined import PLAIN
from ezpyp.system.files import Buffer, size_of

#: Results up to this many bytes are kept.
_SMALL = 1 << 16
#: All that are kept: bytes in a process, of which a node may run one a core.
_MOST = 1 << 24
#: What keeping one costs besides its bytes.
_EACH = 200
#: Results up to this many bytes are read together with others; and up to this many they travel.
_TINY, _TRAVELS = 1 << 12, 1 << 8


class Upstream:
    """Reads results of a plan's steps from its store."""

    def __init__(self, *, plan: Plan, fingerprints: Sequence[str], store: Store, folder: str) -> None:
        self._plan, self._fingerprints, self._store, self._folder = plan, fingerprints, store, folder
        #: Codec and bytes of results, by the indices of their steps, oldest first.
        self._kept: dict[int, tuple[str, bytes]] = {}
        self._size = 0
        #: Of these what is plain: nobody can change it, so that all readers may have the same.
        self._plain: dict[int, Any] = {}
        #: Where results lie, as it was told: packed briefs, and where each of them is, once that was asked.
        self._told, self._where = b"", dict[int, int]()
        #: Once that was asked, a byte a step: 1 where its result is given to others.
        self._given = bytearray()
        #: Whether any step is given a result.
        self.wanted = len(plan.graph.parents.flat) > 0

    def tell(self, places: bytes, values: Mapping[int, bytes]) -> None:
        """Where results lie of which some will be asked for, as packed briefs, in place of what was told before; and
        those that travelled.
        """
        self._told, self._where = places, {}
        for k, data in values.items():
            if k not in self._kept:
                self._keep(k, "pickle", data)

    def travelling(self, briefs: bytes) -> dict[int, bytes]:
        """Of the results of steps that this process ran, pickles of those that travel to the steps that are given
        them: the smallest, of which it costs more to look them up than to have them sent.
        """
        if not self.wanted:
            return {}
        if not self._given:
            self._given = bytearray(len(self._plan.graph.parents))
            for k in set(self._plan.graph.parents.flat):
                self._given[k] = 1
        given, found = self._given, {}
        for k in steps_of(briefs):
            if (
                given[k]
                and (kept := self._kept.get(k)) is not None
                and kept[0] == "pickle"
                and len(kept[1]) <= _TRAVELS
            ):
                found[k] = kept[1]
        return found

    def plain(self, k: int) -> Any:
        """The result of an earlier step that is done, where it is a plain value and can be had without waiting.

        Nothing of the user's runs. Raises LookupError in all other cases: then `value` has it, or says why not.
        """
        if k in self._plain:
            return self._plain[k]
        if k not in self._kept and not self._where:
            self._fetch_tiny()
        codec, data = self._kept[k]
        if codec != "pickle":
            raise LookupError(k)
        value = self._plain[k] = _plain_value(data)
        return value

    def value(self, source: Step | int, *, absent: bool = False) -> Any:
        """The result of an earlier step; Failed where it is `absent`, because its failure was allowed.

        It is the caller's own. Blocks until a record that another host wrote shows, and is no former one.

        Raises:
            StoreError: the result is gone, or not what its step wrote; the text says what to do.
        """
        plan = self._plan
        k = source if isinstance(source, int) else plan.index[source.name]
        if not absent and (kept := self._kept.get(k)) is not None:
            return codecs.get(kept[0]).decode(kept[1])
        at = self._place(k)
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
        if self.wanted and sum(map(size_of, chunks)) <= _SMALL:
            self._keep(k, codec, b"".join(chunks))

    def keep_plain(self, steps: Sequence[int], values: Sequence[Any], pickled: Sequence[bytes]) -> None:
        """The same for steps that gave plain values, with these and their pickles."""
        if not self.wanted:
            return
        for k, value, data in zip(steps, values, pickled, strict=True):
            if len(data) <= _SMALL:
                self._keep(k, "pickle", data)
                self._plain[k] = value

    def _keep(self, k: int, codec: str, data: bytes) -> None:
        self._forget(k)
        self._kept[k] = codec, data
        self._size += len(data) + _EACH
        while self._size > _MOST:
            self._forget(next(iter(self._kept)))

    def _forget(self, k: int) -> None:
        if (former := self._kept.pop(k, None)) is not None:
            self._plain.pop(k, None)
            self._size -= len(former[1]) + _EACH

    def _place(self, k: int) -> Place | None:
        """Where the result of a step lies, if that was told."""
        if not self._where:
            self._where = dict(zip(steps_of(self._told), count()))
        number = self._where.get(k)
        return None if number is None else place_at(self._told, number)

    def _fetch_tiny(self) -> None:
        """Keep all tiny results of which it was told where they lie, in the order in which they lie there."""
        self._where = dict(zip(steps_of(self._told), count()))
        tiny = {k: at for k, at in places_of(self._told) if k not in self._kept and at.size <= _TINY}
        wanted = [Wanted(self._plan.stems[k], self._fingerprints[k], at) for k, at in tiny.items()]
        for k, found in zip(tiny, self._store.fetch_all(wanted), strict=True):
            if found is not None:
                self._keep(k, found[0], bytes(found[1]))

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


class _Plain(Unpickler):
    """Makes nothing that has a class of its own."""

    def find_class(self, module: str, name: str, /) -> Any:
        raise LookupError(name)


def _plain_value(data: bytes) -> Any:
    """The plain value that was pickled; LookupError where it is none."""
    value = _Plain(BytesIO(data)).load()
    if type(value) not in PLAIN:
        raise LookupError(type(value))
    return value
