"""How a run is to be carried out: what the user chose in calls, on the pipeline or in the environment, checked."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ezpyp.errors import InitializationError
from ezpyp.system.stopping import GRACE

ON_CHANGE = ("refuse", "extend", "rerun")
STORES = ("auto", "files", "packed", "memory")
_EXECUTORS = ("processes", "inline")
_SCHEDULES = ("ready", "phase")
_CAPTURES = ("file", "tee", "off")
_STARTS = ("fork", "fresh")
#: More helpers than this no agent has.
MOST_HELPERS = 1024


class Settings:
    """How a run is carried out. None of it changes a result."""

    def __init__(
        self,
        *,
        executor: str = "processes",
        helpers: int = 1,
        schedule: Literal["ready", "phase"] = "ready",
        capture: str = "file",
        start: Literal["fork", "fresh"] = "fork",
        grace: float = GRACE,
    ) -> None:
        """
        Args:
            helpers: those of this rank; 0 for as many as its share of the node has cores.
            capture: "file", "tee" or "off".
            start: "fork" helpers, or start each "fresh": a new interpreter that runs the script.
        """
        self.executor, self.helpers, self.schedule = executor, helpers, schedule
        self.capture, self.start, self.grace = capture, start, grace


class Choices:
    """What the user chose, most particular first: in the call, on the pipeline, in EZPYP_ variables."""

    def __init__(self, *given: Mapping[str, Any]) -> None:
        self._given = given

    def over(self, given: Mapping[str, Any]) -> Choices:
        """These choices, with those of a call before them."""
        return Choices(given, *self._given)

    def of(self, key: str) -> Any:
        """The value of a setting; None if nobody chose."""
        everywhere = [given.get(key) for given in self._given] + [os.environ.get(f"EZPYP_{key.upper()}")]
        return next((value for value in everywhere if value is not None), None)

    def settings(self, *, under_mpi: bool) -> Settings:
        """The settings of a run.

        Raises:
            InitializationError: a value that is none of those there are.
        """
        return Settings(
            executor=_one_of("executor", self.of("executor") or "processes", _EXECUTORS),
            helpers=self._helpers(under_mpi=under_mpi),
            schedule="phase" if _one_of("schedule", self.of("schedule") or "ready", _SCHEDULES) == "phase" else "ready",
            capture=_one_of("capture", self.of("capture") or "file", _CAPTURES),
            start=self.start(),
        )

    def expected_helpers(self) -> int:
        """How many helpers a rank will have, as far as that is known before the ranks have met; wrong choices are for
        the run to refuse.
        """
        try:
            settings = self.settings(under_mpi=True)
        except InitializationError:
            return 0
        return max(1, settings.helpers) if settings.executor == "processes" else 0

    def start(self) -> Literal["fork", "fresh"]:
        """How helpers are started.

        Raises:
            InitializationError: a value that is none of those there are.
        """
        return "fresh" if _one_of("start", self.of("start") or "fork", _STARTS) == "fresh" else "fork"

    def store(self) -> str:
        """Where results are to be kept: "files", "packed", "memory", or "auto" for what fits the plan.

        Raises:
            InitializationError: a value that is none of those there are.
        """
        return _one_of("store", self.of("store") or "auto", STORES)

    def _helpers(self, *, under_mpi: bool) -> int:
        """A process that is alone is the only rank: both words are for it."""
        workers = None if under_mpi else self.of("workers")
        return _count("helpers", self.of("helpers")) if workers is None else _count("workers", workers)

    def on_change(self) -> str:
        """What to do when the folder holds another plan.

        Raises:
            InitializationError: a value that is none of those there are.
        """
        return _one_of("on_change", self.of("on_change") or "refuse", ON_CHANGE)


def _one_of(key: str, value: Any, known: Sequence[str]) -> str:
    if value not in known:
        raise InitializationError(f"{key}={value!r}: choose one of {', '.join(map(repr, known))}.")
    return str(value)


def _count(key: str, value: Any) -> int:
    if value is None:
        return 1
    if value == "auto":
        return 0
    try:
        count = int(value)
    except (TypeError, ValueError):
        count = 0
    if not 1 <= count <= MOST_HELPERS:
        raise InitializationError(f"{key}={value!r}: give a number from 1 to {MOST_HELPERS}, or 'auto'.")
    return count
