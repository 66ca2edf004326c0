"""How many steps travel together: judged by how long steps of each function took so far."""

from __future__ import annotations

import time

from ezpyp import policy
from ezpyp.ledger import Ledger
from ezpyp.plan import Plan
from ezpyp.steps import Outcome, Status


class Pace:
    """How long steps of each function take, as far as is known: the size of lots."""

    def __init__(self, plan: Plan, slots: int) -> None:
        kinds: dict[int, int] = {}
        self._kind = [kinds.setdefault(id(step.function), len(kinds)) for step in plan.steps]
        self._seconds: list[float | None] = [None] * len(kinds)
        self._slots = slots

    def learn(self, outcome: Outcome) -> None:
        if outcome.status is Status.DONE:
            kind = self._kind[outcome.step]
            known = self._seconds[kind]
            self._seconds[kind] = outcome.seconds if known is None else 0.8 * known + 0.2 * outcome.seconds

    def expected(self, step: int) -> float | None:
        """Seconds that a step will probably take, None for unknown."""
        return self._seconds[self._kind[step]]

    def lot(self, ledger: Ledger) -> list[int]:
        """The next lot from the ledger: steps of like duration, as many as fit its time."""
        taken = ledger.take(1, time.monotonic())
        if not taken:
            return taken
        most = policy.lot_size(self.expected(taken[0]), ledger.ready, self._slots)
        if most > 1:
            more = ledger.take(most - 1, time.monotonic())
            kind = self._kind[taken[0]]
            strange = next((k for k, step in enumerate(more) if self._kind[step] != kind), len(more))
            ledger.give_back(more[strange:])
            taken += more[:strange]
        return taken

    def depth(self, ledger: Ledger) -> int:
        """How many lots a slot may hold now, judged by the slowest kind that is known."""
        known = [s for s in self._seconds if s is not None]
        seconds = max(known) if len(known) == len(self._seconds) else None
        return policy.depth(seconds, ledger.ready, self._slots)
