"""The entries of all segments of a folder, from the indexes beside them: nothing else of the segments is read."""

from __future__ import annotations

import os
from array import array

from ezpyp.storage.index import ENTRY, STEP, WORDS, listing
from ezpyp.storage.names import BASE, name_of, number_from
from ezpyp.storage.protocol import Problem
from ezpyp.storage.segment import FIRST, Segment

#: Where the order stands in an entry, in words of eight bytes.
_ORDER_WORD = 2


class Source:
    """How far a segment was looked through."""

    def __init__(self, number: int, segment: Segment) -> None:
        self.number, self.segment = number, segment
        self.indexed = self.end = FIRST
        #: Of the file, with what is no whole record yet.
        self.size = 0


class Listed:
    """Entries in the order in which they were found, as the indexes have them (see `index.ENTRY`).

    Attributes:
        sources: the segments. owners: of each entry its place among them.
        latest: the highest order.
        problems: what cannot be read.
    """

    def __init__(self, folder: str) -> None:
        """
        Raises:
            OSError: the folder cannot be read.
        """
        self._folder = folder
        self.problems: list[Problem] = []
        self.sources: list[Source] = []
        self.entries = bytearray()
        self.owners = array("H")
        self.latest = 0
        for number in sorted(self._numbers(), reverse=True):  # repacked ones first: they say what no longer counts
            self._open(number)
        self._read()

    def __len__(self) -> int:
        return len(self.owners)

    def refresh(self) -> bool:
        """Take in what was written since; False where that cannot be, because the segments are others."""
        known = {each.number for each in self.sources}
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

    def is_current(self) -> bool:
        """Whether nothing was written since it was looked through."""
        try:
            known = {each.number: each.size for each in self.sources}
            return {*self._numbers()} == known.keys() and all(k.segment.size == k.size for k in self.sources)
        except OSError:
            return False

    def add(self, owner: int, entries: bytes) -> None:
        """Put more entries of a segment beside those that its index has."""
        self.entries += entries
        self.owners.extend(array("H", [owner]) * (len(entries) // STEP))

    def place(self, n: int) -> tuple[Source, int]:
        """The segment of an entry, and the address of its record there."""
        return self.sources[self.owners[n]], ENTRY.unpack_from(self.entries, n * STEP)[0]

    def _numbers(self) -> list[int]:
        try:
            names = os.listdir(f"{self._folder}/store")
        except FileNotFoundError:
            return []
        return [number for name in names if (number := number_from(name)) >= 0]

    def _open(self, number: int) -> None:
        path = f"{self._folder}/store/{name_of(number)}"
        try:
            self.sources.append(Source(number, Segment(path)))
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            if os.path.exists(path) and os.path.getsize(path) >= FIRST:  # else it was made just now
                self.problems.append(Problem(path=path, what=getattr(error, "strerror", None) or str(error)))

    def _read(self) -> None:
        """Take in the entries that were written since the last call."""
        first = len(self.owners)
        for k, source in enumerate(self.sources):
            size = source.segment.size
            if size == source.size:
                continue
            found = listing(source.segment, indexed=source.indexed, end=source.end)
            source.indexed, source.end, source.size = found.indexed or FIRST, found.end, size
            path = source.segment.path
            self.problems += [
                Problem(path=path, what=f"torn: bytes {start:,} to {end:,} are no record") for start, end in found.gaps
            ]
            self.add(k, found.listed)
            self.add(k, bytes(found.missing))
        if len(self.owners) > first:
            with memoryview(self.entries) as entries, entries.cast("Q") as words:
                self.latest = max(self.latest, *words[first * WORDS + _ORDER_WORD :: WORDS])
