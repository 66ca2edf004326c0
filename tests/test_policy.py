"""Decisions: what a user may write for retries and allowances, and how many steps travel together."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ezpyp.model.policy import LEAST_SECONDS, Allowance, Retry, depth, lot_size

# ----- retries


@pytest.mark.parametrize(
    ("written", "times"), [(None, 0), (False, 0), (True, 1), (0, 0), (3, 3), (Retry(times=2, delay=1.0), 2)]
)
def test_what_may_be_written_for_retry(written: Any, times: int) -> None:
    assert Retry.of(written).times == times


def test_a_retry_is_taken_as_it_is() -> None:
    retry = Retry(times=2, delay=1.0, causes=frozenset({"oom"}))
    assert Retry.of(retry) is retry


def test_a_negative_number_of_attempts_is_refused() -> None:
    with pytest.raises(ValueError, match=r"retry=-1: give the number of further attempts"):
        Retry.of(-1)


def test_there_are_as_many_attempts_as_said_and_one() -> None:
    retry = Retry(times=2)
    assert [retry.after("exception", attempt, 5.0) for attempt in (1, 2, 3)] == [5.0, 5.0, None]
    assert Retry().after("exception", 1, 5.0) is None


def test_the_delay_counts_from_the_failure() -> None:
    assert Retry(times=1, delay=2.5).after("signal", 1, 100.0) == 102.5


def test_only_named_causes_are_tried_again() -> None:
    retry = Retry(times=5, causes=frozenset({"oom", "lost"}))
    assert retry.after("oom", 1, 0.0) == 0.0
    assert retry.after("exception", 1, 0.0) is None


# ----- allowances


@pytest.mark.parametrize(
    ("written", "members", "allowed"),
    [
        (None, 10, 0),
        (False, 10, 0),
        (0, 10, 0),
        (True, 10, 10),
        (3, 10, 3),
        (1, 10, 1),  # a count
        (1.0, 10, 10),  # a share
        (0.01, 40_000, 400),
        (0.01, 99, 0),
        (0.1, 30, 3),
        (Allowance(share=0.5, number=7), 10, 7),
    ],
)
def test_what_may_be_written_for_allow_failure(written: Any, members: int, allowed: int) -> None:
    assert Allowance.of(written).of_members(members) == allowed


@pytest.mark.parametrize("written", [-1, -0.5, 1.5])
def test_an_allowance_that_means_nothing_is_refused(written: float) -> None:
    with pytest.raises(ValueError, match="give True, a share between 0 and 1, or a count"):
        Allowance.of(written)


@given(st.integers(1, 1000), st.integers(0, 1000))
def test_a_share_written_as_a_fraction_allows_the_numerator(members: int, some: int) -> None:
    """0.1 * 30 is a little more than 3 and 0.29 * 100 a little less than 29: neither may matter."""
    some = min(some, members)
    assert Allowance.of(some / members).of_members(members) == some


# ----- lots


def test_steps_of_known_duration_fill_a_lot() -> None:
    assert lot_size(0.001, 100_000, 10) == 50
    assert lot_size(0.01, 100_000, 10) == 5
    assert lot_size(1.0, 100_000, 10) == 1
    assert lot_size(0.0, 1_000_000, 1) == 512


def test_a_lot_leaves_enough_for_the_other_slots() -> None:
    assert lot_size(0.001, 40, 10) == 2
    assert lot_size(0.001, 5, 10) == 1


def test_very_short_steps_are_shared_out_at_once_as_far_as_a_lot_stays_short() -> None:
    assert lot_size(0.00001, 100, 2) == 50
    assert lot_size(0.0001, 41, 10) == 5
    assert lot_size(0.0001, 100, 2) == 25
    assert lot_size(0.00005, 100, 2) == 40


def test_no_lot_is_less_than_it_costs_where_there_is_more() -> None:
    assert lot_size(0.0, 41, 10) == 41
    assert lot_size(0.0, 60, 10) == 50
    assert lot_size(0.0001, 8, 10) == 5
    assert lot_size(0.001, 8, 10) == 1


def test_shares_that_are_handed_out_together_are_equal() -> None:
    assert lot_size(0.00001, 200, 2, together=200) == lot_size(0.00001, 100, 2, together=200) == 100
    assert lot_size(0.001, 50, 2, together=100) == lot_size(0.001, 50, 2)


def test_steps_of_unknown_duration_travel_alone_until_they_are_many() -> None:
    assert lot_size(None, 79, 10) == 1
    assert lot_size(None, 80, 10) == 4


@given(st.none() | st.floats(0, 1e6), st.integers(0, 10**6), st.integers(0, 10**5), st.integers(1, 512))
def test_a_lot_has_one_step_at_least_and_never_too_many(
    seconds: float | None, ready: int, slots: int, most: int
) -> None:
    size = lot_size(seconds, ready, slots, most=most)
    assert 1 <= size <= max(most, 4)
    assert size <= max(1, ready)
    if seconds is not None:  # each slot its share, but for what would not last as long as it takes to tell
        assert size <= max(1, -(-ready // max(1, slots))) or size * seconds <= LEAST_SECONDS


def test_a_slot_holds_two_lots_unless_steps_are_long_or_unknown() -> None:
    assert depth(0.001, 10, 10) == 2
    assert depth(0.25, 10, 10) == 2
    assert depth(5.0, 1000, 10) == 1
    assert depth(None, 100_000, 10) == 1


def test_what_is_done_at_once_waits_until_a_slot_has_nothing() -> None:
    assert depth(0.0, 99, 2) == 1
    assert depth(0.0, 100, 2) == 2
    assert depth(0.0001, 9, 2) == 1
    assert depth(0.0001, 10, 2) == 2
