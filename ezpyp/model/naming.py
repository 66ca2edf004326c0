"""Names: of steps as file names, of steps as people write many of them, of the files of a run."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import count
from operator import attrgetter

from ezpyp.system.digests import blake2b

#: The plan of a folder, and the table that a run leaves behind.
SCHEMA_FILE = "pipeline.schema"
SUMMARY_FILE = "pipeline.summary"
#: Where packed results lie.
STORE_FOLDER = "store"

_SAFE = r"[A-Za-z0-9_+=,][A-Za-z0-9_+=,.\[\]-]{,99}"
#: What ezpyp itself puts beside results, and what its file names end in.
_RESERVED = (
    r"pipeline|journal|logs|store|report\.html|code|jobs|checkpoints|.*\.(step|status|partial|schema|summary)(\..*)?"
)


def stems(names: Sequence[str]) -> dict[str, str]:
    """File stems for step names: the name itself where it is safe, else a readable part, `~` and a digest of the name.

    Pure, and different without regard to case: of names that differ only in case, the later gets the digest too.
    """
    taken = Stems()
    return {name: taken.add(name) for name in dict.fromkeys(names)}


class Stems:
    """Stems that are taken, those of numbered names as spans of numbers."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        #: By label without regard to case: spans of numbers that are stems as they stand, in their order, and numbers
        #: that were taken alone.
        self._spans: dict[str, list[range]] = {}
        self._alone: dict[str, set[int]] = {}
        self._safe: dict[str, bool] = {}

    def add(self, name: str) -> str:
        """The stem of a name that was not given before."""
        if self._is_safe(name):
            stem = name
            key = stem.casefold()
            if key not in self._taken and not (self._spans and self._in_span(key)):
                self._taken.add(key)
                label, number = _parted(key)
                if number >= 0:
                    self._alone.setdefault(label, set()).add(number)
                return stem
        # Two digests of 40 bits may meet in a million names.
        stem = next(each for each in map(partial(_digested, name), count()) if each.casefold() not in self._taken)
        self._taken.add(stem.casefold())
        return stem

    def add_numbered(self, label: str, numbers: range) -> bool:
        """Take `label[n]` for these numbers as stems, at once. False, and nothing is taken, where not all can be."""
        if not numbers or "[" in label or not all(self._is_safe(f"{label}[{n}]") for n in {numbers[0], numbers[-1]}):
            return False
        key = label.casefold()
        spans, alone = self._spans.setdefault(key, []), self._alone.get(key, set())
        place = bisect_left(spans, numbers.start, key=_start)
        beside = spans[max(0, place - 1) : place + 1]
        if any(each.start < numbers.stop and numbers.start < each.stop for each in beside):
            return False
        few, many = (alone, numbers) if len(alone) < len(numbers) else (numbers, alone)
        if any(number in many for number in few):
            return False
        if place and spans[place - 1].stop == numbers.start:
            spans[place - 1] = range(spans[place - 1].start, numbers.stop)
        else:
            spans.insert(place, numbers)
        return True

    def _is_safe(self, name: str) -> bool:
        """As `_is_safe`; numbered names of one label are looked at once."""
        label, bracket, number = name.partition("[")
        if not bracket or len(name) > 80 or not (number[:-1].isdecimal() and number.isascii() and number[-1] == "]"):
            return _is_safe(name)
        safe = self._safe.get(label)
        if safe is None:
            safe = self._safe[label] = _is_safe(f"{label}[0]")
        return safe

    def _in_span(self, key: str) -> bool:
        label, number = _parted(key)
        spans = self._spans.get(label, [])
        place = bisect_right(spans, number, key=_start)
        return place > 0 and number in spans[place - 1]


_start = attrgetter("start")


def _parted(stem: str) -> tuple[str, int]:
    """The label and the number of a stem that ends in one as numbers are written; -1 for none."""
    label, _, rest = stem.partition("[")
    number = rest.removesuffix("]")
    written = number.isdecimal() and number.isascii() and str(int(number)) == number
    return label, int(number) if written else -1


def _is_safe(name: str) -> bool:
    return (
        re.fullmatch(_SAFE, name) is not None
        and ".." not in name
        and not name.endswith(".")
        and re.fullmatch(_RESERVED, name.casefold()) is None
    )


def _digested(name: str, salt: int) -> str:
    readable = re.sub(r"[^A-Za-z0-9_]+", "-", name)[:60].strip("-") or "step"
    content = f"{name}\0{salt}" if salt else name
    return f"{readable}~{blake2b(content.encode('utf-8', 'surrogatepass'), digest_size=5).hexdigest()}"


def compact(names: Iterable[str]) -> str:
    """Names as people write them: `load, train[0..11]`. What stands for several already is taken as it is meant."""
    runs: dict[str, list[tuple[int, int]]] = {}
    for name in names:
        base, bracket, rest = name.partition("[")
        first, dots, last = rest[:-1].partition("..")
        numbered = bool(bracket) and rest.endswith("]") and first.isdecimal() and (last.isdecimal() or not dots)
        if not numbered:
            runs.setdefault(name, [])
        else:
            runs.setdefault(base, []).append((int(first), int(last if dots else first)))
    return ", ".join(_range(key, sorted(numbers)) for key, numbers in runs.items())


def _range(base: str, numbers: list[tuple[int, int]]) -> str:
    if not numbers:
        return base
    spans: list[list[int]] = []
    for first, last in numbers:
        if spans and spans[-1][1] == first - 1:
            spans[-1][1] = last
        else:
            spans.append([first, last])
    return f"{base}[{','.join(str(a) if a == b else f'{a}..{b}' for a, b in spans)}]"


def some(names: Iterable[str], most: int = 5) -> str:
    listed = list(names)
    if not listed:
        return "nothing"
    return ", ".join(f"'{n}'" for n in listed[:most]) + (
        f" and {len(listed) - most} more" if len(listed) > most else ""
    )
