"""What a cache folder holds, against what a plan wants: what is done, what must run and why, and when to refuse.

Done by one rank; the others are told its Standing. The check that decides and the text that explains are one function,
`survey`: a run acts on it, `ezpyp plan` and `ezpyp why` print it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ezpyp import differences, naming, outputs
from ezpyp import plan as plans
from ezpyp import schema as schemas
from ezpyp.borrowing import borrow, offers
from ezpyp.differences import Differences
from ezpyp.errors import IdentityError, SchemaConflictError
from ezpyp.events import run_of_log
from ezpyp.helper import pack
from ezpyp.inputs import Memory
from ezpyp.keeping import Keeping
from ezpyp.plan import Identity, Plan
from ezpyp.steps import Outcome, Status, Step
from ezpyp.store import SHELF, Record, Scan, Store, on_shelf, write_whole

ON_CHANGE = ("refuse", "extend", "rerun")
#: Ends the fingerprint of a result that is not to be used, so that it fits no step.
VOID = " void"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a pipeline stands before it runs. Small enough to be sent to every rank."""

    #: 16 bytes a step, in plan order.
    fingerprints: bytes
    #: What the folder says of each step: one signed byte.
    statuses: bytes
    #: Done steps that were given Failed values, with the indices of those inputs.
    missing: Mapping[int, tuple[int, ...]]
    #: Digests of the files that steps read, by their indices.
    inputs: Mapping[int, bytes] = field(default_factory=dict)
    #: Files that were found torn or foreign, with what is wrong: their steps run again.
    problems: tuple[str, ...] = ()
    #: Code that could not be followed by its source, and values without identity: said once.
    remarks: tuple[str, ...] = ()
    #: Versions of the packages that the code uses.
    packages: Mapping[str, str] = field(default_factory=dict)
    #: The runs that made what is there: records refer to their logs.
    logged: frozenset[str] = frozenset()
    #: The schema was written anew.
    rewritten: bool = False


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
    identity = identity or plans.identify(plan, memory)
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
        decisions=_decisions(plan, identity, scan, found, memory, time.time() if now is None else now),
    )


def _decisions(
    plan: Plan, identity: Identity, scan: Scan, found: Differences, memory: Memory, now: float
) -> tuple[Decision, ...]:
    return _remade(plan, [*_decide(plan, identity, scan, found, memory, now)])


def _decide(
    plan: Plan, identity: Identity, scan: Scan, found: Differences, memory: Memory, now: float
) -> Iterator[Decision]:
    places = _places(plan, identity, scan)
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
        return Decision(reason=f"older than {_duration(step.options.max_age)} ({_duration(age)})")
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


def _places(plan: Plan, identity: Identity, scan: Scan) -> dict[str, str]:
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


def settle_in(
    plan: Plan,
    folder: str,
    store: Store,
    *,
    kind: str,
    script: str,
    on_change: str = "refuse",
    keep_old: int = 1,
    strict: bool = False,
    reuse_from: Sequence[str] = (),
) -> Standing:
    """Compare the plan with the folder; refuse, or put results where their steps are now and write the schema.

    Raises:
        SchemaConflictError: the folder holds another plan, and `on_change` does not allow that. Nothing was changed.
        IdentityError: with `strict`, where code uses a value without lasting identity. Nothing was changed.
        StoreError: the folder cannot be read or written.
    """
    found = survey(plan, folder, store, kind=kind, script=script)
    if strict:
        insist(plan, found.identity)
    admit(found, folder, on_change)
    if reuse_from:
        found = _with_borrowed(found, folder, store, reuse_from)
    for stem in found.scan.leftovers:
        store.drop(stem, result_only=True)
    rearrange(found, store, keep_old)
    _drop_unneeded(found, store)
    found.memory.contents.save()
    rewritten = outdated(found)
    if rewritten:
        write_whole(Path(folder) / schemas.FILE, [schemas.encode(found.wanted)], sync=True)
    return replace(_standing(found), rewritten=rewritten)


