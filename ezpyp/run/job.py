"""Everything that one rank needs to take part in a run."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from itertools import compress
from typing import TYPE_CHECKING, NamedTuple

from ezpyp.model.fingerprints import Fingerprints
from ezpyp.model.plan import Plan
from ezpyp.model.selection import with_needs
from ezpyp.model.settings import Settings
from ezpyp.model.steps import Status
from ezpyp.ranks import mpi
from ezpyp.run.provenance import Origin
from ezpyp.run.resume import Standing
from ezpyp.storage.opening import Store
from ezpyp.work.nursery import Nursery, Position
from ezpyp.work.worker import Worker

if TYPE_CHECKING:
    from ezpyp.cluster.requeue import NextStart


class Job(NamedTuple):
    """Everything one rank needs to take part in a run."""

    run: str
    plan: Plan
    folder: str
    kind: str
    store: Store
    standing: Standing
    settings: Settings
    link: mpi.Link | None
    #: The process that forks helpers: forked earlier, before MPI started, or now.
    nest: Callable[[], tuple[Nursery, Position]]
    #: The steps that have no result yet and are asked for, or needed by those.
    todo: frozenset[int]
    #: The steps that this run is asked for; None for all.
    wanted: frozenset[int] | None = None
    #: Seconds that the run has.
    time: float = math.inf
    #: Which share of a plan the run is, for people; "" where it is none.
    share: str = ""
    #: On rank 0: where the run comes from.
    origin: Origin | None = None
    #: Seconds without a sign of life after which a host is lost; 0 for never.
    patience: float = 0.0
    #: On rank 0: says that the run lives. Raises CacheTakenOver where the folder is another's.
    sign: Callable[[], None] | None = None
    #: On rank 0, where the Slurm job is to be started again when it needs more time.
    next_start: NextStart | None = None

    @property
    def rank(self) -> int:
        return self.link.rank if self.link else 0

    @property
    def host(self) -> str:
        return self.link.host if self.link else os.uname().nodename

    def worker(self) -> Worker:
        return Worker(
            plan=self.plan,
            fingerprints=Fingerprints(self.standing.fingerprints),
            inputs=self.standing.inputs,
            store=self.store,
            folder=self.folder,
            rank=self.rank,
            host=self.host,
        )


def missing(plan: Plan, statuses: bytes, wanted: frozenset[int] | None) -> frozenset[int]:
    """The steps that have no result yet and are wanted, or needed by those; `wanted` None for all."""
    if wanted is None:
        return frozenset(compress(range(len(statuses)), statuses))  # done is 0
    needed = with_needs(plan.graph, wanted, lambda k: statuses[k] == Status.DONE)
    return frozenset(k for k in needed if statuses[k] != Status.DONE)
