"""What an executor is, and the one that runs steps in this very process.

An executor is given lots and gives back outcomes; it never decides what runs next. Threads are not offered: steps
draw from process-wide random generators, which are seeded for each step, and threads would share them.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from typing import Protocol

from ezpyp.model.outcomes import Outcome, Status
from ezpyp.system import running, stopping
from ezpyp.system.bells import Bell
from ezpyp.work import seeding
from ezpyp.work.lots import Lot, Report, Task
from ezpyp.work.worker import Worker


class Executor(Protocol):
    """Runs lots of steps. All methods are called from one thread."""

    @property
    def slots(self) -> int:
        """How many steps it can run at the same time; those aside that are held up, behind which nothing may wait."""

    @property
    def lots(self) -> int:
        """How many lots these slots hold that are not finished. A caller keeps it at two for each slot at most."""

    @property
    def idle(self) -> int:
        """How many slots have nothing to do."""

    @property
    def ranks(self) -> Sequence[int]:
        """The ranks that its slots are on."""

    def start(self, lot: Lot, rank: int | None = None) -> None:
        """Take a lot, for this rank if one is named. Returns at once, except in line, where `poll` runs the steps."""

    def poll(self) -> list[Report]:
        """What arrived since the last call. Every task is told of exactly once, whatever becomes of its process: what
        came of it, or that it is given back.
        """

    def recall(self) -> None:
        """Give back what waits behind a step that takes long: others have nothing to do. Holds until the next lot."""

    def wait(self, seconds: float) -> None:
        """Sleep until something may have arrived, at most this long."""

    def interrupt(self) -> None:
        """End what runs and drop what waits; each gives an outcome with status -1 at the next poll."""

    def sync(self) -> None:
        """Have what was reported survive a power failure, soon: asked for at the border of a phase. Does not block."""

    def leave(self) -> None:
        """No lot will come any more, and nothing is running: begin to let go of everything. Does not block."""

    def close(self) -> None:
        """Let go of everything, after `leave`; results are on disk, synced, when it returns."""


class Serial:
    """Runs steps in this very process, one at a time: for debugging and notebooks. Nothing is captured or isolated."""

    slots = 1

    def __init__(self, worker: Worker, bell: Bell | None = None) -> None:
        self._worker, self._bell = worker, bell
        self._lots: deque[deque[Task]] = deque()
        self._dropped: list[Outcome] = []
        seeding.watch_imports()

    @property
    def lots(self) -> int:
        return len(self._lots)

    @property
    def idle(self) -> int:
        return int(not self._lots)

    @property
    def ranks(self) -> Sequence[int]:
        return (self._worker.rank,)

    def start(self, lot: Lot, rank: int | None = None) -> None:
        self._lots.append(deque(lot))

    def poll(self) -> list[Report]:
        if self._dropped:
            dropped, self._dropped = self._dropped, []
            return [Report(outcomes=dropped)]
        if not self._lots:
            return []
        if stopping.stopping():  # what waits is not begun
            waiting = [task.step for lot in self._lots for task in lot]
            self._lots.clear()
            return [Report(returned=waiting)]
        task = self._lots[0].popleft()
        if not self._lots[0]:
            self._lots.popleft()
        try:
            with running.step():
                came = self._worker.run(task)
        except KeyboardInterrupt:
            came = interrupted(task, self._worker)
        briefs, outcomes = (came, []) if isinstance(came, bytes) else (b"", [came])
        return [Report(*self._worker.flush(briefs, outcomes))]

    def recall(self) -> None:
        """Nobody else could run it: it goes on."""

    def wait(self, seconds: float) -> None:
        if not self._lots and not self._dropped:
            (self._bell.wait if self._bell is not None else time.sleep)(seconds)

    def interrupt(self) -> None:
        self._dropped += [interrupted(task, self._worker) for lot in self._lots for task in lot]
        self._lots.clear()

    def sync(self) -> None:
        self._worker.store.sync()

    def leave(self) -> None:
        """Nothing is held open."""

    def close(self) -> None:
        self._worker.store.sync()


def interrupted(task: Task, worker: Worker) -> Outcome:
    """What came of a step that was ended, or never begun, because the run is to stop."""
    args, kwargs = worker.plan.steps[task.step].texts()
    return Outcome(
        step=task.step,
        status=Status.NOT_RUN,
        when=time.time(),
        rank=worker.rank,
        host=worker.host,
        attempt=task.attempt,
        args=args,
        kwargs=kwargs,
        cause="interrupted",
        note="interrupted; the next run does it",
    )
