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
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from math import inf, log
from random import Random
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

from ezpyp import Pipeline, as_pickle_step
from ezpyp.folder.events import Bus, Journal
from ezpyp.model.kinds import Functions
from ezpyp.model.outcomes import Status
from ezpyp.model.plan import Plan
from ezpyp.model.settings import Settings
from ezpyp.ranks import mpi, team
from ezpyp.run import conductor, telling
from ezpyp.run.conductor import Conductor
from ezpyp.run.job import Job
from ezpyp.schedule import briefs
from ezpyp.schedule.ledger import Ledger
from ezpyp.schedule.pace import Pace
from ezpyp.storage.memory import MemoryStore
from ezpyp.system.pauses import pause
from ezpyp.system.stopping import Stop
from ezpyp.work import executors
from ezpyp.work.helper import REPORT_EVERY
from ezpyp.work.lots import Lot, Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Seconds. Measured on both MPIs, two cores: a pair of messages takes rank 0 2 to 6 µs over shared memory and 15 to
    28 µs over TCP; the most is reckoned with, half of it for each. A message over TCP arrives after about 15 µs.
    """

    send: float = 14e-6
    receive: float = 14e-6
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
    """Stands for the module `time` in rank 0's code. What is done between `stop` and `go` takes no time."""

    def __init__(self) -> None:
        self.now = self.busy = 0.0
        self._measured = False
        self._dies_at, self._since = inf, 0.0

    def monotonic(self) -> float:
        if self._measured:
            since, self._since = self._since, time.thread_time()
            self.charge(self._since - since)
        if self.now >= self._dies_at:
            raise Killed
        return self.now

    time = perf_counter = monotonic

    def sleep(self, seconds: float) -> None:
        self.stop()
        self.now += seconds
        self.go()

    def begin(self, dies_at: float, *, measured: bool) -> None:
        """From now on time passes, and at this time the run dies."""
        self._dies_at, self._measured = dies_at, measured
        self.go()

    def end(self) -> None:
        """Nobody dies any more, and no time passes."""
        self._dies_at, self._measured = inf, False

    def stop(self) -> None:
        if self._measured:
            self.charge(time.thread_time() - self._since)
        if self.now >= self._dies_at:
            raise Killed

    def go(self) -> None:
        if self._measured:
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


class Helper:
    """A helper: the lots that it holds, what of each is not begun, and the step that it is at (-1 for none)."""

    __slots__ = ("at", "briefs", "fenced", "lots", "reported", "since")

    def __init__(self) -> None:
        self.lots: deque[deque[int]] = deque()
        self.at, self.since, self.reported = -1, 0.0, 0.0
        self.briefs: list[bytes] = []
        #: It begins nothing more of what it holds.
        self.fenced = False


class Rank:
    """An agent with its helpers."""

    __slots__ = ("helpers", "idle", "recalling")

    def __init__(self, helpers: int) -> None:
        self.helpers = [Helper() for _ in range(helpers)]
        self.idle = deque(self.helpers)
        self.recalling = False

    def choose(self) -> Helper | None:
        """The one that holds the fewest lots, as `Processes.start` does."""
        if self.idle:
            return self.idle.popleft()
        return min((each for each in self.helpers if not each.fenced), key=lambda h: len(h.lots), default=None)

    @property
    def slots(self) -> int:
        return sum(not helper.fenced for helper in self.helpers) if self.recalling else len(self.helpers)


