"""Shares of a plan: which steps each job of an array runs, and which are left to the run that takes the shares in.

A share is whole: what a step of it waits for is done, or in it too. Steps that hang together stay together, unless they
hold together more than a fair part. Then the step that joins them is left, with all that comes after it.
"""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from heapq import heapify, heapreplace

from ezpyp.errors import InitializationError
from ezpyp.model.plan import Graph
from ezpyp.tuples import NamedTuple

#: Who runs a step that no share runs, and one that need not run.
LEFT, NOBODY = 0, -1
#: Slurm knows no larger arrays.
MOST = 4_000_000
#: The golden ratio as a fraction of 2 to the 64th: its multiples are evenly spread over all that there are.
_GOLDEN, _WHOLE = 0x9E3779B97F4A7C15, 1 << 64
#: After so many steps their order of dealing comes again.
_PERIOD = 1 << 16


class Share(NamedTuple):
    """One of the parts into which a plan is divided."""

    number: int
    total: int

    def __str__(self) -> str:
        return f"{self.number}/{self.total}"


def parse(text: str) -> Share:
    """`3/5`: the third of five.

    Raises:
        InitializationError: it is none; the text says what to write.
    """
    found = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", text)
    if found is None:
        raise InitializationError(f"share {text!r}: say which of how many, such as 3/5. Nothing was run.")
    share = Share(int(found[1]), int(found[2]))
    if not 1 <= share.total <= MOST:
        raise InitializationError(f"share {share}: there can be 1 to {MOST:,} shares. Nothing was run.")
    if not 1 <= share.number <= share.total:
        raise InitializationError(
            f"share {share}: they are numbered from 1 to {share.total} (#SBATCH --array=1-{share.total}). "
            "Nothing was run."
        )
    return share


class Division(NamedTuple):
    """Who runs each step."""

    #: For each step the number of its share, from 1; or LEFT; or NOBODY.
    owners: Sequence[int]
    #: How many steps hang together at most, and the one of them that most others wait for.
    largest: int
    hub: int


def divide(graph: Graph, total: int, done: Sequence[int], apart: Iterable[int] = ()) -> Division:
    """Divide what is not done into so many shares: the same for the same plan, on every machine and day.

    No share has more than a fair part of what is divided and the largest piece that hangs together. Steps that follow
    each other in the plan go to different shares, in an order that changes, so that no axis of a product does.

    Args:
        done: for each step not 0 where it need not run; nothing waits for it.
        apart: steps that no share is to run, nor what comes after them.
    """
    count = len(graph.phases)
    fair = -(-(count - sum(map(bool, done))) // total)
    roots, sizes = _pieces(graph, done, apart, fair + fair // 4)
    owners = array("i", [NOBODY]) * count
    large = sorted(sizes.items(), key=lambda piece: (-piece[1], piece[0]))
    dealt, loads = _deal_large(large, total)
    alone = array("i")
    for k, root in enumerate(roots):
        if root == k and k not in sizes:
            alone.append(k)
        elif root >= 0:
            owners[k] = dealt[root]
        elif root == _JOINT:
            owners[k] = LEFT
    for k, owner in zip(alone, _deal_alone(len(alone), total, loads), strict=True):
        owners[k] = owner
    hub = _hub(graph, roots, large[0][0]) if large else alone[0] if alone else -1
    return Division(owners=owners, largest=large[0][1] if large else len(alone[:1]), hub=hub)


#: In place of a root: no step of any piece, and one that is left with what comes after it.
_NO_ROOT, _JOINT = -1, -2


def _pieces(graph: Graph, done: Sequence[int], apart: Iterable[int], most: int) -> tuple[array[int], dict[int, int]]:
    """For each step the first of the piece that it is in; and the sizes of those that are more than a step."""
    first, flat = graph.parents.first, graph.parents.flat
    roots = array("i", range(len(graph.phases)))
    for k in apart:
        roots[k] = _JOINT
    sizes: dict[int, int] = {}

    def root_of(k: int) -> int:
        while roots[k] != k:
            roots[k] = k = roots[roots[k]]  # halves the way for who comes next
        return k

    def joined(k: int) -> int:
        """The root of the piece of a step with what it waits for; _JOINT where it is too large."""
        found: set[int] = set()
        together = 1
        for p in flat[first[k] : first[k + 1]]:
            if done[p]:
                continue
            if roots[p] == _JOINT:
                return _JOINT
            root = root_of(p)
            if root not in found:
                found.add(root)
                together += sizes.get(root, 1)
                if len(found) > 1 and together > most:
                    return _JOINT
        if not found:
            return k
        least = min(found)
        for root in found:
            roots[root] = least
            sizes.pop(root, None)
        sizes[least] = together
        return least

    for k in range(len(roots)) if flat else ():
        if first[k] != first[k + 1] and not done[k] and roots[k] != _JOINT:
            roots[k] = joined(k)
    for k, is_done in enumerate(done):
        if is_done:
            roots[k] = _NO_ROOT
        elif flat and roots[k] >= 0:
            roots[k] = root_of(k)
    return roots, sizes


def _deal_large(pieces: Sequence[tuple[int, int]], total: int) -> tuple[dict[int, int], list[int]]:
    """Give each piece, the largest first, to a share that has least; and what each has then."""
    heap = [(0, k * _GOLDEN % _WHOLE, k) for k in range(total)] if pieces else []
    heapify(heap)
    dealt, loads = {}, [0] * total
    for n, (root, size) in enumerate(pieces, total):
        load, _, share = heap[0]
        dealt[root], loads[share] = share + 1, load + size
        heapreplace(heap, (load + size, n * _GOLDEN % _WHOLE, share))
    return dealt, loads


def _deal_alone(count: int, total: int, loads: Sequence[int]) -> array[int]:
    """Shares for so many steps in order: first to those that have least, then to each one a round."""
    found = array("i")
    heap = [(load, k) for k, load in enumerate(loads)]
    heapify(heap)
    highest = max(loads)
    while len(found) < count and heap[0][0] < highest:
        load, share = heap[0]
        found.append(share + 1)
        heapreplace(heap, (load + 1, share))
    wheel = array("i", range(1, total + 1)) * 2
    rounds = array("i")
    for n in range(max(1, min(count, _PERIOD) // total)):
        turned = n * _GOLDEN % _WHOLE * total >> 64
        rounds.extend(wheel[turned : turned + total])
    missing = count - len(found)
    found.extend((rounds * (missing // len(rounds) + 1))[:missing])
    return found


def _hub(graph: Graph, roots: Sequence[int], piece: int) -> int:
    """The step of a piece that most others wait for."""
    first, flat = graph.parents.first, graph.parents.flat
    waiting = Counter(p for k, root in enumerate(roots) if root == piece for p in flat[first[k] : first[k + 1]])
    for p in [*waiting]:
        if roots[p] != piece:
            del waiting[p]
    return min(waiting, key=lambda k: (-waiting[k], k))
