"""Codecs: files that others read, memory, refusals, and what happens to results that a codec does not take."""

from __future__ import annotations

import builtins
import io
import json
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from ezpyp import codecs
from ezpyp.errors import CodecError

BIG = 1 << 24


def encoded(name: str, value: Any) -> bytes:
    return b"".join(codecs.get(name).encode(value))


def refusal(name: str, value: Any) -> str:
    with pytest.raises(CodecError) as caught:
        codecs.get(name).encode(value)
    return str(caught.value)


def peak_of(work: Callable[[], Any]) -> int:
    """The most memory that the work held at once, its result included."""
    tracemalloc.start()
    try:
        kept = work()
        assert kept is not None
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# The registry


def test_an_unknown_codec_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(CodecError) as caught:
        codecs.get("marshal")
    assert str(caught.value) == "There is no codec 'marshal'. Known: cloudpickle, file, json, numpy, parquet, pickle."


def test_dill_is_cloudpickle() -> None:
    assert codecs.get("dill") is codecs.get("cloudpickle")


@pytest.mark.parametrize(
    ("name", "title", "suffix"),
    [
        ("pickle", "Pickle", ""),
        ("cloudpickle", "Cloudpickle", ""),
        ("numpy", "NumPy", ".npy"),
        ("json", "JSON", ".json"),
        ("parquet", "Parquet", ".parquet"),
    ],
)
def test_titles_and_suffixes(name: str, title: str, suffix: str) -> None:
    codec = codecs.get(name)
    assert (codec.title, codec.suffix) == (title, suffix)


# Files that others read


def test_plain_pickle_reads_a_pickle() -> None:
    plane = np.arange(100_000.0).reshape(1000, 100)
    value: dict[str, Any] = {"a": plane, "b": plane.T, "c": plane[::2, ::2], "d": bytearray(b"x" * 100_000)}
    found = pickle.load(io.BytesIO(encoded("pickle", value)))
    assert sorted(found) == ["a", "b", "c", "d"]
    assert all(np.array_equal(found[key], value[key]) for key in value)


def test_plain_pickle_reads_a_cloudpickle() -> None:
    def double(x: int) -> int:
        return 2 * x

    assert pickle.loads(encoded("cloudpickle", double))(4) == 8


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.zeros(1, dtype=[(f"column{k}", "f8") for k in range(3000)]),
    ],
)
def test_numpy_reads_an_npy_that_equals_its_own(array: np.ndarray[Any, Any], tmp_path: Path) -> None:
    file = tmp_path / "a.step.npy"
    file.write_bytes(encoded("numpy", array))
    found = np.load(file, allow_pickle=False, max_header_size=100_000)
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)
    assert found.flags.f_contiguous == array.flags.f_contiguous


def test_an_array_of_objects_is_never_unpickled() -> None:
    target = io.BytesIO()
    np.save(target, np.array([{}]), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        codecs.get("numpy").decode(target.getvalue())


def test_json_is_text_that_a_person_reads() -> None:
    text = encoded("json", {"é": [1, float("nan")]}).decode("utf-8")
    assert text == '{\n "é": [\n  1,\n  NaN\n ]\n}'
    assert list(json.loads(text)) == ["é"]


def test_pandas_reads_a_parquet(tmp_path: Path) -> None:
    table = pd.DataFrame({"a": [1.5, 2.5]}, index=pd.MultiIndex.from_tuples([("x", 1), ("y", 2)], names=["n", "k"]))
    file = tmp_path / "a.step.parquet"
    file.write_bytes(encoded("parquet", table))
    pd.testing.assert_frame_equal(pd.read_parquet(file), table)


# Memory


@pytest.mark.parametrize("name", ["pickle", "cloudpickle"])
@pytest.mark.parametrize("value", [np.zeros(BIG, dtype=np.uint8), bytes(BIG), bytearray(BIG)], ids=["array", "b", "ba"])
def test_what_is_big_is_pickled_without_a_copy(name: str, value: Any) -> None:
    assert peak_of(lambda: codecs.get(name).encode([value])) < 0.1 * BIG


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_big_array_becomes_npy_without_a_copy(order: Any) -> None:
    array = np.zeros((4, BIG // 4), dtype=np.uint8, order=order)
    assert peak_of(lambda: codecs.get("numpy").encode(array)) < 0.1 * BIG


def test_a_mapped_npy_is_read_with_one_copy() -> None:
    data = memoryview(bytearray(encoded("numpy", np.zeros(BIG, dtype=np.uint8))))
    assert peak_of(lambda: codecs.get("numpy").decode(data)) < 1.1 * BIG


def test_a_mapped_pickle_is_read_with_one_copy() -> None:
    data = memoryview(bytearray(encoded("pickle", np.zeros(BIG, dtype=np.uint8))))
    assert peak_of(lambda: codecs.get("pickle").decode(data)) < 1.1 * BIG


# Refusals


def test_numpy_says_what_it_was_given_and_which_codec_would_do() -> None:
    assert refusal("numpy", {"a": 1}) == "a dict is no array; codec 'pickle' would do"
    assert refusal("numpy", np.array([{}])) == "it is an array of Python objects; codec 'pickle' would do"
    assert refusal("numpy", np.ma.masked_array([1])) == (
        "a numpy.ma.MaskedArray is more than an array, and .npy keeps no more; codec 'pickle' would do"
    ).replace("numpy.ma.", f"{np.ma.MaskedArray.__module__}.")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"a": [0, 1, 2, {1}]}, "result['a'][3] is a set"),
        ({"a": {1: 2}}, "result['a'] has the key 1 of type int"),
        ([0, (1, 2)], "result[1] is a tuple"),
        (np.int64(1), "result is a numpy.int64"),
    ],
)
def test_json_says_which_value_would_change(value: Any, text: str) -> None:
    assert refusal("json", value) == f"{text}, which JSON would change; codec 'pickle' would do"


