"""How many steps travel together: judged by how long steps of each function take. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import compress

from ezpyp.model import policy
from ezpyp.model.kinds import Functions
from ezpyp.schedule.ledger import Ledger


class Pace:
    """How long steps of each function take, as far as is known: the size of lots."""

    def __init__(self, functions: Functions, slots: int, seconds: Mapping[str, float] | None = None) -> None:
        """`seconds` is what is remembered of functions, by their names."""
        remembered = seconds or {}
        self._function = functions.numbers
        self._seconds = [remembered.get(name) for name in functions.names]
        self._slots = slots

    def learn(self, steps: Sequence[int], seconds: Sequence[float]) -> None:
        """How long steps took that are done."""
        functions = [*map(self._function.__getitem__, steps)]
        if len(kinds := set(functions)) == 1:
            self._learn(functions[0], sum(seconds) / len(seconds), len(seconds))
            return
        for kind in kinds:
            own = [*compress(seconds, map(kind.__eq__, functions))]
            self._learn(kind, sum(own) / len(own), len(own))

    def _learn(self, function: int, seconds: float, count: int) -> None:
        known = self._seconds[function]
        weight = 0.8**count
        self._seconds[function] = seconds if known is None else weight * known + (1 - weight) * seconds

    def expected(self, step: int) -> float | None:
        """Seconds that a step will probably take, None for unknown."""
        return self._seconds[self._function[step]]

    def lot(self, ledger: Ledger, now: float) -> list[int]:
        """The next lot from the ledger: as many steps, in its order, as are expected to fill a lot's time."""
        first = ledger.first(now)
        if first is None:
            return []
        function = self._function[ledger.index(first)]
        most = policy.lot_size(self._seconds[function], ledger.ready, self._slots)
        lot = ledger.take(most, now)
        fitting = self._fitting(lot, function)
        if fitting < len(lot):
            ledger.put_back(lot[fitting:])
            del lot[fitting:]
        return lot

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
