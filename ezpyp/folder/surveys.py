"""A plan held against a folder: for every step whether it runs, and why.

The check that decides and the text that explains are one: a run acts on a survey, `ezpyp plan` and `ezpyp why` print
it.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any, overload

from ezpyp.folder import differences, folding
from ezpyp.folder import schema as schemas
from ezpyp.folder.differences import Differences
from ezpyp.identity.inputs import Memory
from ezpyp.model import outputs
from ezpyp.model.fingerprints import Identity, identify
from ezpyp.model.outcomes import Status
from ezpyp.model.plan import Plan
from ezpyp.model.steps import Step
from ezpyp.storage.opening import Record, Scan, Store
from ezpyp.tuples import NamedTuple

#: Ends the fingerprint of a result that is not to be used, so that it fits no step.
VOID = " void"


class Decision(NamedTuple):
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


class Survey(NamedTuple):
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
    decisions: Decisions


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

    def digest_of(label: str, first: int, count: int) -> str:
        start, last = (plan.index.get(f"{label}[{number}]", -1) for number in (first, first + count - 1))
        return folding.digest(identity.fingerprints, start, last + 1) if 0 <= start == last + 1 - count else ""

    found = differences.between(before, wanted, digest_of) if before is not None else differences.NO_DIFFERENCES
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


class Decisions(Sequence[Decision]):
    """What a run will do about each step. Those of whom there is nothing to say are made when they are looked at.

    Attributes:
        runs: for each step 1 where it runs, else 0.
        told: decisions that had to be thought about, by index. Of the rest those that do not run are done and lie
            under their own stems, and of those that run there is nothing.
    """

    def __init__(self, plan: Plan, scan: Scan, found: Differences, settled: bytes, told: dict[int, Decision]) -> None:
        self._plan, self._scan, self._found, self.told = plan, scan, found, told
        self.runs = bytearray(settled.translate(_TURNED))
        for k, decision in told.items():
            self.runs[k] = decision.runs

    def __len__(self) -> int:
        return len(self.runs)

    @overload
    def __getitem__(self, k: int) -> Decision: ...
    @overload
    def __getitem__(self, k: slice) -> list[Decision]: ...
    def __getitem__(self, k: int | slice) -> Decision | list[Decision]:
        if isinstance(k, slice):
            return [self[each] for each in range(len(self))[k]]
        k = range(len(self))[k]
        if (decision := self.told.get(k)) is not None:
            return decision
        if self.runs[k]:
            return Decision(reason=_missing(self._plan.steps[k], self._found))
        stem = self._plan.stems[k]
        return Decision(record=self._scan.records[stem], stem=stem)

    def changed(self, other: Mapping[int, Decision]) -> Decisions:
        """The same with some others."""
        settled = bytes(self.runs).translate(_TURNED)
        return Decisions(self._plan, self._scan, self._found, settled, {**self.told, **other})


_TURNED = bytes([1, 0]).ljust(256, b"\0")


def decide_all(plan: Plan, identity: Identity, scan: Scan, found: Differences, memory: Memory, now: float) -> Decisions:
    prints, total = identity.fingerprints.packed, len(plan.steps)
    settled = bytes(scan.records.settled(prints, plan.stems)) if scan.records else bytes(total)
    told = _Deciding(plan, identity, scan, settled, memory, now).those(_doubtful(plan, scan, settled))
    return Decisions(plan, scan, found, settled, _remade(plan, settled, told))


def _doubtful(plan: Plan, scan: Scan, settled: bytes) -> Sequence[int]:
    """The steps that have to be thought about, in order: without a settled result, or with options to renew it."""
    options = {id(b.family.definition): b.family.definition.options for b in plan.blocks}.values()
    if any(each.always or each.max_age is not None or each.outputs.patterns for each in options):
        return range(len(plan.steps))
    if not scan.records and not scan.problems:
        return ()
    return array("i", compress(range(len(settled)), settled.translate(_TURNED)))


class _Deciding:
    """What was found out for all steps together."""

    def __init__(self, plan: Plan, identity: Identity, scan: Scan, settled: bytes, memory: Memory, now: float) -> None:
        self._plan, self._identity, self._scan, self._settled = plan, identity, scan, settled
        self._memory, self._now = memory, now
        self._torn = {problem.path.rpartition("/")[2].partition(".step")[0]: problem.what for problem in scan.problems}
        notable = (scan.records[stem] for stem in scan.records.notable())
        self._voided = {r.fingerprint: r.outcome.note for r in notable if r.fingerprint.endswith(VOID)}
        self._renewed: set[int] = set()
        #: Where records of the fingerprints that are thought about lie.
        self._stems: Mapping[str, list[str]] = {}

    def those(self, steps: Sequence[int]) -> dict[int, Decision]:
        """Decisions about these steps, in order, but for those of which there is nothing."""
        prints = self._identity.fingerprints
        self._stems = self._scan.records.under({prints[k] for k in steps}) if self._scan.records else {}
        found = ((k, self._decide(k)) for k in steps)
        return {k: decision for k, decision in found if decision is not None}

    def _decide(self, k: int) -> Decision | None:
        plan, fingerprint = self._plan, self._identity.fingerprints[k]
        own = plan.stems[k]
        stem = best_of(self._scan, self._stems.get(fingerprint, ()), own)
        if stem is None:
            if why := self._torn.get(own):
                return Decision(reason=f"its result is not usable: {why}")
            note = self._voided.get(fingerprint + VOID)
            return Decision(reason=note) if note else None
        step, record = plan.steps[k], self._scan.records[stem]
        decision = _judge(step, record, self._now) or _follow_parents(plan, k, self._renewed)
        decision = decision or _check_outputs(step, record, self._memory)
        if decision is None:
            return Decision(record=record, stem=stem) if not self._settled[k] else None
        if decision.renewed:
            self._renewed.add(k)
        return decision


def _missing(step: Step, found: Differences) -> str:
    """Why there is no result of a step."""
    name = found.of(step.name)
    return "; ".join(found.changed.get(name, ())) or ("has not run" if name in found.former else "new")


def _judge(step: Step, record: Record, now: float) -> Decision | None:
    """Why a step runs for reasons of its own, or None."""
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


def _check_outputs(step: Step, record: Record, memory: Memory) -> Decision | None:
    lost = outputs.lost(step.options.outputs, record.outcome.outputs, memory)
    return Decision(reason=lost) if lost else None


def _follow_parents(plan: Plan, k: int, renewed: set[int]) -> Decision | None:
    parent = next((p for p in plan.graph.parents[k] if p in renewed), None)
    return Decision(reason=f"made anew after '{plan.steps[parent].name}'") if parent is not None else None


def _remade(plan: Plan, settled: bytes, decisions: dict[int, Decision]) -> dict[int, Decision]:
    """The decisions; results that were dropped are made again where a step that runs needs them."""
    dropped = {k for k, each in decisions.items() if each.record and each.record.outcome.dropped}
    children = plan.graph.parents.turned() if dropped else ()
    for p in sorted(dropped, reverse=True):
        for k in reversed(children[p]):
            runs = decisions[k].runs if k in decisions else not settled[k]
            if runs and any(plan.places[source] == p for source in plan.steps[k].arguments.sources()):
                decisions[p] = Decision(reason=f"its result was dropped, and '{plan.steps[k].name}' needs it")
                break
    return decisions


def best_of(scan: Scan, stems: Sequence[str], own: str) -> str | None:
    """The stem of the record to use of those with a fingerprint: a done one first, then that under the step's own."""
    if len(stems) < 2:
        return stems[0] if stems else None

    def rank(stem: str) -> tuple[bool, bool, bool]:
        outcome = scan.records[stem].outcome
        return outcome.status is Status.DONE, not outcome.dropped, stem == own

    return max(stems, key=rank)


def duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
