"""Which records of all segments count, without reading them: the index beside each segment, and what stands in them.

An index is a file of entries of fixed size, written after the segment's own bytes. It is a prefix of what the segment
holds: what it lacks, or all of it where it is lost or foreign, is made up from the segment. A folder of a million
records is looked through in less than a second, and kept in about 70 bytes each.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, compress
from operator import add, le, methodcaller

from ezpyp.model import outputs
from ezpyp.model.steps import Status
from ezpyp.storage.protocol import Problem, Records
from ezpyp.storage.record import Record
from ezpyp.storage.segment import (
    APART,
    BASE,
    DROPPED,
    ELSEWHERE,
    FILES,
    FIRST,
    GONE,
    ODD,
    OPENING,
    TEXT,
    WHEREABOUTS,
    Header,
    Segment,
    name_of,
    number_from,
    record_of,
)

#: Names this version of the format. The salt of the segment follows.
MAGIC = b"ezpyp-i\x02"
SUFFIX = ".idx"
#: offset, length, flags, status, order, digest of the stem (0 for none), fingerprint
ENTRY = struct.Struct("<QIBbxxQQ16s")
_STEP = ENTRY.size
#: The same in words of eight bytes.
_WORDS, _ORDER_WORD, _STEM_WORD = _STEP // 8, 2, 3
_FLAGS, _STATUS, _STEM, _PRINT = 12, 13, 24, 32
#: Marks an entry that counts and has a plain done step's result.
_SETTLED = 2
_CHAIN = struct.Struct("<QI36x")
_RANKED = struct.Struct("<12xBb2xQQ16x")
_NUMBER = struct.Struct("<Q")
#: What is known of a step under its stem: digest of the stem and fingerprint.
_KNOWN = struct.Struct("<24x24s")
_DIGEST, _FINGERPRINT = struct.Struct("8s"), struct.Struct("16s")
_SALT = struct.Struct("<Q")
#: Of an index, this much is read at once.
_WINDOW = _STEP * (1 << 14)


def digest_of(stem: bytes) -> int:
    """What a stem is found by. 0 stands for none."""
    import xxhash

    return xxhash.xxh3_64_intdigest(stem) or 1


def entry_of(offset: int, header: Header) -> bytes:
    """The entry of a record."""
    digest = 0 if header.flags & OPENING else digest_of(header.stem.encode(*TEXT))
    return ENTRY.pack(offset, header.length, header.flags, header.status, header.order, digest, header.fingerprint)


def beginning(salt: int) -> bytes:
    """What an index begins with."""
    return MAGIC + _SALT.pack(salt)


def index_of(path: str) -> str:
    """The index of a segment."""
    return path.removesuffix(".seg") + SUFFIX


@dataclass(slots=True)
class Listing:
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
        offset, length = _CHAIN.unpack_from(known, len(known) - _STEP)
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
    count = (os.stat(path).st_size - FIRST) // _STEP if os.path.exists(path) else 0
    if count <= 0:
        return listing(segment)
    return listing(segment, indexed=FIRST + (count - 1) * _STEP)


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
    if not len(content) % _STEP and _is_chain(content, end):
        return 0, content
    first = good = 0
    for offset, length in _CHAIN.iter_unpack(memoryview(content)[: len(content) // _STEP * _STEP]):
        if offset < end and good == first:  # read from the segment before the index had it
            first += 1
        elif offset < end or not length:  # what was spoilt leaves gaps
            break
        else:
            end = offset + length
        good += 1
    return first * _STEP, content[first * _STEP : good * _STEP]


@dataclass(slots=True)
class _Known:
    """How far a segment was looked through."""

    number: int
    segment: Segment
    indexed: int = FIRST
    end: int = FIRST
    #: Of the file, with what is no whole record yet.
    size: int = 0


def _is_chain(content: bytes, end: int) -> bool:
    """Whether these entries are one after another, from this place on."""
    if not content:
        return True
    offsets = memoryview(content).cast("Q")[::_WORDS]
    lengths = memoryview(content).cast("I")[2 :: 2 * _WORDS]
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
    """Whether there is an index of this very segment, or none at all."""
    try:
        with open(index_of(segment.path), "rb") as file:
            return file.read(FIRST) == beginning(segment.salt)
    except FileNotFoundError:
        return True


class Catalog(Records):
    """The records of a folder of segments, by stem and by fingerprint."""

    def __init__(self, folder: str) -> None:
        """Look through all segments. What cannot be read is among the `problems`.

        Args:
            folder: the cache folder.

        Raises:
            OSError: it cannot be read.
        """
        self._folder = folder
        self.problems: list[Problem] = []
        self._known: list[_Known] = []
        #: Of each entry its place in `_known`.
        self._owners = array("H")
        self._entries = bytearray()
        self._table, self._mask = _table(0)
        #: Of each entry 0 if it does not count, else 1, or `_SETTLED`. As far as it was asked for: see `_weighed`.
        self._live = bytearray()
        #: The highest order; and below this one, only what was repacked counts.
        self.latest = self._horizon = 0
        #: Of each entry, as far as they were asked for.
        self._flags = b""
        self._by_print: tuple[array[int], int] | None = None
        for number in sorted(self._numbers(), reverse=True):  # repacked ones first: they say what no longer counts
            self._open(number)
        self._read()

    # ----- looking through

    def refresh(self) -> bool:
        """Take in what was written since; False where that cannot be, because the segments are others."""
        known = {each.number for each in self._known}
        try:
            numbers = {*self._numbers()}
        except OSError:
            return False
        if known - numbers or any(number >= BASE for number in numbers - known):
            return False
        for number in sorted(numbers - known):
            self._open(number)
        self._read()
        return True

    def _numbers(self) -> list[int]:
        try:
            names = os.listdir(f"{self._folder}/store")
        except FileNotFoundError:
            return []
        return [number for name in names if (number := number_from(name)) >= 0]

    def _open(self, number: int) -> None:
        path = f"{self._folder}/store/{name_of(number)}"
        try:
            self._known.append(_Known(number, Segment(path)))
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            if os.path.exists(path) and os.path.getsize(path) >= FIRST:  # else it was made just now
                self.problems.append(Problem(path=path, what=getattr(error, "strerror", None) or str(error)))

    def _read(self) -> None:
        """Take in the entries that were written since the last call."""
        first = len(self._owners)
        for k, known in enumerate(self._known):
            size = known.segment.size
            if size == known.size:
                continue
            found = listing(known.segment, indexed=known.indexed, end=known.end)
            known.indexed, known.end, known.size = found.indexed or FIRST, found.end, size
            path = known.segment.path
            self.problems += [
                Problem(path=path, what=f"torn: bytes {start:,} to {end:,} are no record") for start, end in found.gaps
            ]
            self._owners.extend(array("H", [k]) * ((len(found.listed) + len(found.missing)) // _STEP))
            self._entries += found.listed
            self._entries += found.missing
        if len(self._owners) > first:
            self._by_print = None
            with memoryview(self._entries) as entries, entries.cast("Q") as words:
                self.latest = max(self.latest, *words[first * _WORDS + _ORDER_WORD :: _WORDS])

    def is_current(self) -> bool:
        """Whether nothing was written since it was looked through."""
        try:
            known = {each.number: each.size for each in self._known}
            return {*self._numbers()} == known.keys() and all(k.segment.size == k.size for k in self._known)
        except OSError:
            return False

    def _weighed(self) -> bytearray:
        """Which entries count. Found out when somebody asks: whoever resumes a run often need not."""
        count, first = len(self._owners), len(self._live)
        if count > first:
            self._live += bytes(count - first)
            if 2 * count > len(self._table):
                self._table, self._mask = _table(2 * count if first else count)
                self._live, first = bytearray(count), 0
            self._settle(first)
        return self._live

    def _settle(self, first: int) -> None:
        """Of each stem the newest record counts; in a segment the last."""
        owners, live, table, mask = self._owners, self._live, self._table, self._mask
        horizon = self._horizon
        with memoryview(self._entries) as entries, entries.cast("Q") as words, entries[first * _STEP :] as new:
            for n, (flags, status, order, digest) in enumerate(_RANKED.iter_unpack(new), first):
                if not digest:
                    if flags & GONE:  # the opening of what was repacked
                        horizon = max(horizon, order)
                    continue
                if order < horizon and owners[n]:
                    continue
                slot = digest & mask
                while (m := table[slot] - 1) >= 0 and words[m * _WORDS + _STEM_WORD] != digest:
                    slot = (slot + 1) & mask
                if m >= 0:
                    if owners[m] != owners[n] and order < words[m * _WORDS + _ORDER_WORD]:
                        continue
                    live[m] = 0
                table[slot] = n + 1
                live[n] = _SETTLED if not (flags & ~WHEREABOUTS or status) else 0 if flags & GONE else 1
        self._horizon = horizon

    # ----- finding

    def find(self, stem: str) -> int:
        """The number of the record under a stem, -1 for none."""
        live = self._weighed()
        digest = digest_of(stem.encode(*TEXT))
        slot = digest & self._mask
        while other := self._table[slot]:
            if _NUMBER.unpack_from(self._entries, (other - 1) * _STEP + _STEM)[0] == digest:
                return other - 1 if live[other - 1] else -1
            slot = (slot + 1) & self._mask
        return -1

    def header(self, n: int) -> Header | None:
        """The header of a record; None if it cannot be read."""
        offset: int = _NUMBER.unpack_from(self._entries, n * _STEP)[0]
        return self._known[self._owners[n]].segment.header(offset)

    def record(self, n: int) -> Record | None:
        """A record by its number; None if it cannot be read."""
        known, header = self._known[self._owners[n]], self.header(n)
        offset: int = _NUMBER.unpack_from(self._entries, n * _STEP)[0]
        try:
            return record_of(known.segment, known.number, offset, header) if header is not None else None
        except ValueError:
            return None

    def __getitem__(self, stem: str) -> Record:
        n = self.find(stem)
        record = self.record(n) if n >= 0 else None
        if record is None:
            raise KeyError(stem)
        return record

    def __iter__(self) -> Iterator[str]:
        return self._stems(range(len(self._owners)))

    def __len__(self) -> int:
        live = self._weighed()
        return len(live) - live.count(0)

    def __bool__(self) -> bool:
        return self._of_stems() > 0 if not self._marked(GONE) else len(self) > 0

    def _of_stems(self) -> int:
        """How many entries are of stems."""
        return len(self._owners) - len(self._marked(OPENING))

    def _marked(self, flags: int) -> list[int]:
        """The numbers of entries that have one of these flags."""
        if len(self._flags) < len(self._owners):
            self._flags = bytes(self._entries[_FLAGS::_STEP])
        marks = self._flags.translate(bytes(bool(each & flags) for each in range(256)))
        return [*compress(range(len(marks)), marks)] if 1 in marks else []

    def _stems(self, numbers: Iterable[int]) -> Iterator[str]:
        for n in numbers:
            if self._weighed()[n]:
                header = self.header(n)
                if header is not None:
                    yield header.stem

    def settled(self, fingerprints: bytes, stems: Iterable[str]) -> bytearray:
        import xxhash

        digests = array("Q", map(xxhash.xxh3_64_intdigest, map(methodcaller("encode", *TEXT), stems)))
        if not self._live and not self._marked(GONE):
            # Where as many steps are settled as there are entries, no step has two of which one does not count.
            known = {*chain.from_iterable(_KNOWN.iter_unpack(self._entries))}
            of_steps = chain.from_iterable(_DIGEST.iter_unpack(digests.tobytes()))
            prints = chain.from_iterable(_FINGERPRINT.iter_unpack(fingerprints))
            found = bytearray(map(known.__contains__, map(add, of_steps, prints)))
            if found.count(1) == self._of_stems() and self._all_plain():
                return found
        return self._settled_one_by_one(fingerprints, digests)

    def _all_plain(self) -> bool:
        """Whether all entries of stems are of done steps of which there is nothing else to say."""
        return not any(self._entries[_STATUS::_STEP]) and not self._marked(0xFF & ~WHEREABOUTS & ~OPENING)

    def _settled_one_by_one(self, fingerprints: bytes, digests: array[int]) -> bytearray:
        live, table, mask = self._weighed(), self._table, self._mask
        found = bytearray(len(digests))
        with (
            memoryview(self._entries) as entries,
            entries.cast("Q") as words,
            memoryview(fingerprints) as wanted,
            wanted.cast("Q") as prints,
        ):
            for k, digest in enumerate(digests):
                slot = digest & mask
                while (m := table[slot] - 1) >= 0 and words[(at := m * _WORDS) + _STEM_WORD] != digest:
                    slot = (slot + 1) & mask
                if m >= 0 and live[m] == _SETTLED:
                    found[k] = words[at + 4] == prints[2 * k] and words[at + 5] == prints[2 * k + 1]
        return found

    def notable(self) -> Iterator[str]:
        odd = self._entries[_STATUS::_STEP]
        numbers = {*self._marked(0xFF & ~WHEREABOUTS & ~OPENING), *compress(range(len(odd)), odd)}
        return self._stems(sorted(numbers))

    def under(self, fingerprint: str) -> list[str]:
        try:
            wanted = bytes.fromhex(fingerprint)
        except ValueError:
            wanted = b""
        if len(wanted) != 16:
            return [stem for stem in self._stems(self._marked(ODD)) if self[stem].fingerprint == fingerprint]
        if self._by_print is None:
            self._by_print = self._prints()
        table, mask = self._by_print
        slot = _NUMBER.unpack(wanted[:8])[0] & mask
        numbers = []
        while other := table[slot]:
            if self._entries[(other - 1) * _STEP + _PRINT : other * _STEP] == wanted:
                numbers.append(other - 1)
            slot = (slot + 1) & mask
        return [*self._stems(sorted(numbers))]

    def _prints(self) -> tuple[array[int], int]:
        """A table by the beginning of the fingerprint. Several records may have the same."""
        table, mask = _table(len(self))
        flags = self._entries[_FLAGS::_STEP]
        for n, alive in enumerate(self._weighed()):
            if alive and not flags[n] & ODD:
                slot = _NUMBER.unpack_from(self._entries, n * _STEP + _PRINT)[0] & mask
                while table[slot]:
                    slot = (slot + 1) & mask
                table[slot] = n + 1
        return table, mask

    # ----- looking over

    def misfits(self) -> Iterator[tuple[str, Problem]]:
        """Done steps whose result or returned files are not there, whole, with what is wrong."""
        flags, statuses = self._entries[_FLAGS::_STEP], self._entries[_STATUS::_STEP]
        for n in self._marked(APART | FILES):
            flag = flags[n]
            if not flag & DROPPED and self._weighed()[n] and statuses[n] == Status.DONE:
                record = self.record(n)
                if record is None:
                    continue
                path, wrong = f"{self._folder}/{record.outcome.location}", ""
                if flag & APART:
                    wrong = _misfit(path, record)
                wrong = wrong or outputs.misfit(self._folder, record.outcome.files)
                if wrong:
                    yield self._stem(n), Problem(path=path, what=wrong)

    def _stem(self, n: int) -> str:
        return next(self._stems([n]))

    def leftovers(self) -> Iterator[str]:
        """Stems of dropped results whose files are still there."""
        flags = self._entries[_FLAGS::_STEP]
        for n in self._marked(DROPPED):
            if flags[n] & APART and self._weighed()[n]:
                record = self.record(n)
                if record is not None and os.path.exists(f"{self._folder}/{record.outcome.location}"):
                    yield self._stem(n)

    def dead(self) -> int:
        """Bytes that repacking would take back, but for large results."""
        total = sum(known.size - FIRST for known in self._known)
        flags, live = self._entries[_FLAGS::_STEP], self._weighed()
        for n, (_, length) in enumerate(_CHAIN.iter_unpack(self._entries)):
            if flags[n] & OPENING or live[n]:
                total -= length
            if flags[n] & ELSEWHERE and not flags[n] & (APART | DROPPED) and live[n]:
                header = self.header(n)
                total -= header.size if header is not None else 0
        return max(0, total)

    def leave_out(self, stem: str) -> None:
        """Let a record count no more: what it vouches for is not there."""
        n = self.find(stem)
        if n >= 0:
            self._weighed()[n] = 0


def _table(count: int) -> tuple[array[int], int]:
    """Room for so many, half of it free; and the mask that leads into it."""
    size = 1 << max(4, (2 * count - 1).bit_length()) if count else 16
    return array("I", bytes(4 * size)), size - 1


def _misfit(path: str, record: Record) -> str:
    try:
        size = os.stat(path).st_size
    except OSError as error:
        return f"the result of '{record.name}' is gone ({error.strerror})"
    return (
        ""
        if size == record.outcome.bytes
        else (f"torn: {size:,} bytes where '{record.name}' wrote {record.outcome.bytes:,}")
    )
