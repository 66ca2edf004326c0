"""joblib with two processes (loky): WORKLOAD N FOLDER. The clock starts when the pool has run its first tasks.

`noop` and the others are batched by joblib itself; `cached` keeps each result with Memory.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from joblib import Memory, Parallel, delayed

from tests.bench.scripts import work


def noop(parallel: Any) -> object:
    return sum(parallel(delayed(work.noop)(k) for k in range(N)))


def cached(parallel: Any) -> object:
    function = Memory(FOLDER, verbose=0).cache(work.noop)
    return sum(parallel(delayed(function)(k) for k in range(N)))


resume = cached


def layers(parallel: Any) -> object:
    values = list(range(work.WIDTH))
    for _ in range(1, work.LAYERS):
        values = parallel(delayed(work.combine)(*(values[p] for p in work.above(k))) for k in range(work.WIDTH))
    return sum(values)


def straggler(parallel: Any) -> object:
    return work.rounded(parallel(delayed(work.rest)(seconds) for seconds in work.stragglers()))


def array(parallel: Any) -> object:
    """joblib writes a large argument to a file once, and its workers map it."""
    import numpy as np

    values = np.arange(work.LARGE, dtype=np.float64)
    return parallel(delayed(read)(values, k) for k in range(work.READERS))


def read(values: Any, reader: int) -> float:
    return float(values.sum()) + reader


if __name__ == "__main__":
    WORKLOAD, N, FOLDER = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    with Parallel(n_jobs=2) as pool:
        pool(delayed(work.noop)(k) for k in range(4))
        began = time.perf_counter()
        answer = globals()[WORKLOAD](pool)
        work.tell(time.perf_counter() - began, answer)
