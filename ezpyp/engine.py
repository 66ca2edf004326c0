"""Carry a plan out: the same short loop on every rank.

Rank 0 holds the ledger: it hands out lots to every executor, its own helpers and the other ranks alike, and settles
what comes back. Every other rank passes lots to its helpers and outcomes to rank 0. No agent runs a step, except in
line.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ezpyp import executors, mpi, provenance, resources, surroundings
from ezpyp.conductor import Conductor
from ezpyp.errors import CacheTakenOver, EzpypError, ResourceError
from ezpyp.events import Bus, RunEnded, RunStarted
from ezpyp.executors import Executor, Processes, Serial, Setup
from ezpyp.helper import Order
from ezpyp.job import Job
from ezpyp.ledger import Ledger
from ezpyp.nursery import Nursery, Position
from ezpyp.pace import Functions, Pace
from ezpyp.scripts import main_script
from ezpyp.steps import Outcome, Status
from ezpyp.stopping import Stop, listening


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
    surroundings.publish(job.run)
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
            turn=job.standing.turn,
        ),
        environments=[{**each, surroundings.RUN: job.run} for each in environments],
        log=(lambda slot: f"logs/{job.run}.{job.rank:04d}.{slot:02d}.log") if captured else None,
        tee=job.settings.capture == "tee",
    )


def _lead(job: Job, team: list[Executor], bus: Bus, stop: Stop, library: str, hosts: Sequence[str] = ()) -> Finished:
    ledger = Ledger(job.plan.graph, schedule=job.settings.schedule)
    done = {k for k, status in enumerate(job.standing.statuses) if status == Status.DONE}
    ledger.resume(job.standing.statuses, job.standing.missing)
    if job.wanted is not None:
        ledger.leave_out(set(range(len(job.plan.steps))) - job.todo - done)
    slots = sum(executor.slots for executor in team)
    origin = provenance.gather(main_script(), job.standing.packages)
    started = replace(_started(job, slots, len(done), library, hosts or [job.host]), **origin)
    bus.tell(started)
    conductor = Conductor(job, ledger, bus, hosts or [job.host])
    conductor.tell_cached(done)
    try:
        conductor.conduct(team, Pace(Functions.of(job.plan), slots), stop, job.settings.grace)
    except CacheTakenOver:
        for executor in team:
            executor.interrupt()
        raise
    finally:
        for executor in team:
            executor.close()
    ended = replace(_ended(job, ledger, stop, started), durations=conductor.durations())
    bus.tell(ended)
    return Finished(
        started=started,
        ended=ended,
        statuses=ledger.statuses().tobytes(),
        outcomes=conductor.outcomes,
        blame=dict(ledger.blame),
        cached=_cached(done, conductor.outcomes, len(job.plan.steps)),
    )


def _cached(done: Iterable[int], anew: Container[int], total: int) -> bytes:
    """For each step 1 if its result is of an earlier run, else 0."""
    found = bytearray(total)
    for k in done:
        found[k] = k not in anew
    return bytes(found)


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
    """A rank other than 0: pass lots on, pass reports back, until told to end."""
    link, pause, told, held, slots = job.link, 50e-6, (0, False), 0, own.slots
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
                elif kind == "recall":
                    own.recall()
                else:
                    own.interrupt()
                moved = True
            reports = own.poll()
            if reports or own.lots != held or own.slots != slots:
                slots = own.slots
                link.send(("reports", (reports, held - own.lots, slots, own.idle)), 0)
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
