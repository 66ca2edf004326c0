"""Which steps a pattern means, and which part of a plan a run is asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from ezpyp.errors import UnknownStep
from ezpyp.model.naming import compact
from ezpyp.model.plan import Graph, Plan

T = TypeVar("T")


def meant(pattern: str, among: Sequence[T], *, name: Callable[[T], str], function: Callable[[T], str]) -> list[T]:
    """The members that a pattern means, in their order; empty if none.

    A name means itself and, without its number, all of its family: `train` is `train[0]`, `train[1]`, …; where there
    is no such name, the steps of the function called so. `*` and `?` stand for any characters; brackets stand for
    themselves.
    """
    if "*" in pattern or "?" in pattern:
        glob = re.compile("".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern), re.DOTALL)
        found = [each for each in among if glob.fullmatch(name(each))]
    else:
        found = [each for each in among if name(each) == pattern or name(each).startswith(f"{pattern}[")]
    return found or [each for each in among if function(each) == pattern]


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
            steps = meant(pattern, plan.steps, name=lambda s: s.name, function=lambda s: s.function_name)
            if not steps:
                raise UnknownStep(unknown(pattern, plan.index))
            found += [plan.index[step.name] for step in steps]
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
