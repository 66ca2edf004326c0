"""Which steps start next, and where, in a run whose steps ask for more than a core each. Pure.

Steps start in the ledger's order: phase, longest expected, call. Those that ask for GPUs go before those that do not,
since GPUs are few. One that finds no room lets others pass, but only so many, or for so long: then a node is kept free
for it until it fits.
"""

from __future__ import annotations

from ezpyp.schedule.ledger import Ledger
from ezpyp.schedule.pace import Pace
from ezpyp.schedule.placement import Placement
from ezpyp.system.resources import Grant
from ezpyp.tuples import NamedTuple

#: How many lots may pass a step that finds no room, and for how many seconds they may.
PASSES = 64
PATIENCE = 5.0


class Start(NamedTuple):
    """Steps that start on a rank: an ordinary lot, or one step with what it was granted."""

    rank: int
    steps: list[int]
    grant: Grant | None = None


class Dispatch:
    """Matches what is ready with what is free."""

    def __init__(self, ledger: Ledger, pace: Pace, placement: Placement) -> None:
        self._ledger, self._pace, self._placement = ledger, pace, placement
        #: Whoever stands first of those without room: its place in the order; lots that passed it; since when.
        self._blocked, self._passed, self._since = -1, 0, 0.0

    def next(self, now: float) -> Start | None:
        """What starts now; None where nothing that is ready finds room."""
        ordinary = self._ledger.first(now)
        heads = self._heads(now)
        blocked = None
        for place, kind in sorted(heads, key=lambda head: (not self._placement.wants_gpus(head[1]), head)):
            if ordinary is not None and place > ordinary and not self._placement.wants_gpus(kind):
                if start := self._lend(now):
                    return self._passing(start, blocked, now)
                ordinary = None
            if start := self._give(place, kind):
                return self._passing(start, blocked, now)
            blocked = blocked or (place, kind)
        if ordinary is not None and (start := self._lend(now)):
            return self._passing(start, blocked, now)
        self._wait(blocked, now)
        return None

    def _heads(self, now: float) -> list[tuple[int, int]]:
        """The first step of each kind that can end before the run has to; those that cannot are put off."""
        ledger = self._ledger
        heads = ledger.heads(now)
        while late := [kind for place, kind in heads if not self._pace.permits(ledger.index(place), now)]:
            for kind in late:
                ledger.put_off(ledger.take_head(kind))
            heads = ledger.heads(now)
        return heads

    def _give(self, place: int, kind: int) -> Start | None:
        step = self._ledger.index(place)
        given = self._placement.give(kind, step)
        if given is None:
            return None
        taken = self._ledger.take_head(kind)
        assert taken == step
        rank, grant = given
        return Start(rank, [step], grant)

    def _lend(self, now: float) -> Start | None:
        rank = self._placement.seat()
        if rank is None or not (steps := self._pace.lot(self._ledger, now)):
            return None
        self._placement.lend(rank, steps)
        return Start(rank, steps)

    def _passing(self, start: Start, blocked: tuple[int, int] | None, now: float) -> Start:
        self._wait(blocked, now)
        if blocked is not None:
            self._passed += 1
        return start

    def _wait(self, blocked: tuple[int, int] | None, now: float) -> None:
        """Have a node kept free for a step that waited long enough."""
        if blocked is None:
            self._blocked = -1
            return
        place, kind = blocked
        if place != self._blocked:
            self._blocked, self._passed, self._since = place, 0, now
        elif self._passed >= PASSES or (self._passed and now - self._since > PATIENCE):
            self._placement.keep(kind)
