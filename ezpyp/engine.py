"""Carry a plan out: the same short loop on every rank.

Rank 0 holds the ledger: it hands out lots to every executor, its own helpers and the other ranks alike, and settles
what comes back. Every other rank passes lots to its helpers and outcomes to rank 0. No agent runs a step, except in
line.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ezpyp import executors, lock, mpi, provenance, resources
from ezpyp.errors import CacheTakenOver, EzpypError, ResourceError, StoreError
from ezpyp.events import Bus, RunEnded, RunStarted, StepCached, StepEnded, StepStarted
from ezpyp.executors import Executor, Processes, Serial, Setup
from ezpyp.helper import Fingerprints, Order
from ezpyp.keeping import Keeping
from ezpyp.ledger import Ledger
from ezpyp.nursery import Nursery, Position
from ezpyp.pace import Pace
from ezpyp.plan import Plan
from ezpyp.report import SMALL_RUN
from ezpyp.resume import Standing
from ezpyp.scripts import main_script
from ezpyp.selection import with_needs
from ezpyp.settings import Settings
from ezpyp.steps import Outcome, Status
from ezpyp.stopping import Stop, listening
from ezpyp.store import Store
from ezpyp.worker import Worker

#: Seconds between two syncs at the borders of phases.
SYNC_EVERY = 1.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """Everything one rank needs to take part in a run."""

    run: str
    plan: Plan
    folder: str
    kind: str
    store: Store
    standing: Standing
    settings: Settings
    link: mpi.Link | None
    #: Forked earlier, before MPI started; None to fork it now.
    nest: tuple[Nursery, Position] | None
    #: The steps that this run is asked for; None for all.
    wanted: frozenset[int] | None = None
    #: On rank 0: says that the run lives. Raises CacheTakenOver where the folder is another's.
    sign: Callable[[], None] | None = None

    @property
    def rank(self) -> int:
        return self.link.rank if self.link else 0

    @property
    def host(self) -> str:
        return self.link.host if self.link else os.uname().nodename

    def worker(self) -> Worker:
        return Worker(
            plan=self.plan,
            fingerprints=Fingerprints(self.standing.fingerprints),
            inputs=self.standing.inputs,
            store=self.store,
            folder=self.folder,
            rank=self.rank,
            host=self.host,
        )

    @cached_property
    def todo(self) -> frozenset[int]:
        """The steps that have no result yet and are asked for, or needed by those."""
        statuses = self.standing.statuses
        asked = range(len(statuses)) if self.wanted is None else self.wanted
        needed = with_needs(self.plan.graph, asked, lambda k: statuses[k] == Status.DONE)
        return frozenset(k for k in needed if statuses[k] != Status.DONE)


class Conductor:
    """Rank 0: the ledger and everyone who is told of its decisions."""

    def __init__(self, job: Job, ledger: Ledger, bus: Bus) -> None:
        self._plan, self._ledger, self._bus = job.plan, ledger, bus
        self._keeping = Keeping(job.plan)
        for k, status in enumerate(ledger.statuses()):
            if status == Status.DONE:
                self._keeping.finish(k)
        self._worker = job.worker()
        self._sign = job.sign or (lambda: None)
        self.outcomes: dict[int, Outcome] = {}
        self._longest_wait = 0.2 if job.link is None else 0.001
        #: Steps of each phase that have not settled; and whether a phase ended since the last sync, and when that was.
        self._left = Counter(job.plan.graph.phases[k] for k in job.todo)
        self._at_border, self._synced = False, time.monotonic()

    def tell_cached(self, done: Iterable[int]) -> None:
        """Tell of the steps that need not run, where there are few enough to be shown."""
        if len(self._plan.steps) > SMALL_RUN:
            return
        for k in done:
            step = self._plan.steps[k]
            self._bus.tell(
                StepCached(when=time.time(), name=step.name, title=step.title, phase=self._plan.graph.phases[k])
            )

    def conduct(self, team: Sequence[Executor], pace: Pace, stop: Stop, grace: float) -> None:
        """Hand out and settle until nothing is left to do, or a stop was asked for and its grace is over."""
        ledger, pause, ended, signed = self._ledger, 50e-6, False, -lock.EVERY
        while not ledger.finished:
            if time.monotonic() - signed >= lock.EVERY:
                signed = time.monotonic()
                self._sign()
            moved = self._hand_out(team, pace)
            for outcome in [o for executor in team for o in executor.poll()]:
                pace.learn(outcome)
                self._settle(outcome)
                moved = True
            if stop.signal and not ended:
                ledger.stop()
                if stop.again or time.monotonic() - stop.since > grace:
                    ended = True
                    for executor in team:
                        executor.interrupt()
            if self._at_border:
                self._sync(team)
            pause = 50e-6 if moved else min(2 * pause, self._longest_wait)
            if not moved:
                self._bus.idle()
                team[0].wait(pause)
        self._sign()

    def _sync(self, team: Sequence[Executor]) -> None:
        """At the border of a phase, have all that was reported last; where phases are short, not at every one."""
        now = time.monotonic()
        if now - self._synced >= SYNC_EVERY:
            self._at_border, self._synced = False, now
            for executor in team:
                executor.sync()

    def _hand_out(self, team: Sequence[Executor], pace: Pace) -> bool:
        """Fill every slot once before any is filled twice."""
        ledger, moved = self._ledger, False
        for depth in range(1, pace.depth(ledger) + 1):
            for executor in team:
                while executor.lots < depth * executor.slots and (lot := pace.lot(ledger)):
                    executor.start([(k, ledger.attempts[k] + 1, ledger.absent(k)) for k in lot])
                    if len(lot) == 1:
                        self._bus.tell(StepStarted(when=time.time(), name=self._plan.steps[lot[0]].name, rank=-1))
                    moved = True
        return moved

    def _settle(self, outcome: Outcome) -> None:
        settled = self._ledger.settle(outcome.step, outcome.status, outcome.cause, time.monotonic())
        self._tell(outcome, final=not settled.retry)
        if outcome.status is Status.DONE:
            self._drop_unneeded(outcome.step)
        for index, status in settled.changes:
            if status == Status.SKIPPED:
                self._tell(self._skipped(index), final=True)
        for index in settled.reblamed:
            self.outcomes[index] = self._skipped(index)

    def _drop_unneeded(self, done: int) -> None:
        """Drop the results that were there for this step alone, or for none that is not done."""
        if self._ledger.absent(done):
            return
        for k in self._keeping.finish(done):
            with contextlib.suppress(StoreError):  # the next run tries again
                self._worker.store.drop(self._plan.stems[k], result_only=True)
                if k in self.outcomes:
                    self.outcomes[k] = replace(self.outcomes[k], dropped=True)

    def _skipped(self, index: int) -> Outcome:
        blamed = self._plan.steps[self._ledger.blame[index]]
        args, kwargs = self._plan.steps[index].texts()
        outcome = Outcome(
            step=index,
            status=Status.SKIPPED,
            when=time.time(),
            attempt=0,
            args=args,
            kwargs=kwargs,
            cause="blamed",
            note=f"because '{blamed.name}' failed",
        )
        return self._worker.keep(outcome)

    def _tell(self, outcome: Outcome, *, final: bool) -> None:
        if final:
            self.outcomes[outcome.step] = outcome
            phase = self._plan.graph.phases[outcome.step]
            self._left[phase] -= 1
            self._at_border = self._at_border or not self._left[phase]
        step = self._plan.steps[outcome.step]
        self._bus.tell(
            StepEnded(
                name=step.name,
                label=step.label if outcome.status is not Status.DONE else step.name,
                title=step.title,
                phase=self._plan.graph.phases[outcome.step],
                outcome=outcome,
                final=final,
                allowed=outcome.status is Status.FAILED
                and step.group is not None
                and self._ledger.is_allowed(outcome.step),
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """What every rank knows after a run."""

    started: RunStarted
    ended: RunEnded
    #: One signed byte a step.
    statuses: bytes
    #: Outcomes of this run: on rank 0 all, on others none.
    outcomes: Mapping[int, Outcome]
    blame: Mapping[int, int]
    #: For each step 1 if its result is of an earlier run, else 0.
    cached: bytes
    #: Nothing was left to do, and nothing was done.
    idle: bool = False


def carry_out(job: Job, bus: Bus, *, mpi_library: str = "") -> Finished:
    """Run what is left of a plan. Collective: every rank of the run calls it.

    Raises:
        ResourceError: a step asks for what no rank has; before anything ran, on every rank.
    """
    if not job.todo and not job.standing.missing:
        _drop(job.nest)
        return _nothing_to_do(job, bus, mpi_library)
    _check_resources(job)
    stop = Stop()
    with listening(stop):
        own, slots = _open_everywhere(job)
        if job.link is None:
            return _lead(job, [own], bus, stop, mpi_library)
        counts = job.link.gather(slots)
        hosts = job.link.gather(job.host)
        finished = None
        if job.rank == 0:
            others = {r: n for r, n in enumerate(counts) if r and n}
            team: list[Executor] = [mpi.Ranks(job.link, others, stop.hear)]
            if slots:
                team.insert(0, own)
            finished = _lead(job, team, bus, stop, mpi_library, hosts=hosts)
        else:
            _follow(job, own, stop)
        job.link.meet(mpi.Mark.FINISH, b"", lambda: "left")
        told = job.link.once(lambda: replace(finished, outcomes={}) if finished is not None else None)
        conclusion = finished or told
        assert conclusion is not None
        return conclusion


def _open_everywhere(job: Job) -> tuple[Executor, int]:
    """This rank's executor and its slots. If one rank cannot have its own, all raise the same error.

    Raises:
        EzpypError: with the rank and its reason.
    """
    places = job.link.places() if job.link is not None else [(job.host, 0, 1)]
    try:
        own, slots = _executor(job, places[job.rank])
        problem = ""
    except Exception as error:
        if job.link is None:
            raise
        own, slots, problem = Serial(job.worker()), 0, f"{type(error).__name__}: {error}"
    if job.link is not None:
        problems = job.link.gather(problem)
        rank = next((r for r, each in enumerate(problems) if each), None)
        if rank is not None:
            own.close()
            failure = EzpypError(f"Rank {rank} ({places[rank][0]}) cannot start its helpers: {problems[rank]}")
            failure.quiet = job.rank != 0
            raise failure
    return own, slots


def _executor(job: Job, place: tuple[str, int, int]) -> tuple[Executor, int]:
    """This rank's own executor and its slots. Under MPI, in line, rank 0 only schedules."""
    if job.settings.executor == "inline":
        _drop(job.nest)
        return Serial(job.worker()), 0 if job.link is not None and job.rank == 0 else 1
    nest = job.nest
    if nest is None:
        if mpi.started():
            mpi.shield_forks()
        position = Position()
        nest = executors.nursery(job.plan, position), position
    return Processes(job.worker(), *nest, _setup(job, place)), job.settings.helpers


