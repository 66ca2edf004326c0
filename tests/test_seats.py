"""Which rank gets the next lot: as a search over all ranks would say, at a cost that does not grow with them."""

from __future__ import annotations

import time

from hypothesis import given, settings
from hypothesis import strategies as st

from ezpyp.schedule.seats import Seats


class Plain:
    """The same by counting anew each time."""

    def __init__(self, slots: dict[int, int]) -> None:
        self.helpers, self.open, self.idle = dict(slots), dict(slots), dict(slots)
        self.lots, self.tasks = dict.fromkeys(slots, 0), dict.fromkeys(slots, 0)
        self.asked: set[int] = set()

    def choose(self) -> int:
        return min(self.lots, key=lambda rank: self.lots[rank] / (self.open[rank] or 0.1))

    def crowded(self) -> list[int]:
        found = [r for r, tasks in self.tasks.items() if tasks > self.helpers[r] and r not in self.asked]
        self.asked.update(found)
        return found


@settings(max_examples=200)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=6), st.lists(st.integers(0, 1000), max_size=300))
def test_it_chooses_as_a_search_over_all_ranks_does(helpers: list[int], moves: list[int]) -> None:
    slots = dict(enumerate(helpers, start=1))
    seats, plain = Seats(slots), Plain(slots)
    for move in moves:
        busy = [rank for rank, lots in plain.lots.items() if lots]
        if move % 7 == 0:
            assert seats.crowded() == plain.crowded()
        elif move % 2 or not busy:
            rank = plain.choose()
            assert seats.choose() == rank
            seats.give(rank, 1 + move % 5)
            plain.lots[rank] += 1
            plain.tasks[rank] += 1 + move % 5
            plain.idle[rank] = max(0, plain.idle[rank] - 1)
            plain.asked.discard(rank)
        else:
            rank = busy[move % len(busy)]
            tasks = plain.tasks[rank] if plain.lots[rank] == 1 else plain.tasks[rank] // plain.lots[rank]
            plain.lots[rank] -= 1
            plain.tasks[rank] -= tasks
            plain.open[rank] = move % (slots[rank] + 1)
            plain.idle[rank] = move % (slots[rank] + 1)
            seats.take(rank, lots=1, tasks=tasks, slots=plain.open[rank], idle=plain.idle[rank])
        assert (seats.slots, seats.lots, seats.idle) == tuple(
            sum(each.values()) for each in (plain.open, plain.lots, plain.idle)
        )
    assert seats.choose() == plain.choose()


def test_ten_thousand_ranks_cost_no_more_for_a_lot_than_ten() -> None:
    costs = []
    for ranks in (10, 10_000):
        seats = Seats(dict.fromkeys(range(1, ranks + 1), 1))
        began = time.process_time()
        for _ in range(30_000):
            rank = seats.choose()
            seats.give(rank, 1)
            seats.take(rank, lots=1, tasks=1, slots=1, idle=1)
        costs.append(time.process_time() - began)
    assert costs[1] < 20 * costs[0]
