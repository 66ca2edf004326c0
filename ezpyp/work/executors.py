"""Helpers under one agent, as an executor: what they were given and owe, and what becomes of one that dies."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

from ezpyp.errors import EzpypError
from ezpyp.model import scratch
from ezpyp.model.outcomes import Outcome, Status
from ezpyp.model.plan import Plan
from ezpyp.system import resources, stopping
from ezpyp.system.bells import Bell, sleep
from ezpyp.system.capture import tail
from ezpyp.system.resources import Grant
from ezpyp.work import gauges, helper
from ezpyp.work.gauges import Watch
from ezpyp.work.helper import Order
from ezpyp.work.inline import interrupted
from ezpyp.work.logs import Logs
from ezpyp.work.lots import Lot, Report, Task
from ezpyp.work.nursery import Ending, Nursery
from ezpyp.work.position import NO_FENCE, Position
from ezpyp.work.wire import Wire
from ezpyp.work.worker import Worker

#: Seconds in one step after which those behind it are taken back, where somebody else could run them.
_HELD_UP = 0.005
#: Seconds that helpers have to get what they did on disk, when a run is over.
_PATIENCE = 60.0
#: Seconds after which each process has surely seen what another wrote into shared memory.
_SETTLED = 0.001


class _Slot:
    """The agent's view of one helper."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.wire: Wire | None = None
        #: Lots that are not finished, in order, each with the running number of its first task.
        self.given: deque[tuple[int, Lot]] = deque()
        #: Running numbers: of the first task that was not reported, and of the next one.
        self.told = self.next = 0
        #: The fence: from this number on tasks are not begun; and when it was raised.
        self.fence, self.raised = NO_FENCE, 0.0
        #: Whether the tasks behind the fence were given back.
        self.cleared = False
        #: Deaths since it last reported anything.
        self.deaths = 0
        self.log: str | None = None
        self.ending = ""
        #: The GPUs that its process has used.
        self.gpus: tuple[str, ...] = ()
        #: Whether its process ends with the step it has; what that reported is told then, when its GPUs are free.
        self.apart = False
        self.parting: list[tuple[Report, bool]] = []

    @property
    def open(self) -> bool:
        """Whether it is not held up by a step with a fence behind it."""
        return self.fence == NO_FENCE

    @property
    def owed(self) -> int:
        """How many tasks it was given and has not reported; without those that were given back."""
        return max(0, (self.fence if self.cleared else self.next) - self.told)

    def task(self, number: int) -> Task | None:
        """The task of that number, None where it is not owed."""
        if not self.told <= number < self.told + self.owed:
            return None
        return next(lot[number - first] for first, lot in self.given if first <= number < first + len(lot))

    def rest(self, begin: int = 0, end: int = NO_FENCE) -> list[Lot]:
        """What is owed of the tasks with these numbers, by lots."""
        begin, end = max(self.told, begin), min(self.told + self.owed, end)
        cut = (lot[max(0, begin - first) : max(0, end - first)] for first, lot in self.given)
        return [lot for lot in cut if lot]


class Setup:
    """How the helpers of one agent are started."""

    def __init__(
        self,
        *,
        helpers: int,
        order: Order,
        environments: Sequence[dict[str, str]],
        log: Callable[[int], str] | None,
        tee: bool = False,
    ) -> None:
        """
        Args:
            environments: that of each helper: its share of this rank's GPUs and cores.
            log: that of each helper, relative to the folder; None where output is not captured.
            tee: show what steps print here too, as it comes.
        """
        self.helpers, self.order, self.environments, self.log, self.tee = helpers, order, environments, log, tee


def nursery(plan: Plan, position: Position, *, anew: bool = False, spares: int = 0) -> Nursery:
    """Fork the process that forks helpers for this plan. Before MPI starts, if that can be chosen.

    Args:
        anew: they will be new interpreters: nothing that it has reaches them.
        spares: so many helpers are forked as soon as it can.
    """
    prepare = (lambda: None) if anew else helper.prepare
    return Nursery(partial(_serve, plan=plan, position=position), prepare, spares=0 if anew else spares)


