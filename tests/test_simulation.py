"""Rank 0's own code against a virtual clock with thousands of ranks: every step once, in order, whatever dies when."""

from __future__ import annotations

import tempfile
from math import inf
from random import Random
from typing import TYPE_CHECKING, Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ezpyp import Pipeline, as_pickle_step
from tests.bench.simulation import Costs, Run, greedy, independent, lognormal, planned, simulate

if TYPE_CHECKING:
    from pathlib import Path

    from ezpyp.model.plan import Plan

#: Nothing that this machine does enters the virtual clock: a failure comes again.
COSTS = Costs(measured=False)


def gather(number: int, *values: int) -> int:
    return number + sum(values)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Layers and chains of some dozens of steps."""
    total, chances = draw(st.integers(1, 60)), Random(draw(st.integers(0, 2**32)))
    with tempfile.TemporaryDirectory() as folder:
        pipeline = Pipeline(folder, "drawn")
        step = as_pickle_step(pipeline)(gather)
        made: list[Any] = []
        for k in range(total):
            before = chances.sample(made, min(len(made), chances.choice([0, 0, 1, 2, 3])))
            made.append(step(k, *before))
        return planned(pipeline)


def check(plan: Plan, run: Run, done: set[int]) -> None:
    """Nothing ran twice, nothing that was done ran, and nothing began before what it needs had ended."""
    assert not run.twice
    assert not run.began.keys() & done
    for index, began in run.began.items():
        for parent in plan.graph.parents[index]:
            assert parent in done or run.ended[parent] <= began


@settings(max_examples=40, deadline=None)
@given(plans(), st.integers(1, 3000), st.integers(1, 4), st.integers(0, 2**32))
def test_every_step_runs_once_and_after_what_it_needs(plan: Plan, ranks: int, helpers: int, seed: int) -> None:
    seconds = [Random(seed + k).choice([1e-5, 0.003, 0.2, 3.0]) for k in range(len(plan.steps))]
    run = simulate(plan, seconds, ranks=ranks, helpers=helpers, costs=COSTS)
    check(plan, run, set())
    assert len(run.ended) == len(plan.steps)
    assert run.ledger is not None
    assert run.ledger.done == len(plan.steps)


@settings(max_examples=40, deadline=None)
@given(plans(), st.integers(1, 300), st.lists(st.floats(0.0, 1.0), max_size=4), st.integers(0, 2**32))
def test_runs_that_die_lose_nothing_and_the_next_does_the_rest(
    plan: Plan, ranks: int, deaths: list[float], seed: int
) -> None:
    seconds = [Random(seed + k).choice([1e-5, 0.003, 0.2, 3.0]) for k in range(len(plan.steps))]
    done: set[int] = set()
    for death in [*(share * sum(seconds) for share in deaths), inf]:
        if len(done) == len(plan.steps):
            break
        run = simulate(plan, seconds, ranks=ranks, helpers=2, costs=COSTS, dies_at=death, done=done)
        check(plan, run, done)
        assert run.ledger is not None
        reported = {k for k, status in enumerate(run.ledger.statuses()) if status == 0}
        assert reported <= done | run.durable(), "what was reported is on disk"
        done |= run.durable()
    assert len(done) == len(plan.steps)


def test_two_thousand_ranks_are_kept_busy(tmp_path: Path) -> None:
    steps, slots = 8_000, 2_000
    plan, seconds = independent(steps, str(tmp_path)), lognormal(steps, 1.0, 0.25)
    for ranks in (20, 2_000):
        run = simulate(plan, seconds, ranks=ranks, helpers=slots // ranks, costs=COSTS)
        check(plan, run, set())
        assert len(run.ended) == steps
        assert run.makespan <= 1.05 * greedy(seconds, slots)
