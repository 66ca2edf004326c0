"""Objects to bytes and back: pickle, cloudpickle, numpy, json, parquet; a dict of them.

A codec never reads bytes that were not verified: the store checks length and checksum first. Reading a pickle runs
what it says, so a cache folder is to be trusted like the script that made it.
"""

from __future__ import annotations

import dataclasses
import io
import pickle
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from ezpyp.errors import CodecError
from ezpyp.files import Buffer


class Codec(Protocol):
    """How results of a step are written."""

    #: What users write: "numpy".
    name: str
    #: What listings show: "NumPy Step Object 'x'".
    title: str
    #: What follows `NAME.step` in the file name.
    suffix: str

    def encode(self, value: Any, /) -> list[Buffer]:
        """The bytes, in pieces to be written one after another.

        Raises:
            Exception: of any kind, for a value that it does not take; CodecError where the text is meant for the user.
        """

    def decode(self, data: Buffer, /) -> Any:
        """The value of bytes that `encode` made."""


class _Pieces:
    """A file for a pickler that keeps what it is given instead of copying it into one buffer."""

    def __init__(self) -> None:
        self.pieces: list[Buffer] = []

    def write(self, data: Any) -> int:
        # The pickler hands over large buffers as they are, and reuses none: but a memoryview dies with its object.
        self.pieces.append(data if isinstance(data, bytes) else bytes(data))
        return len(self.pieces[-1])


class Pickle:
    """Whatever pickle takes. `pickle.load` reads the file without ezpyp."""

    name, title, suffix = "pickle", "Pickle", ""

    def encode(self, value: Any) -> list[Buffer]:
        kind = type(value)
        if kind is int or kind is float or kind is str:
            return [pickle.dumps(value, 5)]
        target = _Pieces()
        pickle.Pickler(target, protocol=5).dump(value)
        return target.pieces

    def decode(self, data: Buffer) -> Any:
        return pickle.loads(data)


class Cloudpickle:
    """As pickle, with functions and classes of the script by value."""

    name, title, suffix = "cloudpickle", "Cloudpickle", ""

    def encode(self, value: Any) -> list[Buffer]:
        import cloudpickle

        target = _Pieces()
        cloudpickle.Pickler(target, protocol=5).dump(value)
        return target.pieces

    def decode(self, data: Buffer) -> Any:
        return pickle.loads(data)


class Numpy:
    """Arrays and scalars, as numpy.save writes them (NEP 1)."""

    name, title, suffix = "numpy", "NumPy", ".npy"

    def encode(self, value: Any) -> list[Buffer]:
        import numpy

        if not isinstance(value, (numpy.ndarray, numpy.generic, int, float, complex, bool)):
            raise CodecError(f"a {type(value).__name__} is no array; codec 'pickle' would do")
        array = numpy.asarray(value)
        if array.dtype.hasobject:
            raise CodecError("it is an array of Python objects; codec 'pickle' would do")
        head = io.BytesIO()
        order = array if array.flags.c_contiguous or array.flags.f_contiguous else numpy.ascontiguousarray(array)
        numpy.lib.format.write_array_header_2_0(head, numpy.lib.format.header_data_from_array_1_0(order))
        flat = order if order.flags.c_contiguous else order.T
        return [head.getvalue(), flat.reshape(-1).view(numpy.uint8).data if flat.size else b""]

    def decode(self, data: Buffer) -> Any:
        import numpy

        array = numpy.load(io.BytesIO(data), allow_pickle=False)
        return array if array.ndim else array[()]


class Json:
    """What JSON says without loss: None, booleans, numbers (NaN too), texts, lists and dicts with text keys."""

    name, title, suffix = "json", "JSON", ".json"

    def encode(self, value: Any) -> list[Buffer]:
        import json

        culprit = _unlike_json(value, "result")
        if culprit:
            raise CodecError(f"{culprit}, which JSON would change; codec 'pickle' would do")
        return [json.dumps(value, ensure_ascii=False, indent=1).encode()]

    def decode(self, data: Buffer) -> Any:
        import json

        return json.loads(bytes(data))


def _unlike_json(value: Any, path: str) -> str:
    """What in a value would not survive JSON, or ""."""
    if value is None or type(value) in (bool, int, float, str):
        return ""
    if type(value) is list:
        return next((c for k, v in enumerate(value) if (c := _unlike_json(v, f"{path}[{k}]"))), "")
    if type(value) is dict:
        strange = next((k for k in value if type(k) is not str), None)
        if strange is not None:
            return f"{path} has the key {strange!r} of type {type(strange).__name__}"
        return next((c for k, v in value.items() if (c := _unlike_json(v, f"{path}[{k!r}]"))), "")
    return f"{path} is a {type(value).__name__}"


