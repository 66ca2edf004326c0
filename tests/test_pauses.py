"""Sleeps between two looks: short beside what is waited for, and few."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ezpyp.system.pauses import LONGEST, SHORTEST, pause


@given(st.floats(min_value=0, max_value=1e6))
def test_pauses_have_bounds(waited: float) -> None:
    assert SHORTEST <= pause(waited) <= LONGEST


@given(st.floats(min_value=0.01, max_value=100))
def test_who_sleeps_is_late_by_little_of_what_was_waited_for(waited: float) -> None:
    assert pause(waited) <= 0.05 * waited


def test_looks_are_few_while_nothing_comes() -> None:
    waited, looks = 0.0, 0
    while waited < 10:
        waited += pause(waited)
        looks += 1
    assert looks * 10e-6 < 0.002 * waited
