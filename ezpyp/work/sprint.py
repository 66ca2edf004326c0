"""Steps of one function that can do nothing but compute, one after another in one loop.

For a step of a microsecond, what stands around it takes most of the time: here that is done for many at once.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, islice, repeat
from operator import call, sub
from pickle import dumps
from time import monotonic, time
from typing import Any

from ezpyp.errors import EzpypError
from ezpyp.identity.outline import describe
from ezpyp.model.columns import Columns
from ezpyp.model.fingerprints import SIZE
from ezpyp.model.outcomes import Brief, Outcome, Place
from ezpyp.model.plan import Block
from ezpyp.model.steps import Family, PlaceHolder, Step
from ezpyp.schedule.briefs import pack
from ezpyp.storage.protocol import MOST_TOGETHER, Batch, Done
from ezpyp.system.confined import PLAIN
from ezpyp.work.lots import Lot
from ezpyp.work.position import Here
from ezpyp.work.worker import FADING, LONG, Kind, Worker

#: Positional and keyword arguments.
_Call = tuple[tuple[Any, ...], dict[str, Any]]
#: Where a result lies that lies nowhere.
_NOWHERE = Place(0, 0, 0, 0)


class Sprint(ABC):
    """Steps that follow each other in a lot, whose arguments are plain values, at their first attempts."""

    __slots__ = ("_calls", "_function", "_kind", "_worker")

    def __init__(self, worker: Worker, kind: Kind, function: Callable[..., Any], calls: Iterator[Any]) -> None:
        """`function` is called with each of `calls`, which may end before the steps do."""
        self._worker, self._kind, self._function, self._calls = worker, kind, function, calls

    @staticmethod
    def of(worker: Worker, lot: Lot, place: int) -> Sprint | None:
        """The steps of a lot from there on, if they are such as far as can be told at once."""
        if lot.special or not worker.store.bulk:
            return None
        block = worker.plan.block(lot.steps[place])
        kind = worker.kind(block.family)
        if kind.seconds > LONG or not worker.is_confined(kind):
            return None
        return Members.among(worker, kind, block, lot.steps, place) or Singles(worker, kind, lot.steps, place)

    def run(self, number: int, here: Here, until: float) -> list[bytes | Outcome]:
        """Run them, the first of which has this number among the tasks of this process, up to the fence or until that
        moment: what came of those that ended, packed briefs together. Of none where the first is no such step.
        """
        numbers, times = here
        function, clock = self._function, monotonic
        results: list[bytes] = []
        ends: list[float] = []
        values: list[Any] = []
        keep, ended, gave = results.append, ends.append, values.append
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
                gave(value)
                now = clock()
                ended(now)
                number += 1
                if now > until:
                    break
        except BaseException as error:
            odd = None, error
            del results[len(ends) :], values[len(ends) :]
        came = self._conclude(began, ends, values, results) if ends else []
        if odd is not None:
            count = len(ends)
            step, said = self._step(count), self._said(count)
            came.append(self._worker.conclude(step, ends[-1] if ends else began, *odd, said=said))
        return came

    def _conclude(
        self, began: float, ends: list[float], values: list[Any], results: list[bytes]
    ) -> list[bytes | Outcome]:
        """Store the results of the first steps."""
        worker = self._worker
        whens = array("d", map((time() - monotonic()).__add__, ends))
        seconds = array("d", map(sub, ends, chain((began,), ends)))
        self._kind.seconds = max(*seconds, FADING * self._kind.seconds)
        steps = self._steps(len(ends))
        try:
            briefs = self._keep(whens, seconds, results)
        except (EzpypError, OSError) as error:
            ended = zip(steps, whens, seconds, strict=True)
            lost = (Brief(k, 1, worker.rank, when, spent, _NOWHERE) for k, when, spent in ended)
            return [worker.lost(brief, error) for brief in lost]
        worker.upstream.keep_plain(steps, values, results)
        return [briefs]

    def _step(self, place: int) -> int:
        return self._steps(place + 1)[place]

    @abstractmethod
    def _steps(self, count: int) -> Sequence[int]:
        """The first so many steps."""

    @abstractmethod
    def _said(self, place: int) -> tuple[str, str]:
        """The arguments of a step as texts, where they are not those that the plan shows; else empty."""

    @abstractmethod
    def _keep(self, whens: array[float], seconds: array[float], results: list[bytes]) -> bytes:
        """Store the results of the first steps; their packed briefs."""


class Members(Sprint):
    """Steps that follow each other in a family: what they give is stored as one."""

    __slots__ = ("_block", "_start")

    def __init__(
        self, worker: Worker, kind: Kind, block: Block, start: int, calls: Iterator[Any], constants: dict[str, Any]
    ) -> None:
        """The first of them is the step `start`; the constants are given to each."""
        super().__init__(worker, kind, partial(kind.function, **constants) if constants else kind.function, calls)
        self._block, self._start = block, start

    @classmethod
    def among(cls, worker: Worker, kind: Kind, block: Block, steps: Sequence[int], place: int) -> Members | None:
        """Those from a place among steps on; None where they are no members that can be run so."""
        calls, start = block.family.calls, steps[place]
        if not isinstance(steps, range) or not isinstance(calls, Columns) or worker.plan.stems.are_others(block.family):
            return None
        stop = min(steps.stop, block.stop, start + MOST_TOGETHER)
        columns = calls.between(block.members[start - block.start : stop - block.start])
        constants = calls.shared.plain[1] if calls.shared.plain is not None else {}
        if columns is None or not all(map(_are_plain, (*columns, [*constants.values()]))):
            return None
        return cls(worker, kind, block, start, zip(*columns, strict=True), constants)

    def _steps(self, count: int) -> range:
        return range(self._start, self._start + count)

    def _said(self, place: int) -> tuple[str, str]:
        return "", ""

    def _keep(self, whens: array[float], seconds: array[float], results: list[bytes]) -> bytes:
        worker, block, steps = self._worker, self._block, self._steps(len(results))
        family = block.family
        first = (family.first or 0) + block.members[steps.start - block.start]
        prints = worker.fingerprints.packed[steps.start * SIZE : steps.stop * SIZE]
        places = worker.store.add_all(Batch(family.label, first, prints, whens, seconds, "pickle", results))
        columns = places.offsets, places.sizes, places.checksums
        rank, segment, once = repeat(worker.rank), repeat(places.segment), repeat(1)
        return b"".join(map(pack, steps, once, rank, segment, whens, seconds, *columns))


class Singles(Sprint):
    """Any steps of a function, those that are given results of others among them, as far as these are at hand: what
    they give is stored one by one.
    """

    __slots__ = ("_begun", "_order", "_place")

    def __init__(self, worker: Worker, kind: Kind, steps: Sequence[int], place: int) -> None:
        """The first of them has this place among steps."""
        super().__init__(worker, kind, call, self._bound())
        self._order, self._place = steps, place
        #: Those that were begun: the family, the member, and the arguments if the plan does not show them.
        self._begun: list[tuple[Family, int, _Call | None]] = []

    def _bound(self) -> Iterator[tuple[Any, ...]]:
        """The function with its positional arguments, a step after the other."""
        worker, mine, begin = self._worker, self._kind, self._begun.append
        find, places, upstream, kind = worker.plan.steps.find, worker.plan.places, worker.upstream.plain, worker.kind
        function = mine.function

        def value(given: Any) -> Any:
            if type(given) in PLAIN:
                return given
            step = given.step if type(given) is PlaceHolder else given
            if type(step) is not Step:
                raise LookupError(given)
            return upstream(places[step])

        for k in islice(self._order, self._place, self._place + MOST_TOGETHER):
            family, member = find(k)
            calls = family.calls
            given = calls.given(member) if isinstance(calls, Columns) else calls[member].plain
            if given is None or kind(family) is not mine:
                return
            args, kwargs = given
            try:
                found = (*map(value, args),)
                named = {name: value(each) for name, each in kwargs.items()} if kwargs else kwargs
            except Exception:  # it comes again where it is told
                return
            begin((family, member, (found, named) if found != args or named != kwargs else None))
            yield (partial(function, **named), *found) if named else (function, *found)

    def _steps(self, count: int) -> Sequence[int]:
        return self._order[self._place : self._place + count]

    def _said(self, place: int) -> tuple[str, str]:
        given = self._begun[place][2] if place < len(self._begun) else None
        return ("", "") if given is None else describe(*given)

    def _keep(self, whens: array[float], seconds: array[float], results: list[bytes]) -> bytes:
        worker, packed = self._worker, []
        stems, rank, print_of, add = worker.plan.stems, worker.rank, worker.fingerprints.raw, worker.store.add
        are_others = stems.are_others
        ended = zip(self._steps(len(results)), self._begun, whens, seconds, results, strict=False)
        for k, (family, member, given), when, spent, result in ended:
            name = family.name(member)
            args, kwargs = describe(*given) if given is not None else ("", "")
            stem = stems[k] if are_others(family) else name
            done = Done(stem, name, print_of(k), when, spent, 1, "pickle", args, kwargs)
            segment, offset, size, checksum = add(done, (result,))
            packed.append(pack(k, 1, rank, segment, when, spent, offset, size, checksum))
            if args:
                worker.tell_call(k, family, args, kwargs)
        return b"".join(packed)


def _are_plain(values: Sequence[Any]) -> bool:
    return isinstance(values, range) or PLAIN.issuperset(map(type, values))
