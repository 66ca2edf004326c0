"""Numbers, text and buffers as bytes that say their type and where they end: what identity stands on.

Every piece begins with a tag and carries its length, so two different values never give the same bytes,
whatever stands beside them. What these bytes look like is fixed by tests/golden: a change here makes every
stored result stale.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from struct import pack
from typing import Any, Protocol

from ezpyp.system.digests import blake2b

#: Buffers above this many bytes count by an xxh3_128 digest, which runs at the speed of memory.
LARGE = 16 * 1024

#: Pieces of structure above this many bytes are folded into a digest, so that nesting does not copy them
#: again and again.
FOLDED = 64 * 1024

_NAN = b"f\x7f\xf8\x00\x00\x00\x00\x00\x00"


class Walk(Protocol):
    """What an encoder may ask of the walk it is part of."""

    def code(self, value: Any, /) -> bytes:
        """The bytes of a function or class."""

    def encode(self, value: Any, /) -> bytes:
        """The bytes of a value inside the one being encoded."""

    def inside(self, value: Any, encode: Callable[[], bytes], /) -> bytes:
        """Run `encode` with `value` on the path, so that a cycle back to it ends there."""


#: Gives the bytes of a value, asking the walk for what is inside it.
Encoder = Callable[[Any, Walk], bytes]


def digest(data: bytes) -> bytes:
    """The 16 bytes that stand for `data`."""
    return blake2b(data, digest_size=16).digest()


#: Up to this many bytes stand for themselves where a digest would do.
BRIEF = 64


def brief(data: bytes) -> bytes:
    """`data` itself where it is short, else its digest. What an encoder gives never begins with a hash sign."""
    return data if len(data) <= BRIEF else b"#" + digest(data)


def combine(*parts: bytes | str) -> str:
    """A digest of several parts in order, as 32 hexadecimal digits. No two lists of parts give the same
    input.
    """
    pieces = (part.encode() if isinstance(part, str) else part for part in parts)
    return blake2b(b"".join(b"%d:%b" % (len(p), p) for p in pieces), digest_size=16).hexdigest()


def text(value: str) -> bytes:
    """A string; lone surrogates, as in undecodable file names, are kept."""
    try:
        data = value.encode()
    except UnicodeEncodeError:
        data = value.encode("utf-8", "surrogatepass")
    return b"s%d:%b" % (len(data), data) if len(data) <= LARGE else b"s" + buffer(data)


def octets(tag: bytes, data: bytes) -> bytes:
    """A short tag and a run of bytes."""
    return b"%b%d:%b" % (tag, len(data), data) if len(data) <= LARGE else tag + buffer(data)


def buffer(data: Any) -> bytes:
    """Anything with a contiguous buffer of bytes, by length and content."""
    size = memoryview(data).nbytes
    if size <= LARGE:
        return b"b%d:%b" % (size, bytes(data))
    import xxhash

    return b"x%d:%b" % (size, xxhash.xxh3_128_digest(data))


def group(tag: bytes, pieces: Iterable[bytes]) -> bytes:
    """Pieces in order under one tag; folded into a digest when they grow large."""
    known = pieces if type(pieces) is list else [*pieces]
    data = b"".join(known)
    if len(data) > FOLDED:
        return b"%b%d#%b" % (tag, len(known), digest(data))
    return b"%b%d(%b" % (tag, len(known), data)


def real(value: float) -> bytes:
    """A float by its bits: -0.0 is not 0.0, and every NaN is the same NaN."""
    return b"f" + pack(">d", value) if value == value else _NAN  # noqa: PLR0124 (NaN is what differs from itself)


def _integer(value: int) -> bytes:
    return b"i%d;" % value if -(1 << 64) < value < (1 << 64) else b"j%x;" % value


def _truth(value: bool) -> bytes:
    return b"T" if value else b"F"


#: Encoders of the types that hold nothing else, by exact type.
ATOMS: dict[type, Callable[[Any], bytes]] = {
    int: _integer,
    float: real,
    str: text,
    bool: _truth,
    type(None): lambda _: b"N",
    bytes: lambda value: octets(b"y", value),
    complex: lambda value: b"c" + real(value.real) + real(value.imag),
    bytearray: lambda value: octets(b"Y", bytes(value)),
    type(Ellipsis): lambda _: b"E",
    type(NotImplemented): lambda _: b"M",
}
