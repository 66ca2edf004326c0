"""The index beside each segment: entries of fixed size, written after the segment's own bytes.

It is a prefix of what the segment holds: what it lacks, or all of it where it is lost or foreign, is made up from the
segment.
"""

from __future__ import annotations

import os
import struct
from array import array
from operator import add, le

from ezpyp.storage.segment import FIRST, OPENING, Header, Segment
from ezpyp.storage.series import TEXT
from ezpyp.tuples import NamedTuple

#: Names this version of the format. The salt of the segment follows.
MAGIC = b"ezpyp-i\x04"
SUFFIX = ".idx"
#: offset, length, flags, status, count, order, digest of the stem (0 for none), fingerprint, number. Of a series the
#: last three are the digest of its label, the digest of all fingerprints, and the number of its first. Of any other
#: record count is 0, and the number is that of its stem plus 1, or 0 where that has none.
ENTRY = struct.Struct("<QIBbHQQ16sQ")
STEP = ENTRY.size
#: The same in words of eight bytes.
WORDS = STEP // 8
_CHAIN = struct.Struct("<QI44x")
_SALT = struct.Struct("<Q")


#: By what the digests of `label[0]`, `label[1]` and so on are apart. It is odd, so that no two of them are the same.
STRIDE = 0x9E37_79B9_7F4A_7C15
WORD = (1 << 64) - 1


def digest_of(label: bytes) -> int:
    """What a label is found by, and the stem that is called so. 0 stands for none."""
    import xxhash

    return xxhash.xxh3_64_intdigest(label) or 1


def digest_at(label: int, number: int) -> int:
    """The digest of `label[number]`, from that of the label: those of a family are known without its names."""
    return (label + (number + 1) * STRIDE) & WORD or 1


def digests(label: int, numbers: range) -> array[int]:
    """`digest_at` for all of these."""
    start, last = label + (numbers.start + 1) * STRIDE, label + (numbers.stop + 1) * STRIDE
    return array("Q", [each & WORD or 1 for each in range(start, last, STRIDE)])


def label_of(digest: int, place: int) -> int:
    """The digest of the label of an entry, from its digest and its number plus 1."""
    return (digest - place * STRIDE) & WORD or 1


def key_of(stem: bytes) -> tuple[int, int]:
    """The digest of a stem, and its number plus 1; 0 where it has none."""
    label, number = parted(stem)
    return (digest_at(digest_of(label), number), number + 1) if number >= 0 else (digest_of(stem), 0)


def parted(stem: bytes) -> tuple[bytes, int]:
    """The label and the number of a stem that ends in one as numbers are written; -1 for none."""
    if stem[-1:] == b"]":
        label, bracket, number = stem[:-1].rpartition(b"[")
        if bracket and number.isdigit() and len(number) < _DIGITS and (number[0] != _ZERO or len(number) == 1):
            return label, int(number)
    return stem, -1


#: Longer numbers do not fit into an entry.
_DIGITS = 19
_ZERO = ord("0")


def entry_of(offset: int, header: Header) -> bytes:
    """The entry of a record."""
    stem = header.stem.encode(*TEXT)
    digest, number = (digest_of(stem), header.first) if header.members else key_of(stem)
    return ENTRY.pack(
        offset, header.length, header.flags, header.status, header.members,
        header.order, 0 if header.flags & OPENING else digest, header.fingerprint, number,
    )  # fmt: skip


def beginning(salt: int) -> bytes:
    """What an index begins with."""
    return MAGIC + _SALT.pack(salt)


def index_of(path: str) -> str:
    """The index of a segment."""
    return path.removesuffix(".seg") + SUFFIX


class Listing(NamedTuple):
    """What a segment holds from a place on."""

    #: Entries that were read from the index, and those that it lacks, one after another.
    listed: bytes
    missing: bytearray
    #: Where what is right in the index ends; 0 where it has to be made anew.
    indexed: int
    #: Where the whole records end.
    end: int
    #: What lies between whole records and is none: from, to.
    gaps: list[tuple[int, int]]


def listing(segment: Segment, *, indexed: int = FIRST, end: int = FIRST) -> Listing:
    """The entries of a segment, from its index as far as that goes, then from its records.

    Args:
        indexed, end: where a former listing ended, to go on from there.
    """
    skipped, known = _indexed(segment, indexed, end)
    missing = bytearray()
    indexed += skipped
    if known:
        indexed += len(known)
        offset, length = _CHAIN.unpack_from(known, len(known) - STEP)
        last = segment.header(offset)
        if last is None or last.length != length or offset + length > segment.size:
            indexed = 0 if end == FIRST else indexed - len(known)
            known = b""
        else:
            end = offset + length
    elif end == FIRST:
        indexed = 0
    gaps: list[tuple[int, int]] = []
    for offset, header in segment.walk(end, gaps):
        missing += entry_of(offset, header)
        end = offset + header.length
    return Listing(listed=known, missing=missing, indexed=indexed, end=end, gaps=gaps)


def tail(segment: Segment) -> Listing:
    """The entries that the index of a segment lacks. Quick: of what it has only the last entry is read."""
    path = index_of(segment.path)
    count = (os.stat(path).st_size - FIRST) // STEP if os.path.exists(path) else 0
    if count <= 0:
        return listing(segment)
    return listing(segment, indexed=FIRST + (count - 1) * STEP)


def _indexed(segment: Segment, start: int, end: int) -> tuple[int, bytes]:
    """The entries of an index from `start` on, as far as each begins where the one before it ends, or later. Records
    before `end` are known, and skipped: so many bytes come first in what is given back.
    """
    try:
        with open(index_of(segment.path), "rb", buffering=0) as file:
            if file.read(FIRST) != beginning(segment.salt):
                return 0, b""
            content = os.pread(file.fileno(), os.fstat(file.fileno()).st_size, start)
    except OSError:
        return 0, b""
    if not len(content) % STEP and _is_chain(content, end):
        return 0, content
    first = good = 0
    for offset, length in _CHAIN.iter_unpack(memoryview(content)[: len(content) // STEP * STEP]):
        if offset < end and good == first:  # read from the segment before the index had it
            first += 1
        elif offset < end or not length:  # what was spoilt leaves gaps
            break
        else:
            end = offset + length
        good += 1
    return first * STEP, content[first * STEP : good * STEP]


def _is_chain(content: bytes, end: int) -> bool:
    """Whether these entries are one after another, from this place on."""
    if not content:
        return True
    offsets = memoryview(content).cast("Q")[::WORDS]
    lengths = memoryview(content).cast("I")[2 :: 2 * WORDS]
    ends = map(add, offsets, lengths)
    return offsets[0] >= end and all(lengths) and all(map(le, ends, offsets[1:]))


def is_right(segment: Segment) -> bool:
    """Whether an index lists what its segment holds, as far as it goes. Reads all of both."""
    _, known = _indexed(segment, FIRST, FIRST)
    entries = bytearray()
    for offset, header in segment.walk(FIRST, []):
        entries += entry_of(offset, header)
        if len(entries) >= len(known):
            break
    return entries[: len(known)] == known and _has_index(segment)


def _has_index(segment: Segment) -> bool:
    """Whether there is an index of this very segment, or none at all. A full disk leaves less than its beginning."""
    try:
        with open(index_of(segment.path), "rb") as file:
            return beginning(segment.salt).startswith(file.read(FIRST))
    except FileNotFoundError:
        return True