def _drop(nest: tuple[Nursery, Position] | None) -> None:
    if nest is not None:
        nest[0].close()


def _setup(job: Job, place: tuple[str, int, int]) -> Setup:
    _, local_rank, local_size = place
    helpers = job.settings.helpers
    cores = resources.cores_each(
        allotted=resources.allotted_cores(), bound=resources.bound_cores(), local_size=local_size, helpers=helpers
    )
    environments = resources.environments(local_rank=local_rank, local_size=local_size, helpers=helpers, cores=cores)
    captured = job.settings.capture != "off"
    if captured:
        os.makedirs(os.path.join(job.folder, "logs"), exist_ok=True)
    return Setup(
        count=helpers,
        order=Order(
            folder=job.folder,
            store=job.kind,
            fingerprints=job.standing.fingerprints,
            inputs=job.standing.inputs,
            rank=job.rank,
            host=job.host,
            environment={},
            cores=cores,
            log=None,
        ),
        environments=environments,
        log=(lambda slot: f"logs/{job.run}.{job.rank:04d}.{slot:02d}.log") if captured else None,
        tee=job.settings.capture == "tee",
    )


def _lead(job: Job, team: list[Executor], bus: Bus, stop: Stop, library: str, hosts: Sequence[str] = ()) -> Finished:
    ledger = Ledger(job.plan.graph, schedule=job.settings.schedule)
    done = {k: job.standing.missing.get(k, ()) for k, s in enumerate(job.standing.statuses) if s == Status.DONE}
    ledger.resume(done)
    if job.wanted is not None:
        ledger.leave_out(set(range(len(job.plan.steps))) - job.todo - done.keys())
    slots = sum(executor.slots for executor in team)
    origin = provenance.gather(main_script(), job.standing.packages)
    started = replace(_started(job, slots, len(done), library, hosts or [job.host]), **origin)
    bus.tell(started)
    conductor = Conductor(job, ledger, bus)
    conductor.tell_cached(done)
    try:
        conductor.conduct(team, Pace(job.plan, slots), stop, job.settings.grace)
    except CacheTakenOver:
        for executor in team:
            executor.interrupt()
        raise
    finally:
        for executor in team:
            executor.close()
    ended = _ended(job, ledger, stop, started)
    bus.tell(ended)
    return Finished(
        started=started,
        ended=ended,
        statuses=ledger.statuses().tobytes(),
        outcomes=conductor.outcomes,
        blame=dict(ledger.blame),
        cached=bytes(k in done and k not in conductor.outcomes for k in range(len(job.plan.steps))),
    )


