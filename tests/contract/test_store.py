"""What every store promises, wherever it keeps things."""

from __future__ import annotations

import itertools
import zlib
from array import array
from collections.abc import Callable
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ezpyp.errors import StoreError
from ezpyp.model.naming import stems
from ezpyp.model.outcomes import Outcome, Place, Status
from ezpyp.storage.filestore import FileStore
from ezpyp.storage.memory import MemoryStore
from ezpyp.storage.opening import SHELF, Record, Store, Writer, open_store
from ezpyp.storage.packed import PackedStore
from ezpyp.storage.protocol import Batch, Done, Wanted

KINDS: dict[str, Callable[..., Store]] = {
    "files": FileStore,
    "files that hosts share": partial(FileStore, shared=True, patience=0),
    "memory": MemoryStore,
    "packed": PackedStore,
    "packed, where hosts share": partial(PackedStore, shared=True, patience=0),
}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def store(kind: str, tmp_path: Path) -> Store:
    return KINDS[kind](tmp_path)


def record(name: str = "alpha", *, fingerprint: str = "f1", status: Status = Status.DONE, **more: Any) -> Record:
    codec = "pickle" if status is Status.DONE else ""
    return Record(
        name=name, fingerprint=fingerprint, outcome=Outcome(step=7, status=status, **{"codec": codec, **more})
    )


def kept(store: Store, stem: str) -> bytes:
    found = store.read(stem)
    assert found is not None
    return bytes(store.get(found))


def test_a_result_is_found_again(store: Store) -> None:
    outcome = store.put("alpha", record(), [b"one", memoryview(b"two"), bytearray(b""), b"three"])
    assert outcome.bytes == 11
    assert outcome.location
    assert outcome.checksum.startswith("xxh3:")
    assert kept(store, "alpha") == b"onetwothree"


@pytest.mark.parametrize("size", [10, 1 << 20, 17 << 20], ids=["small", "large", "apart"])
def test_bytes_that_may_be_written_to_are_the_readers_own(size: int, store: Store) -> None:
    store.put("alpha", record(), [bytes(size)])
    found = store.read("alpha")
    assert found is not None
    data = memoryview(store.get(found))
    if not data.readonly:
        data[0] = 1
    assert bytes(store.get(found)) == bytes(size)


def add(store: Store, stem: str, data: bytes, **more: Any) -> Place:
    facts: dict[str, Any] = {"when": 1.7e9, "seconds": 2.5, "attempt": 2, "codec": "numpy", **more}
    fingerprint = facts.pop("fingerprint", "00112233445566778899aabbccddeeff")
    return store.add(Done(stem, "alpha/1", bytes.fromhex(fingerprint), **facts), [data[:1], data[1:]])


def test_a_done_step_with_nothing_to_say_is_added(store: Store) -> None:
    place = add(store, "alpha~1", b"onetwothree")
    assert place.size == 11
    found = store.read("alpha~1")
    assert found is not None
    assert (found.name, found.fingerprint) == ("alpha/1", "00112233445566778899aabbccddeeff")
    outcome = found.outcome
    assert (outcome.status, outcome.when, outcome.seconds, outcome.attempt) == (Status.DONE, 1.7e9, 2.5, 2)
    assert (outcome.codec, outcome.bytes, outcome.checksum) == ("numpy", 11, f"xxh3:{place.checksum:016x}")
    assert (outcome.args, outcome.kwargs, outcome.note, outcome.log) == ("", "", "", None)
    assert bytes(store.get(found)) == b"onetwothree"


def test_what_was_added_replaces_and_is_replaced(store: Store) -> None:
    store.put("alpha", record(), [b"one"])
    add(store, "alpha", b"two", args="[2]", kwargs="{'a': 'é'}")
    found = store.read("alpha")
    assert found is not None
    assert (found.outcome.args, found.outcome.kwargs) == ("[2]", "{'a': 'é'}")
    assert kept(store, "alpha") == b"two"
    store.put("alpha", record(status=Status.FAILED), None)
    assert set(store.records().records) == {"alpha"}
    assert store.records().records["alpha"].outcome.status is Status.FAILED


