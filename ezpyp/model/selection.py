"""Which steps a pattern means, and which part of a plan a run is asked for."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence

from ezpyp.errors import UnknownStep
from ezpyp.model.naming import compact
from ezpyp.model.plan import Graph, Plan
from ezpyp.model.steps import callable_name
from ezpyp.tuples import NamedTuple


class Part(NamedTuple):
    """Steps that follow each other: `label[first]` and so on; or one that is called so, whose `first` is -1."""

    label: str
    first: int
    size: int
    function: str


def parts(plan: Plan) -> Iterator[Part]:
    """The steps of a plan."""
    for block in plan.blocks:
        family = block.family
        first = -1 if family.first is None else family.first + block.members.start
        yield Part(family.label, first, len(block.members), callable_name(family.definition.function))


def meant(pattern: str, among: Iterable[Part]) -> array[int]:
    """The places of the steps that a pattern means, in their order; empty if none.

    A name means itself and, without its number, all of its family: `train` is `train[0]`, `train[1]`, …; where there
    is no such name, the steps of the function called so. `*` and `?` stand for any characters; brackets stand for
    themselves. Members of families are looked at one by one only where a pattern means some of them.
    """
    listed, found, start = [*among], array("q"), 0
    wanted = _wanted(pattern)
    for part in listed:
        found.extend(start + k for k in wanted(part))
        start += part.size
    if not found:
        start = 0
        for part in listed:
            if part.function == pattern:
                found.extend(range(start, start + part.size))
            start += part.size
    return found


def _wanted(pattern: str) -> Callable[[Part], Iterable[int]]:
    """What gives the members of a part that a pattern means by their names."""
    if "*" not in pattern and "?" not in pattern:
        return lambda part: _named(pattern, part)
    glob = re.compile("".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern), re.DOTALL)

    def fitting(part: Part) -> Iterable[int]:
        if part.first < 0:
            return range(glob.fullmatch(part.label) is not None)
        if pattern.endswith("*") and glob.fullmatch(f"{part.label}["):  # whatever follows
            return range(part.size)
        names = map(f"{part.label.replace('%', '%%')}[%d]".__mod__, range(part.first, part.first + part.size))
        return (k for k, name in enumerate(names) if glob.fullmatch(name))

    return fitting


def _named(name: str, part: Part) -> range:
    """The members of a part that a name means."""
    if part.first < 0:
        return range(part.label == name or part.label.startswith(f"{name}["))
    if f"{part.label}[".startswith(f"{name}["):
        return range(part.size)
    number = name.removeprefix(f"{part.label}[").removesuffix("]")
    k = int(number) - part.first if number.isdecimal() and name == f"{part.label}[{number}]" else -1
    return range(k, k + 1) if 0 <= k < part.size and str(k + part.first) == number else range(0)


def unknown(name: str, known: Iterable[str]) -> str:
    """The text for a step that is not there: what was probably meant, or what there is."""
    names = list(known)
    close = [each for each in names if each.casefold() == name.casefold()] or _similar(name, names)
    if close:
        return f"No step is called '{name}'. Did you mean '{close[0]}'?"
    few = compact(names[:20])
    return f"No step is called '{name}'. There are: {few}{', …' if len(names) > 20 else ''}."


def _similar(name: str, names: list[str]) -> list[str]:
    import difflib

    return difflib.get_close_matches(name, names[:10_000], 1)


class Selection:
    """The part of a plan that a run is asked for, as patterns; empty tuples mean all of it."""

    def __init__(self, only: tuple[str, ...] = (), until: tuple[str, ...] = (), from_: tuple[str, ...] = ()) -> None:
        """
        Args:
            only: these steps. until: everything up to these. from_: these and everything after them.
        """
        self.only, self.until, self.from_ = only, until, from_

    def __bool__(self) -> bool:
        return bool(self.only or self.until or self.from_)

    def of(self, plan: Plan) -> frozenset[int]:
        """The indices of the steps asked for, without what they need.

        Raises:
            UnknownStep: a pattern means no step.
        """
        after = downstream(plan.graph, self._indices(plan, self.from_))
        before = _closure(self._indices(plan, self.until), plan.graph.parents)
        return frozenset({*self._indices(plan, self.only), *before, *after})

    @staticmethod
    def _indices(plan: Plan, patterns: Iterable[str]) -> list[int]:
        found: list[int] = []
        for pattern in patterns:
            places = meant(pattern, parts(plan))
            if not places:
                raise UnknownStep(unknown(pattern, plan.index))
            found += places
        return found


def with_needs(graph: Graph, wanted: Iterable[int], done: Callable[[int], bool]) -> frozenset[int]:
    """The wanted steps with everything upstream that is not done and has to be."""
    needed: set[int] = set()
    todo = list(wanted)
    while todo:
        k = todo.pop()
        if k not in needed:
            needed.add(k)
            if not done(k):
                todo += graph.parents[k]
    return frozenset(needed)


def downstream(graph: Graph, start: Iterable[int]) -> set[int]:
    """These steps and everything after them."""
    return _closure(start, graph.parents.turned())


def _closure(start: Iterable[int], edges: Sequence[Sequence[int]]) -> set[int]:
    found: set[int] = set()
    todo = list(start)
    while todo:
        k = todo.pop()
        if k not in found:
            found.add(k)
            todo += edges[k]
    return found