class Wire:
    """Stands for `mpi.Link`, with all other ranks behind it."""

    def __init__(
        self, clock: Clock, costs: Costs, seconds: Sequence[float], slots: Mapping[int, int], run: Run
    ) -> None:
        """`slots` says how many helpers each rank has."""
        self._clock, self._costs, self._seconds, self._run = clock, costs, seconds, run
        self._chances = Random(1)
        self._ranks = {rank: Rank(helpers) for rank, helpers in slots.items()}
        #: What is to come, soonest first; and messages for rank 0, in the order of their arrival.
        self._coming: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._here: deque[tuple[int, Any]] = deque()
        self._count = 0

    def send(self, message: Any, to: int) -> None:
        self._clock.stop()
        self._clock.charge(self._costs.send)
        self._run.messages += 1
        kind, content = message
        arrival = self._clock.now + self._costs.latency + self._chances.uniform(0, self._costs.nap)
        if kind == "lots":
            self._at(arrival, self._arrive, to, content)
        elif kind == "recall":
            self._at(arrival, self._recalled, to)
        self._clock.go()

    nap, bell, lost = staticmethod(pause), None, None

    def receive(self) -> tuple[int, Any] | None:
        self._clock.stop()
        coming, now = self._coming, self._clock.now
        while coming and coming[0][0] <= now:
            when, _, act, arguments = heapq.heappop(coming)
            act(when, *arguments)
        self._clock.charge(self._costs.receive if self._here else self._costs.probe)
        self._run.messages += bool(self._here)
        found = self._here.popleft() if self._here else None
        self._clock.go()
        return found

    def _at(self, when: float, act: Callable[..., None], *arguments: Any) -> None:
        self._count += 1
        heapq.heappush(self._coming, (when, self._count, act, arguments))

    def _arrive(self, now: float, rank: int, lots: Sequence[Lot]) -> None:
        for lot in lots:
            self._arrives(now, rank, lot)

    def _arrives(self, now: float, rank: int, lot: Lot) -> None:
        agent = self._ranks[rank]
        agent.recalling = False
        helper = agent.choose()
        if helper is None:
            self._tell(now, rank, Report(returned=lot.steps), 1)
            return
        helper.lots.append(deque(lot.steps))
        if helper.at < 0:
            helper.reported = now
            self._begin(now, rank, helper)

    def _begin(self, now: float, rank: int, helper: Helper) -> None:
        index = helper.at = helper.lots[0].popleft()
        helper.since = now
        if index in self._run.began:
            self._run.twice.append(index)
        self._run.began[index] = now
        self._at(now + self._seconds[index] + self._costs.step, self._ends, rank, helper)

    def _ends(self, now: float, rank: int, helper: Helper) -> None:
        index, helper.at = helper.at, -1
        self._run.ended[index] = now
        helper.briefs.append(briefs.pack(index, 1, rank, 0, now, self._seconds[index], 0, 0, 0))
        finished = 0
        while helper.lots and not helper.lots[0]:
            helper.lots.popleft()
            finished += 1
        if finished or now - helper.reported > REPORT_EVERY:
            report, helper.briefs, helper.reported = Report(b"".join(helper.briefs)), [], now
            helper.fenced = helper.fenced and bool(helper.lots)
            if not helper.lots:
                self._ranks[rank].idle.append(helper)
            self._tell(now, rank, report, finished)
        if helper.lots:
            self._begin(now, rank, helper)

    def _recalled(self, now: float, rank: int) -> None:
        """Of each helper that has been at a step for long, what waits behind it goes back, a moment later."""
        agent = self._ranks[rank]
        agent.recalling = True
        for helper in agent.helpers:
            if helper.at >= 0 and any(helper.lots):
                settled = max(now, helper.since + executors._HELD_UP) + executors._SETTLED
                self._at(settled, self._gives_back, rank, helper, helper.at)

    def _gives_back(self, now: float, rank: int, helper: Helper, at: int) -> None:
        if helper.at != at or not self._ranks[rank].recalling:
            return
        helper.fenced = True
        returned = [index for lot in helper.lots for index in lot]
        for lot in helper.lots:
            lot.clear()
        if returned:
            self._tell(now, rank, Report(returned=returned), 0)

    def _tell(self, now: float, rank: int, report: Report, finished: int) -> None:
        agent = self._ranks[rank]
        message = ("reports", ([report], finished, agent.slots, len(agent.idle)))
        self._at(now + self._costs.latency, self._comes, rank, message)

    def _comes(self, now: float, rank: int, message: Any) -> None:
        self._here.append((rank, message))


def simulate(
    plan: Plan,
    seconds: Sequence[float],
    *,
    ranks: int,
    helpers: int,
    costs: Costs | None = None,
    dies_at: float = inf,
    done: Collection[int] = (),
    journal: str = "",
) -> Run:
    """Carry a plan out. Rank 0 only schedules, as above 64 ranks; `done` are the steps that need not run.

    Args:
        journal: the folder that gets the journal; "" writes none.
    """
    costs = costs or Costs()
    run, clock, slots = Run(), Clock(), dict.fromkeys(range(1, ranks + 1), helpers)
    wire = Wire(clock, costs, seconds, slots, run)
    with ExitStack() as stack:
        for module in (conductor, telling, mpi, team):
            stack.enter_context(patch.object(module, "time", clock))
        ledger = run.ledger = Ledger(plan.graph)
        ledger.resume([Status.DONE if k in done else Status.NOT_RUN for k in range(len(plan.steps))], {})
        todo = range(len(plan.steps)) if not done else [k for k in range(len(plan.steps)) if k not in done]
        job = SimpleNamespace(
            plan=plan,
            todo=todo,
            worker=lambda: None,
            sign=None,
            link=wire,
            store=MemoryStore(),
            folder=journal,
            kind="memory",
            settings=Settings(),
        )
        bus = Bus([Journal(journal, "simulated", clock=clock.monotonic)] if journal else [])
        leader = Conductor(cast("Job", job), ledger, bus, ["node"] * (ranks + 1))
        others = [team.Ranks(cast("mpi.Link", wire), slots, Stop())]
        pacing = Pace(Functions.of(plan), ranks * helpers)
        clock.begin(dies_at, measured=costs.measured)
        with suppress(Killed):
            leader.conduct(others, pacing, Stop())
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
