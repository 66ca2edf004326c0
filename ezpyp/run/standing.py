"""Where a pipeline stands before it runs: what rank 0 finds out, and tells the others."""

from __future__ import annotations

from collections.abc import Mapping

from ezpyp.tuples import NamedTuple


class Standing(NamedTuple):
    """Where a pipeline stands before it runs. Small enough to be sent to every rank."""

    #: 16 bytes a step, in plan order.
    fingerprints: bytes
    #: What the folder says of each step: one signed byte.
    statuses: bytes
    #: Done steps that were given Failed values, with the indices of those inputs.
    missing: Mapping[int, tuple[int, ...]]
    #: Digests of the files that steps read, by their indices.
    inputs: Mapping[int, bytes] = {}
    #: Files that were found torn or foreign, with what is wrong: their steps run again.
    problems: tuple[str, ...] = ()
    #: Code that could not be followed by its source, and values without identity: said once.
    remarks: tuple[str, ...] = ()
    #: Versions of the packages that the code uses.
    packages: Mapping[str, str] = {}
    #: The runs that made what is there: records refer to their logs.
    logged: frozenset[str] = frozenset()
    #: The schema was written anew.
    rewritten: bool = False
    #: Steps that failed in earlier starts of the same job, which this one is not to try again.
    failed: tuple[int, ...] = ()
    #: See `Store.begin`.
    turn: int = 0
