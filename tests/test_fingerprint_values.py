"""Identity of values: equal content is equal, everything else is told apart, and what has no identity is refused."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import functools
import pathlib
import pickle
import sqlite3
import subprocess
import sys
import threading
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ezpyp.errors import IdentityError
from ezpyp.identity.fingerprint import combine, digest_value, register_identity

Pair = namedtuple("Pair", "x y")


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Number(enum.IntEnum):
    ONE = 1


@dataclasses.dataclass
class Open:
    x: Any
    y: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class Closed:
    x: Any
    y: Any = None


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a: Any) -> None:
        self.a = a


class Derived(list[int]):
    note = ""


class Lazy:
    def __init__(self, a: int) -> None:
        self.a = a

    @functools.cached_property
    def double(self) -> int:
        return 2 * self.a


class WithHandle:
    """Keeps a lock that it leaves behind when pickled."""

    def __init__(self, a: int) -> None:
        self.a, self.lock = a, threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"a": self.a}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["a"])  # type: ignore[misc]


class Named:
    def __init__(self, name: str, connection: object) -> None:
        self.name, self.connection = name, connection

    def __ezpyp_identity__(self) -> object:
        return self.name


def _twice(x: int) -> int:
    return 2 * x


UTC = datetime.UTC
NESTED = np.array([{"a": 1}, [2]], dtype=object)
STRUCTURED = np.array([(1, 2.0)], dtype=np.dtype([("a", "i1"), ("b", "f8")], align=True))

#: No two of these are the same.
DIFFERENT = [
    *(None, 1, True, 1.0, 1 + 0j, "1", b"1", bytearray(b"1"), 0, 0.0, -0.0, False, "", b"", ..., 1 << 64, -(1 << 64)),
    *((), [], {}, set(), frozenset(), (1,), [1], {1}, frozenset({1}), {1: None}, (1, 2), (2, 1), ((1, 2),), ((1,), 2)),
    *({"a": 1}, {"a": "1"}, {"a": 1, "b": 2}, {"ab": 12}, ["ab", "c"], ["a", "bc"], ["abc"], [[], []], [[[]]]),
    *(OrderedDict(a=1, b=2), OrderedDict(b=2, a=1), defaultdict(int, a=1), defaultdict(None, a=1), Counter("aab")),
    *(deque([1]), deque([1], 3), range(3), range(4), slice(3), slice(0, 3), memoryview(b"1")),
    *(Colour.RED, Colour.BLUE, Number.ONE, Open(1), Open(1, 2), Open([1]), Closed(1), Slotted(1), Pair(1, 2)),
    *(Derived([1]), Lazy(1), Lazy(2), WithHandle(1), WithHandle(2), Named("a", None), ValueError("a"), KeyError("a")),
    *(pathlib.Path("a"), pathlib.PurePosixPath("a"), pathlib.Path("b"), decimal.Decimal("1"), decimal.Decimal("1.0")),
    *(datetime.date(2026, 1, 1), datetime.datetime(2026, 1, 1), datetime.datetime(2026, 1, 1, tzinfo=UTC)),
    *(datetime.datetime(2026, 1, 1, fold=1), datetime.timedelta(1), datetime.time(1), UTC),
    *(len, abs, int, float, Open, _twice, functools.partial(_twice, 1), functools.partial(_twice, 2), [1].append),
    *(Lazy(1).__init__, lambda x: x, lambda x: x + 1),  # type: ignore[misc]
    *(np.int64(1), np.int32(1), np.float64(1), np.array(1), np.array([1]), np.array([[1]]), np.array([1.0])),
    *(np.array(["1"]), np.array([b"1"]), np.array([1], "M8[s]"), np.array([1], "M8[ns]")),
    *(
        NESTED,
        STRUCTURED,
        np.zeros((0, 3)),
        np.zeros((3, 0)),
        np.dtype("f4"),
        np.add,
        np.array([[1]]).view(np.recarray),
    ),
    *(np.ma.array([1, 2], mask=[True, False]), np.ma.array([1, 2]), np.random.default_rng(1)),
    *(np.random.default_rng(2), np.zeros(5000), np.ones(5000), np.zeros(5000, "f4"), np.zeros((50, 100))),
    *(pd.Series([1]), pd.Series([1.0]), pd.Series([1], name="a"), pd.Series([1], index=[1]), pd.Index([0])),
    *(pd.RangeIndex(1), pd.DataFrame({"a": [1]}), pd.DataFrame({"b": [1]}), pd.DataFrame({"a": ["x"]})),
    *(pd.Series(["a"], dtype="category"), pd.Series([1, None], dtype="Int64"), pd.Series([1, 2], dtype="Int64")),
    *(pd.to_datetime(["2026-01-01"]), pd.to_datetime(["2026-01-01"]).tz_localize("UTC"), pd.NaT, pd.NA),
    *(pd.Timestamp("2026-01-01"), pd.Timestamp("2026-01-01", tz="UTC"), pd.Timedelta(1), pd.Period("2026-01")),
    *(pd.Interval(0, 1), pd.MultiIndex.from_product([[1], [2]]), pd.Series([1], dtype="Sparse[int]")),
    *(pa.table({"a": [1, None]}), pa.table({"a": [1, 2]}), pa.table({"a": ["x", None]}), pa.table({"a": [[1], [2]]})),
    *(pa.array([1, None]), pa.array(["x", "yz"]), pa.array(["xy", "z"]), pa.array([True]), pa.array([1.5])),
]


def test_different_values_are_told_apart() -> None:
    seen: dict[bytes, Any] = {}
    for value in DIFFERENT:
        digest = digest_value(value)
        assert digest not in seen, f"{value!r} and {seen[digest]!r} are the same"
        seen[digest] = value


def _can_be_pickled(value: Any) -> bool:
    return not isinstance(value, memoryview) and getattr(value, "__name__", "") != "<lambda>"


@pytest.mark.parametrize("value", [*filter(_can_be_pickled, DIFFERENT)], ids=lambda v: type(v).__name__)
def test_a_copy_is_the_same(value: Any) -> None:
    assert digest_value(pickle.loads(pickle.dumps(value))) == digest_value(value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"a", "b", "c"}, {"c", "b", "a"}),
        (float("nan"), -float("nan")),
        ([[1], [1]], [[1]] * 2),
        (np.arange(6).reshape(2, 3).T, np.ascontiguousarray(np.arange(6).reshape(2, 3).T)),
        (np.array([1, 2], ">i8"), np.array([1, 2], "<i8")),
        (np.array([(1,)], dtype=[("a", ">f4")]), np.array([(1,)], dtype=[("a", "<f4")])),
        (np.arange(10)[::2], np.array([0, 2, 4, 6, 8])),
        (np.asfortranarray(np.ones((300, 300))), np.ones((300, 300))),
        (pa.chunked_array([[1], [2, None]]), pa.array([1, 2, None])),
        (pa.array(["a", "bc", "d"])[1:], pa.array(["bc", "d"])),
        (pa.table({"a": pa.chunked_array([["x"], ["y"]])}), pa.table({"a": ["x", "y"]})),
        (pd.DataFrame({"a": [1, 2]})[::-1][::-1], pd.DataFrame({"a": [1, 2]}, index=pd.RangeIndex(2))),
        (np.ma.array([1, 2], mask=[True, False]), np.ma.array([7, 2], mask=[True, False])),
    ],
)
def test_what_cannot_be_seen_does_not_count(one: Any, other: Any) -> None:
    assert digest_value(one) == digest_value(other)


def test_padding_between_fields_does_not_count() -> None:
    padded = STRUCTURED.copy()
    padded.view(np.uint8)[1:8] = 77
    assert digest_value(padded) == digest_value(STRUCTURED)


def test_a_memory_map_is_its_array(tmp_path: Path) -> None:
    mapped = np.memmap(tmp_path / "m", dtype="f8", mode="w+", shape=(3, 4))
    mapped[:] = 2.5
    assert digest_value(mapped) == digest_value(np.full((3, 4), 2.5))


def test_a_cached_property_says_nothing_new() -> None:
    used = Lazy(3)
    assert used.double == 6
    assert digest_value(used) == digest_value(Lazy(3))


@pytest.mark.parametrize("size", [100, 20_000, 200_000])
def test_large_content_counts_to_the_last_byte(size: int) -> None:
    data = bytes(size)
    assert digest_value(data) != digest_value(data[:-1] + b"\x01")
    assert digest_value("a" * size) != digest_value("a" * (size - 1) + "b")
    assert digest_value(list(range(size))) != digest_value([*range(size - 1), -1])
    array = np.zeros(size)
    array[-1] = 1e-300
    assert digest_value(array) != digest_value(np.zeros(size))


def test_cycles_end() -> None:
    one: list[Any] = [1]
    one.append(one)
    other: list[Any] = [1]
    other.append(other)
    further: list[Any] = [2]
    further.append(further)
    assert digest_value(one) == digest_value(other) != digest_value(further)
    loop = Open(1)
    loop.y = {"me": loop}
    assert digest_value(loop) == digest_value(pickle.loads(pickle.dumps(loop)))


def test_objects_may_say_what_they_are() -> None:
    assert digest_value(Named("a", object())) == digest_value(Named("a", threading.Lock()))
    assert digest_value(Named("a", None)) != digest_value(Named("b", None))


def test_others_may_say_it_for_them() -> None:
    class Held:
        def __init__(self, path: str) -> None:
            self.path, self.connection = path, sqlite3.connect(":memory:")

    with pytest.raises(IdentityError):
        digest_value(Held("a"))
    register_identity(Held, lambda held: held.path)
    assert digest_value(Held("a")) == digest_value(Held("a")) != digest_value(Held("b"))
    with pytest.raises(TypeError, match="give a class"):
        register_identity(int, str)


def test_no_identity_is_refused_with_three_remedies() -> None:
    with pytest.raises(IdentityError) as caught:
        digest_value(sqlite3.connect(":memory:"))
    assert f"Argument 'conn' of 'load' {caught.value}" == (
        "Argument 'conn' of 'load' is a sqlite3.Connection and has no lasting identity. Pass what it is made from "
        "(a path), or @step(identity=...), or register_identity(Connection, ...)."
    )
    with pytest.raises(IdentityError, match=r"^holds a sqlite3\.Connection, which has no lasting identity\. Pass"):
        digest_value({"a": [Open(sqlite3.connect(":memory:"))]})


@pytest.mark.parametrize(
    "value", [object(), (each for each in "ab"), iter([]), sys, threading.Lock(), threading.Thread(), sys.stdout]
)
def test_handles_are_refused(value: object) -> None:
    with pytest.raises(IdentityError, match="no lasting identity"):
        digest_value(value)


def test_too_deep_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(IdentityError, match="nested too deeply"):
        digest_value(deep)
    while deep:  # take it apart by hand: freeing it at once would recurse as deep
        deep = deep.pop()


def test_a_reference_takes_the_place_of_content() -> None:
    asked: list[object] = []

    def reference(value: object) -> bytes | None:
        asked.append(value)
        return b"another step" if isinstance(value, Open) else None

    value = [1, "a", (Open(1), {"k": Closed(2)})]
    assert digest_value(value, reference=reference) == digest_value(
        [1, "a", (Open(5), {"k": Closed(2)})], reference=reference
    )
    assert [type(each) for each in asked[:2]] == [Open, Closed]
    assert digest_value(value, reference=reference) != digest_value(value)


def test_met_gathers_the_code_in_a_value() -> None:
    met: list[object] = []
    one = digest_value([Open(1), _twice, len, 3], met=met)
    assert met == [Open, _twice]
    assert one == digest_value([Open(1), _twice, len, 3], met=[]) != digest_value([Open(2), _twice, len, 3], met=[])


def test_methods_of_an_object_count() -> None:
    def made(factor: int) -> Any:
        class Scale:
            def __call__(self, x: int) -> int:
                return x * factor

        return Scale()

    assert digest_value(made(2)) == digest_value(made(2)) != digest_value(made(3))


def test_parts_do_not_run_together() -> None:
    assert combine("ab", "c") != combine("a", "bc") != combine("abc")
    assert combine(b"ab") == combine("ab")
    assert len(combine()) == 32


_atoms = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.binary(max_size=8), st.dates()
)
_keys = st.one_of(st.integers(), st.text(max_size=4), st.tuples(st.integers(), st.text(max_size=2)))
_values = st.recursive(
    _atoms,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(_keys, inner, max_size=4),
        st.frozensets(_keys, max_size=4),
        st.builds(Open, inner, inner),
        st.builds(Closed, inner),
        st.lists(st.floats(), max_size=4).map(np.array),
    ),
    max_leaves=12,
)


@settings(max_examples=200, deadline=None)
@given(_values)
def test_a_pickled_copy_keeps_its_identity(value: Any) -> None:
    assert digest_value(pickle.loads(pickle.dumps(value))) == digest_value(value)


@settings(max_examples=200, deadline=None)
@given(_values, st.data())
def test_a_changed_leaf_is_another_value(value: Any, data: st.DataObject) -> None:
    changed = _with_one_leaf_changed([value], data)
    assert digest_value(changed) != digest_value([value])


def _with_one_leaf_changed(value: Any, data: st.DataObject) -> Any:
    """A copy in which one leaf, chosen by the data, is a value that nothing else here is."""
    if isinstance(value, (list, tuple)) and value:
        place = data.draw(st.integers(0, len(value) - 1))
        inner = _with_one_leaf_changed(value[place], data)
        return type(value)([*value[:place], inner, *value[place + 1 :]])
    if isinstance(value, dict) and value:
        key = data.draw(st.sampled_from(list(value)))
        return {**value, key: _with_one_leaf_changed(value[key], data)}
    if isinstance(value, (Open, Closed)):
        return dataclasses.replace(value, x=_with_one_leaf_changed(value.x, data))
    return Colour.RED


SCRIPT = """
import sys
from ezpyp.identity.fingerprint import digest_value
value = {"b": {1, "x", 2.5, (3, "y")}, "a": frozenset({"p", "q", "r"}), ("k", 1): [None, {"z", "y", "w"}]}
print(digest_value(value).hex())
"""


def test_the_seed_of_string_hashes_does_not_count() -> None:
    root = Path(__file__).parent.parent
    runs = [
        subprocess.run(
            [sys.executable, "-c", SCRIPT],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=True,
        )
        for seed in ("1", "2", "3")
    ]
    assert len({run.stdout for run in runs}) == 1
