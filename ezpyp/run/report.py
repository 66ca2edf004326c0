"""What a person sees while a pipeline runs: a first line, two lines a step or counts, and the outcome."""

from __future__ import annotations

import os
import re
import select
import shlex
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, TextIO

from ezpyp.folder.events import LotEnded, RunEnded, RunStarted, StepCached, StepEnded
from ezpyp.folder.summary import duration, tally
from ezpyp.model.outcomes import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from ezpyp.folder.events import Event
    from ezpyp.model.outcomes import Outcome

#: Of runs up to the first number, the lines of so many steps are shown; then counts.
SMALL_RUN = 1000
SHOWN = 200
#: Seconds between two lines of counts.
COUNT_EVERY = 10.0
#: Of so many failures of one kind the traceback and the last output are shown.
DETAILED = 20

_MODES = ("all", "failures", "off")
_SIGNS = {Status.DONE: "PASS", Status.FAILED: "FAIL", Status.SKIPPED: "SKIP", Status.NOT_RUN: "STOP"}


class Kind:
    """Failures with like reasons: the first of them, and how many there were."""

    def __init__(self, example: StepEnded) -> None:
        self.example, self.count = example, 0


class Lines:
    """Prints a run on rank 0. Each piece is one write, so that lines of other ranks cannot come between. The lines of
    steps that are done wait for `idle`, and are one write with those that follow, as far as a pipe keeps that whole.

    EZPYP_LINES: "all" shows every step, "failures" only those, "off" nothing unless the run did not succeed.
    Unset: every step of a small run, else counts and failures.
    """

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        environ: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream
        self._mode = _mode(environ.get("EZPYP_LINES", ""))
        self._clock = clock
        self._most = 0
        self._shown = 0
        self._counts: Counter[Status] = Counter()
        self._kinds: dict[str, Kind] = {}
        self._started: RunStarted | None = None
        #: When counts were last shown, and how many steps ended since without a line of their own.
        self._counted = 0.0
        self._untold = 0
        #: Lines that are held back, and how many bytes they are.
        self._held: list[str] = []
        self._length = 0
        #: The arrow, by the encoding of the stream.
        self._arrows: dict[str, str] = {}

    def hear(self, event: Event, /) -> None:
        if isinstance(event, StepEnded):
            self._step(event)
        elif isinstance(event, LotEnded):
            self._counts[Status.DONE] += event.steps
            self._untold += event.steps
            self.idle()
        elif isinstance(event, StepCached):
            self._cached(event)
        elif isinstance(event, RunStarted):
            self._begin(event)
        elif isinstance(event, RunEnded):
            self._end(event)

    def idle(self) -> None:
        """Show what was held back, and counts if they are due and tell something new."""
        self._release()
        if not self._untold or self._started is None or self._mode == "off":
            return
        now = self._clock()
        if now - self._counted >= COUNT_EVERY:
            self._counted, self._untold = now, 0
            self._say(self._progress(self._started))

    def close(self) -> None:
        self._release()

    def _begin(self, event: RunStarted) -> None:
        self._started, self._counted = event, self._clock()
        self._most = {"": SHOWN if event.total <= SMALL_RUN else 0, "all": event.total}.get(self._mode, 0)
        if self._mode != "off":
            self._say(opening(event))

    def _step(self, event: StepEnded) -> None:
        status = event.outcome.status
        if event.final:
            self._counts[status] += 1
        if status is Status.FAILED:
            self._failure(event)
        elif self._shown < self._most:
            self._shown += 1
            self._hold(self._pair(event))
        else:
            self._untold += 1
            self.idle()

    def _cached(self, event: StepCached) -> None:
        if self._shown < self._most:
            self._shown += 1
            where = f"[MPI process 00] [Running component of phase {event.phase:02d}]"
            what = f"[Executing {event.title} Step Object '{event.name}']"
            self._say(f"{where} {what}\n  {self._arrow()} [CACHED] '{event.name}'\n")

    def _failure(self, event: StepEnded) -> None:
        """Every failure has its lines, the first of each kind their details too: enough to understand it."""
        kind = self._kinds.setdefault(kind_of(event.outcome), Kind(event))
        kind.count += event.final
        if self._mode != "off":
            self._shown += 1
            self._say(self._pair(event) + (_details(event.outcome) if kind.count <= DETAILED else ""))

    def _pair(self, event: StepEnded) -> str:
        """The two lines of a step."""
        doing = "Skipping" if event.outcome.status is Status.SKIPPED else "Executing"
        where = f"[MPI process {event.outcome.rank:02d}] [Running component of phase {event.phase:02d}]"
        what = f"[{doing} {event.title} Step Object '{event.name}']"
        return f"{where} {what}\n  {self._arrow()} {verdict(event)}\n"

    def _progress(self, started: RunStarted) -> str:
        """One line of counts: `12,345 of 40,000 done, 3 failed, 27,652 to go`."""
        counts = self._counts
        parts = [f"{started.done + counts[Status.DONE]:,} of {started.total:,} done"]
        parts += [
            f"{counts[status]:,} {what}"
            for status, what in ((Status.FAILED, "failed"), (Status.SKIPPED, "skipped"))
            if counts[status]
        ]
        parts.append(f"{max(0, _to_run(started) - counts.total()):,} to go")
        return f"{', '.join(parts)}\n"

    def _end(self, event: RunEnded) -> None:
        if self._mode == "off" and event.exit_code == 0:
            return
        folder = self._started.folder if self._started else ""
        self._say(closing(event, folder, self._kinds))

    def _arrow(self) -> str:
        encoding = getattr(self._out(), "encoding", None) or "ascii"
        if encoding not in self._arrows:
            try:
                self._arrows[encoding] = "╰─>".encode(encoding).decode(encoding)
            except (UnicodeError, LookupError):
                self._arrows[encoding] = "'->"
        return self._arrows[encoding]

    def _out(self) -> TextIO | None:
        return self._stream or sys.stdout

    def _hold(self, text: str) -> None:
        """Say it with what follows. What is longer than a pipe takes at once, others could come between."""
        length = len(text.encode(errors="replace"))
        if self._length + length > select.PIPE_BUF:
            self._release()
        self._held.append(text)
        self._length += length

    def _release(self) -> None:
        if self._held:
            held, self._held, self._length = "".join(self._held), [], 0
            self._write(held)

    def _say(self, text: str) -> None:
        self._release()
        self._write(text)

    def _write(self, text: str) -> None:
        out = self._out()
        if out is None:  # the script was started without it
            return
        encoding = getattr(out, "encoding", None) or "ascii"
        out.write(text.encode(encoding, "backslashreplace").decode(encoding))
        out.flush()


