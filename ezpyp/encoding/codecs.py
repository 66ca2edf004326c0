"""Objects to bytes and back: pickle, cloudpickle, numpy, json, parquet; a dict of them.

A codec never reads bytes that were not verified: the store checks length and checksum first. Reading a pickle runs
what it says, so a cache folder is to be trusted like the script that made it.
"""

from __future__ import annotations

import io
import pickle
import warnings
from collections.abc import Sequence
from typing import Any, Protocol

from ezpyp.encoding import pickles, salvage
from ezpyp.errors import CodecError
from ezpyp.identity.inputs import Returning, placed
from ezpyp.system import maps
from ezpyp.system.files import Buffer


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
        """The value of bytes that `encode` made.

        It is the reader's own. Bytes that may be written to are, too (`system.maps`): the value may be a view of them.
        Of others, what can be changed has to be a copy.
        """


class Pickle:
    """Whatever pickle takes. `pickle.load` reads the file without ezpyp."""

    name, title, suffix = "pickle", "Pickle", ""

    def encode(self, value: Any) -> list[Buffer]:
        target = pickles.Pieces()
        pickle.Pickler(target, protocol=5).dump(value)
        return target.finished()

    def decode(self, data: Buffer) -> Any:
        return pickles.load(data)


class Cloudpickle:
    """As pickle, with functions and classes of the script by value."""

    name, title, suffix = "cloudpickle", "Cloudpickle", ""

    def encode(self, value: Any) -> list[Buffer]:
        import cloudpickle

        target = pickles.Pieces()
        cloudpickle.Pickler(target, protocol=5).dump(value)
        return target.finished()

    def decode(self, data: Buffer) -> Any:
        return pickles.load(data)


class Numpy:
    """Arrays and scalars, as numpy.save writes them (NEP 1). An array of no dimensions comes back as a scalar."""

    name, title, suffix = "numpy", "NumPy", ".npy"

    def encode(self, value: Any) -> list[Buffer]:
        import numpy

        if not isinstance(value, (numpy.ndarray, numpy.generic, bool, int, float, complex)):
            raise CodecError(f"{salvage.a(value)} is no array; codec 'pickle' would do")
        if isinstance(value, numpy.ndarray) and type(value) not in (numpy.ndarray, numpy.memmap):
            raise CodecError(
                f"{salvage.a(value)} is more than an array, and .npy keeps no more; codec 'pickle' would do"
            )
        array = numpy.asarray(value)
        if array.dtype.hasobject:
            raise CodecError("it is an array of Python objects; codec 'pickle' would do")
        if not (array.flags.c_contiguous or array.flags.f_contiguous):
            array = numpy.ascontiguousarray(array)
        flat = array if array.flags.c_contiguous else array.T
        return [_npy_header(array), flat.reshape(-1).view(numpy.uint8).data if array.nbytes else b""]

    def decode(self, data: Buffer) -> Any:
        import numpy

        view = memoryview(data)
        shape, by_column, dtype, start = _npy_layout(view)
        if dtype.hasobject:
            raise CodecError("it holds Python objects, which codec 'numpy' never reads; make it with codec 'pickle'")
        array = numpy.ndarray(shape, dtype, view, start, order="F" if by_column else "C")
        if not maps.is_own(data):
            array = array.copy(order="K")
        return array if array.ndim else array[()]


def _npy_layout(view: memoryview) -> tuple[tuple[int, ...], bool, Any, int]:
    """Shape, whether it is in Fortran's order, dtype, and where the elements begin (NEP 1)."""
    from numpy.lib import format as npy

    major = view[6]
    start = 10 + int.from_bytes(view[8:10], "little") if major == 1 else 12 + int.from_bytes(view[8:12], "little")
    file = io.BytesIO(view[:start])
    npy.read_magic(file)
    header = npy.read_array_header_1_0 if major == 1 else npy.read_array_header_2_0
    # The limit on headers guards against strangers' files; this one's checksum was verified.
    return *header(file, max_header_size=start), start


def _npy_header(array: Any) -> bytes:
    from numpy.lib import format as npy

    header = io.BytesIO()
    about = npy.header_data_from_array_1_0(array)
    try:
        npy.write_array_header_1_0(header, about)
    except ValueError:  # over 64 KiB: a structure of very many fields
        npy.write_array_header_2_0(header, about)
    return header.getvalue()


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
    return f"{path} is {salvage.a(value)}"


class Parquet:
    """Tables of pandas, index and all, as Apache Parquet."""

    name, title, suffix = "parquet", "Parquet", ".parquet"

    def encode(self, value: Any) -> list[Buffer]:
        import pandas

        if type(value) is not pandas.DataFrame:
            raise CodecError(f"{salvage.a(value)} is no pandas.DataFrame; codec 'pickle' would do")
        _need_pyarrow()
        target = io.BytesIO()
        with warnings.catch_warnings():
            # Pandas warns where a table would come back changed: names of mixed types, attributes beyond JSON.
            warnings.simplefilter("error", UserWarning)
            value.to_parquet(target, engine="pyarrow")
        return [target.getbuffer()]

    def decode(self, data: Buffer) -> Any:
        _need_pyarrow()
        import pandas
        import pyarrow

        return pandas.read_parquet(pyarrow.BufferReader(pyarrow.py_buffer(data)), engine="pyarrow")


def _need_pyarrow() -> None:
    try:
        import pyarrow  # noqa: F401  # whether it is there
    except ImportError:
        raise CodecError("codec 'parquet' needs pyarrow: pip install 'ezpyp[parquet]'") from None


class Files(Pickle):
    """Results that hold files: as pickle, with numbers in place of the files, which lie in the cache folder."""

    name, title = "file", "File"


_CODECS: dict[str, Codec] = {
    codec.name: codec for codec in (Pickle(), Cloudpickle(), Numpy(), Json(), Parquet(), Files())
}


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


# ----- results


class Encoded:
    """A result as bytes. `files` are the paths of those that it holds, in the order of their numbers."""

    def __init__(self, codec: str, chunks: list[Buffer], note: str = "", files: tuple[str, ...] = ()) -> None:
        self.codec, self.chunks, self.note, self.files = codec, chunks, note, files


def encode_result(name: str, value: Any, *, step: str) -> Encoded:
    """The result of a step as bytes; by cloudpickle where its own codec cannot. Files in it become numbers.

    Raises:
        CodecError: neither can; the text says which value is to blame and what to do (message 4).
    """
    with Returning() as files:
        encoded = _encoded(name, value, step)
    return Encoded(codec="file", chunks=encoded.chunks, files=tuple(files)) if files else encoded


def decode_result(codec: str, data: Buffer, folder: str, files: Sequence[tuple[str, int, str]]) -> Any:
    """The value of a result, with its files where they are in the cache folder."""
    if not files:
        return get(codec).decode(data)
    with placed(folder, [place for place, *_ in files]):
        return get(codec).decode(data)


def _encoded(name: str, value: Any, step: str) -> Encoded:
    codec = get(name)
    try:
        return Encoded(codec=codec.name, chunks=codec.encode(value))
    except Exception as error:
        why = str(error) if isinstance(error, CodecError) else salvage.one_line(error)
    try:
        chunks = get("cloudpickle").encode(value)
    except Exception as error:
        raise CodecError(f"Step '{step}' returned {salvage.complaint(value, error)}") from error
    return Encoded(codec="cloudpickle", chunks=chunks, note=f"stored with cloudpickle: {why}")
