"""What can happen in a run, as frozen values; the bus that tells listeners; the journal that keeps them (JSON lines)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from ezpyp.steps import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted:
    """The ledger is about to hand out the first step."""

    run: str
    when: float
    pipeline_id: str
    folder: str
    store: str
    command: tuple[str, ...]
    python: str
    #: The MPI library, "" without MPI.
    mpi: str
    executor: str
    schedule: str
    ranks: int
    hosts: tuple[str, ...]
    slots: int
    total: int
    #: Steps that were done before this run.
    done: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStarted:
    """A step that may take a while was handed to a rank. Very short ones are not announced."""

    when: float
    name: str
    rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepEnded:
    """An outcome arrived. `final` is False where the step will be tried again."""

    name: str
    label: str
    title: str
    phase: int
    outcome: Outcome
    final: bool = True
    #: The failure was within the allowance of its group when the run ended or the outcome came.
    allowed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded:
    """The last event of a run that ended by itself."""

    run: str
    when: float
    seconds: float
    done: int
    failed: int
    skipped: int
    not_run: int
    #: Failures within their group's allowance, counted in `failed` too.
    allowed: int
    #: Steps that were done before and not run again, counted in `done` too.
    cached: int
    exit_code: int
    #: "" or why it ended early.
    reason: str = ""


Event = RunStarted | StepStarted | StepEnded | RunEnded


class Listener(Protocol):
    """Hears every event of a run on rank 0. One that raises is removed and the run goes on."""

    def hear(self, event: Event, /) -> None:
        """Called from the scheduling loop: must not block for long. What it buffers it writes at `close` at the latest."""

    def close(self) -> None:
        """The run is over; called once."""


class Bus:
    """Tells every listener every event."""

    def __init__(self, listeners: Iterable[Listener] = ()) -> None:
        self._listeners = list(listeners)
