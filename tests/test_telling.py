"""What the listeners of a run are told, and when."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ezpyp import Pipeline, as_pickle_step
from ezpyp.folder.events import Bus, Event, LotEnded, StepEnded, StepStarted
from ezpyp.run.report import SHOWN
from ezpyp.run.telling import LONG, TOGETHER, Telling
from ezpyp.schedule import briefs
from ezpyp.schedule.briefs import Outcomes
from ezpyp.storage.memory import MemoryStore


class Told:
    """What a run of so many steps tells."""

    def __init__(self, folder: Path, steps: int) -> None:
        pipeline = Pipeline(folder, "told")
        as_pickle_step(pipeline)(abs).map(range(steps))
        pipeline.organize_steps()
        plan: Any = pipeline._plan
        self.events: list[Event] = []
        self.outcomes = Outcomes(plan.stems, MemoryStore(), ["node"])
        job: Any = SimpleNamespace(plan=plan)
        self.telling = Telling(job, Bus([self]), ["node"], self.outcomes)

    def hear(self, event: Event, /) -> None:
        self.events.append(event)

    def idle(self) -> None:
        """Nothing is held back."""

    close = idle

    def done(self, *steps: int) -> None:
        packed = b"".join(briefs.pack(k, 1, 0, 0, 1.0, 0.5, 0, 0, 0) for k in steps)
        self.telling.done(packed, self.outcomes.take(packed), 0.5 * len(steps))

    def heard(self) -> list[tuple[str, Any]]:
        found: list[tuple[str, Any]] = []
        for event in self.events:
            assert isinstance(event, StepStarted | StepEnded | LotEnded)
            found.append((type(event).__name__, event.steps if isinstance(event, LotEnded) else event.name))
        self.events.clear()
        return found


@pytest.fixture
def many(tmp_path: Path) -> Told:
    return Told(tmp_path / "cache", 2000)


def test_of_few_steps_each_is_told_by_itself(tmp_path: Path) -> None:
    told = Told(tmp_path / "cache", 10)
    told.telling.begin([1], 0.0)
    told.done(1, 2)
    assert told.heard() == [("StepStarted", "abs[1]"), ("StepEnded", "abs[1]"), ("StepEnded", "abs[2]")]


def test_what_nobody_is_shown_is_told_together(tmp_path: Path) -> None:
    """Of a run of some hundred steps the first are shown; one that was said to start is also said to end."""
    told = Told(tmp_path / "cache", 500)
    told.done(*range(SHOWN - 1))
    assert told.heard() == [("StepEnded", f"abs[{k}]") for k in range(SHOWN - 1)]
    told.telling.begin([400], 0.0)
    told.done(300, 301)
    told.done(302)
    told.telling.begin([401], 0.0)
    told.done(400, 401)
    told.telling.flush()
    assert told.heard() == [
        ("StepStarted", "abs[400]"),
        ("StepEnded", "abs[302]"),
        ("StepEnded", "abs[400]"),
        ("LotEnded", 3),
    ]


def test_of_many_steps_the_short_ones_are_told_together(many: Told) -> None:
    many.telling.look(0.0)
    many.telling.begin([7], 0.0)
    many.done(7)
    many.done(*range(10, 20))
    many.telling.look(0.9 * TOGETHER)
    assert many.heard() == []
    many.telling.look(TOGETHER)
    (lot,) = many.events
    assert isinstance(lot, LotEnded)
    assert (lot.first, lot.last, lot.steps, lot.seconds) == ("abs[7]", "abs[19]", 11, 5.5)
    many.events.clear()
    many.telling.flush()
    assert many.heard() == []


def test_a_step_that_takes_long_is_told_of_by_itself_once(many: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1000.0)
    many.telling.begin([7], 1.0)
    many.telling.begin([8], 2.0)
    many.telling.look(1.0 + LONG)
    (started,) = many.events
    assert started == StepStarted(when=1000.0 - LONG, name="abs[7]")
    many.events.clear()
    many.telling.look(1.0 + LONG + TOGETHER)
    assert many.heard() == []
    many.done(7, 8, 9)
    many.telling.flush()
    assert many.heard() == [("StepEnded", "abs[7]"), ("LotEnded", 2)]


def test_a_step_that_was_not_begun_does_not_take_long(many: Told) -> None:
    many.telling.begin([7], 0.0)
    many.telling.back([7])
    many.telling.look(2 * LONG)
    assert many.heard() == []
