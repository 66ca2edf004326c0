"""Run one step, here and now: bind its arguments, call it, keep the result, and say what came of it.

The hot path. It knows nothing of processes or ranks, imports nothing per step, and turns everything that a step can
do short of ending the process into an Outcome, or into a Brief where there is nothing to say.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pickle import dumps
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from ezpyp.encoding import codecs, salvage
from ezpyp.errors import CodecError, CommandFailed, EzpypError, Interrupted, StoreError
from ezpyp.identity.outline import describe
from ezpyp.model import outputs, scratch
from ezpyp.model.arguments import Deferred, Handed
from ezpyp.model.columns import Columns
from ezpyp.model.fingerprints import Fingerprints
from ezpyp.model.outcomes import Brief, Outcome, Status
from ezpyp.model.plan import Plan
from ezpyp.model.steps import MANY, Family, Step
from ezpyp.schedule.briefs import pack, unpack
from ezpyp.scripts.loading import main_script
from ezpyp.storage.opening import Record, Store, write_whole
from ezpyp.storage.protocol import Done
from ezpyp.system import resources
from ezpyp.system.capture import tail
from ezpyp.system.confined import PLAIN, is_confined
from ezpyp.system.files import Buffer
from ezpyp.work import checkpoints, seeding
from ezpyp.work.gauges import Gauge
from ezpyp.work.guards import Guards, end_child
from ezpyp.work.lots import Task
from ezpyp.work.tracebacks import frames, one_line
from ezpyp.work.upstream import Upstream

if TYPE_CHECKING:
    from ezpyp.system.usage import Use

#: Positional and keyword arguments.
Call = tuple[tuple[Any, ...], dict[str, Any]]
_NOTHING: Mapping[str, Any] = {}
#: Seconds from which on a step takes long; and of how long one took, what the next is believed to take at least.
LONG, FADING = 0.01, 0.8


class Worker:
    """Everything a step needs to run: the plan, its fingerprints, where results go, and who is running."""

    def __init__(
        self,
        *,
        plan: Plan,
        fingerprints: Fingerprints,
        store: Store,
        folder: str,
        rank: int = 0,
        host: str = "",
        guards: Guards | None = None,
        gauge: Gauge | None = None,
        inputs: Mapping[int, bytes] = {},
    ) -> None:
        """
        Args:
            guards: keep steps from changing this process for each other; None in line.
            gauge: has somebody look at what steps use of GPUs; None in line.
            inputs: digests of what steps read, by their indices: a step draws by the contents of its files, not by
                their paths.
        """
        self.plan, self.fingerprints, self.store, self.folder = plan, fingerprints, store, folder
        self.rank, self.host = rank, host
        self.guards, self.gauge, self.inputs = guards, gauge, inputs
        #: A child that a step forked has another.
        self.pid = os.getpid()
        #: Done steps that saved something, which go when their results are on disk.
        self.spent: list[int] = []
        #: Of done steps that were not told of yet, the arguments that their records say.
        self.called: dict[int, tuple[str, str]] = {}
        #: Results of earlier steps.
        self.upstream = Upstream(plan=plan, fingerprints=fingerprints, store=store, folder=folder)
        #: By the addresses of definitions, and of what of these matters here: the plan keeps them alive.
        self._kinds: dict[int, Kind] = {}
        self._alike: dict[tuple[int, int], Kind] = {}
        #: Which of these can do nothing but compute, as far as that was looked at since a step ran that can do more.
        self._confined: dict[Kind, bool] = {}

    def run(self, task: Task, before_long: Callable[[], None] | None = None) -> bytes | Outcome:
        """Run the step and store its result: a packed Brief, or an Outcome where there is more to say.

        `before_long` is called before a step that may take long: nobody should wait for what ended before it.

        Never raises for what a step does, but a BaseException that is not an exit of the step (KeyboardInterrupt)
        passes. Everything but a retried failure is on disk, whole, when the store is flushed.
        """
        step = Step(*self.plan.steps.find(task.step))
        kind = self.kind(step.family)
        if kind.seconds > LONG and before_long is not None:
            before_long()
        call = _Call(self, step, kind, task)
        if self.is_confined(kind) and (free := call.free()) is not None:
            return call.compute(free)
        if task.grant is None:
            return self._guarded(call)
        with resources.granted(task.grant), self.gauge.at(task.grant.gpus) if self.gauge else nullcontext():
            return self._guarded(call)

    def _guarded(self, call: _Call) -> bytes | Outcome:
        kind, step = call.kind, call.step
        call.guards = self.guards
        self._confined.clear()
        if self.guards is not None:
            self.guards.enter(kind.options.request.cpus)
        seeding.plant(kind.seed(step, step.arguments.identity + self.inputs.get(call.index, b"")))
        checkpoints.current = self, call.index
        try:
            came = call.run()
        finally:
            seeding.clear()
        if checkpoints.asked == call.index and (isinstance(came, bytes) or came.status is Status.DONE):
            self.spent.append(call.index)
        return came

    def flush(self, briefs: bytes, outcomes: list[Outcome]) -> tuple[bytes, list[Outcome]]:
        """Have what came of steps on disk, so that it may be told: as it is, or as failures where that cannot be."""
        try:
            self.store.flush()
        except StoreError as error:
            lost = [self.lost(each, error) for each in unpack(briefs)]
            self.spent.clear()
            return b"", [*lost, *(self.lost(each, error) for each in outcomes)]
        while self.spent:
            checkpoints.drop(self.folder, self.plan.stems[self.spent.pop()])
        return briefs, outcomes

    def lost(self, came: Brief | Outcome, error: Exception) -> Outcome:
        """A step of which nothing could be stored. The next run does it again."""
        if isinstance(came, Outcome) and came.status is not Status.DONE:
            return came._replace(note=_and_lost(came.note, error))
        args, kwargs = self.plan.steps[came.step].texts()
        return Outcome(
            step=came.step,
            status=Status.FAILED,
            when=came.when,
            seconds=came.seconds,
            rank=self.rank,
            host=self.host,
            attempt=came.attempt,
            args=args,
            kwargs=kwargs,
            cause="store",
            note=str(error),
        )

    def keep(self, outcome: Outcome, chunks: Sequence[Any] | None = None) -> Outcome:
        """Store an outcome under its step's fingerprint."""
        k = outcome.step
        record = Record(name=self.plan.steps[k].name, fingerprint=self.fingerprints[k], outcome=outcome)
        return self.store.put(self.plan.stems[k], record, chunks)

    def tell_call(self, k: int, family: Family, args: str, kwargs: str) -> None:
        """What a step was called with, as its record says it, if it has a row of its own in the summary."""
        if len(family) <= MANY:
            self.called[k] = args, kwargs

    def conclude(
        self, k: int, began: float, value: Any, error: BaseException | None, said: tuple[str, str] = ("", "")
    ) -> bytes | Outcome:
        """Keep what came of a step whose first attempt was made elsewhere in this process: this value or error.

        `said` are its arguments as texts, where they are not those that the plan shows.
        """
        step = Step(*self.plan.steps.find(k))
        call = _Call(self, step, self.kind(step.family), Task(k))
        call.began = began
        call.args, call.kwargs = said
        return call.came(value) if error is None else call.raised(error)

    def is_confined(self, kind: Kind) -> bool:
        """Whether steps like these need no guards and no seed, because they can do nothing but compute."""
        found = self._confined.get(kind)
        if found is None:
            found = self._confined[kind] = kind.pickles and is_confined(kind.function)
        return found

    def kind(self, family: Family) -> Kind:
        """What is decided once for steps like these."""
        definition = family.definition
        if (kind := self._kinds.get(id(definition))) is None:
            alike = id(definition.function), id(definition.options)
            kind = self._alike.get(alike) or self._alike.setdefault(alike, Kind(Step(family), self.plan.pipeline_id))
            self._kinds[id(definition)] = kind
        return kind


