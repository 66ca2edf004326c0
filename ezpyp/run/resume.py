"""Settle into a folder: refuse, or put results where their steps are now and say what is done.

Done by one rank; the others are told its Standing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import compress

from ezpyp.errors import IdentityError
from ezpyp.folder import schema as schemas
from ezpyp.folder import shares
from ezpyp.folder.admission import admit
from ezpyp.folder.events import run_of_log
from ezpyp.folder.surveys import VOID, Decision, Survey, decide_all, survey
from ezpyp.model.fingerprints import Identity
from ezpyp.model.keeping import Keeping
from ezpyp.model.naming import SCHEMA_FILE, STORE_FOLDER
from ezpyp.model.outcomes import Status
from ezpyp.model.plan import Plan
from ezpyp.run.standing import Standing
from ezpyp.storage.opening import SHELF, Problem, Record, Store, on_shelf, write_whole
from ezpyp.system.files import sweep


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
    keeps: Callable[[float], bool] | None = None,
    identity: Identity | None = None,
    borrowers: Container[int] | None = None,
) -> Standing:
    """Compare the plan with the folder; refuse, or put results where their steps are now and write the schema.

    What shares of the folder made is taken in, and then what other folders have.

    Args:
        keeps: says of a step that failed at some time whether this run is to leave it at that.
        identity: that of the plan, where it is known.
        borrowers: the steps for which results of other folders are wanted; None for all.

    Raises:
        SchemaConflictError: the folder holds another plan, and `on_change` does not allow that. Nothing was changed.
        IdentityError: with `strict`, where code uses a value without lasting identity. Nothing was changed.
        StoreError: the folder cannot be read or written.
    """
    found = survey(plan, folder, store, kind=kind, script=script, identity=identity)
    if strict:
        insist(plan, found.identity)
    admit(found, folder, on_change)
    _sweep(folder)
    turn = store.begin()
    collected = None
    if shares.found(folder):
        from ezpyp.run.collecting import collect

        collected = collect(wanting(found), folder, store, found.scan.records)
        found = _looked_again(found, store, collected.problems)
    if reuse_from:
        from ezpyp.folder.borrowing import borrow

        wanted = wanting(found, borrowers)
        wrong = [*borrow(wanted, reuse_from, store, folder, pipeline_id=plan.pipeline_id)]
        found = _looked_again(found, store, wrong)
    store.drop(*found.scan.leftovers, result_only=True)
    rearrange(found, store, keep_old)
    _drop_unneeded(found, store)
    store.flush()
    found.memory.contents.save()
    rewritten = outdated(found)
    if rewritten:
        write_whole(os.path.join(folder, SCHEMA_FILE), schemas.encoded(found.wanted), sync=True)
    stands = standing(found, keeps)._replace(rewritten=rewritten, turn=turn)
    if collected is None:
        return stands
    store.sync()
    collected.remove()
    return stands._replace(remarks=(*collected.remarks, *stands.remarks))


def _sweep(folder: str) -> None:
    """Remove what killed runs had begun to write: nobody misses it, and the disk may."""
    for each in ("", SHELF, STORE_FOLDER):
        with suppress(OSError):
            sweep(os.path.join(folder, each))


def with_offers(found: Survey, folder: str, folders: Sequence[str]) -> Survey:
    """The survey as if results of other folders had been taken for steps that would run. They lie under no stem yet.

    Raises:
        SchemaConflictError, StoreError: a folder is no cache of this pipeline, or cannot be read.
    """
    from ezpyp.folder.borrowing import offers

    offered = offers(wanting(found), folders, folder, pipeline_id=found.plan.pipeline_id)
    prints = found.identity.fingerprints
    taken = {k: Decision(record=offered[prints[k]]) for k in _running(found) if prints[k] in offered}
    return found._replace(decisions=found.decisions.changed(taken))


def wanting(found: Survey, borrowers: Container[int] | None = None) -> dict[str, str]:
    """Fingerprints of steps that would run and of which nothing is here, to their stems."""
    prints, records = found.identity.fingerprints, found.scan.records.values()
    mine = {
        r.fingerprint.removesuffix(VOID) for r in records if r.outcome.status is Status.DONE and not r.outcome.dropped
    }
    return {
        prints[k]: found.plan.stems[k]
        for k in _running(found)
        if prints[k] not in mine and (borrowers is None or k in borrowers) and not found.plan.steps[k].options.always
    }


def _running(found: Survey) -> Iterator[int]:
    """The steps that would run."""
    return (k for k, runs in enumerate(found.decisions.runs) if runs)


def _looked_again(found: Survey, store: Store, wrong: Iterable[Problem]) -> Survey:
    """The survey after results of other folders were put here."""
    scan = store.records()
    return found._replace(
        scan=scan._replace(problems=(*scan.problems, *wrong)),
        decisions=decide_all(found.plan, found.identity, scan, found.differences, found.memory, time.time()),
    )


def _drop_unneeded(found: Survey, store: Store) -> None:
    """Drop what a run that was killed, or one with other wishes, did not."""
    keeping, unneeded = Keeping(found.plan), []
    for k, decision in enumerate(found.decisions if keeping.any else ()):
        if decision.record is not None and not decision.record.outcome.missing:
            for free in keeping.finish(k):
                record = found.decisions[free].record
                if record is not None and not record.outcome.dropped:
                    unneeded.append(found.plan.stems[free])
    store.drop(*unneeded, result_only=True)


def is_settled(found: Survey) -> bool:
    """Whether a run would do nothing, not even put results in other places: they can be read as they lie."""
    told, stems = found.decisions.told, found.plan.stems
    return (
        not any(found.decisions.runs) and all(each.stem == stems[k] for k, each in told.items()) and not outdated(found)
    )


def outdated(found: Survey) -> bool:
    """Whether the schema of the folder, if there is one, is not that of the plan."""
    return found.before is None or not schemas.alike(found.before, found.wanted)


#: By whether a step runs: it is done, or it is not.
_STATUSES = bytes([Status.DONE, Status.NOT_RUN & 0xFF]).ljust(256, b"\0")


def standing(found: Survey, keeps: Callable[[float], bool] | None = None) -> Standing:
    """Where a pipeline stands, by what was found."""
    plan = found.plan
    records = found.scan.records
    statuses = bytearray(found.decisions.runs.translate(_STATUSES))
    missing: dict[int, tuple[int, ...]] = {}
    failed = []
    for k, decision in found.decisions.told.items():
        record = decision.record or records.get(plan.stems[k])
        fits = record is not None and record.fingerprint == found.identity.fingerprints[k]
        status = record.outcome.status if record is not None and fits else Status.NOT_RUN
        if decision.runs and status is Status.DONE:
            status = Status.NOT_RUN
        statuses[k] = status & 0xFF
        if status is Status.DONE and record is not None and record.outcome.missing:
            missing[k] = tuple(plan.index[name] for name in record.outcome.missing if name in plan.index)
        if keeps is not None and status is Status.FAILED and record is not None and keeps(record.outcome.when):
            failed.append(k)
    logs = (records[stem].outcome.log for stem in records.notable())
    return Standing(
        fingerprints=found.identity.fingerprints.packed,
        statuses=bytes(statuses),
        missing=missing,
        inputs={k: b"".join(seen.digest for seen in each) for k, each in found.identity.inputs.items()},
        problems=tuple(f"{p.path}: {p.what}" for p in found.scan.problems),
        remarks=tuple(_remarks(plan, found.identity)),
        packages={k: v for code in found.identity.functions.values() for k, v in code.packages.items()},
        logged=frozenset(run_of_log(log[0]) for log in logs if log),
        failed=tuple(failed),
    )


def insist(plan: Plan, identity: Identity) -> None:
    """Refuse values without lasting identity that code uses: no change in them would be noticed."""
    named = {code: plan.steps[k].function_name for code, k in identity.codes.firsts()}
    for key, code in identity.functions.items():
        if code.not_followed:
            raise IdentityError(
                f"'{named[key]}' uses {', '.join(code.not_followed)}, without lasting identity, in a strict pipeline. "
                "Pass what it is made from as an argument, or register_identity(its class, ...), or leave out "
                "strict=True. Nothing was run."
            )


def _remarks(plan: Plan, identity: Identity) -> list[str]:
    found = []
    named = {code: plan.steps[k].function_name for code, k in identity.codes.firsts()}
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
    moves = {d.stem: plan.stems[k] for k, d in found.decisions.told.items() if d.record and d.stem != plan.stems[k]}
    replaced = [plan.stems[k] for k in _replaced(found) if plan.stems[k] not in moves]
    # Of what is not done a schema need not say whose it was.
    store.drop(*(stem for stem in replaced if records[stem].outcome.status is not Status.DONE))
    shelve(
        [stem for stem in replaced if records[stem].outcome.status is Status.DONE],
        {stem: record for stem, record in records.items() if stem not in moves} if replaced else {},
        store,
        keep_old,
        then=lambda: _move_all(moves, records, store),
    )


def _replaced(found: Survey) -> Iterator[int]:
    """Steps under whose stems something else lies."""
    records, stems, prints = found.scan.records, found.plan.stems, found.identity.fingerprints
    if not records:
        return
    runs = found.decisions.runs
    for k in sorted({*compress(range(len(runs)), runs), *found.decisions.told}):
        record = records.get(stems[k])
        if record is not None and record.fingerprint != prints[k]:
            yield k


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
    store.move_all(aside)
    then()
    former: dict[str, list[str]] = {stem: [] for stem in aside}
    for place in {*records, *aside.values()} if aside else ():
        stem = place.removeprefix(SHELF).rpartition("@")[0]
        if place.startswith(SHELF) and stem in former:
            former[stem].append(place)
    store.drop(*(each for places in former.values() for each in sorted(places)[: max(0, len(places) - keep_old)]))


def _move_all(moves: Mapping[str, str], records: Mapping[str, Record], store: Store) -> None:
    """Each to a place that is free by then; where they form a circle, one steps aside."""
    waiting = dict(moves)
    while waiting:
        source = next(iter(waiting))
        chain = [source]
        while (target := waiting[chain[-1]]) in waiting and target != source:
            chain.append(target)
        if target == source:
            place = on_shelf(source, records[source])
            store.move(source, place)
            waiting[place] = waiting.pop(source)
            chain[0] = place
        for each in reversed(chain):
            store.move(each, waiting.pop(each))
