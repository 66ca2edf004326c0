"""The records of a folder of segments, found without reading them.

A folder of a million records is looked through in less than a second. Of a series only what it is found by is kept.
"""

from __future__ import annotations

import os
import struct
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import accumulate, chain, compress

from ezpyp.model import outputs
from ezpyp.model.outcomes import Status
from ezpyp.model.places import Stems
from ezpyp.storage import series
from ezpyp.storage.index import STEP, digest_of, digests, key_of, label_of, parted
from ezpyp.storage.listed import Listed, Source
from ezpyp.storage.newest import SETTLED, Newest, Whole
from ezpyp.storage.protocol import Batch, Plain, Problem, Records, Together
from ezpyp.storage.record import Record, print_of
from ezpyp.storage.segment import (
    APART,
    DROPPED,
    ELSEWHERE,
    FILES,
    FIRST,
    MEMBER,
    ODD,
    OPENING,
    WHEREABOUTS,
    Header,
    record_of,
)
from ezpyp.storage.series import TEXT, Series
from ezpyp.tuples import NamedTuple

#: Where things stand in an entry, in bytes.
_FLAGS, _STATUS, _PRINT = 12, 13, 32
_LENGTH = struct.Struct("<8xI44x")
_FINGERPRINT = struct.Struct("16s")
#: Flags with which there is something to say of a step.
_SAYING = 0xFF & ~WHEREABOUTS & ~OPENING


