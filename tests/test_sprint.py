"""Short steps that can do nothing but compute, run in one loop: what comes of them is as if each had been run alone."""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from time import monotonic
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ezpyp
from ezpyp import Pipeline, Status, as_pickle_step
from ezpyp.errors import StoreError
from ezpyp.model.fingerprints import identify
from ezpyp.model.outcomes import Outcome
from ezpyp.schedule.briefs import pack, unpack
from ezpyp.storage.filestore import FileStore
from ezpyp.storage.packed import PackedStore
from ezpyp.storage.protocol import Batch, Places
from ezpyp.work.lots import Lot, Task
from ezpyp.work.position import NO_FENCE, Position
from ezpyp.work.sprint import Sprint
from ezpyp.work.worker import LONG, Worker


def noop(k: int) -> int:
    return k


def picky(k: int, y: int = 1) -> Any:
    if k % 5 == 3:
        return 1 // (k - k)
    return [k] if k % 5 == 4 else k * y


def worker_of(folder: Path, function: Callable[..., Any], *columns: Any, store: Any = None, **constants: Any) -> Worker:
    """Who runs a family."""
    folder.mkdir(exist_ok=True)
    pipeline = Pipeline(folder, "sprint")
    as_pickle_step(pipeline)(function).map(*columns, **constants)
    pipeline.organize_steps()
    plan = pipeline._organised("looking")
    fingerprints = identify(plan).fingerprints
    return Worker(plan=plan, fingerprints=fingerprints, store=store or PackedStore(folder), folder=str(folder))


def ready(worker: Worker, lot: Lot, place: int = 0) -> Sprint | None:
    """The steps from there on, which are known to be short."""
    worker.kind(worker.plan.blocks[0].family).seconds = 0.0
    return Sprint.of(worker, lot, place)


def sprint(worker: Worker, place: int = 0, *, fence: int = NO_FENCE, until: float = math.inf) -> list[Any]:
    """What came of the steps from there on: of each its index and status."""
    lot, position = Lot(range(len(worker.plan.steps))), Position()
    position.reset(0)
    position.raise_fence(0, fence)
    found = ready(worker, lot, place)
    assert found is not None
    came = found.run(place, position.of(0), until)
    return [each for part in came for each in ([part] if isinstance(part, Outcome) else unpack(part))]


def is_taken(worker: Worker, lot: Lot) -> bool:
    """Whether the first step of a lot is run so."""
    found, position = ready(worker, lot), Position()
    position.reset(0)
    return found is not None and found.run(0, position.of(0), -math.inf) != []


def test_results_are_those_of_the_calls(tmp_path: Path) -> None:
    worker = worker_of(tmp_path / "cache", picky, range(3), y=2)
    came = sprint(worker)
    assert [brief.step for brief in came] == [0, 1, 2]
    worker.store.flush()
    for k, brief in enumerate(came):
        assert worker.upstream.value(k) == 2 * k
        record = worker.store.read(f"picky[{k}]", at=brief.place)
        assert record is not None
        assert record.fingerprint == worker.fingerprints[k]
        assert record.outcome.seconds == brief.seconds >= 0
        assert record.outcome.when == brief.when
    assert [brief.when for brief in came] == sorted(brief.when for brief in came)


def test_it_ends_at_the_fence_and_after_the_step_in_which_its_time_is_over(tmp_path: Path) -> None:
    worker = worker_of(tmp_path / "cache", noop, range(10))
    assert [each.step for each in sprint(worker, fence=4)] == [0, 1, 2, 3]
    assert sprint(worker, 4, fence=4) == []
    assert [each.step for each in sprint(worker, 4, until=monotonic())] == [4]


def test_where_a_step_is_at_is_told_before_the_fence_is_looked_at(tmp_path: Path) -> None:
    worker, position, began = worker_of(tmp_path / "cache", noop, range(10)), Position(), monotonic()
    position.reset(3)
    position.raise_fence(3, 4)
    found = ready(worker, Lot(range(10)))
    assert found is not None
    found.run(0, position.of(3), math.inf)
    number, since, _ = position.get(3)
    assert number == 4
    assert began <= since <= monotonic()


