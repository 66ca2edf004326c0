"""How many steps travel together: judged by how long steps of each function take. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress
from typing import TYPE_CHECKING

from ezpyp.model import policy
from ezpyp.model.kinds import Functions
from ezpyp.schedule.ledger import Ledger

if TYPE_CHECKING:
    from ezpyp.schedule.deadline import Deadline


class Pace:
    """How long steps of each function take, as far as is known: the size of lots."""

    def __init__(
        self,
        functions: Functions,
        slots: int,
        seconds: Mapping[str, float] | None = None,
        deadline: Deadline | None = None,
    ) -> None:
        """`seconds` is what is remembered of functions, by their names. What cannot end by `deadline` is put off."""
        self.deadline = deadline
        remembered = seconds or {}
        self._function = functions.numbers
        self._seconds = [remembered.get(name) for name in functions.names]
        self._slots = slots

    def learn(self, steps: Sequence[int], seconds: Sequence[float]) -> None:
        """How long steps took that are done."""
        functions = [*map(self._function.__getitem__, steps)]
        if len(kinds := set(functions)) == 1:
            self._learn(functions[0], seconds)
            return
        for kind in kinds:
            own = [*compress(seconds, map(kind.__eq__, functions))]
            self._learn(kind, own)

    def _learn(self, function: int, seconds: Sequence[float]) -> None:
        known, mean = self._seconds[function], sum(seconds) / len(seconds)
        weight = 0.8 ** len(seconds)
        self._seconds[function] = mean if known is None else weight * known + (1 - weight) * mean
        if self.deadline is not None:
            self.deadline.learn(function, max(seconds))

    def expected(self, step: int) -> float | None:
        """Seconds that a step will probably take, None for unknown."""
        return self._seconds[self._function[step]]

    def lot(self, ledger: Ledger, now: float, together: int = 0) -> list[int]:
        """The next lot from the ledger: as many steps, in its order, as are expected to fill a lot's time.

        `together` is how many were ready when the first of the lots was made that are handed out now.
        """
        if self.deadline is not None:
            self._put_off(ledger, now, self.deadline)
        first = ledger.first(now)
        if first is None:
            return []
        function = self._function[ledger.index(first)]
        most = policy.lot_size(self._seconds[function], ledger.ready, self._slots, together=together)
        lot = ledger.take(most, now)
        fitting = self._fitting(lot, function)
        if fitting < len(lot):
            ledger.put_back(lot[fitting:])
            del lot[fitting:]
        return lot

    def permits(self, step: int, now: float) -> bool:
        """Whether this step can end before the run has to."""
        return self.deadline is None or self.deadline.permits(self._function[step], now)

    def _put_off(self, ledger: Ledger, now: float, deadline: Deadline) -> None:
        """Put off what comes first and cannot end in time."""
        while (first := ledger.first(now)) is not None:
            if deadline.permits(self._function[ledger.index(first)], now):
                return
            (step,) = ledger.take(1, now)
            ledger.put_off(step)

    def _fitting(self, lot: Sequence[int], function: int) -> int:
        """How many of these travel together: what fills a lot's time, and nothing unknown beside another function."""
        numbers = self._function
        if len(self._seconds) == 1 or numbers[lot[0] : lot[0] + len(lot)].count(function) == len(lot) == _span(lot):
            return len(lot)
        left = policy.LOT_SECONDS
        for k, step in enumerate(lot):
            seconds = self._seconds[numbers[step]]
            if numbers[step] != function and None in (seconds, self._seconds[function]):
                return k
            left -= seconds or 0.0
            if left < -1e-9 and k:
                return k
        return len(lot)

    def depth(self, ledger: Ledger, now: float) -> int:
        """How many lots a slot may hold now, judged by what comes next."""
        first = ledger.first(now)
        seconds = None if first is None else self.expected(ledger.index(first))
        return policy.depth(seconds, ledger.ready, self._slots)


def _span(steps: Sequence[int]) -> int:
    return steps[-1] - steps[0] + 1
