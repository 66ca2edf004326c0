"""Steps of a family that can do nothing but compute, one after another in one loop.

For a step of a microsecond, what stands around it takes most of the time: here that is done for many at once.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, repeat
from operator import sub
from pickle import dumps
from time import monotonic, time
from typing import Any

from ezpyp.errors import EzpypError
from ezpyp.model.columns import Columns
from ezpyp.model.fingerprints import SIZE
from ezpyp.model.plan import Block
from ezpyp.model.steps import Brief, Outcome, Place
from ezpyp.schedule.briefs import pack
from ezpyp.storage.protocol import Batch
from ezpyp.storage.series import MOST
from ezpyp.system.confined import PLAIN
from ezpyp.work.lots import Lot
from ezpyp.work.nursery import Here
from ezpyp.work.worker import FADING, LONG, Kind, Worker

#: Where a result lies that lies nowhere.
_NOWHERE = Place(0, 0, 0, 0)


class Sprint:
    """Steps that follow each other in a lot and in their family, whose arguments are plain values."""

    __slots__ = ("_block", "_calls", "_function", "_kind", "_start", "_worker")

    def __init__(
        self, worker: Worker, kind: Kind, block: Block, start: int, calls: Iterator[Any], constants: dict[str, Any]
    ) -> None:
        """The first of them is the step `start`; the constants are given to each."""
        self._worker, self._kind, self._block, self._start, self._calls = worker, kind, block, start, calls
        self._function: Callable[..., Any] = partial(kind.function, **constants) if constants else kind.function

    @classmethod
    def of(cls, worker: Worker, lot: Lot, place: int) -> Sprint | None:
        """The steps of a lot from there on that can be run so; None where the first of them cannot."""
        steps = lot.steps
        if lot.special or not isinstance(steps, range) or not worker.store.bulk:
            return None
        block = worker.plan.block(steps[place])
        kind, calls = worker.kind(block.family), block.family.calls
        if not kind.confined or kind.seconds > LONG or not isinstance(calls, Columns):
            return None
        if worker.plan.stems.are_others(block.family):
            return None
        start = steps[place]
        stop = min(steps.stop, block.stop, start + MOST)
        columns = calls.between(block.members[start - block.start : stop - block.start])
        constants = calls.shared.plain[1] if calls.shared.plain is not None else {}
        if columns is None or not all(map(_are_plain, (*columns, [*constants.values()]))):
            return None
        return cls(worker, kind, block, start, zip(*columns, strict=True), constants)

    def run(self, number: int, here: Here, until: float) -> list[bytes | Outcome]:
        """Run them, the first of which has this number among the tasks of this process, up to the fence or until that
        moment: what came of those that ended, packed briefs together.
        """
        numbers, times = here
        function, clock = self._function, monotonic
        results: list[bytes] = []
        ends: list[float] = []
        keep, ended = results.append, ends.append
        odd: tuple[Any, BaseException | None] | None = None
        now = began = clock()
        try:
            for args in self._calls:
                times[0], numbers[0] = now, number
                if number >= numbers[1]:
                    break
                value = function(*args)
                if type(value) not in PLAIN:
                    odd = value, None
                    break
                keep(dumps(value, 5))
                now = clock()
                ended(now)
                number += 1
                if now > until:
                    break
        except BaseException as error:
            odd = None, error
            del results[len(ends) :]
        came = self._keep(began, ends, results) if ends else []
        if odd is not None:
            came.append(self._worker.conclude(self._start + len(ends), ends[-1] if ends else began, *odd))
        return came

    def _keep(self, began: float, ends: list[float], results: list[bytes]) -> list[bytes | Outcome]:
        """Store the results of the first steps."""
        worker, block, start = self._worker, self._block, self._start
        family, stop = block.family, start + len(ends)
        whens = array("d", map((time() - monotonic()).__add__, ends))
        seconds = array("d", map(sub, ends, chain((began,), ends)))
        self._kind.seconds = max(*seconds, FADING * self._kind.seconds)
        first = (family.first or 0) + block.members[start - block.start]
        prints = worker.fingerprints.packed[start * SIZE : stop * SIZE]
        steps, once = range(start, stop), repeat(1)
        try:
            places = worker.store.add_all(Batch(family.label, first, prints, whens, seconds, "pickle", results))
        except (EzpypError, OSError) as error:
            ended = zip(steps, whens, seconds, strict=True)
            briefs = (Brief(k, 1, worker.rank, when, spent, _NOWHERE) for k, when, spent in ended)
            return [worker.lost(brief, error) for brief in briefs]
        if worker.upstream.wanted:
            for k, result in zip(steps, results, strict=True):
                worker.upstream.keep(k, "pickle", (result,))
        columns = places.offsets, places.sizes, places.checksums
        return [b"".join(map(pack, steps, once, repeat(worker.rank), repeat(places.segment), whens, seconds, *columns))]


def _are_plain(values: Sequence[Any]) -> bool:
    return isinstance(values, range) or PLAIN.issuperset(map(type, values))
