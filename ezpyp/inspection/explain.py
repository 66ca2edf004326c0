"""What a run would do, and how a script differs from a folder: as text and as values for JSON."""

from __future__ import annotations

import time
from array import array
from bisect import bisect_right
from functools import cache
from itertools import compress
from typing import TYPE_CHECKING, Any

from ezpyp.folder import folding
from ezpyp.folder.folding import count, parsed
from ezpyp.model import naming
from ezpyp.model.outcomes import Status
from ezpyp.run.prospect import VERDICTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from ezpyp.folder.surveys import Survey
    from ezpyp.model.plan import Block, Plan
    from ezpyp.run.prospect import Prospect

#: Reasons are told apart up to this number in each phase, and names up to this many characters.
_MOST = 12
_WIDTH = 160
_WORDS = {"run": "to run", "blocked": "blocked", "cached": "cached", "left out": "not asked for"}


def plan_lines(prospect: Prospect) -> Iterator[str]:
    """What a run would do, by phase; members of a family with the same reason on one line."""
    verdicts = prospect.verdicts
    yield f"Pipeline '{prospect.plan.pipeline_id}' @ {prospect.folder}: {_counts(verdicts)}\n"
    told = _told(prospect)
    for phase, places in _phases(prospect.plan):
        yield f"phase {phase}: {_counts(verdicts[places.start : places.stop])}\n"
        by_reason: dict[str, dict[str, array[int]]] = {verdict: {} for verdict in VERDICTS}
        for k, reason in zip(places, told, strict=False):
            by_reason[verdicts[k]].setdefault(reason, array("i")).append(k)
        for verdict in VERDICTS:
            of_kind = by_reason[verdict].items()
            yield from _folded(verdict, {why: folding.spans(prospect.plan, steps) for why, steps in of_kind})
    if gone := prospect.survey.differences.gone:
        yield f"gone: {_fold(gone)}\n"
    yield from (f"wrong: {problem.path}: {problem.what}\n" for problem in prospect.survey.scan.problems)


def plan_values(prospect: Prospect, *, every: bool = False) -> dict[str, Any]:
    """The same for programs, with every step. Members of very large families with the same reasons that follow each
    other are one, unless `every` is set.
    """
    verdicts = prospect.verdicts
    return {
        "pipeline_id": prospect.plan.pipeline_id,
        "folder": prospect.folder,
        "on_change": prospect.on_change,
        "refused": prospect.objection or None,
        "counts": {verdict: prospect.count(verdict) for verdict in VERDICTS},
        "phases": [
            {verdict: verdicts[places.start : places.stop].count(verdict) for verdict in VERDICTS}
            for _, places in _phases(prospect.plan)
        ],
        "steps": [*_step_values(prospect, every)],
        "gone": list(prospect.survey.differences.gone),
        "problems": [f"{problem.path}: {problem.what}" for problem in prospect.survey.scan.problems],
    }


def _step_values(prospect: Prospect, every: bool) -> Iterator[dict[str, Any]]:
    plan, verdicts, whens = prospect.plan, prospect.verdicts, _whens(prospect.survey)
    reasons = _Reasons(prospect)
    for block in plan.blocks:
        family, phase = block.family, plan.graph.phases[block.start]
        k = block.start
        while k < block.stop:
            verdict, why = verdicts[k], reasons.of(k)
            value = {"name": plan.steps[k].name, "phase": phase, "verdict": verdict, "reasons": list(why)}
            start, since_ = k, whens[k] or since(prospect.survey, k)
            k += 1
            if len(block.members) > folding.MOST and family.first is not None and not every:
                while k < block.stop and verdicts[k] == verdict and reasons.of(k) == why:
                    since_ = min(since_, whens[k] or since(prospect.survey, k))
                    k += 1
                if k - start > 1:
                    first = family.first + block.members[start - block.start]
                    value |= {"name": folding.span(family.label, first, k - start), "count": k - start}
            yield {**value, "since": since_ or None}


def difference_lines(survey: Survey, folder: str) -> Iterator[str]:
    """What of a script is new, gone, changed or under another name than in a folder."""
    found = survey.differences
    kinds = (
        ("new", dict.fromkeys(found.new, ())),
        ("gone", dict.fromkeys(found.gone, ())),
        ("changed", found.changed),
        ("moved", {name: (f"was {former}",) for name, former in moved(survey).items()}),
    )
    counts = ", ".join(f"{count(names):,} {what}" for what, names in kinds if names)
    same = len(survey.plan.steps) - count(found.new) - count(found.changed)
    if survey.before is None:
        yield f"{folder} holds no plan yet: all {len(survey.plan.steps):,} steps are new.\n"
        return
    yield f"Pipeline '{survey.plan.pipeline_id}' @ {folder}: {counts or 'no difference'}, {same:,} as before\n"
    for what, names in kinds:
        by_reason: dict[str, list[str]] = {}
        for name, reasons in names.items():
            by_reason.setdefault("; ".join(reasons), []).append(name)
        yield from _folded(what, by_reason)


