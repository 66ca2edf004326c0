"""The workloads as an ezpyp script: WORKLOAD N CACHE.

The clock runs from before execute() until it returns, in the defining workloads from before the first call until
initialize_schema() returns, in `resume` from before initialize_schema() until execute() returns.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from typing import Any

from ezpyp import Pipeline, as_command_step, as_numpy_step, as_pickle_step
from tests.bench.scripts import work


def peak() -> int:
    """Bytes of this process at its largest."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def execute(before: Any = None) -> tuple[float, float]:
    """Seconds that execute() takes, and processor seconds of this process meanwhile."""
    began, busy = before or time.perf_counter(), time.process_time()
    summary = pipeline.execute()
    assert summary.ok, summary
    return time.perf_counter() - began, time.process_time() - busy


def noop() -> None:
    steps = as_pickle_step(pipeline)(work.noop).map(range(N))
    pipeline.initialize_schema()
    seconds, _ = execute()
    tell(seconds, lambda: sum(step.result() for step in steps))


def programs() -> None:
    @as_command_step(pipeline)
    def true(k: int) -> list[Any]:
        return ["/bin/true", k]

    steps = true.map(range(N))
    pipeline.initialize_schema()
    seconds, _ = execute()
    tell(seconds, lambda: sum(k for k, step in enumerate(steps) if step.result().exit_code == 0))


def processes() -> None:
    steps = as_pickle_step(pipeline, gpus=1)(work.noop).map(range(N))
    pipeline.initialize_schema()
    seconds, _ = execute()
    tell(seconds, lambda: sum(step.result() for step in steps))


def million() -> None:
    """As `noop`; of the results every thousandth is read, and the number of those that are done."""
    steps = as_pickle_step(pipeline)(work.noop).map(range(N))
    pipeline.initialize_schema()
    before = peak()
    began = time.perf_counter()
    summary = pipeline.execute()
    seconds = time.perf_counter() - began
    tell(seconds, lambda: _sampled(steps, summary.done), defined=before)


def _sampled(steps: Any, done: int) -> int:
    assert done == N
    assert all(steps[k].result() == k for k in range(0, N, 1000))
    return sum(range(N))


def resume() -> None:
    """Run twice by the bench: the second time everything is there."""
    as_pickle_step(pipeline)(work.noop).map(range(N))
    began = time.perf_counter()
    pipeline.initialize_schema()
    summary = pipeline.execute()
    seconds = time.perf_counter() - began
    tell(seconds, lambda: sum(range(N)) if summary.done == N else summary.done)


def layers() -> None:
    first = as_pickle_step(pipeline)(work.noop)
    combine = as_pickle_step(pipeline)(work.combine)
    row: list[Any] = [first(k) for k in range(work.WIDTH)]
    for layer in range(1, work.LAYERS):
        row = [
            combine(*(row[p] for p in work.above(k)), name=f"layer{layer}_{k}")  # equal pairs are different steps
            for k in range(work.WIDTH)
        ]
    pipeline.initialize_schema()
    seconds, _ = execute()
    tell(seconds, lambda: sum(step.result() for step in row))


def straggler() -> None:
    rest = as_pickle_step(pipeline)(work.rest)
    steps = [rest(seconds, name=f"rest{k}") for k, seconds in enumerate(work.stragglers())]
    pipeline.initialize_schema()
    seconds, _ = execute()
    tell(seconds, lambda: work.rounded(step.result() for step in steps))


def chains() -> None:
    rest = as_pickle_step(pipeline)(work.rest)
    ends = []
    for k, chain in enumerate(work.chain_seconds()):
        end: Any = None
        for link, seconds in enumerate(chain):
            end = rest(seconds, *([] if end is None else [end]), name=f"chain{k}_{link}")
        ends.append(end)
    pipeline.initialize_schema()
    seconds, _ = execute()
    tell(seconds, lambda: work.rounded(step.result() for step in ends))


def calls() -> None:
    """Single calls: defined, planned, fingerprinted, and the schema written."""
    began = time.perf_counter()
    noop = as_pickle_step(pipeline)(work.noop)
    for k in range(N):
        noop(k)
    pipeline.initialize_schema()
    tell(time.perf_counter() - began, lambda: sum(range(N)) if len(pipeline.steps) == N else len(pipeline.steps))


def digest() -> None:
    """Identity of a large array: what an argument of 1 GB costs once."""
    import numpy as np

    from ezpyp.identity import fingerprint

    array = np.ones(N // 8)
    began = time.perf_counter()
    found = fingerprint.digest_value(array)
    tell(time.perf_counter() - began, lambda: 0 if found == fingerprint.digest_value(np.ones(N // 8)) else 1)


def family() -> None:
    """A family over a range: the same in one call."""
    before, began = peak(), time.perf_counter()
    steps = as_pickle_step(pipeline)(work.noop).map(range(N))
    pipeline.initialize_schema()
    seconds, memory = time.perf_counter() - began, peak() - before
    tell(seconds, lambda: sum(range(N)) if len(steps) == N else len(steps), memory=memory)


def array() -> None:
    import numpy as np

    @as_numpy_step(pipeline)
    def made() -> Any:
        return np.arange(work.LARGE, dtype=np.float64)

    @as_pickle_step(pipeline)
    def read(values: Any, reader: int) -> float:
        return float(values.sum()) + reader

    values = made()
    readers = [read(values, k) for k in range(work.READERS)]
    pipeline.initialize_schema()
    seconds, _ = execute()
    tell(seconds, lambda: [step.result() for step in readers])


def one() -> None:
    step = as_pickle_step(pipeline)(work.noop)(0)
    seconds, _ = execute()
    tell(seconds, step.result)


def idle() -> None:
    """One step of seconds on each rank: what rank 0's agent takes meanwhile, as a share of a core."""
    rest = as_pickle_step(pipeline)(work.rest)
    for k in range(2):
        rest(float(N), name=f"rest{k}")
    pipeline.initialize_schema()
    seconds, busy = execute()
    tell(busy / seconds, lambda: sum(range(N)))


def tell(seconds: float, answer: Any, **facts: float) -> None:
    if pipeline.is_root:
        work.tell(seconds, answer(), files=files(), **facts)


def files() -> int:
    """How many files the run left in its folder."""
    return sum(len(names) for _, _, names in os.walk(CACHE))


WORKLOAD, N, CACHE, STORE = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
pipeline = Pipeline(CACHE, "bench", store=STORE)
globals()[WORKLOAD]()
