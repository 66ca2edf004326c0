"""Run one step, here and now: bind its arguments, call it, keep the result, and say what came of it.

The hot path. It knows nothing of processes or ranks, imports nothing per step, and turns everything that a step can
do short of ending the process into an Outcome.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from ezpyp import codecs, outputs, running, salvage, scratch, seeding
from ezpyp.arguments import Deferred, Handed, describe
from ezpyp.capture import Capture, tail
from ezpyp.errors import CodecError, CommandFailed, EzpypError, Interrupted
from ezpyp.plan import Plan
from ezpyp.scripts import main_script
from ezpyp.steps import Outcome, Status, Step
from ezpyp.store import Record, Store, write_whole
from ezpyp.upstream import Upstream


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """Everything a step needs to run: the plan, its fingerprints, where results go, and who is running."""

    plan: Plan
    fingerprints: Sequence[str]
    store: Store
    folder: str
    rank: int = 0
    host: str = ""
    #: What the step prints; None where it goes to this process's own output.
    capture: Capture | None = None
    #: Digests of what steps read, by their indices: a step draws by the contents of its files, not by their paths.
    inputs: Mapping[int, bytes] = field(default_factory=dict)
    #: What earlier steps made.
    upstream: Upstream = field(init=False)

    def __post_init__(self) -> None:
        upstream = Upstream(plan=self.plan, fingerprints=self.fingerprints, store=self.store, folder=self.folder)
        object.__setattr__(self, "upstream", upstream)

    def run(self, index: int, attempt: int = 1, absent: Sequence[int] = ()) -> Outcome:
        """Run the step and store its result.

        Args:
            absent: steps upstream whose failures were allowed; recorded with the result, which depends on it.

        Never raises for what a step does, but a BaseException that is not an exit of the step (KeyboardInterrupt)
        passes. Every outcome but a retried failure is on disk, whole, when the store is flushed.
        """
        step = self.plan.steps[index]
        missing = tuple(self.plan.steps[k].name for k in absent)
        call = _Call(worker=self, step=step, index=index, attempt=attempt, missing=missing)
        with running.step():
            try:
                return call.run()
            finally:
                seeding.clear()

    def keep(self, outcome: Outcome, chunks: Sequence[Any] | None = None) -> Outcome:
        """Store an outcome under its step's fingerprint."""
        k = outcome.step
        record = Record(name=self.plan.steps[k].name, fingerprint=self.fingerprints[k], outcome=outcome)
        return self.store.put(self.plan.stems[k], record, chunks)


