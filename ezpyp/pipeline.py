"""The face: Pipeline, the decorators, and results."""

from __future__ import annotations

import os
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from ezpyp import engine, executors, exits, launch, lock, mpi, nursery, plan, resume, runs, scripts
from ezpyp.arguments import check_unchanged
from ezpyp.engine import Finished, Job, Settings
from ezpyp.errors import (
    FailedStepWarning,
    InitializationError,
    NotExecutedStepWarning,
    PipelineFailed,
    RankMismatch,
    RepeatedStepError,
    ResultUnavailable,
    SchemaConflictError,
    SkippedStepWarning,
    UnknownStep,
    UnrecognizedStepWarning,
)
from ezpyp.events import Bus, Journal, Listener
from ezpyp.functions import StepFunction, Wishes
from ezpyp.nursery import Nursery, Position
from ezpyp.plan import Plan
from ezpyp.report import Lines
from ezpyp.resume import Standing
from ezpyp.selection import Selection
from ezpyp.steps import Status, Step
from ezpyp.store import Store, open_store, stems
from ezpyp.summary import Summary

#: Folders that pipelines of this process were initialized in, with the digests of their plans.
_folders: dict[str, bytes] = {}

_EXECUTORS = ("processes", "inline")
_SCHEDULES = ("ready", "phase")
_CAPTURES = ("file", "tee", "off")


