"""The graph of a pipeline as text that other programs draw: Mermaid, DOT, JSON."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from types import MappingProxyType
from typing import TYPE_CHECKING

from ezpyp.model.outcomes import Status
from ezpyp.tuples import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ezpyp.folder.entries import Entries

#: What most wants to be seen comes first.
_COLOURS = {Status.FAILED: "#ffcdd2", Status.SKIPPED: "#fff3c4", Status.NOT_RUN: "#eeeeee", Status.DONE: "#c8e6c9"}
_WORDS = {Status.DONE: "done", Status.FAILED: "failed", Status.SKIPPED: "skipped", Status.NOT_RUN: "not_run"}


class Node(NamedTuple):
    """Steps to draw: one, or a whole family."""

    name: str
    phase: int
    #: The numbers of the nodes of its nearest dependencies.
    upstream: Sequence[int]
    #: How many steps it stands for, and how many of them have each status; none where nothing is known.
    size: int = 1
    statuses: Mapping[Status, int] = MappingProxyType({})

    @property
    def status(self) -> Status | None:
        """The one that most wants to be seen; None where nothing is known: then it has no colour."""
        return next((status for status in _COLOURS if self.statuses.get(status)), None)

    @property
    def label(self) -> str:
        if self.size == 1:
            return self.name
        counts = ((self.statuses.get(status, 0), _WORDS[status].replace("_", " ")) for status in _COLOURS)
        told = [f"{count:,} {what}" for count, what in counts if count]
        return f"{self.name} ({', '.join(told) or f'{self.size:,} steps'})"


def nodes_of(entries: Entries, statuses: Sequence[int] | None) -> Iterator[Node]:
    """A node for each entry of a schema: a very large family is one.

    Args:
        statuses: of each step; None where nothing is known.
    """
    for start, stop, phase, content in entries.listed():
        counts = Counter(map(Status, statuses[start:stop])) if statuses is not None else {}
        yield Node(content["name"], phase, entries.before(content), stop - start, counts)


def steps_of(entries: Entries, statuses: Sequence[int] | None) -> Iterator[Node]:
    """A node for each step."""
    for k, entry in enumerate(entries):
        upstream = [place for name in entry.upstream if (place := entries.place(name)) is not None]
        yield Node(entry.name, entry.phase, upstream, statuses={Status(statuses[k]): 1} if statuses is not None else {})


def mermaid(nodes: Iterable[Node]) -> Iterator[str]:
    """A flowchart for Mermaid (https://mermaid.js.org/syntax/flowchart.html), as Markdown pages show it."""
    yield "flowchart TD\n"
    seen: dict[Status, None] = {}
    edges: list[str] = []
    for k, node in enumerate(nodes):
        label = node.label.replace("#", "#35;").replace('"', "#quot;").replace("\n", " ")
        if node.status is not None:
            seen[node.status] = None
        yield f'    s{k}["{label}"]{f":::{_WORDS[node.status]}" if node.status is not None else ""}\n'
        edges += [f"    s{parent} --> s{k}\n" for parent in node.upstream]
    yield from edges
    yield from (f"    classDef {_WORDS[status]} fill:{_COLOURS[status]}\n" for status in seen)


def dot(nodes: Iterable[Node]) -> Iterator[str]:
    """A digraph for Graphviz (https://graphviz.org/doc/info/lang.html)."""
    yield "digraph pipeline {\n    node [shape=box, style=filled, fillcolor=white];\n"
    names: list[str] = []
    edges: list[str] = []
    for node in nodes:
        colour = f' [fillcolor="{_COLOURS[node.status]}"]' if node.status is not None else ""
        names.append(_quoted(node.label))
        yield f"    {names[-1]}{colour};\n"
        edges += [f"    {names[parent]} -> {names[-1]};\n" for parent in node.upstream]
    yield from edges
    yield "}\n"


def as_json(nodes: Iterable[Node]) -> Iterator[str]:
    """A list of steps and families, each with its dependencies."""
    names: list[str] = []
    before = "[\n"
    for node in nodes:
        names.append(node.name)
        content = {
            "name": node.name,
            "phase": node.phase,
            "upstream": [names[parent] for parent in node.upstream],
            "status": None if node.status is None else int(node.status),
        }
        if node.size > 1:
            content |= {"count": node.size, "statuses": {int(status): n for status, n in node.statuses.items()}}
        yield before + textwrap.indent(json.dumps(content, ensure_ascii=False, indent=2), "  ")
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


#: How a graph can be written.
FORMATS: dict[str, Callable[[Iterable[Node]], Iterator[str]]] = {"mermaid": mermaid, "dot": dot, "json": as_json}


def _quoted(name: str) -> str:
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") + '"'
