"""Where steps run when they ask for cores, GPUs and memory: random nodes and requests on a virtual clock."""

from __future__ import annotations

import heapq
from array import array
from collections import Counter, deque
from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ezpyp.model.edges import Edges
from ezpyp.model.kinds import Functions
from ezpyp.model.outcomes import Status
from ezpyp.model.plan import Graph
from ezpyp.model.policy import Retry
from ezpyp.model.request import Request
from ezpyp.schedule import dispatch
from ezpyp.schedule.dispatch import Dispatch, Start
from ezpyp.schedule.ledger import Ledger
from ezpyp.schedule.pace import Pace
from ezpyp.schedule.placement import Place, Placement, cannot_hold, idle_gpus, underused
from ezpyp.system.resources import Grant, Stock

ORDINARY = Request()


def place(rank: int = 0, host: str = "n1", slots: int = 1, **more: Any) -> Place:
    return Place(rank=rank, host=host, slots=slots, stock=Stock(**more))


def node(ranks: int, *, first: int = 0, host: str = "n1", slots: int = 1, **more: Any) -> list[Place]:
    """Ranks that share a node."""
    return [place(first + k, host, slots, **more) for k in range(ranks)]


# ----- by example


def test_a_wide_step_gets_cores_next_to_each_other_that_nobody_else_has() -> None:
    placement = Placement([place(slots=4, cores=6, numbers=(0, 2, 3, 4, 8, 9))], [ORDINARY, Request(cpus=3)])
    given = placement.give(1, 70)
    assert given is not None
    assert given[1].cores == (2, 3, 4)
    other = placement.give(1, 71)
    assert other is not None
    assert other[1].cores == (0, 8, 9)
    assert placement.give(1, 72) is None
    placement.end([70])
    again = placement.give(1, 72)
    assert again is not None
    assert again[1].cores == (2, 3, 4)


def test_fractions_share_a_device_and_whole_ones_do_not() -> None:
    requests = [ORDINARY, Request(gpus=0.5), Request(gpus=1), Request(gpus=1 / 3)]
    placement = Placement([place(slots=9, cores=9, gpus=("2", "5"))], requests)
    granted = [placement.give(kind, step) for step, kind in enumerate([1, 1, 2, 2, 1])]
    assert [each and each[1].gpus for each in granted] == [(("2", 0.5),), (("2", 0.5),), (("5", 1.0),), None, None]
    placement.end([0, 1])
    for step in range(10, 13):
        assert placement.give(3, step), "three thirds are a whole"
    assert placement.give(3, 13) is None


def test_a_step_with_a_fraction_more_than_whole_devices_gets_both() -> None:
    placement = Placement([place(gpus=("0", "1"))], [ORDINARY, Request(gpus=1.25)])
    assert placement.give(1, 0) == (0, Grant(gpus=(("0", 1.0), ("1", 0.25)), process="own"))


def test_ranks_that_were_given_devices_of_their_own_keep_to_those() -> None:
    places = [place(k, gpus=("0",), own_gpus=True) for k in (0, 1)]
    placement = Placement(places, [ORDINARY, Request(gpus=1)])
    found = [placement.give(1, step) for step in range(3)]
    assert [each and (each[0], each[1].gpus) for each in found] == [(0, (("0", 1.0),)), (1, (("0", 1.0),)), None]


def test_memory_of_a_node_is_granted_once() -> None:
    placement = Placement(node(3, cores=8, memory=10), [ORDINARY, Request(memory=6), Request(memory=4)])
    assert placement.give(1, 0)
    assert placement.give(1, 1) is None
    assert placement.give(2, 2)
    assert placement.give(2, 3) is None
    placement.end([0])
    assert placement.give(1, 1)