class Pipeline:
    """Steps, the folder that keeps their results, and the run.

    Args:
        cache_location: the folder, made if it is not there; relative to the working directory, `~` works.
        pipeline_id: what the pipeline is called; a folder belongs to one.
        workers: how many steps run at once without MPI (else EZPYP_WORKERS, else 1).
        helpers: how many steps each MPI rank runs at once (else EZPYP_HELPERS, else 1).
        executor: "processes", or "inline": in this very process, for debugging and notebooks (else EZPYP_EXECUTOR).
        schedule: "ready", or "phase": no step starts before the phase before it has ended (else EZPYP_SCHEDULE).
        capture: where the steps' output goes: "file", "tee" (also shown) or "off" (only shown) (else EZPYP_CAPTURE).
        on_change: what to do when the folder holds another plan: "refuse"; "extend": steps may join and leave; "rerun":
            changed steps and what depends on them run again (else EZPYP_ON_CHANGE, else "refuse").
        keep_old: how many former versions of a replaced result are kept, in `old/`.

    Every rank of an MPI job makes the same pipeline; `initialize_schema`, `execute` and `barrier` are collective.
    """

    def __init__(
        self,
        cache_location: str | os.PathLike[str],
        pipeline_id: str,
        *,
        workers: int | None = None,
        helpers: int | None = None,
        executor: str | None = None,
        schedule: str | None = None,
        capture: str | None = None,
        on_change: str | None = None,
        keep_old: int = 1,
    ) -> None:
        exits.install()
        self.pipeline_id = pipeline_id
        self._folder = resume.make_folder(cache_location) if not scripts.loading() else os.path.abspath(cache_location)
        self._given = {
            "workers": workers,
            "helpers": helpers,
            "executor": executor,
            "schedule": schedule,
            "capture": capture,
            "on_change": on_change,
        }
        self._keep_old = keep_old
        self._steps: dict[str, Step] = {}
        self._calls: dict[Any, str] = {}
        self._numbers: dict[str, int] = {}
        self._plan: Plan | None = None
        self._kind = "files"
        self._store: Store | None = None
        self._standing: Standing | None = None
        self._statuses: bytes = b""
        self._nest: tuple[Nursery, Position] | None = None
        self._lock: lock.Lock | None = None
        #: Lets go of it, at the latest when this pipeline or the process is gone.
        self._release: weakref.finalize[..., Any] | None = None
        #: The standing is that of the folder now: nobody else has held it since.
        self._fresh = False

    def __repr__(self) -> str:
        return f"<Pipeline '{self.pipeline_id}' of {len(self._steps)} steps in {self._folder}>"

    @property
    def cache_location(self) -> str:
        """The folder of this pipeline, absolute."""
        return self._folder

    @property
    def schema_path(self) -> str:
        return os.path.join(self._folder, plan.SCHEMA_FILE)

    @property
    def summary_path(self) -> str:
        return os.path.join(self._folder, plan.SUMMARY_FILE)

    @property
    def is_root(self) -> bool:
        """True on one rank, and without MPI. Does not start MPI."""
        told = mpi.launch()
        return told is None or told.rank == 0

    @property
    def steps(self) -> list[Step]:
        """The steps in the order of their calls."""
        return list(self._steps.values())

    @property
    def phases(self) -> list[list[Step]]:
        """The steps of each phase, once they are organised."""
        return self._organised("phases").phases

    # ----- writing

    def step(self, codec: str = "pickle", **options: Any) -> Callable[[Callable[..., Any]], StepFunction]:
        """A decorator: `@pipeline.step(codec="json", retry=2)`. The options are those of `as_pickle_step`."""
        wishes = Wishes().with_(codec=codec, **options)
        return lambda function: StepFunction(function, self, wishes)

    def add(self, step: Step) -> None:
        """Take a step. Decorated functions call this.

        Raises:
            InitializationError: the pipeline was initialized; RepeatedStepError: its name or its very call is taken.
        """
        if self._standing is not None or self._store is not None:
            raise InitializationError(
                f"Step '{step.name}' comes after initialize_schema() of pipeline '{self.pipeline_id}'. Add it before, "
                "or to a new Pipeline with a folder of its own."
            )
        if step.name in self._steps:
            raise RepeatedStepError(f"There is a step named '{step.name}' already. Give another name=.")
        if not step.named:
            call = (
                id(step.function),
                step.arguments.digest,
                tuple(s.name for s in step.arguments.sources()),
                step.options.codec,
            )
            before = self._calls.setdefault(call, step.name)
            if before != step.name:
                raise RepeatedStepError(
                    f"The call for '{step.name}' is the very same as for '{before}': {self._steps[before].label}. One "
                    f"step is enough; if a replicate is meant, name it: {step.function_name}(…, name='{before}_again')."
                )
        self._steps[step.name] = step
        self._plan = None

    def number(self, base: str) -> int:
        """How many steps were named after `base` so far; counts one more."""
        number = self._numbers.get(base, 0)
        self._numbers[base] = number + 1
        return number

    # ----- planning

    def organize_steps(self) -> None:
        """Order the steps by phase.

        Raises:
            InitializationError: there are none, or they wait for each other or for steps that are not here.
        """
        if self._plan is None:
            self._plan = plan.organise(self.steps, pipeline_id=self.pipeline_id, stems=stems)

    def get_schema(self) -> dict[str, Any]:
        """The phases as the schema file shows them: {"0": [entry, …], "1": …}.

        Raises:
            InitializationError: the steps are not organised yet.
        """
        organised = self._organised("get_schema()")
        content = plan.read_schema(self._folder) if self._standing is not None else None
        content = content or plan.schema(organised, cache_location=self._folder, store=self._kind)
        return {phase: entries for phase, entries in content.items() if phase != "ezpyp"}

    def initialize_schema(self) -> None:
        """Fix the plan, compare it with the folder, and write the schema. A second call does nothing.

        Under MPI every rank takes part: all agree on the plan, or all raise. Steps run with the functions and globals
        as they are now.

        Raises:
            InitializationError, MissingDependency, CyclicDependency: the steps do not make a plan.
            SchemaConflictError: the folder holds another plan. Nothing was run or changed.
            RankMismatch: the ranks did not build the same plan.
        """
        if self._standing is not None:
            return
        self.organize_steps()
        if scripts.loading():
            return
        organised = self._organised("initialize_schema()")
        known = _folders.get(self._folder)
        if known is not None and known != organised.digest:
            raise SchemaConflictError(
                f"Another pipeline of this process uses {self._folder}. Give each its own cache folder. "
                "Nothing was run."
            )
        if mpi.launch() is not None and not mpi.started():
            position = Position()
            self._nest = executors.nursery(organised, position), position
        link = mpi.connect()
        if link is not None and not link.meet(mpi.Mark.INITIALIZE, organised.digest, self._whereabouts):
            _explain_mismatch(link, organised)
        self._store = open_store(self._kind, self._folder)
        self._take_standing(organised, link)
        _folders[self._folder] = organised.digest

    def barrier(self) -> None:
        """Wait until every rank is here. Without MPI it does nothing."""
        link = mpi.connect()
        if link is not None:
            link.meet(mpi.Mark.BARRIER, b"", self._whereabouts)

    # ----- running

    def execute(
        self,
        *,
        workers: int | None = None,
        helpers: int | None = None,
        executor: str | None = None,
        schedule: str | None = None,
        capture: str | None = None,
        on_change: str | None = None,
        only: str | Sequence[str] = (),
        until: str | Sequence[str] = (),
        from_: str | Sequence[str] = (),
        raise_on_failure: bool | None = None,
    ) -> Summary:
        """Run what has no result yet, and write `pipeline.summary`. Collective under MPI; returns on every rank when
        all is done.

        Args:
            workers, helpers, executor, schedule, capture, on_change: as for Pipeline.
            only, until, from_: names of steps, families or functions, with `*` and `?`: run these; these and what comes
                before; these and what comes after. What they need is run too (else EZPYP_ONLY, EZPYP_UNTIL, EZPYP_FROM,
                separated by blanks). The rest stays as it is.
            raise_on_failure: True raises PipelineFailed with all failures; None (default) lets the run go on, and a
            script
                then ends with exit code 1; False does neither.

        Raises:
            ArgumentChanged: a large array was changed after the call that took it.
            ResourceError: a step asks for what this run does not have.
        """
        scripts.reached(self)
        if on_change is not None:
            self._given["on_change"] = on_change
        self.initialize_schema()
        organised = self._organised("execute()")
        given = {"workers": workers, "helpers": helpers, "executor": executor, "schedule": schedule, "capture": capture}
        try:
            settings = self._settings(given)
            selection = _selection(only=only, until=until, from_=from_)
            check_unchanged(organised.steps)
            link = mpi.connected()
            if link is not None:
                link.meet(mpi.Mark.EXECUTE, organised.digest, self._whereabouts)
            if not self._fresh:
                self._take_standing(organised, link)
            finished = self._carry_out(organised, settings, link, selection.of(organised) if selection else None)
            self._statuses = finished.statuses
            summary = self._conclude(finished)
        finally:
            self._let_go()
        self._judge(summary, finished, raise_on_failure)
        return summary

    def _carry_out(
        self, organised: Plan, settings: Settings, link: mpi.Link | None, wanted: frozenset[int] | None
    ) -> Finished:
        assert self._store is not None
        assert self._standing is not None
        _warn_of_threads()
        nest, self._nest = self._nest, None
        run = _run_id() if link is None else link.once(_run_id)
        job = Job(
            run=run,
            plan=organised,
            folder=self._folder,
            kind=self._kind,
            store=self._store,
            standing=self._standing,
            settings=settings,
            link=link,
            nest=nest,
            wanted=wanted,
            sign=self._lock.sign if self._lock is not None else None,
        )
        listeners: list[Listener] = []
        if self.is_root:
            listeners = [Journal(self._folder, run), Lines()] if job.todo or job.standing.missing else [Lines()]
        bus = Bus(listeners)
        try:
            return engine.carry_out(job, bus, mpi_library=link.library if link is not None else "")
        finally:
            bus.close()

    def _conclude(self, finished: Finished) -> Summary:
        """The summary; rank 0 also writes it if anything is new."""
        assert self._standing is not None
        summary = runs.open(self._folder).summary(finished)
        is_known = finished.idle and not self._standing.rewritten and os.path.exists(self.summary_path)
        if self.is_root and not is_known:
            summary.write()
        return summary

    def _judge(self, summary: Summary, finished: Finished, raise_on_failure: bool | None) -> None:
        code = finished.ended.exit_code
        earned = code if code in (85, 130) or raise_on_failure is None else 0
        if self.is_root:
            launch.tell_outcome(earned, self._folder)
        if code in (85, 130):
            if exits.from_script():
                raise SystemExit(code)
            if code == 130:
                raise KeyboardInterrupt
        elif code and raise_on_failure:
            error = PipelineFailed(_failures(summary), summary.failures)
            error.quiet = not self.is_root
            raise error
        elif code and raise_on_failure is None and exits.from_script():
            exits.earn(code)

    # ----- results

    def get_status(self, step: Step | str) -> Status:
        """What came of a step: -1 not run, 0 done, 1 failed, 2 skipped."""
        name = step if isinstance(step, str) else step.name
        if self._statuses:
            k = self._organised("get_status()").index[name]
            return Status(int.from_bytes(self._statuses[k : k + 1], "big", signed=True))
        return runs.status_of(self._folder, name)

    def get_result(self, name: str) -> Any:
        """The result of a step, read from the cache on the rank that asks; warns and gives None where there is none."""
        try:
            return self.result(name)
        except ResultUnavailable as error:
            kind = {
                "NotExecuted": NotExecutedStepWarning,
                "StepFailed": FailedStepWarning,
                "StepSkipped": SkippedStepWarning,
            }.get(type(error).__name__, UnrecognizedStepWarning)
            warnings.warn(str(error), kind, stacklevel=2)
            return None

    def result(self, name: str) -> Any:
        """The result of a step, read from the cache on the rank that asks.

        Raises:
            ResultUnavailable: there is none; the text says which step, since when, and what to do.
        """
        if name not in self._steps:
            raise UnknownStep(runs.unknown(name, self._steps))
        return runs.result_of(self._folder, name, self.get_status(name))

    # ----- inside

    def _organised(self, what: str) -> Plan:
        if self._plan is None:
            raise InitializationError(f"{what} needs the phases: call organize_steps() or initialize_schema() first.")
        return self._plan

    def _whereabouts(self) -> str:
        return f"is in pipeline '{self.pipeline_id}'"

    def _take_standing(self, organised: Plan, link: mpi.Link | None) -> None:
        """Rank 0 compares the plan with the folder; every rank gets its word, or its error."""
        try:
            verdict = (
                self._look_at_folder(organised) if link is None else link.once(lambda: self._look_at_folder(organised))
            )
        except BaseException:
            self._store = None
            self._close_nest()
            self._let_go()
            raise
        self._standing = verdict
        self._fresh = True
        self._statuses = verdict.statuses
        if self.is_root:
            for text in (*verdict.problems, *verdict.remarks):
                print(f"ezpyp: {text}", file=sys.stderr)

    def _look_at_folder(self, organised: Plan) -> Standing:
        assert self._store is not None
        self._lock = lock.acquire(self._folder)
        self._release = weakref.finalize(self, self._lock.release)
        return resume.settle_in(
            organised,
            self._folder,
            self._store,
            kind=self._kind,
            script=_script(),
            on_change=_one_of("on_change", self._chosen("on_change") or "refuse", resume.ON_CHANGE),
            keep_old=self._keep_old,
        )

    def _chosen(self, key: str, given: Any = None) -> Any:
        """A setting from the call, from Pipeline, or from the environment; None if nobody chose."""
        environ = os.environ.get(f"EZPYP_{key.upper()}")
        return next((value for value in (given, self._given[key], environ) if value is not None), None)

    def _let_go(self) -> None:
        """Let others have the folder; what stands in it must be looked at again."""
        self._fresh = False
        if self._release is not None:
            self._release()

    def _close_nest(self) -> None:
        if self._nest is not None:
            self._nest[0].close()
            self._nest = None

    def _settings(self, given: dict[str, Any]) -> Settings:
        """Arguments of execute(), then of Pipeline, then EZPYP_ variables, then defaults."""
        chosen = {key: self._chosen(key, value) for key, value in given.items()}
        under_mpi = mpi.launch() is not None
        return Settings(
            executor=_one_of("executor", chosen["executor"] or "processes", _EXECUTORS),
            helpers=_count("helpers", chosen["helpers"]) if under_mpi else _count("workers", chosen["workers"]),
            schedule="phase" if _one_of("schedule", chosen["schedule"] or "ready", _SCHEDULES) == "phase" else "ready",
            capture=_one_of("capture", chosen["capture"] or "file", _CAPTURES),
        )