@pytest.mark.parametrize("size", [0, 1, 5000])
def test_a_result_is_read_at_its_place(size: int, store: Store) -> None:
    for each in ("alpha", "beta", "gamma"):
        place = add(store, each, b"x" * size)
        store.flush()
        assert store.read(each, at=place) == store.read(each)


def test_what_is_fetched_is_what_was_added_there(kind: str, store: Store) -> None:
    store.put("alpha", record(), [b"former"])
    place = add(store, "alpha", b"one")
    store.flush()
    fingerprint = "00112233445566778899aabbccddeeff"
    found = store.fetch("alpha", fingerprint, place)
    assert found is None or (found[0], bytes(found[1])) == ("numpy", b"one")
    assert (found is not None) == kind.startswith("packed")
    for stem, wanted, at in (
        ("beta", fingerprint, place),
        ("alpha", "22" * 16, place),
        ("alpha", fingerprint, place._replace(checksum=5)),
        ("alpha", fingerprint, place._replace(offset=17)),
        ("alpha", fingerprint, place._replace(segment=77)),
    ):
        assert store.fetch(stem, wanted, at) is None


def test_many_are_fetched_as_each_is(kind: str, store: Store) -> None:
    stems, fingerprint = [f"s{k}" for k in range(300)], "00112233445566778899aabbccddeeff"
    places = [add(store, stem, stem.encode() * (1 + 40 * k)) for k, stem in enumerate(stems)]
    store.flush()
    wanted = [*map(Wanted, stems, repeat(fingerprint), places)][::-1]
    wanted.insert(7, Wanted("s8", fingerprint, places[9]))
    found = [each and (each[0], bytes(each[1])) for each in store.fetch_all(wanted)]
    each = [alone and (alone[0], bytes(alone[1])) for alone in itertools.starmap(store.fetch, wanted)]
    assert found == each
    assert found.count(None) == (1 if kind.startswith("packed") else 301)


@pytest.mark.parametrize(
    ("args", "kwargs"), [("[9, 'ü\\n\\udce9']", "{}"), ("", "{'k': 1}"), ('["1"]', '{"a": "\\\\"}')]
)
def test_what_says_its_arguments_is_fetched_and_read_as_any_other(
    kind: str, store: Store, args: str, kwargs: str
) -> None:
    fingerprint = "00112233445566778899aabbccddeeff"
    done = Done("alpha", "alpha", bytes.fromhex(fingerprint), 1.0, 0.5, 1, "numpy", args=args, kwargs=kwargs)
    place = store.add(done, [b"one"])
    store.flush()
    found = store.read("alpha", at=place)
    assert found is not None
    assert (found.outcome.args, found.outcome.kwargs) == (args, kwargs)
    expected = (args, kwargs) if kind.startswith("packed") else None
    assert [*store.calls(["alpha", "beta", "alpha"], [place, place, place._replace(segment=77)])] == [
        expected,
        None,
        None,
    ]
    assert bytes(store.get(found)) == b"one"
    fetched = store.fetch("alpha", fingerprint, place)
    assert (fetched is not None) == kind.startswith("packed")


def test_a_place_that_is_not_that_of_the_step_leads_to_no_other(store: Store) -> None:
    add(store, "alpha", b"one")
    elsewhere = add(store, "beta", b"two")
    store.flush()
    assert [*store.calls(["alpha"], [elsewhere])] == [None]
    found = store.read("alpha", at=elsewhere)
    assert found is not None
    assert bytes(store.get(found)) == b"one"


def test_who_writes_is_known(kind: str, tmp_path: Path) -> None:
    store = KINDS[kind](tmp_path, Writer(rank=5, host="n017"))
    add(store, "alpha", b"one")
    found = store.read("alpha")
    assert found is not None
    assert (found.outcome.rank, found.outcome.host) == (5, "n017")


@pytest.mark.parametrize("kind", sorted(KINDS.keys() - {"memory"}))
def test_what_was_flushed_is_there_for_others(kind: str, tmp_path: Path) -> None:
    store, other = KINDS[kind](tmp_path), KINDS[kind](tmp_path)
    assert other.read("alpha") is None
    store.put("alpha", record(), [b"one"])
    place = add(store, "beta", b"two")
    store.flush()
    assert kept(other, "alpha") == b"one"
    found = other.read("beta", at=place)
    assert found is not None
    assert bytes(other.get(found)) == b"two"
    assert other.records().records == store.records().records


