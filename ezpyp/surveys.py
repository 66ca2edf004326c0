"""A plan held against a folder: for every step whether it runs, and why.

The check that decides and the text that explains are one: a run acts on a survey, `ezpyp plan` and `ezpyp why` print
it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ezpyp import differences, outputs
from ezpyp import schema as schemas
from ezpyp.differences import Differences
from ezpyp.fingerprints import Identity, identify
from ezpyp.inputs import Memory
from ezpyp.plan import Plan
from ezpyp.steps import Status, Step
from ezpyp.store import Record, Scan, Store

#: Ends the fingerprint of a result that is not to be used, so that it fits no step.
VOID = " void"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What a run will do about one step, and why."""

    #: The record that stands for the step, and the stem it lies under; None where it runs.
    record: Record | None = None
    stem: str = ""
    #: Why it runs; "" where it does not.
    reason: str = ""

    @property
    def runs(self) -> bool:
        return self.record is None

    @property
    def renewed(self) -> bool:
        """It is made anew although it is the same; what depends on it follows."""
        return self.reason.startswith(("always", "older than", "made anew"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """A plan held against a folder. Nothing was changed to make it."""

    plan: Plan
    identity: Identity
    #: What the files were that steps read.
    memory: Memory
    #: The schema that the plan wants, and the one that the folder has.
    wanted: Mapping[str, Any]
    before: Mapping[str, Any] | None
    differences: Differences
    scan: Scan
    decisions: tuple[Decision, ...]


def survey(
    plan: Plan,
    folder: str,
    store: Store,
    *,
    kind: str = "files",
    script: str = "",
    identity: Identity | None = None,
    now: float | None = None,
) -> Survey:
    """Hold a plan against a folder: for every step whether it runs, and why.

    A result is found by its fingerprint, under whatever name it was made. Reads each status once and no result. The
    identity is found out where it is not given.

    Raises:
        StoreError: the folder or its schema cannot be read.
    """
    memory = Memory(folder)
    identity = identity or identify(plan, memory)
    scan = store.records()
    wanted = schemas.of(plan, cache_location=folder, identity=identity, store=kind, script=script, when=_now())
    before = schemas.read(folder)
    found = differences.between(before, wanted) if before is not None else differences.NO_DIFFERENCES
    return Survey(
        plan=plan,
        identity=identity,
        memory=memory,
        wanted=wanted,
        before=before,
        differences=found,
        scan=scan,
        decisions=decide_all(plan, identity, scan, found, memory, time.time() if now is None else now),
    )


def decide_all(
    plan: Plan, identity: Identity, scan: Scan, found: Differences, memory: Memory, now: float
) -> tuple[Decision, ...]:
    return _remade(plan, [*_decide(plan, identity, scan, found, memory, now)])


def _decide(
    plan: Plan, identity: Identity, scan: Scan, found: Differences, memory: Memory, now: float
) -> Iterator[Decision]:
    places = stems_by_fingerprint(plan, identity, scan)
    torn = {problem.path.rpartition("/")[2].partition(".step")[0]: problem.what for problem in scan.problems}
    voided = {r.fingerprint: r.outcome.note for r in scan.records.values() if r.fingerprint.endswith(VOID)}
    renewed: set[int] = set()
    for k, step in enumerate(plan.steps):
        stem = places.get(identity.fingerprints[k])
        record = scan.records[stem] if stem is not None else None
        decision = _judge(step, record, found, now) or _follow_parents(plan, k, renewed)
        decision = decision or _check_outputs(step, record, memory)
        if decision is None:
            assert record is not None
            yield Decision(record=record, stem=stem or "")
            continue
        if decision.renewed:
            renewed.add(k)
        why = torn.get(plan.stems[k])
        if record is None and why:
            yield Decision(reason=f"its result is not usable: {why}")
        elif record is None and (note := voided.get(identity.fingerprints[k] + VOID)):
            yield Decision(reason=note)
        else:
            yield decision


def _judge(step: Step, record: Record | None, found: Differences, now: float) -> Decision | None:
    """Why a step runs for reasons of its own, or None."""
    if record is None:
        unknown = "has not run" if step.name in found.former else "new"
        return Decision(reason="; ".join(found.changed.get(step.name, ())) or unknown)
    outcome = record.outcome
    if outcome.status is Status.FAILED:
        return Decision(reason=f"failed before: {outcome.note}")
    if outcome.status is not Status.DONE:
        return Decision(reason=f"was skipped {outcome.note}" if outcome.status is Status.SKIPPED else "has not run")
    if step.options.always:
        return Decision(reason="always=True")
    if outcome.dropped and step.options.keep:
        return Decision(reason="its result was dropped, and is to be kept now")
    age = now - outcome.when
    if step.options.max_age is not None and age > step.options.max_age:
        return Decision(reason=f"older than {duration(step.options.max_age)} ({duration(age)})")
    return None


def _check_outputs(step: Step, record: Record | None, memory: Memory) -> Decision | None:
    lost = outputs.lost(step.options.outputs, record.outcome.outputs, memory) if record is not None else ""
    return Decision(reason=lost) if lost else None


def _follow_parents(plan: Plan, k: int, renewed: set[int]) -> Decision | None:
    parent = next((p for p in plan.graph.parents[k] if p in renewed), None)
    return Decision(reason=f"made anew after '{plan.steps[parent].name}'") if parent is not None else None


def _remade(plan: Plan, decisions: list[Decision]) -> tuple[Decision, ...]:
    """The decisions; results that were dropped are made again where a step that runs needs them."""
    dropped = {k for k, each in enumerate(decisions) if each.record and each.record.outcome.dropped}
    for k in reversed(range(len(decisions) if dropped else 0)):
        if decisions[k].runs:
            for p in dropped.intersection(plan.index[source.name] for source in plan.steps[k].arguments.sources()):
                dropped.discard(p)
                decisions[p] = Decision(reason=f"its result was dropped, and '{plan.steps[k].name}' needs it")
    return tuple(decisions)


def stems_by_fingerprint(plan: Plan, identity: Identity, scan: Scan) -> dict[str, str]:
    """Fingerprint to the stem of the record to use: a done one first, then the one under the step's own name."""
    own = dict(zip(plan.stems, identity.fingerprints, strict=True))

    def rank(stem: str) -> tuple[bool, bool, bool]:
        record = scan.records[stem]
        return record.outcome.status is Status.DONE, not record.outcome.dropped, own.get(stem) == record.fingerprint

    found: dict[str, str] = {}
    for stem, record in scan.records.items():
        other = found.get(record.fingerprint)
        if other is None or rank(stem) > rank(other):
            found[record.fingerprint] = stem
    return found


def duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
