"""The content of numpy arrays, pandas objects and pyarrow tables as bytes.

None of these libraries is imported here: a value of theirs can only exist where its library is loaded
already. What counts is dtype, shape and elements in C order. How they lie in memory (strides, chunks,
padding, masked-out garbage) does not count.
"""

from __future__ import annotations

import sys
from typing import Any

from ezpyp.identity.atoms import Encoder, Walk, buffer, group, text

#: Kinds of numpy dtype whose elements are nothing but their bytes.
_PLAIN_KINDS = frozenset("biufcmMSU")


def encoder(cls: type) -> Encoder | None:
    """How instances of a class of these libraries are encoded, None for any other class."""
    for library, table in _LIBRARIES.items():
        module = sys.modules.get(library)
        for name, encode in table.items():
            known = getattr(module, name, None)
            if isinstance(known, type) and issubclass(cls, known):
                return encode
    if cls.__name__ in ("NAType", "NaTType") and cls.__module__.startswith("pandas."):
        return lambda value, _walk: group(b"P", [text(str(value))])
    return None


def _array(value: Any, walk: Walk) -> bytes:
    numpy = sys.modules["numpy"]
    kind = type(value).__name__ if type(value) not in (numpy.ndarray, numpy.memmap) else "ndarray"
    plain = value.view(numpy.ndarray)
    head = [text(kind), _dtype(plain.dtype, walk), b"%d;" % plain.ndim, *(b"%d;" % n for n in plain.shape)]
    return group(b"A", [*head, _elements(plain, walk)])


def _elements(array: Any, walk: Walk) -> bytes:
    """The elements in C order; of structured arrays field by field, because the bytes between fields are
    anybody's.
    """
    dtype = array.dtype
    if dtype.names is not None:
        return group(b"S", [_elements(array[name], walk) for name in dtype.names])
    if dtype.kind == "V" and not dtype.hasobject:
        return buffer(array.tobytes())
    if dtype.kind not in _PLAIN_KINDS:
        return walk.inside(array, lambda: group(b"O", map(walk.encode, array.ravel().tolist())))
    if dtype.char in "gG":
        return group(b"g", [text(repr(each)) for each in array.ravel()])  # 80 bits in 128: the rest is garbage
    return buffer(_octets(array))


def _octets(array: Any) -> Any:
    """The elements as one contiguous run of little-endian bytes, without a copy where they lie so already."""
    numpy = sys.modules["numpy"]
    flat = numpy.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(-1)
    return flat.view(numpy.uint8) if flat.dtype.itemsize and flat.size else b""


def _dtype(dtype: Any, walk: Walk) -> bytes:
    if dtype.names is not None:
        fields = (text(name) + _dtype(dtype.fields[name][0], walk) for name in dtype.names)
        return group(b"d", fields)
    if dtype.subdtype is not None:
        return group(b"d", [_dtype(dtype.subdtype[0], walk), walk.encode(dtype.shape)])
    return text(dtype.newbyteorder("<").str if dtype.kind in _PLAIN_KINDS else f"{dtype.name} {dtype.itemsize}")


def _scalar(value: Any, walk: Walk) -> bytes:
    return group(b"a", [_array(sys.modules["numpy"].asarray(value), walk)])


def _masked(value: Any, walk: Walk) -> bytes:
    numpy = sys.modules["numpy"]
    seen = numpy.asarray(value.filled())
    mask = numpy.ma.getmaskarray(value)
    return group(b"m", [_array(seen, walk), _array(mask, walk)])


def _generator(value: Any, walk: Walk) -> bytes:
    source = getattr(value, "bit_generator", value)
    return group(b"g", [text(type(value).__name__), walk.encode(source.state)])


def _ndarray(value: Any, walk: Walk) -> bytes:
    masked = getattr(sys.modules["numpy"], "ma", None)
    if masked is not None and isinstance(value, masked.MaskedArray):
        return _masked(value, walk)
    return _array(value, walk)


def _frame(value: Any, walk: Walk) -> bytes:
    columns = (_column(value.iloc[:, k], walk) for k in range(value.shape[1]))
    return group(b"P", [text("frame"), _index(value.columns, walk), _index(value.index, walk), *columns])


def _series(value: Any, walk: Walk) -> bytes:
    head = [text("series"), walk.encode(value.name), _index(value.index, walk)]
    return group(b"P", [*head, _column(value, walk)])


def _index(value: Any, walk: Walk) -> bytes:
    head = [text(type(value).__name__), walk.encode(list(value.names))]
    if value.nlevels > 1:
        return group(b"P", [*head, *(_column(value.get_level_values(k), walk) for k in range(value.nlevels))])
    if hasattr(value, "step") and hasattr(value, "start"):
        return group(b"P", [*head, walk.encode((value.start, value.stop, value.step))])
    return group(b"P", [*head, _column(value, walk)])


