"""The schema file: the plan of a folder, for people to read and for the next run to compare.

It is written for people (phases, argument texts) and compared by fingerprints only. Its format:

    {"0": [entry, …], "1": […], "ezpyp": {format, pipeline_id, digest, store, script, when, functions,
     inputs}}

An entry has the keys that users of ezpyp know (args, cache_location, depends_on, function_bytes, function_name,
kwargs, name, status_ext, step_ext, fingerprint) and those that ezpyp reads back: arguments (parameter: JSON value),
arguments_digest, code (a key of "functions"), codec, inputs (names to digests; what is in those that hold several files
is in the "inputs" of "ezpyp", by digest), named, stem (of its files), title, upstream (names). A family of very many
steps is one entry, see `folding`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ezpyp.errors import StoreError
from ezpyp.folder import folding
from ezpyp.folder.folding import Fold
from ezpyp.identity import fingerprint
from ezpyp.identity.inputs import Seen
from ezpyp.model.fingerprints import Identity
from ezpyp.model.naming import SCHEMA_FILE
from ezpyp.model.plan import Plan
from ezpyp.model.steps import Step

if TYPE_CHECKING:
    from ezpyp.identity.graph import Code

FORMAT = 1


def of(
    plan: Plan,
    *,
    cache_location: str,
    identity: Identity | None = None,
    store: str = "files",
    script: str = "",
    when: str = "",
    folds: Sequence[Fold] | None = None,
) -> dict[str, Any]:
    """The plan as the schema file holds it. Without `identity` (before it is known) fingerprints are empty."""
    bytecode: dict[int, str] = {}
    found: dict[str, Any] = {}
    folded = {fold.start: fold for fold in (folding.folds(plan) if folds is None else folds)}
    k = 0
    while k < len(plan.steps):
        step, fold = plan.steps[k], folded.get(k)
        if id(step.function) not in bytecode:
            bytecode[id(step.function)] = _function_bytes(step.function)
        args, kwargs = step.texts()
        entry = {
            "args": args,
            "arguments": step.bound() if fold is None else {},
            "arguments_digest": _arguments_digest(step),
            "cache_location": cache_location,
            "code": identity.codes[k] if identity else "",
            "codec": step.options.codec,
            "depends_on": f"[{_depends_on(plan, k, fold)}]",
            "fingerprint": identity.fingerprints[k] if identity else "",
            "function_bytes": bytecode[id(step.function)],
            "function_name": step.function_name,
            "inputs": _inputs_entry(identity.inputs.get(k, ()) if identity else ()),
            "kwargs": kwargs,
            "name": step.name,
            "named": step.named,
            "status_ext": "status",
            "stem": plan.stems[k],
            "packages": plan.following.counted(identity.functions[identity.codes[k]].packages) if identity else {},
            "step_ext": "step",
            "title": step.title,
            "upstream": folding.spans(plan, plan.graph.parents[k]) if fold is None else [],
            "version": step.options.version,
        }
        if step.options.workdir and step.options.workdir.outputs:
            entry["outputs"] = [*step.options.workdir.outputs]
        if fold is not None:
            entry |= folding.entry(plan, fold)
            if identity:
                entry["fingerprint"] = folding.digest(identity.fingerprints, fold.start, fold.stop)
        found.setdefault(str(plan.graph.phases[k]), []).append(entry)
        k = fold.stop if fold is not None else k + 1
    found["ezpyp"] = {
        "format": FORMAT,
        "pipeline_id": plan.pipeline_id,
        "digest": folding.digest(identity.fingerprints, 0, len(plan.steps)) if identity else "",
        "store": store,
        "script": script,
        "when": when,
        "functions": {k: _code_entry(c) for k, c in (identity.functions if identity else {}).items()},
        "inputs": {
            seen.digest.hex(): dict(seen.members)
            for each in (identity.inputs if identity else {}).values()
            for seen in each
            if seen.members
        },
    }
    return found


def _depends_on(plan: Plan, k: int, fold: Fold | None) -> str:
    parents = plan.graph.parents[k]
    if fold is None and len(parents) <= folding.MOST:
        return ", ".join(repr(plan.steps[p]) for p in parents)
    entry = folding.spans(plan, parents) if fold is None else folding.entry(plan, fold)["upstream"]
    return ", ".join(entry)


def _arguments_digest(step: Step) -> str:
    """What tells calls apart in two runs: as the fingerprint, and by the names of files."""
    arguments = step.arguments
    labels = [each.label for each in arguments.inputs]
    return fingerprint.combine(arguments.identity, *labels) if labels else arguments.identity.hex()


def _inputs_entry(inputs: Sequence[Seen]) -> dict[str, str]:
    """Names to digests; a name that comes again is numbered."""
    found: dict[str, str] = {}
    for seen in inputs:
        name, number = seen.label, 1
        while name in found:
            number += 1
            name = f"{seen.label} ({number})"
        found[name] = seen.digest.hex()
    return found


def _code_entry(code: Code) -> dict[str, Any]:
    return {
        "parts": dict(code.parts),
        "packages": dict(code.packages),
        "not_followed": list(code.not_followed),
        "fallback": code.fallback,
    }


def _function_bytes(function: Callable[..., Any]) -> str:
    inner = getattr(function, "__func__", getattr(function, "func", function))
    code = getattr(inner, "__code__", None)
    return repr(code.co_code) if code is not None else repr(b"")


def encode(content: Mapping[str, Any]) -> bytes:
    """The bytes of the schema file."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def read(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The schema of a folder, None where there is none.

    Raises:
        StoreError: the file is torn, foreign, or of a newer format.
    """
    path = os.path.join(folder, SCHEMA_FILE)
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read())
        written = content["ezpyp"]["format"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path} is not a schema that ezpyp wrote ({type(error).__name__}: {error}). "
            "Move it away to start anew: results are found again by their fingerprints."
        ) from None
    if written > FORMAT:
        raise StoreError(f"{path} has format {written}; this ezpyp reads up to {FORMAT}. Upgrade ezpyp.")
    return dict(content)


def entries(content: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every (phase, entry) of a schema, in order; a folded family is one."""
    for phase in sorted((k for k in content if k != "ezpyp"), key=int):
        for entry in content[phase]:
            yield int(phase), entry
