"""What the identity of steps costs, beside the floors that it stands on: medians of five, in one run.

    python tests/bench/identity.py

A step with small arguments: making it (its arguments taken by value and digested, the call checked against the
signature) beside pickling the same arguments; planning and fingerprinting it. Large arrays: digesting them beside
adding them up, which reads the same memory once.
"""

from __future__ import annotations

import pickle
import statistics
import tempfile
import time
from collections.abc import Callable

import numpy as np

from ezpyp import Pipeline, as_pickle_step, fingerprint, plan
from ezpyp.arguments import freeze
from ezpyp.naming import stems

STEPS = 20_000
ARRAY_BYTES = 1 << 30


def simulate(x: float, seed: int, label: str = "a") -> float:
    return x * seed + len(label)


def seconds(work: Callable[[], object]) -> float:
    """The median of five."""
    found = []
    for _ in range(5):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return statistics.median(found)


def row(what: str, value: float, unit: str, floor: float, of: str) -> None:
    print(f"{what:<44}{value:10.2f} {unit:<8}{value / floor:8.2f} x {of} ({floor:.2f})")


def pickled() -> None:
    for k in range(STEPS):
        pickle.dumps(((0.1, k), {"label": "x"}), 5)


def frozen() -> None:
    for k in range(STEPS):
        freeze((0.1, k), {"label": "x"}, of="simulate", names=("x", "seed", "label"))


def made() -> Pipeline:
    with tempfile.TemporaryDirectory() as folder:
        pipeline = Pipeline(folder, "bench")
        step = as_pickle_step(pipeline)(simulate)
        for k in range(STEPS):
            step(0.1, k, label="x")
        return pipeline


def main() -> None:
    floor = seconds(pickled) / STEPS * 1e6
    row("arguments by value and digested", seconds(frozen) / STEPS * 1e6, "µs/step", floor, "pickle.dumps of them")
    row("a step made by a call", seconds(made) / STEPS * 1e6, "µs/step", floor, "pickle.dumps of them")
    steps = made().steps
    organised = plan.organise(steps, pipeline_id="bench", stems=stems)
    work = seconds(lambda: plan.organise(steps, pipeline_id="bench", stems=stems))
    row("organise into phases", work / STEPS * 1e6, "µs/step", floor, "pickle.dumps of them")
    work = seconds(lambda: plan.identify(organised))
    row("fingerprint (one function, followed once)", work / STEPS * 1e6, "µs/step", floor, "pickle.dumps of them")
    array = np.ones(ARRAY_BYTES // 8)
    speed = ARRAY_BYTES / 1e9 / seconds(array.sum)
    digested = ARRAY_BYTES / 1e9 / seconds(lambda: fingerprint.digest_value(array))
    row("digest of an array of 1 GiB", digested, "GB/s", speed, "its sum, GB/s")


if __name__ == "__main__":
    main()
