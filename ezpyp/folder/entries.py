"""The steps that a schema holds, and which of them a pattern with arguments means."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate, repeat
from typing import Any, NamedTuple, overload

from ezpyp.errors import UnknownStep
from ezpyp.folder import schema as schemas
from ezpyp.folder.folding import Folded, named
from ezpyp.model.arguments import plain_value
from ezpyp.model.selection import meant, unknown


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

    def wholes(self) -> Iterator[tuple[int, int, int, Mapping[str, Any]]]:
        """Of each folded family where it begins and ends, its phase, and its entry."""
        for (phase, content, folded), end in zip(self._listed, self._ends, strict=True):
            if folded is not None:
                yield end - content["count"], end, phase, content

    def functions(self) -> Iterator[tuple[str, str]]:
        """The stem of each step, and the name of its function."""
        for _, content, folded in self._listed:
            stems = (content["stem"],) if folded is None else map(folded.name, range(content["count"]))
            yield from zip(stems, repeat(content["function_name"]), strict=False)

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
        return (entry.name for entry in self._entries)


def choose(entries: Sequence[Entry], pattern: str, arguments: Mapping[str, Any]) -> list[Entry]:
    """The steps that a pattern means (see `selection.meant`), in their order, of which only those with these arguments.

    Raises:
        UnknownStep: no step is meant, or none of them has an argument of that name.
    """
    found = meant(pattern, entries, name=lambda e: e.name, function=lambda e: e.function_name)
    if not found:
        raise UnknownStep(unknown(pattern, (entry.name for entry in entries)))
    for key, wanted in arguments.items():
        if not any(key in entry.arguments for entry in found):
            known = dict.fromkeys(k for entry in found for k in entry.arguments)
            raise UnknownStep(
                f"No step of '{pattern}' has an argument '{key}'. Theirs are: {', '.join(known) or 'none'}."
            )
        found = [e for e in found if key in e.arguments and _fits(e.arguments[key], plain_value(wanted))]
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
