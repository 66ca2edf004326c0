"""Everything that one rank needs to take part in a run."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from itertools import compress
from typing import TYPE_CHECKING

from ezpyp.model.fingerprints import Fingerprints
from ezpyp.model.kinds import Requests
from ezpyp.model.outcomes import Status
from ezpyp.model.plan import Plan
from ezpyp.model.selection import with_needs
from ezpyp.model.settings import Settings
from ezpyp.ranks import mpi
from ezpyp.schedule.placement import Place
from ezpyp.storage.opening import Store
from ezpyp.work.nursery import Nursery
from ezpyp.work.position import Position
from ezpyp.work.worker import Worker

if TYPE_CHECKING:
    from ezpyp.cluster.requeue import NextStart
    from ezpyp.run.provenance import Origin
    from ezpyp.run.standing import Standing


class Job:
    """Everything one rank needs to take part in a run. Never changed."""

    def __init__(
        self,
        *,
        run: str,
        plan: Plan,
        folder: str,
        kind: str,
        store: Store,
        standing: Standing,
        settings: Settings,
        link: mpi.Link | None,
        nest: Callable[[int], tuple[Nursery, Position]],
        todo: frozenset[int],
        requests: Requests | None,
        places: Sequence[Place],
        wanted: frozenset[int] | None = None,
        time: float = math.inf,
        share: str = "",
        origin: Origin | None = None,
        patience: float = 0.0,
        sign: Callable[[], None] | None = None,
        next_start: NextStart | None = None,
    ) -> None:
        """
        Args:
            nest: the process that forks helpers: forked earlier, before MPI started, or now, for so many helpers.
            todo: the steps that have no result yet and are asked for, or needed by those.
            requests: what steps ask for; None where all are ordinary.
            places: the ranks as places for steps; none where there is nothing to do.
            wanted: the steps that this run is asked for; None for all.
            time: seconds that the run has.
            share: which share of a plan the run is, for people; "" where it is none.
            origin: on rank 0: where the run comes from.
            patience: seconds without a sign of life after which a host is lost; 0 for never.
            sign: on rank 0: says that the run lives. Raises CacheTakenOver where the folder is another's.
            next_start: on rank 0, where the Slurm job is to be started again when it needs more time.
        """
        self.run, self.plan, self.folder, self.kind, self.store = run, plan, folder, kind, store
        self.standing, self.settings, self.link, self.nest = standing, settings, link, nest
        self.todo, self.requests, self.places = todo, requests, places
        self.wanted, self.time, self.share, self.origin = wanted, time, share, origin
        self.patience, self.sign, self.next_start = patience, sign, next_start

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