def _selection(**given: str | Sequence[str]) -> Selection:
    """What a run is asked for: as arguments, or else in the environment."""
    found = {}
    for key, value in given.items():
        chosen = value or os.environ.get(f"EZPYP_{key.strip('_').upper()}", "")
        found[key] = tuple(chosen.split()) if isinstance(chosen, str) else tuple(chosen)
    return Selection(**found)


def _one_of(key: str, value: Any, known: Sequence[str]) -> str:
    if value not in known:
        raise InitializationError(f"{key}={value!r}: choose one of {', '.join(map(repr, known))}.")
    return str(value)


def _count(key: str, value: Any) -> int:
    if value is None:
        return 1
    try:
        count = int(value)
    except (TypeError, ValueError):
        count = 0
    if not 1 <= count <= nursery.MOST_SLOTS:
        raise InitializationError(f"{key}={value!r}: give a number from 1 to {nursery.MOST_SLOTS}.")
    return count


def _explain_mismatch(link: mpi.Link, organised: Plan) -> None:
    """Find the first step that two ranks built differently, and raise the same error on all (message 2)."""
    digests = link.gather([(d, organised.steps[k].label) for k, d in enumerate(organised.digests)])
    hosts = link.gather(link.host)
    ids = link.gather(organised.pipeline_id)
    base = digests[0]
    other = next(
        r for r, each in enumerate(digests) if [d for d, _ in each] != [d for d, _ in base] or ids[r] != ids[0]
    )
    theirs = digests[other]
    place = next(
        (k for k, (a, b) in enumerate(zip(base, theirs, strict=False)) if a[0] != b[0]), min(len(base), len(theirs))
    )
    if ids[other] != ids[0]:
        what = f"pipeline '{ids[other]}' there, '{ids[0]}' here"
    else:
        there = theirs[place][1] if place < len(theirs) else "missing"
        here = base[place][1] if place < len(base) else "missing"
        what = f"step {place} is {there} there, {here if here != there else 'another ' + here} here"
    error = RankMismatch(
        f"Rank {other} ({hosts[other]}) built another plan than rank 0: {what}. Usual causes: a set, os.listdir or "
        "glob without sorted(), random numbers or the time used to build steps. Nothing was run."
    )
    error.exit_code = 3
    error.quiet = link.rank != 0
    raise error