class _Call:
    """One run of one step."""

    __slots__ = ("args", "attempt", "began", "index", "kwargs", "missing", "place", "step", "worker")

    def __init__(self, *, worker: Worker, step: Step, index: int, attempt: int, missing: tuple[str, ...]) -> None:
        self.worker, self.step, self.index, self.attempt, self.missing = worker, step, index, attempt, missing
        self.args, self.kwargs = step.texts() if step.arguments.plain is not None else ("[…]", "{…}")
        self.began = time.perf_counter()
        #: Its folder, where it asked for one.
        self.place: scratch.Place | None = None

    def run(self) -> Outcome:
        room, worker = self.step.options.workdir, self.worker
        if room is None:
            return self._run()
        stem, log = worker.plan.stems[self.index], worker.capture.log if worker.capture is not None else None
        try:
            self.place = scratch.Place(
                room, stem=stem, host=worker.host, attempt=self.attempt, cache=worker.folder, log=log or ""
            )
        except OSError as error:
            return self._failed("input", f"its folder cannot be used: {error}")
        with scratch.at(self.place):
            return self._run()

    def _run(self) -> Outcome:
        step = self.step
        try:
            args, kwargs = step.arguments.thaw(self._resolve, copy=step.options.copy)
            # What is handed over is shown by what it counts by: its repr may be an address.
            handed = any(isinstance(each, Handed) for each in step.arguments.deferred)
            self.args, self.kwargs = step.texts() if handed else describe(args, kwargs)
        except (EzpypError, OSError) as error:
            return self._failed("input", f"{type(error).__name__}: {error}")
        except Exception as error:
            return self._failed(
                "input", f"its arguments could not be made: {type(error).__name__}: {error}", _frames(error, 0)
            )
        seeding.plant(self._seed())
        try:
            value = self._call(args, kwargs)
        except BaseException as error:
            return self._raised(error)
        del args, kwargs
        try:
            encoded = codecs.encode_result(step.options.codec, value, step=step.name)
        except CodecError as error:
            return self._unstorable(value, str(error))
        except Exception as error:
            return self._failed("encode", _one_line(error), _frames(error))
        try:
            files = self._files(encoded.files)
        except (EzpypError, OSError) as error:
            return self._failed("output", str(error))
        outcome = self._outcome(Status.DONE, note=encoded.note, codec=encoded.codec, **files)
        try:
            return self._replace(outcome, encoded.chunks)
        except (EzpypError, OSError) as error:
            return self._failed("store", str(error))
        except Exception as error:
            return self._failed("store", _one_line(error), _frames(error))

    def _raised(self, error: BaseException) -> Outcome:
        """What came of a step that raised."""
        if isinstance(error, KeyboardInterrupt) and self.worker.capture is None:
            raise error  # in line: a person wants the step ended
        if isinstance(error, Interrupted):
            return self._outcome(Status.NOT_RUN, cause="interrupted", note=_one_line(error, named=False))
        if isinstance(error, CommandFailed):
            return self._failed(error.cause, _one_line(error, named=False), again=self._again(), last_words=error.tail)
        if isinstance(error, SystemExit):
            return self._failed("exit", f"it called sys.exit({error.code!r})", _frames(error, 2))
        return self._failed("exception", _one_line(error), _frames(error, 2))

    def _call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Call the function. A child that it forked and that comes back here would be this process once more."""
        here = os.getpid()
        try:
            return self.step.function(*args, **kwargs)
        finally:
            if os.getpid() != here:
                _end_child()

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
        began = time.time() - (time.perf_counter() - self.began)
        stem = worker.plan.stems[self.index]
        kept = outputs.keep(returned, worker.folder, stem, inputs=step.arguments.inputs, since=began, base=base)
        return {"files": kept, "outputs": left}

    def _replace(self, outcome: Outcome, chunks: Sequence[Any]) -> Outcome:
        """Store a result; the files of the one that it replaces go when nothing names them any more."""
        worker = self.worker
        former = worker.store.read(worker.plan.stems[self.index]) if outcome.files else None
        kept = worker.keep(outcome, chunks)
        if former is not None:
            now = {place for place, *_ in kept.files}
            outputs.discard(worker.folder, [each for each in former.outcome.files if each[0] not in now])
        return kept

    def _resolve(self, deferred: Deferred) -> Any:
        if isinstance(deferred, Handed):
            return deferred.value
        values = [self.worker.upstream.value(each, absent=each.name in self.missing) for each in deferred.sources()]
        return values[0] if deferred.one else values

    def _seed(self) -> int | None:
        step = self.step
        if step.options.seed != "auto":
            return step.options.seed  # type: ignore[return-value]
        name = step.name if step.named else None
        arguments = step.arguments.identity + self.worker.inputs.get(self.index, b"")
        return seeding.seed_of(self.worker.plan.pipeline_id, step.function_name, arguments, name)

    def _again(self) -> str:
        """What to type to run this step alone."""
        script = main_script()
        if not script:
            return ""
        words = ["ezpyp", "run", os.path.relpath(script, self.place.before if self.place else None)]
        return f"Again, alone: {shlex.join([*words, '--only', self.step.name])}"

    def _outcome(self, status: Status, *, last_words: str = "", **more: Any) -> Outcome:
        log = self.worker.capture.end() if self.worker.capture is not None else None
        return Outcome(
            step=self.index,
            status=status,
            when=time.time(),
            seconds=time.perf_counter() - self.began,
            rank=self.worker.rank,
            host=self.worker.host,
            attempt=self.attempt,
            args=self.args,
            kwargs=self.kwargs,
            missing=self.missing,
            log=log,
            tail=last_words or (tail(self.worker.folder, log) if status is Status.FAILED else ""),
            **more,
        )

    def _failed(self, cause: str, note: str, traceback: str = "", *, again: str = "", last_words: str = "") -> Outcome:
        if self.place is not None:
            note = "  ".join(each for each in (note, self.place.kept(), again) if each)
        outcome = self._outcome(Status.FAILED, cause=cause, note=note, traceback=traceback, last_words=last_words)
        try:
            return self.worker.keep(outcome)
        except Exception as error:
            # The disk may be what failed. The ledger hears of it all the same.
            return replace(outcome, note=f"{note} (and its status could not be stored: {error})")

    def _unstorable(self, value: Any, reason: str) -> Outcome:
        """A result that no codec takes: keep what can be kept."""
        path = f"{self.worker.folder}/{self.worker.plan.stems[self.index]}.partial"
        try:
            write_whole(path, [salvage.partial_of(value)])
            kept = f" The rest is kept in {path}."
        except Exception:
            kept = ""
        return self._failed("encode", f"{reason}{kept}")


#: Characters of an error's text, and of a traceback, that are kept: they travel to rank 0 and stand in listings.
_MOST_NOTE = 2000
_MOST_TRACEBACK = 20_000


def _one_line(error: BaseException, *, named: bool = True) -> str:
    """The text of an error, after the name of its class unless it is ours and says all."""
    try:
        text = str(error).strip()
    except Exception as another:
        text = f"(its text cannot be made: {type(another).__name__})"
    if named or not text:
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return _short(text, _MOST_NOTE)


def _frames(error: BaseException, ours: int = 1) -> str:
    """The traceback as the user knows it: without the `ours` outermost frames, which are of this module."""
    import traceback

    inner = error.__traceback__
    for _ in range(ours):
        inner = inner.tb_next if inner is not None else None
    try:
        text = "".join(traceback.format_exception(type(error), error, inner)).rstrip()
    except Exception as another:
        return f"(its traceback cannot be made: {type(another).__name__})"
    return _short(text, _MOST_TRACEBACK)


def _short(text: str, most: int) -> str:
    """The beginning and the end of a text."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} … ({len(text) - 2 * half:,} characters left out) … {text[-half:]}"


def _end_child() -> NoReturn:
    """End a process that a step forked, as it would have ended at the end of a script."""
    error = sys.exc_info()[1]
    code = 0
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    elif error is not None:
        code = 1
        with contextlib.suppress(Exception):
            sys.stderr.write(f"{_frames(error)}\n")
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(code & 0xFF)
