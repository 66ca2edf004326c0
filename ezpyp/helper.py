"""A forked child that runs steps behind a socket: isolation, its own GPUs and cores, its output in a file of its own.

It is told lots of tasks and answers with outcomes: (outcomes so far, whether the lot is finished). Short
steps are reported together, long ones as they end.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ezpyp import resources, seeding, spawned
from ezpyp.capture import Capture
from ezpyp.nursery import Position
from ezpyp.plan import Plan
from ezpyp.steps import Outcome
from ezpyp.store import Writer, open_store
from ezpyp.worker import Worker

#: A step to run: its index in the plan, which attempt this is, and the steps upstream that failed and were allowed to.
Task = tuple[int, int, tuple[int, ...]]
#: What travels together; an empty one asks the helper to sync its store.
Lot = Sequence[Task]

#: Seconds of finished work that a helper may hold back to report it together with what follows.
REPORT_EVERY = 0.01
#: Files that a step must be able to open, whatever earlier ones left open.
SPARE_FILES = 256
DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a helper is told when it starts. The plan it knows already: it was forked with it."""

    folder: str
    store: str
    #: 16 bytes a step, in plan order.
    fingerprints: bytes
    #: See `Worker.inputs`.
    inputs: Mapping[int, bytes]
    rank: int
    host: str
    #: Variables to set before the first step: its GPUs, its thread limits.
    environment: Mapping[str, str]
    #: The cores of this helper: no step gets more threads.
    cores: int
    #: The file that gets what steps print, relative to the folder; None leaves the streams alone.
    log: str | None


def pack(fingerprints: Sequence[str]) -> bytes:
    """Fingerprints as an Order carries them."""
    return b"".join(bytes.fromhex(each) for each in fingerprints)


class Fingerprints(Sequence[str]):
    """Packed fingerprints, unpacked one at a time."""

    __slots__ = ("_packed",)

    def __init__(self, packed: bytes) -> None:
        self._packed = packed

    def __len__(self) -> int:
        return len(self._packed) // DIGEST_BYTES

    def __getitem__(self, k: Any) -> Any:
        if isinstance(k, slice):
            return [self[i] for i in range(*k.indices(len(self)))]
        return self._packed[k * DIGEST_BYTES : (k + 1) * DIGEST_BYTES].hex()


def serve(own: socket.socket, slot: int, order: Order, *, plan: Plan, position: Position) -> None:
    """The helper's life: one lot after another until the agent says so or is gone."""
    from multiprocessing.connection import Connection

    os.environ.update(order.environment)
    for name in set(os.environ) - set(resources.scrubbed(os.environ)):
        del os.environ[name]
    seeding.watch_imports()
    spawned.stand_in()
    threads = _Threads(order)
    capture = Capture(order.folder, order.log)
    worker = Worker(
        plan=plan,
        fingerprints=Fingerprints(order.fingerprints),
        inputs=order.inputs,
        store=open_store(order.store, order.folder, Writer(order.rank, order.host)),
        folder=order.folder,
        rank=order.rank,
        host=order.host,
        capture=capture,
    )
    threads.give(1)
    home = os.open(".", os.O_PATH)
    connection = Connection(own.detach())
    most = _most_files()
    with contextlib.suppress(EOFError, ConnectionError):
        for lot in iter(connection.recv, None):
            if not lot:
                worker.store.sync()
                continue
            for outcomes, finished in _run(lot, worker, capture, threads, position, slot, home):
                connection.send((outcomes, finished))
                if _lowest_free() > most:
                    raise EOFError  # the agent forks another, which begins where this one ends
    worker.store.sync()


class _Threads:
    """Gives libraries as many threads as the step at hand asked cores for: one, so that sums are added in the same
    order wherever a step runs, unless it says `cpus=`.
    """

    def __init__(self, order: Order) -> None:
        self._variables = resources.thread_variables(order.environment)
        self._cores, self._now = order.cores, 0

    def give(self, cpus: int) -> None:
        """Costs a comparison where nothing changes."""
        wanted = min(cpus, self._cores)
        if wanted != self._now:
            self._now = wanted
            os.environ.update(dict.fromkeys(self._variables, str(wanted)))
            resources.limit_threads(wanted)


def _most_files() -> int:
    """Above this, files that steps left open leave too few for those that follow."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return max(limit - SPARE_FILES, _lowest_free()) if limit != resource.RLIM_INFINITY else sys.maxsize


def _lowest_free() -> int:
    """The number that the next file would get, which grows as files are left open."""
    try:
        found = os.dup(0)
    except OSError:
        return sys.maxsize
    os.close(found)
    return found


def _run(
    lot: Lot, worker: Worker, capture: Capture, threads: _Threads, position: Position, slot: int, home: int
) -> Iterator[tuple[list[Outcome], bool]]:
    done: list[Outcome] = []
    reported = time.monotonic()
    for index, attempt, absent in lot:
        threads.give(worker.plan.steps[index].options.request.cpus)
        position.set(slot, index, capture.begin())
        os.fchdir(home)  # a step may have gone elsewhere
        done.append(worker.run(index, attempt, absent))
        signal.setitimer(signal.ITIMER_REAL, 0)  # or the alarm of one step would end another
        position.set(slot, -1)
        now = time.monotonic()
        if now - reported > REPORT_EVERY:
            worker.store.flush()
            yield done, False
            done, reported = [], now
    worker.store.flush()
    yield done, True
