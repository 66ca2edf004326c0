"""A large run against a virtual clock: the very conductor, ledger, pace and messages of rank 0; the ranks are played.

    python -m tests.bench.simulation [--steps 1000000] [--slots 10000] [--sigma 0.25]

What rank 0 does is its own code (`Conductor`, `Ledger`, `Pace`, `Ranks`, `Journal`): the processor time that it takes
here is what passes on the virtual clock. Messages cost what was measured between real ranks. Ranks and helpers are
played: a helper runs its lots in order and reports as `helper.py` does.
"""

from __future__ import annotations

import argparse
import heapq
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from math import inf, log
from random import Random
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

from ezpyp import Pipeline, as_pickle_step, conductor, mpi
from ezpyp.briefs import pack
from ezpyp.conductor import Conductor
from ezpyp.events import Bus, Journal
from ezpyp.helper import REPORT_EVERY
from ezpyp.job import Job
from ezpyp.ledger import Ledger
from ezpyp.lots import Report
from ezpyp.pace import Functions, Pace
from ezpyp.plan import Plan
from ezpyp.steps import Status
from ezpyp.stopping import Stop


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Seconds. Measured on both MPIs, two cores: a pair of messages takes 2 to 6 µs over shared memory and 15 to 28 µs
    over TCP; 40 µs are reckoned with, half of them for each. A message over TCP arrives after about 15 µs.
    """

    send: float = 20e-6
    receive: float = 20e-6
    #: A look for messages where there is none.
    probe: float = 1e-6
    latency: float = 15e-6
    #: An idle agent looks for messages at least so often; and what a helper takes for a step, beside the step.
    nap: float = 1e-3
    step: float = 10e-6
    #: Whether the processor time of rank 0's own code passes too; what it is multiplied by.
    measured: bool = True


class Killed(Exception):
    """The time of the run's death has come."""


class Clock:
    """Stands for the module `time` in rank 0's code."""

    def __init__(self, costs: Costs) -> None:
        self.now = self.busy = 0.0
        self._measured = costs.measured
        self._dies_at, self._since = inf, 0.0

    def start(self, dies_at: float) -> None:
        self._dies_at, self._since = dies_at, time.thread_time()

    def end(self) -> None:
        """Nobody dies any more."""
        self._dies_at = inf

    def monotonic(self) -> float:
        with self.still():
            return self.now

    time = perf_counter = monotonic

    def sleep(self, seconds: float) -> None:
        with self.still():
            self.now += seconds

    @contextmanager
    def still(self) -> Iterator[None]:
        """What is done meanwhile takes no time."""
        if self._measured:
            self.charge(time.thread_time() - self._since)
        if self.now >= self._dies_at:
            raise Killed
        yield
        self._since = time.thread_time()

    def charge(self, seconds: float) -> None:
        """Rank 0 is busy so long."""
        self.now += seconds
        self.busy += seconds


@dataclass(slots=True)
class Run:
    """What came of it."""

    #: When each step that ran began and ended; those of them whose results are on disk.
    began: dict[int, float] = field(default_factory=dict)
    ended: dict[int, float] = field(default_factory=dict)
    #: Steps that began twice.
    twice: list[int] = field(default_factory=list)
    makespan: float = 0.0
    #: Seconds that rank 0 was busy; messages that it sent and received.
    busy: float = 0.0
    messages: int = 0
    ledger: Ledger | None = None

    def durable(self) -> set[int]:
        """Steps whose results were on disk when the run ended."""
        return {k for k, end in self.ended.items() if end <= self.makespan}


class Wire:
    """Stands for `mpi.Link`, with all other ranks behind it."""

    def __init__(self, clock: Clock, costs: Costs, seconds: Sequence[float], helpers: int, run: Run, seed: int) -> None:
        self._clock, self._costs, self._seconds, self._run = clock, costs, seconds, run
        self._helpers = helpers
        self._chances = Random(seed)
        #: For each rank, its helpers: (lots that it holds, when it will be free, its number).
        self._free: dict[int, list[float]] = {}
        self._on_way: list[tuple[float, int, int, Any]] = []
        self._count = 0

    def send(self, message: Any, to: int) -> None:
        with self._clock.still():
            self._clock.charge(self._costs.send)
            self._run.messages += 1
            kind, content = message
            if kind == "lot":
                self._work(
                    content, to, self._clock.now + self._costs.latency + self._chances.uniform(0, self._costs.nap)
                )

    def receive(self) -> tuple[int, Any] | None:
        with self._clock.still():
            if not self._on_way or self._on_way[0][0] > self._clock.now:
                self._clock.charge(self._costs.probe)
                return None
            self._clock.charge(self._costs.receive)
            self._run.messages += 1
            _, _, rank, message = heapq.heappop(self._on_way)
            return rank, message

    def _work(self, lot: Sequence[Any], rank: int, arrival: float) -> None:
        """The helper that is free first takes it, and reports as helpers do."""
        free = self._free.setdefault(rank, [0.0] * self._helpers)
        now = max(arrival, free[0])
        done: list[bytes] = []
        reported = now
        for number, (index, attempt, *_) in enumerate(lot):
            if index in self._run.began:
                self._run.twice.append(index)
            self._run.began[index] = now
            now += self._seconds[index] + self._costs.step
            self._run.ended[index] = now
            done.append(pack(index, attempt, rank, 0, now, self._seconds[index], 0, 0, 0))
            if now - reported > REPORT_EVERY or number == len(lot) - 1:
                self._count += 1
                # Nothing is idle and nothing held up, so far as it says: what waits is not recalled.
                report = ("reports", ([Report(b"".join(done))], number == len(lot) - 1, self._helpers, 0))
                heapq.heappush(self._on_way, (now + self._costs.latency, self._count, rank, report))
                done, reported = [], now
        heapq.heapreplace(free, now)


