"""The steps that a schema holds, and which of them a pattern with arguments means."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate, chain
from typing import Any, overload

from ezpyp.errors import UnknownStep
from ezpyp.folder import schema as schemas
from ezpyp.folder.folding import Folded, named, parsed
from ezpyp.model.arguments import plain_value
from ezpyp.model.places import Stems
from ezpyp.model.selection import Part, meant, unknown
from ezpyp.tuples import NamedTuple

#: Where a step has no such argument.
MISSING = object()


class Entry(NamedTuple):
    """A step as the schema has it."""

    name: str
    phase: int
    stem: str
    #: "" for a member of a folded family: what lies under its stem is its own.
    fingerprint: str
    function_name: str
    args: str
    kwargs: str
    #: Parameters with their values as JSON holds them.
    arguments: Mapping[str, Any]
    #: Names of the nearest dependencies.
    upstream: tuple[str, ...]


def entry_of(phase: int, content: Mapping[str, Any]) -> Entry:
    """The step that an entry of a schema tells of."""
    return Entry(
        name=content["name"],
        phase=phase,
        stem=content["stem"],
        fingerprint=content["fingerprint"],
        function_name=content["function_name"],
        args=content["args"],
        kwargs=content["kwargs"],
        arguments=content["arguments"],
        upstream=tuple(named(content["upstream"])),
    )


class Entries(Sequence[Entry]):
    """All steps of a schema in the order of the plan. Those of folded families are made when they are looked at."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._listed = [
            (phase, each, Folded(each) if "count" in each else None) for phase, each in schemas.entries(schema)
        ]
        self._ends = array("q", accumulate(each.get("count", 1) for _, each, _ in self._listed))
        self._single: dict[str, int] = {}
        self._folded: dict[str, list[int]] = {}
        for k, (_, each, folded) in enumerate(self._listed):
            if folded is None:
                self._single[each["name"]] = k
            else:
                self._folded.setdefault(each["label"], []).append(k)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, place: int) -> Entry: ...
    @overload
    def __getitem__(self, place: slice) -> list[Entry]: ...
    def __getitem__(self, place: int | slice) -> Entry | list[Entry]:
        if isinstance(place, slice):
            return [self[k] for k in range(len(self))[place]]
        place = range(len(self))[place]
        k = bisect_right(self._ends, place)
        phase, content, folded = self._listed[k]
        if folded is None:
            return entry_of(phase, content)
        member = folded.member(place - self._ends[k] + content["count"])
        return Entry(
            name=member.name,
            phase=phase,
            stem=member.name,
            fingerprint="",
            function_name=content["function_name"],
            args=member.args,
            kwargs=member.kwargs,
            arguments=member.arguments,
            upstream=tuple(member.upstream),
        )

    def names(self, places: Iterable[int]) -> Iterator[str]:
        """The names of the steps at these places."""
        return map(self._name, places)

    def _name(self, place: int) -> str:
        k = bisect_right(self._ends, place)
        _, content, folded = self._listed[k]
        return content["name"] if folded is None else folded.name(place - self._ends[k] + content["count"])

    def content(self, place: int) -> Mapping[str, Any]:
        """The entry of the schema that stands for the step at a place."""
        return self._listed[bisect_right(self._ends, place)][1]

    def is_folded(self, place: int) -> bool:
        """Whether the step at a place is a member of a folded family."""
        return "count" in self.content(place)

    def argument(self, place: int, name: str) -> Any:
        """An argument of a step, as JSON holds it; MISSING where it has none of that name."""
        k = bisect_right(self._ends, place)
        _, content, folded = self._listed[k]
        if folded is None or name not in content["arguments"]:
            return content["arguments"].get(name, MISSING)
        return folded.argument(place - self._ends[k] + content["count"], name)

    def parts(self) -> Iterator[Part]:
        """The steps as `selection.meant` looks through them."""
        for _, content, folded in self._listed:
            if folded is None:
                yield Part(content["name"], -1, 1, content["function_name"])
            else:
                yield Part(content["label"], content["first"], content["count"], content["function_name"])

    def listed(self) -> Iterator[tuple[int, int, int, Mapping[str, Any]]]:
        """Of each entry of the schema where its steps begin and end, their phase, and what it says."""
        start = 0
        for (phase, content, _), end in zip(self._listed, self._ends, strict=True):
            yield start, end, phase, content
            start = end

    def before(self, content: Mapping[str, Any]) -> list[int]:
        """The entries, by their numbers, that hold the nearest dependencies of the steps of an entry."""
        found: dict[int, None] = {}
        for places in map(self._placed, content["upstream"]):
            if places:
                found |= dict.fromkeys(
                    range(bisect_right(self._ends, places[0]), bisect_right(self._ends, places[-1]) + 1)
                )
        return [*found]

    def wholes(self) -> Iterator[tuple[int, int, int, Mapping[str, Any]]]:
        """Of each folded family where it begins and ends, its phase, and its entry."""
        for (phase, content, folded), end in zip(self._listed, self._ends, strict=True):
            if folded is not None:
                yield end - content["count"], end, phase, content

    def after(self, places: Iterable[int]) -> list[int]:
        """These steps and all that come after them, by their places, in order."""
        found, end = {*places}, 0
        for _, content, folded in self._listed:
            start, end = end, end + content.get("count", 1)
            if not content["upstream"]:
                continue
            before = chain.from_iterable(map(self._placed, content["upstream"]))
            if folded is not None and content["one_each"]:
                found.update(start + i for i, place in enumerate(before) if place in found)
            elif not found.isdisjoint(before):
                found.update(range(start, end))
        return sorted(found)

    def _placed(self, name: str) -> range:
        """The places of the steps that a name stands for."""
        label, first, count = parsed(name)
        place = self.place(name if first < 0 else f"{label}[{first}]")
        return range(place, place + count) if place is not None else range(0)

    @cached_property
    def stems(self) -> Stems:
        """The stem of each step."""
        return _Stems(self._listed, self._ends)

    def strange(self, stems: Iterable[str]) -> Iterator[str]:
        """Those of some stems that are of no step."""
        single = {content["stem"] for _, content, folded in self._listed if folded is None}
        for stem in stems:
            if stem not in single:
                place = self.place(stem)
                if place is None or self._listed[bisect_right(self._ends, place)][2] is None:
                    yield stem

    def alone(self) -> Iterator[tuple[int, str]]:
        """The places and the fingerprints of the steps that are in no folded family."""
        for (_, content, folded), end in zip(self._listed, self._ends, strict=True):
            if folded is None:
                yield end - 1, content["fingerprint"]

    def blocks(self) -> Iterator[tuple[int, int, str]]:
        """Steps of one function that follow each other: from, to, and what the function is called."""
        start, end, function = 0, 0, ""
        for _, content, _ in self._listed:
            if content["function_name"] != function and end > start:
                yield start, end, function
                start = end
            function, end = content["function_name"], end + content.get("count", 1)
        if end > start:
            yield start, end, function

    def place(self, name: str) -> int | None:
        """The place of the step of that name."""
        k = self._single.get(name)
        if k is not None:
            return int(self._ends[k]) - 1
        label, bracket, number = name.rpartition("[")
        if not bracket or not number[:-1].isdecimal() or name != f"{label}[{int(number[:-1])}]":
            return None
        for k in self._folded.get(label, ()):
            _, content, _ = self._listed[k]
            member = int(number[:-1]) - content["first"]
            if 0 <= member < content["count"]:
                return int(self._ends[k]) - int(content["count"]) + int(member)
        return None


