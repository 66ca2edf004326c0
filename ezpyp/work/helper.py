"""A forked child that runs steps behind a socket: isolation, its own GPUs and cores, its output in a file of its own.

It is told lots, an empty one to sync its store, and answers with reports: (report, whether the lot is finished). Told
None, it ends: it syncs its store, and answers None.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from itertools import chain
from time import monotonic

from ezpyp.errors import StoreError
from ezpyp.model.fingerprints import Fingerprints
from ezpyp.model.outcomes import Outcome, Status
from ezpyp.model.plan import Plan
from ezpyp.schedule.briefs import SIZE
from ezpyp.scripts import spawned
from ezpyp.scripts.renewed import Command
from ezpyp.storage.opening import Writer, open_store
from ezpyp.system import pools, resources, running
from ezpyp.system.capture import Capture
from ezpyp.tuples import NamedTuple
from ezpyp.work import preloading, seeding
from ezpyp.work.gauges import Gauge
from ezpyp.work.guards import Guards
from ezpyp.work.lots import Lot, Report
from ezpyp.work.position import Position
from ezpyp.work.sprint import Sprint
from ezpyp.work.wire import Wire
from ezpyp.work.worker import Worker

#: Seconds of finished work that a helper may hold back to report it together with what follows.
REPORT_EVERY = 0.01
#: Files that a step must be able to open, whatever earlier ones left open.
SPARE_FILES = 256


#: The variable that says which run this is: what one process of a run finds out on a node serves them all.
RUN = "EZPYP_RUN"


class Order(NamedTuple):
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
    #: The numbers of the cores to run on, where the launcher bound the rank to fewer than its helpers need; else empty.
    cores: Sequence[int]
    #: The file that gets what steps print, relative to the folder; None leaves the streams alone.
    log: str | None
    #: See `Store.begin`.
    turn: int
    #: The GPUs of the rank, where what steps use of them is looked at.
    gpus: Sequence[str]
    #: How to have the script run once more, where helpers are new interpreters; None where they are forked.
    again: Command | None


def prepare() -> None:
    """What helpers would each do alike, done once in the process that forks them: a fork takes it along.

    Each limits the pools of threads that the script loaded: in a fork, OpenBLAS would start its threads to that end.
    """
    preloading.load()
    for name in ("ctypes", "json", "opcode", "xxhash"):
        import_module(name)
    pools.limit_threads(1)
    for name in set(os.environ) - set(resources.scrubbed(os.environ)):
        del os.environ[name]
    running.stay()
    seeding.watch_imports()
    spawned.stand_in()


def serve(
    own: socket.socket, slot: int, order: Order, *, plan: Plan, position: Position, first: Sequence[Lot] = ()
) -> None:
    """The helper's life: one lot after another until the agent says so or is gone. `first` came before the others.

    After `prepare`, in this process or in the one that forked it.
    """
    os.environ.update(order.environment)
    if order.cores:
        with contextlib.suppress(OSError):  # then it stays where the launcher put it
            os.sched_setaffinity(0, order.cores)
    worker = Worker(
        plan=plan,
        fingerprints=Fingerprints(order.fingerprints),
        inputs=order.inputs,
        store=open_store(order.store, order.folder, Writer(order.rank, order.host, slot)),
        folder=order.folder,
        rank=order.rank,
        host=order.host,
        guards=Guards(
            Capture(order.folder, order.log),
            partial(position.publish_offset, slot),
            environment=order.environment,
        ),
        gauge=Gauge(position.gauges, slot, order.gpus),
    )
    wire = Wire(own)
    reporting, number = Reporting(worker, wire.send, _most_files()), 0
    with contextlib.suppress(EOFError, ConnectionError):
        for lot in chain(first, iter(wire.receive, None)):
            if not lot:
                worker.store.sync()
                continue
            if not number:  # a step may use up what the store needs to begin
                with contextlib.suppress(StoreError):  # each step that has something to store tells of it
                    worker.store.begin(order.turn)
            worker.upstream.tell(lot.places, lot.values)
            _run(lot, number, worker, position, slot, reporting)
            if lot.grant is not None and lot.grant.process == "own":
                break
            number += len(lot)
        else:
            worker.store.sync()
            wire.send(None)  # all that it did is on disk
            return
    worker.store.sync()


class Reporting:
    """What came of the tasks of a lot, told in reports. Short steps are told together, and flushed together."""

    def __init__(
        self, worker: Worker, send: Callable[[tuple[Report, bool]], None], most_files: int = sys.maxsize
    ) -> None:
        self._worker, self._send, self._most_files = worker, send, most_files
        self._briefs: list[bytes] = []
        self._outcomes: list[Outcome] = []
        #: By when what waits has to be told.
        self.until = monotonic() + REPORT_EVERY

    def add(self, *came: bytes | Outcome) -> int:
        """What came of some is told now, if what waits to be told waits for long, or one failed and left too few files
        to open for the next; of how many.

        Raises:
            EOFError: this process has too many files open for the next step.
        """
        ended, failed = 0, False
        for each in came:
            if isinstance(each, bytes):
                self._briefs.append(each)
                ended += len(each) // SIZE
            else:
                self._outcomes.append(each)
                ended += 1
                failed = failed or each.status is Status.FAILED
        if monotonic() > self.until or (failed and self._is_full()):
            self.tell()
            self._leave_if_full()
        return ended

    def finish(self, returned: Sequence[int]) -> None:
        """Tell of the rest of a lot, and of what is given back of it.

        Raises:
            EOFError: as `add`.
        """
        self.tell(returned, finished=True)
        self._leave_if_full()

    def tell(self, returned: Sequence[int] = (), *, finished: bool = False) -> None:
        """Tell of what was not told yet, if anything."""
        if self._briefs or self._outcomes or finished:
            briefs, outcomes = self._worker.flush(b"".join(self._briefs), self._outcomes)
            values = self._worker.upstream.travelling(briefs)
            self._send((Report(briefs, outcomes, returned, values, {**self._worker.called}), finished))
            self._worker.called.clear()
            self._briefs, self._outcomes = [], []
        self.until = monotonic() + REPORT_EVERY

    def _leave_if_full(self) -> None:
        """Let the agent fork another helper, which begins where this one ends."""
        if self._is_full():
            raise EOFError

    def _is_full(self) -> bool:
        return _lowest_free() > self._most_files


def _run(lot: Lot, first: int, worker: Worker, position: Position, slot: int, reporting: Reporting) -> None:
    """Run tasks, the first of which has this number, up to the fence."""
    number, end, here = first, first + len(lot), position.of(slot)
    while number < end:
        sprint = Sprint.of(worker, lot, number - first)
        if sprint is not None and (came := sprint.run(number, here, reporting.until)):
            position.end(slot)
            number += reporting.add(*came)
            continue
        position.begin(slot, number)
        if number >= position.fence(slot):
            break
        outcome = worker.run(lot[number - first], reporting.tell)
        position.end(slot)
        number += reporting.add(outcome)
    position.end(slot)
    reporting.finish(lot.steps[number - first :])


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
