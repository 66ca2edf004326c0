"""Packed results: what a kill, a full disk, a spoilt file or a slow file system may not do, and which record counts."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import tracemalloc
from array import array
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ezpyp.errors import StoreError
from ezpyp.model.outcomes import Outcome, Place, Status
from ezpyp.storage import appender, index, packed, patience, reading, segment
from ezpyp.storage.index import STEP
from ezpyp.storage.opening import Record
from ezpyp.storage.packed import PackedStore
from ezpyp.storage.protocol import Batch, Done, Writer
from ezpyp.system import files
from tests.conftest import CHECKOUT, Launcher
from tests.faults import Calls, Died, watch

PRINT = "0123456789abcdef" * 2


def record(name: str = "alpha", *, status: Status = Status.DONE, **more: Any) -> Record:
    outcome = Outcome(step=7, status=status, **{"codec": "pickle" if status is Status.DONE else "", **more})
    return Record(name=name, fingerprint=PRINT, outcome=outcome)


def add(store: PackedStore, stem: str, data: bytes, *, attempt: int = 1, when: float = 0.0) -> Place:
    return store.add(
        Done(stem, stem, bytes.fromhex(PRINT), when=when, seconds=0.5, attempt=attempt, codec="pickle"), [data]
    )


def contents(folder: Path) -> dict[str, bytes]:
    """What somebody finds who comes anew."""
    store = PackedStore(folder)
    scan = store.records()
    return {stem: bytes(store.get(found)) for stem, found in scan.records.items() if found.outcome.codec}


def segment_of(folder: Path) -> Path:
    (found,) = (folder / "store").glob("*.seg")
    return found


@pytest.fixture
def store(tmp_path: Path) -> PackedStore:
    return PackedStore(tmp_path)


@pytest.mark.parametrize("shared", [False, True])
def test_new_names_survive_a_power_failure_once_they_are_asked_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    """Where other hosts look for them they do at once. Elsewhere nobody waits for it who begins a step."""
    synced: list[str] = []
    monkeypatch.setattr(appender, "sync_folder", synced.append)
    both = [str(tmp_path / "store"), str(tmp_path)]
    for slot in range(2):
        store = PackedStore(tmp_path, Writer(slot=slot), shared=shared)
        store.begin()
        add(store, f"alpha{slot}", b"one")
        store.flush()
        assert synced == both * shared
        for _ in range(2):
            store.sync()
            assert synced == both
        synced.clear()


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """A folder with three results, one of them in place of a former one."""
    store = PackedStore(tmp_path / "three")
    for stem, data in (("a", b"old"), ("b", b"two"), ("a", b"one"), ("c", b"three")):
        add(store, stem, data)
        store.flush()
    return tmp_path / "three"


@pytest.fixture(autouse=True)
def folders(tmp_path: Path) -> None:
    (tmp_path / "three").mkdir()


# What lies where


def test_a_writer_has_two_files_however_often_it_comes(tmp_path: Path) -> None:
    for turn in range(5):
        for slot in (-1, 0, 1):
            store = PackedStore(tmp_path, Writer(rank=3, host=f"n{turn}", slot=slot))
            store.begin(turn + 1)
            add(store, f"s{turn}-{slot}", b"x")
            store.sync()
    names = sorted(path.name for path in (tmp_path / "store").iterdir())
    assert names == ["0003.00.idx", "0003.00.seg", "0003.01.idx", "0003.01.seg", "0003.idx", "0003.seg"]
    hosts = {found.outcome.host for found in PackedStore(tmp_path).records().records.values()}
    assert hosts == {f"n{turn}" for turn in range(5)}
    assert len(contents(tmp_path)) == 15


def test_who_only_reads_writes_nothing(tmp_path: Path, store: PackedStore) -> None:
    store.begin()
    assert store.read("a") is None
    assert not store.records().records
    store.flush()
    store.sync()
    assert not (tmp_path / "store").exists()


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """As where its file system is gone: here its name leads to itself."""
    (tmp_path / "store").symlink_to("store")
    gone = PackedStore(tmp_path)
    with pytest.raises(StoreError, match=r"cannot be read \(Too many levels .*\)\. Look at its path"):
        gone.read("step")
    with pytest.raises(StoreError, match=r"cannot be read \(Too many levels .*\)\. Look at its path"):
        gone.records()


def test_a_path_says_segment_and_step(tmp_path: Path, store: PackedStore) -> None:
    assert store.put("alpha~1", record("alpha/1"), [b"x"]).location == "store/0000.seg#alpha~1"


def test_a_large_result_has_a_file_of_its_own(
    tmp_path: Path, store: PackedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "LARGE", 100)
    add(store, "alpha", b"former" * 30)
    outcome = store.put("beta", record("beta", codec="numpy"), [b"large" * 30])
    store.move("beta", "gamma")
    store.flush()
    assert contents(tmp_path) == {"alpha": b"former" * 30, "gamma": b"large" * 30}
    assert (tmp_path / outcome.location).read_bytes() == b"large" * 30
    assert outcome.location.endswith(".step.npy")
    assert [*store.records().records.settled(bytes.fromhex(PRINT * 2), ["alpha", "gamma"])] == [1, 1]
    store.drop("gamma", result_only=True)
    assert not (tmp_path / outcome.location).exists()
    (large,) = (tmp_path / "store").glob("*.step")
    large.write_bytes(b"cut")
    scan = PackedStore(tmp_path).records()
    assert {Path(each.path).name: each.what for each in scan.problems} == {
        large.name: "torn: 3 bytes where 'alpha' wrote 180"
    }
    assert set(scan.records) == {"gamma"}


def test_a_large_result_is_written_without_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "LARGE", 1 << 20)
    lent, store = memoryview(bytearray(random.Random(4).randbytes(1 << 23))), PackedStore(tmp_path)
    store.begin()
    done = Done("alpha", "alpha", bytes.fromhex(PRINT), when=0, seconds=0, attempt=1, codec="pickle")
    tracemalloc.start()
    try:
        place = store.add(done, [b"head", lent, lent[:3]])
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    store.flush()
    whole = b"head" + lent.tobytes() + lent[:3].tobytes()
    assert contents(tmp_path) == {"alpha": whole}
    assert place == Place(0, place.offset, len(whole), xxhash.xxh3_64_intdigest(whole))


def test_who_wrote_a_large_result_verifies_it_only_where_its_file_changed(
    tmp_path: Path, store: PackedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "LARGE", 100)
    monkeypatch.setattr(reading, "LARGE", 1)
    made = record()
    kept = store.put("alpha", made, [b"large" * 30])
    found = made._replace(outcome=kept)
    with monkeypatch.context() as patch:
        patch.setattr(reading, "verified", None)
        assert bytes(store.get(found)) == b"large" * 30
    (tmp_path / kept.location).write_bytes(b"Large" * 30)
    os.utime(tmp_path / kept.location, (1, 1))
    with pytest.raises(StoreError, match="checksum"):
        store.get(found)


def test_a_dropped_large_result_that_is_there_still_is_told(
    tmp_path: Path, store: PackedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "LARGE", 100)
    location = store.put("alpha", record(), [b"large" * 30]).location
    shutil.copy(tmp_path / location, tmp_path / "aside")
    store.drop("alpha", result_only=True)
    shutil.copy(tmp_path / "aside", tmp_path / location)
    assert PackedStore(tmp_path).records().leftovers == ("alpha",)


def test_more_segments_are_read_than_are_kept_open(tmp_path: Path) -> None:
    places = {}
    for rank in range(packed._OPEN + 10):
        store = PackedStore(tmp_path, Writer(rank=rank))
        store.begin(1)
        places[f"s{rank}"] = add(store, f"s{rank}", b"x")
        store.flush()
    reader = PackedStore(tmp_path)
    for _ in range(2):
        for stem, place in places.items():
            found = reader.read(stem, at=place)
            assert found is not None
            assert found.name == stem
            assert reader.get(found) == b"x"


# Which record counts


def writer(folder: Path, rank: int, turn: int) -> PackedStore:
    store = PackedStore(folder, Writer(rank=rank))
    store.begin(turn)
    return store


@pytest.mark.parametrize("ranks", [(0, 1), (1, 0)])
def test_the_later_run_counts_whatever_the_clocks_say(ranks: tuple[int, int], tmp_path: Path) -> None:
    for turn, rank in enumerate(ranks, 1):
        store = writer(tmp_path, rank, turn)
        add(store, "alpha", b"run %d" % turn, when=1e9 - turn, attempt=3 - turn)
        store.flush()
    assert contents(tmp_path) == {"alpha": b"run 2"}


@pytest.mark.parametrize("ranks", [(0, 1), (1, 0)])
def test_in_a_run_the_later_attempt_counts(ranks: tuple[int, int], tmp_path: Path) -> None:
    for attempt, rank in enumerate(ranks, 1):
        store = writer(tmp_path, rank, 1)
        add(store, "alpha", b"attempt %d" % attempt, attempt=attempt, when=1e9 - attempt)
        store.flush()
    assert contents(tmp_path) == {"alpha": b"attempt 2"}


def test_what_rank_0_makes_of_a_record_counts_more_than_the_record(tmp_path: Path) -> None:
    helper, root = writer(tmp_path, 5, 1), writer(tmp_path, 0, 1)
    for stem in ("alpha", "beta", "gamma"):
        add(helper, stem, stem.encode(), attempt=2, when=2e9)
    helper.flush()
    root.drop("alpha", result_only=True)
    root.drop("beta")
    root.move("gamma", "delta")
    root.flush()
    records = PackedStore(tmp_path).records().records
    assert set(records) == {"alpha", "delta"}
    assert records["alpha"].outcome.dropped
    assert PackedStore(tmp_path).get(records["delta"]) == b"gamma"


@pytest.mark.parametrize("attempt", [1, 3])
@pytest.mark.parametrize("ranks", [(0, 1), (1, 0)])
def test_what_a_run_cleared_away_gives_place_to_what_it_makes(
    ranks: tuple[int, int], attempt: int, tmp_path: Path
) -> None:
    former = writer(tmp_path, ranks[0], 1)
    for stem in ("alpha", "beta"):
        add(former, stem, b"former", attempt=attempt)
    former.flush()
    root, helper = writer(tmp_path, ranks[0], 2), writer(tmp_path, ranks[1], 2)
    root.move("alpha", "aside")
    root.drop("beta")
    root.flush()
    for stem in ("alpha", "beta"):
        add(helper, stem, b"new")
    helper.flush()
    assert contents(tmp_path) == {"alpha": b"new", "aside": b"former", "beta": b"new"}


def test_a_run_begins_after_all_that_there_is(tmp_path: Path) -> None:
    store = writer(tmp_path, 3, 41)
    add(store, "alpha", b"former")
    store.flush()
    root = PackedStore(tmp_path)
    assert root.begin() == 42
    assert PackedStore(tmp_path).begin() == 42


def test_a_turn_comes_after_what_was_written_since_the_scan(tmp_path: Path, store: PackedStore) -> None:
    add(store, "alpha", b"one")
    store.flush()
    root = PackedStore(tmp_path)
    scan = root.records()
    after = root.begin()
    other = PackedStore(tmp_path, Writer(rank=3))
    other.begin(after + 5)
    add(other, "beta", b"two")
    other.flush()
    assert root.begin() == after + 6
    assert len(scan.records) == 1


Stems = st.sampled_from(["a", "b", "c"])
Acts = st.one_of(
    st.tuples(st.just("add"), Stems, st.binary(max_size=8)),
    st.tuples(st.just("fail"), Stems, st.just(b"")),
    st.tuples(st.just("move"), Stems, Stems),
    st.tuples(st.just("drop"), Stems, st.just(b"")),
    st.tuples(st.just("turn"), st.just(""), st.just(b"")),
    st.tuples(st.just("look"), Stems, st.just(b"")),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(acts=st.lists(st.tuples(st.integers(0, 1), Acts), max_size=25))
def test_any_mix_of_runs_leaves_what_was_done_last(
    acts: list[tuple[int, tuple[str, str, Any]]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One writer at a time, as runs follow each other; a reader that has looked before, and one that comes anew."""
    folder = tmp_path_factory.mktemp("mix")
    reader, turn = PackedStore(folder), 1
    known: dict[str, bytes | None] = {}
    now = writer(folder, 0, turn)
    for rank, (act, stem, other) in acts:
        if act == "add":
            add(now, stem, other)
            known[stem] = other
        elif act == "fail":
            now.put(stem, record(stem, status=Status.FAILED), None)
            known[stem] = None
        elif act == "move" and stem != other:
            now.move(stem, other)
            if stem in known:
                known[other] = known.pop(stem)
        elif act == "drop":
            now.drop(stem)
            known.pop(stem, None)
        elif act == "turn":
            now.flush()
            turn += 1
            now = writer(folder, rank, turn)
        elif act == "look":
            now.flush()
            found = reader.read(stem)
            assert (found is not None) == (stem in known)
            if found is not None and known[stem] is not None:
                assert reader.get(found) == known[stem]
    now.flush()
    for path in ([*folder.rglob("*.idx")], []):
        scan = PackedStore(folder).records()
        assert scan.problems == ()
        assert set(scan.records) == set(known)
        for stem, data in known.items():
            found = scan.records[stem]
            assert (found.outcome.status is Status.DONE) == (data is not None)
            assert data is None or PackedStore(folder).get(found) == data
        for each in path:
            each.unlink()