def _serve(own: socket.socket, slot: int, order: Order | Watch, *, plan: Plan, position: Position) -> None:
    if isinstance(order, Watch):
        gauges.serve(own, order, position.gauges)
    elif order.again is not None:
        from ezpyp.work import renewal

        renewal.wait(own, slot, order, order.again, plan.digest, position.file)
    else:
        helper.serve(own, slot, order, plan=plan, position=position)


class Processes:
    """Helpers under one agent: a step that crashes, exits, hangs or is killed costs only itself."""

    def __init__(
        self, worker: Worker, nest: Nursery, position: Position, setup: Setup, bell: Bell | None = None
    ) -> None:
        """Whoever waits for them hears the bell, too."""
        self._worker, self._nest, self._position, self._setup = worker, nest, position, setup
        self._arrived: list[Report] = []
        self._began = time.time()
        self._poll, self._bell = select.epoll(), bell
        if bell is not None:
            self._poll.register(bell.fileno(), select.EPOLLIN)
        self._by_descriptor: dict[int, _Slot] = {}
        self._has_limits = any(block.family.definition.options.timeout for block in worker.plan.blocks)
        self._slots = [_Slot(k) for k in range(setup.helpers)]
        self._logs = Logs(setup.order.folder)
        #: Whether somebody has nothing to do, and whether there may be something to give back soon.
        self._recalling = self._undecided = False
        #: Whether helpers begin nothing more.
        self._holds = False
        self._oom_kills = resources.oom_kills()
        for slot in self._slots:
            self._open(slot)
        #: Whoever looks at what steps use of GPUs does so while it is open.
        self._watched = nest.spawn(setup.helpers, Watch(gpus, setup.helpers)) if (gpus := setup.order.gpus) else None

    @property
    def slots(self) -> int:
        return sum(slot.open for slot in self._slots)

    @property
    def lots(self) -> int:
        return sum(len(slot.given) for slot in self._slots if slot.open)

    @property
    def idle(self) -> int:
        return sum(not slot.given for slot in self._slots)

    @property
    def ranks(self) -> Sequence[int]:
        return (self._worker.rank,)

    def start(self, lot: Lot, rank: int | None = None) -> None:
        self._recalling = False
        if (grant := lot.grant) is not None and grant.process != "any":
            slot = self._fitting(grant)
        else:
            slot = min((slot for slot in self._slots if slot.open), key=lambda each: len(each.given), default=None)
        if slot is not None:
            self._give(slot, lot)
        else:  # it was on its way when the fence was raised
            self._arrived.append(Report(returned=lot.steps))

    def _fitting(self, grant: Grant) -> _Slot | None:
        """An idle slot whose process has run nothing, or, where it may, has used these very GPUs."""
        # The last word on a lot may still be on its way.
        idle = [slot for slot in self._slots if slot.open and not slot.owed]
        gpus = grant.names
        slot = None if grant.process == "own" else next((slot for slot in idle if slot.gpus == gpus), None)
        if slot is None:
            slot = min(idle, key=lambda each: each.next > 0, default=None)
            if slot is not None and slot.next:
                self._renew(slot)
        if slot is not None:
            slot.gpus, slot.apart = gpus, grant.process == "own"
        return slot

    def _renew(self, slot: _Slot) -> None:
        """Have another process in the place of an idle one."""
        assert slot.wire is not None
        with contextlib.suppress(OSError):
            slot.wire.send(None)
        self._nest.reap(slot.number, kill=False)
        self._shut(slot)
        slot.given.clear()
        self._open(slot)

    def poll(self) -> list[Report]:
        if stopping.stopping() and not self._holds:
            self._hold()
        for descriptor, _ in self._poll.poll(0):
            if self._bell is not None and descriptor == self._bell.fileno():
                self._bell.hush()
            else:
                self._listen(self._by_descriptor[descriptor])
        if self._recalling:
            self._undecided = sum(map(self._take_back, self._slots)) > 0
        if self._has_limits:
            self._enforce_limits()
        if self._setup.tee:
            self._logs.show(slot.log for slot in self._slots)
        arrived, self._arrived = self._arrived, []
        return arrived

    def recall(self) -> None:
        self._recalling = not self._holds

    def _hold(self) -> None:
        """A stop was asked for: helpers begin nothing more, and give back what waits."""
        self._holds, self._recalling = True, False
        for slot in self._slots:
            self._position.raise_fence(slot.number, 0)

    def wait(self, seconds: float) -> None:
        if self._arrived:
            return
        if self._recalling and self._undecided:
            seconds = min(seconds, _SETTLED)
        sleep(self._poll.fileno(), seconds)  # itself it counts in milliseconds

    def interrupt(self) -> None:
        for slot in self._slots:
            if slot.owed:
                slot.ending = "interrupted"
                self._buried(slot)

    def sync(self) -> None:
        for slot in self._slots:
            self._send(slot, Lot(()))

    def leave(self) -> None:
        for slot in self._slots:
            if slot.wire is not None:
                with contextlib.suppress(OSError):
                    slot.wire.send(None)

    def close(self) -> None:
        until = time.monotonic() + _PATIENCE
        for slot in self._slots:
            self._see_off(slot, until)
            self._shut(slot)
            if self._setup.tee:
                self._logs.show_rest(slot.log)
            self._logs.drop_if_empty(slot.log)
        if self._watched is not None:
            self._watched.close()
        self._poll.close()
        self._nest.release()

    def _see_off(self, slot: _Slot, until: float) -> None:
        """Wait until a helper that was told to end has said that all it did is on disk, or is gone."""
        with contextlib.suppress(EOFError, OSError):
            while slot.wire is not None and slot.wire.has_come(max(0.0, until - time.monotonic())):
                if slot.wire.receive() is None:
                    break

    def _open(self, slot: _Slot) -> None:
        slot.log = self._setup.log(slot.number) if self._setup.log is not None else None
        order = self._setup.order._replace(environment=self._setup.environments[slot.number], log=slot.log)
        self._position.reset(slot.number)
        if self._holds:
            self._position.raise_fence(slot.number, 0)
        slot.told = slot.next = 0
        slot.fence, slot.cleared, slot.gpus, slot.apart = NO_FENCE, False, (), False
        slot.wire = Wire(self._nest.spawn(slot.number, order))
        self._by_descriptor[slot.wire.fileno()] = slot
        self._poll.register(slot.wire.fileno(), select.EPOLLIN)

    def _shut(self, slot: _Slot) -> None:
        if slot.wire is not None:
            self._poll.unregister(slot.wire.fileno())
            del self._by_descriptor[slot.wire.fileno()]
            slot.wire.close()
            slot.wire = None

    def _send(self, slot: _Slot, lot: Lot) -> None:
        assert slot.wire is not None
        try:
            slot.wire.send(lot)
        except OSError:
            self._died(slot)

    def _give(self, slot: _Slot, lot: Lot) -> None:
        slot.given.append((slot.next, lot))
        slot.next += len(lot)
        self._send(slot, lot)

    def _listen(self, slot: _Slot) -> None:
        assert slot.wire is not None
        try:
            told = slot.wire.receive()
        except (EOFError, OSError):
            self._died(slot)
            return
        if isinstance(told, EzpypError):
            raise told
        report, finished = told
        slot.deaths = 0
        if slot.apart:
            slot.parting.append((report, finished))
        else:
            self._take(slot, report, finished)

    def _take(self, slot: _Slot, report: Report, finished: bool) -> None:
        slot.told += report.ended
        # What is behind a fence was given back. Before it, there may be one that was refused for the sake of another.
        returned = report.returned[: slot.owed] if slot.cleared else report.returned
        slot.told += len(report.returned)
        if finished:
            slot.given.popleft()
        if slot.told >= slot.fence and not slot.given:
            slot.fence, slot.cleared = NO_FENCE, False
            self._position.raise_fence(slot.number, 0 if self._holds else NO_FENCE)
        if report.ended or returned:
            self._arrived.append(report._replace(returned=returned))

    def _take_back(self, slot: _Slot) -> bool:
        """Raise a fence behind a step that takes long; a moment later, give back what has to stay behind it.

        Whether there may be more to give back soon.
        """
        number, since, _ = self._position.get(slot.number)
        now = time.monotonic()
        if slot.open:
            waits = slot.owed > 1
            if waits and slot.task(number) is not None and now - since > _HELD_UP:
                slot.fence, slot.raised = number + 1, now
                self._position.raise_fence(slot.number, slot.fence)
            return waits
        if slot.cleared or now - slot.raised <= _SETTLED:
            return not slot.cleared
        if number == slot.fence - 1:
            returned = [task.step for lot in slot.rest(slot.fence) for task in lot]
            self._arrived.append(Report(returned=returned))
            slot.cleared = True
        elif slot.task(number) is not None:
            # It got through: what it would not begin it gives back itself.
            slot.fence = NO_FENCE
            self._position.raise_fence(slot.number, NO_FENCE)
        return False

    def _find_finished(self, slot: _Slot, number: int) -> None:
        """Take from the store what it finished and had not reported when it died. `number` is what it was at."""
        while (task := slot.task(slot.told)) and slot.told != number and (outcome := self._stored(task)) is not None:
            slot.told += 1
            self._arrived.append(Report(outcomes=[outcome]))

    def _stored(self, task: Task) -> Outcome | None:
        """The outcome that a helper stored for a task, None where it cannot be told from an older one."""
        worker, index, attempt = self._worker, task.step, task.attempt
        record = worker.store.read(worker.plan.stems[index])
        if record is None or record.fingerprint != worker.fingerprints[index]:
            return None
        outcome = record.outcome
        if outcome.attempt != attempt or outcome.when < self._began or outcome.status is Status.SKIPPED:
            return None
        last_words = tail(worker.folder, outcome.log) if outcome.status is Status.FAILED else ""
        return outcome._replace(step=index, tail=last_words)

    def _enforce_limits(self) -> None:
        now = time.monotonic()
        for slot in self._slots:
            number, since, _ = self._position.get(slot.number)
            task = slot.task(number)
            limit = self._worker.plan.steps[task.step].options.timeout if task is not None else None
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
        parting, slot.parting = slot.parting, []
        for report, finished in parting:
            self._take(slot, report, finished)
        with contextlib.suppress(EOFError, OSError):
            while slot.wire is not None and slot.owed and slot.wire.has_come():
                self._take(slot, *slot.wire.receive())

    def _buried(self, slot: _Slot) -> None:
        """End what is left of a helper, settle the step it was at, and start another that takes the rest."""
        asked, slot.ending = slot.ending, ""
        ending = self._nest.reap(slot.number, kill=True)
        if asked:
            self._collect(slot)
        self._shut(slot)
        number, since, offset = self._position.get(slot.number)
        self._find_finished(slot, number)
        rest = slot.rest()
        if asked == "interrupted":
            dropped = [task for lot in rest for task in lot]
            for each in dropped:
                scratch.remove(self._folder_of(slot, each))
            self._arrived.append(Report(outcomes=[interrupted(each, self._worker) for each in dropped]))
            rest = []
        elif (task := slot.task(number)) is not None:
            self._blame(slot, task, ending, asked, since, offset)
            rest = [*slot.rest(end=number), *slot.rest(number + 1)]
        slot.given.clear()
        self._open(slot)
        for lot in rest:
            self._give(slot, lot)

    def _blame(self, slot: _Slot, task: Task, ending: Ending, asked: str, since: float, offset: int) -> None:
        """The step it was at failed. Those that wait behind it run in another helper."""
        from ezpyp.work import postmortem

        slot.deaths = 0
        worker, kills = self._worker, resources.oom_kills()
        timeout = worker.plan.steps[task.step].options.timeout if asked == "timeout" else None
        cause, note = postmortem.cause(ending, timeout=timeout, oom=kills > self._oom_kills)
        if cause == "oom":
            self._oom_kills = kills
        if folder := self._folder_of(slot, task):
            note = f"{note}  Folder kept: {folder}."
        gpus = task.grant.names if task.grant is not None else ()
        gpu = self._position.gauges.read(slot.number, gpus) if gpus else None
        outcome = postmortem.outcome(worker, task, since=since, cause=cause, note=note, gpu=gpu)
        self._arrived.append(Report(outcomes=[postmortem.keep(worker, outcome, log=slot.log, start=offset)]))

    def _folder_of(self, slot: _Slot, task: Task) -> str:
        """Where a step had its own folder in a helper that is gone; "" if it had none."""
        worker = self._worker
        room = worker.plan.steps[task.step].options.workdir
        if room is None:
            return ""
        stem = worker.plan.stems[task.step]
        return scratch.left_behind(
            room,
            cache=worker.folder,
            stem=stem,
            host=worker.host,
            attempt=task.attempt,
            pid=self._nest.helper(slot.number),
        )
