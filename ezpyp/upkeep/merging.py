"""Several folders of one pipeline into one: by fingerprint, checksums verified, with the schema of the union.

Shares of a sweep meet under the same automatic names: `f[0]` of the second folder gets the next free number. The plan
that they are shares of finds every result by its fingerprint, whatever it is called.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ezpyp.errors import SchemaConflictError, StoreError
from ezpyp.folder import admission, archive, lock, runs
from ezpyp.folder import schema as schemas
from ezpyp.folder.differences import Pair, explain_code
from ezpyp.folder.entries import Entries
from ezpyp.folder.folding import FOLDED, Folded, fits, named
from ezpyp.identity import fingerprint
from ezpyp.model import naming
from ezpyp.model.naming import SCHEMA_FILE
from ezpyp.model.outcomes import Outcome, Status
from ezpyp.storage import transfer
from ezpyp.storage.opening import Problem, Record, Scan, Store, on_shelf, open_store
from ezpyp.system.files import make_folder, write_whole
from ezpyp.tuples import NamedTuple


class Merged(NamedTuple):
    """What came of it."""

    folder: str
    steps: int
    #: Results that are there now.
    done: int
    #: Steps that are not in the union: another of their name is.
    left_out: tuple[str, ...]
    #: Results that are torn, and were not taken.
    wrong: tuple[Problem, ...]


class _Part(NamedTuple):
    folder: str
    schema: Mapping[str, Any]
    store: Store
    scan: Scan

    def records(self) -> dict[str, list[Record]]:
        found: dict[str, list[Record]] = {}
        for record in self.scan.records.values():
            found.setdefault(record.fingerprint, []).append(record)
        return found


@dataclass(slots=True, kw_only=True)
class _Union:
    """The steps so far, by fingerprint, and what they are called."""

    #: (phase, entry)
    steps: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def merge(folders: Sequence[str | os.PathLike[str]], into: str | os.PathLike[str]) -> Merged:
    """Bring the results of folders together in one, which may be a cache of the same pipeline already.

    Nothing changes in the folders. A kill leaves a folder that can be merged into again.

    Raises:
        SchemaConflictError: they are not of one pipeline, or the same steps differ. Nothing was changed.
        CacheInUse: a run holds `into`. StoreError: a folder cannot be read, or `into` cannot be written.
    """
    parts = [_part(runs.open(each).folder) for each in folders]
    target = os.path.abspath(os.path.expanduser(into))
    if schemas.read(target) is not None:
        parts.insert(0, _part(target))
    elif os.path.isdir(target) and os.listdir(target):
        raise StoreError(f"{target} is no cache folder, and not empty. Give a new folder, or a cache folder.")
    if all(_plan_of(part) == _plan_of(parts[0]) for part in parts):
        with lock.acquire(make_folder(target)):
            return _gather(target, parts)
    parts = [part._replace(schema=_unfolded(part.schema, part.scan, part.folder)) for part in parts]
    _check(parts)
    union = _Union()
    for part in parts:
        _join(union, part)
    with lock.acquire(make_folder(target)):
        return _fill(target, union, parts)


def _part(folder: str) -> _Part:
    schema = schemas.read(folder)
    assert schema is not None
    store = open_store(schema["ezpyp"]["store"], folder)
    return _Part(folder=folder, schema=schema, store=store, scan=store.records())


def _plan_of(part: _Part) -> tuple[Any, ...]:
    """Equal for the same steps under the same names."""
    names = [(entry["name"], entry["stem"], entry["fingerprint"]) for _, entry in schemas.entries(part.schema)]
    return part.schema["ezpyp"]["pipeline_id"], names


def _gather(target: str, parts: Sequence[_Part]) -> Merged:
    """Shares of one plan: every step is called the same everywhere, and families of very many steps stay one."""
    entries = Entries(parts[0].schema)
    kind = admission.kind_of(target, "auto", len(entries))
    phases = {
        phase: [{**entry, "cache_location": target} for entry in parts[0].schema[phase]]
        for phase in parts[0].schema
        if phase != "ezpyp"
    }
    schema = {**phases, "ezpyp": {**parts[0].schema["ezpyp"], "store": kind, "when": _now()}}
    write_whole(f"{target}/{SCHEMA_FILE}", schemas.encoded(schema), sync=True)
    store = open_store(kind, target)
    here = store.records().records
    prints, wrong, done = dict(entries.alone()), list[Problem](), 0
    for place, stem in enumerate(entries.stems):
        found = ((part, part.scan.records.get(stem)) for part in parts)
        known = [(part, record) for part, record in found if record and fits(record, prints.get(place, ""))]
        done += _take_best(known, store, target, stem, here.get(stem), wrong)
    return _finished(target, parts, store, Merged(target, len(entries), done, (), tuple(wrong)))


def _unfolded(schema: Mapping[str, Any], scan: Scan, folder: str) -> dict[str, Any]:
    """The schema with an entry for each step: what was done of a family is known from its records."""

    def members(entry: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        if "count" not in entry:
            yield {**entry, "upstream": list(named(entry["upstream"]))}
            return
        folded = Folded(entry)
        rest = {k: v for k, v in entry.items() if k not in FOLDED}
        for i in range(entry["count"]):
            member = folded.member(i)
            record = scan.records.get(member.name)
            known = record.fingerprint if record is not None else fingerprint.combine("unknown", folder, member.name)
            yield {
                **rest,
                **member._asdict(),
                "stem": member.name,
                "fingerprint": known,
                "arguments_digest": fingerprint.combine(member.args, member.kwargs),
            }

    phases = {phase: [one for each in schema[phase] for one in members(each)] for phase in schema if phase != "ezpyp"}
    return {**phases, "ezpyp": schema["ezpyp"]}


def _check(parts: Sequence[_Part]) -> None:
    """Refuse other pipelines, and steps whose code is not the same everywhere."""
    known: dict[Any, tuple[_Part, Mapping[str, Any]]] = {}
    for part in parts:
        ids = [each.schema["ezpyp"]["pipeline_id"] for each in (parts[0], part)]
        if ids[0] != ids[1]:
            raise SchemaConflictError(
                f"{part.folder} belongs to pipeline '{ids[1]}', {parts[0].folder} to '{ids[0]}'. Nothing was merged."
            )
        for _, entry in schemas.entries(part.schema):
            other, former = known.setdefault(_call(entry), (part, entry))
            if _made_by(former) != _made_by(entry):
                pair = Pair(old=former, now=entry, before=other.schema, after=part.schema)
                why = "; ".join(explain_code(pair)) or "its code, version or codec"
                raise SchemaConflictError(
                    f"'{entry['name']}' of {part.folder} is not what it is in {other.folder}: {why}. Run one of them "
                    "again with the code of the other (--on-change rerun). Nothing was merged."
                )


def _call(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return entry["function_name"], entry["arguments_digest"], entry["named"] and entry["name"]


def _made_by(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return entry["code"] if entry.get("version") is None else None, entry.get("version"), entry["codec"]


def _join(union: _Union, part: _Part) -> None:
    """Add the steps of a part that are not there yet, under names that are free."""
    called: dict[str, str] = {}
    for phase, entry in schemas.entries(part.schema):
        name, print_ = entry["name"], entry["fingerprint"]
        if print_ in union.steps:
            called[name] = union.steps[print_][1]["name"]
            continue
        if any(each not in called for each in entry["upstream"]):
            union.left_out.append(f"{name} of {part.folder}")
            continue
        if entry["named"] and name in union.names:
            if _call(union.steps[union.names[name]][1]) != _call(entry):
                raise SchemaConflictError(
                    f"'{name}' of {part.folder} has other arguments than elsewhere. Nothing was merged."
                )
            union.left_out.append(f"{name} of {part.folder}")
            continue
        called[name] = _free(name, union.names)
        union.names[called[name]] = print_
        union.steps[print_] = phase, _renamed(entry, called)


def _free(name: str, taken: Mapping[str, str]) -> str:
    base, number = name.partition("[")[0], 0
    found = name
    while found in taken:
        number += 1
        found = f"{base}[{number}]"
    return found


def _renamed(entry: Mapping[str, Any], called: Mapping[str, str]) -> dict[str, Any]:
    changed = {old: called[old] for old in entry["upstream"] if called[old] != old}

    def text(of: str) -> str:
        # A name ends where no longer one can go on.
        return re.sub(
            "|".join(rf"{re.escape(old)}(?![\w\[])" for old in changed) or r"(?!)", lambda m: changed[m[0]], of
        )

    texts = {key: text(entry[key]) for key in ("args", "kwargs", "depends_on")}
    upstream = [called[old] for old in entry["upstream"]]
    return {**entry, **texts, "name": called[entry["name"]], "upstream": upstream}


def _fill(target: str, union: _Union, parts: Sequence[_Part]) -> Merged:
    """The schema first: where a kill leaves the rest undone, the same command goes on."""
    entries = [entry for _, entry in union.steps.values()]
    own = {e["name"]: e["stem"] for _, e in schemas.entries(parts[0].schema)} if parts[0].folder == target else {}
    stems = {**naming.stems([*own, *(entry["name"] for entry in entries)]), **own}
    kind = admission.kind_of(target, "auto", len(entries))
    store = open_store(kind, target)
    known = [(part, part.records()) for part in parts]
    for entry in entries:
        entry |= {"stem": stems[entry["name"]], "cache_location": target}
    write_whole(f"{target}/{SCHEMA_FILE}", schemas.encoded(_schema(union, parts, kind)), sync=True)
    done, wrong, here = 0, list[Problem](), store.records().records
    for entry in entries:
        found = [(part, record) for part, records in known for record in records.get(entry["fingerprint"], ())]
        done += _take_best(found, store, target, entry["stem"], here.get(entry["stem"]), wrong)
    return _finished(target, parts, store, Merged(target, len(entries), done, tuple(union.left_out), tuple(wrong)))


def _finished(target: str, parts: Sequence[_Part], store: Store, merged: Merged) -> Merged:
    """What belongs to no step."""
    store.sync()
    for part in parts:
        if part.folder != target:
            logs = (part.scan.records[stem].outcome.log for stem in part.scan.records.notable())
            archive.link(part.folder, target, {log[0] for log in logs if log})
    runs.open(target).summary().write()
    return merged


def _take_best(
    found: Sequence[tuple[_Part, Record]],
    store: Store,
    target: str,
    stem: str,
    former: Record | None,
    wrong: list[Problem],
) -> bool:
    """Take the best that there is of a step; whether it is done then. `former` lies in its place."""
    for part, record in sorted(found, key=lambda each: _rank(each[1].outcome)):
        try:
            _take(record, part, store, target, stem, former)
            return record.outcome.status is Status.DONE
        except StoreError as error:
            wrong.append(Problem(path=f"{part.folder}/{record.outcome.location}", what=str(error)))
    return False


def _rank(outcome: Outcome) -> tuple[bool, bool, int]:
    """Best first: a result, one that was dropped, what failed, the rest."""
    return outcome.status is not Status.DONE, outcome.dropped, -outcome.attempt


def _take(record: Record, part: _Part, store: Store, target: str, stem: str, former: Record | None) -> None:
    if former is not None and former.fingerprint != record.fingerprint:
        store.move(stem, on_shelf(stem, former))
    if part.folder != target:
        transfer.take(record, part.store, part.folder, store, target, stem)
    elif record.outcome.location and not record.outcome.dropped:
        store.get(record)
        transfer.verify_files(record, target)


def _schema(union: _Union, parts: Sequence[_Part], kind: str) -> dict[str, Any]:
    abouts = [part.schema["ezpyp"] for part in parts]
    found: dict[str, Any] = {}
    for phase, entry in sorted(union.steps.values(), key=lambda each: each[0]):
        found.setdefault(str(phase), []).append(entry)
    together = {
        key: {k: v for about in reversed(abouts) for k, v in about.get(key, {}).items()}
        for key in ("functions", "inputs")
    }
    prints = [entry["fingerprint"] for _, entry in schemas.entries(found)]
    found["ezpyp"] = {**abouts[0], **together, "digest": fingerprint.combine(*prints), "store": kind, "when": _now()}
    return found


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def told(merged: Merged) -> Iterator[str]:
    """For people."""
    yield f"{merged.folder}: {merged.done:,} of {merged.steps:,} steps done\n"
    yield from (f"  left out: {each}: another step is called so\n" for each in merged.left_out)
    yield from (f"  not taken: {problem.path}: {problem.what}\n" for problem in merged.wrong)
