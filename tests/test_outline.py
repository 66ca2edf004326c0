"""Values as one line."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ezpyp.identity.outline import describe, shorten

numbers = st.one_of(st.integers(), st.floats(), st.booleans(), st.none(), st.complex_numbers())


@given(st.lists(numbers, max_size=12))
def test_numbers_are_described_as_they_are_in_a_list(values: list[object]) -> None:
    args, kwargs = describe(values, {})
    assert (args, kwargs) == (shorten(values), "{}")
    assert len(args) <= 60


def test_what_is_no_number_is_shortened() -> None:
    assert describe(["a" * 100], {"k": 1}) == (f"['{'a' * 57}…", "{'k': 1}")
