"""What a folder of series and single records says, held against a store that knows every record by itself."""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ezpyp.model.outcomes import Outcome, Status
from ezpyp.model.places import Stems
from ezpyp.storage import index, newest
from ezpyp.storage.memory import MemoryStore
from ezpyp.storage.opening import Record, Store
from ezpyp.storage.packed import PackedStore
from ezpyp.storage.protocol import Batch, Done, Writer
from ezpyp.storage.series import TEXT

#: The second is what the first would be called as a member of another family.
LABELS = ("a", "a[1]", "ö%d")
MOST = 12


def fingerprint(version: int, label: int, number: int) -> bytes:
    return bytes([version, label, number]).ljust(16, b"\1")


class Planned(Stems):
    """The stems of families of `MOST` and of steps that are called as their labels."""

    def __len__(self) -> int:
        return len(LABELS) * (1 + MOST)

    def __iter__(self) -> Iterator[str]:
        for label in LABELS:
            yield label
            yield from (f"{label}[{k}]" for k in range(MOST))

    def __getitem__(self, k: Any) -> Any:
        return [*self][k]

    def runs(self) -> Iterator[tuple[str, int, int]]:
        for label in LABELS:
            yield label, -1, 1
            yield label, 0, MOST


def apply(store: Store, change: tuple[str, int, int, int, int]) -> None:
    """One thing that a run or a verb does, to some members of a family."""
    kind, version, label, first, count = change
    numbers = range(first, min(MOST, first + count))
    stems = [f"{LABELS[label]}[{k}]" for k in numbers]
    prints = [fingerprint(version, label, k) for k in numbers]
    results = [f"{version}-{k}".encode() * (1 + k % 3) for k in numbers]
    if kind == "series":
        times = array("d", [float(k) for k in numbers])
        store.add_all(Batch(LABELS[label], first, b"".join(prints), times, times, "pickle", results))
    for stem, print_, result in zip(stems[:2], prints, results, strict=False):
        if kind == "single":
            store.add(Done(stem, stem, print_, when=7.0, seconds=0.5, attempt=1, codec="pickle"), [result])
        elif kind == "failed":
            outcome = Outcome(step=-1, status=Status.FAILED, note="KeyError", when=3.0)
            store.put(stem, Record(name=stem, fingerprint=print_.hex(), outcome=outcome), None)
        elif kind == "dropped":
            store.drop(stem)
        elif kind == "moved":
            store.move(stem, LABELS[label])
    store.flush()


CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["series", "series", "series", "single", "failed", "dropped", "moved"]),
        st.integers(0, 2),
        st.integers(0, len(LABELS) - 1),
        st.integers(0, MOST - 1),
        st.integers(1, MOST),
    ),
    max_size=12,
)


@settings(max_examples=300, deadline=None)
@given(changes=CHANGES, looks=st.lists(st.booleans(), min_size=12, max_size=12), data=st.data())
def test_series_say_what_their_members_would_say_one_by_one(
    changes: list[tuple[str, int, int, int, int]], looks: list[bool], data: st.DataObject
) -> None:
    """Whatever was done again, failed, was dropped or moved, in whatever order, and whenever somebody looked."""
    with tempfile.TemporaryDirectory() as folder:
        stores = [PackedStore(folder, Writer(slot=slot)) for slot in (-1, 0)]
        alone, stems = MemoryStore(), Planned()
        for change, look in zip(changes, looks, strict=False):
            writer = data.draw(st.sampled_from(stores))
            writer.begin()
            apply(writer, change)
            apply(alone, change)
            if look:
                assert stores[0].read("a[3]") == stores[1].read("a[3]")
        wanted = b"".join(fingerprint(1, label, k) for label in range(len(LABELS)) for k in (0, *range(MOST)))
        prints = [wanted[at : at + 16].hex() for at in range(0, len(wanted), 16)]
        known = alone.records().records
        for records in (PackedStore(folder).records().records, stores[0].records().records):
            assert {*records} == {*known}
            assert len(records) == len(known)
            assert len([*records]) == len(known)
            assert bool(records) == bool(known)
            for given_stems in (stems, [*stems]):
                assert records.settled(wanted, given_stems) == known.settled(wanted, [*stems])
                assert records.plain(given_stems) == known.plain([*stems])
            assert sorted(records.notable()) == sorted(known.notable())
            found, told = records.under(prints), known.under(prints)
            assert {each: sorted(of) for each, of in found.items()} == {each: sorted(of) for each, of in told.items()}
            for stem in stems:
                mine, other = records.get(stem), known.get(stem)
                assert mine == stores[0].read(stem) == stores[1].read(stem)
                assert (mine and (mine.fingerprint, mine.outcome.checksum)) == (
                    other and (other.fingerprint, other.outcome.checksum)
                )


def test_only_a_series_that_shares_a_step_is_unfolded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unfolded: list[tuple[int, int]] = []
    real = newest.Newest._unfold

    def unfold(self: newest.Newest, label: int, whole: newest.Whole) -> None:
        unfolded.append((whole.first, whole.stop))
        real(self, label, whole)

    monkeypatch.setattr(newest.Newest, "_unfold", unfold)
    store = PackedStore(tmp_path)
    store.begin()
    for change in (("series", 0, 0, 0, 4), ("series", 0, 0, 4, 4), ("series", 0, 0, 8, 4), ("failed", 0, 0, 5, 1)):
        apply(store, change)
    records = store.records().records
    assert len(records) == 12
    assert [*records.notable()] == ["a[5]"]
    assert unfolded == [(4, 8)]


@given(label=st.text(max_size=8), number=st.integers(0, 10**18 - 1))
def test_the_digests_of_a_family_are_those_of_its_names(label: str, number: int) -> None:
    text = label.encode(*TEXT)
    of_label = index.digest_of(text)
    key, place = index.key_of(f"{label}[{number}]".encode(*TEXT))
    assert (key, place) == (index.digest_at(of_label, number), number + 1)
    assert index.label_of(key, place) == of_label
    assert [*index.digests(of_label, range(number, number + 2))] == [key, index.digest_at(of_label, number + 1)]
    for other in (f"{label}[0{number}]", f"{label}[{number}", f"{label}{number}]", f"{label}[-{number}]"):
        encoded = other.encode(*TEXT)
        assert index.key_of(encoded) != (key, place)
