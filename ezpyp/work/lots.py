"""What agents and helpers tell each other: lots of tasks one way, reports the other way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

from ezpyp.model.outcomes import Outcome
from ezpyp.schedule import briefs
from ezpyp.system.resources import Grant
from ezpyp.tuples import NamedTuple


class Task(NamedTuple):
    """A step to run."""

    step: int
    attempt: int = 1
    #: Steps upstream whose values it does not get, because their failures were allowed.
    absent: tuple[int, ...] = ()
    #: What of the node is its own, where it asked for more than a core.
    grant: Grant | None = None


class Lot(Sequence[Task]):
    """Tasks that travel together and run one after another. First attempts, which nearly all are, travel as numbers."""

    __slots__ = ("places", "special", "steps", "values")

    def __init__(
        self,
        steps: Sequence[int],
        special: Mapping[int, Task] | None = None,
        places: bytes = b"",
        values: Mapping[int, bytes] | None = None,
    ) -> None:
        """
        Args:
            steps: a range where they follow each other. special: those that are more than a first attempt.
            places: packed briefs of parents: where their results lie, so that nobody has to search.
            values: pickles of the results of parents that are so small that they travel.
        """
        self.steps, self.special, self.places = briefs.as_range(steps), dict(special or {}), places
        self.values = values or {}

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Task]:
        if self.special:
            return (self.special.get(k) or Task(k) for k in self.steps)
        return map(Task, self.steps)

    @overload
    def __getitem__(self, place: int) -> Task: ...
    @overload
    def __getitem__(self, place: slice) -> Lot: ...
    def __getitem__(self, place: int | slice) -> Task | Lot:
        if isinstance(place, slice):
            steps = self.steps[place]
            special = {k: self.special[k] for k in self.special.keys() & set(steps)}
            return Lot(steps, special, self.places, self.values)
        k = self.steps[place]
        return self.special.get(k) or Task(k)

    @property
    def grant(self) -> Grant | None:
        """What its only task is granted; None where it is of other tasks."""
        return next(iter(self.special.values())).grant if len(self.special) == 1 == len(self.steps) else None

    def __reduce__(self) -> tuple[Any, ...]:
        return Lot, (self.steps, self.special, self.places, self.values)


class Report(NamedTuple):
    """What came of tasks of one lot, in their order, since the last report of it."""

    #: Packed briefs of those that are done and of which there is no more to say.
    briefs: bytes = b""
    #: Of the others.
    outcomes: Sequence[Outcome] = ()
    #: Steps that were not begun and are given back.
    returned: Sequence[int] = ()
    #: Of the steps that are done, pickles of results that travel to those who are given them.
    values: Mapping[int, bytes] = {}
    #: Of the steps that are done, the arguments as texts, positional and by name, where their records say these.
    called: Mapping[int, tuple[str, str]] = {}

    @property
    def ended(self) -> int:
        """How many tasks ended."""
        return len(self.briefs) // briefs.SIZE + len(self.outcomes)
