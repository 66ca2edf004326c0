"""The size of lots, and the order of functions, from how long steps take."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import pytest

from ezpyp.model.edges import Edges
from ezpyp.model.kinds import Functions
from ezpyp.model.plan import Graph
from ezpyp.schedule.ledger import Ledger
from ezpyp.schedule.pace import Pace


def functions(letters: str) -> Functions:
    """The functions of steps, one letter each."""
    names = sorted(set(letters))
    return Functions(array("i", map(names.index, letters)), names)


def lots(letters: str, slots: int = 1, **seconds: float) -> list[list[int]]:
    total = len(letters)
    ledger = Ledger(Graph(parents=Edges.none(total), phases=(0,) * total, groups=(-1,) * total))
    pace = Pace(functions(letters), slots, seconds)
    found = []
    while lot := pace.lot(ledger, 0.0):
        found.append(lot)
        ledger.settle_done(lot)
    return found


def test_short_steps_of_several_functions_travel_together() -> None:
    assert lots("abab" * 100, a=0.001, b=0.001)[0] == list(range(50))


def test_what_takes_long_does_not_wait_behind_short_steps_nor_they_behind_it() -> None:
    assert lots("aab" + "a" * 100, a=0.001, b=9.0)[:2] == [[0, 1], [2]]


def test_what_is_unknown_does_not_travel_with_what_is_short() -> None:
    assert lots("aab" + "a" * 100, a=0.001)[:2] == [[0, 1], [2]]


def test_a_lot_leaves_its_share_to_every_slot() -> None:
    assert max(map(len, lots("a" * 64, slots=8, a=1e-4))) <= 64 // 8


def test_what_was_learnt_counts_for_the_function_alone() -> None:
    pace = Pace(functions("ab"), 1)
    pace.learn([0], [1.0])
    pace.learn([0] * 100, [2.0] * 100)
    assert pace.expected(0) == pytest.approx(2.0)
    assert pace.expected(1) is None


def test_of_steps_that_come_together_each_counts_for_its_own_function() -> None:
    pace = Pace(functions("aba"), 1)
    pace.learn([0, 1, 2], [1.0, 9.0, 3.0])
    assert pace.expected(0) == pytest.approx(2.0)
    assert pace.expected(1) == pytest.approx(9.0)


@pytest.mark.parametrize(
    ("letters", "phases", "seconds", "order"),
    [
        ("abab", (0, 0, 0, 0), {"a": 1.0, "b": 2.0}, [1, 3, 0, 2]),
        ("abab", (0, 0, 1, 1), {"a": 1.0, "b": 2.0}, [1, 0, 3, 2]),
        ("abab", (0, 0, 0, 0), {"a": 2.0, "b": 2.0}, None),
        ("aabb", (0, 0, 1, 1), {"a": 1.0, "b": 2.0}, None),
        ("abc", (0, 0, 0), {"a": 1.0, "c": 5.0}, [1, 2, 0]),
        ("abc", (0, 0, 0), {}, None),
    ],
)
def test_the_longest_come_first_within_a_phase(
    letters: str, phases: Sequence[int], seconds: dict[str, float], order: list[int] | None
) -> None:
    """A function of which nothing is known may be as long as any."""
    found = functions(letters).order(phases, seconds)
    assert (None if found is None else list(found)) == order
