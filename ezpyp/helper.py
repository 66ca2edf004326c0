"""A forked child that runs steps behind a socket: isolation, its own GPUs and cores, its output in a file of its own.

It is told lots of tasks and answers with outcomes: (outcomes so far, whether the lot is finished). Short
steps are reported together, long ones as they end.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ezpyp import resources, seeding
from ezpyp.capture import Capture
from ezpyp.nursery import Position
from ezpyp.plan import Plan
from ezpyp.steps import Outcome
from ezpyp.store import open_store
from ezpyp.worker import Worker

#: A step to run: its index in the plan, which attempt this is, and the steps upstream that failed and were allowed to.
Task = tuple[int, int, tuple[int, ...]]
Lot = Sequence[Task]

#: Seconds of finished work that a helper may hold back to report it together with what follows.
REPORT_EVERY = 0.01
DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What a helper is told when it starts. The plan it knows already: it was forked with it."""

    folder: str
    store: str
    #: 16 bytes a step, in plan order.
    fingerprints: bytes
    rank: int
    host: str
    #: Variables to set before the first step: its GPUs, its thread limits.
    environment: Mapping[str, str]
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
    resources.limit_threads(order.cores)
    capture = Capture(order.folder, order.log)
    worker = Worker(
        plan=plan,
        fingerprints=Fingerprints(order.fingerprints),
        store=open_store(order.store, order.folder),
        folder=order.folder,
        rank=order.rank,
        host=order.host,
        capture=capture,
    )
    connection = Connection(own.detach())
    with contextlib.suppress(EOFError, ConnectionError):
        for lot in iter(connection.recv, None):
            for outcomes, finished in _run(lot, worker, capture, position, slot):
                connection.send((outcomes, finished))
    worker.store.sync()


def _run(
    lot: Lot, worker: Worker, capture: Capture, position: Position, slot: int
) -> Iterator[tuple[list[Outcome], bool]]:
    done: list[Outcome] = []
    reported = time.monotonic()
    for index, attempt, absent in lot:
        position.set(slot, index, capture.begin())
        done.append(worker.run(index, attempt, absent))
        position.set(slot, -1)
        now = time.monotonic()
        if now - reported > REPORT_EVERY:
            yield done, False
            done, reported = [], now
    yield done, True
