"""What every contestant computes, and what must come out. Standard library only: importing it costs nobody anything."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from random import Random
from typing import Any

#: Layers: how many, how wide; every value is kept below this.
LAYERS, WIDTH, BELOW = 10, 100, 1_000_003
#: One straggler, first among short ones (seconds).
STRAGGLER, SHORT, SHORTS = 1.0, 0.010, 64
#: Chains: how many, how long.
CHAINS, LINKS = 20, 5
#: The large array: 100 MB of float64.
LARGE = 12_500_000
READERS = 4


def noop(k: int) -> int:
    return k


def combine(a: int, b: int) -> int:
    return (a + b) % BELOW


def above(place: int) -> tuple[int, int]:
    """The two places of the layer before that a place of a layer is made of."""
    return place, (7 * place + 1) % WIDTH


def layers() -> int:
    """What the last layer adds up to."""
    values = list(range(WIDTH))
    for _ in range(1, LAYERS):
        values = [combine(*(values[p] for p in above(place))) for place in range(WIDTH)]
    return sum(values)


def stragglers() -> list[float]:
    return [STRAGGLER, *[SHORT] * SHORTS]


def chain_seconds() -> list[list[float]]:
    """The durations of the links of each chain."""
    chances = Random(5)
    return [[chances.uniform(0.02, 0.08) for _ in range(LINKS)] for _ in range(CHAINS)]


def rest(seconds: float, *before: float) -> float:
    """A step that takes so long, whoever else uses the core: it adds up what its chain took."""
    time.sleep(seconds)
    return seconds + sum(before)


def rounded(values: Iterable[float]) -> float:
    return round(sum(values), 9)


def expected(workload: str, n: int) -> Any:
    """What a contestant must answer."""
    if workload == "layers":
        return layers()
    if workload == "straggler":
        return rounded(stragglers())
    if workload == "chains":
        return rounded(second for chain in chain_seconds() for second in chain)
    if workload == "array":
        return [LARGE * (LARGE - 1) / 2 + reader for reader in range(READERS)]
    return sum(range(n))


def greedy(chains: Sequence[Sequence[float]], slots: int) -> float:
    """How long a schedule without any cost takes: what is ready starts as soon as it can, in order of depth."""
    ready = [(0, k) for k in range(len(chains))]
    running: list[tuple[float, int, int]] = []
    clock = 0.0
    while ready or running:
        ready.sort()
        while ready and len(running) < slots:
            link, k = ready.pop(0)
            running.append((clock + chains[k][link], link, k))
        running.sort()
        clock, link, k = running.pop(0)
        if link + 1 < len(chains[k]):
            ready.append((link + 1, k))
    return clock


def tell(seconds: float, answer: Any, **facts: float) -> None:
    """Report to the bench, in one piece: ranks share a pipe."""
    line = json.dumps({"seconds": seconds, "answer": answer, **facts})
    os.write(1, f"BENCH {line}\n".encode())
