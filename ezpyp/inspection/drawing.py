"""The graph of a pipeline as text that other programs draw: Mermaid, DOT, JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ezpyp.model.steps import Status

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_COLOURS = {Status.DONE: "#c8e6c9", Status.FAILED: "#ffcdd2", Status.SKIPPED: "#fff3c4", Status.NOT_RUN: "#eeeeee"}
_WORDS = {Status.DONE: "done", Status.FAILED: "failed", Status.SKIPPED: "skipped", Status.NOT_RUN: "not_run"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A step to draw."""

    name: str
    phase: int
    #: Names of its nearest dependencies.
    upstream: tuple[str, ...]
    #: None where nothing is known: then it has no colour.
    status: Status | None = None


def mermaid(nodes: Sequence[Node]) -> str:
    """A flowchart for Mermaid (https://mermaid.js.org/syntax/flowchart.html), as Markdown pages show it."""
    places = {node.name: k for k, node in enumerate(nodes)}
    lines = ["flowchart TD"]
    for k, node in enumerate(nodes):
        label = node.name.replace("#", "#35;").replace('"', "#quot;").replace("\n", " ")
        suffix = f":::{_WORDS[node.status]}" if node.status is not None else ""
        lines.append(f'    s{k}["{label}"]{suffix}')
    lines += [f"    s{places[parent]} --> s{k}" for k, node in enumerate(nodes) for parent in node.upstream]
    seen = dict.fromkeys(node.status for node in nodes if node.status is not None)
    lines += [f"    classDef {_WORDS[status]} fill:{_COLOURS[status]}" for status in seen]
    return "\n".join(lines) + "\n"


def dot(nodes: Sequence[Node]) -> str:
    """A digraph for Graphviz (https://graphviz.org/doc/info/lang.html)."""
    lines = ["digraph pipeline {", "    node [shape=box, style=filled, fillcolor=white];"]
    for node in nodes:
        colour = f' [fillcolor="{_COLOURS[node.status]}"]' if node.status is not None else ""
        lines.append(f"    {_quoted(node.name)}{colour};")
    lines += [f"    {_quoted(parent)} -> {_quoted(node.name)};" for node in nodes for parent in node.upstream]
    return "\n".join([*lines, "}"]) + "\n"


def as_json(nodes: Sequence[Node]) -> str:
    """A list of steps, each with its dependencies."""
    content = [
        {
            "name": node.name,
            "phase": node.phase,
            "upstream": list(node.upstream),
            "status": None if node.status is None else int(node.status),
        }
        for node in nodes
    ]
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"


#: How a graph can be written.
FORMATS: dict[str, Callable[[Sequence[Node]], str]] = {"mermaid": mermaid, "dot": dot, "json": as_json}


def _quoted(name: str) -> str:
    return '"' + name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", " ") + '"'