def simulate(
    plan: Plan,
    seconds: Sequence[float],
    *,
    ranks: int,
    helpers: int,
    costs: Costs | None = None,
    seed: int = 0,
    dies_at: float = inf,
    done: Collection[int] = (),
    journal: str = "",
) -> Run:
    """Carry a plan out. Rank 0 only schedules, as above 64 ranks; `done` are the steps that need not run.

    Args:
        journal: the folder that gets the journal; "" writes none.
    """
    costs = costs or Costs()
    run, clock = Run(), Clock(costs)
    wire = Wire(clock, costs, seconds, helpers, run, seed)
    with ExitStack() as stack:
        for module in (conductor, mpi):
            stack.enter_context(patch.object(module, "time", clock))
        ledger = run.ledger = Ledger(plan.graph)
        ledger.resume([Status.DONE if k in done else Status.NOT_RUN for k in range(len(plan.steps))], {})
        todo = range(len(plan.steps)) if not done else [k for k in range(len(plan.steps)) if k not in done]
        job = SimpleNamespace(plan=plan, todo=todo, worker=lambda: None, store=None, sign=None, link=wire)
        bus = Bus([Journal(journal, "simulated", clock=clock.monotonic)] if journal else [])
        leader = Conductor(cast("Job", job), ledger, bus, [""] * (ranks + 1))
        team = [mpi.Ranks(cast("mpi.Link", wire), dict.fromkeys(range(1, ranks + 1), helpers), lambda *_, **__: None)]
        pacing = Pace(Functions.of(plan), ranks * helpers)
        clock.start(dies_at)
        with suppress(Killed):
            leader.conduct(team, pacing, Stop(), 10.0)
        clock.end()
        bus.close()
    run.makespan, run.busy = min(clock.now, dies_at), clock.busy
    return run


def independent(count: int, folder: str) -> Plan:
    """A plan of so many steps of one function that need nothing."""
    pipeline = Pipeline(folder, "simulated")
    as_pickle_step(pipeline)(abs).map(range(count))
    return planned(pipeline)


def planned(pipeline: Pipeline) -> Plan:
    pipeline.organize_steps()
    assert pipeline._plan is not None
    return pipeline._plan


def lognormal(count: int, mean: float, sigma: float, seed: int = 1) -> list[float]:
    """Durations. The mean of exp(N(m, s²)) is exp(m + s²/2)."""
    draw: Callable[[float, float], float] = Random(seed).lognormvariate
    return [draw(log(mean) - sigma * sigma / 2, sigma) for _ in range(count)]


def greedy(seconds: Sequence[float], slots: int) -> float:
    """How long independent steps take in their order where messages take no time."""
    free = [0.0] * min(slots, len(seconds))
    for each in seconds:
        heapq.heapreplace(free, free[0] + each)
    return max(free)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.simulation")
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--slots", type=int, default=10_000)
    parser.add_argument("--sigma", type=float, default=0.25, help="of the durations' logarithm; their mean is 1 s")
    chosen = parser.parse_args()
    steps, slots = chosen.steps, chosen.slots
    seconds = lognormal(steps, 1.0, chosen.sigma)
    ideal = greedy(seconds, slots)
    print(f"{steps:,} steps, {slots:,} slots, lognormal, mean 1 s, sigma {chosen.sigma:g}")
    print(f"  without any cost: efficiency {sum(seconds) / slots / ideal:.4f}")
    with tempfile.TemporaryDirectory() as folder:
        plan = independent(steps, folder)
        for ranks in (slots // 100, slots):
            began = time.perf_counter()
            run = simulate(plan, seconds, ranks=ranks, helpers=slots // ranks, journal=folder)
            assert len(run.ended) == steps
            assert not run.twice
            told = (
                f"efficiency {sum(seconds) / slots / run.makespan:.4f}",
                f"{run.makespan / ideal:.4f} of the time without cost",
                f"load of rank 0 {run.busy / run.makespan:.3f}",
                f"{run.busy / steps * 1e6:.1f} µs and {run.messages / steps:.2f} messages a step",
                f"simulated in {time.perf_counter() - began:.0f} s",
            )
            print(f"  {ranks:,} ranks of {slots // ranks} helpers: {', '.join(told)}", flush=True)


if __name__ == "__main__":
    main()