def difference_values(survey: Survey, folder: str) -> dict[str, Any]:
    """The same for programs."""
    found = survey.differences
    new = found.new if survey.before is not None else tuple(survey.plan.index)
    return {
        "pipeline_id": survey.plan.pipeline_id,
        "folder": folder,
        "new": list(new),
        "gone": list(found.gone),
        "changed": {name: list(reasons) for name, reasons in found.changed.items()},
        "moved": moved(survey),
    }


def moved(survey: Survey) -> dict[str, str]:
    """Steps that are the same under another name, with their former names."""
    found = survey.differences
    return {
        name: was
        for name, was in found.former.items()
        if parsed(name)[:2] != parsed(was)[:2] and name not in found.changed
    }


def _whens(survey: Survey) -> Sequence[float]:
    """For each step when its result was made, where there is one of which there is nothing else to say; else 0."""
    plain = survey.scan.records.plain(survey.plan.stems)
    for k in (*survey.decisions.told, *compress(range(len(plain.whens)), survey.decisions.runs)):
        plain.whens[k] = 0.0
    return plain.whens


def since(survey: Survey, k: int) -> float:
    """When the result that stands for a step was made; 0.0 where there is none."""
    record = survey.decisions[k].record
    return record.outcome.when if record is not None and record.outcome.status is Status.DONE else 0.0


def day(when: float) -> str:
    """A moment as people read it here: `2026-11-20 14:02`."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(when))


@cache
def _date(minute: float) -> str:
    return day(60 * minute)[:10]


def _phases(plan: Plan) -> Iterator[tuple[int, range]]:
    phases, start = plan.graph.phases, 0
    while start < len(phases):
        stop = bisect_right(phases, phases[start])
        yield phases[start], range(start, stop)
        start = stop


def _counts(verdicts: Sequence[str]) -> str:
    counts = [(verdicts.count(verdict), _WORDS[verdict]) for verdict in VERDICTS]
    nothing = [] if counts[0][0] or counts[1][0] else ["nothing to run"]
    return ", ".join([*nothing, *(f"{number:,} {what}" for number, what in counts if number)])


class _Reasons:
    """The reasons of steps; those of a family of which there is nothing else to say are found out once."""

    def __init__(self, prospect: Prospect) -> None:
        self._prospect, self._told = prospect, prospect.survey.decisions.told
        self._block: Block | None = None
        self._common: dict[bool, tuple[str, ...]] = {}

    def of(self, k: int) -> tuple[str, ...]:
        prospect = self._prospect
        if k in self._told:
            return prospect.reasons(k)
        if self._block is None or not self._block.start <= k < self._block.stop:
            self._block, self._common = prospect.plan.block(k), {}
            first, last = (prospect.plan.steps[end].name for end in (self._block.start, self._block.stop - 1))
            of = prospect.survey.differences.of
            self._is_whole = first != last and of(first) == of(last) != first
        if not self._is_whole:
            return prospect.reasons(k)
        runs = bool(prospect.survey.decisions.runs[k])
        if runs not in self._common:
            self._common[runs] = prospect.reasons(k)
        return self._common[runs]


def _told(prospect: Prospect) -> Iterator[str]:
    """The reason of each verdict for people; results of one day are told together."""
    decisions, verdicts, reasons = prospect.survey.decisions, prospect.verdicts, _Reasons(prospect)
    for k, when in enumerate(_whens(prospect.survey)):
        if verdicts[k] != "cached":
            yield "; ".join(reasons.of(k))
        elif when:
            yield f"done on {_date(when // 60)}"
        elif (record := decisions[k].record) is not None:
            note = f", {record.outcome.note}" if record.outcome.note else ""
            yield f"done on {day(record.outcome.when)[:10]}{note}"
        else:
            yield "; ".join(reasons.of(k))


def _folded(what: str, by_reason: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Lines such as `  run     train[0..999]: new`."""
    for reason, names in list(by_reason.items())[:_MOST]:
        yield f"  {what:<8} {_fold(names)}{f': {reason}' if reason else ''}\n"
    rest = list(by_reason.values())[_MOST:]
    if rest:
        yield f"  {what:<8} {sum(map(count, rest)):,} more, for {len(rest):,} other reasons: --output json\n"


def _fold(names: Sequence[str]) -> str:
    text = naming.compact(names)
    return text if len(text) <= _WIDTH else f"{naming.compact(names[:5])} and {count(names[5:]):,} more"


def grouped(changes: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    """Names folded with the reasons that they share."""
    by_reason: dict[tuple[str, ...], list[str]] = {}
    for name, reasons in changes.items():
        by_reason.setdefault(tuple(reasons), []).append(name)
    return ((_fold(names), "; ".join(reasons)) for reasons, names in by_reason.items())