class Kind:
    """What is decided once for all steps of one function with the same options."""

    __slots__ = ("codec", "function", "options", "pickles", "room", "seconds", "seeds")

    def __init__(self, step: Step, pipeline_id: str) -> None:
        #: How long the next one may take, judged by the longest of the last ones. Unknown may be long, until one ended.
        self.seconds = LONG / FADING
        self.function, self.options = step.function, step.options
        self.codec, self.room = step.options.codec, step.options.workdir
        #: Whether plain values need no more than a pickle.
        self.pickles = self.codec == "pickle" and not step.options.outputs.patterns and self.room is None
        self.seeds = seeding.Seeds(pipeline_id, step.function_name)

    def seed(self, step: Step, identity: bytes) -> int | None:
        """The seed of a step with these arguments."""
        seed = self.options.seed
        if seed == "auto":
            return self.seeds.of(identity, step.name if step.named else None)
        return seed  # type: ignore[return-value]


class _Call:
    """One run of one step."""

    __slots__ = (
        *("args", "attempt", "began", "given", "gpus", "guards", "index", "kind", "kwargs", "missing", "place"),
        *("step", "worker"),
    )

    def __init__(self, worker: Worker, step: Step, kind: Kind, task: Task) -> None:
        self.worker, self.step, self.kind = worker, step, kind
        #: Those that stand around it, if any do.
        self.guards: Guards | None = None
        #: Its arguments, where they were made already.
        self.given: Call | None = None
        self.index, self.attempt, absent, grant = task
        self.gpus = grant.names if grant is not None else ()
        self.missing = tuple(worker.plan.steps[k].name for k in absent) if absent else ()
        #: The arguments as texts, where they are not those that the plan shows.
        self.args = self.kwargs = ""
        self.began = monotonic()
        #: Its folder, where it asked for one.
        self.place: scratch.Place | None = None

    def free(self) -> Call | None:
        """The arguments of a function that can do nothing but compute with them: it needs no guards and no seed. None
        where they are such that it could do more.
        """
        calls = self.step.family.calls
        given = calls.plain(self.step.member) if isinstance(calls, Columns) else None
        if given is None:
            arguments = calls[self.step.member]
            if not arguments.deferred:
                given = arguments.plain
            elif arguments.plain is not None and not self.missing:
                with contextlib.suppress(Exception):  # it comes again where it is told
                    given = self.given = self._arguments()
        if given is None or not PLAIN.issuperset(map(type, given[0])):
            return None
        return given if not given[1] or PLAIN.issuperset(map(type, given[1].values())) else None

    def compute(self, free: Call) -> bytes | Outcome:
        """Run it with these arguments, where it can do nothing but compute."""
        try:
            value = self.kind.function(*free[0], **free[1])
        except BaseException as error:
            return self.raised(error)
        return self.came(value)

    def run(self) -> bytes | Outcome:
        room, worker = self.kind.room, self.worker
        if room is None:
            return self._run()
        try:
            self.place = scratch.Place(
                room,
                name=self.step.name,
                stem=worker.plan.stems[self.index],
                host=worker.host,
                attempt=self.attempt,
                cache=worker.folder,
                log=(worker.guards.log if worker.guards is not None else None) or "",
            )
        except OSError as error:
            return self._failed("input", f"its folder cannot be used: {error}")
        with scratch.at(self.place):
            return self._run()

    def _run(self) -> bytes | Outcome:
        given, self.given = self.given, None
        try:
            args, kwargs = given or self._arguments()
        except (EzpypError, OSError) as error:
            return self._failed("input", f"{type(error).__name__}: {error}")
        except Exception as error:
            return self._failed(
                "input", f"its arguments could not be made: {type(error).__name__}: {error}", frames(error, 0)
            )
        try:
            try:
                value = self.kind.function(*args, **kwargs)
            finally:
                # A child that it forked and that comes back here would be this process once more.
                if os.getpid() != self.worker.pid:
                    end_child()
        except BaseException as error:
            return self.raised(error)
        del given, args, kwargs
        return self.came(value)

    def came(self, value: Any) -> bytes | Outcome:
        """Keep what it returned."""
        if self.kind.pickles and type(value) in PLAIN:
            return self._keep("pickle", (dumps(value, 5),))
        try:
            encoded = codecs.encode_result(self.kind.codec, value, step=self.step.name)
        except CodecError as error:
            return self._unstorable(value, str(error))
        except Exception as error:
            return self._failed("encode", one_line(error), frames(error))
        try:
            files = self._files(encoded.files)
        except (EzpypError, OSError) as error:
            return self._failed("output", str(error), again=self._again() if self.place is not None else "")
        return self._keep(encoded.codec, encoded.chunks, encoded.note, files)

    def raised(self, error: BaseException) -> Outcome:
        """What came of a step that raised."""
        if isinstance(error, KeyboardInterrupt) and self.worker.guards is None:
            raise error  # in line: a person wants the step ended
        if isinstance(error, Interrupted):
            return self._outcome(Status.NOT_RUN, cause="interrupted", note=one_line(error, named=False))
        if isinstance(error, CommandFailed):
            return self._failed(error.cause, one_line(error, named=False), again=self._again(), last_words=error.tail)
        if isinstance(error, SystemExit):
            return self._failed("exit", f"it called sys.exit({error.code!r})", frames(error))
        return self._failed("exception", one_line(error), frames(error))

    def _arguments(self) -> Call:
        arguments = self.step.arguments
        args, kwargs = arguments.thaw(self._resolve, copy=self.kind.options.copy)
        # What is handed over is shown by what it counts by: its repr may be an address.
        if arguments.deferred and not any(isinstance(each, Handed) for each in arguments.deferred):
            self.args, self.kwargs = describe(args, kwargs)
        return args, kwargs

    def _resolve(self, deferred: Deferred) -> Any:
        if isinstance(deferred, Handed):
            return deferred.value
        values = [self._value(each) for each in deferred.sources()]
        return values[0] if deferred.one else values

    def _value(self, source: Step) -> Any:
        worker = self.worker
        k = worker.plan.places[source]
        return worker.upstream.value(k, absent=source.name in self.missing)

    def _files(self, returned: Sequence[str]) -> dict[str, Any]:
        """What it leaves beside its result, now at its place."""
        step, worker = self.step, self.worker
        if not returned and not step.options.outputs.patterns and self.place is None:
            return {}
        base = ""
        if self.place is not None and self.place.own:
            base = self.place.path
            asked = [f"{base}/{name}" for names in self.place.outputs().values() for name in names]
            returned = list(dict.fromkeys([*returned, *asked]))
        left = outputs.left(step.options.outputs)
        began = time() - (monotonic() - self.began)
        stem = worker.plan.stems[self.index]
        kept = outputs.keep(returned, worker.folder, stem, inputs=step.arguments.inputs, since=began, base=base)
        return {"files": kept, "outputs": left} if kept or left else {}

    def _keep(
        self, codec: str, chunks: Sequence[Buffer], note: str = "", files: Mapping[str, Any] = _NOTHING
    ) -> bytes | Outcome:
        """Store a result, by numbers alone where there is nothing else to say."""
        worker, index = self.worker, self.index
        log = self.guards.leave() if self.guards is not None else None
        try:
            if log or note or files or self.missing or self.gpus:
                outcome = self._outcome(Status.DONE, note=note, codec=codec, **files)
                return self._replace(outcome, chunks)
            when, seconds = time(), monotonic() - self.began
            self.kind.seconds = max(seconds, FADING * self.kind.seconds)
            done = Done(
                worker.plan.stems.of(self.step),
                self.step.name,
                worker.fingerprints.raw(index),
                when=when,
                seconds=seconds,
                attempt=self.attempt,
                codec=codec,
                args=self.args,
                kwargs=self.kwargs,
            )
            place = worker.store.add(done, chunks)
            worker.upstream.keep(index, codec, chunks)
            if self.args:
                worker.tell_call(index, self.step.family, self.args, self.kwargs)
            segment, offset, size, checksum = place
            return pack(index, self.attempt, worker.rank, segment, when, seconds, offset, size, checksum)
        except (EzpypError, OSError) as error:
            return self._failed("store", str(error))
        except Exception as error:
            return self._failed("store", one_line(error), frames(error))

    def _replace(self, outcome: Outcome, chunks: Sequence[Any]) -> Outcome:
        """Store a result; the files of the one that it replaces go when nothing names them any more."""
        worker = self.worker
        former = worker.store.read(worker.plan.stems[self.index]) if outcome.files else None
        kept = worker.keep(outcome, chunks)
        if former is not None:
            worker.store.flush()
            now = {place for place, *_ in kept.files}
            outputs.discard(worker.folder, [each for each in former.outcome.files if each[0] not in now])
        return kept

    def _again(self) -> str:
        """What to type to run this step alone."""
        script = main_script()
        if not script:
            return ""
        words = ["ezpyp", "run", os.path.relpath(script, self.place.before if self.place else None)]
        return f"Again, alone: {shlex.join([*words, '--only', self.step.name])}"

    def _outcome(self, status: Status, *, last_words: str = "", **more: Any) -> Outcome:
        log = self.guards.leave() if self.guards is not None else None
        args, kwargs = (self.args, self.kwargs) if self.args else self._texts()
        seconds = monotonic() - self.began
        self.kind.seconds = max(seconds, FADING * self.kind.seconds)
        return Outcome(
            step=self.index,
            status=status,
            when=time(),
            seconds=seconds,
            rank=self.worker.rank,
            host=self.worker.host,
            attempt=self.attempt,
            args=args,
            kwargs=kwargs,
            missing=self.missing,
            log=log,
            gpu=self._use(),
            tail=last_words or (tail(self.worker.folder, log) if status is Status.FAILED else ""),
            **more,
        )

    def _use(self) -> Use | None:
        """What it used until now of the GPUs that it was granted."""
        if not self.gpus:
            return None
        if self.worker.gauge is not None:
            return self.worker.gauge.read(self.gpus)
        from ezpyp.system.usage import Use

        return Use(self.gpus)

    def _texts(self) -> tuple[str, str]:
        """The arguments as the plan shows them."""
        try:
            return self.step.texts()
        except Exception:  # the arguments cannot be made
            return "[…]", "{…}"

    def _failed(self, cause: str, note: str, traceback: str = "", *, again: str = "", last_words: str = "") -> Outcome:
        if self.place is not None:
            note = "  ".join(each for each in (note, self.place.kept(), again) if each)
        outcome = self._outcome(Status.FAILED, cause=cause, note=note, traceback=traceback, last_words=last_words)
        try:
            return self.worker.keep(outcome)
        except Exception as error:
            # The disk may be what failed. The ledger hears of it all the same.
            return outcome if str(error) in note else outcome._replace(note=_and_lost(note, error))

    def _unstorable(self, value: Any, reason: str) -> Outcome:
        """A result that no codec takes: keep what can be kept."""
        path = f"{self.worker.folder}/{self.worker.plan.stems[self.index]}.partial"
        try:
            write_whole(path, [salvage.partial_of(value)])
            kept = f" The rest is kept in {path}."
        except Exception:
            kept = ""
        return self._failed("encode", f"{reason}{kept}")


def _and_lost(note: str, error: Exception) -> str:
    return f"{note} (and its status could not be stored: {error})"