def test_chunks_of_other_shapes_count_by_their_bytes(store: Store) -> None:
    plane = memoryview(bytes(range(24))).cast("B", (2, 3, 4)).cast("B").cast("i", (2, 3))
    assert store.put("alpha", record(), [plane]).bytes == 24
    assert kept(store, "alpha") == bytes(range(24))


def test_a_result_may_be_empty(store: Store) -> None:
    store.put("alpha", record(), [b""])
    store.put("beta", record("beta"), [])
    assert kept(store, "alpha") == kept(store, "beta") == b""
    assert set(store.records().records) == {"alpha", "beta"}


def test_everything_lasting_is_read_back(store: Store) -> None:
    lasting: dict[str, Any] = {
        "when": 1.7e9,
        "seconds": 2.5,
        "rank": 3,
        "host": "n017",
        "attempt": 2,
        "args": "[3, 'é']",
        "kwargs": "{'a': 1}",
        "note": "stored with cloudpickle",
        "missing": ("x", "y"),
        "log": ("h0.log", 3, 99),
    }
    outcome = store.put("alpha", record(**lasting), [b"x"])
    wanted = outcome._replace(step=-1)
    found = store.read("alpha")
    assert found is not None
    assert found._replace(place=None) == Record(name="alpha", fingerprint="f1", outcome=wanted)
    assert {key: getattr(wanted, key) for key in lasting} == lasting


def test_failures_are_kept_with_their_reasons(store: Store) -> None:
    why: dict[str, Any] = {"cause": "exception", "note": "ValueError: \udcff ╰─>", "traceback": "File…\n  x"}
    failed = record(status=Status.FAILED, **why)
    assert store.put("alpha", failed, None) == failed.outcome
    found = store.read("alpha")
    assert found is not None
    assert {key: getattr(found.outcome, key) for key in why} == why
    assert found.outcome.status is Status.FAILED


def test_the_place_in_the_plan_and_the_last_words_do_not_last(store: Store) -> None:
    store.put("alpha", record(status=Status.FAILED, tail="words"), None)
    found = store.read("alpha")
    assert found is not None
    assert (found.outcome.step, found.outcome.tail) == (-1, "")


def test_a_step_without_a_result_has_none_to_read(store: Store) -> None:
    store.put("alpha", record(status=Status.SKIPPED), None)
    found = store.read("alpha")
    assert found is not None
    with pytest.raises(StoreError, match="'alpha'"):
        store.get(found)


def test_the_newest_outcome_counts(store: Store) -> None:
    store.put("alpha", record(status=Status.FAILED), None)
    store.put("alpha", record(fingerprint="f2"), [b"two"])
    found = store.read("alpha")
    assert found is not None
    assert (found.fingerprint, found.outcome.status) == ("f2", Status.DONE)
    assert kept(store, "alpha") == b"two"


def test_a_former_result_outlives_a_failure(store: Store) -> None:
    store.put("alpha", record(), [b"one"])
    former = store.read("alpha")
    store.put("alpha", record(status=Status.FAILED), None)
    assert former is not None
    assert bytes(store.get(former)) == b"one"


@pytest.mark.parametrize(
    ("other", "why"), [(b"two", "checksum differs"), (b"longer", "torn: 6 bytes where 'alpha' wrote 3")]
)
def test_a_record_does_not_lead_to_another_result(other: bytes, why: str, kind: str, store: Store) -> None:
    store.put("alpha", record(), [b"one"])
    former = store.read("alpha")
    store.put("alpha", record(), [other])
    assert former is not None
    if kind.startswith("packed"):  # it is there still
        assert store.get(former) == b"one"
        return
    with pytest.raises(StoreError, match=why):
        store.get(former)


def test_what_is_not_there_is_not_found(store: Store) -> None:
    assert store.read("alpha") is None
    assert store.read("alpha", wanted=lambda _: True) is None
    assert store.records().records == {}
    assert store.records().problems == ()


def test_what_is_not_as_wanted_is_given_all_the_same(store: Store) -> None:
    store.put("alpha", record(), [b"one"])
    found = store.read("alpha", wanted=lambda found: found.fingerprint == "f2")
    assert found is not None
    assert found.fingerprint == "f1"


