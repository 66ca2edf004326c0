"""Records of members of a family that follow each other, as one: what they share is said once, the rest in columns.

All are first attempts that are done, and there is nothing else to say of them. A head of fixed size comes first, then
the label of the family, the codec, and the columns (fingerprints, when, seconds, checksums, where results end); then a
seal as that of any record (see `segment`), and the results.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from itertools import accumulate
from operator import sub

from ezpyp.storage.protocol import Batch
from ezpyp.system.files import Buffer
from ezpyp.tuples import NamedTuple

MARK = b"\xe2res"
#: mark, lengths of label and codec, count, rank, offset of the opening, order, number of the first, length of the
#: results.
HEAD = struct.Struct("<4sHHIIQQQQ")
SEAL = struct.Struct("<Q")
#: What the texts of a record are encoded with: names of files may be no Unicode.
TEXT = ("utf-8", "surrogatepass")
#: Bytes of a fingerprint, and of what each member adds to the columns.
_PRINT = 16
EACH = _PRINT + 3 * 8 + 4


class Series(NamedTuple):
    """What stands before the results."""

    label: str
    codec: str
    members: int
    rank: int
    opening: int
    order: int
    #: The number of the first member in its family.
    first: int
    #: Of all results, in bytes.
    size: int
    columns: bytes
    #: Bytes from the beginning of the record to the first result.
    start: int

    @property
    def digest(self) -> bytes:
        """What stands for the fingerprints of all, and the number of the first."""
        return digest_of(self.first, self.columns[: _PRINT * self.members])

    def stem(self, i: int) -> str:
        return f"{self.label}[{self.first + i}]"

    def stems(self) -> Iterator[str]:
        numbers = range(self.first, self.first + self.members)
        return map(f"{self.label.replace('%', '%%')}[%d]".__mod__, numbers)

    def fingerprint(self, i: int) -> bytes:
        return self.columns[i * _PRINT : (i + 1) * _PRINT]

    def numbers(self, i: int) -> tuple[float, float, int]:
        """When, seconds, and the checksum."""
        when, seconds = (self._number("<d", column, i) for column in (0, 1))
        return when, seconds, int(self._number("<Q", 2, i))

    def span(self, i: int) -> tuple[int, int]:
        """Where a result begins and ends, counted from the first."""
        ends = memoryview(self.columns)[(EACH - 4) * self.members :].cast("I")
        return (ends[i - 1] if i else 0), ends[i]

    def sizes(self) -> list[int]:
        """The length of each result."""
        ends = memoryview(self.columns)[(EACH - 4) * self.members :].cast("I").tolist()
        return [*map(sub, ends, [0, *ends])]

    def times(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """When each was made, and how long it took."""
        column = struct.Struct(f"<{self.members}d")
        start = _PRINT * self.members
        return column.unpack_from(self.columns, start), column.unpack_from(self.columns, start + column.size)

    def checksums(self) -> array[int]:
        """Of each result."""
        start = (_PRINT + 2 * 8) * self.members
        return array("Q", self.columns[start : start + 8 * self.members])

    def _number(self, kind: str, column: int, i: int) -> float:
        place = (_PRINT + 8 * column) * self.members + 8 * i
        found: float = struct.unpack_from(kind, self.columns, place)[0]
        return found


def digest_of(first: int, fingerprints: Buffer) -> bytes:
    """What stands for fingerprints, and the number of the step that has the first."""
    import xxhash

    return xxhash.xxh3_128_digest(fingerprints, first & 0xFFFF_FFFF_FFFF_FFFF)


def packed(batch: Batch, checksums: array[int], *, rank: int, opening: int, order: int) -> tuple[bytes, int]:
    """What stands before seal and results, and how long all results are."""
    label, codec = batch.label.encode(*TEXT), batch.codec.encode()
    ends = array("I", accumulate(map(len, batch.results)))
    head = HEAD.pack(MARK, len(label), len(codec), len(ends), rank, opening, order, batch.first, ends[-1])
    columns = (batch.fingerprints, batch.whens, batch.seconds, checksums, ends)
    return b"".join((head, label, codec, *columns)), ends[-1]


def parse(block: Buffer, at: int, salt: int, offset: int) -> Series | None:
    """The series that begins `at` this byte of a block, and at that offset of its segment; see `segment.parse`."""
    import xxhash

    if len(block) < at + HEAD.size:
        return None
    mark, label, codec, count, rank, opening, order, first, size = HEAD.unpack_from(block, at)
    texts = at + HEAD.size
    columns = texts + label + codec
    end = columns + EACH * count
    if mark != MARK or len(block) < end + SEAL.size:
        return None
    if SEAL.unpack_from(block, end)[0] != xxhash.xxh3_64_intdigest(block[at:end], salt ^ offset):
        return None
    said = bytes(block[texts : texts + label]).decode(*TEXT), bytes(block[texts + label : columns]).decode(*TEXT)
    start = end + SEAL.size - at
    return Series(*said, count, rank, opening, order, first, size, bytes(block[columns:end]), start)


def length_of(block: Buffer, at: int) -> int:
    """Bytes up to the results, as a head says that may be none."""
    _, label, codec, count, *_ = HEAD.unpack_from(block, at)
    return int(HEAD.size + label + codec + EACH * count + SEAL.size)