def _nothing_to_do(job: Job, bus: Bus, library: str) -> Finished:
    """Say so in one line, and nothing else."""
    statuses = job.standing.statuses
    done = statuses.count(Status.DONE)
    hosts = job.link.gather(job.host) if job.link is not None else [job.host]
    started = _started(job, job.settings.helpers * len(hosts), done, library, hosts)
    bus.tell(started)
    failed, skipped = statuses.count(Status.FAILED), statuses.count(Status.SKIPPED)
    ended = RunEnded(
        run=job.run,
        when=started.when,
        seconds=0.0,
        done=done,
        failed=failed,
        skipped=skipped,
        not_run=len(statuses) - done - failed - skipped,
        allowed=0,
        cached=done,
        exit_code=0,
    )
    cached = bytes(status == Status.DONE for status in statuses)
    return Finished(started=started, ended=ended, statuses=statuses, outcomes={}, blame={}, cached=cached, idle=True)


def _follow(job: Job, own: Executor, stop: Stop) -> None:
    """A rank other than 0: pass lots on, pass outcomes back, until told to end."""
    link, pause, told, held = job.link, 50e-6, (0, False), 0
    assert link is not None
    try:
        while True:
            moved = False
            while (message := link.receive()) is not None:
                kind, content = message[1]
                if kind == "end":
                    return
                if kind == "lot":
                    own.start(content)
                    held += 1
                elif kind == "sync":
                    own.sync()
                else:
                    own.interrupt()
                moved = True
            outcomes = own.poll()
            if outcomes or own.lots != held:
                link.send(("outcomes", (outcomes, held - own.lots)), 0)
                held = own.lots
                moved = True
            if stop.signal and told != (stop.signal, stop.again):
                told = stop.signal, stop.again
                link.send(("signal", told), 0)
            pause = 50e-6 if moved else min(2 * pause, 0.001)
            if not moved:
                own.wait(pause)
    except Exception as error:
        link.send(("failed", f"{type(error).__name__}: {error}"), 0)
        raise
    finally:
        own.close()


