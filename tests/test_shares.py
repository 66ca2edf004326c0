"""How a plan is divided into shares, and what they come to when they are taken in."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ezpyp.errors import InitializationError
from ezpyp.model.edges import Edges
from ezpyp.model.plan import Graph
from ezpyp.model.shares import LEFT, NOBODY, Share, divide, parse


def graph_of(*parents: tuple[int, ...]) -> Graph:
    """A graph; each step is in the phase after the last that it waits for."""
    phases: list[int] = []
    for each in parents:
        phases.append(1 + max((phases[p] for p in each), default=-1))
    return Graph(parents=Edges.of(parents), phases=phases, groups=[-1] * len(parents))


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Any graph whose steps wait for earlier ones only."""
    count = draw(st.integers(1, 60))
    few = [draw(st.sets(st.integers(0, k - 1), max_size=3)) if k else set() for k in range(count)]
    return graph_of(*(tuple(sorted(each)) for each in few))


def pieces(graph: Graph, owners: list[int]) -> list[set[int]]:
    """The steps of shares that hang together."""
    found: list[set[int]] = []
    for k, owner in enumerate(owners):
        if owner > 0:
            near = [piece for piece in found if piece & {*graph.parents[k]}]
            found = [piece for piece in found if piece not in near] + [{k}.union(*near)]
    return found


@given(graphs(), st.integers(1, 12), st.data())
def test_any_graph_is_divided_into_parts_that_can_run(graph: Graph, total: int, data: st.DataObject) -> None:
    count = len(graph.phases)
    done = bytes(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    apart = data.draw(st.sets(st.integers(0, count - 1), max_size=3))
    owners = [*divide(graph, total, done, apart).owners]
    assert all((owner == NOBODY) == bool(is_done) for owner, is_done in zip(owners, done, strict=True))
    assert all(NOBODY <= owner <= total for owner in owners)
    for k, owner in enumerate(owners):
        before = {owners[p] for p in graph.parents[k]} - {NOBODY}
        if owner > 0:
            assert before <= {owner}, f"step {k} of share {owner} waits for steps of {before}"
            assert k not in apart
        if owner == LEFT:
            assert before or k in apart, f"step {k} waits for nothing, and is left"


@given(graphs(), st.integers(1, 12))
def test_no_share_has_more_than_its_part_and_one_piece(graph: Graph, total: int) -> None:
    owners = [*divide(graph, total, bytes(len(graph.phases))).owners]
    loads = Counter(owner for owner in owners if owner > 0)
    largest = max(map(len, pieces(graph, owners)), default=0)
    assert max(loads.values(), default=0) <= sum(loads.values()) / total + largest


def test_steps_of_their_own_are_divided_evenly_along_every_axis() -> None:
    """Neighbours in a product differ in its last axis: a share must not get all of one value."""
    owners = divide(graph_of(*[()] * 1200), 3, bytes(1200)).owners
    cells = Counter((owner, k % 3) for k, owner in enumerate(owners))
    assert Counter(owners) == {1: 400, 2: 400, 3: 400}
    assert min(cells.values()) > 100


def test_a_million_steps_are_divided_at_once() -> None:
    count = 1_000_000
    graph = Graph(parents=Edges.none(count), phases=range(count), groups=())
    assert {*Counter(divide(graph, 500, bytes(count)).owners).values()} == {2000}


def test_chains_stay_together() -> None:
    """Ten chains of three, by phases as plans have them."""
    chains = graph_of(*[()] * 10, *((k,) for k in range(20)))
    owners = divide(chains, 5, bytes(30)).owners
    assert all(owners[k] == owners[k + 10] == owners[k + 20] for k in range(10))
    assert {*Counter(owners).values()} == {6}


def test_what_joins_more_than_a_part_is_left() -> None:
    """100 steps, 50 that take two each, and one that takes all."""
    graph = graph_of(*[()] * 100, *((k, k + 1) for k in range(0, 100, 2)), tuple(range(100, 150)))
    division = divide(graph, 5, bytes(151))
    assert Counter(division.owners) == {LEFT: 1, **dict.fromkeys(range(1, 6), 30)}
    assert division.owners[150] == LEFT
    assert division.largest == 3


def test_what_all_wait_for_holds_them_together_until_it_is_done() -> None:
    graph = graph_of((), *[(0,)] * 100)
    division = divide(graph, 4, bytes(101))
    assert len({*division.owners}) == 1
    assert (division.largest, division.hub) == (101, 0)
    after = divide(graph, 4, bytes([1]) + bytes(100))
    assert Counter(after.owners) == {NOBODY: 1, 1: 25, 2: 25, 3: 25, 4: 25}


def test_what_comes_after_a_step_that_is_kept_apart_is_left() -> None:
    graph = graph_of((), (), (0,), (1,), (2, 3))
    assert [*divide(graph, 1, bytes(5), apart=[0]).owners] == [LEFT, 1, LEFT, 1, LEFT]


def test_more_shares_than_steps_leave_some_with_nothing() -> None:
    owners = divide(graph_of((), (), ()), 10, bytes(3)).owners
    assert len({*owners}) == 3


@pytest.mark.parametrize("text", ["1/1", " 3/5", "5/5"])
def test_a_share_is_which_of_how_many(text: str) -> None:
    number, total = text.split("/")
    assert parse(text) == Share(int(number), int(total))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0/5", r"share 0/5: they are numbered from 1 to 5 \(#SBATCH --array=1-5\)\. Nothing was run\."),
        ("6/5", r"share 6/5: they are numbered from 1 to 5 "),
        ("1-5", r"share '1-5': say which of how many, such as 3/5\. Nothing was run\."),
        ("/5", r"share '/5': say which"),
        ("-1/5", r"share '-1/5': say which"),
        ("1/0", r"share 1/0: there can be 1 to 4,000,000 shares"),
    ],
)
def test_what_is_no_share_is_refused(text: str, says: str) -> None:
    with pytest.raises(InitializationError, match=says):
        parse(text)
