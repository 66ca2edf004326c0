"""Carry a plan out: the same short loop on every rank.

Rank 0 holds the ledger: it hands out lots to every executor, its own helpers and the other ranks alike, and settles
what comes back. Every other rank passes lots to its helpers and outcomes to rank 0. No agent runs a step, except in
line.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import compress
from operator import not_
from typing import TYPE_CHECKING

from ezpyp.errors import CacheTakenOver, EzpypError, RankLost
from ezpyp.folder.events import Bus, RunEnded, RunStarted
from ezpyp.model.kinds import Functions, Requests
from ezpyp.model.naming import some
from ezpyp.model.outcomes import Outcome, Status
from ezpyp.model.settings import Settings
from ezpyp.ranks import mpi
from ezpyp.ranks.vigil import Vigil
from ezpyp.run import demands
from ezpyp.run.job import Job
from ezpyp.schedule.briefs import Outcomes, Plain
from ezpyp.schedule.placement import Place, Placement, shares
from ezpyp.scripts import renewed
from ezpyp.system import gpus, resources
from ezpyp.system.pauses import WOKEN
from ezpyp.system.stopping import Stop, listening
from ezpyp.tuples import NamedTuple
from ezpyp.work.executors import Processes, Setup
from ezpyp.work.helper import RUN, Order
from ezpyp.work.inline import Executor, Serial

if TYPE_CHECKING:
    from ezpyp.schedule.deadline import Deadline
    from ezpyp.schedule.dispatch import Dispatch
    from ezpyp.schedule.ledger import Ledger
    from ezpyp.schedule.pace import Pace


class Finished(NamedTuple):
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
    #: On rank 0: who is lost, so that the others cannot be met any more.
    lost: RankLost | None = None
    #: Nothing was left to do, and nothing was done.
    idle: bool = False
    #: Whether a step asks for GPUs.
    on_gpus: bool = False

    def plain(self, steps: Sequence[int], stems: Sequence[str], alone: Sequence[bool]) -> Plain | None:
        """What rows of the summary tell of those of these steps, with these stems, of which there is no more to say, on
        the rank that knows. Of one that is `alone`, and was given no other's value, the record would add no more than
        the arguments that were planned.
        """
        outcomes = self.outcomes
        return outcomes.plain(steps, stems, [*map(not_, alone)]) if isinstance(outcomes, Outcomes) else None

    def spent(self, steps: range) -> float:
        """How long those of these steps took that this run did, on the rank that knows."""
        outcomes = self.outcomes
        if not isinstance(outcomes, Outcomes):
            return 0.0
        pieces = (steps[k : k + _PIECE] for k in range(0, len(steps), _PIECE))
        return sum(sum(outcomes.seconds(piece)) for piece in pieces)


#: So many steps at a time are looked at.
_PIECE = 10_000
#: Of more ranks, rank 0 keeps a core free to schedule: it hears of every lot of all of them.
MOST_EQUALS = 64


def carry_out(job: Job, bus: Bus, *, mpi_library: str = "") -> Finished:
    """Run what is left of a plan. Collective: every rank of the run calls it.

    Raises:
        ResourceError: a step asks for what no rank has; before anything ran, on every rank.
        CacheTakenOver, StoreError: what ended the run on rank 0, on every rank.
        RankLost: on ranks other than 0, the host of rank 0 is lost. Rank 0 returns what came of the run.
    """
    if not job.todo and not job.standing.missing:
        return _nothing_to_do(job, bus, mpi_library)
    requests, places = job.requests, job.places
    demands.check(job, requests, places)
    stop = Stop.within(job.settings.grace, job.time)
    with listening(stop):
        own = _open_everywhere(job, places, requests)
        if job.link is None:
            return _lead(job, [own], bus, stop, mpi_library, places, requests)
        with Vigil(job.link, job.patience):
            if job.rank != 0:
                _follow(job, own, stop)
                return _part(job.link, None)
            from ezpyp.ranks.team import Ranks

            others = {each.rank: each.slots for each in places[1:] if each.slots}
            team: list[Executor] = [Ranks(job.link, others, stop)]
            if places[0].slots:
                team.insert(0, own)
            came: Finished | EzpypError
            try:
                came = _lead(job, team, bus, stop, mpi_library, places, requests)
            except EzpypError as error:
                came = error
            try:
                return _part(job.link, came)
            except RankLost as lost:
                if not isinstance(came, Finished):
                    raise came from lost
                return came._replace(lost=lost)


def _part(link: mpi.Link, came: Finished | EzpypError | None) -> Finished:
    """Meet at the end of a run, and hear from rank 0 what came of it; every rank raises what ended the run there."""
    link.meet(mpi.Mark.FINISH, b"", lambda: "left")
    told = link.share(came._replace(outcomes={}) if isinstance(came, Finished) else came)
    if isinstance(told, EzpypError):
        told.quiet = link.rank != 0
        raise told
    conclusion: Finished = came if isinstance(came, Finished) else told
    return conclusion


def place_of(link: mpi.Link | None, settings: Settings, *, whole: bool) -> Place:
    """This rank as a place for steps; `whole` with all that they may ask for. Under MPI, in line, rank 0 only
    schedules; of many ranks it has a helper less.
    """
    stock = resources.stock(whole=whole)
    leads = link is not None and link.rank == 0
    if settings.executor == "inline":
        slots = 0 if leads else 1
    else:
        slots = settings.helpers or max(1, min(stock.reach, stock.cores // _neighbours(link)))
        if leads and link is not None and link.size > MOST_EQUALS:
            slots -= 1
    rank, host = (link.rank, link.host) if link is not None else (0, os.uname().nodename)
    return Place(rank=rank, host=host, slots=slots, stock=stock)


def _neighbours(link: mpi.Link | None) -> int:
    """How many ranks there are on the node of this one."""
    return link.places[link.rank][2] if link is not None else 1


def _open_everywhere(job: Job, places: Sequence[Place], requests: Requests | None) -> Executor:
    """This rank's executor. If one rank cannot have its own, all raise the same error.

    Raises:
        EzpypError: with the rank and its reason.
    """
    own: Executor
    try:
        own, problem = _executor(job, places, requests), ""
    except Exception as error:
        if job.link is None:
            raise
        own, problem = _serial(job), f"{type(error).__name__}: {error}"
    if job.link is not None:
        digest = str(job.rank + 1).encode() if problem else b""
        if not job.link.meet(mpi.Mark.EXECUTE, digest, lambda: "cannot start its helpers"):
            told = job.link.gather(problem and f"Rank {job.rank} ({job.host}) cannot start its helpers: {problem}")
            own.leave()
            own.close()
            failure = EzpypError(next(each for each in told if each))
            failure.quiet = job.rank != 0
            raise failure
    return own


def _executor(job: Job, places: Sequence[Place], requests: Requests | None) -> Executor:
    if job.settings.executor == "inline" or not places[job.rank].slots:
        return _serial(job)
    bell = job.link.bell if job.link is not None else None
    nest, position = job.nest(places[job.rank].slots)
    return Processes(job.worker(), nest, position, _setup(job, places, requests), bell)


def _serial(job: Job) -> Serial:
    return Serial(job.worker(), job.link.bell if job.link is not None else None)


def _setup(job: Job, places: Sequence[Place], requests: Requests | None) -> Setup:
    place = places[job.rank]
    helpers, bound = place.slots, resources.bound_cores()
    # One rank a core is left where the launcher bound it; more helpers than that spread over the node.
    spread = resources.reachable_cores() if helpers > bound else ()
    cores = resources.cores_each(
        allotted=place.stock.cores, bound=len(spread) or bound, local_size=_neighbours(job.link), helpers=helpers
    )
    have = place.stock.gpus
    environments = resources.environments(
        shares(places)[job.rank] if have else (),
        have=have,
        helpers=helpers,
        cores=cores,
        # A script that starts CUDA before execute() does it in each new interpreter.
        hidden=demands.wants_gpus(requests) and job.settings.start == "fork",
    )
    captured = job.settings.capture != "off"
    if any(block.family.definition.options.request.program for block in job.plan.blocks):
        from ezpyp.programs import surroundings

        surroundings.publish(job.run)
    return Setup(
        helpers=helpers,
        order=Order(
            folder=job.folder,
            store=job.kind,
            fingerprints=job.standing.fingerprints,
            inputs=job.standing.inputs,
            rank=job.rank,
            host=job.host,
            environment={},
            cores=spread,
            log=None,
            turn=job.standing.turn,
            gpus=have if demands.wants_gpus(requests) and gpus.can_tell() else (),
            again=renewed.command() if job.settings.start == "fresh" else None,
        ),
        environments=[{**each, RUN: job.run} for each in environments],
        log=(lambda slot: f"logs/{job.run}.{job.rank:04d}.{slot:02d}.log") if captured else None,
        tee=job.settings.capture == "tee",
    )


def _lead(
    job: Job,
    team: list[Executor],
    bus: Bus,
    stop: Stop,
    library: str,
    places: Sequence[Place],
    requests: Requests | None,
) -> Finished:
    # Of the ranks only this one needs them.
    from ezpyp.run.conductor import Conductor
    from ezpyp.schedule.ledger import Ledger
    from ezpyp.schedule.pace import Pace

    hosts = [place.host for place in places]
    functions = Functions.of(job.plan)
    seconds = _remembered(job)
    placement = None if requests is None else Placement(places, requests.listed)
    ledger = Ledger(
        job.plan.graph,
        schedule=job.settings.schedule,
        order=functions.order(job.plan.graph.phases, seconds),
        kinds=None if requests is None else requests.numbers,
        placement=placement,
    )
    statuses = job.standing.statuses
    done = {*compress(range(len(statuses)), statuses.translate(_DONE))}
    ledger.resume(statuses, job.standing.missing)
    if job.wanted is not None:
        ledger.leave_out(set(range(len(job.plan.steps))) - job.todo - done)
    slots = sum(executor.slots for executor in team)
    started = _started(job, slots, len(done), library, hosts)._replace(gpus=demands.granted_from(places, requests))
    remarks = demands.remarks(job, ledger.ready, places, requests)
    pace = Pace(functions, slots, seconds, _deadline(job, functions, stop))
    dispatch = None if placement is None else _dispatch(ledger, pace, placement)
    conductor = Conductor(job, ledger, bus, hosts, dispatch)
    bus.hold()
    conductor.telling.cached(done)
    if job.standing.failed:
        named = some(job.plan.steps[k].name for k in job.standing.failed)
        print(f"ezpyp: not tried again by the job in which they failed: {named}", file=sys.stderr)
        conductor.keep_failed(job.standing.failed)
    left_out = 0 if job.wanted is None else len(job.plan.steps) - len(done | job.todo)
    if job.next_start is not None:
        job.next_start.begin(ledger.not_run - left_out)
    lost = None
    try:
        if job.settings.executor != "inline":
            conductor.begin(team, pace)
        bus.begin(started._replace(packages=dict(job.standing.packages), **(job.origin.tell() if job.origin else {})))
        for text in remarks:
            print(f"ezpyp: {text}", file=sys.stderr)
        conductor.conduct(team, pace, stop)
    except (CacheTakenOver, RankLost) as error:
        for executor in team:
            executor.interrupt()
        if not isinstance(error, RankLost):
            raise
        lost = error
    finally:
        for executor in reversed(team):  # the other ranks first: they end their helpers meanwhile
            executor.leave()
        for executor in team:
            executor.close()
    job.store.sync()
    ended = _ended(job, ledger, stop, pace.deadline, started, lost)._replace(durations=conductor.durations())
    if job.next_start is not None and lost is None:
        for_time = ended.exit_code == 85 and (stop.is_for_time or not stop.signal)
        ended = ended._replace(next_job=job.next_start.end(ledger.not_run - left_out, for_time=for_time))
    bus.tell(ended)
    return Finished(
        started=started,
        ended=ended,
        statuses=ledger.statuses().tobytes(),
        outcomes=conductor.outcomes,
        blame=dict(ledger.blame),
        cached=_cached(done, conductor.outcomes, len(job.plan.steps)),
        on_gpus=demands.wants_gpus(requests),
        lost=lost,
    )


def _cached(done: Iterable[int], anew: Container[int], total: int) -> bytes:
    """For each step 1 if its result is of an earlier run, else 0."""
    found = bytearray(total)
    for k in done:
        found[k] = k not in anew
    return bytes(found)


#: By the byte of a status: 1 where it is done.
_DONE = bytes(status == Status.DONE for status in range(256))


def _nothing_to_do(job: Job, bus: Bus, library: str) -> Finished:
    """Say so in one line, and nothing else."""
    statuses = job.standing.statuses
    done = statuses.count(Status.DONE)
    hosts = job.link.gather(job.host) if job.link is not None else [job.host]
    started = _started(job, max(1, job.settings.helpers) * len(hosts), done, library, hosts)
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
        reason=job.share,
    )
    cached = statuses.translate(_DONE)
    return Finished(
        started=started,
        ended=ended,
        statuses=statuses,
        outcomes={},
        blame={},
        cached=cached,
        idle=True,
        on_gpus=demands.wants_gpus(job.requests),
    )


def _follow(job: Job, own: Executor, stop: Stop) -> None:
    """A rank other than 0: pass lots on, pass reports back, until told to end."""
    link, moved_at, told, held, slots = job.link, time.monotonic(), (0, False), 0, own.slots
    assert link is not None
    try:
        while True:
            moved = False
            while (message := link.receive()) is not None:
                kind, content = message[1]
                if kind == "end":
                    return
                if kind == "lots":
                    for lot in content:
                        own.start(lot)
                    held += len(content)
                elif kind == "stop":  # what runs here may be ended by it, too
                    stop.hear(content, again=False)
                    told = stop.signal, False
                else:
                    lose: Callable[[], None] = partial(link.lose, content)
                    {"sync": own.sync, "recall": own.recall, "interrupt": own.interrupt, "lost": lose}[kind]()
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
            now = time.monotonic()
            moved_at = now if moved else moved_at
            nap = link.nap(now - moved_at)
            if not moved or nap >= WOKEN:  # else there may be more already, and nothing would wake it
                own.wait(nap)
    except Exception as error:
        with suppress(EzpypError):  # it may be what failed
            own.interrupt()
        link.send(("failed", f"{type(error).__name__}: {error}"), 0)
        raise
    finally:
        own.leave()
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
        part=len(job.todo) if job.wanted is not None else None,
    )


def _dispatch(ledger: Ledger, pace: Pace, placement: Placement) -> Dispatch:
    from ezpyp.schedule.dispatch import Dispatch  # in most runs all steps ask for a core each

    return Dispatch(ledger, pace, placement)


def _remembered(job: Job, fact: str = "mean") -> dict[str, float]:
    from ezpyp.folder.durations import remembered

    return remembered(job.folder, fact)


def _deadline(job: Job, functions: Functions, stop: Stop) -> Deadline | None:
    """By when steps have to end, where that is known."""
    if stop.limit == math.inf:
        return None
    from ezpyp.schedule.deadline import Deadline, by_function

    blocks = job.plan.blocks
    declared = by_function(functions, [(each.start, each.family.definition.options.timeout) for each in blocks])
    recorded = _remembered(job, "p95")
    return Deadline(functions, time.monotonic(), stop.limit, recorded=recorded, declared=declared)


def _ended(
    job: Job, ledger: Ledger, stop: Stop, deadline: Deadline | None, started: RunStarted, lost: RankLost | None
) -> RunEnded:
    now = time.time()
    unforgiven = ledger.failed - ledger.allowed
    statuses = ledger.statuses()
    left = ledger.not_run if job.wanted is None else sum(statuses[k] == Status.NOT_RUN for k in job.todo)
    complete = left == 0
    code = 1 if unforgiven else 0
    if stop.signal and not complete:
        code = stop.exit_code
    reason = stop.reason if not complete else ""
    if deadline is not None and deadline.refused and not stop.signal and not complete:
        print(f"ezpyp: {deadline.message(time.monotonic())}", file=sys.stderr)
        code, reason = 85, "stopped before its time limit"
    if lost is not None:
        code, reason = lost.exit_code, f"lost {lost.who}"
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
        reason=reason or job.share,
    )