def with_offers(found: Survey, folder: str, folders: Sequence[str]) -> Survey:
    """The survey as if results of other folders had been taken for steps that would run. They lie under no stem yet.

    Raises:
        SchemaConflictError, StoreError: a folder is no cache of this pipeline, or cannot be read.
    """
    offered = offers(_wanting(found), folders, folder, pipeline_id=found.plan.pipeline_id)
    pairs = zip(found.identity.fingerprints, found.decisions, strict=True)
    decisions = tuple(Decision(record=offered[each]) if each in offered and d.runs else d for each, d in pairs)
    return replace(found, decisions=decisions)


def _wanting(found: Survey) -> dict[str, str]:
    """Fingerprints of steps that would run and of which nothing is here, to their stems."""
    prints, records = found.identity.fingerprints, found.scan.records.values()
    mine = {
        r.fingerprint.removesuffix(VOID) for r in records if r.outcome.status is Status.DONE and not r.outcome.dropped
    }
    return {
        prints[k]: found.plan.stems[k]
        for k, decision in enumerate(found.decisions)
        if decision.runs and prints[k] not in mine and not found.plan.steps[k].options.always
    }


def _with_borrowed(found: Survey, folder: str, store: Store, folders: Sequence[str]) -> Survey:
    """The survey after results of other folders were taken for steps that would run."""
    wrong = tuple(borrow(_wanting(found), folders, store, folder, pipeline_id=found.plan.pipeline_id))
    scan = store.records()
    return replace(
        found,
        scan=replace(scan, problems=(*scan.problems, *wrong)),
        decisions=_decisions(found.plan, found.identity, scan, found.differences, found.memory, time.time()),
    )


def _drop_unneeded(found: Survey, store: Store) -> None:
    """Drop what a run that was killed, or one with other wishes, did not."""
    keeping = Keeping(found.plan)
    for k, decision in enumerate(found.decisions):
        if decision.record is not None and not decision.record.outcome.missing:
            for free in keeping.finish(k):
                record = found.decisions[free].record
                if record is not None and not record.outcome.dropped:
                    store.drop(found.plan.stems[free], result_only=True)


def outdated(found: Survey) -> bool:
    """Whether the schema of the folder, if there is one, is not that of the plan."""
    return found.before is None or _names_and_prints(found.before) != _names_and_prints(found.wanted)


def _names_and_prints(schema: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(entry["name"], entry["fingerprint"]) for _, entry in schemas.entries(schema)]


def _standing(found: Survey) -> Standing:
    plan = found.plan
    statuses = bytearray()
    missing: dict[int, tuple[int, ...]] = {}
    for k, decision in enumerate(found.decisions):
        record = decision.record or found.scan.records.get(plan.stems[k])
        fits = record is not None and record.fingerprint == found.identity.fingerprints[k]
        status = record.outcome.status if record is not None and fits else Status.NOT_RUN
        if decision.runs and status is Status.DONE:
            status = Status.NOT_RUN
        statuses.append(status & 0xFF)
        if status is Status.DONE and record is not None and record.outcome.missing:
            missing[k] = tuple(plan.index[name] for name in record.outcome.missing if name in plan.index)
    return Standing(
        fingerprints=pack(found.identity.fingerprints),
        statuses=bytes(statuses),
        missing=missing,
        inputs={k: b"".join(seen.digest for seen in each) for k, each in found.identity.inputs.items()},
        problems=tuple(f"{p.path}: {p.what}" for p in found.scan.problems),
        remarks=tuple(_remarks(plan, found.identity)),
        packages={k: v for code in found.identity.functions.values() for k, v in code.packages.items()},
        logged=frozenset(run_of_log(r.outcome.log[0]) for r in found.scan.records.values() if r.outcome.log),
    )


def insist(plan: Plan, identity: Identity) -> None:
    """Refuse values without lasting identity that code uses: no change in them would be noticed."""
    named = dict(zip(identity.codes, (step.function_name for step in plan.steps), strict=True))
    for key, code in identity.functions.items():
        if code.not_followed:
            raise IdentityError(
                f"'{named[key]}' uses {', '.join(code.not_followed)}, without lasting identity, in a strict pipeline. "
                "Pass what it is made from as an argument, or register_identity(its class, ...), or leave out "
                "strict=True. Nothing was run."
            )


