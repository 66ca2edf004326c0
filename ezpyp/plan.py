"""Steps to phases; the schema file; how two plans differ; the plan's digest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ezpyp.policy import Retry


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """The plan as the ledger sees it: integers only. Index order is phase order and then call order: the priority."""

    #: Indices of the nearest dependencies of each step.
    parents: tuple[tuple[int, ...], ...]
    #: The phase of each step; never decreasing along the index.
    phases: tuple[int, ...]
    #: The failure group of each step, -1 for none, and how many members of each group may fail.
    groups: tuple[int, ...]
    allowed: tuple[int, ...] = ()
    #: Steps that are tried again.
    retries: Mapping[int, Retry] = field(default_factory=dict)
