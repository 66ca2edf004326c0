"""Whether a plan may run in a folder that holds another, and what to say where it may not."""

from __future__ import annotations

import os
import time
from array import array
from collections.abc import Mapping, Sequence
from itertools import chain, compress
from operator import and_, mul

from ezpyp.errors import SchemaConflictError
from ezpyp.folder import differences
from ezpyp.folder import schema as schemas
from ezpyp.folder.folding import count, named, parsed, spans
from ezpyp.folder.surveys import Survey, best_of, duration
from ezpyp.model import naming
from ezpyp.model.outcomes import Status
from ezpyp.model.places import Numbered
from ezpyp.model.plan import Plan
from ezpyp.storage.opening import usual_kind
from ezpyp.tuples import NamedTuple


def kind_of(folder: str, asked: str, steps: int) -> str:
    """The kind of store of a folder: the one it has, else what was asked for, else what fits so many steps.

    Raises:
        SchemaConflictError: it has another kind than was asked for.
        StoreError: the folder or its schema cannot be read.
    """
    about = schemas.about(folder)
    there = about["store"] if about is not None else "packed" if _is_packed(folder) else ""
    if there in ("", "memory"):  # nothing is left of what was kept in memory
        return usual_kind(asked, steps)
    if asked in ("auto", there):
        return str(there)
    remedy = f"Convert it: ezpyp repack {folder} --store {asked}." if asked != "memory" else "Use another cache folder."
    raise SchemaConflictError(
        f"{folder} has store='{there}', and store='{asked}' was asked for. {remedy} Nothing was run."
    )


def _is_packed(folder: str) -> bool:
    """Whether there are packed results of a plan that is not known, because its schema was lost."""
    if not os.path.isdir(os.path.join(folder, naming.STORE_FOLDER)):
        return False
    from ezpyp.storage.names import is_there

    return is_there(folder)


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
    valuable = _valuable(found) if on_change != "rerun" else None
    if (valuable and valuable.steps) or (on_change == "refuse" and (found.differences.new or found.differences.gone)):
        return _refusal(found, valuable, on_change)
    return ""


def contested(found: Survey, on_change: str = "refuse") -> set[int]:
    """The indices of the steps for which a run would be refused. It may be refused for others too, which are gone."""
    if found.before is None:
        return set()
    if not found.differences.former or found.before["ezpyp"]["pipeline_id"] != found.plan.pipeline_id:
        return {*range(len(found.plan.steps))}
    new = found.differences.new if on_change == "refuse" else ()
    places = chain.from_iterable(_places(found.plan, name) for name in new)
    return {*places, *(chain.from_iterable(_valuable(found).steps.values()) if on_change != "rerun" else ())}


class Valuable(NamedTuple):
    """Changed steps whose former results are there."""

    #: Their indices, by the names under which they are told.
    steps: Mapping[str, Sequence[int]]
    #: When these results were made, and how long that took.
    whens: array[float]
    seconds: array[float]


def _valuable(found: Survey) -> Valuable:
    plan, records, former = found.plan, found.scan.records, found.differences.former
    valuable = Valuable({}, array("d"), array("d"))
    steps: dict[str, array[int]] = {}
    single = [told for told in found.differences.changed if parsed(told)[1] < 0]
    old = {entry["name"]: entry["fingerprint"] for _, entry in schemas.entries(found.before or {})}
    lying = records.under({old[former[told]] for told in single})
    for told in single:
        k = plan.index[told]
        stem = best_of(found.scan, lying.get(old[former[told]], ()), plan.stems[k])
        if stem is not None and (outcome := records[stem].outcome).status is Status.DONE:
            steps[told] = array("i", [k])
            valuable.whens.append(outcome.when)
            valuable.seconds.append(outcome.seconds)
    for told in found.differences.changed:
        if parsed(told)[1] >= 0:
            steps[told] = _valuable_members(found, told, valuable)
    return valuable._replace(steps={told: places for told, places in steps.items() if places})


def _valuable_members(found: Survey, told: str, valuable: Valuable) -> array[int]:
    """The members of a folded family whose former results are there. The schema does not say what they were: what lies
    there is theirs.
    """
    label, first, count = parsed(found.differences.former[told])
    places = _places(found.plan, told)[: count if first >= 0 else 0]
    stems = Numbered(label, range(first, first + len(places)))
    plain, runs = found.scan.records.plain(stems), bytes(map(found.decisions.runs.__getitem__, places))
    for i in range(len(places)) if 2 in plain.found else ():
        if plain.found[i] == 2:
            record = found.scan.records.get(stems[i])
            plain.found[i] = record is not None and record.outcome.status is Status.DONE
            if record is not None:
                plain.whens[i], plain.seconds[i] = record.outcome.when, record.outcome.seconds
    is_there = bytes(map(and_, plain.found, runs))
    valuable.whens.extend(compress(plain.whens, is_there))
    valuable.seconds.extend(compress(plain.seconds, is_there))
    return array("i", compress(places, is_there))


def _places(plan: Plan, name: str) -> Sequence[int]:
    """The indices of the steps that a name stands for."""
    label, first, count = parsed(name)
    if first < 0:
        return (plan.index[name],)
    start, last = (plan.index[f"{label}[{number}]"] for number in (first, first + count - 1))
    return range(start, last + 1) if last - start == count - 1 else [plan.index[each] for each in named([name])]


def former_records(found: Survey) -> dict[str, str]:
    """Changed steps of which there are former records, with the stems that these lie under."""
    old = {entry["name"]: entry["fingerprint"] for _, entry in schemas.entries(found.before or {})}
    plan, scan, stems = found.plan, found.scan, {}
    lying = scan.records.under({old[found.differences.former[told]] for told in found.differences.changed})
    for told in found.differences.changed:
        was = found.differences.former[told]
        for name, before in zip(named([told]), named([was]), strict=False):
            k = plan.index[name]
            if name == told:
                stem = best_of(scan, lying.get(old[was], ()), plan.stems[k])
            else:  # the schema does not say what its members were: what lies there is theirs
                stem = before if before in scan.records and found.decisions.runs[k] else None
            if stem is not None:
                stems[name] = stem
    return stems


def _refusal(found: Survey, valuable: Valuable | None, on_change: str) -> str:
    change, total = found.differences, len(found.plan.steps)
    script = os.path.basename(found.wanted["ezpyp"]["script"]) or "SCRIPT"
    parts, reasons = [], dict[str, tuple[str, ...]]()
    if valuable and valuable.steps:
        for told, places in valuable.steps.items():
            reasons |= dict.fromkeys(spans(found.plan, places), change.changed[told])
        parts.append(
            f"{len(valuable.whens):,} of {total:,} steps changed since {_minute(min(valuable.whens))} "
            f"({_spent(found, valuable)} of results): {_why(reasons)}"
        )
    if on_change == "refuse":
        parts += [
            f"{count(names):,} {what}: {_few(names)}"
            for what, names in (("new", change.new), ("gone", change.gone))
            if names
        ]
    if reasons:
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


def _spent(found: Survey, valuable: Valuable) -> str:
    """What results have cost: `3.1 GPU-hours` where they took GPUs."""
    places = [*chain.from_iterable(valuable.steps.values())]
    blocks = found.plan.blocks
    if any(block.family.definition.options.request.gpus for block in blocks):
        gpus = [found.plan.block(k).family.definition.options.request.gpus for k in places]
        if any(gpus):
            return f"{sum(map(mul, valuable.seconds, gpus)) / 3600:.1f} GPU-hours"
    return duration(sum(valuable.seconds))


def _minute(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(when))
