"""The ledger on random graphs, with random outcomes in random order, against a model of the definitions."""

from __future__ import annotations

import heapq
import tracemalloc
from array import array
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ezpyp.model.edges import Edges
from ezpyp.model.outcomes import Status
from ezpyp.model.plan import Graph
from ezpyp.model.policy import Retry
from ezpyp.schedule.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

DONE, FAILED, SKIPPED, NOT_RUN = Status.DONE, Status.FAILED, Status.SKIPPED, Status.NOT_RUN
SCHEDULES = ("ready", "phase")


@dataclass(frozen=True)
class Case:
    """A graph, and for each step how many of its runs fail (-1: it is interrupted)."""

    graph: Graph
    failures: tuple[int, ...]

    @property
    def total(self) -> int:
        return len(self.failures)

    def runs_of(self, index: int) -> list[Status]:
        """The outcomes of the runs a step gets once it may run."""
        if self.failures[index] < 0:
            return [NOT_RUN]
        tries = self.graph.retries.get(index, Retry()).times + 1
        failed = [FAILED] * min(self.failures[index], tries)
        return failed if len(failed) == tries else [*failed, DONE]

    def with_failures(self, failures: tuple[int, ...]) -> Case:
        return Case(self.graph, failures)


class TangledError(Exception):
    """A group waits for itself."""


class Model:
    """What must come of each step, by recursion over the definitions."""

    def __init__(self, case: Case) -> None:
        self.case, self.graph = case, case.graph
        self._known: dict[int, Status | None] = {}
        self.blame: dict[int, int] = {}

    @cached_property
    def statuses(self) -> list[int]:
        return [int(self.status(k)) for k in range(self.case.total)]

    def status(self, index: int) -> Status:
        if index in self._known:
            known = self._known[index]
            if known is None:
                raise TangledError
            return known
        self._known[index] = None
        self._known[index] = found = self._find(index)
        return found

    def _find(self, index: int) -> Status:
        parents = self.graph.parents[index]
        culprits = []
        blocked = False
        for parent in parents:
            status = self.status(parent)
            if status == NOT_RUN:
                blocked = True
            elif status != DONE:
                passes = self.passes(parent)
                blocked = blocked or passes is None
                if passes is False:
                    culprits.append(parent if status == FAILED else self.blame[parent])
        if culprits:
            self.blame[index] = min(culprits)
            return SKIPPED
        return NOT_RUN if blocked else self.case.runs_of(index)[-1]

    def passes(self, index: int) -> bool | None:
        """Whether a failed or skipped step lets its children run; None where its group never settles."""
        group = self.graph.groups[index]
        if group < 0 or not self.graph.allowed[group]:
            return False
        members = [self.status(k) for k in range(self.case.total) if self.graph.groups[k] == group]
        if NOT_RUN in members:
            return None
        return sum(m != DONE for m in members) <= self.graph.allowed[group]


@st.composite
def cases(draw: st.DrawFn, *, interruptions: bool = False, most: int = 14) -> Case:
    total = draw(st.integers(1, most))
    chances = Random(draw(st.integers(0, 2**32)))
    edges = [
        sorted({chances.randrange(k) for _ in range(chances.choice([0, 1, 2, 3]) if k else 0)}) for k in range(total)
    ]
    depths: list[int] = []
    for parents in edges:
        depths.append(1 + max((depths[p] for p in parents), default=-1))
    order = sorted(range(total), key=depths.__getitem__)
    place = {old: new for new, old in enumerate(order)}
    number = draw(st.integers(0, 3))
    groups = tuple(chances.randrange(-1, number) for _ in range(total))
    graph = Graph(
        parents=Edges.of(sorted(place[p] for p in edges[old]) for old in order),
        phases=tuple(depths[old] for old in order),
        groups=groups,
        allowed=tuple(chances.choice([0, 1, 2, 3]) for _ in range(number)),
        retries={
            k: Retry(times=chances.randrange(1, 3), delay=chances.choice([0.0, 2.5]))
            for k in range(total)
            if chances.random() < 0.2
        },
    )
    return Case(graph, draw_failures(draw, total, interruptions=interruptions))


def draw_failures(
    draw: Callable[[st.SearchStrategy[list[int]]], list[int]], total: int, *, interruptions: bool = False
) -> tuple[int, ...]:
    numbers = [0, 0, 0, 0, 0, 0, 1, 3, 3, *([-1] if interruptions else [])]
    return tuple(draw(st.lists(st.sampled_from(numbers), min_size=total, max_size=total)))