def test_an_ordinary_lot_takes_a_core_from_those_who_want_many() -> None:
    placement = Placement(node(2, cores=2), [ORDINARY, Request(cpus=2)])
    rank = placement.seat()
    assert rank is not None
    placement.lend(rank, [10, 11])
    assert placement.give(1, 0) is None
    placement.end([11])
    assert placement.give(1, 0) is None
    placement.end([10])
    assert placement.give(1, 0)
    assert placement.seat() is None, "an idle rank without a core"


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request(cpus=4), ""),
        (Request(cpus=5), "big has 4 cores and 2 GPUs"),
        (Request(cpus=3, gpus=1), ""),
        (Request(gpus=2.5), "big has 4 cores and 2 GPUs"),
        (Request(memory=2**31), "big has 4 cores, 2 GPUs and 1.0 GiB"),
        (Request(memory=2**30), ""),
    ],
)
def test_what_no_node_can_ever_hold_is_known_before(request_: Request, said: str) -> None:
    places = [
        place(0, "small", 2, cores=2, memory=2**29),
        place(1, "big", 1, cores=4, memory=2**30, gpus=("a", "b")),
    ]
    assert cannot_hold(places, request_) == said


@pytest.mark.parametrize(
    ("places", "ready", "said"),
    [
        (node(1, cores=128, reach=128), 64, ["n1: 128 cores allotted, 1 used. Set EZPYP_HELPERS=auto."]),
        (
            node(1, slots=8, cores=128, reach=1),
            64,
            ["n1: 128 cores allotted, 1 used. Set EZPYP_HELPERS=auto and mpirun --bind-to none."],
        ),
        (node(1, cores=128, reach=128), 63, []),
        (node(64, cores=128, reach=2), 500, []),
        (node(63, cores=128, reach=2), 500, ["n1: 128 cores allotted, 63 used. Set EZPYP_HELPERS=auto."]),
        (node(1, cores=2, reach=2), 500, []),
        (node(2, slots=0, cores=8), 500, []),
    ],
)
def test_a_node_that_is_hardly_used_is_told_of(places: list[Place], ready: int, said: list[str]) -> None:
    """Message 9; but not of a run that could not use it."""
    assert underused(places, ready, "EZPYP_HELPERS=auto") == said


@pytest.mark.parametrize(
    ("slots", "gpus", "each", "wanted", "said"),
    [
        ([1], "abcd", 1, 8, "4 GPUs, at most 1 used, because 1 step runs at a time there. Set EZPYP_HELPERS=4."),
        (
            [1, 1],
            "abcd",
            1,
            4,
            "4 GPUs, at most 2 used, because 2 steps run at a time there. Set EZPYP_HELPERS=2.",
        ),
        ([1], "abcd", 2, 8, "4 GPUs, at most 2 used, because 1 step runs at a time there. Set EZPYP_HELPERS=2."),
        ([3], "ab", 0.5, 8, ""),
        ([2], "ab", 0.5, 8, "2 GPUs, at most 1 used, because 2 steps run at a time there. Set EZPYP_HELPERS=4."),
        ([4], "abcd", 1, 8, ""),
        ([1], "abcd", 1, 3, ""),
        ([1], "", 1, 8, ""),
        ([0, 2], "ab", 1, 8, ""),
    ],
)
def test_gpus_that_stay_idle_for_want_of_helpers(
    slots: list[int], gpus: str, each: float, wanted: float, said: str
) -> None:
    ranks = [place(rank=k, slots=each_slots, gpus=tuple(gpus)) for k, each_slots in enumerate(slots)]
    assert idle_gpus(ranks, each, wanted, "EZPYP_HELPERS") == [f"n1: {said}"] * bool(said)


# ----- on a virtual clock


class Always(dict[int, Retry]):
    """Every step is tried again and again."""

    def get(self, step: int, default: object = None) -> Any:
        return Retry(times=1_000)


class Node:
    """What is taken of a node, counted apart from the code under test."""

    def __init__(self) -> None:
        self.cores: set[int] = set()
        self.units = 0
        self.memory = 0
        self.devices: Counter[tuple[int, str]] = Counter()


