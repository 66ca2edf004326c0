"""What every codec promises, whoever wrote it."""

from __future__ import annotations

import copy
import datetime
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ezpyp.encoding import codecs
from ezpyp.encoding.codecs import Codec
from ezpyp.errors import CodecError
from ezpyp.system.files import Buffer


class Text:
    """The smallest codec there is, as a user would write one."""

    name, title, suffix = "text", "Text", ".txt"

    def encode(self, value: Any) -> list[Buffer]:
        return [value.encode()]

    def decode(self, data: Buffer) -> Any:
        return str(data, "utf-8")


@dataclass(frozen=True)
class Point:
    x: float
    y: float


TABLE = pd.DataFrame({"a": [1, 2], "b": ["x", None]}, index=pd.Index(["one", "two"], name="row"))
#: For each codec: values that it takes, and values that it refuses.
CASES: dict[str, tuple[list[Any], list[Any]]] = {
    "pickle": (
        [None, 3, 1.5, "é", b"\0", [1, {2: (3,)}], Point(1, 2), Fraction(1, 3), np.arange(5), TABLE],
        [lambda: 1, (n for n in "ab")],
    ),
    "cloudpickle": ([None, Point(1, 2), {"a": np.eye(2)}, {1, 2}], [(n for n in "ab")]),
    "numpy": (
        [
            *(3, 2.5, 1j, True, np.float32(1.5), np.datetime64("2026-01-01", "s")),
            *(np.arange(6).reshape(2, 3), np.asfortranarray(np.arange(6).reshape(2, 3)), np.arange(10)[::-2]),
            *(np.zeros((0, 3)), np.array(["a", "é"]), np.zeros(2, dtype=[("x", "i4"), ("y", "f8", (2,))])),
            *(np.arange(3, dtype=">i4"), np.arange(3)[:0]),
        ],
        [[1, 2], "text", None, np.array([{}]), np.ma.masked_array([1, 2], [False, True]), 2**70, Point(1, 2)],
    ),
    "json": (
        [None, True, 3, 2**70, 1.5, float("inf"), "é\n", [], {}, {"a": [1, {"b": None}]}],
        [(1, 2), {1: 2}, {"a": {1}}, np.float64(1.0), Point(1, 2), b"x", datetime.date(2026, 1, 1), [[float], 1]],
    ),
    "parquet": (
        [TABLE, TABLE.iloc[:0], pd.DataFrame(), pd.DataFrame({0: [1.5], 1: [None]})],
        [[1], TABLE["a"], pd.DataFrame({"a": [1, "x"]}), pd.DataFrame({1: [1], "x": [2]})],
    ),
    "text": (["", "é"], [3, b"x"]),
}


@pytest.fixture(autouse=True)
def with_text() -> Iterator[None]:
    codecs.register(Text())
    yield
    del codecs._CODECS["text"]


def same(one: Any, other: Any) -> bool:
    """Equal in value and in type. An array of no dimensions is a scalar."""
    if isinstance(one, pd.DataFrame):
        pd.testing.assert_frame_equal(one, other)
        return True
    if isinstance(one, np.ndarray) or isinstance(other, np.generic):
        one = np.asarray(one)
        return bool(np.array_equal(one, other) and one.dtype == other.dtype and one.shape == other.shape)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    return type(one) is type(other) and bool(one == other)


def each(which: int) -> list[Any]:
    return [
        pytest.param(name, value, id=f"{name}-{k}")
        for name, case in CASES.items()
        for k, value in enumerate(case[which])
    ]


@pytest.mark.parametrize("buffer", [bytes, lambda b: memoryview(bytearray(b)), lambda b: memoryview(b).toreadonly()])
@pytest.mark.parametrize(("name", "value"), each(0))
def test_what_is_decoded_is_what_was_encoded(name: str, value: Any, buffer: Any) -> None:
    codec = codecs.get(name)
    assert same(value, codec.decode(buffer(b"".join(codec.encode(value)))))


@pytest.mark.parametrize(("name", "value"), each(0))
def test_encoding_changes_nothing_and_is_repeatable(name: str, value: Any) -> None:
    codec, before = codecs.get(name), copy.deepcopy(value)
    first = b"".join(codec.encode(value))
    assert same(before, value)
    assert b"".join(codec.encode(value)) == first


@pytest.mark.parametrize(("name", "value"), each(1))
def test_what_it_does_not_take_is_refused_not_changed(name: str, value: Any) -> None:
    with pytest.raises((CodecError, pickle.PicklingError, TypeError, AttributeError, ValueError, UserWarning)):
        codecs.get(name).encode(value)


@pytest.mark.parametrize("name", [name for name in CASES if name != "text"])
def test_what_one_step_decodes_may_be_changed_by_it(name: str) -> None:
    """A result belongs to the step that reads it: an array over read-only bytes would refuse the step's work."""
    value: Any = {"numpy": np.arange(3), "parquet": TABLE, "json": [1]}.get(name, {"a": np.arange(3)})
    codec = codecs.get(name)
    found = codec.decode(memoryview(b"".join(codec.encode(value))).toreadonly())
    if name == "parquet":
        found.loc["one", "a"] = 9
    else:
        inner = found["a"] if isinstance(found, dict) else found
        inner[0] = 9
        assert inner[0] == 9


@pytest.mark.parametrize("name", CASES)
def test_it_says_how_it_is_called_and_named_on_disk(name: str) -> None:
    codec: Codec = codecs.get(name)
    assert codec.name == name
    assert codec.title
    assert codec.suffix == "" or (codec.suffix.startswith(".") and "/" not in codec.suffix)
