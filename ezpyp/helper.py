"""A forked child that runs steps behind a socket: isolation, its own GPUs and cores, its output in a file of its own.

It is told lots of tasks and answers with outcomes: (outcomes so far, whether the lot is finished). Short
steps are reported together, long ones as they end.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ezpyp import resources, seeding
from ezpyp.nursery import Position
from ezpyp.plan import Plan
from ezpyp.steps import Outcome, Status
from ezpyp.store import open_store
from ezpyp.worker import Worker

#: A step to run: its index in the plan, which attempt this is, and the steps upstream that failed and were allowed to.
Task = tuple[int, int, tuple[int, ...]]
Lot = Sequence[Task]

#: Seconds of finished work that a helper may hold back to report it together with what follows.
REPORT_EVERY = 0.01
TAIL_LINES = 20
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
        done.append(capture.end(worker.run(index, attempt, absent)))
        position.set(slot, -1)
        now = time.monotonic()
        if now - reported > REPORT_EVERY:
            yield done, False
            done, reported = [], now
    yield done, True


class Capture:
    """Sends file descriptors 1 and 2 to a log, so that C code and child programs are caught too."""

    def __init__(self, folder: str, log: str | None) -> None:
        import ctypes

        self._log, self._start = log, 0
        self._flush_c = ctypes.CDLL(None).fflush
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.close(null)
        if log is None:
            return
        path = os.path.join(folder, log)
        target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(target, 1)
        os.dup2(target, 2)
        os.close(target)
        self._path = path
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]

    def begin(self) -> int:
        """A step starts: its output begins at this offset."""
        if self._log is not None:
            self._start = os.lseek(1, 0, os.SEEK_END)
        return self._start

    def end(self, outcome: Outcome) -> Outcome:
        """A step ended: everything buffered is its output. Failures get their last lines."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        self._flush_c(None)
        if self._log is None:
            return outcome
        end = os.lseek(1, 0, os.SEEK_END)
        if end == self._start:
            return outcome
        tail = tail_of(self._path, self._start, end) if outcome.status is Status.FAILED else ""
        return replace(outcome, log=(self._log, self._start, end), tail=tail)


def tail_of(path: str, start: int, end: int, lines: int = TAIL_LINES) -> str:
    """The last lines between two offsets of a log, at most 8 kB of them."""
    try:
        with open(path, "rb") as file:
            file.seek(max(start, end - 8192))
            text = file.read(max(0, end - max(start, end - 8192))).decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
