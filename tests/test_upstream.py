"""Results of earlier steps: whose they are, what is kept of them, and what that costs."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from ezpyp import Pipeline, as_numpy_step, as_pickle_step
from ezpyp.encoding import codecs
from ezpyp.errors import StoreError
from ezpyp.model.edges import Edges
from ezpyp.model.outcomes import Failed, Outcome, Status
from ezpyp.schedule.briefs import pack
from ezpyp.storage.filestore import FileStore
from ezpyp.storage.opening import Record
from ezpyp.work import upstream
from ezpyp.work.upstream import Upstream

PRINTS = ["aa", "bb", "cc"]


class Folder:
    """Three steps in a folder, the last of which depends on the others."""

    def __init__(self, path: Path) -> None:
        self.path, self.store = path, FileStore(path, shared=False)
        steps = [SimpleNamespace(name=f"s{k}") for k in range(3)]
        self.plan: Any = SimpleNamespace(
            steps=steps,
            stems=[step.name for step in steps],
            index={step.name: k for k, step in enumerate(steps)},
            graph=SimpleNamespace(parents=Edges.of([[], [], [0, 1]])),
        )

    def put(self, k: int, value: Any, *, status: Status = Status.DONE, fingerprint: str = "") -> None:
        outcome = Outcome(step=k, status=status, codec="pickle" if status is Status.DONE else "", note="broke")
        record = Record(name=f"s{k}", fingerprint=fingerprint or PRINTS[k], outcome=outcome)
        chunks = codecs.encode_result("pickle", value, step=f"s{k}").chunks if status is Status.DONE else None
        self.store.put(f"s{k}", record, chunks)

    def upstream(self) -> Upstream:
        return Upstream(plan=self.plan, fingerprints=PRINTS, store=self.store, folder=str(self.path))


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


def large() -> Any:
    return np.arange(1 << 18, dtype=np.float64)  # 2 MiB: mapped


@pytest.mark.parametrize("make", [lambda: [1, 2], lambda: np.arange(3), large], ids=["list", "array", "large"])
def test_each_reader_has_a_value_of_its_own(folder: Folder, make: Any) -> None:
    folder.put(0, make())
    found = folder.upstream()
    for _ in range(3):
        value = found.value(0)
        assert np.array_equal(value, make())
        value[0] = 99


def test_a_small_result_is_read_once(folder: Folder) -> None:
    folder.put(0, "small")
    found = folder.upstream()
    assert found.value(folder.plan.steps[0]) == "small"
    folder.store.drop("s0")
    assert found.value(0) == "small"
    with pytest.raises(StoreError, match=r"The result of 's0' is gone from .* Run again to remake it\."):
        folder.upstream().value(0)


def test_what_this_process_made_is_not_read_at_all(folder: Folder) -> None:
    found = folder.upstream()
    found.keep(1, "json", [b"[1, ", b"2]"])
    assert found.value(1) == [1, 2]


def test_what_is_kept_is_bounded(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "_MOST", 1000)
    found = folder.upstream()
    for k in range(50):
        found.keep(k % 7, "pickle", [bytes(k)])
        assert sum(len(data) + upstream._EACH for _, data in found._kept.values()) == found._size <= 1000
    assert list(found._kept) == [46 % 7, 47 % 7, 48 % 7, 49 % 7]


def test_what_is_large_or_wanted_by_nobody_is_not_kept(folder: Folder) -> None:
    found = folder.upstream()
    found.keep(0, "pickle", [bytes(1 << 16), b"x"])
    assert not found._kept
    folder.plan.graph.parents = Edges.none(3)
    alone = folder.upstream()
    alone.keep(0, "pickle", [b"x"])
    assert not alone._kept


def test_an_allowed_failure_is_a_value(folder: Folder) -> None:
    folder.put(0, None, status=Status.FAILED)
    found = folder.upstream().value(0, absent=True)
    assert isinstance(found, Failed)
    assert found.reason == "broke"


def test_a_former_result_is_refused(folder: Folder) -> None:
    folder.put(0, "former", fingerprint="ff")
    with pytest.raises(StoreError, match="is gone"):
        folder.upstream().value(0)


@pytest.mark.parametrize("store", ["files", "packed"])
@pytest.mark.parametrize("options", [{"executor": "inline"}, {"workers": 2}], ids=["inline", "helpers"])
def test_steps_may_work_in_what_they_get(tmp_path: Path, options: dict[str, Any], store: str) -> None:
    pipeline = Pipeline(tmp_path / "cache", "own", store=store, **options)

    @as_numpy_step(pipeline)
    def table() -> Any:
        return large()

    @as_pickle_step(pipeline)
    def pair() -> Any:
        return {"table": large(), "list": [1]}

    @as_pickle_step(pipeline)
    def spoil(plain: Any, both: Any, number: int) -> float:
        plain += number
        both["table"][:] = number
        both["list"].append(number)
        return float(plain[0] + both["table"].sum() / both["table"].size + len(both["list"]))

    source, both = table(), pair()
    spoilers = [spoil(source, both, k) for k in range(6)]
    summary = pipeline.execute()
    assert summary.ok
    assert [step.result() for step in spoilers] == [2.0 * k + 2 for k in range(6)]
    assert np.array_equal(source.result(), large())


def briefs_of(*steps: int) -> bytes:
    return b"".join(pack(k, 1, 0, 0, 0.0, 0.0, 0, 0, 0) for k in steps)


def test_small_results_travel_to_those_that_are_given_them(folder: Folder) -> None:
    here, there = folder.upstream(), folder.upstream()
    here.keep(0, "pickle", (pickle.dumps([1, 2]),))
    here.keep_plain([1, 2], [7, 8], [pickle.dumps(7), pickle.dumps(8)])
    values = here.travelling(briefs_of(0, 1, 2))
    assert values == {0: pickle.dumps([1, 2]), 1: pickle.dumps(7)}  # nobody is given the last
    there.tell(b"", values)
    assert there.plain(1) == there.value(1) == 7
    assert there.value(0) == [1, 2]
    assert there.value(0) is not there.value(0)
    with pytest.raises(LookupError):
        there.plain(0)


def test_large_results_and_those_of_other_codecs_are_looked_up(folder: Folder) -> None:
    here = folder.upstream()
    here.keep(0, "pickle", (pickle.dumps("x" * 300),))
    here.keep(1, "json", (b"1",))
    assert here.travelling(briefs_of(0, 1)) == {}
    with pytest.raises(LookupError):
        here.plain(1)
    assert here.plain(0) == "x" * 300


class Remembers:
    """Runs code when it is unpickled, as what users return may."""

    made = 0

    def __reduce__(self) -> Any:
        return _make, ()


def _make() -> Any:
    Remembers.made += 1
    return 5


def test_nothing_of_the_users_runs_where_a_plain_value_is_looked_for(folder: Folder) -> None:
    here = folder.upstream()
    here.keep(0, "pickle", (pickle.dumps(Remembers()),))
    with pytest.raises(LookupError):
        here.plain(0)
    assert Remembers.made == 0
    assert here.value(0) == 5
