"""Functions, classes and values joined by the names under which one uses the other, and the identity of
the whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TypedDict

from ezpyp.identity.atoms import combine, digest, group, octets, text
from ezpyp.identity.modules import top
from ezpyp.tuples import NamedTuple


class Part(TypedDict):
    """One thing that a function leads to, as JSON can hold it."""

    #: function, class, value, default, closure, module, library or unknown
    kind: str
    #: Of the thing alone, without what it leads to.
    digest: str
    #: Tidied source, or a short text for people.
    shown: str
    #: Of a default or closure value: the function it belongs to, and its name there.
    owner: str
    name: str
    #: The parts it leads to, by the name it uses for them.
    uses: dict[str, str]


class Code(NamedTuple):
    """The identity of a function, and what it is made of."""

    #: 32 hexadecimal digits.
    digest: str
    #: Everything it leads to, itself first, by qualified name.
    parts: Mapping[str, Part]
    #: Third-party packages by version: recorded, not in the digest.
    packages: Mapping[str, str]
    #: Globals, attributes and closure values without lasting identity, by name and type.
    not_followed: tuple[str, ...]
    #: Which functions count by their bytecode, which differs from Python to Python, and why; "" for none.
    fallback: str


class Node:
    """One thing in the graph. What it leads to is filled in after it was entered, so that cycles end."""

    def __init__(
        self,
        kind: str,
        label: str,
        own: bytes = b"",
        *,
        shown: str = "",
        owner: str = "",
        name: str = "",
        fallback: str = "",
        edges: Iterable[tuple[str, Node]] = (),
        subject: object = None,
    ) -> None:
        """
        Args:
            fallback: why its bytecode had to do.
            subject: what it stands for, kept alive because nodes are found by its address.
        """
        self.kind, self.label, self.own, self.shown = kind, label, own, shown
        self.owner, self.name, self.fallback, self.subject = owner, name, fallback, subject
        self.edges = [*edges]

    def lead(self, name: str, to: Node | None) -> None:
        """Note that this uses another thing under a name."""
        if to is not None:
            self.edges.append((name, to))

    def ordered(self) -> list[tuple[str, Node]]:
        return sorted(self.edges, key=lambda edge: (edge[0], edge[1].own, edge[1].label))


def summed(root: Node, version: Callable[[str], str | None]) -> Code:
    """The identity of everything that a node leads to, as seen from it.

    Labels do not count: things are told apart by how they are reached.
    """
    nodes = _reached(root)
    places = {id(node): k for k, node in enumerate(nodes)}
    names = _names(nodes)
    packages = {top(node.label): "" for node in nodes if node.kind in ("library", "module")}
    unknown = {f"{node.label} ({node.shown})" for node in nodes if node.kind == "unknown"}
    doubts = dict.fromkeys(f"{node.label}: {node.fallback}" for node in nodes if node.fallback)
    return Code(
        digest=combine(*(_piece(node, places) for node in nodes)),
        parts={names[id(node)]: _part(node, names) for node in nodes},
        packages={name: found for name in sorted(packages) if (found := version(name))},
        not_followed=tuple(sorted(unknown)),
        fallback="; ".join(doubts),
    )


def _reached(root: Node) -> list[Node]:
    """Every node once, nearest first; the same order in every process."""
    found, todo = {id(root): root}, deque([root])
    while todo:
        for _, node in todo.popleft().ordered():
            if id(node) not in found:
                found[id(node)] = node
                todo.append(node)
    return list(found.values())


def _piece(node: Node, places: dict[int, int]) -> bytes:
    edges = (text(name) + b"%d;" % places[id(to)] for name, to in node.ordered())
    return group(b"N", [octets(b"y", node.own), *edges])


def _names(nodes: list[Node]) -> dict[int, str]:
    """A name for each node; `#2` and so on where several have the same."""
    names: dict[int, str] = {}
    seen: dict[str, int] = {}
    for node in nodes:
        count = seen[node.label] = seen.get(node.label, 0) + 1
        names[id(node)] = node.label if count == 1 else f"{node.label}#{count}"
    return names


def _part(node: Node, names: dict[int, str]) -> Part:
    return Part(
        kind=node.kind,
        digest=digest(node.own).hex(),
        shown=node.shown,
        owner=node.owner,
        name=node.name,
        uses={name: names[id(to)] for name, to in node.ordered() if name},
    )
