"""The other ranks as rank 0 sees them: an executor like its own helpers, behind messages."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ezpyp.errors import RankMismatch
from ezpyp.ranks.mpi import Link
from ezpyp.schedule.seats import Seats

if TYPE_CHECKING:
    from ezpyp.system.stopping import Stop
    from ezpyp.work.lots import Lot, Report


class Ranks:
    """Rank 0's view of the other ranks: an Executor whose slots are theirs."""

    def __init__(self, link: Link, slots: Mapping[int, int], stop: Stop) -> None:
        """`slots` says how many steps each rank runs at once; `stop` hears of signals to ranks, and they hear of it."""
        self._link, self._ranks, self._stop, self._told = link, tuple(slots), stop, False
        self._seats = Seats(slots)
        self._arrived: list[Report] = []
        #: Lots that were started since the last look, by rank: they go out in one message.
        self._leaving: dict[int, list[Lot]] = {}

    @property
    def slots(self) -> int:
        return self._seats.slots

    @property
    def lots(self) -> int:
        return self._seats.lots

    @property
    def idle(self) -> int:
        return self._seats.idle

    @property
    def ranks(self) -> Sequence[int]:
        return self._ranks

    def start(self, lot: Lot, rank: int | None = None) -> None:
        if rank is None:
            rank = self._seats.choose()
        self._seats.give(rank, len(lot))
        self._leaving.setdefault(rank, []).append(lot)

    def poll(self) -> list[Report]:
        self._send_lots()
        while (message := self._link.receive()) is not None:
            rank, (kind, content) = message
            if kind == "reports":
                reports, finished, slots, idle = content
                self._arrived += reports
                ended = sum(each.ended + len(each.returned) for each in reports)
                self._seats.take(rank, lots=finished, tasks=ended, slots=slots, idle=idle)
            elif kind == "signal":
                number, again = content
                self._stop.hear(number, again=again)
            else:
                raise RankMismatch(f"Rank {rank} cannot go on: {content}")
        if self._stop.signal and not self._told:
            self._told = True
            for rank in self._ranks:
                self._link.send(("stop", self._stop.signal), rank)
        arrived, self._arrived = self._arrived, []
        return arrived

    def _send_lots(self) -> None:
        for rank, lots in self._leaving.items():
            self._link.send(("lots", lots), rank)
        self._leaving.clear()

    def recall(self) -> None:
        for rank in self._seats.crowded():
            self._link.send(("recall", None), rank)

    def wait(self, seconds: float) -> None:
        bell = self._link.bell
        (bell.wait if bell is not None else time.sleep)(seconds)

    def interrupt(self) -> None:
        for rank in self._ranks:
            self._link.send(("interrupt", None), rank)

    def sync(self) -> None:
        self._send_lots()
        for rank in self._ranks:
            self._link.send(("sync", None), rank)

    def leave(self) -> None:
        """Where a rank is lost, the others are kept from meeting it, and from ending before rank 0 has written what it
        knows: a launcher kills all when one ends."""
        lost = self._link.lost
        for rank in self._ranks:
            self._link.send(("end", None) if lost is None else ("lost", str(lost)), rank)

    def close(self) -> None:
        """They end by themselves; whoever wants to know that they have meets them."""