class Parquet:
    """Tables of pandas, index and all, as Apache Parquet."""

    name, title, suffix = "parquet", "Parquet", ".parquet"

    def encode(self, value: Any) -> list[Buffer]:
        import pandas

        if not isinstance(value, pandas.DataFrame):
            raise CodecError(f"a {type(value).__name__} is no pandas table; codec 'pickle' would do")
        _need_pyarrow()
        target = io.BytesIO()
        value.to_parquet(target, engine="pyarrow")
        return [target.getbuffer()]

    def decode(self, data: Buffer) -> Any:
        import pandas

        _need_pyarrow()
        return pandas.read_parquet(io.BytesIO(data), engine="pyarrow")


def _need_pyarrow() -> None:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise CodecError("codec 'parquet' needs pyarrow: pip install 'ezpyp[parquet]'") from None


_CODECS: dict[str, Codec] = {}


def register(codec: Codec) -> None:
    """Make a codec known under its name, in place of a former one."""
    _CODECS[codec.name] = codec


def get(name: str) -> Codec:
    """The codec of that name. "dill" is what older scripts call cloudpickle.

    Raises:
        CodecError: there is none; the text lists those that are known.
    """
    codec = _CODECS.get("cloudpickle" if name == "dill" else name)
    if codec is None:
        raise CodecError(f"There is no codec '{name}'. Known: {', '.join(sorted(_CODECS))}.")
    return codec


for _each in (Pickle(), Cloudpickle(), Numpy(), Json(), Parquet()):
    register(_each)


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A result as bytes."""

    codec: str
    chunks: list[Buffer]
    note: str = ""


def encode_result(name: str, value: Any, *, step: str) -> Encoded:
    """The result of a step as bytes; by cloudpickle where its own codec cannot.

    Raises:
        CodecError: neither can; the text says which value is to blame and what to do (message 4).
    """
    try:
        return Encoded(codec=name, chunks=get(name).encode(value))
    except Exception as error:
        first = error
    if isinstance(value, (types.GeneratorType, types.AsyncGeneratorType)) or _is_lazy(value):
        kind = "generator" if isinstance(value, types.GeneratorType) else type(value).__name__
        raise CodecError(
            f"Step '{step}' returned a {kind}, which cannot be stored. "
            "Return a list, or write it to a file and return File(path)."
        ) from None
    try:
        chunks = get("cloudpickle").encode(value)
    except Exception as second:
        culprit = _culprit(value) or f"result is a {_type_name(value)} ({type(second).__name__}: {second})"
        raise CodecError(
            f"Step '{step}' returned a value that cannot be stored: {culprit}. "
            "Return what it is made from, or write it to a file and return File(path)."
        ) from None
    why = str(first) if isinstance(first, CodecError) else f"{type(first).__name__}: {first}"
    return Encoded(codec="cloudpickle", chunks=chunks, note=f"stored by cloudpickle, not {name}: {why}")


def _is_lazy(value: Any) -> bool:
    return isinstance(value, (map, filter, zip, types.CoroutineType))


@dataclass(frozen=True, slots=True, kw_only=True)
class Unstored:
    """Stands in NAME.partial for a part of a result that could not be stored."""

    type_name: str
    text: str


def partial_of(value: Any) -> bytes:
    """Cloudpickle of a result with an Unstored in place of each part that cannot be stored."""
    import cloudpickle

    return bytes(cloudpickle.dumps(_storable(value, 0)))


def _storable(value: Any, depth: int) -> Any:
    if _fits(value):
        return value
    if depth < 20:
        if isinstance(value, dict):
            return {k: _storable(v, depth + 1) for k, v in value.items() if _fits(k)}
        if isinstance(value, (list, tuple)):
            return [_storable(v, depth + 1) for v in value]
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: _storable(getattr(value, f.name), depth + 1) for f in dataclasses.fields(value)}
    return Unstored(type_name=_type_name(value), text=_repr(value))


def _culprit(value: Any) -> str:
    """The first part that cannot be stored, by its path: `result['log'] is an _io.TextIOWrapper`."""
    for path, part in _parts(value, "result", 0):
        if not _fits(part):
            name = _type_name(part)
            return f"{path} is {'an' if name.lstrip('_')[:1].lower() in 'aeiou' else 'a'} {name}"
    return ""


def _parts(value: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    """The leaves of containers and dataclasses, with their paths."""
    items: list[tuple[str, Any]] | None = None
    if depth < 20:
        if isinstance(value, dict):
            items = [(f"{path}[{k!r}]", v) for k, v in value.items()]
        elif isinstance(value, (list, tuple)):
            items = [(f"{path}[{k}]", v) for k, v in enumerate(value)]
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            items = [(f"{path}.{f.name}", getattr(value, f.name)) for f in dataclasses.fields(value)]
    if items is None:
        yield path, value
        return
    for where, part in items:
        yield from _parts(part, where, depth + 1)


def _fits(value: Any) -> bool:
    try:
        get("cloudpickle").encode(value)
    except Exception:
        return False
    return True


def _type_name(value: Any) -> str:
    kind = type(value)
    return (
        kind.__qualname__ if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}.{kind.__qualname__}"
    )


def _repr(value: Any) -> str:
    try:
        return repr(value)[:200]
    except Exception:
        return "?"