class Carrier:
    """Carries a case out: takes, gives back and settles as `seed` says, and checks every move."""

    def __init__(self, case: Case, *, seed: int = 0, schedule: str = "ready") -> None:
        self.case = case
        self.chances = Random(seed)
        self.order = self._shuffled() if self.chances.random() < 0.5 else list(range(case.total))
        self.ledger = Ledger(
            case.graph, schedule=schedule, order=None if self.order == sorted(self.order) else self.order
        )
        self.running: list[int] = []
        self.runs: dict[int, list[Status]] = {}
        self.clock = 0.0
        self.settled: set[int] = set()

    def finish(self) -> Ledger:
        for _ in self.moves():
            pass
        return self.ledger

    def moves(self) -> Iterator[int]:
        """Go on to the end; yields after each outcome that ended a step."""
        for _ in range(100 * self.case.total + 100):
            if self.ledger.finished:
                assert not self.running
                return
            if self.running and self.chances.random() < 0.2:
                yield from self._settle_done()
            elif self.running and self.chances.random() < 0.6:
                yield from self._settle(self.chances.choice(self.running))
            else:
                self._take()
        pytest.fail("the run hangs")

    def _shuffled(self) -> list[int]:
        """An order of priority: phase by phase, and any within one."""
        order = self.chances.sample(range(self.case.total), self.case.total)
        return sorted(order, key=self.case.graph.phases.__getitem__)

    def _take(self) -> None:
        first = self.ledger.first(self.clock)
        taken = self.ledger.take(self.chances.randrange(1, 5), self.clock)
        assert taken[:1] == ([] if first is None else [self.order[first]])
        assert taken == sorted(set(taken), key=self.order.index)
        if not taken and not self.running:
            wake = self.ledger.next_wake()
            assert wake is not None, "nothing ready, running or delayed, and yet not finished"
            assert wake > self.clock
            self.clock = wake
        for index in taken:
            self._check_may_run(index)
        back = [k for k in taken if self.chances.random() < 0.1]
        self.ledger.give_back(back)
        self.running += [k for k in taken if k not in back]

    def _check_may_run(self, index: int) -> None:
        """All parents are done, or missing by allowance; the attempt is one that the step has."""
        missing = self.ledger.missing(index)
        for parent in self.case.graph.parents[index]:
            if parent in missing:
                assert self.ledger.status(parent) in (FAILED, SKIPPED)
                assert self.ledger.is_allowed(parent)
            else:
                assert self.ledger.status(parent) == DONE
        assert index not in self.running
        assert len(self.runs.get(index, ())) < len(self.case.runs_of(index))

    def _settle(self, index: int) -> Iterator[int]:
        runs = self.runs.setdefault(index, [])
        status = self.case.runs_of(index)[len(runs)]
        runs.append(status)
        self.running.remove(index)
        settled = self.ledger.settle(index, status, "exception", self.clock)
        assert settled.retry == (runs != self.case.runs_of(index))
        self._check_changes(index, settled.changes)
        if not settled.retry:
            yield index

    def _settle_done(self) -> Iterator[int]:
        """Some of those that are done next, together: a run of them as a range, or any as a list."""
        able = [k for k in self.running if self.case.runs_of(k)[len(self.runs.get(k, ())) :] == [DONE]]
        some: Sequence[int] = sorted(self.chances.sample(able, self.chances.randrange(len(able) + 1)))
        if some and some[-1] - some[0] == len(some) - 1:
            some = range(some[0], some[-1] + 1)
        for index in some:
            self.runs.setdefault(index, []).append(DONE)
            self.running.remove(index)
        self._check_changes(-1, self.ledger.settle_done(some).changes)
        yield from some

    def _check_changes(self, index: int, changes: tuple[tuple[int, Status], ...]) -> None:
        assert list(changes) == sorted(changes)
        for changed, status in changes:
            assert changed != index
            assert changed not in self.settled, "a step settles once"
            assert self.ledger.status(changed) == status
            self.settled.add(changed)


def check_counts(ledger: Ledger) -> None:
    found = [ledger.status(k) for k in range(ledger.total)]
    assert ledger.statuses().tolist() == found
    assert (ledger.done, ledger.failed, ledger.skipped, ledger.not_run) == tuple(
        found.count(status) for status in (DONE, FAILED, SKIPPED, NOT_RUN)
    )
    assert ledger.allowed == sum(s == FAILED and ledger.is_allowed(k) for k, s in enumerate(found))
    assert set(ledger.blame) == {k for k, s in enumerate(found) if s == SKIPPED}
    assert (ledger.running, ledger.delayed) == (0, 0)


