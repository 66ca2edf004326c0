"""What the listeners of a run are told, and when: of few steps each by itself, of many those that take long or fail.

The rest is told together, a few times a second: ten thousand helpers end thousands of steps a second, and nobody reads
a line of each.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence

from ezpyp.folder.events import Bus, LotEnded, StepCached, StepEnded, StepStarted
from ezpyp.model.outcomes import Brief, Outcome, Status
from ezpyp.run.job import Job
from ezpyp.run.report import SHOWN, SMALL_RUN, shows_all
from ezpyp.schedule.briefs import Outcomes, unpack

#: Seconds between two tellings of steps together; and after which a step that runs is told of by itself.
TOGETHER = 0.25
LONG = 5.0


class Telling:
    """Tells listeners what happens to steps."""

    def __init__(self, job: Job, bus: Bus, hosts: Sequence[str], outcomes: Outcomes) -> None:
        """`hosts` has one for each rank; `outcomes` those that are told of, kept before they are told."""
        self._plan, self._bus, self._hosts, self._outcomes = job.plan, bus, hosts, outcomes
        #: So many steps that are done are still told by themselves.
        self._singly: float = math.inf if shows_all() else SHOWN if len(job.plan.steps) <= SMALL_RUN else 0
        #: Steps that were handed out alone and not told of, with the time of that, oldest first; those told of.
        self._begun: dict[int, float] = {}
        self._announced: set[int] = set()
        #: Of what was not told yet: the first and the last, how many, and their seconds.
        self._first = self._last = -1
        self._count, self._seconds = 0, 0.0
        self._due = 0.0

    def cached(self, done: Iterable[int]) -> None:
        """These need not run. Told where there are few enough to be shown."""
        if len(self._plan.steps) > SMALL_RUN:
            return
        for k in done:
            step = self._plan.steps[k]
            phase = self._plan.graph.phases[k]
            self._bus.tell(StepCached(when=time.time(), name=step.name, title=step.title, phase=phase))

    def begin(self, steps: Sequence[int], now: float) -> None:
        """A lot was handed out. One step alone may take long."""
        if len(steps) > 1:
            return
        if self._singly > 0:
            self._announced.add(steps[0])
            self._bus.tell(StepStarted(when=time.time(), name=self._plan.steps[steps[0]].name))
        else:
            self._begun[steps[0]] = now

    def back(self, steps: Sequence[int]) -> None:
        """They were not begun after all."""
        self._forget(steps)

    def done(self, packed: bytes, steps: Sequence[int], seconds: float) -> None:
        """Steps are done, of which there is nothing to say; `seconds` is what they took together."""
        if self._singly >= len(steps):
            self._singly -= len(steps)
            for brief in unpack(packed):
                self.ended(self._outcome(brief))
            return
        self._forget(steps)
        if self._first < 0:
            self._first = steps[0]
        self._last, self._count, self._seconds = steps[-1], self._count + len(steps), self._seconds + seconds
        if self._announced:
            for k in self._announced.intersection(steps):
                brief = self._outcomes.brief(k)
                self._count, self._seconds = self._count - 1, self._seconds - brief.seconds
                self.ended(self._outcome(brief))

    def ended(self, outcome: Outcome, *, final: bool = True, allowed: bool = False) -> None:
        """A step came to an end, perhaps not its last."""
        k = outcome.step
        self._begun.pop(k, None)
        self._announced.discard(k)
        step = self._plan.steps[k]
        name = step.name
        label = step.label if outcome.status is not Status.DONE else name
        self._bus.tell(StepEnded(name, label, step.title, self._plan.graph.phases[k], outcome, final, allowed))

    def look(self, now: float) -> None:
        """Tell what is due. Costs nothing where nothing is."""
        if now < self._due:
            return
        self._due = now + TOGETHER
        for k, since in self._begun.items():
            if now - since < LONG:
                break
            self._announced.add(k)
            self._bus.tell(StepStarted(when=time.time() - (now - since), name=self._plan.steps[k].name))
        for k in self._announced & self._begun.keys():
            del self._begun[k]
        self.flush()

    def flush(self) -> None:
        """Tell what was held back."""
        if self._count:
            steps = self._plan.steps
            self._bus.tell(
                LotEnded(
                    when=time.time(),
                    first=steps[self._first].name,
                    last=steps[self._last].name,
                    steps=self._count,
                    seconds=self._seconds,
                )
            )
        self._first, self._count, self._seconds = -1, 0, 0.0

    def _forget(self, steps: Sequence[int]) -> None:
        if self._begun:
            for k in steps:
                self._begun.pop(k, None)

    def _outcome(self, brief: Brief) -> Outcome:
        """A brief as listeners know it; where its result lies is not told."""
        step, attempt, rank, when, seconds, _ = brief
        return Outcome(step, Status.DONE, when, seconds, rank, self._hosts[rank], attempt)