def shows_all(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether a line for every step was asked for, however many there are."""
    return _mode(environ.get("EZPYP_LINES", "")) == "all"


def _mode(text: str) -> str:
    return text if text in _MODES else ""


def opening(event: RunStarted) -> str:
    """`Cache FOLDER (files): 31,204 of 40,000 done, 8,796 to run, 2,560 slots on 20 nodes`."""
    slots = f"{event.slots:,} slot{'s' * (event.slots != 1)}"
    nodes = f"{len(event.hosts):,} node{'s' * (len(event.hosts) != 1)}"
    inline = ""
    if event.executor == "inline":
        inline = ", in line" + (": rank 0 schedules, the others run" if event.ranks > 1 else "")
    return (
        f"Cache {event.folder} ({event.store}): {event.done:,} of {event.total:,} done, "
        f"{_to_run(event):,} to run, {slots} on {nodes}{inline}\n"
    )


def _to_run(event: RunStarted) -> int:
    return event.total - event.done if event.part is None else event.part


def verdict(event: StepEnded) -> str:
    """`[FAIL] 'alpha' ValueError: x is 0 (rank 2 on n017, 3.1 s)`."""
    outcome = event.outcome
    sign = "RETRY" if not event.final else _SIGNS[outcome.status]
    title = f"[{sign}] {_title(event)}"
    if outcome.status is Status.DONE:
        return f"{title} ({_one_line(outcome.note)})" if outcome.note else title
    note = _one_line(outcome.note) or outcome.cause
    if outcome.status is not Status.FAILED:
        return f"{title} {note}".rstrip()
    tried = f", attempt {outcome.attempt}" if outcome.attempt > 1 or not event.final else ""
    where = f"rank {outcome.rank} on {outcome.host}" if outcome.host else f"rank {outcome.rank}"
    return f"{title} {note} ({where}, {duration(outcome.seconds)}{tried}){' (allowed)' * event.allowed}"


def closing(event: RunEnded, folder: str, kinds: Mapping[str, Kind]) -> str:
    """The last lines: counts, time, failures by kind with one example each, and what to type next."""
    why = f", {event.reason}" if event.reason else ""
    lines = [f"{tally(event)} in {duration(event.seconds)}{why}"]
    ordered = sorted((kind for kind in kinds.values() if kind.count), key=lambda kind: -kind.count)
    lines += [f"  {kind.count:,} × {_example(kind.example)}" for kind in ordered[:10]]
    if len(ordered) > 10:
        lines.append(f"  and {len(ordered) - 10} other kinds of failure")
    where = shlex.quote(folder)
    if event.next_job:
        lines.append(f"Job {event.next_job} is requeued, and goes on from here.")
    elif event.exit_code in (85, 130):
        lines.append("To go on: the same command again; what is done is not run again.")
    elif ordered:
        lines.append(f"Its output: ezpyp log {where} {shlex.quote(ordered[0].example.name)}")
    if event.exit_code == 1:
        lines.append("To run what failed: the same command again.")
    elif event.exit_code == 0 and folder:
        lines.append(f"All of it: ezpyp summary {where}")
    return "\n".join(lines) + "\n"


def kind_of(outcome: Outcome) -> str:
    """What failures that a person would call the same have in common: the reason without its numbers."""
    return f"{outcome.cause} {re.sub(r'[0-9a-fA-Fx.]*[0-9][0-9a-fA-Fx.]*', '#', _one_line(outcome.note))}"


def _example(event: StepEnded) -> str:
    outcome = event.outcome
    where = f" (rank {outcome.rank} on {outcome.host})" if outcome.host else ""
    return f"{_title(event)} {_one_line(outcome.note) or outcome.cause}{where}"


def _title(event: StepEnded) -> str:
    """The name, and the arguments where the name is only a number in a family."""
    arguments = event.label.removeprefix(event.name).strip()
    if arguments and event.name.endswith("]"):
        return f"'{event.name}' ({arguments})"
    return f"'{event.name}'"


def _details(outcome: Outcome) -> str:
    """The user's frames and the last lines of the output, indented."""
    parts = [outcome.traceback, f"its output ends with:\n{outcome.tail}" if outcome.tail.strip() else ""]
    text = "\n".join(part.rstrip() for part in parts if part.strip())
    return "".join(f"      {line}\n" for line in text.splitlines())


def _one_line(text: str) -> str:
    return " ".join(text.split())