# What is torn, lost or spoilt


def test_a_tail_torn_at_any_byte_costs_only_what_it_holds(three: Path, tmp_path: Path) -> None:
    whole, index = segment_of(three).read_bytes(), segment_of(three).with_suffix(".idx").read_bytes()
    seen = []
    for size in range(len(whole) + 1):
        folder = tmp_path / str(size)
        (folder / "store").mkdir(parents=True)
        (folder / "store" / "0000.seg").write_bytes(whole[:size])
        (folder / "store" / "0000.idx").write_bytes(index)
        found = contents(folder)
        seen.append(found)
        store = PackedStore(folder)
        add(store, "new", b"new")
        store.flush()
        assert contents(folder) == {**found, "new": b"new"}, size
        shutil.rmtree(folder)
    assert [found for k, found in enumerate(seen) if not k or found != seen[k - 1]] == [
        {},
        {"a": b"old"},
        {"a": b"old", "b": b"two"},
        {"a": b"one", "b": b"two"},
        {"a": b"one", "b": b"two", "c": b"three"},
    ]


def batch(first: int, *results: bytes) -> Batch:
    numbers = array("d", range(len(results)))
    return Batch("sim", first, bytes.fromhex(PRINT) * len(results), numbers, numbers, "pickle", results)


def test_a_series_torn_at_any_byte_is_none(tmp_path: Path) -> None:
    store = PackedStore(tmp_path)
    add(store, "a", b"one")
    store.add_all(batch(0, b"two", b"three"))
    store.add_all(batch(1, b"four"))
    store.sync()
    whole, seen = segment_of(tmp_path).read_bytes(), []
    for size in range(len(whole) + 1):
        segment_of(tmp_path).with_suffix(".idx").unlink(missing_ok=True)
        segment_of(tmp_path).write_bytes(whole[:size])
        seen.append(contents(tmp_path))
    assert [found for k, found in enumerate(seen) if not k or found != seen[k - 1]] == [
        {},
        {"a": b"one"},
        {"a": b"one", "sim[0]": b"two", "sim[1]": b"three"},
        {"a": b"one", "sim[0]": b"two", "sim[1]": b"four"},
    ]


