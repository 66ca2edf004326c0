"""parsl's HighThroughputExecutor with two workers on this machine: WORKLOAD N FOLDER. The clock starts when they work.

`cached` memoizes and checkpoints every task as it ends; `resume` loads those checkpoints.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

import parsl
from parsl.config import Config
from parsl.dataflow.memoization import BasicMemoizer
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider
from parsl.utils import get_all_checkpoints

from tests.bench.scripts import work


def noop() -> object:
    app = parsl.python_app(work.noop)
    return sum(future.result() for future in [app(k) for k in range(N)])


def cached() -> object:
    app = parsl.python_app(work.noop, cache=True)
    return sum(future.result() for future in [app(k) for k in range(N)])


resume = cached


def layers() -> object:
    first, combine = parsl.python_app(work.noop), parsl.python_app(work.combine)
    row = [first(k) for k in range(work.WIDTH)]
    for _ in range(1, work.LAYERS):
        row = [combine(*(row[p] for p in work.above(k))) for k in range(work.WIDTH)]
    return sum(future.result() for future in row)


def straggler() -> object:
    rest = parsl.python_app(work.rest)
    return work.rounded(future.result() for future in [rest(seconds) for seconds in work.stragglers()])


def chains() -> object:
    rest, ends = parsl.python_app(work.rest), []
    for chain in work.chain_seconds():
        end: Any = None
        for seconds in chain:
            end = rest(seconds, *([] if end is None else [end]))
        ends.append(end)
    return work.rounded(future.result() for future in ends)


def config() -> Config:
    given: dict[str, Any] = {}
    if WORKLOAD in ("cached", "resume"):
        files = get_all_checkpoints(f"{FOLDER}/runinfo") if WORKLOAD == "resume" else []
        given["memoizer"] = BasicMemoizer(checkpoint_mode="task_exit", checkpoint_files=files)
    executor = HighThroughputExecutor(
        label="two",
        address="127.0.0.1",
        max_workers_per_node=2,
        cores_per_worker=1,
        encrypted=False,
        provider=LocalProvider(init_blocks=1, max_blocks=1),
    )
    return Config(executors=[executor], run_dir=f"{FOLDER}/runinfo", usage_tracking=0, **given)


if __name__ == "__main__":
    WORKLOAD, N, FOLDER = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    with parsl.load(config()):
        warm = parsl.python_app(work.noop)
        assert [future.result() for future in [warm(k) for k in range(4)]] == [0, 1, 2, 3]
        began = time.perf_counter()
        answer = globals()[WORKLOAD]()
        work.tell(time.perf_counter() - began, answer)
    sys.stdout.flush()
    os._exit(0)  # parsl's threads may take seconds to end