def test_parquet_takes_tables_only() -> None:
    class Special(pd.DataFrame):
        pass

    assert refusal("parquet", [1]) == "a list is no pandas.DataFrame; codec 'pickle' would do"
    assert "Special is no pandas.DataFrame" in refusal("parquet", Special({"a": [1]}))


def test_parquet_without_pyarrow_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    data = encoded("parquet", pd.DataFrame({"a": [1]}))
    monkeypatch.setattr(builtins, "__import__", without)
    assert refusal("parquet", pd.DataFrame()) == "codec 'parquet' needs pyarrow: pip install 'ezpyp[parquet]'"
    with pytest.raises(CodecError, match=r"pip install 'ezpyp\[parquet\]'"):
        codecs.get("parquet").decode(data)


# Results of steps


def test_a_result_is_encoded_by_its_own_codec_where_that_can() -> None:
    found = codecs.encode_result("json", [1], step="load")
    assert (found.codec, found.note, b"".join(found.chunks)) == ("json", "", b"[\n 1\n]")


def test_dill_is_recorded_under_the_name_that_is_in_the_registry() -> None:
    assert codecs.encode_result("dill", 1, step="load").codec == "cloudpickle"


def test_a_result_that_its_codec_cannot_encode_goes_to_cloudpickle() -> None:
    found = codecs.encode_result("numpy", {"a": 1}, step="load")
    assert found.codec == "cloudpickle"
    assert found.note == "stored with cloudpickle: a dict is no array; codec 'pickle' would do"
    assert codecs.get("cloudpickle").decode(b"".join(found.chunks)) == {"a": 1}


def test_a_closure_goes_to_cloudpickle_with_the_reason() -> None:
    found = codecs.encode_result("pickle", lambda: 3, step="load")
    assert found.note.startswith("stored with cloudpickle: ")
    assert "lambda" in found.note
    assert "\n" not in found.note
    assert pickle.loads(b"".join(found.chunks))() == 3


def test_a_table_that_parquet_would_change_goes_to_cloudpickle() -> None:
    table = pd.DataFrame({1: [1], "x": [2]})
    found = codecs.encode_result("parquet", table, step="load")
    assert found.codec == "cloudpickle"
    pd.testing.assert_frame_equal(pickle.loads(b"".join(found.chunks)), table)


def test_an_unknown_codec_is_no_reason_for_another() -> None:
    with pytest.raises(CodecError, match="There is no codec 'marshal'"):
        codecs.encode_result("marshal", 1, step="load")


def test_a_generator_is_refused_word_for_word() -> None:
    with pytest.raises(CodecError) as caught:
        codecs.encode_result("pickle", (n for n in range(3)), step="load")
    assert str(caught.value) == (
        "Step 'load' returned a generator, which cannot be stored. "
        "Return a list, or write it to a file and return File(path)."
    )


def test_what_cannot_be_stored_is_named(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as log, pytest.raises(CodecError) as caught:
        codecs.encode_result("pickle", {"loss": [0.5], "log": log}, step="fit")
    assert str(caught.value) == (
        "Step 'fit' returned a value that cannot be stored: result['log'] is an _io.TextIOWrapper. "
        "Return what it is made from, such as a path or plain numbers."
    )
    assert isinstance(caught.value.__cause__, pickle.PicklingError)