def ancestors(graph: Graph, index: int) -> set[int]:
    return set(graph.parents[index]).union(*(ancestors(graph, p) for p in graph.parents[index]))


@settings(max_examples=400, deadline=None)
@given(cases(interruptions=True), st.integers(0, 2**32), st.sampled_from(SCHEDULES))
def test_a_run_ends_as_the_definitions_say(case: Case, seed: int, schedule: str) -> None:
    model = Model(case)
    try:
        expected = model.statuses
    except TangledError:
        assume(False)
    carrier = Carrier(case, seed=seed, schedule=schedule)
    ledger = carrier.finish()
    assert ledger.statuses().tolist() == expected
    assert ledger.blame == model.blame
    check_counts(ledger)
    for index in range(case.total):
        assert carrier.runs.get(index, case.runs_of(index)) == case.runs_of(index)
        if ledger.status(index) in (DONE, FAILED):
            assert ledger.failures[index] == case.runs_of(index).count(FAILED)
        if ledger.status(index) == SKIPPED:
            assert index not in carrier.runs
            assert ledger.status(ledger.blame[index]) == FAILED
            assert ledger.blame[index] in ancestors(case.graph, index)


@settings(max_examples=300, deadline=None)
@given(cases(), st.integers(0, 2**32), st.integers(0, 2**32))
def test_the_order_of_outcomes_and_the_schedule_change_nothing(case: Case, one: int, other: int) -> None:
    """Also where groups wait for themselves."""
    found = []
    for seed, schedule in ((one, "ready"), (other, "ready"), (one, "phase")):
        ledger = Carrier(case, seed=seed, schedule=schedule).finish()
        check_counts(ledger)
        seen = [(ledger.missing(k), ledger.absent(k), ledger.is_allowed(k)) for k in range(case.total)]
        found.append((ledger.statuses().tolist(), ledger.blame, seen, ledger.failures))
    assert found[0] == found[1] == found[2]


@settings(max_examples=200, deadline=None)
@given(cases(), st.integers(0, 2**32))
def test_phases_as_walls_never_overlap(case: Case, seed: int) -> None:
    assume(not any(case.graph.allowed))
    carrier = Carrier(case, seed=seed, schedule="phase")
    for _ in carrier.moves():
        assert len({case.graph.phases[k] for k in carrier.running}) <= 1


@settings(max_examples=300, deadline=None)
@given(cases(), st.integers(0, 2**32), st.integers(0, 14))
def test_resuming_after_any_prefix_equals_one_run(case: Case, seed: int, prefix: int) -> None:
    model = Model(case)
    try:
        expected = model.statuses
    except TangledError:
        assume(False)
    whole = Carrier(case, seed=seed).finish()
    first = Carrier(case, seed=seed + 1)
    for count, _ in enumerate(first.moves(), start=1):
        if count >= prefix:
            break
    done = {k: first.ledger.absent(k) for k in range(case.total) if first.ledger.status(k) == DONE}
    second = Carrier(case, seed=seed + 2)
    second.ledger.resume(statuses_of(done, case.total), done)
    ledger = second.finish()
    assert ledger.statuses().tolist() == expected
    assert ledger.blame == model.blame
    assert ledger.cached == len(done)
    assert not second.runs.keys() & done.keys(), "what was done is not run again"
    assert [ledger.absent(k) for k in range(case.total)] == [whole.absent(k) for k in range(case.total)]


def statuses_of(done: Mapping[int, object], total: int) -> bytes:
    return bytes(DONE if k in done else 0xFF for k in range(total))


# ----- nothing stale: several runs on one store, each with other failures, each killed somewhere


@dataclass(frozen=True)
class Value:
    """What a step makes: the values it was given, None for one that was missing."""

    inputs: tuple[Value | None, ...]

    @property
    def complete(self) -> bool:
        return all(each is not None and each.complete for each in self.inputs)


class Cache:
    """Results with what was absent from them, as a store keeps them from run to run."""

    def __init__(self) -> None:
        self.values: dict[int, Value] = {}
        self.absent: dict[int, tuple[int, ...]] = {}

    def record(self, ledger: Ledger, graph: Graph, index: int) -> None:
        self.values[index] = self.remake(ledger, graph, index)
        self.absent[index] = ledger.absent(index)

    def remake(self, ledger: Ledger, graph: Graph, index: int) -> Value:
        missing = ledger.missing(index)
        return Value(tuple(None if p in missing else self.values[p] for p in graph.parents[index]))


