"""Rank 0: hand out what the ledger says is ready, settle what comes back, and tell everyone of it."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from ezpyp import lock
from ezpyp.errors import StoreError
from ezpyp.events import Bus, StepCached, StepEnded, StepStarted
from ezpyp.executors import Executor
from ezpyp.job import Job
from ezpyp.keeping import Keeping
from ezpyp.ledger import Ledger
from ezpyp.pace import Pace
from ezpyp.report import SMALL_RUN
from ezpyp.steps import Outcome, Status
from ezpyp.stopping import Stop

#: Seconds between two syncs at the borders of phases.
SYNC_EVERY = 1.0


class Conductor:
    """Rank 0: the ledger and everyone who is told of its decisions."""

    def __init__(self, job: Job, ledger: Ledger, bus: Bus) -> None:
        self._plan, self._ledger, self._bus = job.plan, ledger, bus
        self._keeping = Keeping(job.plan)
        for k, status in enumerate(ledger.statuses()):
            if status == Status.DONE:
                self._keeping.finish(k)
        self._worker = job.worker()
        self._sign = job.sign or (lambda: None)
        self.outcomes: dict[int, Outcome] = {}
        self._longest_wait = 0.2 if job.link is None else 0.001
        #: Steps of each phase that have not settled; and whether a phase ended since the last sync, and when that was.
        self._left = Counter(job.plan.graph.phases[k] for k in job.todo)
        self._at_border, self._synced = False, time.monotonic()

    def tell_cached(self, done: Iterable[int]) -> None:
        """Tell of the steps that need not run, where there are few enough to be shown."""
        if len(self._plan.steps) > SMALL_RUN:
            return
        for k in done:
            step = self._plan.steps[k]
            self._bus.tell(
                StepCached(when=time.time(), name=step.name, title=step.title, phase=self._plan.graph.phases[k])
            )

    def conduct(self, team: Sequence[Executor], pace: Pace, stop: Stop, grace: float) -> None:
        """Hand out and settle until nothing is left to do, or a stop was asked for and its grace is over."""
        ledger, pause, ended, signed = self._ledger, 50e-6, False, -lock.EVERY
        while not ledger.finished:
            if time.monotonic() - signed >= lock.EVERY:
                signed = time.monotonic()
                self._sign()
            moved = self._hand_out(team, pace)
            for outcome in [o for executor in team for o in executor.poll()]:
                if outcome.status is Status.DONE:
                    pace.learn(outcome.step, outcome.seconds)
                self._settle(outcome)
                moved = True
            if stop.signal and not ended:
                ledger.stop()
                if stop.again or time.monotonic() - stop.since > grace:
                    ended = True
                    for executor in team:
                        executor.interrupt()
            if self._at_border:
                self._sync(team)
            pause = 50e-6 if moved else min(2 * pause, self._longest_wait)
            if not moved:
                self._bus.idle()
                team[0].wait(pause)
        self._sign()

    def _sync(self, team: Sequence[Executor]) -> None:
        """At the border of a phase, have all that was reported last; where phases are short, not at every one."""
        now = time.monotonic()
        if now - self._synced >= SYNC_EVERY:
            self._at_border, self._synced = False, now
            for executor in team:
                executor.sync()

    def _hand_out(self, team: Sequence[Executor], pace: Pace) -> bool:
        """Fill every slot once before any is filled twice."""
        ledger, moved = self._ledger, False
        for depth in range(1, pace.depth(ledger, time.monotonic()) + 1):
            for executor in team:
                while executor.lots < depth * executor.slots and (lot := pace.lot(ledger, time.monotonic())):
                    executor.start([(k, ledger.failures[k] + 1, ledger.absent(k)) for k in lot])
                    if len(lot) == 1:
                        self._bus.tell(StepStarted(when=time.time(), name=self._plan.steps[lot[0]].name))
                    moved = True
        return moved

    def _settle(self, outcome: Outcome) -> None:
        settled = self._ledger.settle(outcome.step, outcome.status, outcome.cause, time.monotonic())
        self._tell(outcome, final=not settled.retry)
        if outcome.status is Status.DONE:
            self._drop_unneeded(outcome.step)
        for index, status in settled.changes:
            if status == Status.SKIPPED:
                self._tell(self._skipped(index), final=True)
        for index in settled.reblamed:
            self.outcomes[index] = self._skipped(index)

    def _drop_unneeded(self, done: int) -> None:
        """Drop the results that were there for this step alone, or for none that is not done."""
        if self._ledger.absent(done):
            return
        for k in self._keeping.finish(done):
            with contextlib.suppress(StoreError):  # the next run tries again
                self._worker.store.drop(self._plan.stems[k], result_only=True)
                self._worker.store.flush()
                if k in self.outcomes:
                    self.outcomes[k] = replace(self.outcomes[k], dropped=True)

    def _skipped(self, index: int) -> Outcome:
        blamed = self._plan.steps[self._ledger.blame[index]]
        args, kwargs = self._plan.steps[index].texts()
        outcome = Outcome(
            step=index,
            status=Status.SKIPPED,
            when=time.time(),
            attempt=0,
            args=args,
            kwargs=kwargs,
            cause="blamed",
            note=f"because '{blamed.name}' failed",
        )
        try:
            kept = self._worker.keep(outcome)
            self._worker.store.flush()
            return kept
        except StoreError as error:
            # The disk may be what failed. What can still be done goes on, and the next run skips or runs it anew.
            return replace(outcome, note=f"{outcome.note} (and its status could not be stored: {error})")

    def _tell(self, outcome: Outcome, *, final: bool) -> None:
        if final:
            self.outcomes[outcome.step] = outcome
            phase = self._plan.graph.phases[outcome.step]
            self._left[phase] -= 1
            self._at_border = self._at_border or not self._left[phase]
        step = self._plan.steps[outcome.step]
        self._bus.tell(
            StepEnded(
                name=step.name,
                label=step.label if outcome.status is not Status.DONE else step.name,
                title=step.title,
                phase=self._plan.graph.phases[outcome.step],
                outcome=outcome,
                final=final,
                allowed=outcome.status is Status.FAILED
                and step.group is not None
                and self._ledger.is_allowed(outcome.step),
            )
        )
