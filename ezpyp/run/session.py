"""A pipeline's dealings with its folder and with the other ranks: agree on the plan, look at the folder, run.

Imported when a pipeline is initialized, with everything that a run needs.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from array import array
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ezpyp.errors import EzpypError, InitializationError, PipelineFailed, RankMismatch, SchemaConflictError, StoreError
from ezpyp.folder import runs
from ezpyp.folder.events import Bus, Journal, Listener, beginning_of_run
from ezpyp.folder.summary import Summary
from ezpyp.model.arguments import check_unchanged
from ezpyp.model.kinds import Requests
from ezpyp.model.naming import SUMMARY_FILE
from ezpyp.model.plan import Plan
from ezpyp.model.selection import Selection, with_needs
from ezpyp.model.settings import Choices, Settings
from ezpyp.ranks import exits, launched, mpi, vigil
from ezpyp.run import engine
from ezpyp.run.engine import Finished
from ezpyp.run.job import Job, missing
from ezpyp.schedule.placement import Place
from ezpyp.scripts.loading import main_script
from ezpyp.storage.opening import Writer, open_store, usual_kind
from ezpyp.system import allocation, capture, launch
from ezpyp.system.files import make_folder
from ezpyp.work import executors, preloading
from ezpyp.work.nursery import Nursery
from ezpyp.work.position import Position

if TYPE_CHECKING:
    from ezpyp.cluster.requeue import NextStart
    from ezpyp.folder.lock import Lock
    from ezpyp.model.shares import Share
    from ezpyp.run.division import Part
    from ezpyp.run.provenance import Origin
    from ezpyp.run.standing import Standing

#: The name of a run, the seconds that it has, those after which a host is lost, and why these cannot be told, "" where
#: they can.
_Begun = tuple[str, float, float, str]

#: What only rank 0 needs, and only in a run that has something to do: loaded before, for there all wait for rank 0.
_OF_LEADER = (
    "ezpyp.folder.archive",
    "ezpyp.folder.durations",
    "ezpyp.run.conductor",
    "ezpyp.run.report",
    "ezpyp.schedule.pace",
)

#: Folders that pipelines of this process were initialized in, with the digests of their plans.
_folders: dict[str, bytes] = {}


class Session:
    """One plan in one folder, from `initialize_schema()` on. Collective: every rank makes it, and calls `execute`."""

    def __init__(self, organised: Plan, folder: str, choices: Choices) -> None:
        """Agree with the other ranks, compare the plan with the folder, and write the schema.

        Raises:
            SchemaConflictError: the folder holds another plan. Nothing was run or changed.
            RankMismatch: the ranks did not build the same plan.
        """
        self.plan, self._folder, self._choices = organised, folder, choices
        self._share = _share(choices.of("share"))
        #: Where the pipeline has its results, and what this run is to do of it; None where that is all.
        self._main = folder
        self._part: Part | None = None
        #: One signed byte a step: what is known of it on every rank.
        self.statuses = b""
        self._lock: Lock | None = None
        self._origin: Origin | None = None
        #: That of rank 0's lock, on every rank.
        self._token = ""
        #: Lets go of it, at the latest when this session or the process is gone.
        self._release: weakref.finalize[..., Any] | None = None
        #: The standing is that of the folder now: nobody else has held it since.
        self._fresh = False
        #: On rank 0, the next start of the Slurm job, where that is to be started again.
        self._next_start: NextStart | None = None
        known = _folders.get(folder)
        if known is not None and known != organised.digest:
            raise SchemaConflictError(
                f"Another pipeline of this process uses {folder}. Give each its own cache folder. Nothing was run."
            )
        capture.stand_in()
        self._nest: tuple[Nursery, Position] | None = None
        if choices.expected_helpers():
            import_module("ctypes")  # what is forked needs it at once, and mpi4py soon
        if launched.launch() is not None and not mpi.started():
            # What the rank needs soon, and what is forked here at once. Whether it can be had is told of later.
            with suppress(EzpypError):
                open_store(usual_kind(choices.store(), len(organised.steps)), folder)
            self._hatch(0 if preloading.asked() else choices.expected_helpers())
        self._link = mpi.connect()
        if self._link is not None and not self._link.meet(mpi.Mark.INITIALIZE, organised.digest, self._whereabouts):
            _explain_mismatch(self._link, organised)
        self._is_root = self._link is None or self._link.rank == 0
        self._kind = ""
        try:
            self._standing = self._stand(choices)
        except BaseException:
            if nest := self._abandon():
                nest.close()
            raise
        _folders[folder] = organised.digest
        if self._is_root and any(self.statuses):
            for name in _OF_LEADER if self._link is None else (*_OF_LEADER, "ezpyp.ranks.team"):
                import_module(name)

    def execute(self, choices: Choices, selection: Selection, raise_on_failure: bool | None) -> Summary:
        """Run what has no result yet. Returns on every rank when all is done."""
        try:
            settings = choices.settings(under_mpi=self._link is not None)
            if self._kind == "memory" and (settings.executor != "inline" or self._link is not None):
                raise InitializationError(
                    "store='memory' keeps results in one process: give executor='inline' and start it without mpirun, "
                    "or choose another store. Nothing was run."
                )
            check_unchanged(self.plan.frozen())
            if not self._fresh:
                self._standing = self._stand(choices)
            if self._share is not None and self._part is None:  # there is nothing to divide
                return runs.open(self._folder).summary_of(self.plan.pipeline_id, array("b", self.statuses))
            wanted = self._wanted(selection)
            finished = self._carry_out(settings, wanted)
            self.statuses = finished.statuses
            summary = self._conclude(finished)
        except BaseException:
            if self._is_root:
                launch.tell_outcome(0, self._folder)  # what the script makes of it counts
            raise
        finally:
            nest = self._abandon()
            self._let_go()
            if nest is not None:
                nest.close()
        self._judge(summary, finished, raise_on_failure)
        if self._part is not None and exits.from_script():
            raise SystemExit(exits.earned())  # what follows is for who has all results
        return summary

    def _wanted(self, selection: Selection) -> frozenset[int] | None:
        """The steps that are asked for, without what they need; None for all."""
        asked = selection.of(self.plan) if selection else None
        if self._part is None:
            return asked
        mine = self._part.steps()
        return mine if asked is None else mine & with_needs(self.plan.graph, asked, lambda _: False)

    def _open(self, kind: str) -> None:
        """Open the store of the kind that the folder has or gets, as rank 0 finds it."""
        writer = Writer(self._link.rank, self._link.host) if self._link is not None else None
        self._kind, self._store = kind, open_store(kind, self._folder, writer)

    def _meet(self, link: mpi.Link) -> None:
        """Wait for all ranks, and see that they have the folder that rank 0 holds.

        Raises:
            StoreError: some host does not.
        """
        sees = link.rank == 0 or not launched.speaks_for_node() or _sees(self._folder, self._token)
        if link.meet(mpi.Mark.EXECUTE, bytes([sees]), self._whereabouts):
            return
        if link.once(lambda: self._lock is not None and not self._lock.stands()):
            return  # somebody took it meanwhile, which the run says at its first sign of life
        from ezpyp.folder import sharing

        told = link.gather((sees, link.host, self._folder))
        blind = ((rank, host, folder) for rank, (sees, host, folder) in enumerate(told) if not sees)
        error = StoreError(sharing.refusal(blind, told[0][1], told[0][2]))
        error.exit_code, error.quiet = 3, link.rank != 0
        raise error

    def _stand(self, choices: Choices) -> Standing:
        """Rank 0 compares the plan with the folder; every rank gets its word, or its error."""

        def look() -> tuple[str, Standing, str, Part | None]:
            if self._share is not None:
                return self._look_as_share(self._share, choices)
            # Of the ranks only this one needs them, and there may be thousands.
            from ezpyp.folder import admission, lock
            from ezpyp.run import resume
            from ezpyp.run.provenance import Origin

            if not self._kind:
                self._open(admission.kind_of(self._folder, choices.store(), len(self.plan.steps)))
            self._lock = lock.acquire(self._folder)
            self._release = weakref.finalize(self, self._lock.release)
            self._origin = Origin(main_script())
            self._next_start = _next_start(self._folder)
            standing = resume.settle_in(
                self.plan,
                self._folder,
                self._store,
                kind=self._kind,
                script=main_script(),
                on_change=choices.on_change(),
                keep_old=choices.of("keep_old"),
                strict=choices.of("strict"),
                reuse_from=choices.of("reuse_from"),
                keeps=self._next_start.start.keeps if self._next_start is not None else None,
            )
            return self._kind, standing, self._lock.token, None

        try:
            told = look() if self._link is None else self._link.once(look)
        except BaseException as error:
            if isinstance(error, StoreError):  # nothing was run
                error.exit_code = 3
            self._let_go()
            raise
        kind, standing, self._token, self._part = told
        self._folder = self._part.folder if self._part is not None else self._main
        if not self._kind:
            self._open(kind)
        if self._token:
            self._store.begin(standing.turn)
        self._fresh = True
        self.statuses = standing.statuses
        if self._is_root:
            part = self._part.remarks if self._part is not None else ()
            for text in (*part, *standing.problems, *standing.remarks):
                print(f"ezpyp: {text}", file=sys.stderr)
        return standing

    def _look_as_share(self, share: Share, choices: Choices) -> tuple[str, Standing, str, Part | None]:
        """Look at the main folder, in which nothing is changed, and settle into that of the share."""
        from ezpyp.folder import lock
        from ezpyp.run import division, resume

        found, kind = division.survey_of(self.plan, self._main, choices)
        if resume.is_settled(found):
            return kind, resume.standing(found), "", None
        part = division.part_of(found, self._main, share, kind=kind)
        self._lock = lock.acquire(make_folder(part.folder))
        self._release = weakref.finalize(self, self._lock.release)
        self._folder = part.folder
        self._open(part.kind)
        self._next_start = _next_start(part.folder)
        keeps = self._next_start.start.keeps if self._next_start is not None else None
        standing = division.settle_in(found, part, self._store, choices, keeps)
        return part.kind, standing, self._lock.token, part

    def _let_go(self) -> None:
        """Let others have the folder; what stands in it must be looked at again."""
        self._fresh = False
        if self._origin is not None:
            self._origin.forget()
        if self._release is not None:
            self._release()

    def _carry_out(self, settings: Settings, wanted: frozenset[int] | None) -> Finished:
        link, standing, requests = self._link, self._standing, Requests.of(self.plan)
        todo = missing(self.plan, standing.statuses, wanted)
        idle = not todo and not standing.missing
        # What each rank finds out alone comes before they meet: somebody waits there in any case.
        own = _begin(self._folder, self._share) if self._is_root else None
        place = None if idle else engine.place_of(link, settings, whole=requests is not None)
        if link is not None:
            self._meet(link)
        if self._is_root:
            launch.tell_outcome(None, self._folder)
        if settings.start == "fork":
            _warn_of_threads()
        told: list[tuple[_Begun | None, Place | None]] = [(own, place)]
        if link is not None:
            told = link.gather(told[0])
        began = told[0][0]
        assert began is not None  # rank 0's
        run, left, patience, problem = began
        if problem:
            error = InitializationError(problem)
            error.quiet = not self._is_root
            raise error
        job = Job(
            run=run,
            plan=self.plan,
            folder=self._folder,
            kind=self._kind,
            store=self._store,
            standing=standing,
            settings=settings,
            link=link,
            nest=self._hatch,
            todo=todo,
            requests=requests,
            places=[each for _, each in told if each is not None],
            wanted=wanted,
            time=left,
            origin=self._origin,
            patience=patience if settings.executor != "inline" else 0.0,
            sign=self._lock.sign if self._lock is not None else None,
            next_start=self._next_start,
            share=self._part.told if self._part is not None else "",
        )
        listeners: list[Listener] = []
        if self._is_root:
            from ezpyp.run.report import Lines

            listeners = [Lines()] if idle else [Journal(self._folder, run), Lines()]
        bus = Bus(listeners)
        try:
            return engine.carry_out(job, bus, mpi_library=link.library if link is not None else "")
        finally:
            bus.close()

    def _hatch(self, spares: int) -> tuple[Nursery, Position]:
        """The process that forks helpers, and what it shares with them; forked now if it is not there.

        Args:
            spares: so many helpers are wanted at once.
        """
        if self._nest is None:
            if mpi.started():
                mpi.shield_forks()
            position = Position()
            fresh = self._choices.start() == "fresh"
            self._nest = executors.nursery(self.plan, position, anew=fresh, spares=spares), position
        return self._nest

    def _abandon(self) -> Nursery | None:
        """Wait until no process of a run is left, but for the one that forked them: this is at its end."""
        nest, self._nest = self._nest, None
        if nest is None:
            return None
        nest[0].end()
        return nest[0]

    def _conclude(self, finished: Finished) -> Summary:
        """The summary; rank 0 also writes it if anything is new."""
        summary = runs.open(self._folder).summary_of_run(finished, self.plan)
        written = os.path.exists(os.path.join(self._folder, SUMMARY_FILE))
        is_known = finished.idle and not self._standing.rewritten and written
        if self._is_root and not is_known:
            summary.write()
        if self._is_root and not finished.idle:
            self._archive(finished.started.run)
        return summary

    def _archive(self, run: str) -> None:
        """Keep the history short. It is history only: nothing that goes wrong here matters to the run."""
        from ezpyp.folder import archive

        try:
            archive.compact(self._folder, current=run, logged=self._standing.logged)
        except (EzpypError, OSError) as error:
            print(f"ezpyp: old journals in {self._folder} are left as they are: {error}", file=sys.stderr)

    def _judge(self, summary: Summary, finished: Finished, raise_on_failure: bool | None) -> None:
        """What the end of the run means for the script that asked for it."""
        code = finished.ended.exit_code
        earned = code if code in (85, 130) or raise_on_failure is None else 0
        if self._is_root:
            launch.tell_outcome(earned, self._folder)
        if finished.lost is not None:
            launch.tell_outcome(finished.lost.exit_code, self._folder)
            raise finished.lost
        if code in (85, 130):
            if exits.from_script():
                if finished.ended.next_job:
                    self._go_on()
                raise SystemExit(code)
            if code == 130:
                raise KeyboardInterrupt
        elif code and raise_on_failure:
            error = PipelineFailed(_failures(summary), summary.failures)
            error.quiet = not self._is_root
            raise error
        elif code and raise_on_failure is None and exits.from_script():
            exits.earn(code)

    def _go_on(self) -> None:
        """Have rank 0 order the next start of the job, when all have left. No launcher is to end it before for the
        exit code of another.
        """
        exits.at_last(self._next_start.order if self._next_start is not None else lambda: None)
        if not self._is_root:
            raise SystemExit(0)

    def _whereabouts(self) -> str:
        return f"is in pipeline '{self.plan.pipeline_id}'"


def _sees(folder: str, token: str) -> bool:
    """Whether the folder is the one that rank 0 holds: asked by one rank of each other host."""
    from ezpyp.folder import sharing

    return sharing.sees(folder, token)


def _explain_mismatch(link: mpi.Link, organised: Plan) -> None:
    """Find the first step that two ranks built differently, and raise the same error on all (message 2)."""
    digests = link.gather(organised.digests)
    hosts = link.gather(link.host)
    ids = link.gather(organised.pipeline_id)
    other = next(r for r, each in enumerate(digests) if each != digests[0] or ids[r] != ids[0])
    # Of the first family that differs, each rank tells its steps.
    family = _first_difference(digests[0], digests[other])
    block = organised.blocks[family] if family < len(organised.blocks) else None
    told = link.gather(organised.member_digests(block) if block is not None else [])
    place = _first_difference(told[0], told[other]) + (block.start if block is not None else len(organised.steps))
    labels = link.gather(organised.steps[place].label if place < len(organised.steps) else "missing")
    if ids[other] != ids[0]:
        what = f"pipeline '{ids[other]}' there, '{ids[0]}' here"
    else:
        here, there = labels[0], labels[other]
        what = f"step {place} is {there} there, {here if here != there else 'another ' + here} here"
    error = RankMismatch(
        f"Rank {other} ({hosts[other]}) built another plan than rank 0: {what}. Usual causes: a set, os.listdir or "
        "glob without sorted(), random numbers or the time used to build steps. Nothing was run."
    )
    error.exit_code = 3
    error.quiet = link.rank != 0
    raise error


def _first_difference(here: Sequence[bytes], there: Sequence[bytes]) -> int:
    """The first place where two lists differ, or where the shorter one ends."""
    pairs = enumerate(zip(here, there, strict=False))
    return next((k for k, (a, b) in pairs if a != b), min(len(here), len(there)))


def _failures(summary: Summary) -> str:
    listed = [f"'{name}': {reason}" for name, reason in list(summary.failures.items())[:10]]
    more = f" (and {len(summary.failures) - 10} more)" if len(summary.failures) > 10 else ""
    return f"{len(summary.failures)} steps failed: {'; '.join(listed)}{more}. See {summary.folder}/{SUMMARY_FILE}."


def _warn_of_threads() -> None:
    """A fork copies only the thread that forks: locks that others hold stay locked in every helper."""
    own = {threading.current_thread(), threading.main_thread()}
    others = sorted(t.name for t in threading.enumerate() if t not in own and t.is_alive())
    if others:
        print(
            f"ezpyp: threads run beside execute() ({', '.join(others)}); steps are forked without them. "
            "Start them inside steps, or after execute().",
            file=sys.stderr,
        )


def _next_start(folder: str) -> NextStart | None:
    """The next start of the Slurm job; None where the job is not to be started again."""
    if os.environ.get("EZPYP_REQUEUE", "") != "1":
        return None
    from ezpyp.cluster.requeue import NextStart  # most runs need nothing of it, and only rank 0 does

    return NextStart.of(folder, os.environ)


def _share(asked: str | None) -> Share | None:
    """The share of the run that this is to be; None for all of it."""
    if not asked:
        return None
    from ezpyp.model import shares

    try:
        return shares.parse(asked)
    except InitializationError as error:
        told = launched.launch()
        error.quiet = told is not None and told.rank != 0
        raise


def _begin(folder: str, share: Share | None) -> _Begun:
    run = f"{beginning_of_run(folder, time.time())}-{os.getpid()}"
    if share is not None:  # its journal and logs are to lie beside those of others, made in this second on other hosts
        run += f"-{share.number}of{share.total}"
    try:
        return run, allocation.seconds_left(os.environ, time.time()), vigil.limit_of(os.environ), ""
    except InitializationError as error:
        return run, 0.0, 0.0, str(error)
