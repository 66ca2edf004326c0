"""What a run would do, and how a script differs from a folder: as text and as values for JSON."""

from __future__ import annotations

import time
from functools import cache
from itertools import compress
from typing import TYPE_CHECKING, Any

from ezpyp.folder.folding import count, parsed
from ezpyp.model import naming
from ezpyp.model.steps import Status
from ezpyp.run.prospect import VERDICTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from ezpyp.folder.surveys import Survey
    from ezpyp.run.prospect import Prospect

#: Reasons are told apart up to this number in each phase, and names up to this many characters.
_MOST = 12
_WIDTH = 160
_WORDS = {"run": "to run", "blocked": "blocked", "cached": "cached", "left out": "not asked for"}


def plan_lines(prospect: Prospect) -> Iterator[str]:
    """What a run would do, by phase; members of a family with the same reason on one line."""
    counts, whens = _counts(prospect.verdicts), _whens(prospect.survey)
    yield f"Pipeline '{prospect.plan.pipeline_id}' @ {prospect.folder}: {counts}\n"
    for phase, places in _phases(prospect):
        yield f"phase {phase}: {_counts([prospect.verdicts[k] for k in places])}\n"
        for verdict in VERDICTS:
            of_kind = [k for k in places if prospect.verdicts[k] == verdict]
            yield from _folded(verdict, [(prospect.plan.steps[k].name, _told(prospect, k, whens[k])) for k in of_kind])
    if gone := prospect.survey.differences.gone:
        yield f"gone: {_fold(gone)}\n"
    yield from (f"wrong: {problem.path}: {problem.what}\n" for problem in prospect.survey.scan.problems)


def plan_values(prospect: Prospect) -> dict[str, Any]:
    """The same for programs, with every step."""
    whens = _whens(prospect.survey)
    return {
        "pipeline_id": prospect.plan.pipeline_id,
        "folder": prospect.folder,
        "on_change": prospect.on_change,
        "refused": prospect.objection or None,
        "counts": {verdict: prospect.count(verdict) for verdict in VERDICTS},
        "phases": [
            {verdict: [prospect.verdicts[k] for k in places].count(verdict) for verdict in VERDICTS}
            for _, places in _phases(prospect)
        ],
        "steps": [
            {
                "name": step.name,
                "phase": phase,
                "verdict": prospect.verdicts[k],
                "reasons": list(prospect.reasons(k)),
                "since": whens[k] or since(prospect.survey, k) or None,
            }
            for k, (step, phase) in enumerate(zip(prospect.plan.steps, prospect.plan.graph.phases, strict=True))
        ],
        "gone": list(prospect.survey.differences.gone),
        "problems": [f"{problem.path}: {problem.what}" for problem in prospect.survey.scan.problems],
    }


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
        yield from _folded(what, [(name, "; ".join(reasons)) for name, reasons in names.items()])


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


def _phases(prospect: Prospect) -> Iterator[tuple[int, Sequence[int]]]:
    places: dict[int, list[int]] = {}
    for k, phase in enumerate(prospect.plan.graph.phases):
        places.setdefault(phase, []).append(k)
    return iter(places.items())


def _counts(verdicts: Sequence[str]) -> str:
    counts = [(verdicts.count(verdict), _WORDS[verdict]) for verdict in VERDICTS]
    nothing = [] if counts[0][0] or counts[1][0] else ["nothing to run"]
    return ", ".join([*nothing, *(f"{number:,} {what}" for number, what in counts if number)])


def _told(prospect: Prospect, k: int, when: float) -> str:
    """The reason of a verdict for people; results of one day are told together. `when` it was made if that is all."""
    if when and prospect.verdicts[k] == "cached":
        return f"done on {_date(when // 60)}"
    record = prospect.survey.decisions[k].record
    if prospect.verdicts[k] != "cached" or record is None:
        return "; ".join(prospect.reasons(k))
    note = f", {record.outcome.note}" if record.outcome.note else ""
    return f"done on {day(record.outcome.when)[:10]}{note}"


def _folded(what: str, told: Iterable[tuple[str, str]]) -> Iterator[str]:
    """Lines such as `  run     train[0..999]: new`."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in told:
        by_reason.setdefault(reason, []).append(name)
    for reason, names in list(by_reason.items())[:_MOST]:
        yield f"  {what:<8} {_fold(names)}{f': {reason}' if reason else ''}\n"
    rest = list(by_reason.values())[_MOST:]
    if rest:
        yield f"  {what:<8} {sum(map(len, rest)):,} more, for {len(rest):,} other reasons: --output json\n"


def _fold(names: Sequence[str]) -> str:
    text = naming.compact(names)
    return text if len(text) <= _WIDTH else f"{naming.compact(names[:5])} and {len(names) - 5:,} more"


def grouped(changes: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    """Names folded with the reasons that they share."""
    by_reason: dict[tuple[str, ...], list[str]] = {}
    for name, reasons in changes.items():
        by_reason.setdefault(tuple(reasons), []).append(name)
    return ((_fold(names), "; ".join(reasons)) for reasons, names in by_reason.items())
