"""Records one after another in a file that only grows: their format, and how they are read.

A segment begins with its version and a random salt. A record is a header of fixed size, texts (stem, name, codec, and
what few steps have to say, as JSON), a seal, and the result. The seal is the checksum of header and texts, salted with
the segment and the offset: what a result happens to hold, and what was copied, is never taken for a record. A result
that lies elsewhere, in a file or in another record, is not moved: the record says where. Members of a family that
were done one after another are one record (`series`), and each has an address in it. A torn tail has no whole record in
it, and is no part of the segment.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterator

from ezpyp.encoding import codecs
from ezpyp.model.outcomes import Outcome, Place, Status
from ezpyp.storage import series
from ezpyp.storage.names import name_of
from ezpyp.storage.record import Record, from_extras
from ezpyp.storage.series import SEAL, TEXT, Series
from ezpyp.system.files import Buffer
from ezpyp.tuples import NamedTuple

#: Names this version of the format.
MAGIC = b"ezpyp-s\x02"
#: Where the first record is.
FIRST = 16

# What a record is, in its flags.

#: A done step of which there is nothing else to say, but perhaps for its host and its arguments.
PLAIN = 0
#: There is. It stands in the extras.
MORE = 1
#: The result is a file of its own, named after the segment and the offset of its first record.
APART = 2
#: The step returned files.
FILES = 4
#: The result was dropped.
DROPPED = 8
#: What was known under this stem is to be forgotten.
GONE = 16
#: It says who writes from here on; it is of no step. With `GONE`, what is of a lower order counts no more.
OPENING = 32
#: The fingerprint is not 16 bytes, and stands in the extras.
ODD = 64
#: The result came with another record, of which segment and offset stand before the extras.
ELSEWHERE = 128
#: Flags that say where a result lies, and nothing of its step.
WHEREABOUTS = APART | ELSEWHERE

#: magic, flags, status, lengths of stem, name ("" where it is the stem) and codec, and of the extras, attempt, rank,
#: offset of the opening, order, length of the result, when, seconds, fingerprint, checksum of the result (0 for none).
HEAD = struct.Struct("<4sBbHHBxIIIQQQdd16sQ")
POINTER = struct.Struct("<QQ")
MARK = b"\xe2rec"
#: What every record begins with, one or a series.
_MARKS = b"\xe2re"
#: The address of a member of a series: the offset of the series, and from this bit on the place in it, counted from 1.
#: That of any other record is its offset.
MEMBER = 48
_OFFSET = (1 << MEMBER) - 1
#: A result of a series is read with all others where these are no more than so many bytes.
_TOGETHER = 1 << 20
#: What is read at once where records are read one after another, and where one is read alone.
_WINDOW, _BLOCK = 1 << 20, 1 << 12

#: Part an order: the number of the opening among those of the folder, the attempt, and how often it was revised since.
TURN, ATTEMPT = 40, 24
MOST_ATTEMPTS = 0xFFFF
#: Where there is no fingerprint of 16 bytes.
NO_PRINT = bytes(16)


class Header(NamedTuple):
    """What stands before a result."""

    flags: int
    status: int
    attempt: int
    rank: int
    opening: int
    order: int
    size: int
    when: float
    seconds: float
    fingerprint: bytes
    checksum: int
    stem: str
    name: str
    codec: str
    extras: bytes
    #: Bytes from the beginning of the record to the result.
    start: int
    #: Of a series as a whole: how many it has, and the number of the first. Its stem is the label.
    members: int = 0
    first: int = 0

    @property
    def length(self) -> int:
        """Of the record, with the result if it is in it. A member of a series has none."""
        return self.start if self.flags & WHEREABOUTS else self.start + self.size


def turn_of(order: int) -> int:
    """The opening that an order tells of. A later run's record counts, then a later attempt's, whatever clocks say."""
    return order >> TURN


def parse(block: Buffer, at: int, salt: int, offset: int) -> Header | None:
    """The header of the record that begins `at` this byte of a block, and at that offset of its segment.

    None where there is none, or its texts do not end in the block.
    """
    import xxhash

    if block[at : at + len(series.MARK)] == series.MARK:
        found = series.parse(block, at, salt, offset)
        return _of_series(found) if found is not None else None
    if len(block) < at + HEAD.size:
        return None
    (
        mark, flags, status, of_stem, of_name, of_codec, of_extras,
        attempt, rank, opening, order, size, when, seconds, print_, sum_,
    ) = HEAD.unpack_from(block, at)  # fmt: skip
    name = HEAD.size + of_stem
    codec = name + of_name
    extras = codec + of_codec
    end = extras + of_extras
    if mark != MARK or len(block) < at + end + SEAL.size:
        return None
    head = bytes(block[at : at + end])
    if SEAL.unpack_from(block, at + end)[0] != xxhash.xxh3_64_intdigest(head, salt ^ offset):
        return None
    stem = head[HEAD.size : name].decode(*TEXT)
    return Header(
        flags, status, attempt, rank, opening, order, size, when, seconds, print_, sum_,
        stem, head[name:codec].decode(*TEXT) or stem, head[codec:extras].decode(*TEXT), head[extras:end],
        end + SEAL.size,
    )  # fmt: skip


def _of_series(found: Series) -> Header:
    return Header(
        PLAIN, 0, 1, found.rank, found.opening, found.order, found.size, 0.0, 0.0, found.digest, 0,
        found.label, found.label, found.codec, b"", found.start, found.members, found.first,
    )  # fmt: skip


def _of_member(found: Series, i: int) -> Header:
    when, seconds, checksum = found.numbers(i)
    begin, end = found.span(i)
    stem = found.stem(i)
    return Header(
        PLAIN, 0, 1, found.rank, found.opening, found.order, end - begin, when, seconds, found.fingerprint(i), checksum,
        stem, stem, found.codec, b"", found.start + begin,
    )  # fmt: skip


def _length_of(block: Buffer, at: int) -> int:
    """How many bytes come before the result, as a head says that may be none; 0 where there is no head."""
    mark = block[at : at + len(MARK)]
    if mark == MARK and len(block) >= at + HEAD.size:
        return int(HEAD.size + sum(HEAD.unpack_from(block, at)[3:7]) + SEAL.size)
    if mark == series.MARK and len(block) >= at + series.HEAD.size:
        return series.length_of(block, at)
    return 0


class Segment:
    """A segment to read from: while others write to it, and after it was replaced."""

    def __init__(self, path: str) -> None:
        """
        Raises:
            OSError: it cannot be opened. ValueError: it is none, or not yet.
        """
        self.path = path
        self._block: tuple[int, bytes] = (0, b"")
        #: The last series that was looked at, and where it is.
        self._series: tuple[int, Series] | None = None
        self._hosts: dict[int, str] = {}
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.salt = salt_of(os.pread(self.descriptor, FIRST, 0))
        except BaseException:
            self.close()
            raise

    def __del__(self) -> None:
        self.close()

    def close(self, close: Callable[[int], object] = os.close) -> None:
        # A default: when the interpreter ends, the names of this module may go before its objects.
        descriptor, self.descriptor = getattr(self, "descriptor", -1), -1
        if descriptor >= 0:
            close(descriptor)

    @property
    def size(self) -> int:
        return os.fstat(self.descriptor).st_size

    def header(self, address: int, expected: int = 0) -> Header | None:
        """The header of the record at an address, None where there is none; `expected` bytes of result will be asked
        for next.
        """
        place, offset = address >> MEMBER, address & _OFFSET
        if place:
            whole = self.series(offset)
            return _of_member(whole, place - 1) if whole is not None and place <= whole.members else None
        start, block = self._block
        if start <= offset < start + len(block) and (found := parse(block, offset - start, self.salt, offset)):
            return found
        block, at = self._read(offset, max(_BLOCK, HEAD.size + 512 + expected))
        found = parse(block, at, self.salt, offset)
        if found is None and (wanted := _length_of(block, at)) > len(block) - at:
            found = parse(*self._read(offset, wanted), self.salt, offset)
        return found

    def series(self, offset: int) -> Series | None:
        """The series at an offset, None where there is none."""
        if self._series is None or self._series[0] != offset:
            whole = self.header(offset)
            found = None
            if whole is not None and whole.members:
                block, at = self._read(offset, whole.length if whole.length <= _TOGETHER else whole.start)
                found = series.parse(block, at, self.salt, offset)
            self._series = (offset, found) if found is not None else None
        return self._series[1] if self._series is not None else None

    def result(self, address: int, header: Header) -> Buffer:
        """The result of the record at an address; shorter where the file ends."""
        offset = address & _OFFSET
        start, block = self._block
        at = offset - start
        if at >= 0 and len(block) >= at + header.length:
            return memoryview(block)[at + header.start : at + header.length]
        return self.read(offset + header.start, header.size)

    def read(self, offset: int, size: int) -> bytes:
        """So many bytes from there on; fewer where the file ends."""
        data = os.pread(self.descriptor, size, offset)
        # pread(2) gives less than asked for on a whim.
        while len(data) < size and (more := os.pread(self.descriptor, size - len(data), offset + len(data))):
            data += more
        return data

    def host(self, opening: int) -> str:
        """Who wrote after the opening at this offset."""
        if opening not in self._hosts:
            found = self.header(opening)
            self._hosts[opening] = str(json.loads(found.extras)["host"]) if found is not None and found.extras else ""
        return self._hosts[opening]

    def read_ahead(self, begin: int, end: int) -> None:
        """Have the records at hand that begin between these addresses, as far as they are not large."""
        offset = begin & _OFFSET
        size = min((end & _OFFSET) - offset + _BLOCK, _WINDOW)
        if size > _BLOCK:
            self._block = offset, os.pread(self.descriptor, size, offset)

    def _read(self, offset: int, size: int) -> tuple[bytes, int]:
        """A block that begins there, or one that has as much from that byte on."""
        start, block = self._block
        at = offset - start
        if at < 0 or len(block) < at + size:
            block, at = os.pread(self.descriptor, size, offset), 0
            self._block = offset, block
        return block, at

    def walk(self, offset: int, gaps: list[tuple[int, int]]) -> Iterator[tuple[int, Header]]:
        """The whole records from an offset on, with theirs. What lies between them and is none is put into `gaps`."""
        size = self.size
        window, base = b"", offset
        while offset < size:
            found = parse(window, offset - base, self.salt, offset)
            if found is None and offset - base + _WINDOW > len(window):
                window, base = os.pread(self.descriptor, _WINDOW, offset), offset
                found = parse(window, 0, self.salt, offset) or self.header(offset)
            if found is None:
                following = self._next(offset + 1, size)
                if following < 0:
                    return
                gaps.append((offset, following))
                offset = following
            elif offset + found.length > size:
                return
            else:
                yield offset, found
                offset += found.length

    def _next(self, offset: int, size: int) -> int:
        """Where the next record begins, -1 for nowhere."""
        while offset < size:
            window = os.pread(self.descriptor, _WINDOW, offset)
            place = window.find(_MARKS)
            while place >= 0:
                header = self.header(offset + place)
                if header is not None and offset + place + header.length <= size:
                    return offset + place
                place = window.find(_MARKS, place + 1)
            offset += max(1, len(window) - len(_MARKS) + 1)
        return -1


def salt_of(beginning: bytes) -> int:
    """The salt of a segment that begins so.

    Raises:
        ValueError: it is no segment.
    """
    if len(beginning) < FIRST:
        raise ValueError("it is torn" if beginning else "it is empty")
    if not beginning.startswith(MAGIC):
        raise ValueError("ezpyp did not write it, or another version of it did")
    return SEAL.unpack_from(beginning, len(MAGIC))[0]  # type: ignore[no-any-return]


def in_order(place: Place) -> tuple[int, int]:
    """By this key, places are in the order in which they lie in segments."""
    return place.segment, place.offset & _OFFSET


# ----- records


def record_of(segment: Segment, number: int, offset: int, header: Header) -> Record:
    """What a record says.

    Raises:
        ValueError: ezpyp did not write it.
    """
    flags, extras, place = header.flags, header.extras, None
    host = segment.host(header.opening)
    if header.checksum:
        source = number, offset
        if flags & ELSEWHERE:
            source = POINTER.unpack_from(extras)
            extras = extras[POINTER.size :]
        place = Place(*source, header.size, header.checksum)
    said, more = from_extras(extras, host)
    location = location_of(place, header.stem, header.codec, flags) if place is not None else ""
    outcome = Outcome(
        step=-1,
        status=Status(header.status),
        when=header.when,
        seconds=header.seconds,
        rank=header.rank,
        attempt=header.attempt,
        location=location,
        codec=header.codec,
        bytes=header.size,
        checksum=f"xxh3:{header.checksum:016x}" if place is not None else "",
        **said,
    )
    fingerprint = more["fingerprint"] if flags & ODD else header.fingerprint.hex()
    return Record(name=more.get("name", header.name), fingerprint=fingerprint, outcome=outcome, place=place)


def location_of(place: Place, stem: str, codec: str, flags: int) -> str:
    """Where a result lies, as people are told: in a segment, or in a file of its own."""
    segment = name_of(place.segment)
    if flags & APART:
        return f"store/{segment.removesuffix('.seg')}@{place.offset}.step{codecs.get(codec).suffix}"
    return f"store/{segment}#{stem}"
