"""The ledger by example. Steps are numbers; `graph({2: [0, 1]}, 3)` has three, and 2 waits for 0 and 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from ezpyp.model.edges import Edges
from ezpyp.model.outcomes import Status
from ezpyp.model.plan import Graph
from ezpyp.model.policy import Retry
from ezpyp.schedule.ledger import Ledger

DONE, FAILED, SKIPPED, NOT_RUN = Status.DONE, Status.FAILED, Status.SKIPPED, Status.NOT_RUN


def graph(
    parents: dict[int, list[int]],
    total: int,
    *,
    groups: dict[int, int] | None = None,
    allowed: tuple[int, ...] = (),
    retries: dict[int, Retry] | None = None,
) -> Graph:
    """A graph from its edges; `groups` maps steps to their failure group."""
    phases: list[int] = []
    for k in range(total):
        phases.append(1 + max((phases[p] for p in parents.get(k, ())), default=-1))
    assert phases == sorted(phases), "number the steps by phase"
    return Graph(
        parents=Edges.of(parents.get(k, ()) for k in range(total)),
        phases=tuple(phases),
        groups=tuple((groups or {}).get(k, -1) for k in range(total)),
        allowed=allowed,
        retries=retries or {},
    )


#: 0 and 1 start; 2 needs 0; 3 needs 1 and 2; 4 needs 3.
DIAMOND = graph({2: [0], 3: [1, 2], 4: [3]}, 5)
#: A sweep of three that may lose one, gathered by 3, used by 4.
SWEEP = graph({3: [0, 1, 2], 4: [3]}, 5, groups={0: 0, 1: 0, 2: 0}, allowed=(1,))


def statuses(ledger: Ledger) -> list[int]:
    return list(ledger.statuses())


def resume(ledger: Ledger, done: Mapping[int, tuple[int, ...]]) -> None:
    """Start from these results, each with what was absent when it was made."""
    ledger.resume(bytes(DONE if k in done else 0xFF for k in range(ledger.total)), done)


def run(ledger: Ledger, fates: dict[int, Status]) -> list[int]:
    """Carry out all that can be; steps without a fate are done. Returns the steps in the order taken."""
    order = []
    while taken := ledger.take(1):
        order += taken
        ledger.settle(taken[0], fates.get(taken[0], DONE))
    return order


# ----- what failed before


def test_what_failed_before_may_be_left_at_that() -> None:
    ledger = Ledger(DIAMOND)
    resume(ledger, {0: ()})
    found = ledger.keep_failed([1])
    assert found.changes == ((3, SKIPPED), (4, SKIPPED))
    assert run(ledger, {}) == [2]
    assert statuses(ledger) == [DONE, FAILED, DONE, SKIPPED, SKIPPED]
    assert ledger.finished
    assert ledger.blame == {3: 1, 4: 1}


def test_it_counts_for_its_group() -> None:
    ledger = Ledger(SWEEP)
    resume(ledger, {})
    ledger.keep_failed([1])
    assert run(ledger, {}) == [0, 2, 3, 4]
    assert ledger.missing(3) == (1,)
    assert (ledger.failed, ledger.allowed) == (1, 1)
    ledger = Ledger(SWEEP)
    resume(ledger, {})
    ledger.keep_failed([0, 1])
    assert run(ledger, {}) == [2]
    assert statuses(ledger) == [FAILED, FAILED, DONE, SKIPPED, SKIPPED]


def test_what_waits_for_a_step_that_is_made_anew_is_tried_again() -> None:
    ledger = Ledger(DIAMOND)
    resume(ledger, {})
    ledger.keep_failed([2])
    assert run(ledger, {}) == [0, 1, 2, 3, 4]


# ----- ready and done


def test_a_fresh_ledger_has_the_steps_without_parents_ready() -> None:
    ledger = Ledger(DIAMOND)
    assert (ledger.total, ledger.ready, ledger.running, ledger.not_run) == (5, 2, 0, 5)
    assert statuses(ledger) == [-1] * 5
    assert not ledger.finished


def test_a_step_is_ready_when_its_last_parent_is_done() -> None:
    ledger = Ledger(DIAMOND)
    assert ledger.take(9) == [0, 1]
    ledger.settle(1, DONE)
    assert ledger.take(9) == []
    ledger.settle(0, DONE)
    assert ledger.take(9) == [2]
    ledger.settle(2, DONE)
    assert ledger.take(9) == [3]
    assert (ledger.done, ledger.running, ledger.not_run) == (3, 1, 2)


def test_smaller_indices_come_first_even_if_they_are_ready_later() -> None:
    ledger = Ledger(graph({4: [0], 5: [1], 6: [2], 7: [3]}, 8))
    assert ledger.take(4) == [0, 1, 2, 3]
    ledger.settle(3, DONE)
    assert ledger.take(1) == [7]
    for k in (2, 0, 1):
        ledger.settle(k, DONE)
    assert ledger.take(2) == [4, 5]
    assert ledger.take(2) == [6]


def test_take_hands_out_no_step_twice_and_no_more_than_asked() -> None:
    ledger = Ledger(graph({}, 100))
    taken = [k for count in (1, 0, 7, 64, 100, 5) for k in ledger.take(count)]
    assert taken == list(range(100))
    assert (ledger.ready, ledger.running) == (0, 100)


def test_what_is_given_back_is_ready_again_and_counts_no_attempt() -> None:
    ledger = Ledger(graph({}, 6))
    assert ledger.take(5) == [0, 1, 2, 3, 4]
    ledger.give_back([3, 1])
    assert (ledger.ready, ledger.running) == (3, 3)
    assert ledger.take(9) == [1, 3, 5]
    ledger.settle(1, DONE)
    assert not ledger.failures


def test_a_finished_run() -> None:
    ledger = Ledger(DIAMOND)
    assert run(ledger, {}) == [0, 1, 2, 3, 4]
    assert ledger.finished
    assert statuses(ledger) == [0] * 5
    assert not ledger.failures


def test_an_outcome_for_a_step_that_is_not_running_is_refused() -> None:
    ledger = Ledger(DIAMOND)
    with pytest.raises(AssertionError, match="step 0, which is not running"):
        ledger.settle(0, DONE)
    ledger.take(1)
    ledger.settle(0, DONE)
    with pytest.raises(AssertionError, match="step 0"):
        ledger.settle(0, DONE)
    with pytest.raises(AssertionError, match="step 1"):
        ledger.give_back([1])


# ----- phases as walls


def test_with_phases_as_walls_a_later_phase_waits_for_all_of_an_earlier_one() -> None:
    ledger = Ledger(DIAMOND, schedule="phase")
    assert ledger.take(9) == [0, 1]
    ledger.settle(0, DONE)
    assert ledger.ready == 1
    assert ledger.take(9) == []
    ledger.settle(1, DONE)
    assert ledger.take(9) == [2]


def test_a_delayed_step_holds_the_wall() -> None:
    ledger = Ledger(graph({2: [0]}, 3, retries={1: Retry(times=1, delay=5)}), schedule="phase")
    assert ledger.take(9) == [0, 1]
    ledger.settle(0, DONE)
    ledger.settle(1, FAILED, now=0.0)
    assert ledger.take(9, 4.9) == []
    assert ledger.take(9, 5.0) == [1]
    ledger.settle(1, DONE)
    assert ledger.take(9) == [2]


def test_a_step_that_waits_for_a_group_in_a_later_phase_does_not_hold_the_wall() -> None:
    # 3 needs 0, whose group also has 4 of phase 2.
    two_phase_group = graph({2: [1], 3: [0], 4: [2]}, 5, groups={0: 0, 4: 0}, allowed=(1,))
    for schedule in ("ready", "phase"):
        ledger = Ledger(two_phase_group, schedule=schedule)
        run(ledger, {0: FAILED})
        assert ledger.finished
        assert statuses(ledger) == [1, 0, 0, 0, 0]


def test_what_is_given_back_waits_for_a_phase_that_opened_again() -> None:
    # 3 (phase 1) waits for the group of 0 and 4 (phase 2).
    late = graph({2: [1], 3: [0], 4: [2], 5: [2]}, 6, groups={0: 0, 4: 0}, allowed=(1,))
    ledger = Ledger(late, schedule="phase")
    ledger.take(2)
    ledger.settle(0, FAILED)
    ledger.settle(1, DONE)
    assert ledger.take(9) == [2]
    ledger.settle(2, DONE)
    assert ledger.take(9) == [4, 5]
    ledger.settle(4, DONE)
    ledger.give_back([5])
    assert ledger.take(9) == [3]


# ----- failures


def test_a_failure_skips_its_descendants_and_only_them() -> None:
    ledger = Ledger(DIAMOND)
    ledger.take(2)
    settled = ledger.settle(1, FAILED)
    assert settled.changes == ((3, SKIPPED), (4, SKIPPED))
    assert not settled.retry
    assert ledger.blame == {3: 1, 4: 1}
    ledger.settle(0, DONE)
    assert ledger.take(9) == [2]
    ledger.settle(2, DONE)
    assert ledger.finished
    assert statuses(ledger) == [0, 1, 0, 2, 2]
    assert (ledger.done, ledger.failed, ledger.skipped, ledger.not_run) == (2, 1, 2, 0)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 2, 0]])
def test_the_blame_does_not_depend_on_which_failure_came_first(order: list[int]) -> None:
    # 4 needs 1 and 2, 5 needs 3 and 4.
    ledger = Ledger(graph({3: [0], 4: [1, 2], 5: [3, 4]}, 6))
    ledger.take(3)
    for k in order:
        ledger.settle(k, FAILED)
    assert ledger.blame == {3: 0, 4: 1, 5: 0}


def test_a_blame_that_moves_is_reported() -> None:
    ledger = Ledger(graph({3: [0, 1], 4: [3], 5: [2, 4]}, 6))
    ledger.take(3)
    assert ledger.settle(2, FAILED).changes == ((5, SKIPPED),)
    moved = ledger.settle(1, FAILED)
    assert (moved.changes, moved.reblamed) == (((3, SKIPPED), (4, SKIPPED)), (5,))
    again = ledger.settle(0, FAILED)
    assert (again.changes, again.reblamed) == ((), (3, 4, 5))
    assert set(ledger.blame.values()) == {0}


def test_a_long_line_of_descendants_is_skipped_without_recursion() -> None:
    total = 50_000
    ledger = Ledger(graph({k: [k - 1] for k in range(1, total)}, total))
    ledger.take(1)
    assert len(ledger.settle(0, FAILED).changes) == total - 1
    assert ledger.blame[total - 1] == 0


# ----- many at once


def test_steps_settled_together_release_what_waits_for_all_of_them() -> None:
    ledger = Ledger(graph({4: [0, 1], 5: [2], 6: [2, 3]}, 7))
    ledger.take(4)
    ledger.settle_done(range(3))
    assert (ledger.done, ledger.running, ledger.take(9)) == (3, 1, [4, 5])
    ledger.settle_done([5, 3])
    assert ledger.take(9) == [6]
    ledger.settle_done([6, 4])
    assert ledger.finished
    assert statuses(ledger) == [0] * 7


@pytest.mark.parametrize("indices", [range(3), [2, 1]])
def test_what_does_not_run_cannot_be_settled(indices: Sequence[int]) -> None:
    ledger = Ledger(graph({}, 3))
    ledger.take(2)
    with pytest.raises(AssertionError, match="running"):
        ledger.settle_done(indices)


def test_settled_together_members_of_a_group_release_its_descendants_once() -> None:
    ledger = Ledger(SWEEP)
    ledger.take(3)
    ledger.settle(1, FAILED)
    assert ledger.settle_done([2, 0]).changes == ()
    assert ledger.take(9) == [3]
    assert ledger.missing(3) == (1,)


# ----- order


def test_the_order_decides_what_is_taken_first() -> None:
    ledger = Ledger(graph({5: [0], 6: [4]}, 7), order=[3, 4, 0, 1, 2, 6, 5])
    assert ledger.first() == 0
    assert ledger.take(3) == [3, 4, 0]
    ledger.settle_done([0, 4])
    assert ledger.take(1) == [1]
    assert ledger.take(9) == [2, 6, 5]


def test_in_the_order_too_phases_are_walls() -> None:
    ledger = Ledger(graph({3: [0], 4: [1]}, 5), schedule="phase", order=[2, 1, 0, 4, 3])
    assert ledger.take(1) == [2]
    ledger.give_back([2])
    assert ledger.take(9) == [2, 1, 0]
    ledger.settle_done([0, 1])
    assert (ledger.first(), ledger.take(9)) == (None, [])
    ledger.settle_done([2])
    assert ledger.take(9) == [4, 3]


# ----- retries


def test_a_failure_with_attempts_left_is_tried_again() -> None:
    ledger = Ledger(graph({1: [0]}, 2, retries={0: Retry(times=2)}))
    for attempt in (1, 2):
        assert ledger.take(1) == [0]
        assert ledger.settle(0, FAILED, "exception").retry
        assert ledger.failures[0] == attempt
        assert (ledger.ready, ledger.failed) == (1, 0)
    ledger.take(1)
    assert not ledger.settle(0, FAILED, "exception").retry
    assert statuses(ledger) == [1, 2]
    assert ledger.failures[0] == 3


def test_a_retry_waits_for_its_time() -> None:
    ledger = Ledger(graph({}, 3, retries={k: Retry(times=1, delay=10.0) for k in (0, 1)}))
    ledger.take(3, 100.0)
    ledger.settle(2, DONE)
    ledger.settle(1, FAILED, "signal", 101.0)
    ledger.settle(0, FAILED, "signal", 102.0)
    assert (ledger.ready, ledger.delayed, ledger.finished) == (0, 2, False)
    assert ledger.next_wake() == 111.0
    assert ledger.take(9, 110.9) == []
    assert ledger.take(9, 111.0) == [1]
    assert ledger.next_wake() == 112.0
    assert ledger.take(9, 200.0) == [0]
    assert ledger.next_wake() is None


def test_only_the_causes_that_were_named_are_tried_again() -> None:
    ledger = Ledger(graph({}, 1, retries={0: Retry(times=9, causes=frozenset({"oom"}))}))
    ledger.take(1)
    assert ledger.settle(0, FAILED, "oom").retry
    ledger.take(1)
    assert not ledger.settle(0, FAILED, "exception").retry


# ----- interruption and stop


def test_an_interrupted_step_is_not_run_and_neither_is_what_depends_on_it() -> None:
    ledger = Ledger(DIAMOND)
    ledger.take(2)
    assert ledger.settle(0, NOT_RUN).changes == ()
    ledger.settle(1, DONE)
    assert ledger.finished
    assert statuses(ledger) == [-1, 0, -1, -1, -1]
    assert (ledger.not_run, ledger.failures[0]) == (4, 0)


def test_a_failure_skips_also_what_an_interruption_holds_up() -> None:
    for order in ([0, 1], [1, 0]):
        ledger = Ledger(graph({2: [0, 1]}, 3))
        ledger.take(2)
        for k in order:
            ledger.settle(k, NOT_RUN if k == 0 else FAILED)
        assert statuses(ledger) == [-1, 1, 2]


def test_a_stopped_ledger_hands_out_nothing_and_still_takes_outcomes() -> None:
    ledger = Ledger(graph({3: [0], 4: [1]}, 5, retries={2: Retry(times=5, delay=1.0)}))
    ledger.take(2)
    ledger.stop()
    assert ledger.take(9) == []
    assert not ledger.finished
    ledger.settle(0, DONE)
    assert ledger.settle(1, FAILED).changes == ((4, SKIPPED),)
    assert ledger.finished
    assert ledger.take(9) == []
    assert statuses(ledger) == [0, 1, -1, -1, 2]


def test_nothing_is_tried_again_after_a_stop() -> None:
    ledger = Ledger(graph({}, 2, retries={k: Retry(times=5, delay=1.0) for k in (0, 1)}))
    ledger.take(2)
    ledger.settle(0, FAILED, now=0.0)
    ledger.stop()
    assert ledger.next_wake() is None
    assert not ledger.settle(1, FAILED, now=0.0).retry
    assert ledger.finished
    assert statuses(ledger) == [-1, 1]


# ----- groups that may lose some


def test_allowed_failures_arrive_as_missing_once_the_group_has_settled() -> None:
    ledger = Ledger(SWEEP)
    ledger.take(3)
    ledger.settle(1, FAILED)
    ledger.settle(0, DONE)
    assert (ledger.take(9), ledger.is_allowed(1)) == ([], False)
    ledger.settle(2, DONE)
    assert ledger.is_allowed(1)
    assert ledger.take(9) == [3]
    assert (ledger.missing(3), ledger.absent(3)) == ((1,), (1,))
    ledger.settle(3, DONE)
    assert (ledger.missing(4), ledger.absent(4)) == ((), (1,))
    assert (ledger.failed, ledger.allowed) == (1, 1)


def test_one_failure_too_many_skips_what_depends_on_any_of_them() -> None:
    ledger = Ledger(SWEEP)
    ledger.take(3)
    assert ledger.settle(2, FAILED).changes == ()
    assert ledger.settle(0, FAILED).changes == ()
    assert ledger.settle(1, DONE).changes == ((3, SKIPPED), (4, SKIPPED))
    assert ledger.blame == {3: 0, 4: 0}
    assert (ledger.finished, ledger.allowed, ledger.is_allowed(0)) == (True, 0, False)


def test_skipped_members_count_against_the_allowance() -> None:
    # 1 and 2 are the group; 2 is skipped because 0 failed.
    ledger = Ledger(graph({2: [0], 3: [1, 2]}, 4, groups={1: 0, 2: 0}, allowed=(1,)))
    assert run(ledger, {0: FAILED}) == [0, 1, 3]
    assert ledger.missing(3) == (2,)
    assert ledger.is_allowed(2)
    assert (ledger.allowed, ledger.failed, ledger.skipped) == (0, 1, 1)


def test_blame_moves_on_below_a_group_that_lost_too_many() -> None:
    # 2 fails, and 3 is skipped: one more than may. 3 is to blame on 1 first, and on 0 in the end.
    ledger = Ledger(graph({3: [0, 1], 4: [3]}, 5, groups={2: 0, 3: 0}, allowed=(1,)))
    ledger.take(3)
    ledger.settle(1, FAILED)
    ledger.settle(2, FAILED)
    assert (ledger.is_allowed(3), ledger.blame) == (False, {3: 1, 4: 1})
    assert ledger.settle(0, FAILED).reblamed == (3, 4)
    assert ledger.blame == {3: 0, 4: 0}


def test_a_single_step_that_may_fail() -> None:
    ledger = Ledger(graph({1: [0]}, 2, groups={0: 0}, allowed=(1,)))
    ledger.take(1)
    assert ledger.settle(0, FAILED).changes == ()
    assert (ledger.is_allowed(0), ledger.take(1), ledger.missing(1)) == (True, [1], (0,))


def test_a_step_with_another_failed_parent_does_not_wait_for_the_group() -> None:
    ledger = Ledger(graph({3: [0, 2]}, 4, groups={0: 0, 1: 0}, allowed=(1,)))
    ledger.take(3)
    ledger.settle(0, FAILED)
    assert ledger.settle(2, FAILED).changes == ((3, SKIPPED),)
    assert ledger.blame == {3: 2}


def test_a_retry_keeps_its_group_open() -> None:
    ledger = Ledger(graph({1: [0]}, 2, groups={0: 0}, allowed=(1,), retries={0: Retry(times=1)}))
    ledger.take(1)
    assert ledger.settle(0, FAILED).retry
    assert not ledger.is_allowed(0)
    ledger.take(1)
    ledger.settle(0, DONE)
    assert (ledger.take(1), ledger.missing(1)) == ([1], ())


def test_a_group_that_waits_for_itself_is_decided_as_it_stands() -> None:
    # 0 and 2 are the group, and 2 depends on 1, which depends on 0.
    ledger = Ledger(graph({1: [0], 2: [1]}, 3, groups={0: 0, 2: 0}, allowed=(1,)))
    assert run(ledger, {0: FAILED}) == [0, 1, 2]
    assert ledger.finished
    assert (statuses(ledger), ledger.missing(1)) == ([1, 0, 0], (0,))


def test_an_interrupted_member_leaves_its_group_undecided() -> None:
    ledger = Ledger(SWEEP)
    ledger.take(3)
    ledger.settle(0, FAILED)
    ledger.settle(1, NOT_RUN)
    ledger.settle(2, DONE)
    assert ledger.finished
    assert statuses(ledger) == [1, -1, 0, -1, -1]


def test_a_moved_blame_does_not_release_twice_what_an_allowance_released() -> None:
    # 3 may be skipped, and is because 1 failed; 4 needs 2 and 3. Then 0 fails too, and 2 still runs.
    ledger = Ledger(graph({3: [0, 1], 4: [2, 3]}, 5, groups={3: 0}, allowed=(1,)))
    ledger.take(3)
    assert ledger.settle(1, FAILED).changes == ((3, SKIPPED),)
    assert ledger.settle(0, FAILED).reblamed == (3,)
    assert ledger.take(9) == []
    ledger.settle(2, DONE)
    assert (ledger.take(9), ledger.missing(4)) == ([4], (3,))


def test_a_missing_input_hides_what_was_absent_from_it() -> None:
    # 0 may fail and 2 may fail: 2 ran without 0, and 3 runs without 2.
    optional = graph({1: [0], 2: [1]}, 3, groups={0: 0, 1: 1}, allowed=(1, 1))
    ledger = Ledger(optional)
    assert run(ledger, {0: FAILED, 1: FAILED}) == [0, 1, 2]
    assert (ledger.absent(1), ledger.absent(2)) == ((0,), (1,))


def test_what_is_absent_adds_up() -> None:
    ledger = Ledger(graph({2: [0], 3: [1, 2], 4: [2, 3]}, 5, groups={0: 0, 1: 0}, allowed=(2,)))
    run(ledger, {0: FAILED, 1: FAILED})
    assert [ledger.absent(k) for k in (2, 3, 4)] == [(0,), (0, 1), (0, 1)]
    assert [ledger.missing(k) for k in (2, 3, 4)] == [(0,), (1,), ()]


def test_an_interruption_elsewhere_in_the_group_keeps_its_children_waiting() -> None:
    ledger = Ledger(graph({2: [0]}, 3, groups={0: 0, 1: 0}, allowed=(1,)))
    ledger.take(2)
    ledger.settle(1, NOT_RUN)
    ledger.settle(0, FAILED)
    assert ledger.finished
    assert (ledger.status(2), ledger.is_allowed(0)) == (NOT_RUN, False)


# ----- resuming


def test_resume_runs_only_what_is_missing() -> None:
    ledger = Ledger(DIAMOND)
    resume(ledger, {0: (), 1: (), 2: ()})
    assert (ledger.cached, ledger.done, ledger.ready) == (3, 3, 1)
    assert run(ledger, {}) == [3, 4]


def test_resume_with_everything_done_is_finished() -> None:
    ledger = Ledger(SWEEP)
    resume(ledger, dict.fromkeys(range(5), ()))
    assert ledger.finished
    assert (ledger.cached, ledger.take(9)) == (5, [])


def test_a_result_stays_when_a_parent_has_none() -> None:
    ledger = Ledger(DIAMOND)
    resume(ledger, {1: (), 2: (), 3: (), 4: ()})
    assert run(ledger, {0: FAILED}) == [0]
    assert statuses(ledger) == [1, 0, 0, 0, 0]
    assert ledger.finished


def test_a_result_made_without_an_input_stays_if_the_same_is_missing_again() -> None:
    ledger = Ledger(SWEEP)
    resume(ledger, {0: (), 2: (), 3: (1,), 4: (1,)})
    assert (ledger.cached, ledger.status(3)) == (2, NOT_RUN)
    assert ledger.take(9) == [1]
    assert ledger.settle(1, FAILED).changes == ((3, DONE), (4, DONE))
    assert ledger.finished
    assert (ledger.cached, ledger.done, ledger.allowed) == (4, 4, 1)
    assert (ledger.missing(3), ledger.absent(4)) == ((1,), (1,))


def test_a_result_made_without_an_input_is_made_anew_when_the_input_came() -> None:
    ledger = Ledger(SWEEP)
    resume(ledger, {0: (), 2: (), 3: (1,), 4: (1,)})
    assert run(ledger, {}) == [1, 3, 4]
    assert (ledger.cached, ledger.missing(3), ledger.absent(4)) == (2, (), ())


def test_a_result_below_is_made_anew_also_if_the_run_between_was_killed() -> None:
    # The run before made 3 anew with everything there, and ended before 4.
    ledger = Ledger(SWEEP)
    resume(ledger, {0: (), 1: (), 2: (), 3: (), 4: (1,)})
    assert run(ledger, {}) == [4]


def test_a_held_result_is_skipped_when_too_many_fail_now() -> None:
    ledger = Ledger(SWEEP)
    resume(ledger, {0: (), 3: (1,), 4: (1,)})
    run(ledger, {1: FAILED, 2: FAILED})
    assert statuses(ledger) == [0, 1, 1, 2, 2]
    assert ledger.blame == {3: 1, 4: 1}


def test_a_held_result_below_a_step_without_one() -> None:
    ledger = Ledger(SWEEP)
    resume(ledger, {0: (), 2: (), 4: (1,)})
    assert run(ledger, {1: FAILED}) == [1, 3]
    assert ledger.finished
    assert statuses(ledger) == [0, 1, 0, 0, 0]


def test_results_of_earlier_runs_count_as_settled_members() -> None:
    ledger = Ledger(graph({3: [0], 4: [2]}, 5, groups={0: 0, 1: 0}, allowed=(1,)))
    resume(ledger, {1: ()})
    assert ledger.take(9) == [0, 2]
    ledger.settle(0, FAILED)
    assert ledger.take(9) == [3]


def test_members_that_were_not_asked_for_are_not_waited_for() -> None:
    ledger = Ledger(SWEEP)
    ledger.leave_out([2, 3, 4])
    assert run(ledger, {1: FAILED}) == [0, 1]
    assert (ledger.failed, ledger.allowed) == (1, 1)


def test_a_result_made_with_all_inputs_is_made_anew_below_one_that_stays_without() -> None:
    """Else 4 would tell of an input that 3, which the user reads beside it, does not know."""
    ledger = Ledger(SWEEP)
    resume(ledger, {0: (), 2: (), 3: (1,), 4: ()})
    assert run(ledger, {1: FAILED}) == [1, 4]
    assert ledger.absent(4) == (1,)


def test_a_result_made_with_all_inputs_stays_below_one_that_is_made_anew_with_them() -> None:
    unbounded = graph({3: [0, 1, 2], 4: [3]}, 5)
    for each in (SWEEP, unbounded):
        ledger = Ledger(each)
        resume(ledger, {0: (), 2: (), 3: (1,), 4: ()})
        assert run(ledger, {}) == [1, 3]
        assert ledger.cached == 3


def test_resume_comes_before_the_first_step() -> None:
    ledger = Ledger(DIAMOND)
    ledger.take(1)
    with pytest.raises(AssertionError, match="before take"):
        resume(ledger, {})
