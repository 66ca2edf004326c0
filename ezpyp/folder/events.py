"""What can happen in a run, as frozen values; the bus that tells listeners; the journal that keeps them.

A journal is one file a run, `journal/RUN.jsonl`: one JSON object a line, "event" first, the first line
{"event": "Journal", "format": 1, "run": RUN}. Then events by the names of their classes, without what
has its default value. It is history only: losing it loses no result.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from typing import TYPE_CHECKING, Any, Protocol

from ezpyp.errors import StoreError
from ezpyp.model.outcomes import Outcome, Status
from ezpyp.tuples import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

FORMAT = 1
FOLDER = "journal"
#: Among the journals: what is left of older ones.
ARCHIVE = "archive.jsonl"
_SUFFIX = ".jsonl"
_STAMP = "%Y%m%dT%H%M%S"
#: Never changed.
_NOTHING: Mapping[str, Any] = {}


class RunStarted(NamedTuple):
    """The ledger is about to hand out the first step."""

    run: str
    when: float
    pipeline_id: str
    folder: str
    store: str
    command: tuple[str, ...]
    python: str
    #: The MPI library, "" without MPI.
    mpi: str
    executor: str
    schedule: str
    ranks: int
    hosts: tuple[str, ...]
    slots: int
    total: int
    #: Steps that were done before this run.
    done: int
    #: How many it was asked for that were not; None for all of them.
    part: int | None = None
    #: The script, and where it was started.
    script: str = ""
    directory: str = ""
    #: Of the script's repository, "" without one; and whether tracked files differ from it, None where git did not say.
    commit: str = ""
    dirty: bool | None = None
    #: Versions of the packages that the code uses.
    packages: Mapping[str, str] = _NOTHING
    #: The Slurm job, "" without Slurm.
    job: str = ""
    #: By host the GPUs that steps were granted from, where some asked for any.
    gpus: Mapping[str, tuple[str, ...]] = _NOTHING
    #: Variables that change what a run does.
    environment: Mapping[str, str] = _NOTHING


class StepStarted(NamedTuple):
    """A step that may take a while was handed out. Very short ones are not announced."""

    when: float
    name: str


class StepEnded(NamedTuple):
    """An outcome arrived. `final` is False where the step will be tried again."""

    name: str
    label: str
    title: str
    phase: int
    outcome: Outcome
    final: bool = True
    #: The failure was within the allowance of its group when the run ended or the outcome came.
    allowed: bool = False


class LotEnded(NamedTuple):
    """Steps that did not take long are done, in a run of many: they are told together."""

    when: float
    #: By name, those that were reported first and last, and how many there are.
    first: str
    last: str
    steps: int
    #: How long they took, together.
    seconds: float


class RunEnded(NamedTuple):
    """The last event of a run that ended by itself."""

    run: str
    when: float
    seconds: float
    done: int
    failed: int
    skipped: int
    not_run: int
    #: Failures within their group's allowance, counted in `failed` too.
    allowed: int
    #: Steps that were done before and not run again, counted in `done` too.
    cached: int
    exit_code: int
    #: "" or why it ended early.
    reason: str = ""
    #: The Slurm job that goes on with it by itself, "" where none does.
    next_job: str = ""
    #: By the name of their function, of the steps that were done: count; mean, p95 and longest, in seconds.
    durations: Mapping[str, Mapping[str, float]] = _NOTHING


class StepCached(NamedTuple):
    """A step that need not run: its result is of an earlier run. Told before the first step starts, of small plans."""

    when: float
    name: str
    title: str
    phase: int


Event = RunStarted | StepCached | StepStarted | StepEnded | LotEnded | RunEnded


class Listener(Protocol):
    """Hears every event of a run on rank 0. One that raises is removed and the run goes on."""

    def hear(self, event: Event, /) -> None:
        """Called from the scheduling loop: must not block for long. What it buffers it writes at `close`."""

    def idle(self) -> None:
        """Called whenever what came together was told, so that what is buffered need not wait."""

    def close(self) -> None:
        """The run is over, or this listener raised; called once."""


class Bus:
    """Tells every listener every event."""

    def __init__(self, listeners: Iterable[Listener] = ()) -> None:
        self._listeners = list(listeners)
        self._held: list[Event] | None = None

    def hold(self) -> None:
        """Keep what is told from now on until `begin`."""
        self._held = []

    def begin(self, event: Event) -> None:
        """Let every listener hear this event, then what was kept."""
        held, self._held = self._held or (), None
        for each in (event, *held):
            self.tell(each)

    def tell(self, event: Event) -> None:
        """Let every listener hear an event. Costs one check when there is none."""
        if self._held is not None:
            self._held.append(event)
        elif self._listeners:
            self._each(lambda listener: listener.hear(event))

    def idle(self) -> None:
        """What came together was told."""
        if self._listeners:
            self._each(lambda listener: listener.idle())

    def close(self) -> None:
        """The run is over. Nobody is told anything afterwards."""
        self._each(lambda listener: listener.close())
        self._listeners.clear()

    def _each(self, act: Callable[[Listener], None]) -> None:
        for listener in [*self._listeners]:
            try:
                act(listener)
            except Exception as error:
                self._drop(listener, error)

    def _drop(self, listener: Listener, error: Exception) -> None:
        self._listeners.remove(listener)
        with contextlib.suppress(Exception):
            listener.close()
        with contextlib.suppress(Exception):
            name = type(listener).__name__
            print(
                f"ezpyp: {name} stopped: {type(error).__name__}: {error}. The run goes on without it.",
                file=sys.stderr,
            )


class Journal:
    """Writes the events of one run to `FOLDER/journal/RUN.jsonl`, every `every` seconds and at `close`.

    Opened at the first event. Raises OSError where it cannot be written (the bus then drops it).
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        run: str,
        *,
        every: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = os.path.join(folder, FOLDER, f"{run}{_SUFFIX}")
        self._lines = [to_line({"event": "Journal", "format": FORMAT, "run": run})]
        self._every, self._clock = every, clock
        self._file = -1
        self._flushed, self._has_begun = -every, False

    def hear(self, event: Event, /) -> None:
        self._lines.append(_plain_line(event) or to_line(encode(event)))
        self.idle()

    def idle(self) -> None:
        if self._lines and self._clock() - self._flushed >= self._every:
            self._flush()

    def close(self) -> None:
        try:
            if len(self._lines) > (self._file < 0):  # the first line alone is no history
                self._flush()
        finally:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1
                if not self._has_begun:  # a full disk left nothing of it, or not a line
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(self.path)

    def _flush(self) -> None:
        # Half of a surrogate pair, as in file names that are no UTF-8, becomes the escape that JSON has for it.
        rest = memoryview("".join(self._lines).encode(errors="backslashreplace"))
        self._lines.clear()
        if self._file < 0:
            os.makedirs(os.path.dirname(self.path), exist_ok=True)
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        while rest:
            rest = rest[os.write(self._file, rest) :]
        self._flushed, self._has_begun = self._clock(), True


