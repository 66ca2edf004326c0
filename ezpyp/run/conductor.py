"""Rank 0: hand out what the ledger says is ready, settle what comes back, and tell everyone of it."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from ezpyp.errors import StoreError
from ezpyp.folder import lock
from ezpyp.folder.events import Bus
from ezpyp.model.keeping import Keeping
from ezpyp.model.outcomes import Outcome, Status
from ezpyp.model.steps import callable_name
from ezpyp.run.job import Job
from ezpyp.run.telling import Telling
from ezpyp.schedule.briefs import SIZE, Outcomes, seconds_of
from ezpyp.schedule.ledger import Ledger, Settled
from ezpyp.schedule.pace import Pace
from ezpyp.system.pauses import WOKEN
from ezpyp.system.resources import Grant
from ezpyp.system.stopping import Stop
from ezpyp.work.inline import Executor
from ezpyp.work.lots import Lot, Report, Task

if TYPE_CHECKING:
    from ezpyp.schedule.dispatch import Dispatch

#: No more places of results travel with a lot.
_MOST_PLACES = 4096
#: No more results are kept that travel.
_MOST_VALUES = 1 << 16
#: Of more helpers than this something always comes, and what is settled together costs less: seconds of rest.
MANY, REST = 1000, 0.001
#: Seconds between two syncs at the borders of phases.
SYNC_EVERY = 1.0


class Conductor:
    """Rank 0: the ledger and everyone who is told of its decisions."""

    def __init__(
        self, job: Job, ledger: Ledger, bus: Bus, hosts: Sequence[str], dispatch: Dispatch | None = None
    ) -> None:
        """`hosts` has one for each rank. `dispatch` says what starts where, in a run that asks for more than cores."""
        self._dispatch = dispatch
        #: Who runs steps on each rank.
        self._at: dict[int, Executor] = {}
        self._plan, self._ledger, self._bus = job.plan, ledger, bus
        self._keeping = Keeping(job.plan)
        for k, status in enumerate(ledger.statuses() if self._keeping.any else ()):
            if status == Status.DONE:
                self._keeping.finish(k)
        self._worker = job.worker()
        self._sign, self._signed = job.sign or (lambda: None), -lock.EVERY
        self.outcomes = Outcomes(job.plan.stems, job.store, hosts)
        self.telling = Telling(job, bus, hosts, self.outcomes)
        #: What came back before `conduct`.
        self._early: list[Report] = []
        #: A result in a file of its own is found by its name.
        self._places_help = job.kind == "packed"
        #: Pickles of results that travel, by their steps, oldest first.
        self._values: dict[int, bytes] = {}
        self._runs_elsewhere = job.settings.executor != "inline"
        #: How long to sleep where nothing came for so long. Alone, whatever comes ends a sleep.
        self._nap = job.link.nap if job.link is not None else lambda _: WOKEN
        #: Steps of each phase that have not settled; and whether a phase ended since the last sync, and when that was.
        self._left = Counter(map(job.plan.graph.phases.__getitem__, job.todo))
        self._at_border, self._synced = False, time.monotonic()

    def begin(self, team: Sequence[Executor], pace: Pace) -> None:
        """Hand out what is ready, and leave what comes back to `conduct`. Where executors run steps elsewhere."""
        now = time.monotonic()
        self._look_at_lock(now)
        self._hand_out(team, pace, now)
        self._early = [report for executor in team for report in executor.poll()]
        self._foresee_end(team)

    def conduct(self, team: Sequence[Executor], pace: Pace, stop: Stop) -> None:
        """Hand out and settle until nothing is left to do, or a stop was asked for and its time is over."""
        ledger, ended, moved_at = self._ledger, False, time.monotonic()
        rest = REST if sum(executor.slots for executor in team) > MANY else 0.0
        while not ledger.finished:
            now = time.monotonic()
            self._look_at_lock(now)
            moved = handed = self._hand_out(team, pace, now)
            if self._at_border:  # what waited for these results starts before somebody waits for the disk
                self._sync(team)
            if reports := [*self._early, *(r for executor in team for r in executor.poll())]:
                self._early = []
                self._settle(reports, pace)
                moved = True
            if handed:
                self._foresee_end(team)
            self.telling.look(now)
            self._bus.idle()
            stop.look(now)
            if stop.signal and not ended:
                ledger.stop()
                if stop.again or now > stop.end:
                    ended = True
                    for executor in team:
                        executor.interrupt()
            if moved:
                moved_at = time.monotonic()
            if not reports:  # else there may be more to hand out
                self._let_share(team)
                team[0].wait(rest if moved and rest else self._nap(time.monotonic() - moved_at))
            elif rest:
                team[0].wait(rest)
        self.telling.flush()
        self._sign()

    def _look_at_lock(self, now: float) -> None:
        if now - self._signed >= lock.EVERY:
            self._signed = now
            self._sign()

    def keep_failed(self, steps: Sequence[int]) -> None:
        """Steps that failed in an earlier start of this job are not tried again. Before anything is handed out."""
        settled = self._ledger.keep_failed(steps)
        for k in steps:
            if self._ledger.status(k) is Status.FAILED:
                self._count_down((k,))
        self._follow(settled)

    def _let_share(self, team: Sequence[Executor]) -> None:
        """Where somebody has nothing to do, and all that is left waits behind other steps, have it given back."""
        if not self._ledger.ready and any(executor.idle for executor in team):
            for executor in team:
                executor.recall()

    def _sync(self, team: Sequence[Executor]) -> None:
        """At the border of a phase, have all that was reported last; where phases are short, not at every one."""
        now = time.monotonic()
        if now - self._synced >= SYNC_EVERY:
            self._at_border, self._synced = False, now
            for executor in team:
                executor.sync()

    def _foresee_end(self, team: Sequence[Executor]) -> None:
        """Where all that is left was handed out, have each sync as soon as it is done: nobody waits for that then."""
        if self._runs_elsewhere and self._ledger.running == self._ledger.not_run:
            for executor in team:
                executor.sync()

    def _hand_out(self, team: Sequence[Executor], pace: Pace, now: float) -> bool:
        """Fill every slot once before any is filled twice."""
        if self._dispatch is not None:
            return self._place(self._dispatch, team, now)
        ledger, moved = self._ledger, False
        together = ledger.ready
        for depth in range(1, pace.depth(ledger, now) + 1):
            for executor in team:
                while executor.lots < depth * executor.slots and (lot := pace.lot(ledger, now, together)):
                    executor.start(self._lot(lot, None))
                    self.telling.begin(lot, now)
                    moved = True
        return moved

    def _place(self, dispatch: Dispatch, team: Sequence[Executor], now: float) -> bool:
        """Start what finds the cores, GPUs and memory that it asked for, on the rank where they are."""
        if not self._at:
            self._at = {rank: executor for executor in team for rank in executor.ranks}
        moved = False
        while (start := dispatch.next(now)) is not None:
            self._at[start.rank].start(self._lot(start.steps, start.grant), start.rank)
            self.telling.begin(start.steps, now)
            moved = True
        return moved

    def _lot(self, steps: Sequence[int], grant: Grant | None) -> Lot:
        ledger = self._ledger
        if grant is not None:
            (k,) = steps
            task = Task(k, ledger.failures[k] + 1, ledger.absent(k), grant)
            return Lot(steps, {k: task}, *self._upstream(steps))
        special = [k for k in steps if ledger.absent(k) or k in ledger.failures] if ledger.troubled else ()
        tasks = {k: Task(k, ledger.failures[k] + 1, ledger.absent(k)) for k in special}
        return Lot(steps, tasks, *self._upstream(steps))

    def _upstream(self, steps: Sequence[int]) -> tuple[bytes, dict[int, bytes]]:
        """Of the results that these steps are given those that travel, and where the others lie; of very many, whoever
        needs them looks for himself.
        """
        parents = self._plan.graph.parents
        if not parents.flat:
            return b"", {}
        wanted = parents.of_all(steps)
        if len(wanted) > _MOST_PLACES:
            return b"", {}
        values = {k: self._values[k] for k in wanted & self._values.keys()}
        if not self._places_help or len(values) == len(wanted):
            return b"", values
        return self.outcomes.packed(sorted(wanted - values.keys())), values

    def _keep_values(self, values: Mapping[int, bytes]) -> None:
        """Results that travel. What nobody asked for in a long time is looked up by whoever does."""
        self._values.update(values)
        while len(self._values) > _MOST_VALUES:
            del self._values[next(iter(self._values))]

    def _settle(self, reports: Sequence[Report], pace: Pace) -> None:
        """What came together: steps that ran alone all at once, lots each as the range that they may be."""
        alone = b"".join(report.briefs for report in reports if len(report.briefs) == SIZE)
        for packed in (alone, *(report.briefs for report in reports if len(report.briefs) != SIZE)):
            if packed:
                self._settle_briefs(packed, pace)
        for report in reports:
            if report.values:
                self._keep_values(report.values)
            if report.called:
                self.outcomes.hear(report.called)
            for outcome in report.outcomes:
                if outcome.status is Status.DONE:
                    pace.learn((outcome.step,), (outcome.seconds,))
                self._settle_outcome(outcome)
            if report.returned:
                self._ledger.give_back(report.returned)
                self.telling.back(report.returned)

    def _settle_briefs(self, packed: bytes, pace: Pace) -> None:
        """Steps that are done and of which there is nothing to say: by numbers, all at once."""
        steps, seconds = self.outcomes.take(packed), seconds_of(packed)
        pace.learn(steps, seconds)
        self._follow(self._ledger.settle_done(steps))
        self._count_down(steps)
        self.telling.done(packed, steps, sum(seconds))
        if self._keeping.any:
            self._drop_unneeded(steps)

    def _settle_outcome(self, outcome: Outcome) -> None:
        settled = self._ledger.settle(outcome.step, outcome.status, outcome.cause, time.monotonic())
        if not settled.retry:
            self.outcomes.put(outcome)
        self._tell(outcome, final=not settled.retry)
        if outcome.status is Status.DONE:
            self._drop_unneeded((outcome.step,))
        self._follow(settled)

    def _follow(self, settled: Settled) -> None:
        """What else an outcome decided."""
        for index, status in settled.changes:
            if status == Status.SKIPPED:
                skipped = self._skipped(index)
                self.outcomes.put(skipped)
                self._tell(skipped, final=True)
        for index in settled.reblamed:
            self.outcomes.put(self._skipped(index))

    def _drop_unneeded(self, done: Sequence[int]) -> None:
        """Drop the results that were there for these steps alone, or for none that is not done."""
        unneeded = [k for each in done if not self._ledger.absent(each) for k in self._keeping.finish(each)]
        if not unneeded:
            return
        with contextlib.suppress(StoreError):  # the next run tries again
            self._worker.store.drop(*(self._plan.stems[k] for k in unneeded), result_only=True)
            self._worker.store.flush()
            for k in unneeded:
                self.outcomes.drop(k)

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
            return outcome._replace(note=f"{outcome.note} (and its status could not be stored: {error})")

    def _count_down(self, steps: Sequence[int]) -> None:
        """Notice where a phase ends."""
        phases = self._plan.graph.phases
        first, last = phases[steps[0]], phases[steps[-1]]
        ordered = isinstance(steps, range) and first == last
        for phase, count in ((first, len(steps)),) if ordered else Counter(map(phases.__getitem__, steps)).items():
            self._left[phase] -= count
            self._at_border = self._at_border or not self._left[phase]

    def durations(self) -> dict[str, dict[str, float]]:
        """How long the steps that this run did took, by function (see RunEnded)."""
        found: dict[str, list[float]] = {}
        for _, same in groupby(self._plan.blocks, key=lambda block: id(block.family.definition.function)):
            blocks = [*same]
            name = callable_name(blocks[0].family.definition.function)
            steps = range(blocks[0].start, blocks[-1].stop)
            found.setdefault(name, []).extend(self.outcomes.seconds(steps))
        return {name: _spread(sorted(seconds)) for name, seconds in found.items() if seconds}

    def _tell(self, outcome: Outcome, *, final: bool) -> None:
        if final:
            self._count_down((outcome.step,))
        failed = outcome.status is Status.FAILED
        allowed = failed and self._plan.graph.groups[outcome.step] >= 0 and self._ledger.is_allowed(outcome.step)
        self.telling.ended(outcome, final=final, allowed=allowed)


def _spread(seconds: list[float]) -> dict[str, float]:
    """Of durations in order."""
    count = len(seconds)
    return {
        "count": count,
        "mean": round(sum(seconds) / count, 9),
        "p95": round(seconds[min(count - 1, int(0.95 * count))], 9),
        "longest": round(seconds[-1], 9),
    }