class Cluster:
    """Ranks whose slots run lots, one after the other, as helpers do; it checks each start."""

    def __init__(
        self,
        places: Sequence[Place],
        requests: Sequence[Request],
        kinds: Sequence[int],
        seconds: Sequence[float],
        parents: Edges | None = None,
        seed: int = 0,
        functions: int = 1,
    ) -> None:
        total = len(kinds)
        self.chances = Random(seed)
        self.places = {each.rank: each for each in places}
        self.requests, self.kinds, self.seconds = requests, kinds, seconds
        placement = Placement(places, requests)
        graph = Graph(parents=parents or Edges.none(total), phases=(0,) * total, groups=(-1,) * total, retries=Always())
        self.ledger = Ledger(graph, kinds=kinds, placement=placement)
        of = array("i", (self.chances.randrange(functions) for _ in kinds))
        pace = Pace(Functions(of, [f"f{k}" for k in range(functions)]), sum(p.slots for p in places))
        self.pace, self.dispatch = pace, Dispatch(self.ledger, pace, placement)
        self.slots: dict[int, list[deque[int]]] = {p.rank: [deque() for _ in range(p.slots)] for p in places}
        self.nodes = {p.host: Node() for p in places}
        self.grants: dict[int, Start] = {}
        self.clock = 0.0
        self.events: list[tuple[float, int, int, int]] = []
        self.order: list[int] = []
        #: How often a step is given back instead of run.
        self.returns = 0.0

    def run(self) -> None:
        while not self.ledger.finished:
            while (start := self.dispatch.next(self.clock)) is not None:
                self._start(start)
            assert self.events, "something is ready, nothing runs, and nothing starts"
            self.clock, rank, slot, step = heapq.heappop(self.events)
            self._finish(rank, slot, step)
        assert sorted(set(self.order)) == list(range(len(self.kinds)))

    def _start(self, start: Start) -> None:
        queue = min(self.slots[start.rank], key=len)
        if start.grant is not None:
            self._take(start)
        assert not queue, "nothing waits behind another: a step with a grant must find its slot idle"
        queue.extend(start.steps)
        self.order += start.steps
        self._occupy(start.rank, self.slots[start.rank].index(queue))
        self._check(start.rank)

    def _occupy(self, rank: int, slot: int) -> None:
        step = self.slots[rank][slot][0]
        heapq.heappush(self.events, (self.clock + self.seconds[step], rank, slot, step))

    def _finish(self, rank: int, slot: int, step: int) -> None:
        queue = self.slots[rank][slot]
        assert queue.popleft() == step
        if start := self.grants.pop(step, None):
            self._return(start)
        if self.chances.random() < self.returns:
            self.ledger.give_back([step])
        elif self.chances.random() < self.returns:
            self.ledger.settle(step, Status.FAILED, "signal", self.clock)
        else:
            self.ledger.settle_done([step])
        self.pace.learn([step], [self.seconds[step]])
        if queue:
            self._occupy(rank, slot)

    def _take(self, start: Start) -> None:
        grant, request = start.grant, self.requests[self.kinds[start.steps[0]]]
        assert grant is not None
        where, of = self.nodes[self.places[start.rank].host], self.places[start.rank]
        assert not where.cores.intersection(grant.cores)
        assert len(grant.cores) in (0, request.cpus)
        assert sum(share for _, share in grant.gpus) == pytest.approx(request.gpus, abs=1e-5)
        assert {token for token, _ in grant.gpus} <= set(of.stock.gpus)
        where.cores.update(grant.cores)
        where.units += request.cpus
        where.memory += request.memory
        for token, share in grant.gpus:
            where.devices[of.rank if of.stock.own_gpus else -1, token] += round(share * 1e6)
        self.grants[start.steps[0]] = start

    def _return(self, start: Start) -> None:
        grant, request = start.grant, self.requests[self.kinds[start.steps[0]]]
        assert grant is not None
        where, of = self.nodes[self.places[start.rank].host], self.places[start.rank]
        where.cores.difference_update(grant.cores)
        where.units -= request.cpus
        where.memory -= request.memory
        for token, share in grant.gpus:
            where.devices[of.rank if of.stock.own_gpus else -1, token] -= round(share * 1e6)

    def _check(self, rank: int) -> None:
        host = self.places[rank].host
        here = [p for p in self.places.values() if p.host == host]
        ordinary = sum(bool(q) and q[0] not in self.grants for p in here for q in self.slots[p.rank])
        units = max(*(p.stock.cores for p in here), sum(p.slots for p in here))
        assert self.nodes[host].units + ordinary <= units
        assert self.nodes[host].memory <= max(p.stock.memory for p in here)
        assert all(taken <= 1_000_000 for taken in self.nodes[host].devices.values())


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    chances = Random(draw(st.integers(0, 2**32)))
    places: list[Place] = []
    for k in range(draw(st.integers(1, 3))):
        ranks, slots = chances.randrange(1, 4), chances.randrange(1, 4)
        own = chances.random() < 0.3
        gpus = tuple(str(g) for g in range(chances.choice([0, 0, 1, 2, 4])))
        cores = chances.randrange(1, 9)
        numbers = tuple(range(chances.choice([0, cores, cores])))
        for _ in range(ranks):
            places.append(
                place(len(places), f"n{k}", slots, cores=cores, numbers=numbers, gpus=gpus, own_gpus=own, memory=100)
            )
    wanted = [
        Request(cpus=chances.randrange(1, 7), gpus=chances.choice([0, 0, 0.3, 0.5, 1, 1.5, 2]), memory=memory)
        for memory in chances.choices([0, 0, 10, 60], k=draw(st.integers(1, 4)))
    ]
    requests = [ORDINARY, *(each for each in wanted if each != ORDINARY and not cannot_hold(places, each))]
    total = draw(st.integers(1, 60))
    kinds = [chances.randrange(len(requests)) for _ in range(total)]
    edges = [
        sorted({chances.randrange(k) for _ in range(chances.choice([0, 0, 1, 2]) if k else 0)}) for k in range(total)
    ]
    scale = chances.choice([0.001, 1.0, 20.0])
    seconds = [chances.expovariate(1.0) * scale for _ in range(total)]
    seed, functions = chances.randrange(2**32), chances.randrange(1, 4)
    cluster = Cluster(places, requests, kinds, seconds, Edges.of(edges), seed, functions)
    cluster.returns = chances.choice([0.0, 0.2])
    return cluster