def _failures(summary: Summary) -> str:
    listed = [f"'{name}': {reason}" for name, reason in list(summary.failures.items())[:10]]
    more = f" (and {len(summary.failures) - 10} more)" if len(summary.failures) > 10 else ""
    return f"{len(summary.failures)} steps failed: {'; '.join(listed)}{more}. See {summary.folder}/{plan.SUMMARY_FILE}."


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


def _run_id() -> str:
    return f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}"


def _script() -> str:
    path = getattr(sys.modules.get("__main__"), "__file__", None)
    return os.path.abspath(path) if path else ""


def as_pickle_step(
    pipeline: Pipeline, depends_on: Any = (), **options: Any
) -> Callable[[Callable[..., Any]], StepFunction]:
    """A decorator that makes calls of a function steps of `pipeline`, their results kept by pickle.

    Args:
        depends_on: steps (or names) that must be done first without giving a value. Steps passed as arguments are found
            by themselves.
        **options: name (what its steps are called; part of their identity), allow_failure (True, a share or a count),
            retry (further attempts, or a Retry), timeout (seconds), cpus, gpus, memory (bytes), copy (private copies of
            large arrays), seed (a number, or None to leave the random generators alone).
    """
    return pipeline.step("pickle", depends_on=depends_on, **options)


def as_cloudpickle_step(
    pipeline: Pipeline, depends_on: Any = (), **options: Any
) -> Callable[[Callable[..., Any]], StepFunction]:
    """As `as_pickle_step`; results may hold functions and classes defined in the script."""
    return pipeline.step("cloudpickle", depends_on=depends_on, **options)


as_dill_step = as_cloudpickle_step


def as_numpy_step(
    pipeline: Pipeline, depends_on: Any = (), **options: Any
) -> Callable[[Callable[..., Any]], StepFunction]:
    """As `as_pickle_step`; results are arrays, kept as NAME.step.npy."""
    return pipeline.step("numpy", depends_on=depends_on, **options)


def as_json_step(
    pipeline: Pipeline, depends_on: Any = (), **options: Any
) -> Callable[[Callable[..., Any]], StepFunction]:
    """As `as_pickle_step`; results are kept as NAME.step.json."""
    return pipeline.step("json", depends_on=depends_on, **options)


def as_parquet_step(
    pipeline: Pipeline, depends_on: Any = (), **options: Any
) -> Callable[[Callable[..., Any]], StepFunction]:
    """As `as_pickle_step`; results are pandas tables, kept as NAME.step.parquet (needs `ezpyp[parquet]`)."""
    return pipeline.step("parquet", depends_on=depends_on, **options)


__all__ = [
    "Pipeline",
    "as_cloudpickle_step",
    "as_dill_step",
    "as_json_step",
    "as_numpy_step",
    "as_parquet_step",
    "as_pickle_step",
]
