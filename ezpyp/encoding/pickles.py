"""Pickles whose large buffers lie so in their file that a map of the file is the value.

`pickle.load` reads them like any other. The large buffers of protocol 5 (arrays of numpy, columns of pandas) stand in
the stream where they always do, aligned by operations that do nothing; behind its end a table says where they are. A
reader to whom the bytes belong lets the buffers be views of them, in place of copies.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Iterator
from typing import Any

from ezpyp.system import maps
from ezpyp.system.files import Buffer

#: Where buffers begin: at the start of a cache line.
_ALIGNMENT = 64
#: For each buffer: where its opcode begins, where its bytes begin, where they end.
_ENTRY = struct.Struct("<QQQ")
#: How many entries, and the mark. A pickle ends in a dot, the mark does not.
_END = struct.Struct("<Q8s")
_MARK = b"ezpyp\0b1"
#: Opcodes (pickletools lists them): bytes that may be changed, bytes that may not, and buffers from elsewhere.
_BYTEARRAY8, _BINBYTES, _BINBYTES8 = b"\x96", b"B", b"\x8e"
_NEXT_BUFFER, _READONLY_BUFFER = b"\x97", b"\x98"


class Pieces:
    """A file for a pickler that keeps the pieces it is given instead of joining them."""

    __slots__ = ("_size", "_table", "pieces")

    def __init__(self) -> None:
        self.pieces: list[Buffer] = []
        self._size = 0
        self._table: list[bytes] = []

    def write(self, data: Buffer | pickle.PickleBuffer) -> int:
        # Large buffers come as they are, and need no copy: the value that is pickled outlives the pieces.
        if isinstance(data, pickle.PickleBuffer):
            buffer = data.raw()
            self._align(buffer)
            return self._add(buffer)
        return self._add(data)

    def finished(self) -> list[Buffer]:
        """The pieces, with the table where there are large buffers."""
        if self._table:
            self._add(b"".join((*self._table, _END.pack(len(self._table), _MARK))))
        return self.pieces

    def _add(self, piece: Buffer) -> int:
        self.pieces.append(piece)
        self._size += len(piece)
        return len(piece)

    def _align(self, buffer: memoryview) -> None:
        """Have the buffer begin at a multiple of the alignment. Its opcode and length came just before it."""
        opcode = _opcode(buffer)
        before = self.pieces.pop()
        self._size -= len(before)
        if bytes(before[-len(opcode) :]) != opcode:
            self._add(before)
            return
        self._add(before[: -len(opcode)])
        self._add(_idle(-(self._size + len(opcode)) % _ALIGNMENT))
        start = self._size
        self._add(opcode)
        self._table.append(_ENTRY.pack(start, self._size, self._size + len(buffer)))


def _opcode(buffer: memoryview) -> bytes:
    size = len(buffer)
    if not buffer.readonly:
        return _BYTEARRAY8 + struct.pack("<Q", size)
    return _BINBYTES + struct.pack("<I", size) if size < 1 << 32 else _BINBYTES8 + struct.pack("<Q", size)


def _idle(size: int) -> bytes:
    """Operations that do nothing: put None, or zero, on the stack, and take it off."""
    if size % 2 == 0:
        return b"N0" * (size // 2)
    return b"K\x000" + _idle(size - 3 if size > 1 else size - 3 + _ALIGNMENT)


def load(data: Buffer) -> Any:
    """The value of a pickle. Large buffers in it are views of the data where that is the caller's own to give."""
    table = _table(data) if maps.is_own(data) else None
    if not table:
        return pickle.loads(data)
    view = memoryview(data)
    stream = io.BufferedReader(_Chain(_without(view, table)))
    return pickle.Unpickler(stream, buffers=[view[first:stop] for _, first, stop in table]).load()


def _table(data: Buffer) -> list[tuple[int, int, int]]:
    view = memoryview(data)
    if len(view) < _END.size:
        return []
    count, mark = _END.unpack(view[-_END.size :])
    if mark != _MARK:
        return []
    return list(_ENTRY.iter_unpack(view[-_END.size - count * _ENTRY.size : -_END.size]))


def _without(view: memoryview, table: list[tuple[int, int, int]]) -> Iterator[memoryview]:
    """The stream with each large buffer replaced by the opcodes for one from elsewhere."""
    done = 0
    for start, _, stop in table:
        yield view[done:start]
        changeable = view[start : start + 1] == _BYTEARRAY8
        yield memoryview(_NEXT_BUFFER if changeable else _NEXT_BUFFER + _READONLY_BUFFER)
        done = stop
    yield view[done:]


class _Chain(io.RawIOBase):
    """Pieces read as one file."""

    def __init__(self, pieces: Iterator[memoryview]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = piece
        size = min(len(target), len(self._rest))
        target[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size
