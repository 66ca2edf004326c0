"""What a run would do now: a survey with what is asked of the run."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ezpyp.folder import admission, shares, surveys
from ezpyp.folder import schema as schemas
from ezpyp.folder.surveys import Survey
from ezpyp.model.outcomes import Status
from ezpyp.model.plan import Plan
from ezpyp.model.selection import Selection, downstream, with_needs
from ezpyp.model.settings import Choices
from ezpyp.model.shares import parse
from ezpyp.run import resume
from ezpyp.scripts.loading import main_script
from ezpyp.storage.memory import MemoryStore
from ezpyp.storage.opening import open_store

#: What a run would do about a step, in the order in which it is told: make its result; refuse to, for what it would
#: replace; take what is there; neither, for it is not asked for.
VERDICTS = ("run", "blocked", "cached", "left out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prospect:
    """What a run would do now. Nothing was changed to know it."""

    survey: Survey
    folder: str
    on_change: str
    selection: Selection
    #: Why the run would be refused; "" where it would not.
    objection: str
    #: One of VERDICTS for each step, in plan order.
    verdicts: tuple[str, ...]
    #: The steps that it is a share of; None where it is none.
    mine: frozenset[int] | None = None

    @property
    def plan(self) -> Plan:
        return self.survey.plan

    @property
    def finished(self) -> bool:
        """A run would do nothing, and results can be read as they lie."""
        return not self.objection and "run" not in self.verdicts and resume.is_settled(self.survey)

    @property
    def statuses(self) -> list[int]:
        """Of a finished one: what came of each step."""
        return [Status.DONE if verdict == "cached" else Status.NOT_RUN for verdict in self.verdicts]

    def count(self, verdict: str) -> int:
        return self.verdicts.count(verdict)

    def reasons(self, k: int) -> tuple[str, ...]:
        """Why a step runs or is refused; none where it does not run."""
        decision, changed = self.survey.decisions[k], self.survey.differences.changed
        own = changed.get(self.survey.differences.of(self.plan.steps[k].name), ())
        return own if own and decision.reason in ("", "; ".join(own)) else (decision.reason,) if decision.reason else ()


def foresee(
    survey: Survey, folder: str, *, on_change: str, selection: Selection, mine: frozenset[int] | None = None
) -> Prospect:
    """What a run would do with what was found.

    Raises:
        UnknownStep: the selection names a step that is not there.
    """
    return Prospect(
        survey=survey,
        folder=folder,
        on_change=on_change,
        selection=selection,
        objection=admission.objection(survey, folder, on_change),
        verdicts=_verdicts(survey, on_change, selection, mine),
        mine=mine,
    )


def look(plan: Plan, folder: str, *, kind: str, choices: Choices, selection: Selection) -> Prospect:
    """What a run would do in a folder, which need not be there yet and may be read-only.

    Raises:
        StoreError: the folder or its schema cannot be read. InitializationError: an input cannot be read.
        UnknownStep: the selection names a step that is not there.
        SchemaConflictError: the folder has another kind of store.
        IdentityError: code of a strict pipeline uses a value without lasting identity.
    """
    kind = admission.kind_of(folder, kind, len(plan.steps))
    store = open_store(kind, folder) if os.path.exists(folder) else MemoryStore()
    found = surveys.survey(plan, folder, store, kind=kind, script=main_script())
    if choices.of("strict"):
        resume.insist(plan, found.identity)
    mine = None
    if asked := choices.of("share"):
        from ezpyp.run import division

        mine = division.part_of(found, folder, parse(asked), kind=kind).steps()
    if lenders := (*(each for _, each in shares.found(folder)), *(choices.of("reuse_from") or ())):
        found = resume.with_offers(found, folder, lenders)
    return foresee(found, folder, on_change=choices.on_change(), selection=selection, mine=mine)


def against(prospect: Prospect, folder: str) -> Prospect:
    """The same plan held against another folder, or against the same one anew."""
    former = prospect.survey
    about = schemas.about(folder)
    kind = about["store"] if about else former.wanted["ezpyp"]["store"]
    script, store = former.wanted["ezpyp"]["script"], open_store(kind, folder)
    found = surveys.survey(former.plan, folder, store, kind=kind, script=script, identity=former.identity)
    return foresee(found, folder, on_change=prospect.on_change, selection=prospect.selection, mine=prospect.mine)


def _verdicts(survey: Survey, on_change: str, selection: Selection, mine: frozenset[int] | None) -> tuple[str, ...]:
    graph, runs = survey.plan.graph, survey.decisions.runs
    needed = with_needs(graph, selection.of(survey.plan), lambda k: not runs[k]) if selection else mine
    if needed is not None and mine is not None:
        needed &= mine
    first = admission.contested(survey, on_change)
    after = downstream(graph, first) if first else set()

    def verdict(k: int) -> str:
        is_needed = needed is None or k in needed
        if k in first or (k in after and is_needed and runs[k]):
            return "blocked"
        if not runs[k]:
            return "cached"
        return "run" if is_needed else "left out"

    return tuple(map(verdict, range(len(runs))))