def test_records_are_what_read_reads(store: Store) -> None:
    store.put("alpha", record(), [b"one"])
    store.put("beta~0123456789", record("béta/1", status=Status.FAILED), None)
    scan = store.records()
    assert scan.problems == ()
    assert scan.records == {stem: store.read(stem) for stem in ("alpha", "beta~0123456789")}
    assert {found.name for found in scan.records.values()} == {"alpha", "béta/1"}


FINGERPRINTS = ["00" * 16, "11" * 16, "00" * 16, "22" * 16, "33" * 16]


def filled(store: Store) -> None:
    for k, fingerprint in enumerate(FINGERPRINTS):
        add(store, f"s{k}", b"x", fingerprint=fingerprint)
    store.put("s3", record(fingerprint=FINGERPRINTS[3], note="odd"), [b"x"])
    store.put("s4", record(fingerprint=FINGERPRINTS[4], status=Status.FAILED), None)
    store.put("s5", record(fingerprint=f"{FINGERPRINTS[1]} void"), [b"x"])


def test_what_is_settled_is_told_at_once(store: Store) -> None:
    filled(store)
    wanted = bytes.fromhex("".join([*FINGERPRINTS, FINGERPRINTS[1], "44" * 16, "00" * 16]))
    stems_ = ["s0", "s1", "s2", "s3", "s4", "s5", "s6", "s1"]
    assert store.records().records.settled(wanted, stems_) == bytes([1, 1, 1, 0, 0, 0, 0, 0])
    assert store.records().records.settled(b"", []) == b""


def test_what_is_plain_is_told_with_how_long_it_took(store: Store) -> None:
    filled(store)
    add(store, "s6", b"new", seconds=0.5)
    store.move("s1", "s9")
    store.drop("s2", result_only=True)
    store.drop("s0")
    found = store.records().records.plain([*(f"s{k}" for k in range(10)), "s6"])
    assert found.found == bytes([0, 0, 2, 2, 2, 2, 1, 0, 0, 1, 1])
    assert [*found.seconds] == [0, 0, 0, 0, 0, 0, 0.5, 0, 0, 2.5, 0.5]
    assert [*found.sizes] == [0, 0, 0, 0, 0, 0, 3, 0, 0, 1, 3]
    assert [*found.whens] == [1.7e9 * (each == 1) for each in found.found]
    assert store.records().records.plain([]).found == b""


def test_of_two_results_of_a_step_the_newer_may_be_settled(store: Store) -> None:
    for fingerprint in FINGERPRINTS[:2]:
        add(store, "s0", b"x", fingerprint=fingerprint)
    for fingerprint, settled in zip(FINGERPRINTS[:2], (0, 1), strict=True):
        assert store.records().records.settled(bytes.fromhex(fingerprint), ["s0"]) == bytes([settled])


def test_records_of_which_there_is_something_to_say_are_told(store: Store) -> None:
    filled(store)
    store.drop("s2", result_only=True)
    assert sorted(store.records().records.notable()) == ["s2", "s3", "s4", "s5"]


def test_records_are_found_by_their_fingerprints(store: Store) -> None:
    filled(store)
    store.move("s1", "s9")
    records = store.records().records
    void = f"{FINGERPRINTS[1]} void"
    found = records.under([FINGERPRINTS[0], FINGERPRINTS[1], void, "44" * 16, ""])
    assert {print_: sorted(stems) for print_, stems in found.items()} == {
        FINGERPRINTS[0]: ["s0", "s2"],
        FINGERPRINTS[1]: ["s9"],
        void: ["s5"],
    }
    assert records.under([]) == records.under(["44" * 16]) == {}
    assert records["s9"].fingerprint == FINGERPRINTS[1]


def test_what_was_moved_is_settled_where_it_is_now(store: Store) -> None:
    filled(store)
    store.move("s1", "s9")
    wanted = bytes.fromhex(FINGERPRINTS[1] * 2)
    assert store.records().records.settled(wanted, ["s1", "s9"]) == bytes([0, 1])


def test_records_are_those_of_their_time(store: Store) -> None:
    filled(store)
    before = store.records().records
    store.drop("s0")
    store.put("s9", record(), [b"one"])
    assert len(before) == 6
    assert "s0" in before
    assert "s9" not in before
    assert "s0" not in store.records().records


