"""Objects between an agent and a helper, pickled, over a stream socket.

What multiprocessing has for this takes longer to import than a helper takes to start.
"""

from __future__ import annotations

import pickle
import select
import socket
import struct
from typing import Any

_HEAD = struct.Struct("<Q")
#: No more is asked for at once: room is taken for all that is asked for.
_PIECE = 1 << 20


class Wire:
    """One end. It owns its socket."""

    __slots__ = ("_socket",)

    def __init__(self, own: socket.socket) -> None:
        own.settimeout(None)  # whatever default the script has set
        self._socket = own

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, content: Any) -> None:
        """Blocks while the other end does not read.

        Raises:
            OSError: the other end is gone.
        """
        told = pickle.dumps(content, pickle.HIGHEST_PROTOCOL)
        self._socket.sendall(_HEAD.pack(len(told)) + told, socket.MSG_NOSIGNAL)

    def receive(self) -> Any:
        """The next object; blocks until it is here.

        Raises:
            EOFError: the other end is gone. OSError: it ended before it had read all that was sent to it.
        """
        (length,) = _HEAD.unpack(self._read(_HEAD.size))
        return pickle.loads(self._read(length))

    def has_come(self, seconds: float = 0.0) -> bool:
        """Whether `receive` finds the beginning of an object, or the end; waits so long for it."""
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        return bool(poll.poll(1000 * seconds))

    def close(self) -> None:
        self._socket.close()

    def _read(self, length: int) -> bytes:
        piece = self._socket.recv(min(length, _PIECE))
        if len(piece) == length:
            return piece
        pieces = bytearray()
        while piece:
            pieces += piece
            if len(pieces) == length:
                return bytes(pieces)
            piece = self._socket.recv(min(length - len(pieces), _PIECE))
        raise EOFError