@settings(max_examples=300, deadline=None)
@given(st.data(), st.integers(0, 2**32))
def test_no_result_is_stale_after_any_number_of_killed_runs(data: st.DataObject, seed: int) -> None:
    """A result that counts as done was made from all inputs, or from just those that are there now."""
    case = data.draw(cases(most=9))
    cache = Cache()
    for _ in range(3):
        case = case.with_failures(draw_failures(data.draw, case.total))
        carrier = Carrier(case, seed=seed)
        carrier.ledger.resume(statuses_of(cache.absent, case.total), cache.absent)
        stop = data.draw(st.integers(1, 12))
        fresh: set[int] = set()
        for count, _ in enumerate(carrier.moves(), start=1):
            new = {k for k in carrier.runs if carrier.ledger.status(k) == DONE} - fresh
            for index in sorted(new):  # some are settled together
                cache.record(carrier.ledger, case.graph, index)
            fresh |= new
            if count == stop:
                break
        check_fresh(carrier.ledger, cache, case.graph)


def check_fresh(ledger: Ledger, cache: Cache, graph: Graph) -> None:
    for index in range(ledger.total):
        if ledger.status(index) == DONE:
            value = cache.values[index]
            assert value.complete or value == cache.remake(ledger, graph, index)


# ----- thousands of slots on a virtual clock


@pytest.mark.parametrize("slots", [64, 3_000])
def test_no_slot_idles_while_something_is_ready(slots: int) -> None:
    chances = Random(slots)
    total, width = 12_000, 2_000
    before = [(k // width - 1) * width for k in range(total)]
    parents = tuple(
        tuple(sorted({first + chances.randrange(width) for _ in range(2)})) if first >= 0 else () for first in before
    )
    graph = Graph(parents=Edges.of(parents), phases=tuple(k // width for k in range(total)), groups=(-1,) * total)
    seconds = [chances.expovariate(1.0) for _ in range(total)]
    ends = simulate(graph, seconds, slots)
    assert len(ends) == total
    # The longest chain and the work over the slots bound the time from below; their sum bounds it from above
    # if no slot idles for nothing (R. L. Graham, Bounds on multiprocessing timing anomalies, 1969).
    chain = longest_chain(graph, seconds)
    assert max(chain, sum(seconds) / slots) <= max(ends.values()) <= chain + sum(seconds) / slots


def simulate(graph: Graph, seconds: list[float], slots: int) -> Mapping[int, float]:
    """Run on a virtual clock with one step a slot. Readiness is found anew from the graph at every moment."""
    ledger = Ledger(graph)
    events: list[tuple[float, int]] = []
    ends: dict[int, float] = {}
    waiting = {k: set(parents) for k, parents in enumerate(graph.parents)}
    children: dict[int, list[int]] = {}
    for k, mine in enumerate(graph.parents):
        for parent in mine:
            children.setdefault(parent, []).append(k)
    startable = {k for k, mine in waiting.items() if not mine}
    clock = 0.0
    while not ledger.finished:
        taken = ledger.take(slots - len(events), clock)
        startable.difference_update(taken)
        for index in taken:
            heapq.heappush(events, (clock + seconds[index], index))
        assert len(events) == slots or not startable, "a slot idles while something is ready"
        clock, index = heapq.heappop(events)
        ledger.settle(index, DONE, now=clock)
        ends[index] = clock
        for child in children.get(index, ()):
            waiting[child].discard(index)
            if not waiting[child]:
                startable.add(child)
    return ends


def longest_chain(graph: Graph, seconds: list[float]) -> float:
    ends: list[float] = []
    for index, parents in enumerate(graph.parents):
        ends.append(seconds[index] + max((ends[p] for p in parents), default=0.0))
    return max(ends)


@pytest.mark.parametrize("edges", [0, 2])
def test_a_million_steps_fit_in_a_few_bytes_each(edges: int) -> None:
    """Everything the ledger keeps for an ordinary step are numbers in arrays, whatever happens to it."""
    total = 50_000
    listed = [range(k - 2_000, k - 2_000 + edges) if k >= 2_000 else range(0) for k in range(total)]
    graph = Graph(
        parents=Edges.of(listed), phases=array("i", (k // 2_000 for k in range(total))), groups=array("i", [-1]) * total
    )
    tracemalloc.start()
    try:
        ledger = Ledger(graph)
        while taken := ledger.take(512):
            ledger.give_back(taken[300:])
            ledger.settle_done(taken[:300])
        kept, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert ledger.done == total
    assert kept <= 50 * total
    assert most <= 100 * total
