"""concurrent.futures.ProcessPoolExecutor, and mpi4py.futures, which has the same face: POOL WORKLOAD N FOLDER.

POOL is "processes" or "mpi"; under `mpirun -n 2 python -m mpi4py.futures` one rank manages and the other works. The
clock starts when the pool has run its first task. `noop` sends tasks one by one; `chunks` sends 50 together, and each
task leaves a file, written under another name and renamed.
"""

from __future__ import annotations

import os
import pickle
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Executor, ProcessPoolExecutor, wait
from functools import partial

from tests.bench.scripts import work


def kept(folder: str, k: int) -> int:
    """A no-op whose result is on disk when it returns."""
    value = work.noop(k)
    temporary = f"{folder}/.{k}"
    with open(temporary, "wb") as file:
        pickle.dump(value, file, 5)
    os.replace(temporary, f"{folder}/{k}")
    return value


def noop(pool: Executor) -> object:
    return sum(pool.map(work.noop, range(N)))


def chunks(pool: Executor) -> object:
    return sum(pool.map(partial(kept, FOLDER), range(N), chunksize=50))


def layers(pool: Executor) -> object:
    values = list(pool.map(work.noop, range(work.WIDTH)))
    for _ in range(1, work.LAYERS):
        pairs = [work.above(k) for k in range(work.WIDTH)]
        values = list(pool.map(work.combine, [values[a] for a, _ in pairs], [values[b] for _, b in pairs]))
    return sum(values)


def straggler(pool: Executor) -> object:
    return work.rounded(pool.map(work.rest, work.stragglers()))


def chains(pool: Executor) -> object:
    """Each link is submitted when the one before it is done, as its author would have to."""
    left = {k: list(chain) for k, chain in enumerate(work.chain_seconds())}
    running = {pool.submit(work.rest, left[k].pop(0)): k for k in left}
    ends = []
    while running:
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            k = running.pop(future)
            if left[k]:
                running[pool.submit(work.rest, left[k].pop(0), future.result())] = k
            else:
                ends.append(future.result())
    return work.rounded(ends)


def pool_of(kind: str) -> Executor:
    if kind == "processes":
        return ProcessPoolExecutor(2)
    from mpi4py.futures import MPIPoolExecutor

    pool: Executor = MPIPoolExecutor()
    return pool


if __name__ == "__main__":
    POOL, WORKLOAD, N, FOLDER = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    with pool_of(POOL) as executor:
        list(executor.map(work.noop, range(4)))
        began = time.perf_counter()
        answer = globals()[WORKLOAD](executor)
        work.tell(time.perf_counter() - began, answer)
