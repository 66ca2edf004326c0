"""Results that are kept although their steps changed, and results that are not to be used although they did not.

Each is one status file written anew; then the schema. Whatever is killed in between leaves records that say what they
are: a step whose record is accepted and whose schema is not is simply done.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from ezpyp.errors import SchemaConflictError, StoreError
from ezpyp.folder import admission, differences, runs
from ezpyp.folder import schema as schemas
from ezpyp.folder.folding import count, fits, named
from ezpyp.folder.holder import user_name
from ezpyp.folder.surveys import VOID, Survey
from ezpyp.identity import fingerprint
from ezpyp.model.naming import SCHEMA_FILE
from ezpyp.model.outcomes import Status
from ezpyp.run import resume
from ezpyp.storage.opening import SHELF, Store, open_store
from ezpyp.system.files import write_whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceptance:
    """Which changes of steps do not matter. Names as they are now, in plan order."""

    #: Those asked for, with what about them changed.
    accepted: Mapping[str, tuple[str, ...]]
    #: Those that only follow them.
    along: Mapping[str, tuple[str, ...]]
    #: Those that were asked for and cannot be accepted, with the step before them that stays changed.
    left: Mapping[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.accepted, *self.along)


def choose(survey: Survey, asked: Callable[[str], bool] = lambda name: True) -> Acceptance:
    """Which changed steps are accepted where these are asked for.

    What follows accepted steps, and did not change otherwise, comes along. A step after one that stays changed, or is
    new, is left as it is: its input will be another.
    """
    changed, steps, told = survey.differences.changed, survey.plan.steps, survey.differences.of
    known = _entries(survey)
    accepted: dict[str, tuple[str, ...]] = {}
    along: dict[str, tuple[str, ...]] = {}
    left: dict[str, str] = {}
    waiting = {*survey.differences.new, *changed}
    for k, step in enumerate(steps):
        name = told(step.name)
        reasons = changed.get(name)
        if reasons is None or name in accepted or name in along or name in left:
            continue
        before = next((each for p in survey.plan.graph.parents[k] if (each := told(steps[p].name)) in waiting), None)
        former = survey.differences.former[name]
        if not {former, name} <= known or count([former]) != count([name]):
            before = former  # a family that is another whole now
        follows = bool(reasons) and not differences.own_reasons(reasons)
        if before is not None:
            if asked(step.name):
                left[name] = before
        elif asked(step.name) or follows:
            (accepted if asked(step.name) else along)[name] = reasons
            waiting.discard(name)
    return Acceptance(accepted=accepted, along=along, left=left)


def _entries(survey: Survey) -> set[str]:
    """The names under which both schemas tell their steps."""
    return {entry["name"] for schema in (survey.before or {}, survey.wanted) for _, entry in schemas.entries(schema)}


def comparable(survey: Survey, folder: str) -> None:
    """See that a plan and a folder have to do with each other.

    Raises:
        StoreError: the folder holds nothing yet. SchemaConflictError: it holds another pipeline.
    """
    if survey.before is None:
        raise StoreError(f"{folder} holds no results yet, so that there is nothing to accept. Run the script.")
    if survey.before["ezpyp"]["pipeline_id"] != survey.plan.pipeline_id or not survey.differences.former:
        raise SchemaConflictError(admission.objection(survey, folder))


def accept(survey: Survey, folder: str, store: Store, chosen: Acceptance) -> int:
    """Write former outcomes under the new identities of their steps, and the schema that claims them.

    The caller holds the folder.

    Returns:
        How many results are kept.
    """
    assert survey.before is not None
    stems, kept = admission.former_records(survey), 0
    for name in named(chosen.names):
        if name not in stems:
            continue  # has not run; or a former attempt to accept it was killed after this
        record = survey.scan.records[stems[name]]
        done = record.outcome.status is Status.DONE
        signed = record._replace(
            fingerprint=survey.identity.fingerprints[survey.plan.index[name]],
            outcome=record.outcome._replace(note=_noted(record.outcome.note)) if done else record.outcome,
        )
        store.put(stems[name], signed, None)
        kept += done
    store.sync()
    content = schemas.encoded(_schema(survey.before, survey, chosen))
    write_whole(Path(folder) / SCHEMA_FILE, content, sync=True)
    runs.open(folder).summary().write()
    return kept


def _schema(before: Mapping[str, Any], survey: Survey, chosen: Acceptance) -> dict[str, Any]:
    """The folder's schema with accepted steps as they are now, under their former names: results stay where they are,
    and what is new, gone or changed otherwise remains so.
    """
    wanted = {entry["name"]: entry for _, entry in schemas.entries(survey.wanted)}
    former = survey.differences.former
    now = {former[name]: wanted[name] for name in chosen.names}

    def entry(old: Mapping[str, Any]) -> Mapping[str, Any]:
        if old["name"] not in now:
            return old
        new = now[old["name"]]
        upstream = [former[name] for name in new["upstream"]]
        place = {key: old[key] for key in ("name", "stem", "label", "first") if key in old}
        return {**new, **place, "upstream": upstream}

    found: dict[str, Any] = {p: [entry(each) for each in before[p]] for p in before if p != "ezpyp"}
    entries = [each for _, each in schemas.entries(found)]
    then, today = before["ezpyp"], survey.wanted["ezpyp"]
    used = {each["code"] for each in entries}
    found["ezpyp"] = {
        **then,
        "digest": fingerprint.combine(*(each["fingerprint"] for each in entries)),
        "when": today["when"],
        "functions": {k: c for k, c in {**then["functions"], **today["functions"]}.items() if k in used},
        "inputs": {**then.get("inputs", {}), **today["inputs"]},
    }
    return found


def _noted(note: str) -> str:
    """A note with who accepted the result and when, in place of who did so before."""
    return "; ".join(
        [*(part for part in note.split("; ") if part and not part.startswith("accepted ")), _by("accepted")]
    )


def _by(what: str) -> str:
    """`accepted 2026-11-20 by u2041`."""
    return f"{what} {time.strftime('%Y-%m-%d')} by {user_name(os.getuid())}"


# ----- results that are not to be used

#: So many are written anew before they are put on the shelf.
_AT_ONCE = 4096


def results_of(folder: str, names: Iterable[str]) -> dict[str, list[str]]:
    """Of those of these steps that have results: the stems of these, wherever they lie in the folder."""
    run, records = runs.open(folder), _store(folder).records().records
    by_print: dict[str, str] = {}
    for name in names:
        place = run.index[name]
        print_ = run.entries.content(place)["fingerprint"]
        if run.entries.is_folded(place):  # what lies under its stem is its own
            record = records.get(name)
            print_ = record.fingerprint if record is not None and fits(record, "") else ""
        if print_:
            by_print[print_] = name
    found: dict[str, list[str]] = {name: [] for name in by_print.values()}
    for print_, stems in records.under(by_print.keys()).items():
        found[by_print[print_]] += (each for each in stems if records[each].outcome.status is Status.DONE)
    return {name: stems for name, stems in found.items() if stems}


def after(folder: str, names: Iterable[str]) -> list[str]:
    """These steps and all after them, in the order of the plan."""
    run = runs.open(folder)
    return [run.entries[k].name for k in run.entries.after(run.index[name] for name in names)]


def invalidate(folder: str, results: Mapping[str, Sequence[str]], keep_old: int = 1) -> None:
    """Have these results (see `results_of`) found by no step any more, and put them on the shelf.

    The caller holds the folder.
    """
    store, note = _store(folder), _by("invalidated")
    stems = [*chain.from_iterable(results.values())]
    records = store.records().records
    shelved = {stem: records[stem] for stem in records.alone() if stem.startswith(SHELF)}
    for some in (stems[k : k + _AT_ONCE] for k in range(0, len(stems), _AT_ONCE)):
        void = {
            stem: record._replace(fingerprint=record.fingerprint + VOID, outcome=record.outcome._replace(note=note))
            for stem, record in ((stem, records[stem]) for stem in some)
        }
        for stem, record in void.items():
            store.put(stem, record, None)
        resume.shelve([stem for stem in void if not stem.startswith(SHELF)], {**shelved, **void}, store, keep_old)
    store.sync()
    runs.open(folder).summary().write()


def _store(folder: str) -> Store:
    about = schemas.about(folder)
    if about is None:
        raise runs.not_a_cache(folder)
    return open_store(about["store"], folder)
