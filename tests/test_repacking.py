"""Repacking: nothing is lost, whatever is converted into what, and whenever it is killed."""

from __future__ import annotations

import os
import shutil
from array import array
from pathlib import Path
from typing import Any

import pytest

import ezpyp
from ezpyp import Pipeline, Status, as_pickle_step
from ezpyp.errors import CacheInUse, StoreError
from ezpyp.folder import lock
from ezpyp.folder.lock import Lock
from ezpyp.model.outcomes import Outcome
from ezpyp.run import session
from ezpyp.storage import appender, packed
from ezpyp.storage.opening import Record, open_store
from ezpyp.storage.protocol import Batch, Done
from ezpyp.system import files
from ezpyp.upkeep import checking, repacking
from ezpyp.upkeep.repacking import repack
from tests.faults import Calls, Died, watch


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "LARGE", 100)
    monkeypatch.setattr(session, "_folders", {})


def build(folder: Path, kind: str, edition: int = 0) -> Pipeline:
    pipeline = Pipeline(folder, "repacked", store=kind, executor="inline", on_change="rerun", keep_old=5)

    @as_pickle_step(pipeline)
    def small(x: int) -> str:
        return f"{x}" * x

    @as_pickle_step(pipeline, version=str(edition))
    def wide(x: str) -> bytes:
        return bytes([edition]) * 1000

    @as_pickle_step(pipeline)
    def wrong(x: str) -> None:
        raise ValueError("as meant")

    @as_pickle_step(pipeline, keep=False)
    def passing(x: str) -> str:
        return x

    @as_pickle_step(pipeline)
    def left(x: str) -> ezpyp.File:
        path = os.path.join(os.path.dirname(folder), "left.txt")
        with open(path, "w") as file:
            file.write("left")
        return ezpyp.File(path)

    first, second = small.map([2, 3])
    wide(passing(first), name="wide")
    wrong(second, name="wrong")
    left(first, name="left")
    return pipeline


def made(folder: Path, kind: str) -> Path:
    """A folder with something of everything."""
    for edition in (0, 1):
        session._folders.clear()
        build(folder, kind, edition).execute(raise_on_failure=False)
    return folder


def series_of(folder: Path) -> list[tuple[str, int, int]]:
    """What of a folder is kept together: label, first number, and count."""
    together = open_store("packed", folder).records().records.together()
    return [(each.batch.label, each.batch.first, len(each.checksums)) for each in together]


def facts(folder: Path) -> dict[str, Any]:
    """All that anybody may know of a folder, but where things lie."""
    run = ezpyp.open(folder)
    records = open_store(run.store, folder).records().records
    return {
        "rows": [(row.name, row.status, row.seconds, row.host, row.attempts, row.note) for row in run.summary().rows],
        "results": {name: _content(run[name]) for name in run.index if _is_there(run, name)},
        "prints": {stem: record.fingerprint for stem, record in sorted(records.items())},
    }


def _content(value: object) -> object:
    return Path(value).read_text() if isinstance(value, ezpyp.File) else value


def _is_there(run: ezpyp.Run, name: str) -> bool:
    outcome = run.outcome(name)
    return outcome is not None and outcome.status is Status.DONE and not outcome.dropped