class _Stems(Stems):
    """The stem of each step of a schema."""

    def __init__(self, listed: Sequence[tuple[int, Mapping[str, Any], Folded | None]], ends: array[int]) -> None:
        self._listed, self._ends = listed, ends

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[k] for k in range(len(self))[place]]
        place = range(len(self))[place]
        k = bisect_right(self._ends, place)
        _, content, folded = self._listed[k]
        return content["stem"] if folded is None else folded.name(place - self._ends[k] + content["count"])

    def runs(self) -> Iterator[tuple[str, int, int]]:
        for _, content, folded in self._listed:
            if folded is None:
                yield content["stem"], -1, 1
            else:
                yield content["label"], content["first"], content["count"]


class Places(Mapping[str, int]):
    """Names of steps to their places."""

    def __init__(self, entries: Entries) -> None:
        self._entries = entries

    def __getitem__(self, name: str) -> int:
        place = self._entries.place(name)
        if place is None:
            raise KeyError(name)
        return place

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[str]:
        return self._entries.names(range(len(self._entries)))


def choose(entries: Entries, pattern: str, arguments: Mapping[str, Any]) -> Sequence[int]:
    """The places of the steps that a pattern means (see `selection.meant`), of which only those with these arguments.

    Raises:
        UnknownStep: no step is meant, or none of them has an argument of that name.
    """
    found = meant(pattern, entries.parts())
    if not found:
        raise UnknownStep(unknown(pattern, entries.names(range(len(entries)))))
    for key, wanted in arguments.items():
        values = [entries.argument(place, key) for place in found]
        if all(value is MISSING for value in values):
            known = dict.fromkeys(k for place in found for k in entries.content(place)["arguments"])
            raise UnknownStep(
                f"No step of '{pattern}' has an argument '{key}'. Theirs are: {', '.join(known) or 'none'}."
            )
        plain = plain_value(wanted)
        fitting = (p for p, v in zip(found, values, strict=True) if v is not MISSING and _fits(v, plain))
        found = array("q", fitting)
    return found


def _fits(recorded: Any, wanted: Any) -> bool:
    """Whether an argument is the wanted one, or the one that a text spells."""
    if recorded == wanted:
        return isinstance(recorded, bool) == isinstance(wanted, bool)
    if not isinstance(wanted, str):
        return False
    if str(recorded) == wanted:
        return True
    try:
        return type(recorded) in (int, float) and float(wanted) == recorded
    except ValueError:
        return False