def test_a_spoilt_series_costs_itself(tmp_path: Path) -> None:
    store = PackedStore(tmp_path)
    store.add_all(batch(0, b"one", b"two"))
    store.add_all(batch(2, b"three", b"four"))
    add(store, "a", b"five")
    store.sync()
    content = bytearray(segment_of(tmp_path).read_bytes())
    content[content.index(b"one") - 30] ^= 1  # in the columns of the first
    segment_of(tmp_path).write_bytes(content)
    rest = {"sim[2]": b"three", "sim[3]": b"four", "a": b"five"}
    assert contents(tmp_path) == rest
    segment_of(tmp_path).with_suffix(".idx").unlink()
    assert contents(tmp_path) == rest
    content[content.index(b"four")] ^= 1
    segment_of(tmp_path).write_bytes(content)
    found = PackedStore(tmp_path).read("sim[3]")
    assert found is not None
    with pytest.raises(StoreError, match="checksum differs"):
        PackedStore(tmp_path).get(found)


def test_a_catalog_takes_in_what_comes_after_members_were_looked_at(tmp_path: Path) -> None:
    far, near = PackedStore(tmp_path, Writer(rank=1)), PackedStore(tmp_path)
    far.begin(1)
    wanted: dict[str, bytes] = {}
    for k, together in enumerate((False, True, False, True)):
        if together:
            far.add_all(batch(k, b"%d" % k, b"more"))
            wanted |= {f"sim[{k}]": b"%d" % k, f"sim[{k + 1}]": b"more"}
        else:
            add(far, f"alone{k}", b"%d" % k)
            wanted[f"alone{k}"] = b"%d" % k
        far.flush()
        for stem, data in wanted.items():
            found = near.read(stem)
            assert found is not None, (k, stem)
            assert near.get(found) == data