def listing(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("start", ["files", "packed"])
def test_nothing_is_lost_on_the_way_through_all_kinds(start: str, tmp_path: Path) -> None:
    folder = made(tmp_path / "cache", start)
    before = facts(folder)
    assert any(stem.startswith("old/") for stem in before["prints"])
    for kind in (None, "packed", "files", "files", "packed", None, "files"):
        done = repack(folder, kind)
        assert (done.wrong, done.records) == ((), len(before["prints"])), kind
        assert facts(folder) == before, kind
        verdict = checking.check(folder)
        assert (verdict.wrong, verdict.dead) == ((), 0), kind
        is_packed = done.kind == "packed"
        assert ("store" in listing(folder), "wide.status" in listing(folder)) == (is_packed, not is_packed)
    session._folders.clear()
    assert build(folder, "auto", 1).execute(raise_on_failure=False).cached == 5


def test_repacking_takes_back_what_no_longer_counts(tmp_path: Path) -> None:
    folder = made(tmp_path / "cache", "packed")
    store = open_store("packed", folder)
    for stem in [stem for stem in store.records().records if stem.startswith("old/")]:
        store.drop(stem)
    store.sync()
    assert checking.check(folder).dead > 0
    done = repack(folder)
    assert done.after < done.before
    assert checking.check(folder).dead == 0
    assert {"base-1.idx", "base-1.seg"} <= listing(folder / "store")
    assert not list((folder / "store").glob("0*.seg"))


def test_what_is_torn_is_told_and_left_out(tmp_path: Path) -> None:
    folder = made(tmp_path / "cache", "packed")
    path = next((folder / "store").glob("*.seg"))
    place = ezpyp.open(folder)._store.read("small[1]")
    assert place is not None
    assert place.place is not None
    content = bytearray(path.read_bytes())
    where = content.index(b"333", place.place.offset)
    content[where] ^= 1
    path.write_bytes(content)
    done = repack(folder)
    assert ["small[1]" in problem.path for problem in done.wrong] == [True]
    session._folders.clear()
    assert build(folder, "auto", 1).execute(raise_on_failure=False).cached == 4


def test_only_a_cache_folder_that_nobody_holds_is_repacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made(tmp_path / "cache", "packed")
    before = listing(folder / "store")

    def held(path: str) -> Lock:
        raise CacheInUse(f"{path} is in use")

    monkeypatch.setattr(lock, "acquire", held)
    with pytest.raises(CacheInUse):
        repack(folder)
    assert listing(folder / "store") == before
    with pytest.raises(StoreError):
        repack(tmp_path)


class Deadly(Calls):
    """Kills at what changes a disk; who is dead closes nothing."""

    WATCHED = (*(set(Calls.WATCHED) - {"close"}), "pwrite", "ftruncate", "rmdir")


@pytest.mark.parametrize(("start", "kind"), [("packed", "packed"), ("packed", "files"), ("files", "packed")])
def test_whenever_it_is_killed_nothing_is_lost(
    start: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = made(tmp_path / "whole", start)
    before = facts(whole)
    survived = 0
    while True:
        folder = tmp_path / f"after {survived}"
        shutil.copytree(whole, folder)
        calls = Deadly(dies_at=survived)
        with monkeypatch.context() as patch:
            for module in (files, appender, repacking):
                watch(patch, module, calls)
            try:
                repack(folder, kind)
                break
            except Died:
                pass
        assert facts(folder) == before, survived
        for path in folder.glob(".lock*"):  # its holder is this process, which lives
            path.unlink()
        repack(folder, kind)
        assert facts(folder) == before, survived
        # Drafts are swept by the next run, once their writer is gone: here it is this process.
        wrong = [each for each in checking.check(folder).wrong if not files.is_temporary(os.path.basename(each.path))]
        assert wrong == [], survived
        shutil.rmtree(folder)
        survived += 3
    assert survived > 20


def test_who_looked_before_the_folder_was_repacked_still_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "LARGE", 2000)
    folder = made(tmp_path / "cache", "packed")
    early = open_store("packed", str(folder))
    records = [record for record in early.records().records.values() if record.outcome.location]
    known = [(record, bytes(early.get(record))) for record in records if not record.outcome.dropped]
    repack(folder)
    session._folders.clear()
    build(folder, "packed", 2).execute(raise_on_failure=False)  # begins a segment of the same name
    anew = early.read("wide")
    assert anew is not None
    assert bytes([2]) * 1000 in bytes(early.get(anew))
    later = open_store("packed", str(folder))
    assert all(bytes(later.get(record)) == content for record, content in known if record.name != "wide")


# Series


def member(folder: Path, stem: str, version: int, *, status: Status = Status.DONE) -> None:
    """What one run makes of one step."""
    store = open_store("packed", folder)
    store.begin()
    print_ = bytes([version]).ljust(16, b"p").hex()
    if status is Status.DONE:
        store.add(
            Done(stem, stem, bytes.fromhex(print_), when=2.0, seconds=0.5, attempt=1, codec="pickle"), [b"single"]
        )
    else:
        outcome = Outcome(step=-1, status=status, note="ValueError", attempt=1)
        store.put(stem, Record(name=stem, fingerprint=print_, outcome=outcome), None)
    store.flush()


@pytest.fixture
def family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """300 members of a family in two series, of which one failed later, and one was made again."""
    monkeypatch.setattr(packed, "LARGE", 1 << 20)
    folder = tmp_path / "family"
    pipeline = Pipeline(folder, "family", store="packed", executor="inline")

    @as_pickle_step(pipeline)
    def f(x: int) -> int:
        return x

    f.map(range(300))
    pipeline.initialize_schema()
    store = open_store("packed", folder)
    store.begin()
    times = array("d", range(150))
    for first in (0, 150):
        prints = b"".join(k.to_bytes(16, "big") for k in range(first, first + 150))
        results = [b"%d" % k for k in range(first, first + 150)]
        store.add_all(Batch("f", first, prints, times, times, "pickle", results))
    store.flush()
    return folder


def content_of(folder: Path) -> dict[str, tuple[str, bytes]]:
    store = open_store("packed", folder)
    records = store.records().records
    return {stem: (each.fingerprint, bytes(store.get(each))) for stem, each in records.items() if each.outcome.codec}


def test_series_are_taken_as_they_are(family: Path) -> None:
    before = content_of(family)
    found = repack(family)
    assert (found.records, found.wrong) == (300, ())
    assert series_of(family) == [("f", 0, 150), ("f", 150, 150)]
    assert content_of(family) == before
    assert found.after <= found.before


def test_members_that_follow_each_other_are_kept_together(family: Path) -> None:
    member(family, "f[10]", 1, status=Status.FAILED)
    member(family, "f[20]", 2)
    member(family, "g", 3)
    before = content_of(family)
    assert series_of(family) == [("f", 150, 150)]
    assert repack(family).records == 301
    assert series_of(family) == [("f", 150, 150), ("f", 0, 10), ("f", 11, 9), ("f", 21, 129)]
    assert content_of(family) == before
    records = open_store("packed", family).records().records
    assert [*records.notable()] == ["f[10]"]


def test_a_torn_member_costs_itself(family: Path) -> None:
    (path,) = (family / "store").glob("*.seg")
    content = path.read_bytes()
    place = content.rindex(b"298299")
    path.write_bytes(content[:place] + b"x" + content[place + 1 :])
    verdict = checking.check(family)
    assert [problem.path for problem in verdict.wrong] == [f"{family}/store/{path.name}#f[298]"]
    assert (verdict.results, verdict.bytes) == (299, len("".join(map(str, range(300)))) - 3)
    found = repack(family)
    assert [problem.path for problem in found.wrong] == [problem.path for problem in verdict.wrong]
    assert found.records == 299
    assert "f[298]" not in content_of(family)
    assert checking.check(family).sound