def journals(folder: str | os.PathLike[str]) -> dict[str, str]:
    """The journals of a cache folder by their runs, the newest first. The names of runs begin with their time."""
    there, names = os.path.join(folder, FOLDER), list[str]()
    with contextlib.suppress(OSError):
        names = [name for name in os.listdir(there) if name.endswith(_SUFFIX) and name != ARCHIVE and name[0] != "."]
    return {name.removesuffix(_SUFFIX): f"{there}/{name}" for name in sorted(names, reverse=True)}


def beginning_of_run(folder: str, now: float) -> str:
    """The time that the name of a new run begins with: now, or a second after that of the newest, where the clock was
    set back since, or has not gone on.
    """
    stamp = time.strftime(_STAMP, time.gmtime(now))
    newest = max((run[: len(stamp)] for run in journals(folder)), default="")
    if newest >= stamp:
        from datetime import datetime, timedelta

        with contextlib.suppress(ValueError):  # no time that we wrote
            return (datetime.fromisoformat(newest) + timedelta(seconds=1)).strftime(_STAMP)
    return stamp


def run_of_log(name: str) -> str:
    """The run that wrote a log: `logs/RUN.RANK.SLOT.log`."""
    return name.rpartition("/")[2].partition(".")[0]


def replay(path: str | os.PathLike[str]) -> Iterator[Event]:
    """The events of a journal in order, also while it is being written.

    A line that is torn, and events and fields that this version does not know, are passed over.

    Raises:
        StoreError: its format is newer than this ezpyp reads.
        OSError: it cannot be read.
    """
    with open(path, encoding="utf-8", errors="replace") as file:
        for text in file:
            content = parse(text)
            if content.get("event") == "Journal" and content.get("format", FORMAT) > FORMAT:
                raise StoreError(
                    f"{path} has format {content['format']}; this ezpyp reads up to {FORMAT}. Upgrade ezpyp."
                )
            event = decode(content)
            if event is not None:
                yield event


class History(NamedTuple):
    """A run as its journal tells it. Of one that goes on, as old as the journal's last line."""

    started: RunStarted | None = None
    #: None while it goes on, and for ever if it was killed.
    ended: RunEnded | None = None
    #: What was begun and has not ended, of the steps that take a while.
    running: tuple[StepStarted, ...] = ()
    seconds: float = 0.0
    #: When the journal was last written, in seconds since 1970.
    last_sign: float = 0.0


