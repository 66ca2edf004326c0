"""The face: Pipeline, the decorators, and results."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ezpyp.errors import (
    EzpypError,
    FailedStepWarning,
    InitializationError,
    NotExecutedStepWarning,
    ResultUnavailable,
    SkippedStepWarning,
    UnknownStep,
    UnrecognizedStepWarning,
)
from ezpyp.front.functions import StepFunction, Wishes
from ezpyp.model import plan
from ezpyp.model.naming import SCHEMA_FILE, SUMMARY_FILE
from ezpyp.model.outcomes import Status
from ezpyp.model.plan import Plan
from ezpyp.model.register import Register
from ezpyp.model.selection import Selection, unknown
from ezpyp.model.settings import Choices
from ezpyp.model.steps import Definition, Family, Step
from ezpyp.ranks import exits, launched, mpi
from ezpyp.scripts import loading, renewed
from ezpyp.system import files

if TYPE_CHECKING:
    from ezpyp.folder.summary import Summary
    from ezpyp.front.commands import CommandFunction, Commands
    from ezpyp.run.prospect import Prospect
    from ezpyp.run.session import Session
    from ezpyp.scripts.renewed import Call


class Pipeline:
    """Steps, the folder that keeps their results, and the run.

    Args:
        cache_location: the folder, made if it is not there; relative to the working directory, `~` works.
        pipeline_id: what the pipeline is called; a folder belongs to one.
        workers: how many steps run at once without MPI; "auto": one a core that was allotted (else EZPYP_WORKERS, else
            what helpers says).
        helpers: how many steps each MPI rank runs at once; "auto": one a core of its share of the node's (else
            EZPYP_HELPERS, else 1).
        executor: "processes", or "inline": in this very process, for debugging and notebooks (else EZPYP_EXECUTOR).
        schedule: "ready", or "phase": no step starts before the phase before it has ended (else EZPYP_SCHEDULE).
        capture: where the steps' output goes: "file", "tee" (also shown) or "off" (only shown) (else EZPYP_CAPTURE).
        on_change: what to do when the folder holds another plan: "refuse"; "extend": steps may join and leave; "rerun":
            changed steps and what depends on them run again (else EZPYP_ON_CHANGE, else "refuse").
        keep_old: how many former versions of a replaced result are kept, in `old/`.
        strict: refuse code that uses a global or closure value without lasting identity, which is else said once.
        follow, ignore: modules whose code counts although they are installed, and that does not although it is yours.
        packages: installed packages whose versions count, True for all; they are recorded in any case.
        reuse_from: folders of this pipeline: results that are wanted here and sound there are taken, not made.
        store: "files": a file pair a step; "packed": many results in few files; "memory": none, with executor="inline";
            "auto": packed for over 1,000 steps. Decided when the folder is made (else EZPYP_STORE, else "auto").

    EZPYP_START=fresh has helpers be new interpreters that run the script up to execute(), instead of forked.

    Every rank of an MPI job makes the same pipeline; `initialize_schema`, `execute` and `barrier` are collective.
    """

    def __init__(
        self,
        cache_location: str | os.PathLike[str],
        pipeline_id: str,
        *,
        workers: int | str | None = None,
        helpers: int | str | None = None,
        executor: str | None = None,
        schedule: str | None = None,
        capture: str | None = None,
        on_change: str | None = None,
        keep_old: int = 1,
        strict: bool = False,
        follow: Sequence[str] = (),
        ignore: Sequence[str] = (),
        packages: Sequence[str] | bool = (),
        reuse_from: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
        store: str | None = None,
    ) -> None:
        if renewed.call is None:
            exits.install()
        else:
            from ezpyp.work import renewal

            renewal.expect(renewed.call)
        self.pipeline_id = pipeline_id
        self._folder = files.make_folder(cache_location, really=not _looks_only())
        self._choices = Choices(
            {
                "workers": workers,
                "helpers": helpers,
                "executor": executor,
                "schedule": schedule,
                "capture": capture,
                "on_change": on_change,
                "keep_old": keep_old,
                "strict": strict,
                "reuse_from": files.folders_of(reuse_from),
                "store": store,
            }
        )
        counted = packages if isinstance(packages, bool) else tuple(packages)
        self._following = plan.Following(also=tuple(follow), never=tuple(ignore), packages=counted)
        self._steps = Register()
        self._commands: Commands | None = None
        self._plan: Plan | None = None
        self._session: Session | None = None
        #: What execute() would do, or why that cannot be said, while the script is only looked at.
        self._ahead: Prospect | EzpypError | None = None

    def __repr__(self) -> str:
        return f"<Pipeline '{self.pipeline_id}' of {len(self._steps)} steps in {self._folder}>"

    @property
    def cache_location(self) -> str:
        """The folder of this pipeline, absolute."""
        return self._folder

    @property
    def schema_path(self) -> str:
        return os.path.join(self._folder, SCHEMA_FILE)

    @property
    def summary_path(self) -> str:
        return os.path.join(self._folder, SUMMARY_FILE)

    @property
    def is_root(self) -> bool:
        """True on one rank, and without MPI. Does not start MPI."""
        if renewed.call is not None:
            return False
        told = launched.launch()
        return told is None or told.rank == 0

    @property
    def steps(self) -> Sequence[Step]:
        """The steps in the order of their calls; each is made when it is looked at."""
        return self._steps.steps

    @property
    def phases(self) -> Sequence[Sequence[Step]]:
        """The steps of each phase, once they are organised."""
        return self._organised("phases").phases

    # ----- writing

    def step(self, codec: str = "pickle", **options: Any) -> Callable[[Callable[..., Any]], StepFunction]:
        """A decorator: `@pipeline.step(codec="json", retry=2)`. The options are those of `as_pickle_step`."""
        wishes = Wishes().with_(codec=codec, **options)
        return lambda function: StepFunction(function, self, wishes)

    def command(self, name: str, command: Any, **options: Any) -> Step:
        """Add a step that is a program: `pipeline.command("sim", ["./sim", "--x", 0.3, mesh, File("in.nc")])`.

        It runs without a shell in an empty folder of its own, and its result is a `Completed`. A step among the
        arguments is written as its result, a list as several arguments, a tuple as one. Relative paths refer to the
        script's folder. It is known by the program's content, its arguments and `inputs=`.

        Args:
            name: what it is called; the next of that name is `name[1]`.
            command: a list; with shell="bash" also a text.
            **options: inputs (files that count; as a dict, also linked in under its names), outputs (names, patterns
                and folders that it has to leave in its folder, moved into the cache), env (variables; None takes one
                away), setup (lines for a login shell, such as "module load cdo"), cwd (a folder to run in instead),
                shell ("bash"), ok_codes (exit codes that are no failure), track (False: the program itself does not
                count), stdout (a file for its output), progress (a pattern with the number, or number and total, of a
                line that tells how far it is), mpi (ranks, on as many cores of one node), nodes (of the Slurm job, for
                these), scratch (where its folder is made; else $SLURM_TMPDIR, $TMPDIR or /tmp), stop_signal ("TERM": it
                is sent that when the run is to stop, saves in $EZPYP_CHECKPOINT_DIR, which survives runs, and counts as
                interrupted however it ends; without, it may finish until it is killed), timeout, cpus, gpus, memory,
                retry, allow_failure, depends_on, always, max_age, keep: as for functions.
        """
        from ezpyp.front import commands

        return commands.command(self._commands_of(), name, command, options)

    def _commands_of(self) -> Commands:
        if self._commands is None:
            from ezpyp.front.commands import Commands

            self._commands = Commands(self)
        return self._commands

    def add(self, family: Family) -> None:
        """Take steps. Decorated functions call this.

        Raises:
            InitializationError: the pipeline was initialized; RepeatedStepError: a name or the very call is taken.
        """
        if self._session is not None:
            raise InitializationError(
                f"Step '{family.name(0)}' comes after initialize_schema() of pipeline '{self.pipeline_id}'. Add it "
                "before, or to a new Pipeline with a folder of its own."
            )
        self._steps.add(family)
        self._plan = None

    def gather(
        self, definition: Definition, base: str, args: tuple[Any, ...], kwargs: dict[str, Any], identity: bytes
    ) -> Step | None:
        """Take a single call with plain arguments; see `Register.gather`."""
        if self._session is not None:
            return None
        self._plan = None
        return self._steps.gather(definition, base, args, kwargs, identity)

    def number(self, base: str, count: int = 1) -> int:
        """How many steps were named after `base` so far; counts so many more."""
        return self._steps.number(base, count)

    # ----- planning

    def organize_steps(self) -> None:
        """Order the steps by phase.

        Raises:
            InitializationError: there are none, or they wait for each other or for steps that are not here.
        """
        if self._plan is None:
            self._plan = plan.organise(self._steps, pipeline_id=self.pipeline_id, following=self._following)

    def get_schema(self) -> dict[str, Any]:
        """The phases as the schema file shows them: {"0": [entry, …], "1": …}.

        Raises:
            InitializationError: the steps are not organised yet.
        """
        organised = self._organised("get_schema()")
        from ezpyp.folder import schema as schemas

        content = schemas.read(self._folder) if self._session is not None else None
        content = content or schemas.of(organised, cache_location=self._folder)
        return {phase: list(entries) for phase, entries in content.items() if phase != "ezpyp"}

    def initialize_schema(self) -> None:
        """Fix the plan, compare it with the folder, and write the schema. A second call does nothing.

        Under MPI every rank takes part: all agree on the plan, or all raise. Steps run with the functions and globals
        as they are now.

        Raises:
            InitializationError, MissingDependency, CyclicDependency: the steps do not make a plan.
            SchemaConflictError: the folder holds another plan. Nothing was run or changed.
            RankMismatch: the ranks did not build the same plan.
        """
        self.organize_steps()
        if not _looks_only():
            self._initialized(self._choices)

    def _initialized(self, choices: Choices) -> Session:
        if self._session is None:
            from ezpyp.run.session import Session

            self.organize_steps()
            self._session = Session(self._organised("initialize_schema()"), self._folder, choices)
        return self._session

    def barrier(self) -> None:
        """Wait until every rank is here. Without MPI it does nothing."""
        link = mpi.connect() if renewed.call is None else None
        if link is not None:
            link.meet(mpi.Mark.BARRIER, b"", lambda: f"is in pipeline '{self.pipeline_id}'")

    # ----- running

    def execute(
        self,
        *,
        workers: int | str | None = None,
        helpers: int | str | None = None,
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
        if renewed.call is not None:
            return self._take_part(renewed.call)
        given = {"workers": workers, "helpers": helpers, "executor": executor, "schedule": schedule, "capture": capture}
        choices = self._choices.over({**given, "on_change": on_change})
        selection = _selection(only=only, until=until, from_=from_)
        if loading.loading():
            return self._look_ahead(choices, selection)
        return self._initialized(choices).execute(choices, selection, raise_on_failure)

    def prospect(self) -> Prospect:
        """What its execute() would do, after the script was looked at by `loading.load`.

        Raises:
            InitializationError: the steps make no plan, an input cannot be read, or there was no execute().
            StoreError: the folder cannot be read.
            UnknownStep: a step was asked for that is not there.
        """
        if isinstance(self._ahead, Exception):
            raise self._ahead
        if self._ahead is None:
            raise InitializationError(f"Pipeline '{self.pipeline_id}' came to no execute() that was only looked at.")
        return self._ahead

    # ----- results

    def get_status(self, step: Step | str) -> Status:
        """What came of a step: -1 not run, 0 done, 1 failed, 2 skipped."""
        name = step if isinstance(step, str) else step.name
        if self._session is not None:
            k = self._session.plan.index[name]
            return Status(int.from_bytes(self._session.statuses[k : k + 1], "big", signed=True))
        from ezpyp.folder import runs

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
        from ezpyp.folder import runs

        if name not in self._steps:
            raise UnknownStep(unknown(name, self._steps))
        return runs.result_of(self._folder, name, self.get_status(name))

    # ----- inside

    def _take_part(self, call: Call) -> Summary:
        """Stands for a run in a helper that runs the script once more: it begins its work here, or passes what an
        earlier execute() has left.
        """
        from ezpyp.folder import runs
        from ezpyp.work import renewal

        self.organize_steps()
        renewal.take_part(call, self._organised("execute()"), self._folder)
        return runs.open(self._folder).summary()

    def _look_ahead(self, choices: Choices, selection: Selection) -> Summary:
        """Stands for a run while the script is only looked at: gives what a finished one left, or ends the script."""
        from ezpyp.folder import runs
        from ezpyp.run import prospect

        try:
            self.organize_steps()
            self._ahead = ahead = prospect.look(
                self._organised("execute()"), self._folder, kind=choices.store(), choices=choices, selection=selection
            )
            finished = ahead.finished
        except EzpypError as error:
            self._ahead, finished = error, False
        loading.reached(self, finished=finished)
        return runs.open(self._folder).summary_of(self.pipeline_id, ahead.statuses)

    def _organised(self, what: str) -> Plan:
        if self._plan is None:
            raise InitializationError(f"{what} needs the phases: call organize_steps() or initialize_schema() first.")
        return self._plan


def _looks_only() -> bool:
    """Whether the script is run, but not to run its steps from here: nothing may be written."""
    return loading.loading() or renewed.call is not None


def _selection(**given: str | Sequence[str]) -> Selection:
    """What a run is asked for: as arguments, or else in the environment."""
    found = {}
    for key, value in given.items():
        chosen = value or os.environ.get(f"EZPYP_{key.strip('_').upper()}", "")
        found[key] = tuple(chosen.split()) if isinstance(chosen, str) else tuple(chosen)
    return Selection(**found)


def as_pickle_step(
    pipeline: Pipeline, depends_on: Any = (), **options: Any
) -> Callable[[Callable[..., Any]], StepFunction]:
    """A decorator that makes calls of a function steps of `pipeline`, their results kept by pickle.

    Args:
        depends_on: steps (or names) that must be done first without giving a value. Steps passed as arguments are found
            by themselves.
        **options: name (what its steps are called; part of their identity), allow_failure (True, a share or a count),
            retry (further attempts, or a Retry), timeout (seconds), cpus, gpus, memory (bytes),
            fresh (True: in a process that runs nothing else, as steps with gpus= are; False: such a step may follow
            another one on its GPU, with what that has loaded), copy (private copies of large arrays), inputs (files
            that it reads without being given them: paths, patterns, File, Files, Tree), outputs (paths and patterns
            that it has to leave where they are), identity (functions by parameter: such an argument is handed over as
            it is, and counts by what its function returns), keep (False: the result is dropped when the last step that
            needs it is done), seed (a number, or None to leave the random generators
            alone).
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


def as_command_step(pipeline: Pipeline, **options: Any) -> Callable[[Callable[..., Any]], CommandFunction]:
    """A decorator for a function that returns commands; its calls, `map` and `product` make steps that run them.

    The function is called at once and only arranges: what it is given of other steps it can put into the list, but not
    look at. Its code does not count, what it returns does. The options are those of `Pipeline.command`.
    """
    from ezpyp.front.commands import CommandFunction

    return lambda function: CommandFunction(function, pipeline._commands_of(), options)


__all__ = [
    "Pipeline",
    "as_cloudpickle_step",
    "as_command_step",
    "as_dill_step",
    "as_json_step",
    "as_numpy_step",
    "as_parquet_step",
    "as_pickle_step",
]