def _remarks(plan: Plan, identity: Identity) -> list[str]:
    found = []
    named = dict(zip(identity.codes, (step.function_name for step in plan.steps), strict=True))
    for key, code in identity.functions.items():
        if code.fallback:
            found.append(f"'{named[key]}' is identified by its compiled code: {code.fallback}.")
        if code.not_followed:
            found.append(
                f"'{named[key]}' uses values without lasting identity, not followed: {', '.join(code.not_followed)}."
            )
    return found


def rearrange(found: Survey, store: Store, keep_old: int) -> None:
    """Put results under the names that their steps have now, and what they replace on the shelf.

    At every moment each result is whole under some name, so that a kill loses none.
    """
    plan, records = found.plan, found.scan.records
    moves = {d.stem: plan.stems[k] for k, d in enumerate(found.decisions) if d.record and d.stem != plan.stems[k]}
    replaced = [
        stem
        for stem, fingerprint in zip(plan.stems, found.identity.fingerprints, strict=True)
        if stem in records and records[stem].fingerprint != fingerprint and stem not in moves
    ]
    shelve(
        [stem for stem in replaced if records[stem].outcome.status is Status.DONE],
        {stem: record for stem, record in records.items() if stem not in moves},
        store,
        keep_old,
        then=lambda: _move_all(moves, records, store),
    )


def shelve(
    stems: Sequence[str],
    records: Mapping[str, Record],
    store: Store,
    keep_old: int,
    *,
    then: Callable[[], None] = lambda: None,
) -> None:
    """Put results on the shelf, and of each keep so many former ones there, once `then` is done."""
    aside = {stem: on_shelf(stem, records[stem]) for stem in stems}
    for stem, place in aside.items():
        store.move(stem, place)
    then()
    shelf = [stem for stem in (*records, *aside.values()) if stem.startswith(SHELF)]
    for stem in aside:
        former = sorted(each for each in shelf if each.startswith(f"{SHELF}{stem}@"))
        for each in former[: max(0, len(former) - keep_old)]:
            store.drop(each)


def _move_all(moves: Mapping[str, str], records: Mapping[str, Record], store: Store) -> None:
    """Each to a place that is free by then; where they form a circle, one steps aside."""
    waiting = dict(moves)
    while waiting:
        source = next((s for s, target in waiting.items() if target not in waiting), None)
        if source is None:
            source = next(iter(waiting))
            place = on_shelf(source, records[source])
            store.move(source, place)
            waiting[place] = waiting.pop(source)
        else:
            store.move(source, waiting.pop(source))


def admit(found: Survey, folder: str, on_change: str = "refuse") -> None:
    """Refuse another plan.

    Raises:
        SchemaConflictError: with what is new, gone or changed, what about it changed, and what to do.
    """
    if text := objection(found, folder, on_change):
        raise SchemaConflictError(text)


def objection(found: Survey, folder: str, on_change: str = "refuse") -> str:
    """Why a run would be refused, and what to do; "" where it would not.

    Changed steps that have no result to lose are taken: fixing a failed step is the commonest edit.
    """
    if found.before is None:
        return ""
    theirs = found.before["ezpyp"]["pipeline_id"]
    if theirs != found.plan.pipeline_id:
        return (
            f"{folder} belongs to pipeline '{theirs}', not to '{found.plan.pipeline_id}'. "
            "Use another cache folder. Nothing was run."
        )
    if not found.differences.former:
        return (
            f"{folder} holds another pipeline called '{theirs}': no step is in common. "
            "Use another cache folder. Nothing was run."
        )
    valuable = _valuable(found) if on_change != "rerun" else {}
    if valuable or (on_change == "refuse" and (found.differences.new or found.differences.gone)):
        return _refusal(found, valuable, on_change)
    return ""