def _started(job: Job, slots: int, done: int, library: str, hosts: Iterable[str]) -> RunStarted:
    return RunStarted(
        run=job.run,
        when=time.time(),
        pipeline_id=job.plan.pipeline_id,
        folder=job.folder,
        store=job.kind,
        command=tuple(sys.orig_argv),
        python=sys.version.split()[0],
        mpi=library,
        executor=job.settings.executor,
        schedule=job.settings.schedule,
        ranks=job.link.size if job.link else 1,
        hosts=tuple(dict.fromkeys(hosts)),
        slots=slots,
        total=len(job.plan.steps),
        done=done,
    )


def _ended(job: Job, ledger: Ledger, stop: Stop, started: RunStarted) -> RunEnded:
    now = time.time()
    unforgiven = ledger.failed - ledger.allowed
    complete = ledger.not_run == 0
    code = 1 if unforgiven else 0
    if stop.signal and not complete:
        code = stop.exit_code
    return RunEnded(
        run=job.run,
        when=now,
        seconds=now - started.when,
        done=ledger.done,
        failed=ledger.failed,
        skipped=ledger.skipped,
        not_run=ledger.not_run,
        allowed=ledger.allowed,
        cached=ledger.cached,
        exit_code=code,
        reason=stop.reason if not complete else "",
    )


def _check_resources(job: Job) -> None:
    """Refuse on every rank, before anything runs, what some rank cannot give.

    Raises:
        ResourceError: GPU steps without a GPU, or after the script started CUDA (message 5); steps with several cores
            after the script ran an OpenMP region.
    """
    problem = _lacking(job)
    problems = [problem] if job.link is None else job.link.gather(problem)
    if found := next((each for each in problems if each), ""):
        error = ResourceError(found)
        error.quiet = job.rank != 0
        raise error


def _lacking(job: Job) -> str:
    """What a step asks for and this rank cannot give, or ""."""
    steps = [job.plan.steps[k] for k in sorted(job.todo)]
    forked = job.settings.executor != "inline"
    on_gpu = next((step for step in steps if step.options.request.gpus > 0), None)
    if on_gpu is not None:
        if not resources.devices():
            return (
                f"Step '{on_gpu.name}' asks for a GPU and {job.host} has none that this job may use. "
                "Ask the scheduler for one, or take gpus= away. Nothing was run."
            )
        torch: Any = sys.modules.get("torch")
        started: Callable[[], bool] | None = getattr(getattr(torch, "cuda", None), "is_initialized", None)
        if forked and started is not None and started():
            return (
                "CUDA was started before execute() (torch), and forked helpers cannot use it. "
                "Move that line into the step."
            )
    wide = next((step for step in steps if step.options.request.cpus > 1), None)
    if wide is not None and forked and (spoilt := resources.spoilt_pools()):
        return (
            f"Step '{wide.name}' asks for {wide.options.request.cpus} cores, but {', '.join(spoilt)} ran threads "
            "before execute() and would hang in forked helpers. Move what the script computes into a step. "
            "Nothing was run."
        )
    return ""
