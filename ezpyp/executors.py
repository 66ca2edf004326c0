"""Where steps run: the Executor protocol, in line, and in helpers under one agent.

An executor is given lots and gives back outcomes; it never decides what runs next. Threads are not offered: steps
draw from process-wide random generators, which are seeded for each step, and threads would share them.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from ezpyp import helper, resources, scratch, seeding
from ezpyp.capture import tail
from ezpyp.errors import EzpypError
from ezpyp.helper import Lot, Order, Task
from ezpyp.nursery import Ending, Nursery, NurseryGone, Position
from ezpyp.offspring import kill_group
from ezpyp.plan import Plan
from ezpyp.steps import Outcome, Status
from ezpyp.worker import Worker

if TYPE_CHECKING:
    from multiprocessing.connection import Connection


#: Seconds that finished steps of a lot may wait for one that takes longer, before the store is asked.
_HELD_TOO_LONG = 0.05


class Executor(Protocol):
    """Runs lots of steps. All methods are called from one thread."""

    #: How many steps it can run at the same time.
    slots: int

    @property
    def lots(self) -> int:
        """How many lots it holds that are not finished. A caller keeps it below two for each slot."""

    def start(self, lot: Lot) -> None:
        """Take a lot. Returns at once, except in line, where `poll` runs the steps."""

    def poll(self) -> list[Outcome]:
        """Outcomes that arrived since the last call. Every started step gives exactly one, whatever becomes of its
        process.
        """

    def wait(self, seconds: float) -> None:
        """Sleep until something may have arrived, at most this long."""

    def interrupt(self) -> None:
        """End what runs and drop what waits; each gives an outcome with status -1 at the next poll."""

    def sync(self) -> None:
        """Have what was reported survive a power failure, soon: asked for at the border of a phase. Does not block."""

    def close(self) -> None:
        """Let go of everything; results are on disk, synced, when it returns. Nothing is running when it is called."""


class Serial:
    """Runs steps in this very process, one at a time: for debugging and notebooks. Nothing is captured or isolated."""

    slots = 1

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._lots: deque[deque[Task]] = deque()
        self._dropped: list[Outcome] = []
        seeding.watch_imports()

    @property
    def lots(self) -> int:
        return len(self._lots)

    def start(self, lot: Lot) -> None:
        self._lots.append(deque(lot))

    def poll(self) -> list[Outcome]:
        dropped, self._dropped = self._dropped, []
        if dropped or not self._lots:
            return dropped
        task = self._lots[0].popleft()
        if not self._lots[0]:
            self._lots.popleft()
        try:
            outcome = self._worker.run(*task)
            self._worker.store.flush()
            return [outcome]
        except KeyboardInterrupt:
            return [_interrupted(task, self._worker)]

    def wait(self, seconds: float) -> None:
        if not self._lots and not self._dropped:
            time.sleep(seconds)

    def interrupt(self) -> None:
        self._dropped += [_interrupted(task, self._worker) for lot in self._lots for task in lot]
        self._lots.clear()

    def sync(self) -> None:
        self._worker.store.sync()

    def close(self) -> None:
        self._worker.store.sync()


@dataclass(slots=True, kw_only=True)
class _Slot:
    """The agent's view of one helper."""

    number: int
    pid: int = 0
    connection: Connection | None = None
    lots: int = 0
    #: What it was given and has not reported, in order.
    owed: deque[Task] = field(default_factory=deque)
    #: Outcomes of its next reports that were found in the store already.
    known: int = 0
    #: Deaths since it last reported anything.
    deaths: int = 0
    log: str | None = None
    ending: str = ""
    #: How much of its log was shown.
    shown: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How the helpers of one agent are started."""

    count: int
    order: Order
    #: The environment of each helper: its share of this rank's GPUs and cores.
    environments: Sequence[dict[str, str]]
    #: The log of each helper, relative to the folder; None where output is not captured.
    log: Callable[[int], str] | None
    #: Show what steps print here too, as it comes.
    tee: bool = False


def nursery(plan: Plan, position: Position) -> Nursery:
    """Fork the process that forks helpers for this plan. Before MPI starts, if that can be chosen."""
    return Nursery(partial(_serve, plan=plan, position=position))


def _serve(own: socket.socket, slot: int, order: Order, *, plan: Plan, position: Position) -> None:
    helper.serve(own, slot, order, plan=plan, position=position)


class Processes:
    """Helpers under one agent: a step that crashes, exits, hangs or is killed costs only itself."""

    def __init__(self, worker: Worker, nest: Nursery, position: Position, setup: Setup) -> None:
        self.slots = setup.count
        self._worker, self._nest, self._position, self._setup = worker, nest, position, setup
        self._arrived: list[Outcome] = []
        self._began = time.time()
        self._poll = select.poll()
        self._by_descriptor: dict[int, _Slot] = {}
        self._has_limits = any(step.options.timeout for step in worker.plan.steps)
        self._slots = [_Slot(number=k) for k in range(setup.count)]
        self._looked = 0.0
        self._oom_kills = resources.oom_kills()
        try:
            for slot in self._slots:
                self._open(slot)
        except BaseException:
            nest.close()
            raise

    @property
    def lots(self) -> int:
        return sum(slot.lots for slot in self._slots)

    def start(self, lot: Lot) -> None:
        slot = min(self._slots, key=lambda each: each.lots)
        slot.owed.extend(lot)
        slot.lots += 1
        self._send(slot, lot)

    def poll(self) -> list[Outcome]:
        for descriptor, _ in self._poll.poll(0):
            self._listen(self._by_descriptor[descriptor])
        self._look_for_held()
        if self._has_limits:
            self._enforce_limits()
        if self._setup.tee:
            self._show_output()
        arrived, self._arrived = self._arrived, []
        return arrived

    def wait(self, seconds: float) -> None:
        if self._arrived:
            return
        if seconds < 0.001:
            time.sleep(seconds)
        else:
            self._poll.poll(int(seconds * 1000))

    def interrupt(self) -> None:
        for slot in self._slots:
            if slot.owed:
                slot.ending = "interrupted"
                self._buried(slot)

    def sync(self) -> None:
        for slot in self._slots:
            self._send(slot, [])

    def close(self) -> None:
        for slot in self._slots:
            if slot.connection is not None:
                with contextlib.suppress(OSError):
                    slot.connection.send(None)
        for slot in self._slots:
            try:
                self._nest.reap(slot.pid, kill=False)
            except NurseryGone:
                kill_group(slot.pid)  # the kernel ended the helper, but not what its step had started
            self._shut(slot)
            if self._setup.tee:
                self._copy_output(slot)
            self._drop_empty(slot.log)
        self._nest.close()

    def _open(self, slot: _Slot) -> None:
        from multiprocessing.connection import Connection

        slot.log = self._setup.log(slot.number) if self._setup.log is not None else None
        order = replace(self._setup.order, environment=self._setup.environments[slot.number], log=slot.log)
        self._position.set(slot.number, -1)
        slot.pid, own = self._nest.spawn(slot.number, order)
        slot.connection = Connection(own.detach())
        self._by_descriptor[slot.connection.fileno()] = slot
        self._poll.register(slot.connection.fileno(), select.POLLIN)

    def _shut(self, slot: _Slot) -> None:
        if slot.connection is not None:
            self._poll.unregister(slot.connection.fileno())
            del self._by_descriptor[slot.connection.fileno()]
            slot.connection.close()
            slot.connection = None

    def _send(self, slot: _Slot, lot: Lot) -> None:
        assert slot.connection is not None
        try:
            slot.connection.send(lot)
        except OSError:
            self._died(slot)

    def _listen(self, slot: _Slot) -> None:
        assert slot.connection is not None
        try:
            outcomes, finished = slot.connection.recv()
        except (EOFError, OSError):
            self._died(slot)
            return
        slot.deaths = 0
        self._take(slot, outcomes, finished)

    def _take(self, slot: _Slot, outcomes: list[Outcome], finished: bool) -> None:
        new = outcomes[slot.known :]
        slot.known -= len(outcomes) - len(new)
        for _ in new:
            slot.owed.popleft()
        slot.lots -= finished
        self._arrived += new

    def _look_for_held(self) -> None:
        """Helpers report short steps together. Where a long one follows, others must not wait for it."""
        for slot in self._slots:
            if len(slot.owed) < 2:
                continue
            index, since, _ = self._position.get(slot.number)
            if index not in (-1, slot.owed[0][0]) and time.monotonic() - since > _HELD_TOO_LONG:
                slot.known += self._find_finished(slot, index)

    def _find_finished(self, slot: _Slot, index: int) -> int:
        """Take from the store what it finished and has not reported; how many outcomes. `index` is what it is at."""
        found = 0
        while slot.owed and slot.owed[0][0] != index and (outcome := self._stored(slot.owed[0])) is not None:
            slot.owed.popleft()
            self._arrived.append(outcome)
            found += 1
        return found

    def _stored(self, task: Task) -> Outcome | None:
        """The outcome that a helper stored for a task, None where it cannot be told from an older one."""
        worker, (index, attempt, _) = self._worker, task
        record = worker.store.read(worker.plan.stems[index])
        if record is None or record.fingerprint != worker.fingerprints[index]:
            return None
        outcome = record.outcome
        if outcome.attempt != attempt or outcome.when < self._began or outcome.status is Status.SKIPPED:
            return None
        last_words = tail(worker.folder, outcome.log) if outcome.status is Status.FAILED else ""
        return replace(outcome, step=index, tail=last_words)

    def _enforce_limits(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            index, since, _ = self._position.get(slot.number)
            limit = self._worker.plan.steps[index].options.timeout if index >= 0 and slot.owed else None
            if limit is not None and now - since > limit:
                slot.ending = "timeout"
                self._buried(slot)

    def _died(self, slot: _Slot) -> None:
        """The socket closed: the process ended, by its own act or another's."""
        self._collect(slot)
        slot.deaths += 1
        if slot.deaths > 3:
            raise EzpypError(
                f"A helper on {self._worker.host} ended {slot.deaths} times in a row before or between steps "
                f"({slot.ending or 'no reason known'}). Is memory short? See {self._setup.order.folder}/{slot.log}."
            )
        self._buried(slot)

    def _collect(self, slot: _Slot) -> None:
        """Take what it reported before it died."""
        with contextlib.suppress(EOFError, OSError):
            while slot.connection is not None and slot.owed and slot.connection.poll(0):
                outcomes, finished = slot.connection.recv()
                self._take(slot, outcomes, finished)

    def _buried(self, slot: _Slot) -> None:
        """End what is left of a helper, settle the step it was at, and start another that takes the rest."""
        asked, slot.ending = slot.ending, ""
        ending = self._nest.reap(slot.pid, kill=True)
        if asked:
            self._collect(slot)
        self._shut(slot)
        self._find_finished(slot, self._position.get(slot.number)[0])
        if asked == "interrupted":
            for task in slot.owed:
                scratch.remove(self._folder_of(slot, task))
            self._arrived += [_interrupted(task, self._worker) for task in slot.owed]
            slot.owed.clear()
        else:
            self._blame(slot, ending, asked)
        slot.known = 0
        self._open(slot)
        slot.lots = 1 if slot.owed else 0
        if slot.owed:
            self._send(slot, list(slot.owed))

    def _blame(self, slot: _Slot, ending: Ending, asked: str) -> None:
        """The step it was at failed. Those that wait behind it run in another helper."""
        index, since, offset = self._position.get(slot.number)
        for task in slot.owed:
            if task[0] != index:
                continue
            slot.owed.remove(task)
            slot.deaths = 0
            cause, note = self._cause(index, ending, asked)
            if folder := self._folder_of(slot, task):
                note = f"{note}  Folder kept: {folder}."
            outcome = self._crash(task, since, cause, note)
            self._arrived.append(self._with_last_words(outcome, slot, offset))
            return

    def _folder_of(self, slot: _Slot, task: Task) -> str:
        """Where a step had its own folder in a helper that is gone; "" if it had none."""
        worker, (index, attempt, _) = self._worker, task
        room = worker.plan.steps[index].options.workdir
        if room is None:
            return ""
        stem = worker.plan.stems[index]
        return scratch.left_behind(room, stem=stem, host=worker.host, attempt=attempt, pid=slot.pid)

    def _cause(self, index: int, ending: Ending, asked: str) -> tuple[str, str]:
        if asked == "timeout":
            limit = self._worker.plan.steps[index].options.timeout
            return "timeout", f"it ran longer than its timeout of {limit:g} s and was ended"
        if ending.code >= 0:
            return "exit", f"it ended its process with exit code {ending.code} instead of returning"
        kills = resources.oom_kills()
        if -ending.code == signal.SIGKILL and kills > self._oom_kills:
            self._oom_kills = kills
            return "oom", f"out of memory: the kernel ended it at a peak of {ending.peak / 2**30:.1f} GiB"
        return "signal", f"ended with signal {-ending.code} ({_signal_name(-ending.code)})"

    def _crash(self, task: Task, since: float, cause: str, note: str) -> Outcome:
        index, attempt, _ = task
        args, kwargs = self._worker.plan.steps[index].texts()
        return Outcome(
            step=index,
            status=Status.FAILED,
            when=time.time(),
            seconds=max(0.0, time.monotonic() - since),
            rank=self._worker.rank,
            host=self._worker.host,
            attempt=attempt,
            args=args,
            kwargs=kwargs,
            cause=cause,
            note=note,
        )

    def _with_last_words(self, outcome: Outcome, slot: _Slot, start: int) -> Outcome:
        """Add what the step printed before it died, and keep the outcome: the dead cannot."""
        if slot.log is not None:
            folder = self._setup.order.folder
            with contextlib.suppress(OSError):
                end = os.path.getsize(os.path.join(folder, slot.log))
                place = (slot.log, start, end) if end > start else None
                outcome = replace(outcome, log=place, tail=tail(folder, place))
        with contextlib.suppress(EzpypError, OSError):
            outcome = self._worker.keep(outcome)
            self._worker.store.flush()
        return outcome

    def _show_output(self) -> None:
        """Copy what was printed since the last look: at most ten looks a second."""
        now = time.monotonic()
        if now - self._looked < 0.1:
            return
        self._looked = now
        for slot in self._slots:
            self._copy_output(slot)

    def _copy_output(self, slot: _Slot) -> None:
        with contextlib.suppress(OSError), open(os.path.join(self._setup.order.folder, slot.log or ""), "rb") as file:
            file.seek(slot.shown)
            text = file.read()
            slot.shown += len(text)
            sys.stdout.write(text.decode(errors="replace"))
            sys.stdout.flush()

    def _drop_empty(self, log: str | None) -> None:
        if log is None:
            return
        path = os.path.join(self._setup.order.folder, log)
        with contextlib.suppress(OSError):
            if os.path.getsize(path) == 0:
                os.unlink(path)


def _interrupted(task: Task, worker: Worker) -> Outcome:
    index, attempt, _ = task
    args, kwargs = worker.plan.steps[index].texts()
    return Outcome(
        step=index,
        status=Status.NOT_RUN,
        when=time.time(),
        rank=worker.rank,
        host=worker.host,
        attempt=attempt,
        args=args,
        kwargs=kwargs,
        cause="interrupted",
        note="interrupted; the next run does it",
    )


def _signal_name(number: int) -> str:
    try:
        return signal.strsignal(number) or signal.Signals(number).name
    except ValueError:
        return "unknown"