def contested(found: Survey, on_change: str = "refuse") -> frozenset[str]:
    """The steps for which a run would be refused. It may be refused for others too, which are gone."""
    if found.before is None:
        return frozenset()
    if not found.differences.former or found.before["ezpyp"]["pipeline_id"] != found.plan.pipeline_id:
        return frozenset(found.plan.index)
    new = found.differences.new if on_change == "refuse" else ()
    return frozenset((*new, *(_valuable(found) if on_change != "rerun" else ())))


def _valuable(found: Survey) -> dict[str, Outcome]:
    """Changed steps whose former results are there, with the outcomes that would be replaced."""
    former = {name: found.scan.records[stem].outcome for name, stem in former_records(found).items()}
    return {name: outcome for name, outcome in former.items() if outcome.status is Status.DONE}


def former_records(found: Survey) -> dict[str, str]:
    """Changed steps of which there are former records, with the stems that these lie under."""
    old = {entry["name"]: entry["fingerprint"] for _, entry in schemas.entries(found.before or {})}
    places, former = _places(found.plan, found.identity, found.scan), found.differences.former
    return {n: places[old[former[n]]] for n in found.differences.changed if old[former[n]] in places}


def _refusal(found: Survey, valuable: Mapping[str, Outcome], on_change: str) -> str:
    change, total = found.differences, len(found.plan.steps)
    script = os.path.basename(found.wanted["ezpyp"]["script"]) or "SCRIPT"
    parts = []
    if valuable:
        since = min(outcome.when for outcome in valuable.values())
        reasons = {name: change.changed[name] for name in valuable}
        parts.append(
            f"{len(valuable)} of {total} steps changed since {_minute(since)} ({_spent(found, valuable)} of results): "
            f"{_why(reasons)}"
        )
    if on_change == "refuse":
        parts += [
            f"{len(names)} {what}: {_few(names)}"
            for what, names in (("new", change.new), ("gone", change.gone))
            if names
        ]
    if valuable:
        remedies = (
            "Run them again: --on-change rerun. "
            f"Keep their results: ezpyp accept {script} '{_pattern(reasons)}'. Start apart: another cache folder."
        )
    else:
        remedies = "Let steps join and leave: --on-change extend. Start apart: another cache folder."
    return f"{'. '.join(parts)}. {remedies} Nothing was run."


def _why(changed: Mapping[str, tuple[str, ...]]) -> str:
    """Steps with the same reasons told together; those that only follow others by their names."""
    by_reason: dict[tuple[str, ...], list[str]] = {}
    follow = []
    for name, reasons in changed.items():
        if reasons and not differences.own_reasons(reasons):
            follow.append(name)
        else:
            by_reason.setdefault(reasons, []).append(name)
    texts = [f"{_few(names)}: {'; '.join(reasons) or 'changed'}" for reasons, names in by_reason.items()]
    texts = [*texts[:5], *([f"And {len(texts) - 5} more"] if len(texts) > 5 else [])]
    return ". ".join([*texts, *([f"After changed ones: {_few(follow)}"] if follow else [])])


def _few(names: list[str] | tuple[str, ...]) -> str:
    text = naming.compact(names)
    return text if len(text) <= 200 else f"{naming.compact(names[:5])}, …"


def _pattern(changed: Mapping[str, tuple[str, ...]]) -> str:
    """A pattern for `ezpyp accept` that means these steps; those that only follow others come along by themselves."""
    bases = {name.partition("[")[0] for name, reasons in changed.items() if differences.own_reasons(reasons)}
    return f"{bases.pop()}*" if len(bases) == 1 else "*"


def _spent(found: Survey, outcomes: Mapping[str, Outcome]) -> str:
    """What results have cost: `3.1 GPU-hours` where they took GPUs."""
    gpus = {name: found.plan.steps[found.plan.index[name]].options.request.gpus for name in outcomes}
    if any(gpus.values()):
        return f"{sum(each.seconds * gpus[name] for name, each in outcomes.items()) / 3600:.1f} GPU-hours"
    return _duration(sum(each.seconds for each in outcomes.values()))


def _minute(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(when))


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