def test_a_step_that_raises_or_returns_something_else_ends_it(tmp_path: Path) -> None:
    worker = worker_of(tmp_path / "cache", picky, range(10))
    *done, failed = sprint(worker)
    assert [brief.step for brief in done] == [0, 1, 2]
    assert (failed.step, failed.status, failed.cause) == (3, Status.FAILED, "exception")
    assert failed.note == "ZeroDivisionError: integer division or modulo by zero"
    assert failed.traceback.count("File ") == 1
    assert [each.step for each in sprint(worker, 4)] == [4]
    assert [each.step for each in sprint(worker, 5)] == [5, 6, 7, 8]
    worker.store.flush()
    assert worker.upstream.value(4) == [4]
    records = worker.store.records().records
    assert {stem for stem, each in records.items() if each.outcome.status is Status.DONE} == {
        f"picky[{k}]" for k in (0, 1, 2, 4, 5, 6, 7)
    }


def test_what_cannot_be_stored_is_lost_and_said_to_be(tmp_path: Path) -> None:
    class Full(PackedStore):
        def add_all(self, batch: Batch) -> Places:
            raise StoreError("the disk is full")

    (tmp_path / "cache").mkdir()
    worker = worker_of(tmp_path / "cache", noop, range(3), store=Full(tmp_path / "cache"))
    came = sprint(worker)
    assert [(each.step, each.status, each.cause, each.note) for each in came] == [
        (k, Status.FAILED, "store", "the disk is full") for k in range(3)
    ]


def test_one_long_step_is_enough_to_be_careful(tmp_path: Path) -> None:
    worker = worker_of(tmp_path / "cache", noop, range(10))
    kind = worker.kind(worker.plan.blocks[0].family)
    sprint(worker, fence=3)
    assert kind.seconds > 0
    kind.seconds = 2 * LONG
    assert Sprint.of(worker, Lot(range(10)), 0) is None


def uses_a_module(k: int) -> float:
    return math.sqrt(k)


@pytest.mark.parametrize(
    ("function", "columns", "constants", "taken"),
    [
        (noop, [range(5)], {}, True),
        (noop, [["a", None, 1.5]], {}, True),
        (picky, [range(5), [1, 2, 3, 4, 5]], {}, True),
        (picky, [range(5)], {"y": 3}, True),
        (noop, [[(1, 2), (3, 4)]], {}, False),
        (picky, [range(5)], {"y": (1,)}, False),
        (noop, [[[1], [2]]], {}, False),
        (uses_a_module, [range(5)], {}, False),
    ],
)
def test_only_what_takes_plain_values_and_can_do_nothing_else_is_run_so(
    function: Any, columns: list[Any], constants: dict[str, Any], taken: bool, tmp_path: Path
) -> None:
    worker = worker_of(tmp_path / "cache", function, *columns, **constants)
    count = len(worker.plan.steps)
    assert is_taken(worker, Lot(range(count))) == taken
    assert is_taken(worker, Lot([*range(count - 2), count - 1])) == taken
    assert not is_taken(worker, Lot(range(count), {1: Task(1, 2)}))


def total(*values: int, times: int = 1) -> int:
    return sum(values) * times


def listed(*values: int) -> list[int]:
    return [*values]


def divided(value: int, by: int = 1) -> float:
    return value / (by - 2)


class Given:
    """Steps that are given the results of others: a family whose members each have one, and calls with names."""

    def __init__(self, folder: Path, function: Callable[..., Any] = total) -> None:
        folder.mkdir(exist_ok=True)
        pipeline = Pipeline(folder, "given")
        first = as_pickle_step(pipeline)(noop).map(range(1, 5))
        take = as_pickle_step(pipeline)(function)
        self.mapped = take.map(first)
        self.named = [take(a, b, name=f"pair{k}") for k, (a, b) in enumerate(pairwise(first))]
        pipeline.organize_steps()
        plan = pipeline._organised("looking")
        self.worker = Worker(
            plan=plan, fingerprints=identify(plan).fingerprints, store=PackedStore(folder), folder=str(folder)
        )
        self.worker.kind(self.mapped[0].family).seconds = 0.0

    def run(self, lot: Lot, place: int = 0) -> list[Any]:
        position = Position()
        position.reset(0)
        found = Sprint.of(self.worker, lot, place)
        if found is None:
            return []
        came = found.run(place, position.of(0), math.inf)
        return [each for part in came for each in ([part] if isinstance(part, Outcome) else unpack(part))]


