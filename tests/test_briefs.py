"""What came of steps, as numbers: nothing is lost on the way, and whatever is known of a step last counts."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ezpyp.model.outcomes import Brief, Outcome, Place, Status
from ezpyp.schedule import briefs
from ezpyp.schedule.briefs import Outcomes, Plain, as_range, pack, seconds_of, steps_of, unpack
from ezpyp.storage.memory import MemoryStore
from ezpyp.storage.opening import Writer
from ezpyp.storage.packed import LARGE, PackedStore
from ezpyp.storage.protocol import Done

STEPS = 8
STEMS = [f"step{k}" for k in range(STEPS)]

numbers = st.integers(0, 2**31 - 1)
moments = st.floats(0, 1e12)
places = st.builds(Place, numbers, st.integers(0, 2**60), st.integers(0, 2**60), st.integers(0, 2**64 - 1))
many_briefs = st.lists(st.builds(Brief, numbers, numbers, numbers, moments, moments, places))


def packed(*several: Brief) -> bytes:
    return b"".join(pack(b.step, b.attempt, b.rank, b.place.segment, b.when, b.seconds, *b.place[1:]) for b in several)


@given(many_briefs)
def test_what_is_packed_is_unpacked(several: list[Brief]) -> None:
    data = packed(*several)
    assert list(unpack(data)) == several
    assert steps_of(data) == [b.step for b in several]
    assert seconds_of(data) == [b.seconds for b in several]
    assert len(data) == briefs.SIZE * len(several)


@given(st.lists(st.integers(0, 5)))
def test_a_range_is_what_it_stands_for(several: list[int]) -> None:
    assert list(as_range(several)) == several


def test_numbers_that_follow_each_other_are_a_range() -> None:
    assert as_range([4, 5, 6]) == range(4, 7)
    assert as_range([4, 6, 5, 7]) == [4, 6, 5, 7]


def added(store: MemoryStore, step: int, seconds: float, attempt: int) -> bytes:
    """Store a plain result, and the brief that says so."""
    done = Done(STEMS[step], STEMS[step], bytes(16), when=5.0, seconds=seconds, attempt=attempt, codec="pickle")
    place = store.add(done, [b"xyz"])
    return packed(Brief(step, attempt, 0, 5.0, seconds, place))


#: Reports one after another: of several steps that are done, or of one of which there is more to say.
reports = st.lists(
    st.lists(st.integers(0, STEPS - 1), min_size=1, unique=True) | st.integers(0, STEPS - 1).map(lambda k: (k,))
)


@given(reports)
def test_what_is_known_of_a_step_last_counts(reports: list[list[int] | tuple[int]]) -> None:
    store = MemoryStore()
    outcomes, expected = Outcomes(STEMS, store), dict[int, tuple[Status, float]]()
    for number, report in enumerate(reports, 1):
        if isinstance(report, tuple):
            outcomes.put(Outcome(step=report[0], status=Status.FAILED, seconds=number))
        else:
            assert list(outcomes.take(b"".join(added(store, k, number, number) for k in report))) == report
        status = Status.FAILED if isinstance(report, tuple) else Status.DONE
        expected |= dict.fromkeys(report, (status, float(number)))
    assert {k: (each.status, each.seconds) for k, each in outcomes.items()} == expected
    assert len(outcomes) == len(expected)
    assert [k in outcomes for k in range(STEPS)] == [k in expected for k in range(STEPS)]
    done = sorted(seconds for status, seconds in expected.values() if status is Status.DONE)
    assert sorted(outcomes.seconds(range(STEPS))) == done


def test_numbers_tell_of_a_step_what_its_record_says(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    store = PackedStore(tmp_path / "cache", Writer(1, "here", 0))
    outcomes = Outcomes(STEMS, store, ["elsewhere", "here"])
    when, fingerprint = 5.0, "00112233445566778899aabbccddeeff"
    for k, size in ((2, 3), (3, LARGE + 1)):
        done = Done(STEMS[k], STEMS[k], bytes.fromhex(fingerprint), when, 0.5, 2, "pickle", args="[1, 'ü']")
        place = store.add(done, [bytes(size)])
        outcomes.take(packed(Brief(k, 2, 1, when, 0.5, place)))
    store.flush()

    def plain(*steps: int, called: bool = False, stems: list[str] = STEMS) -> Plain:
        return outcomes.plain(steps, [stems[k] for k in steps], [called] * len(steps))

    read, another = outcomes[2], [f"another{k}" for k in range(STEPS)]
    known = (0.5,), (1,), ("here",), (2,), (read.location,)
    assert [[*map(tuple, plain(*steps))] for steps in ((2, 3, 4), (4, 3, 2))] == [
        [(0,), *known, (None,)],
        [(2,), *known, (None,)],
    ]
    assert plain(4, 3, 2, called=True).called == [(read.args, read.kwargs)]
    assert outcomes.plain(range(1, 4), STEMS[1:4], [True] * 3).at == [1]
    assert plain(2, called=True, stems=another).at == []  # another lies there
    outcomes.hear({2: ("[5]", "{}")})  # nothing is read then
    found = plain(2, called=True, stems=another)
    assert (found.called, found.locations) == ([("[5]", "{}")], [read.location.replace(STEMS[2], "another2")])
    outcomes.drop(2)
    assert plain(2).at == []
    outcomes.put(Outcome(step=2, status=Status.FAILED))
    assert plain(2).at == []


def test_so_many_arguments_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(briefs, "_MOST_CALLED", 2)
    (tmp_path / "cache").mkdir()
    store = PackedStore(tmp_path / "cache", Writer(0, "here", 0))
    outcomes, steps = Outcomes(STEMS, store, ["here"]), range(4)
    for k in steps:
        done = Done(STEMS[k], STEMS[k], k.to_bytes(16), 1.0, 0.5, 1, "pickle", args=f"[{k}]", kwargs="{}")
        place = store.add(done, [b"x"])
        outcomes.take(packed(Brief(k, 1, 0, 1.0, 0.5, place)))
        outcomes.hear({k: (f"[{k}, told]", "{}")})
    store.flush()
    found = outcomes.plain(steps, STEMS[:4], [True] * 4)
    assert [each and each[0] for each in found.called] == ["[0]", "[1]", "[2, told]", "[3, told]"]


def test_briefs_of_some_steps_travel_on() -> None:
    store = MemoryStore()
    outcomes = Outcomes(STEMS, store)
    data = [added(store, k, float(k), 1) for k in (2, 3, 5)]
    outcomes.take(b"".join(data))
    assert outcomes.packed([5, 4, 2]) == data[2] + data[0]
    assert outcomes.brief(3).seconds == 3