def test_results_that_are_large_together_are_kept_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "LARGE", 10)
    store = PackedStore(tmp_path)
    places = store.add_all(batch(0, b"one", b"two" * 9))
    assert [*places.sizes] == [3, 27]
    assert contents(tmp_path) == {}
    store.flush()
    assert contents(tmp_path) == {"sim[0]": b"one", "sim[1]": b"two" * 9}
    assert len([*(tmp_path / "store").glob("*.step")]) == 1


def test_an_index_lists_a_series_once_and_is_right(tmp_path: Path) -> None:
    store = PackedStore(tmp_path)
    store.add_all(batch(0, *[b"x"] * 1000))
    store.sync()
    path = segment_of(tmp_path).with_suffix(".idx")
    assert path.stat().st_size == 16 + 2 * STEP
    assert index.is_right(segment.Segment(str(segment_of(tmp_path))))
    listed = bytearray(path.read_bytes())
    listed[-1] ^= 1
    path.write_bytes(listed)
    assert not index.is_right(segment.Segment(str(segment_of(tmp_path))))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-20]),
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        lambda path: path.write_bytes(path.read_bytes() + path.read_bytes()[-STEP:]),
        lambda path: path.write_bytes(bytes(len(path.read_bytes()))),
        lambda path: path.write_bytes(path.read_bytes()[:8] + b"12345678" + path.read_bytes()[16:]),
        lambda path: path.write_bytes(path.read_bytes()[:64] + bytes(96)),
    ],
)
def test_an_index_that_is_lost_torn_or_of_another_is_made_up_for(spoil: Any, three: Path) -> None:
    whole = contents(three)
    index = segment_of(three).with_suffix(".idx")
    spoil(index)
    assert contents(three) == whole
    store = PackedStore(three)
    add(store, "d", b"four")
    store.flush()
    segment_of(three)
    assert contents(three) == {**whole, "d": b"four"}
    listed = index.read_bytes()
    index.unlink()
    add(PackedStore(three), "e", b"")
    assert contents(three) == {**whole, "d": b"four"}
    assert len(listed) > 16