def last_run(folder: str | os.PathLike[str]) -> History:
    """The newest run of a cache folder; an empty one where no journal can be read."""
    newest = next(iter(journals(folder).values()), None)
    return history_of(newest) if newest is not None else History()


def history_of(path: str) -> History:
    """A run as its journal tells it; an empty one where that cannot be read."""
    with contextlib.suppress(OSError, StoreError):
        return _history(replay(path), os.stat(path).st_mtime)
    return History()


def _history(happened: Iterable[Event], last_sign: float) -> History:
    started, ended = None, None
    running: dict[str, StepStarted] = {}
    first, last = math.inf, 0.0
    for event in happened:
        when = event.outcome.when if isinstance(event, StepEnded) else event.when
        first, last = min(first, when), max(last, when)
        if isinstance(event, StepStarted):
            running[event.name] = event
        elif isinstance(event, StepEnded):
            running.pop(event.name, None)
        elif isinstance(event, RunStarted):
            started = event
        elif isinstance(event, RunEnded):
            ended = event
    return History(
        started=started,
        ended=ended,
        running=() if ended else tuple(running.values()),
        seconds=ended.seconds if ended else max(0.0, last - first),
        last_sign=last_sign,
    )


_to_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=str).encode


def to_line(content: Mapping[str, Any]) -> str:
    """A line of a journal."""
    return _to_json(content) + "\n"


def parse(text: str) -> dict[str, Any]:
    """What a line holds; nothing where it is torn."""
    try:
        content = json.loads(text)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


#: Stands for no default.
_MISSING = object()


class _Shape:
    """The fields of a named tuple, bound once: encoding is in the scheduling loop."""

    __slots__ = ("defaults", "names")

    def __init__(self, kind: Any) -> None:
        self.names: tuple[str, ...] = kind._fields
        self.defaults = tuple(kind._field_defaults.get(name, _MISSING) for name in self.names)

    def plain(self, value: tuple[Any, ...]) -> dict[str, Any]:
        """What differs from its default; a field without default is always there."""
        found = zip(self.names, value, self.defaults, strict=True)
        return {name: now for name, now, default in found if default is _MISSING or now != default}

    def known(self, content: dict[str, Any]) -> dict[str, Any]:
        """The fields that this version knows; JSON's lists are the tuples they were."""
        found = {name: content[name] for name in self.names if name in content}
        return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


_EVENTS: dict[str, type[Event]] = {
    kind.__name__: kind for kind in (RunStarted, StepCached, StepStarted, StepEnded, LotEnded, RunEnded)
}
_SHAPES: dict[type, _Shape] = {}


def _shape(kind: type) -> _Shape:
    """Made when a value of this class is first told of or read."""
    return _SHAPES.get(kind) or _SHAPES.setdefault(kind, _Shape(kind))


def encode(event: Event) -> dict[str, Any]:
    """An event as JSON holds it."""
    content = {"event": type(event).__name__, **_shape(type(event)).plain(event)}
    if isinstance(event, StepEnded):
        content["outcome"] = _shape(Outcome).plain(event.outcome)
    return content


def _plain_line(event: Event) -> str:
    """The line of a step that is done and of which there is little to say, as most are told; "" of any other."""
    if type(event) is not StepEnded or event[5:] != _FINAL or event.outcome[_SAID:] != _USUAL:
        return ""
    name, label, title, phase, (step, status, when, seconds, rank, host, attempt, args, kwargs, *_), _, _ = event
    if status or attempt != 1 or (args, kwargs) != ("[]", "{}"):
        return ""
    return (
        f'{{"event":"StepEnded","name":{_quote(name)},"label":{_quote(label)},"title":{_quote(title)},"phase":{phase},'
        f'"outcome":{{"step":{step},"status":0,"when":{when!r},"seconds":{seconds!r},"rank":{rank},'
        f'"host":{_quote(host)}}}}}\n'
    )


_quote = json.encoder.encode_basestring
#: How a `StepEnded` ends that is the last of its step; what an Outcome says of its step when there is nothing to say,
#: from this field on.
_FINAL = tuple(StepEnded._field_defaults.values())
_SAID = Outcome._fields.index("note")
_USUAL = tuple(Outcome._field_defaults[name] for name in Outcome._fields[_SAID:])


def decode(content: dict[str, Any]) -> Event | None:
    """An event from what JSON holds; None where it is none that this version knows."""
    kind = _EVENTS.get(str(content.get("event")))
    if kind is None:
        return None
    try:
        known = _shape(kind).known(content)
        if kind is StepEnded:
            outcome = _shape(Outcome).known(known["outcome"])
            known["outcome"] = Outcome(**{**outcome, "status": Status(outcome["status"])})
        return kind(**known)
    except (TypeError, KeyError, ValueError):
        return None