class _Run(NamedTuple):
    """Steps that are asked for together: of a label, from a number on, or one alone, whose number is -1."""

    label: int
    first: int
    #: The place of the first among those that are asked for.
    start: int
    size: int

    def digests(self) -> Sequence[int]:
        return digests(self.label, range(self.first, self.first + self.size)) if self.first >= 0 else (self.label,)


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
        self._listed = Listed(folder)
        self._newest = Newest(self._listed)

    @property
    def problems(self) -> list[Problem]:
        """What of the segments cannot be read."""
        return self._listed.problems

    @property
    def latest(self) -> int:
        """The highest order of a record."""
        return self._listed.latest

    def refresh(self) -> bool:
        """Take in what was written since; False where that cannot be, because the segments are others."""
        return self._listed.refresh()

    def is_current(self) -> bool:
        """Whether nothing was written since it was looked through."""
        return self._listed.is_current()

    @property
    def _weighed(self) -> Newest:
        self._newest.weigh()
        return self._newest

    # ----- one by one

    def find(self, stem: str) -> tuple[Source, int] | None:
        """Where the record under a stem is: the segment, and the address there."""
        newest, encoded = self._weighed, stem.encode(*TEXT)
        digest, place = key_of(encoded)
        n = newest.single.get(digest)
        if n is not None:
            return self._listed.place(n) if newest.live[n] else None
        if place:
            for whole in newest.between(label_of(digest, place), place - 1, place):
                source, offset = self._listed.place(whole.n)
                return source, offset + (place - whole.first << MEMBER)
        return None

    def read(self, source: Source, address: int) -> tuple[Record, Header] | None:
        """The record at an address, with its header; None if it cannot be read."""
        try:
            header = source.segment.header(address)
            record = record_of(source.segment, source.number, address, header) if header is not None else None
        except ValueError:
            return None
        return (record, header) if record is not None and header is not None else None

    def __getitem__(self, stem: str) -> Record:
        spot = self.find(stem)
        found = self.read(*spot) if spot is not None else None
        if found is None:
            raise KeyError(stem)
        return found[0]

    def __iter__(self) -> Iterator[str]:
        yield from self.alone()
        for _, _, whole in self._series():
            yield from whole.stems()

    def __len__(self) -> int:
        newest = self._weighed
        count = sum(map(len, newest.wholes.values()))
        members = sum(each.stop - each.first for wholes in newest.wholes.values() for each in wholes)
        return len(newest.live) - newest.live.count(0) - count + members

    def __bool__(self) -> bool:
        return any(self._weighed.live)

    def alone(self) -> Iterator[str]:
        return self._stems(sorted(n for n in self._weighed.single.values() if self._newest.live[n]))

    def together(self) -> Iterator[Together]:
        for source, offset, found in self._series():
            begin = offset + found.start
            data = source.segment.read(begin, found.size)
            ends = [*accumulate(found.sizes())]
            results = [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]
            whens, seconds = (array("d", column) for column in found.times())
            prints = found.columns[: 16 * found.members]
            batch = Batch(found.label, found.first, prints, whens, seconds, found.codec, results)
            yield Together(batch, found.checksums(), found.rank, source.segment.host(found.opening))

    def _series(self) -> Iterator[tuple[Source, int, Series]]:
        """The series of which all members count, with their segments, and their offsets there."""
        for n in sorted(each.n for wholes in self._weighed.wholes.values() for each in wholes):
            source, offset = self._listed.place(n)
            found = source.segment.series(offset)
            if found is not None:
                yield source, offset, found

    def _stems(self, numbers: Iterable[int]) -> Iterator[str]:
        """The stems of single entries."""
        for n in numbers:
            source, address = self._listed.place(n)
            header = source.segment.header(address)
            if header is not None:
                yield header.stem

    def _marked(self, flags: int, *, odd: bool = False) -> list[int]:
        """The single entries that count and have one of these flags; or a status other than done, if `odd` is set."""
        newest, entries = self._weighed, self._listed.entries
        found = bytes(entries[_FLAGS::STEP]).translate(bytes(bool(each & flags) for each in range(256)))
        some = {*compress(range(len(found)), found)} if 1 in found else set()
        statuses = bytes(entries[_STATUS::STEP]) if odd else b""
        if any(statuses):
            some.update(compress(range(len(statuses)), statuses))
        return [n for n in sorted(some) if newest.live[n]]

    # ----- many at once

    def settled(self, fingerprints: bytes, stems: Sequence[str]) -> bytearray:
        found, newest = bytearray(len(stems)), self._weighed
        live, entries = newest.live, self._listed.entries
        for run in _runs(stems):
            for whole in newest.between(run.label, run.first, run.first + run.size):
                self._match(whole, run, fingerprints, found)
            if run.first < 0 or run.label in newest.labels:
                for k, n in enumerate(map(newest.single.get, run.digests()), run.start):
                    if n is not None and live[n] == SETTLED:
                        at = n * STEP + _PRINT
                        found[k] = entries[at : at + 16] == fingerprints[16 * k : 16 * k + 16]
        return found

    def _match(self, whole: Whole, run: _Run, fingerprints: bytes, found: bytearray) -> None:
        """Find the members of a series that have the fingerprints of a run."""
        first, stop = max(whole.first, run.first), min(whole.stop, run.first + run.size)
        start = run.start + first - run.first
        wanted = fingerprints[16 * start : 16 * (start + stop - first)]
        if (first, stop) == whole[:2]:
            at = whole.n * STEP + _PRINT
            if series.digest_of(first, wanted) == self._listed.entries[at : at + 16]:
                found[start : start + stop - first] = b"\1" * (stop - first)
                return
        members = self._members(whole)
        if members is not None:
            mine = members.columns[16 * (first - whole.first) :]
            found[start : start + stop - first] = bytes(
                mine[at : at + 16] == wanted[at : at + 16] for at in range(0, len(wanted), 16)
            )

    def _members(self, whole: Whole) -> Series | None:
        source, offset = self._listed.place(whole.n)
        return source.segment.series(offset)

    def plain(self, stems: Sequence[str]) -> Plain:
        plain, newest = Plain.none(len(stems)), self._weighed
        for run in _runs(stems):
            for whole in newest.between(run.label, run.first, run.first + run.size):
                if (members := self._members(whole)) is not None:
                    first, stop = max(whole.first, run.first), min(whole.stop, run.first + run.size)
                    mine = slice(first - whole.first, stop - whole.first)
                    at = slice(run.start + first - run.first, run.start + stop - run.first)
                    whens, seconds = members.times()
                    plain.found[at] = b"\1" * (stop - first)
                    plain.whens[at], plain.seconds[at] = array("d", whens[mine]), array("d", seconds[mine])
                    plain.sizes[at] = array("q", members.sizes()[mine])
            if run.first < 0 or run.label in newest.labels:
                for k, n in enumerate(map(newest.single.get, run.digests()), run.start):
                    if n is None or not newest.live[n]:
                        continue
                    plain.found[k] = 2
                    if newest.live[n] == SETTLED:
                        source, address = self._listed.place(n)
                        if (header := source.segment.header(address)) is not None:
                            plain.found[k] = 1
                            plain.whens[k], plain.seconds[k], plain.sizes[k] = header.when, header.seconds, header.size
        return plain

    def notable(self) -> Iterator[str]:
        return self._stems(self._marked(_SAYING, odd=True))

    def under(self, fingerprints: Collection[str]) -> dict[str, list[str]]:
        wanted = {raw: each for each in fingerprints if (raw := print_of(each)) is not None}
        found: dict[str, list[str]] = {}
        if wanted:
            self._under_wholes(wanted, found)
            self._under_single(wanted, found)
        if len(wanted) < len(fingerprints):
            odd = {*fingerprints} - {*wanted.values()}
            for stem in self._stems(self._marked(ODD)):
                if (print_ := self[stem].fingerprint) in odd:
                    found.setdefault(print_, []).append(stem)
        return found

    def _under_wholes(self, wanted: dict[bytes, str], found: dict[str, list[str]]) -> None:
        for _, _, members in self._series():
            prints = [*chain.from_iterable(_FINGERPRINT.iter_unpack(members.columns[: 16 * members.members]))]
            if not wanted.keys().isdisjoint(prints):
                for i, print_ in enumerate(prints):
                    if print_ in wanted:
                        found.setdefault(wanted[print_], []).append(members.stem(i))

    def _under_single(self, wanted: dict[bytes, str], found: dict[str, list[str]]) -> None:
        live, entries = self._newest.live, self._listed.entries
        for n in sorted(self._newest.single.values()):
            at = n * STEP + _PRINT
            if live[n] and (print_ := bytes(entries[at : at + 16])) in wanted and not entries[n * STEP + _FLAGS] & ODD:
                found.setdefault(wanted[print_], []).extend(self._stems([n]))

    # ----- looking over

    def misfits(self) -> Iterator[tuple[str, Problem]]:
        """Done steps whose result or returned files are not there, whole, with what is wrong."""
        for n in self._marked(APART | FILES):
            flags, status = self._listed.entries[n * STEP + _FLAGS], self._listed.entries[n * STEP + _STATUS]
            if flags & DROPPED or status != Status.DONE or (read := self.read(*self._listed.place(n))) is None:
                continue
            record, header = read
            path, wrong = f"{self._folder}/{record.outcome.location}", ""
            if flags & APART:
                wrong = _misfit(path, record)
            wrong = wrong or outputs.misfit(self._folder, record.outcome.files)
            if wrong:
                yield header.stem, Problem(path=path, what=wrong)

    def leftovers(self) -> Iterator[str]:
        """Stems of dropped results whose files are still there."""
        for n in self._marked(DROPPED):
            read = self.read(*self._listed.place(n)) if self._listed.entries[n * STEP + _FLAGS] & APART else None
            if read is not None and os.path.exists(f"{self._folder}/{read[0].outcome.location}"):
                yield read[1].stem

    def dead(self) -> int:
        """Bytes that repacking would take back, but for large results."""
        total = sum(source.size - FIRST for source in self._listed.sources)
        live, entries = self._weighed.live, self._listed.entries
        flags = entries[_FLAGS::STEP]
        for n, (length,) in enumerate(_LENGTH.iter_unpack(entries)):
            if flags[n] & OPENING or live[n]:
                total -= length
            if flags[n] & ELSEWHERE and not flags[n] & (APART | DROPPED) and live[n]:
                source, address = self._listed.place(n)
                header = source.segment.header(address)
                total -= header.size if header is not None else 0
        return max(0, total)

    def leave_out(self, stem: str) -> None:
        """Let a record that is no member of a series count no more: what it vouches for is not there."""
        n = self._weighed.single.get(key_of(stem.encode(*TEXT))[0])
        if n is not None:
            self._newest.live[n] = 0


def _runs(stems: Sequence[str]) -> Iterator[_Run]:
    """Stems as runs of numbers that follow each other."""
    start = 0
    for label, first, count in stems.runs() if isinstance(stems, Stems) else ((each, -1, 1) for each in stems):
        text, number = (label.encode(*TEXT), first) if first >= 0 else parted(label.encode(*TEXT))
        yield _Run(digest_of(text), number, start, count)
        start += count


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