def test_what_is_spoilt_in_the_middle_costs_itself(three: Path) -> None:
    content = bytearray(segment_of(three).read_bytes())
    content[content.index(b"two") - 30] ^= 1  # in the header of b
    segment_of(three).write_bytes(content)
    assert contents(three) == {"a": b"one", "c": b"three"}
    segment_of(three).with_suffix(".idx").unlink()
    assert contents(three) == {"a": b"one", "c": b"three"}
    (problem,) = PackedStore(three).records().problems
    assert problem.what.startswith("torn: bytes ")
    store = PackedStore(three)
    add(store, "d", b"four")
    store.flush()
    assert contents(three) == {"a": b"one", "c": b"three", "d": b"four"}


def test_a_flipped_bit_of_a_result_is_noticed_before_anyone_decodes(three: Path) -> None:
    store = PackedStore(three)
    found = store.read("c")
    assert found is not None
    content = bytearray(segment_of(three).read_bytes())
    content[content.index(b"three")] ^= 1
    segment_of(three).write_bytes(content)
    with pytest.raises(StoreError, match=r"0000\.seg#c is not what 'c' wrote: its checksum differs"):
        PackedStore(three).get(found)


def test_a_result_that_looks_like_a_record_is_none(three: Path) -> None:
    content = segment_of(three).read_bytes()
    store = PackedStore(three)
    add(store, "d", content)
    store.flush()
    segment_of(three).with_suffix(".idx").unlink()
    scan = PackedStore(three).records()
    assert (set(scan.records), scan.problems) == ({"a", "b", "c", "d"}, ())
    segment_of(three).write_bytes(segment_of(three).read_bytes()[:-1])
    assert set(PackedStore(three).records().records) == {"a", "b", "c"}


def test_a_foreign_segment_is_told(three: Path) -> None:
    (three / "store" / "0001.seg").write_bytes(b"something else, long enough")
    (three / "store" / "notes.txt").write_bytes(b"mine")
    scan = PackedStore(three).records()
    assert [(Path(each.path).name, each.what) for each in scan.problems] == [
        ("0001.seg", "ezpyp did not write it, or another version of it did")
    ]
    assert set(scan.records) == {"a", "b", "c"}


def test_two_processes_that_write_to_one_segment_are_noticed(three: Path) -> None:
    one, other = PackedStore(three), PackedStore(three)
    add(one, "d", b"four")
    one.flush()
    add(other, "e", b"five")
    other.flush()
    add(one, "f", b"six")
    with pytest.raises(StoreError, match="was changed by another process"):
        one.flush()
    assert contents(three) == {"a": b"one", "b": b"two", "c": b"three", "d": b"four", "e": b"five"}


