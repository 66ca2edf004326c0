"""dask.distributed with two workers of one thread: WORKLOAD N FOLDER. The clock starts when both are there."""

from __future__ import annotations

import logging
import sys
import time
from typing import Any

import dask
from distributed import Client, LocalCluster

from tests.bench.scripts import work


def noop(client: Any) -> object:
    return sum(client.gather(client.map(work.noop, range(N))))


def layers(client: Any) -> object:
    function = dask.delayed(work.combine, pure=False)
    row = [dask.delayed(work.noop, pure=False)(k) for k in range(work.WIDTH)]
    for _ in range(1, work.LAYERS):
        row = [function(*(row[p] for p in work.above(k))) for k in range(work.WIDTH)]
    return sum(client.gather(client.compute(row)))


def straggler(client: Any) -> object:
    return work.rounded(client.gather(client.map(work.rest, work.stragglers(), pure=False)))


def chains(client: Any) -> object:
    ends = []
    for chain in work.chain_seconds():
        end = None
        for seconds in chain:
            end = client.submit(work.rest, seconds, *([] if end is None else [end]), pure=False)
        ends.append(end)
    return work.rounded(client.gather(ends))


def array(client: Any) -> object:
    import numpy as np

    made = client.submit(np.arange, work.LARGE, dtype=np.float64)
    return client.gather([client.submit(read, made, k) for k in range(work.READERS)])


def read(values: Any, reader: int) -> float:
    return float(values.sum()) + reader


def calls() -> None:
    """Without workers: a graph of N calls, with the names that dask gives by content."""
    began = time.perf_counter()
    function = dask.delayed(work.noop, pure=True)
    made = [function(k) for k in range(N)]
    graph = dask.delayed(list)(made).__dask_graph__()
    seconds = time.perf_counter() - began
    assert len(graph) >= N
    work.tell(seconds, sum(range(N)))


if __name__ == "__main__":
    WORKLOAD, N, FOLDER = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    if WORKLOAD == "calls":
        calls()
        sys.exit()
    cluster = LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, silence_logs=logging.ERROR, local_directory=FOLDER
    )
    with cluster, Client(cluster) as connected:
        connected.wait_for_workers(2)
        connected.gather(connected.map(work.noop, range(-4, 0)))
        start = time.perf_counter()
        answer = globals()[WORKLOAD](connected)
        work.tell(time.perf_counter() - start, answer)