def test_steps_that_are_given_results_are_run_so_as_far_as_these_are_at_hand(tmp_path: Path) -> None:
    given = Given(tmp_path / "cache")
    worker, steps = given.worker, range(4, 11)
    assert given.run(Lot(steps)) == []
    first = [each for k in range(4) for each in unpack(cast(bytes, worker.run(Task(k))))]
    worker.store.flush()
    elsewhere = Given(tmp_path / "cache")
    assert elsewhere.run(Lot(steps)) == []
    elsewhere.worker.upstream.tell(packed(first[:3]), {})
    came = elsewhere.run(Lot(steps))
    assert [each.step for each in came] == [4, 5, 6]
    elsewhere.worker.upstream.tell(packed(first), {})
    came += elsewhere.run(Lot(steps), 3)
    assert [each.step for each in came] == [*steps]
    elsewhere.worker.store.flush()
    assert [elsewhere.worker.upstream.plain(k) for k in steps] == [1, 2, 3, 4, 3, 5, 7]
    for k, texts in zip((5, 9), ("[2]", "[2, 3]"), strict=True):
        record = worker.store.read(worker.plan.stems[k], at=came[k - 4].place)
        assert record is not None
        assert (record.fingerprint, record.name) == (worker.fingerprints[k], worker.plan.steps[k].name)
        assert (record.outcome.args, record.outcome.kwargs) == (texts, "{}")


def test_a_step_that_fails_says_what_it_was_given(tmp_path: Path) -> None:
    given = Given(tmp_path / "cache", divided)
    for k in range(2):
        given.worker.run(Task(k))
    done, failed = given.run(Lot([5, 8]))
    assert done.step == 5
    assert (failed.step, failed.status, failed.args) == (8, Status.FAILED, "[1, 2]")
    assert failed.note == "ZeroDivisionError: division by zero"
    assert failed.traceback.count("File ") == 1


def test_results_that_are_no_plain_values_are_left_to_the_worker(tmp_path: Path) -> None:
    given = Given(tmp_path / "cache", listed)
    given.worker.run(Task(0))
    given.worker.run(Task(1))
    (came,) = given.run(Lot([4, 5]))
    assert came.step == 4
    with pytest.raises(LookupError):
        given.worker.upstream.plain(4)
    assert given.worker.upstream.value(4) == [1]


SCALE: Any = 2


def scaled(k: int) -> Any:
    return k * SCALE


def rescale(to: Any) -> None:
    global SCALE
    SCALE = to


def test_what_a_function_reads_is_looked_at_again_after_a_step_that_can_change_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{__name__}.SCALE", 2)
    worker = worker_of(tmp_path / "cache", scaled, range(5))
    assert is_taken(worker, Lot(range(5)))
    other = worker_of(tmp_path / "other", rescale, [[1]])
    alike = worker.kind(worker.plan.blocks[0].family)
    assert other.is_confined(alike)
    other.run(Task(0))
    assert not other.is_confined(alike)


def packed(briefs: Any) -> bytes:
    return b"".join(
        pack(k, attempt, rank, place.segment, when, seconds, place.offset, place.size, place.checksum)
        for k, attempt, rank, when, seconds, place in briefs
    )


def test_results_in_files_do_not_wait_for_others(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    worker = worker_of(tmp_path / "cache", noop, range(5), store=FileStore(tmp_path / "cache"))
    assert not is_taken(worker, Lot(range(5)))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=5)