def test_segments_that_end_where_they_should_are_not_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On ext4 that would wait for all that the disk is writing."""
    for _ in range(2):
        cuts = watch(monkeypatch, appender, Deadly())
        store = PackedStore(tmp_path)
        store.begin()
        add(store, "a", b"one")
        store.sync()
        assert cuts.names("open")
        assert cuts.names("ftruncate") == []
        monkeypatch.undo()


def test_what_was_lent_may_change_before_the_flush(tmp_path: Path, store: PackedStore) -> None:
    lent = bytearray(b"before")
    store.put("alpha", record(), [memoryview(lent)])
    done = Done("beta", "beta", bytes.fromhex(PRINT), when=0, seconds=0, attempt=1, codec="pickle")
    store.add(done, [memoryview(lent)])
    lent[:] = b"after!"
    store.flush()
    assert contents(tmp_path) == {"alpha": b"before", "beta": b"before"}


# Kills and full disks


def kept_by(kills: Calls, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write until a fault, in a folder with results."""
    store = PackedStore(folder, shared=True)
    for module in (appender, files):
        watch(monkeypatch, module, kills)
    store.begin()
    add(store, "a", b"new")
    store.put("b", record("b", status=Status.FAILED), None)
    store.flush()
    store.move("a", "d")
    store.drop("c")
    store.sync()


class Deadly(Calls):
    """Who is dead closes nothing."""

    WATCHED = ("open", "write", "pwrite", "ftruncate", "fdatasync", "fsync", "unlink", "replace")