def _column(value: Any, walk: Walk) -> bytes:
    return group(b"p", [text(str(value.dtype)), _extension(value.array, walk)])


def _extension(array: Any, walk: Walk) -> bytes:
    """The elements of a pandas array: as numpy holds them where numpy can, else one by one."""
    numpy, pandas = sys.modules["numpy"], sys.modules["pandas"]
    if isinstance(array, pandas.Categorical):
        codes = _array(numpy.asarray(array.codes), walk)
        return group(b"C", [_index(array.categories, walk), walk.encode(bool(array.ordered)), codes])
    if hasattr(array, "asi8"):
        return _array(array.asi8, walk)
    plain = numpy.asarray(array) if isinstance(array.dtype, numpy.dtype) else None
    if plain is None and hasattr(array.dtype, "numpy_dtype") and array.dtype.kind in "biuf":
        missing = array.isna()
        plain = array.to_numpy(dtype=array.dtype.numpy_dtype, na_value=array.dtype.type(0))
        return group(b"I", [_array(plain, walk), _array(numpy.asarray(missing), walk)])
    return _array(plain if plain is not None else numpy.asarray(array, dtype=object), walk)


def _stamp(value: Any, _walk: Walk) -> bytes:
    return group(b"P", [text(type(value).__name__), text(value.isoformat()), text(str(getattr(value, "tz", None)))])


def _period(value: Any, _walk: Walk) -> bytes:
    return group(b"P", [text("Period"), text(value.freqstr), b"%d;" % value.ordinal])


def _interval(value: Any, walk: Walk) -> bytes:
    return group(b"P", [text("Interval"), walk.encode((value.left, value.right, value.closed))])


def _table(value: Any, walk: Walk) -> bytes:
    """Names, types and columns; metadata and the cutting into chunks do not count."""
    fields = (group(b"u", [text(field.name), text(str(field.type))]) for field in value.schema)
    return group(b"W", [text(type(value).__name__), *fields, *(_chunked(c, walk) for c in value.columns)])


def _chunked(value: Any, walk: Walk) -> bytes:
    pyarrow = sys.modules["pyarrow"]
    whole = value.combine_chunks() if hasattr(value, "chunks") else value
    if isinstance(whole, pyarrow.ChunkedArray):  # too large for one array of 32-bit offsets
        return group(b"w", [_arrow(chunk, walk) for chunk in whole.chunks])
    return _arrow(whole, walk)


def _arrow(array: Any, walk: Walk) -> bytes:
    """One pyarrow array. Large numbers and strings go by their buffers, the rest one by one."""
    pyarrow = sys.modules["pyarrow"]
    kind, head = array.type, [text(str(array.type)), b"%d;" % len(array)]
    types = pyarrow.types
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_temporal(kind):
        return group(b"W", [*head, _validity(array, walk), _numbers(array, walk)])
    if types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind):
        return group(b"W", [*head, _validity(array, walk), *_strings(array, walk)])
    return group(b"W", [*head, walk.encode(array.to_pylist())])


def _validity(array: Any, walk: Walk) -> bytes:
    if not array.null_count:
        return b"v"
    return _array(array.is_valid().to_numpy(zero_copy_only=False), walk)


def _numbers(array: Any, walk: Walk) -> bytes:
    """Fixed-width elements; whatever lies under a null is left out."""
    array = array.drop_null()
    if sys.modules["pyarrow"].types.is_temporal(array.type) and array.type.bit_width in (32, 64):
        array = array.view(f"int{array.type.bit_width}")
    return _array(array.to_numpy(zero_copy_only=False), walk)


def _strings(array: Any, walk: Walk) -> list[bytes]:
    """Strings as their lengths and their letters."""
    numpy, pyarrow = sys.modules["numpy"], sys.modules["pyarrow"]
    array = array.drop_null().cast(pyarrow.large_binary())
    if not len(array):
        return []
    _, offsets, letters = array.buffers()
    ends = numpy.frombuffer(offsets, dtype=numpy.int64)[array.offset : array.offset + len(array) + 1]
    run = memoryview(letters)[ends[0] : ends[-1]] if letters is not None else b""
    return [_array(numpy.diff(ends), walk), buffer(run)]


#: Encoders by library and class. A class stands before those it is derived from.
_LIBRARIES: dict[str, dict[str, Encoder]] = {
    "numpy": {
        "ndarray": _ndarray,
        "generic": _scalar,
        "dtype": lambda value, walk: group(b"d", [_dtype(value, walk)]),
    },
    "numpy.random": {"Generator": _generator, "BitGenerator": _generator},
    "pandas": {
        "DataFrame": _frame,
        "Series": _series,
        "Index": _index,
        "Timestamp": _stamp,
        "Timedelta": _stamp,
        "Period": _period,
        "Interval": _interval,
    },
    "pyarrow": {"Table": _table, "RecordBatch": _table, "ChunkedArray": _chunked, "Array": _arrow},
}
