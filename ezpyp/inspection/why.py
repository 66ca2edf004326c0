"""Why a step stands where it stands: what came of it, what a run would do about it, and the chain of reasons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ezpyp.folder import differences
from ezpyp.folder import schema as schemas
from ezpyp.folder.differences import Pair
from ezpyp.folder.summary import duration
from ezpyp.inspection.explain import day, grouped
from ezpyp.model.outcomes import Status

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ezpyp.folder.entries import Entry
    from ezpyp.folder.runs import Run
    from ezpyp.model.outcomes import Outcome
    from ezpyp.run.prospect import Prospect

#: Lines of a chain, and lines of the output of a failed step.
_MOST = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A failed step with what it takes to understand it."""

    name: str
    outcome: Outcome
    #: The last lines that it printed.
    output: tuple[str, ...]
    #: Its arguments, as JSON holds them, and where the results lie that it was given.
    arguments: Mapping[str, Any]
    inputs: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Code:
    """What of a step's code does not decide, and is told all the same."""

    version: str | None
    #: What was edited under the same version.
    edits: tuple[str, ...]
    #: Values without lasting identity, which are not looked at.
    not_followed: tuple[str, ...]
    #: Why its compiled code had to do; "" where its source was read.
    fallback: str
    #: Libraries that are of other versions now.
    packages: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Why a step stands where it stands."""

    name: str
    #: What came of it; None where it has not run, or what came of it does not count any more.
    outcome: Outcome | None
    #: The failure to blame: its own, or that for which it was skipped.
    failure: Failure | None
    #: What a run would do, one of VERDICTS; None where that is not known.
    verdict: str | None
    #: Steps with their reasons: this one first, then what lies behind them, up to those with reasons of their own.
    chain: Mapping[str, tuple[str, ...]]
    code: Code | None


def account(name: str, run: Run | None, prospect: Prospect | None) -> Account:
    """All that is known of a step, from its folder and from the plan of its script, where there are such."""
    k = prospect.plan.index.get(name) if prospect is not None else None
    former = name if prospect is None else prospect.survey.differences.was(name)
    outcome = run.outcome(former) if run is not None and former in run.index else None
    if prospect is None or k is None:
        return Account(
            name=name, outcome=outcome, failure=_failure(run, former, outcome), verdict=None, chain={}, code=None
        )
    decision = prospect.survey.decisions[k]
    failure = _failure(run, former, outcome) if decision.runs else None
    if decision.record is not None:
        # That of another folder has no place here yet.
        outcome = decision.record.outcome if decision.stem else decision.record.outcome._replace(location="")
    return Account(
        name=name,
        outcome=outcome,
        failure=failure,
        verdict=prospect.verdicts[k],
        chain=_chain(prospect, k),
        code=_code(prospect, k),
    )


def account_lines(found: Account, folder: str, unknown: str = "") -> Iterator[str]:
    """The account as text. `unknown` says why it is not known what a run would do."""
    yield f"{_state(found, folder)}\n"
    if found.failure is not None:
        yield from _failure_lines(found.failure, own=found.failure.name == found.name)
    yield from _forecast_lines(found, unknown)
    if found.code is not None:
        yield from _code_lines(found.code)


def account_values(found: Account) -> dict[str, Any]:
    """The account for programs."""
    outcome, failure, code = found.outcome, found.failure, found.code
    return {
        "name": found.name,
        "status": int(outcome.status) if outcome else int(Status.NOT_RUN),
        "since": outcome.when if outcome else None,
        "note": outcome.note if outcome else "",
        "verdict": found.verdict,
        "chain": [{"name": name, "reasons": list(reasons)} for name, reasons in found.chain.items()],
        "failure": failure
        and {
            "name": failure.name,
            "reason": failure.outcome.note,
            "traceback": failure.outcome.traceback,
            "output": list(failure.output),
            "arguments": failure.arguments,
            "inputs": failure.inputs,
        },
        "version": code.version if code else None,
        "edits": list(code.edits) if code else [],
        "not_followed": list(code.not_followed) if code else [],
    }


# ----- finding out


def _failure(run: Run | None, name: str, outcome: Outcome | None) -> Failure | None:
    """The failure of a step, or that for which it was skipped."""
    if run is None or outcome is None or outcome.status not in (Status.FAILED, Status.SKIPPED):
        return None
    culprit, met = name, outcome
    if outcome.status is Status.SKIPPED:
        culprit = next((each for each in _before(run, name) if outcome.note == f"because '{each}' failed"), name)
        blamed = run.outcome(culprit)
        if blamed is None or blamed.status is not Status.FAILED:
            return None
        met = blamed
    entry = run.entries[run.index[culprit]]
    return Failure(
        name=culprit,
        outcome=met,
        output=tuple(run.log(culprit).splitlines()[-_MOST:]),
        arguments=entry.arguments,
        inputs=_inputs(run, entry),
    )


def _before(run: Run, name: str) -> Iterator[str]:
    seen, todo = {name}, [name]
    while todo:
        for each in run.entries[run.index[todo.pop()]].upstream:
            if each not in seen:
                seen.add(each)
                todo.append(each)
                yield each


def _inputs(run: Run, entry: Entry) -> dict[str, str]:
    found = {name: run.outcome(name) for name in entry.upstream if name in run.index}
    return {name: f"{run.folder}/{met.location}" for name, met in found.items() if met is not None and met.location}


def _chain(prospect: Prospect, k: int) -> dict[str, tuple[str, ...]]:
    """The reasons of a step, and of those behind it, the nearest first."""
    found: dict[int, tuple[str, ...]] = {}
    level = [k] if prospect.verdicts[k] != "cached" else []
    while level:
        found |= {each: prospect.reasons(each) for each in level}
        level = list(dict.fromkeys(p for each in level for p in _behind(prospect, each) if p not in found))
    return {prospect.plan.steps[each].name: reasons for each, reasons in found.items()}


def _behind(prospect: Prospect, k: int) -> list[int]:
    """The nearest dependencies for which a step runs or is refused; none where it has reasons of its own only."""
    survey, steps, parents = prospect.survey, prospect.plan.steps, prospect.plan.graph.parents[k]
    changed, reason = survey.differences.changed, survey.decisions[k].reason
    told = survey.differences.of
    own = changed.get(told(steps[k].name), ())
    if len(differences.own_reasons(own)) < len(own):
        return [p for p in parents if told(steps[p].name) in changed or told(steps[p].name) in survey.differences.new]
    if reason.startswith("made anew"):
        return [p for p in parents if survey.decisions[p].renewed]
    if reason.startswith("was skipped"):
        return [p for p in parents if survey.decisions[p].reason.startswith(("was skipped", "failed before"))]
    if prospect.verdicts[k] == "blocked" and not own:
        return [p for p in parents if prospect.verdicts[p] == "blocked"]
    return []


def _code(prospect: Prospect, k: int) -> Code:
    survey, step = prospect.survey, prospect.plan.steps[k]
    code = survey.identity.functions[survey.identity.codes[k]]
    pair = _pair(prospect, step.name)
    then = pair.before["ezpyp"]["functions"].get(pair.old["code"], {}).get("packages", {}) if pair else {}
    unsaid = pair is not None and step.options.version is not None and pair.old.get("version") == step.options.version
    return Code(
        version=step.options.version,
        edits=tuple(differences.explain_code(pair)) if pair is not None and unsaid else (),
        not_followed=tuple(code.not_followed),
        fallback=code.fallback,
        packages=tuple(f"{n} {then[n]} -> {v}" for n, v in code.packages.items() if then.get(n, v) != v),
    )


def _pair(prospect: Prospect, name: str) -> Pair | None:
    """The step in the folder's schema and in the script's; None where it is new."""
    survey = prospect.survey
    told = survey.differences.of(name)
    former = survey.differences.former.get(told)
    if survey.before is None or former is None:
        return None
    old = next((entry for _, entry in schemas.entries(survey.before) if entry["name"] == former), None)
    now = next((entry for _, entry in schemas.entries(survey.wanted) if entry["name"] == told), None)
    if old is None or now is None:
        return None  # of a family that is told as a whole in only one of them
    return Pair(old=old, now=now, before=survey.before, after=survey.wanted)


# ----- telling


def _state(found: Account, folder: str) -> str:
    outcome = found.outcome
    if outcome is None or outcome.status is Status.NOT_RUN:
        return f"'{found.name}' has no result in {folder}."
    where = f"{duration(outcome.seconds)} on rank {outcome.rank} of {outcome.host}"
    if outcome.status is Status.DONE:
        note = f", {outcome.note}" if outcome.note else ""
        place = f" in {folder}/{outcome.location}" if outcome.location else ""
        lies = "its result is not kept" if outcome.dropped else f"{outcome.bytes:,} bytes{place}"
        return f"'{found.name}' is done since {day(outcome.when)}: {where}, {lies}{note}"
    if outcome.status is Status.SKIPPED:
        return f"'{found.name}' was skipped on {day(outcome.when)} {outcome.note}."
    return f"'{found.name}' failed on {day(outcome.when)}, {where}: {outcome.note}"


def _failure_lines(failure: Failure, *, own: bool) -> Iterator[str]:
    if not own:
        yield f"'{failure.name}' failed on {day(failure.outcome.when)}: {failure.outcome.note}\n"
    if failure.outcome.traceback:
        yield from (f"  {line}\n" for line in failure.outcome.traceback.splitlines())
    if failure.output:
        yield "its last output:\n"
        yield from (f"  {line}\n" for line in failure.output)
    if failure.arguments or failure.inputs:
        yield "its inputs:\n"
        yield from (f"  {key}: {value!r}\n" for key, value in failure.arguments.items())
        yield from (f"  '{name}': {path}\n" for name, path in list(failure.inputs.items())[:_MOST])


_FORECASTS = {
    "run": "A run makes it now:",
    "blocked": "A run is refused, for it would replace results or change the plan:",
    "cached": "A run takes this result as it is.",
    "left out": "A run is not asked for it.",
}


def _forecast_lines(found: Account, unknown: str) -> Iterator[str]:
    if found.verdict is None:
        if unknown:
            yield f"What a run would do is not known: {unknown}\n"
        return
    yield f"{_FORECASTS[found.verdict]}\n"
    lines = [f"  {names}: {reasons}\n" for names, reasons in grouped(found.chain)]
    yield from lines[:_MOST]
    if len(lines) > _MOST:
        yield f"  and {len(lines) - _MOST:,} more reasons: --output json\n"


def _code_lines(code: Code) -> Iterator[str]:
    if code.version is not None:
        edits = f"; edited since: {'; '.join(code.edits)}" if code.edits else ""
        yield f"version '{code.version}' stands for the code{edits}\n"
    if code.not_followed:
        yield f"not followed, for they have no lasting identity: {', '.join(code.not_followed)}\n"
    if code.fallback:
        yield f"identified by its compiled code: {code.fallback}\n"
    if code.packages:
        yield f"changed, which does not count: {', '.join(code.packages)}\n"