@given(values=st.lists(st.integers(-30, 30), min_size=1, max_size=60, unique=True), y=st.integers(0, 3))
def test_a_run_comes_to_the_same_in_helpers_as_in_line(
    values: list[int], y: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    found = []
    for executor in ("helpers", "inline"):
        pipeline = Pipeline(tmp_path_factory.mktemp("cache"), "sprint", store="packed")
        steps = as_pickle_step(pipeline)(picky).map(values, y=y)
        chosen: dict[str, Any] = {"workers": 2} if executor == "helpers" else {"executor": "inline"}
        summary = pipeline.execute(raise_on_failure=False, **chosen)
        rows = [(row.name, row.args, row.kwargs, row.status, row.note, row.attempts) for row in summary.rows]
        found.append((rows, [step.result() for step in steps if step.get_status() is Status.DONE]))
    assert found[0] == found[1]


def combined(a: int, b: int, times: int = 1) -> int:
    return (a + b) * times % MODULUS


def inverse(a: int) -> float:
    return 1 / (a - 3)


def drawn(a: int) -> tuple[int, int]:
    return a, ezpyp.seed()


def first_of(pair: tuple[int, int], b: int) -> int:
    return pair[0] + b


MODULUS = 1_000_003


@pytest.mark.parametrize(
    ("store", "chosen"),
    [
        ("packed", {"workers": 2}),
        ("packed", {"executor": "inline"}),
        ("files", {"workers": 2}),
        ("memory", {"executor": "inline"}),
    ],
)
def test_layers_come_to_the_same_wherever_they_run(store: str, chosen: dict[str, Any], tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path / "cache", "layers", store=store)
    take = as_pickle_step(pipeline)(combined)
    first = [*as_pickle_step(pipeline)(noop).map(range(12))]
    named = [take(first[k], first[(5 * k + 1) % 12], name=f"named{k}") for k in range(12)]
    mapped = [*take.map(named, first, times=2)]
    pairs = [*as_pickle_step(pipeline)(drawn).map(mapped)]
    as_pickle_step(pipeline)(inverse).map(first)
    last = [as_pickle_step(pipeline)(first_of)(pair, b=k) for k, pair in enumerate(pairs)]
    summary = pipeline.execute(raise_on_failure=False, **chosen)
    values = [(k + (5 * k + 1) % 12) for k in range(12)]
    assert [step.result() for step in named] == values
    assert [step.result() for step in mapped] == [2 * (value + k) for k, value in enumerate(values)]
    assert [step.result() - k for k, step in enumerate(last)] == [step.result() for step in mapped]
    rows = {row.name: row for row in summary.rows}
    assert [(rows[f"named{k}"].args, rows[f"named{k}"].kwargs) for k in (0, 7)] == [("[0, 1]", "{}"), ("[7, 0]", "{}")]
    assert (rows["combined[1]"].args, rows["combined[1]"].kwargs) == ("[7, 1]", "{'times': 2}")
    assert (rows["inverse[3]"].args, rows["inverse[3]"].note) == ("[3]", "ZeroDivisionError: division by zero")
    assert summary.failures == {"inverse[3]": "ZeroDivisionError: division by zero"}
    # From the pipeline, the function and the place of what it is given among its arguments, whatever ran it.
    assert {pair.result()[1] for pair in pairs} == {592815521935745880}


def test_a_family_that_is_done_is_known_as_a_whole_when_it_is_run_again(tmp_path: Path) -> None:
    worker = worker_of(tmp_path / "cache", noop, range(3000))
    for place in range(0, 3000, 1024):
        sprint(worker, place)
    worker.store.flush()
    plan, prints = worker.plan, worker.fingerprints.packed
    records = PackedStore(tmp_path / "cache").records().records
    assert records.settled(prints, plan.stems) == b"\1" * 3000
    other = bytearray(prints)
    other[16 * 2500] ^= 1
    assert records.settled(bytes(other), plan.stems) == b"\1" * 2500 + b"\0" + b"\1" * 499
    extended = worker_of(tmp_path / "more", noop, range(3500))
    assert records.settled(extended.fingerprints.packed, extended.plan.stems) == b"\1" * 3000 + b"\0" * 500
    moved = worker_of(tmp_path / "moved", noop, range(1, 3001))
    assert records.settled(moved.fingerprints.packed, moved.plan.stems) == bytes(3000)
    store = PackedStore(tmp_path / "cache")
    store.begin()
    store.drop("noop[17]")
    number = array("d", [0.0])
    store.add_all(Batch("noop", 2000, prints[16 * 2000 : 16 * 2001], number, number, "pickle", [b"x"]))
    store.add_all(Batch("noop", 2001, bytes(16), number, number, "pickle", [b"x"]))
    store.flush()
    known = [*store.records().records.settled(prints, plan.stems)]
    assert [k for k, each in enumerate(known) if not each] == [17, 2001]
