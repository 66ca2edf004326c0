"""Codecs: files that others read, memory, refusals, and what happens to results that a codec does not take."""

from __future__ import annotations

import builtins
import io
import json
import mmap
import pickle
import pickletools
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ezpyp.encoding import codecs
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
    with pytest.raises(CodecError, match="it holds Python objects"):
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


def own(data: bytes) -> memoryview:
    """Bytes as a reader has them who may keep them: a map, writable."""
    memory = mmap.mmap(-1, len(data))
    memory[:] = data
    return memoryview(memory)


VALUES: dict[str, Callable[[], Any]] = {
    "numpy": lambda: np.arange(BIG // 8, dtype=np.int64),
    "pickle": lambda: {
        "a": np.arange(BIG // 8, dtype=np.int64),
        "b": "small",
        "c": pd.DataFrame({"x": np.ones(BIG // 8)}),
    },
    "cloudpickle": lambda: [np.arange(BIG // 8), np.asfortranarray(np.ones((3, BIG // 8))), np.arange(3)],
}


def arrays_in(value: Any) -> list[np.ndarray[Any, Any]]:
    if isinstance(value, dict):
        return [value["a"], value["c"]["x"].to_numpy()]
    return value if isinstance(value, list) else [value]


@pytest.mark.parametrize("name", VALUES)
def test_what_is_big_and_the_readers_own_is_read_without_a_copy(name: str) -> None:
    value = VALUES[name]()
    data = own(encoded(name, value))
    assert peak_of(lambda: codecs.get(name).decode(data)) < 0.1 * BIG
    found = codecs.get(name).decode(data)
    for one, other in zip(arrays_in(value), arrays_in(found), strict=True):
        assert np.array_equal(one, other)
        assert one.flags.f_contiguous == other.flags.f_contiguous
        assert other.flags.aligned


@pytest.mark.parametrize("name", VALUES)
def test_what_is_not_the_readers_own_is_read_with_one_copy(name: str) -> None:
    value = VALUES[name]()
    size = sum(array.nbytes for array in arrays_in(value))
    data = own(encoded(name, value)).toreadonly()
    assert peak_of(lambda: codecs.get(name).decode(data)) < 1.1 * size
    arrays_in(codecs.get(name).decode(data))[0][0] = 7
    assert bytes(data) == encoded(name, value)


@pytest.mark.parametrize("shift", [1, 8])
def test_numbers_that_lie_askew_are_copied(shift: int) -> None:
    """Where a result lies in the middle of a file, its arrays may not be where processors want them."""
    value = np.arange(BIG // 8)
    for name in ("numpy", "pickle"):
        data = own(b"x" * shift + encoded(name, value))[shift:]
        found = codecs.get(name).decode(data)
        assert found.flags.aligned
        assert np.array_equal(found, value)


def test_what_may_not_be_written_to_stays_so() -> None:
    value = np.arange(BIG // 8)
    value.flags.writeable = False
    for data in (encoded("pickle", value), own(encoded("pickle", value))):
        found = codecs.get("pickle").decode(data)
        assert np.array_equal(found, value)
        assert not found.flags.writeable


def test_one_array_in_two_places_is_one_array_again() -> None:
    array = np.arange(BIG // 8)
    found = codecs.get("pickle").decode(own(encoded("pickle", [array, array, array[:10]])))
    assert found[0] is found[1]
    assert np.array_equal(found[2], array[:10])


@given(
    sizes=st.lists(st.integers(0, 300_000), max_size=6),
    words=st.binary(max_size=200_000),
    dtype=st.sampled_from(["u1", "<f4", ">i8", "S3"]),
)
@settings(max_examples=50, deadline=None)
def test_buffers_of_every_size_come_back(sizes: list[int], words: bytes, dtype: str) -> None:
    value = [(np.resize(np.arange(251), size).astype(dtype), words[:k], k) for k, size in enumerate(sizes)]
    data = encoded("pickle", value)
    for found in (pickle.loads(data), codecs.get("pickle").decode(data), codecs.get("pickle").decode(own(data))):
        assert len(found) == len(value)
        for one, other in zip(value, found, strict=True):
            assert np.array_equal(one[0], other[0])
            assert one[0].dtype == other[0].dtype
            assert one[1:] == other[1:]
            assert other[0].flags.writeable


def test_a_pickle_with_large_buffers_is_a_pickle_to_others() -> None:
    """Another program takes it to pieces, and finds the buffers at multiples of a cache line."""
    data = encoded("pickle", [1, np.ones(BIG // 8), "text", np.zeros(BIG // 8 + 1), bytearray(b"x" * BIG)])
    found = [(code.name, place or 0) for code, _, place in pickletools.genops(data)]
    large = [place + 9 for name, place in found if name == "BYTEARRAY8"]
    assert [place % 64 for place in large[:2]] == [0, 0]
    assert found[-1][0] == "STOP"


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