def test_a_kill_at_any_system_call_leaves_a_state_that_there_was(
    three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states, dies_at = [contents(three)], 0
    while True:
        folder = tmp_path / str(dies_at)
        shutil.copytree(three, folder)
        try:
            kept_by(Deadly(dies_at=dies_at), folder, monkeypatch)
            break
        except Died:
            monkeypatch.undo()
        found = contents(folder)
        if found != states[-1]:
            states.append(found)
        later = PackedStore(folder)
        later.begin()
        add(later, "e", b"e")
        later.sync()
        assert contents(folder) == {**found, "e": b"e"}
        dies_at += 1
    monkeypatch.undo()
    states += [contents(folder)] if contents(folder) != states[-1] else []
    assert states[:2] == [{"a": b"one", "b": b"two", "c": b"three"}, {"a": b"new", "c": b"three"}]
    assert states[-1] == {"d": b"new"}
    assert len(states) <= 4
    assert dies_at > 6


def test_what_ended_a_segment_is_told_by_all_that_follows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where not even what was written in part can be taken back, as in a folder that became read-only."""
    store = PackedStore(tmp_path)
    store.begin()
    add(store, "a", b"one")
    store.flush()

    def refuse(*given: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as patch:
        patch.setattr(appender, "write_all", refuse)
        patch.setattr(os, "ftruncate", refuse)
        add(store, "b", b"two")
        with pytest.raises(StoreError, match="mounted read-only"):
            store.flush()
    add(store, "c", b"three")
    with pytest.raises(StoreError, match="mounted read-only"):
        store.flush()
    assert contents(tmp_path) == {"a": b"one"}


class Full:
    """Stands in for `os`: a disk that takes some bytes more, then none."""

    def __init__(self, left: int) -> None:
        self.left = left

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def write(self, descriptor: int, data: bytes) -> int:
        if not self.left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = os.write(descriptor, memoryview(data)[: self.left])
        self.left -= written
        return written

    def pwrite(self, descriptor: int, data: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("left", [0, 1, 50, 150])
def test_a_full_disk_costs_what_was_not_flushed(left: int, three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = PackedStore(three)
    store.put("a", record("a"), [b"before"])
    store.flush()
    with monkeypatch.context() as patch:
        patch.setattr(files, "os", Full(left))
        patch.setattr(appender, "os", Full(left))
        add(store, "d", b"lost" * 20)
        with pytest.raises(StoreError, match="The disk is full: free space and run again"):
            store.flush()
        assert contents(three) == {"a": b"before", "b": b"two", "c": b"three"}
        store.flush()  # nothing is left to be told
    add(store, "d", b"later")
    store.flush()
    assert contents(three) == {"a": b"before", "b": b"two", "c": b"three", "d": b"later"}


def test_a_buffer_that_could_not_be_written_is_told_at_the_flush(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(appender, "_MOST", 300)
    store = PackedStore(three)
    store.begin()
    with monkeypatch.context() as patch:
        patch.setattr(files, "os", Full(0))
        with pytest.raises(StoreError, match="The disk is full"):
            add(store, "d", b"lost" * 100)
    with pytest.raises(StoreError, match="The disk is full"):
        store.flush()
    store.flush()
    assert contents(three) == {"a": b"one", "b": b"two", "c": b"three"}


def test_an_index_that_cannot_be_written_is_in_nobodys_way(three: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = PackedStore(three)
    add(store, "d", b"four")
    store.flush()
    with monkeypatch.context() as patch:
        patch.setattr(appender, "os", Full(0))
        add(store, "e", b"five")
        store.flush()
        assert contents(three)["e"] == b"five"
    before = segment_of(three).with_suffix(".idx").stat().st_size
    add(store, "f", b"six")
    store.flush()
    assert segment_of(three).with_suffix(".idx").stat().st_size == before + 2 * STEP
    assert set(contents(three)) == {*"abcdef"}


def test_what_is_open_when_the_interpreter_ends_is_closed_in_silence(python: Launcher) -> None:
    """Modules that are still there go in the reverse order of their imports, and then what they hold."""
    code = """
        import sys, types
        early = sys.modules["early"] = types.ModuleType("early")
        from ezpyp.storage import appender, segment
        from ezpyp.storage.packed import PackedStore
        from ezpyp.storage.protocol import Done, Writer

        sys.held = early, appender, segment
        early.kept = PackedStore(".", Writer())
        early.kept.add(Done("a", "a", bytes(16), when=0.0, seconds=0.0, attempt=1, codec="pickle"), [b"one"])
        early.kept.flush()
        early.read = PackedStore(".")
        assert early.read.read("a") is not None
    """
    found = python.run(0, textwrap.dedent(code))
    assert (found.returncode, found.stderr) == (0, "")


WRITER = """
    import os, random, sys
    from ezpyp.model.outcomes import Outcome, Status
    from ezpyp.storage.protocol import Batch, Done, Writer
    from ezpyp.storage.opening import Record
    from ezpyp.storage.packed import PackedStore

    folder, seed = sys.argv[1:]
    store, chance = PackedStore(folder, Writer(rank=int(seed) % 3)), random.Random(int(seed))
    store.begin(int(seed) + 1)
    done = []
    for k in range(100_000):
        stem = f"s{k}" if k % 2 else f"again{k % 5}"
        content = chance.randbytes(chance.choice([10, 10, 3000, 200_000]))
        store.add(Done(stem, stem, k.to_bytes(16), when=0.0, seconds=0.0, attempt=1, codec="pickle"), [content])
        done.append(f"{stem} {k}\\n")
        if not chance.randrange(10):
            store.flush()
            os.write(1, "".join(done).encode())
            done = []
"""


@pytest.mark.parametrize("rounds", [4])
def test_what_killed_processes_reported_is_whole(rounds: int, tmp_path: Path) -> None:
    """One after another in one folder, each killed at a random moment."""
    reported: dict[str, int] = {}
    for seed in range(rounds):
        chance = random.Random(seed)
        command = [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path), str(seed)]
        environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
            assert process.stdout is not None
            reports = [process.stdout.readline() for _ in range(chance.randrange(1, 200))]
            process.send_signal(signal.SIGKILL)
            reports += process.stdout.readlines()
        assert process.returncode == -signal.SIGKILL
        for stem, k in (report.split() for report in reports if report.endswith(b"\n")):
            reported[stem.decode()] = int(k)
        store = PackedStore(tmp_path)
        scan = store.records()
        assert scan.problems == ()
        for name, number in reported.items():
            again = name.startswith("again")  # it may have been made again, and not reported
            assert int(scan.records[name].fingerprint, 16) == number or again
        for found in scan.records.values():
            assert len(store.get(found)) == found.outcome.bytes


# A folder that hosts share


class Network:
    """Stands in for `os` where another host writes: what it did not sync does not show here, nor a name whose folder
    it did not sync; and what it did sync shows late.
    """

    def __init__(self, there: Path, here: Path) -> None:
        self._there, self._here = there, here
        self._synced: dict[str, bytes] = {}
        self._late: list[tuple[Path, bytes]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def fdatasync(self, descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        self._synced[path] = Path(path).read_bytes()
        here = self._here / Path(path).relative_to(self._there)
        if here.exists() or any(known == here for known, _ in self._late):
            self._late.append((here, self._synced[path]))

    def replace(self, source: str, target: str) -> None:
        os.replace(source, target)
        if source in self._synced:
            self._synced[target] = self._synced.pop(source)

    def fsync(self, descriptor: int) -> None:
        folder = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        for path in folder.iterdir():
            if path.is_file():
                self._late.append((self._here / path.relative_to(self._there), self._synced.get(str(path), b"")))

    def arrive(self) -> None:
        for path, content in self._late:
            path.parent.mkdir(parents=True, exist_ok=True)
            draft = path.with_suffix(".draft")
            draft.write_bytes(content)
            draft.replace(path)  # what is open goes on to show what it showed
        self._late.clear()


class Clock:
    """Time that passes by sleeping; after some naps the network has caught up."""

    def __init__(self, network: Network, naps: int) -> None:
        self.now, self.slept, self._network, self._naps = 0.0, 0, network, naps

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += 1
        if self.slept % self._naps == 0:
            self._network.arrive()


Hosts = tuple[PackedStore, PackedStore, Clock]


@pytest.fixture
def two_hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hosts:
    """A store that another host writes to, one that reads here, and the time until here."""
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    network = Network(there, here)
    clock = Clock(network, 4)
    monkeypatch.setattr(appender, "os", network)
    monkeypatch.setattr(files, "os", network)
    monkeypatch.setattr(patience, "time", clock)
    far = PackedStore(there, Writer(rank=1, host="n017"), shared=True)
    far.begin(1)
    return far, PackedStore(here, shared=True), clock


def is_done(found: Record) -> bool:
    return found.outcome.status is Status.DONE


def test_what_another_host_flushed_is_waited_for(two_hosts: Hosts) -> None:
    far, near, clock = two_hosts
    for k in range(5):
        place = add(far, f"s{k}", b"%d" % k * 3000)
        far.flush()
        for at in (place, None):
            found = near.read(f"s{k}", wanted=is_done, at=at)
            assert found is not None
            assert near.get(found) == b"%d" % k * 3000
    assert clock.slept == 4 * 5
    stems = [f"s{k}" for k in range(5)]
    assert near.records().records.settled(bytes.fromhex(PRINT * 5), stems) == bytes([1] * 5)


def test_a_series_of_another_host_is_waited_for(two_hosts: Hosts) -> None:
    far, near, clock = two_hosts
    add(far, "before", b"x")
    far.flush()
    for first in (0, 2):
        results = [b"one" * 3000, b"two"]
        places = far.add_all(batch(first, *results))
        far.flush()
        for k, result in enumerate(results):
            place = Place(places.segment, places.offsets[k], places.sizes[k], places.checksums[k])
            for at in (place, None):
                found = near.read(f"sim[{first + k}]", wanted=is_done, at=at)
                assert found is not None
                assert near.get(found) == result
    assert clock.slept > 0


def test_a_newer_record_of_another_host_is_waited_for(two_hosts: Hosts) -> None:
    far, near, _ = two_hosts
    far.put("alpha", record(status=Status.FAILED, host="n017"), None)
    far.flush()
    assert near.read("alpha", wanted=lambda found: not is_done(found)) is not None
    place = add(far, "alpha", b"one", attempt=2)
    far.flush()
    for at in (None, place):
        found = near.read("alpha", wanted=is_done, at=at)
        assert found is not None
        assert near.get(found) == b"one"


def test_a_large_result_of_another_host_is_waited_for(two_hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "LARGE", 100)
    far, near, _ = two_hosts
    add(far, "alpha", b"large" * 1000)
    far.flush()
    found = near.read("alpha", wanted=is_done)
    assert found is not None
    assert bytes(near.get(found)) == b"large" * 1000


def test_patience_ends_with_segment_and_host(two_hosts: Hosts) -> None:
    far, near, _ = two_hosts
    place = add(far, "alpha", b"one")
    far.flush()
    found = near.read("alpha", wanted=is_done, at=place)
    assert found is not None
    folder = Path(near._folder)
    segment_of(folder).unlink()
    with pytest.raises(StoreError) as caught:
        PackedStore(folder, shared=True).get(found)
    assert str(caught.value) == (
        f"{folder}/store/0001.seg#alpha does not show on {os.uname().nodename} after 60 s, though 'alpha' wrote it on "
        "n017. Let both hosts see the same folder, or run again to remake it."
    )
