"""Which records of all segments count, without reading them, from the indexes beside the segments.

A folder of a million records is looked through in less than a second, and kept in about 80 bytes each. Of a series only
one entry is kept, until somebody asks for a single member.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, compress, repeat
from operator import add, methodcaller

from ezpyp.model import outputs
from ezpyp.model.places import PlannedStems
from ezpyp.model.steps import Status
from ezpyp.storage import series
from ezpyp.storage.index import ENTRY, STEP, WORDS, digest_of, listing
from ezpyp.storage.protocol import Plain, Problem, Records
from ezpyp.storage.record import Record
from ezpyp.storage.segment import (
    APART,
    BASE,
    DROPPED,
    ELSEWHERE,
    FILES,
    FIRST,
    GONE,
    MEMBER,
    ODD,
    OPENING,
    WHEREABOUTS,
    Header,
    Segment,
    name_of,
    number_from,
    record_of,
)
from ezpyp.storage.series import TEXT

#: Where things stand in an entry: in words of eight bytes, or of two, or in bytes.
_ORDER_WORD, _STEM_WORD, _PRINT_WORD, _COUNT_HALF = 2, 3, 4, 7
_FLAGS, _STATUS, _STEM, _PRINT = 12, 13, 24, 32
#: Marks an entry that counts and has a plain done step's result.
_SETTLED = 2
_LENGTH = struct.Struct("<8xI44x")
_RANKED = struct.Struct("<12xBb2xQQ24x")
_NUMBER = struct.Struct("<Q")
#: Of a series: count, digest of the label, digest of the fingerprints, number of the first.
_SERIES = struct.Struct("<14xH8xQ16sQ")
#: What is known of a step under its stem: digest of the stem and fingerprint.
_KNOWN = struct.Struct("<24x24s8x")
_DIGEST, _FINGERPRINT = struct.Struct("8s"), struct.Struct("16s")
#: Flags with which there is something to say of a step.
_SAYING = 0xFF & ~WHEREABOUTS & ~OPENING
_TURNED = bytes([1, 0]).ljust(256, b"\0")


class _Known:
    """How far a segment was looked through."""

    def __init__(self, number: int, segment: Segment) -> None:
        self.number, self.segment = number, segment
        self.indexed = self.end = FIRST
        #: Of the file, with what is no whole record yet.
        self.size = 0


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
        #: The entries, a series being one; and of each its place in `_known`.
        self._listed = bytearray()
        self._listers = array("H")
        #: The same with each member of a series on its own, as far as that was asked for: see `_unfolded`.
        self._entries = bytearray()
        self._owners = array("H")
        self._told = 0
        self._table, self._mask = _table(0)
        #: Of each entry 0 if it does not count, else 1, or `_SETTLED`. As far as it was asked for: see `_weighed`.
        self._live = bytearray()
        #: The highest order; and below this one, only what was repacked counts.
        self.latest = self._horizon = 0
        #: Of each entry that is listed, as far as they were asked for.
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
        first = len(self._listers)
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
            self._listers.extend(array("H", [k]) * ((len(found.listed) + len(found.missing)) // STEP))
            self._listed += found.listed
            self._listed += found.missing
        if len(self._listers) > first:
            self._by_print = None
            with memoryview(self._listed) as entries, entries.cast("Q") as words:
                self.latest = max(self.latest, *words[first * WORDS + _ORDER_WORD :: WORDS])

    def is_current(self) -> bool:
        """Whether nothing was written since it was looked through."""
        try:
            known = {each.number: each.size for each in self._known}
            return {*self._numbers()} == known.keys() and all(k.segment.size == k.size for k in self._known)
        except OSError:
            return False

    def _unfolded(self) -> bytearray:
        """The entries, one for each member of a series."""
        start, self._told = self._told, len(self._listers)
        if start == self._told:
            return self._entries
        folded = [n for n, count in enumerate(self._counts(start), start) if count]
        if not folded and (not start or self._entries is self._listed):
            self._entries, self._owners = self._listed, self._listers  # the very same: they may be long
            return self._entries
        if self._entries is self._listed:
            self._entries, self._owners = self._listed[: start * STEP], self._listers[:start]
        for n in folded:
            self._entries += self._listed[start * STEP : n * STEP]
            self._owners.extend(self._listers[start:n])
            self._unfold(n)
            start = n + 1
        self._entries += self._listed[start * STEP :]
        self._owners.extend(self._listers[start:])
        return self._entries

    def _unfold(self, n: int) -> None:
        """Take in the members of a series, but of one that cannot be read."""
        owner = self._listers[n]
        offset: int = _NUMBER.unpack_from(self._listed, n * STEP)[0]
        found = self._known[owner].segment.series(offset)
        if found is None:
            return
        addresses = range(offset + (1 << MEMBER), offset + (found.members + 1 << MEMBER), 1 << MEMBER)
        lengths = [size + series.EACH for size in found.sizes()]
        lengths[0] += found.start - series.EACH * found.members
        digests = map(digest_of, map(methodcaller("encode", *TEXT), found.stems()))
        prints = map(found.fingerprint, range(found.members))
        zeros, orders = repeat(0), repeat(found.order)
        made = map(ENTRY.pack, addresses, lengths, zeros, zeros, zeros, orders, digests, prints, zeros)
        self._entries += b"".join(made)
        self._owners.extend(array("H", [owner]) * found.members)

    def _counts(self, start: int = 0) -> list[int]:
        """Of each entry from there on how many are in the series, 0 for a record of its own."""
        with memoryview(self._listed) as entries, entries.cast("H") as halves:
            found: list[int] = halves[start * WORDS * 4 + _COUNT_HALF :: WORDS * 4].tolist()
        return found

    def _weighed(self) -> bytearray:
        """Which entries count. Found out when somebody asks: whoever resumes a run often need not."""
        self._unfolded()
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
        with memoryview(self._entries) as entries, entries.cast("Q") as words, entries[first * STEP :] as new:
            for n, (flags, status, order, digest) in enumerate(_RANKED.iter_unpack(new), first):
                if not digest:
                    if flags & GONE:  # the opening of what was repacked
                        horizon = max(horizon, order)
                    continue
                if order < horizon and owners[n]:
                    continue
                slot = digest & mask
                while (m := table[slot] - 1) >= 0 and words[m * WORDS + _STEM_WORD] != digest:
                    slot = (slot + 1) & mask
                if m >= 0:
                    if owners[m] != owners[n] and order < words[m * WORDS + _ORDER_WORD]:
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
            if _NUMBER.unpack_from(self._entries, (other - 1) * STEP + _STEM)[0] == digest:
                return other - 1 if live[other - 1] else -1
            slot = (slot + 1) & self._mask
        return -1

    def header(self, n: int) -> Header | None:
        """The header of a record; None if it cannot be read."""
        offset: int = _NUMBER.unpack_from(self._entries, n * STEP)[0]
        return self._known[self._owners[n]].segment.header(offset)

    def record(self, n: int) -> Record | None:
        """A record by its number; None if it cannot be read."""
        known, header = self._known[self._owners[n]], self.header(n)
        offset: int = _NUMBER.unpack_from(self._entries, n * STEP)[0]
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
        return self._stems(range(len(self._weighed())))

    def __len__(self) -> int:
        live = self._weighed()
        return len(live) - live.count(0)

    def __bool__(self) -> bool:
        return self._of_stems() > 0 if not self._marked(GONE) else len(self) > 0

    def _of_stems(self) -> int:
        """How many entries are of stems."""
        counts = self._counts()
        return sum(counts) + counts.count(0) - sum(self._marks(OPENING))

    def _marks(self, flags: int) -> bytes:
        """Of each entry, as they are listed, 1 where it has one of these flags."""
        if len(self._flags) < len(self._listers):
            self._flags = bytes(self._listed[_FLAGS::STEP])
        return self._flags.translate(bytes(bool(each & flags) for each in range(256)))

    def _marked(self, flags: int) -> list[int]:
        """The numbers of entries that have one of these flags. No series has any."""
        if 1 not in self._marks(flags):
            return []
        found = bytes(self._unfolded()[_FLAGS::STEP]).translate(bytes(bool(each & flags) for each in range(256)))
        return [*compress(range(len(found)), found)]

    def _stems(self, numbers: Iterable[int]) -> Iterator[str]:
        for n in numbers:
            if self._weighed()[n]:
                header = self.header(n)
                if header is not None:
                    yield header.stem

    def settled(self, fingerprints: bytes, stems: Sequence[str]) -> bytearray:
        if not self._live and 1 not in self._marks(GONE):
            # Where as many steps are settled as there are entries, no step has two of which one does not count.
            found = bytearray(len(stems))
            counts = self._counts()
            if any(counts):
                self._match_series(fingerprints, stems, found)
            if 0 in counts:
                self._match_alone(fingerprints, stems, found)
            if found.count(1) == self._of_stems() and self._all_plain():
                return found
        return self._settled_one_by_one(fingerprints, _digests(stems))

    def _match_series(self, fingerprints: bytes, stems: Sequence[str], found: bytearray) -> None:
        """Find steps in series that have their stems and fingerprints: a series as a whole or not at all."""
        families: dict[int, list[tuple[int, int, int]]] = {}
        for label, first, start, count in stems.numbered() if isinstance(stems, PlannedStems) else ():
            families.setdefault(digest_of(label.encode(*TEXT)), []).append((first, start, count))
        for count, label_digest, digest, first in _SERIES.iter_unpack(self._listed):
            for begin, start, size in families.get(label_digest, ()) if count else ():
                if begin <= first and first + count <= begin + size:
                    k = start + first - begin
                    if series.digest_of(first, fingerprints[16 * k : 16 * (k + count)]) == digest:
                        found[k : k + count] = b"\1" * count

    def _match_alone(self, fingerprints: bytes, stems: Sequence[str], found: bytearray) -> None:
        """Find steps in records of their own that have their stems and fingerprints."""
        known = {*chain.from_iterable(_KNOWN.iter_unpack(self._listed))}
        if 1 not in found:
            of_steps = chain.from_iterable(_DIGEST.iter_unpack(_digests(stems).tobytes()))
            prints = chain.from_iterable(_FINGERPRINT.iter_unpack(fingerprints))
            found[:] = map(known.__contains__, map(add, of_steps, prints))
            return
        for k in [*compress(range(len(found)), found.translate(_TURNED))]:
            found[k] = _NUMBER.pack(_digest(stems[k])) + fingerprints[16 * k : 16 * k + 16] in known

    def _all_plain(self) -> bool:
        """Whether all entries of stems are of done steps of which there is nothing else to say."""
        return not any(self._listed[_STATUS::STEP]) and 1 not in self._marks(_SAYING)

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
                while (m := table[slot] - 1) >= 0 and words[(at := m * WORDS) + _STEM_WORD] != digest:
                    slot = (slot + 1) & mask
                if m >= 0 and live[m] == _SETTLED:
                    found[k] = words[at + 4] == prints[2 * k] and words[at + 5] == prints[2 * k + 1]
        return found

    def notable(self) -> Iterator[str]:
        numbers = {*self._marked(_SAYING)}
        if any(self._listed[_STATUS::STEP]):
            odd = self._unfolded()[_STATUS::STEP]
            numbers.update(compress(range(len(odd)), odd))
        return self._stems(sorted(numbers))

    def plain(self, stems: Sequence[str]) -> Plain:
        plain, last = Plain.none(len(stems)), (-1, -1)
        whens: Sequence[float] = ()
        seconds: Sequence[float] = ()
        sizes: Sequence[int] = ()
        live, owners = self._weighed(), self._owners
        for k, n in enumerate(self._places(_digests(stems))):
            if n < 0 or live[n] != _SETTLED:
                continue
            address: int = _NUMBER.unpack_from(self._entries, n * STEP)[0]
            member, at = (address >> MEMBER) - 1, (owners[n], address & ((1 << MEMBER) - 1))
            if member >= 0 and at != last:
                whole = self._known[at[0]].segment.series(at[1])
                whens, seconds = whole.times() if whole is not None else ((), ())
                sizes, last = whole.sizes() if whole is not None else (), at
            if 0 <= member < len(whens):
                plain.found[k] = 1
                plain.whens[k], plain.seconds[k], plain.sizes[k] = whens[member], seconds[member], sizes[member]
            elif member < 0 and (header := self.header(n)) is not None:
                plain.found[k] = 1
                plain.whens[k], plain.seconds[k], plain.sizes[k] = header.when, header.seconds, header.size
        return plain

    def _places(self, digests: Iterable[int]) -> Iterator[int]:
        """The number of the newest record of each stem, by its digest; -1 for none."""
        table, mask = self._table, self._mask
        with memoryview(self._entries) as entries, entries.cast("Q") as words:
            for digest in digests:
                slot = digest & mask
                while (n := table[slot] - 1) >= 0 and words[n * WORDS + _STEM_WORD] != digest:
                    slot = (slot + 1) & mask
                yield n

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
            at = (other - 1) * STEP + _PRINT
            if self._entries[at : at + 16] == wanted:
                numbers.append(other - 1)
            slot = (slot + 1) & mask
        return [*self._stems(sorted(numbers))]

    def _prints(self) -> tuple[array[int], int]:
        """A table by the beginning of the fingerprint. Several records may have the same."""
        table, mask = _table(len(self))
        flags = self._unfolded()[_FLAGS::STEP]
        for n, alive in enumerate(self._weighed()):
            if alive and not flags[n] & ODD:
                slot = _NUMBER.unpack_from(self._entries, n * STEP + _PRINT)[0] & mask
                while table[slot]:
                    slot = (slot + 1) & mask
                table[slot] = n + 1
        return table, mask

    # ----- looking over

    def misfits(self) -> Iterator[tuple[str, Problem]]:
        """Done steps whose result or returned files are not there, whole, with what is wrong."""
        if not (marked := self._marked(APART | FILES)):
            return
        flags, statuses = self._entries[_FLAGS::STEP], self._entries[_STATUS::STEP]
        for n in marked:
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
        if not (marked := self._marked(DROPPED)):
            return
        flags = self._entries[_FLAGS::STEP]
        for n in marked:
            if flags[n] & APART and self._weighed()[n]:
                record = self.record(n)
                if record is not None and os.path.exists(f"{self._folder}/{record.outcome.location}"):
                    yield self._stem(n)

    def dead(self) -> int:
        """Bytes that repacking would take back, but for large results."""
        total = sum(known.size - FIRST for known in self._known)
        live, flags = self._weighed(), self._entries[_FLAGS::STEP]
        for n, (length,) in enumerate(_LENGTH.iter_unpack(self._entries)):
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


def _digest(stem: str) -> int:
    return digest_of(stem.encode(*TEXT))


def _digests(stems: Iterable[str]) -> array[int]:
    return array("Q", map(digest_of, map(methodcaller("encode", *TEXT), stems)))


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
