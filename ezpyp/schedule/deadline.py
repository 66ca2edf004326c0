"""What may still start before a run has to end: what earlier steps of its function took says whether it can. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ezpyp.model.kinds import Functions
from ezpyp.system.allocation import spoken

#: Of a function of which nothing is known a step may start while this share of the run's time is left.
UNKNOWN = 0.25


class Deadline:
    """The end of a run, and how long steps of each function take at most, as far as is known.

    Attributes:
        refused: whether some step could not start for want of time.
    """

    def __init__(
        self,
        functions: Functions,
        began: float,
        end: float,
        *,
        recorded: Mapping[str, float],
        declared: Mapping[str, float],
    ) -> None:
        """
        Args:
            began, end: on the caller's clock.
            recorded: seconds that nearly all steps of a function took in earlier runs, by its name.
            declared: seconds after which steps of a function are ended.
        """
        self._names, self._end, self._margin = functions.names, end, UNKNOWN * (end - began)
        self._recorded = [recorded.get(name) for name in functions.names]
        self._declared = [declared.get(name, math.inf) for name in functions.names]
        self._learned: list[float | None] = [None] * len(functions.names)
        self._refused: int | None = None

    def learn(self, function: int, seconds: float) -> None:
        """A step of this function took so long. One that took less lowers what is expected only a little."""
        self._learned[function] = max(seconds, 0.95 * (self._learned[function] or 0.0))

    def permits(self, function: int, now: float) -> bool:
        """Whether a step of this function may start now. Where it may not, that is kept for `message`."""
        expected, _ = self._expected(function)
        if now + (self._margin if expected is None else expected) <= self._end:
            return True
        if self._refused is None:
            self._refused = function
        return False

    @property
    def refused(self) -> bool:
        return self._refused is not None

    def message(self, now: float) -> str:
        """Why nothing can start any more."""
        function, left = self._refused, spoken(self._end - now)
        assert function is not None
        name = self._names[function]
        seconds, how = self._expected(function)
        if seconds is None:
            why = f"nobody knows how long '{name}' takes, {left} are left. Ask more by --time"
        else:
            why = f"'{name}' {how.format(spoken(seconds))}, {left} are left. Ask --time {_enough(seconds)}"
        return f"Nothing can start: {why}, or save in ezpyp.checkpoint_dir(). Stopped, resumable (85)."

    def _expected(self, function: int) -> tuple[float | None, str]:
        """Seconds that a step takes at most, None for unknown; and how that is known."""
        learned, recorded, declared = self._learned[function], self._recorded[function], self._declared[function]
        known = max((each for each in (learned, recorded) if each is not None), default=math.inf)
        if declared < known:
            return declared, "may take {}"
        if known == math.inf:
            return None, ""
        return known, "took {} in this run" if known == learned else "took {} in earlier runs"


def _enough(seconds: float) -> str:
    """A round time in which a step of so many seconds can end."""
    needed = 1.1 * seconds + 10
    for unit, size in (("s", 1), ("m", 60)):
        if needed < 90 * size:
            return f"{math.ceil(needed / size)}{unit}"
    return f"{math.ceil(needed / 3600)}h"


def by_function(functions: Functions, steps: Sequence[tuple[int, float | None]]) -> dict[str, float]:
    """The longest of what steps declared, by the names of their functions; without those where one declared nothing."""
    found: dict[str, float] = {}
    for step, seconds in steps:
        name = functions.names[functions.numbers[step]]
        found[name] = max(found.get(name, 0.0), math.inf if seconds is None else seconds)
    return {name: seconds for name, seconds in found.items() if seconds < math.inf}
