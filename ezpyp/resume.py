"""What a cache folder holds, against what a plan wants: what is done, what must run, and when to refuse.

Done by one rank; the others are told its Standing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ezpyp import plan as plans
from ezpyp.errors import SchemaConflictError, StoreError
from ezpyp.helper import pack
from ezpyp.plan import Differences, Identity, Plan
from ezpyp.steps import Status
from ezpyp.store import Record, Store, write_whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a pipeline stands before it runs. Small enough to be sent to every rank."""

    #: 16 bytes a step, in plan order.
    fingerprints: bytes
    #: What the folder says of each step: one signed byte.
    statuses: bytes
    #: Done steps that were given Failed values, with the indices of those inputs.
    missing: Mapping[int, tuple[int, ...]]
    #: Files that were found torn or foreign, with what is wrong: their steps run again.
    problems: tuple[str, ...] = ()
    #: Code that could not be followed by its source, and values without identity: said once.
    remarks: tuple[str, ...] = ()


def settle_in(plan: Plan, folder: str, store: Store, *, kind: str, script: str) -> Standing:
    """Compare the plan with the folder, refuse or write the schema, and say what is done.

    Raises:
        SchemaConflictError: the folder holds another plan. Nothing was changed.
        StoreError: the folder cannot be read or written.
    """
    identity = plans.identify(plan)
    scan = store.records()
    wanted = plans.schema(plan, cache_location=folder, identity=identity, store=kind, script=script, when=_now())
    before = plans.read_schema(folder)
    if before is not None:
        _admit(before, wanted, plan, folder, scan.records)
    if before is None or before["ezpyp"]["digest"] != wanted["ezpyp"]["digest"]:
        try:
            write_whole(Path(folder) / plans.SCHEMA_FILE, [plans.encode_schema(wanted)], sync=True)
        except OSError as error:
            raise StoreError(f"The cache folder {folder} cannot be written: {error.strerror or error}.") from error
    return _standing(plan, identity, scan.records, tuple(f"{p.path}: {p.what}" for p in scan.problems))


def _standing(plan: Plan, identity: Identity, records: Mapping[str, Record], problems: tuple[str, ...]) -> Standing:
    statuses = bytearray()
    missing: dict[int, tuple[int, ...]] = {}
    for k, stem in enumerate(plan.stems):
        record = records.get(stem)
        fits = record is not None and record.fingerprint == identity.fingerprints[k]
        status = record.outcome.status if record is not None and fits else Status.NOT_RUN
        statuses.append(status & 0xFF)
        if status is Status.DONE and record is not None and record.outcome.missing:
            missing[k] = tuple(plan.index[name] for name in record.outcome.missing if name in plan.index)
    return Standing(
        fingerprints=pack(identity.fingerprints),
        statuses=bytes(statuses),
        missing=missing,
        problems=problems,
        remarks=tuple(_remarks(plan, identity)),
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


def _admit(
    before: Mapping[str, Any], wanted: Mapping[str, Any], plan: Plan, folder: str, records: Mapping[str, Record]
) -> None:
    """Refuse another plan, but take changed steps that have no result to lose: fixing a failed step is the commonest
    edit.
    """
    if before["ezpyp"]["pipeline_id"] != plan.pipeline_id:
        raise SchemaConflictError(
            f"{folder} belongs to pipeline '{before['ezpyp']['pipeline_id']}', not to '{plan.pipeline_id}'. "
            "Use another cache folder. Nothing was run."
        )
    done = {r.name: r for r in records.values() if r.outcome.status is Status.DONE}
    old = {entry["name"]: entry["fingerprint"] for _, entry in plans.entries(before)}
    found = plans.differences(before, wanted)
    valuable = {
        name: reasons for name, reasons in found.changed.items() if name in done and done[name].fingerprint == old[name]
    }
    if found.new or found.gone or valuable:
        raise SchemaConflictError(_refusal(found, valuable, done, folder, len(plan.steps)))


def _refusal(
    found: Differences, valuable: Mapping[str, tuple[str, ...]], done: Mapping[str, Record], folder: str, total: int
) -> str:
    parts = []
    if valuable:
        since = min(done[name].outcome.when for name in valuable)
        hours = sum(done[name].outcome.seconds for name in valuable)
        parts.append(
            f"{len(valuable)} of {total} steps changed since {_minute(since)} ({_duration(hours)} of results): "
            f"{_why(valuable)}"
        )
    if found.new:
        parts.append(f"{len(found.new)} new: {_few(found.new)}")
    if found.gone:
        parts.append(f"{len(found.gone)} gone: {_few(found.gone)}")
    return (
        f"{'. '.join(parts)}. {folder} keeps the results of the former plan. "
        "Undo the change to continue there, or start apart: another cache folder. Nothing was run."
    )


def _why(changed: Mapping[str, tuple[str, ...]]) -> str:
    """Steps with the same reasons told together; those that changed only because of others come last."""
    by_reason: dict[tuple[str, ...], list[str]] = {}
    for name, reasons in changed.items():
        by_reason.setdefault(reasons, []).append(name)
    texts = [f"{_few(names)}: {'; '.join(reasons) or 'changed'}" for reasons, names in by_reason.items()]
    return ". ".join(texts[:5]) + (f". And {len(texts) - 5} more" if len(texts) > 5 else "")


def _few(names: list[str] | tuple[str, ...]) -> str:
    text = plans.compact(names)
    return text if len(text) <= 200 else f"{plans.compact(names[:5])}, …"


def _minute(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(when))


def _duration(seconds: float) -> str:
    if seconds >= 3600:
        return f"{seconds / 3600:.1f} hours"
    return f"{seconds / 60:.1f} minutes" if seconds >= 60 else f"{seconds:.1f} s"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def make_folder(path: str | os.PathLike[str]) -> str:
    """The absolute path of a cache folder, made if it is not there.

    Raises:
        StoreError: it cannot be made, or is a file.
    """
    folder = os.path.abspath(os.path.expanduser(os.fspath(path)))
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise StoreError(f"The cache folder {folder} cannot be made: {error.strerror or error}.") from error
    return folder