@settings(max_examples=500, deadline=None)
@given(clusters())
def test_nothing_is_granted_twice_and_everything_runs(cluster: Cluster) -> None:
    cluster.run()
    for node_ in cluster.nodes.values():
        assert not node_.cores
        assert (node_.units, node_.memory, sum(node_.devices.values())) == (0, 0, 0)


def passed_by(cluster: Cluster, step: int) -> int:
    """How many others started before a step."""
    cluster.run()
    return cluster.order.index(step)


def test_a_wide_step_at_the_head_is_passed_only_so_often() -> None:
    total = 2_000
    chances = Random(3)
    seconds = [0.5 + chances.random() for _ in range(total)]
    kinds = [0] * 10 + [1] + [0] * (total - 11)
    wide = Cluster(node(4, cores=4), [ORDINARY, Request(cpus=4)], kinds, seconds)
    assert 10 <= passed_by(wide, 10) <= 10 + dispatch.PASSES + 4


def test_two_gpus_at_once_are_not_kept_from_a_step_by_steps_of_one() -> None:
    total = 400
    chances = Random(5)
    kinds = [2, 2, 1] + [2] * (total - 3)
    places = node(1, slots=4, cores=8, gpus=("0", "1"))
    requests = [ORDINARY, Request(gpus=2), Request(gpus=1)]
    cluster = Cluster(places, requests, kinds, [0.5 + chances.random() for _ in range(total)])
    assert passed_by(cluster, 2) <= 2 + dispatch.PASSES + 4


def test_while_gpus_are_busy_the_other_slots_are_not_kept_idle() -> None:
    """Steps that wait for a GPU need not keep a slot: the one that has it leaves one with it."""
    kinds = [1] * 20 + [0] * 5_900
    seconds = [10.0] * 20 + [0.1] * 5_900
    cluster = Cluster(node(1, slots=4, cores=4, gpus=("0",)), [ORDINARY, Request(gpus=1)], kinds, seconds)
    cluster.run()
    assert cluster.clock <= 205


def test_steps_that_ask_for_gpus_come_first() -> None:
    cluster = Cluster(node(1, slots=1, gpus=("0",)), [ORDINARY, Request(gpus=1)], [0, 0, 1, 0, 1], [1.0] * 5)
    cluster.run()
    assert cluster.order == [2, 4, 0, 1, 3]


def test_a_step_with_a_grant_waits_for_what_runs_and_for_nothing_behind_it() -> None:
    edges = Edges.of([(), (0,), *[()] * 98])
    cluster = Cluster(node(1, gpus=("0",)), [ORDINARY, Request(gpus=1)], [0, 1] + [0] * 98, [0.1] * 100, edges)
    cluster.run()
    assert cluster.order.index(1) <= 4, "a lot of four was there before it was ready"