def test_syncing_changes_nothing(store: Store) -> None:
    store.sync()
    store.put("alpha", record(), [b"one"])
    store.sync()
    store.sync()
    assert kept(store, "alpha") == b"one"


def test_a_record_is_moved_with_its_result(store: Store) -> None:
    store.put("alpha", record(), [b"one"])
    store.put("beta", record("beta"), [b"two"])
    store.move("alpha", "beta")
    assert store.read("alpha") is None
    assert kept(store, "beta") == b"one"
    store.move("beta", f"{SHELF}beta@1")
    assert kept(store, f"{SHELF}beta@1") == b"one"
    assert set(store.records().records) == {f"{SHELF}beta@1"}
    assert store.records().problems == ()


def test_many_records_are_moved_at_once(store: Store) -> None:
    for stem in ("alpha", "beta", "gamma"):
        store.put(stem, record(stem), [stem.encode()])
    store.move_all({"alpha": f"{SHELF}alpha@1", "nothing": "delta", "beta": "gamma"})
    assert set(store.records().records) == {f"{SHELF}alpha@1", "gamma"}
    assert kept(store, f"{SHELF}alpha@1") == b"alpha"
    assert kept(store, "gamma") == b"beta"


def test_what_is_not_there_is_neither_moved_nor_dropped(store: Store) -> None:
    store.put("beta", record("beta"), [b"two"])
    store.move("alpha", "beta")
    store.drop("alpha")
    assert kept(store, "beta") == b"two"


def test_what_is_dropped_is_forgotten(store: Store) -> None:
    store.put("alpha", record(), [b"one"])
    store.put("beta", record("beta"), [b"two"])
    store.drop("alpha")
    assert store.read("alpha") is None
    assert set(store.records().records) == {"beta"}
    store.put("alpha", record(), [b"three"])
    assert kept(store, "alpha") == b"three"


def test_a_result_alone_may_be_dropped(store: Store) -> None:
    store.put("alpha", record(), [b"one"])
    store.drop("alpha", result_only=True)
    found = store.read("alpha")
    assert found is not None
    with pytest.raises(StoreError):
        store.get(found)


def batch(first: int, results: list[bytes], *, label: str = "sim", when: float = 1.7e9) -> Batch:
    """Members of a family, the fingerprint of each the number of its result."""
    count = len(results)
    prints = b"".join((1 + zlib.crc32(each)).to_bytes(16, "big") for each in results)
    return Batch(
        label, first, prints, array("d", [when + k for k in range(count)]), array("d", range(count)), "pickle", results
    )


def test_what_is_added_together_is_found_one_by_one(kind: str, store: Store, tmp_path: Path) -> None:
    results = [b"x" * k for k in range(5)]
    places = store.add_all(batch(7, results))
    assert [*places.sizes] == [0, 1, 2, 3, 4]
    store.flush()
    for seen in (store, *([KINDS[kind](tmp_path)] if kind != "memory" else [])):
        for k, result in enumerate(results):
            stem, fingerprint = f"sim[{7 + k}]", batch(7, results).fingerprints[16 * k :][:16].hex()
            place = Place(places.segment, places.offsets[k], places.sizes[k], places.checksums[k])
            for at in (None, place):
                found = seen.read(stem, at=at)
                assert found is not None
                assert (found.name, found.fingerprint, found.outcome.status) == (stem, fingerprint, Status.DONE)
                assert (found.outcome.when, found.outcome.seconds, found.outcome.attempt) == (1.7e9 + k, k, 1)
                assert bytes(seen.get(found)) == result
            fetched = seen.fetch(stem, fingerprint, place)
            assert fetched is None or (fetched[0], bytes(fetched[1])) == ("pickle", result)
            assert seen.fetch(stem, "00" * 16, place) is None
            assert seen.read("sim[99]", at=place) is None
        records = seen.records().records
        assert sorted(records) == sorted(f"sim[{7 + k}]" for k in range(5))
        assert not [*records.notable()]
        stems_ = [f"sim[{7 + k}]" for k in range(5)]
        assert records.settled(batch(7, results).fingerprints, stems_) == b"\1" * 5
        assert records.settled(batch(7, results[::-1]).fingerprints, stems_) == bytes([0, 0, 1, 0, 0])


