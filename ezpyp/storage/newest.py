"""Which entry of each step counts: the newest. A series does as a whole, until another entry is of one of its steps."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import compress, repeat
from operator import attrgetter

from ezpyp.storage import series
from ezpyp.storage.index import ENTRY, STEP, STRIDE, WORD, WORDS, digests, label_of
from ezpyp.storage.listed import Listed
from ezpyp.storage.segment import GONE, MEMBER, OPENING, WHEREABOUTS
from ezpyp.tuples import NamedTuple

#: Of an entry: flags, status, count, order, digest, number.
_RANKED = struct.Struct("<12xBBHQQ16xQ")
#: Where the order stands in it, in words of eight bytes; the count, in words of two; the flags, in bytes.
_ORDER_WORD, _COUNT_HALF, _FLAGS = 2, 7, 12
_HALVES = STEP // 2
#: By the byte of the flags, whether it is an opening.
_OPENINGS = bytes(bool(flags & OPENING) for flags in range(256))
#: Marks an entry that counts and has a plain done step's result.
SETTLED = 2


class Whole(NamedTuple):
    """A series of which every member counts."""

    #: The numbers of its first member, and of the one after its last.
    first: int
    stop: int
    #: Its entry.
    n: int


class Newest:
    """What counts of the entries of a folder, as far as they were weighed.

    Only a series that shares a step with another entry is told member by member, in entries put beside the others.

    Attributes:
        live: of each entry 0 if it does not count, else 1, or `SETTLED`.
        single: by digest the newest entry of each step that is in no whole series. It counts if it is `live`.
        labels: the digests of the labels of numbered steps among these.
        wholes: by the digests of their labels, in the order of their numbers. No two have a step in common.
    """

    def __init__(self, listed: Listed) -> None:
        self._listed = listed
        self.live = bytearray()
        self.single: dict[int, int] = {}
        self.labels: set[int] = set()
        self.wholes: dict[int, list[Whole]] = {}
        #: Below this order, only what was repacked counts.
        self._horizon = 0

    def weigh(self) -> None:
        """Take in the entries that were listed since the last call."""
        first, count = len(self.live), len(self._listed)
        if first < count:
            self.live += bytes(count - first)
            clashing = self._take_series(first)
            clashing |= self._take_single(first)
            for label, whole in sorted(clashing, key=_entry):
                self._unfold(label, whole)

    def between(self, label: int, first: int, stop: int) -> Iterator[Whole]:
        """The whole series of a label that have steps with these numbers."""
        wholes = self.wholes.get(label, ())
        for k in range(max(0, bisect_right(wholes, first, key=_first) - 1), len(wholes)):
            if wholes[k].first >= stop:
                return
            if wholes[k].stop > first:
                yield wholes[k]

    def _take_series(self, first: int) -> set[tuple[int, Whole]]:
        """Take series as wholes; those that have steps in common with other wholes, or with single entries."""
        new: dict[int, list[Whole]] = {}
        listed, flags = self._listed, bytes(self._listed.entries[first * STEP + _FLAGS :: STEP])
        with memoryview(listed.entries) as entries, entries.cast("H") as halves:
            counts = halves[first * _HALVES + _COUNT_HALF :: _HALVES].tolist()
        is_opening = flags.translate(_OPENINGS)
        for n in compress(range(first, len(listed)), map(max, is_opening, counts) if 1 in is_opening else counts):
            flag, _, count, order, digest, number = _RANKED.unpack_from(listed.entries, n * STEP)
            if not digest and flag & GONE:  # the opening of what was repacked
                self._horizon = max(self._horizon, order)
            elif count and (order >= self._horizon or not listed.owners[n]):
                new.setdefault(digest, []).append(Whole(number, number + count, n))
                self.live[n] = SETTLED
        clashing: set[tuple[int, Whole]] = set()
        for label, found in new.items():
            wholes = self.wholes[label] = sorted([*self.wholes.get(label, ()), *found])
            clashing.update(zip(repeat(label), _overlapping(wholes)))
            if label in self.labels:
                is_known = self.single.__contains__
                clashing |= {(label, each) for each in found if any(map(is_known, digests(label, range(*each[:2]))))}
        return clashing

    def _take_single(self, first: int) -> set[tuple[int, Whole]]:
        """Take all other entries; the wholes that have their steps too."""
        clashing: set[tuple[int, Whole]] = set()
        owners, horizon, live, single = self._listed.owners, self._horizon, self.live, self.single
        label, wholes = 0, False
        with memoryview(self._listed.entries) as entries, entries[first * STEP :] as new:
            for n, (flags, status, count, order, digest, number) in enumerate(_RANKED.iter_unpack(new), first):
                if count or not digest or (order < horizon and owners[n]):
                    continue
                if number:
                    if label != (digest - number * STRIDE) & WORD:  # most often it is that of the entry before
                        label = label_of(digest, number)
                        self.labels.add(label)
                        wholes = label in self.wholes
                    if wholes:
                        clashing |= {(label, each) for each in self.between(label, number - 1, number)}
                if (former := single.setdefault(digest, n)) != n:
                    if not self._is_newer(n, former):
                        continue
                    live[former], single[digest] = 0, n
                live[n] = SETTLED if not (flags & ~WHEREABOUTS or status) else 0 if flags & GONE else 1
        return clashing

    def _is_newer(self, n: int, former: int) -> bool:
        """In a segment the last entry of a step counts, else that of the highest order."""
        owners, entries = self._listed.owners, self._listed.entries
        word = 0 if owners[n] == owners[former] else _ORDER_WORD
        with memoryview(entries) as each, each.cast("Q") as words:
            mine, its = words[n * WORDS + word], words[former * WORDS + word]
        if not word:
            mine, its = mine & _OFFSET, its & _OFFSET
        return (mine, owners[n]) > (its, owners[former])

    def _unfold(self, label: int, whole: Whole) -> None:
        """Take the members of a series one by one; none of one that cannot be read."""
        self.wholes[label].remove(whole)
        self.labels.add(label)
        self.live[whole.n] = 0
        source, offset = self._listed.place(whole.n)
        found = source.segment.series(offset)
        if found is None:
            return
        numbers = range(found.first, found.first + found.members)
        addresses = range(offset + (1 << MEMBER), offset + (found.members + 1 << MEMBER), 1 << MEMBER)
        lengths = [size + series.EACH for size in found.sizes()]
        lengths[0] += found.start - series.EACH * found.members
        zeros, orders, places = repeat(0), repeat(found.order), range(numbers.start + 1, numbers.stop + 1)
        known = digests(label, numbers)
        prints = map(found.fingerprint, range(found.members))
        n = len(self.live)
        entries = map(ENTRY.pack, addresses, lengths, zeros, zeros, zeros, orders, known, prints, places)
        self._listed.add(self._listed.owners[whole.n], b"".join(entries))
        self.live += bytes(found.members)
        for k, digest in enumerate(known, n):
            former = self.single.setdefault(digest, k)
            if former == k or self._is_newer(k, former):
                self.live[former], self.single[digest], self.live[k] = 0, k, SETTLED


_OFFSET = (1 << MEMBER) - 1
_first = attrgetter("first")


def _entry(each: tuple[int, Whole]) -> int:
    return each[1].n


def _overlapping(wholes: Iterable[Whole]) -> Iterator[Whole]:
    """Those that have numbers in common with others, of some in the order of their numbers."""
    furthest: Whole | None = None
    for each in wholes:
        if furthest is not None and each.first < furthest.stop:
            yield furthest
            yield each
        if furthest is None or each.stop > furthest.stop:
            furthest = each
