"""What rank 0 says to the other ranks, in which order."""

from __future__ import annotations

from typing import cast

from ezpyp.ranks.mpi import Link
from ezpyp.ranks.team import Ranks
from ezpyp.system.stopping import Stop
from ezpyp.work.lots import Lot


class Wire:
    """In place of MPI: keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, object]] = []

    def send(self, message: object, rank: int) -> None:
        self.sent.append((rank, message))

    def receive(self) -> None:
        """Nobody answers."""


def test_lots_that_were_given_leave_before_ranks_are_told_to_sync() -> None:
    """Who waits for the disk has been given what it can do then."""
    wire = Wire()
    team = Ranks(cast(Link, wire), {1: 1, 2: 1}, Stop())
    lots = [Lot((0,)), Lot((1,))]
    for lot in lots:
        team.start(lot)
    team.sync()
    assert sorted(wire.sent[:2], key=str) == [(1, ("lots", lots[:1])), (2, ("lots", lots[1:]))]
    assert wire.sent[2:] == [(1, ("sync", None)), (2, ("sync", None))]
    team.poll()
    assert len(wire.sent) == 4