Labels = st.sampled_from(["sim", "100%d"])
Numbers = st.integers(0, 6)
Doings = st.lists(
    st.one_of(
        st.tuples(st.just("all"), Labels, Numbers, st.lists(st.binary(max_size=9), min_size=1, max_size=4)),
        st.tuples(st.just("one"), Labels, Numbers, st.none() | st.binary(max_size=9)),
        st.tuples(st.just("drop"), Labels, Numbers),
        st.tuples(st.just("forget"), Labels, Numbers),
        st.tuples(st.just("move"), Labels, Numbers, Numbers),
        st.tuples(st.sampled_from(["flush", "begin"])),
    ),
    max_size=14,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(doings=Doings)
def test_what_is_added_together_is_as_if_each_was_alone(
    kind: str, doings: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    # By stem the result, None for a failure, and whether it was dropped.
    store, wanted = KINDS[kind](tmp_path_factory.mktemp("store")), dict[str, tuple[bytes | None, bool]]()
    for what, *said in doings:
        stem = f"{said[0]}[{said[1]}]" if said else ""
        if what == "all":
            store.add_all(batch(said[1], said[2], label=said[0]))
            wanted |= {f"{said[0]}[{said[1] + k}]": (each, False) for k, each in enumerate(said[2])}
        elif what == "one":
            status, chunks = (Status.FAILED, None) if said[2] is None else (Status.DONE, [said[2]])
            store.put(stem, record(stem, fingerprint="ab" * 16, status=status), chunks)
            wanted[stem] = said[2], False
        elif what == "drop":
            store.drop(stem, result_only=True)
            if stem in wanted:
                wanted[stem] = wanted[stem][0], True
        elif what == "forget":
            store.drop(stem)
            wanted.pop(stem, None)
        elif what == "move":
            if stem in wanted and said[1] != said[2]:
                store.move(stem, f"{said[0]}[{said[2]}]")
                wanted[f"{said[0]}[{said[2]}]"] = wanted.pop(stem)
        else:
            getattr(store, what)()
    records = store.records().records
    assert set(records) == set(wanted)
    assert bool(records) == bool(wanted)
    for stem, (result, dropped) in wanted.items():
        found = records[stem]
        assert found == store.read(stem)
        assert found.outcome.dropped == dropped
        if result is not None and not dropped:
            assert bytes(store.get(found)) == result
    for stem in wanted:
        assert stem in records.under([print_ := records[stem].fingerprint])[print_]
    plain = [stem for stem in wanted if stem not in {*records.notable()}]
    prints = b"".join(bytes.fromhex(records[stem].fingerprint) for stem in plain)
    assert records.settled(prints, plain) == b"\1" * len(plain)


Steps = st.sampled_from(["alpha", "Alpha", "sim[1]", "a/b", "é", "x.step", ""])
Results = st.none() | st.lists(st.binary(max_size=40), max_size=3)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(puts=st.lists(st.tuples(Steps, Results), max_size=12))
def test_a_store_is_a_dict_of_the_last_puts(
    kind: str, puts: list[tuple[str, list[bytes] | None]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = KINDS[kind](tmp_path_factory.mktemp("store"))
    stem_of = stems(["alpha", "Alpha", "sim[1]", "a/b", "é", "x.step", ""])
    wanted: dict[str, tuple[str, bytes | None]] = {}
    for name, chunks in puts:
        store.put(stem_of[name], record(name, status=Status.FAILED if chunks is None else Status.DONE), chunks)
        wanted[stem_of[name]] = (name, None if chunks is None else b"".join(chunks))
    scan = store.records()
    assert scan.problems == ()
    found = {
        stem: (each.name, bytes(store.get(each)) if each.outcome.status is Status.DONE else None)
        for stem, each in scan.records.items()
    }
    assert found == wanted


def test_the_kinds_that_a_schema_names(tmp_path: Path) -> None:
    assert isinstance(open_store("files", tmp_path), FileStore)
    assert isinstance(open_store("memory", tmp_path), MemoryStore)
    assert isinstance(open_store("packed", tmp_path), PackedStore)
    with pytest.raises(StoreError) as caught:
        open_store("cloud", tmp_path)
    assert str(caught.value) == "There is no store 'cloud'. Known: files, memory, packed."
