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
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice, zip_longest
from typing import TYPE_CHECKING, Any, overload

from ezpyp.errors import StoreError
from ezpyp.folder import folding
from ezpyp.folder.folding import Fold
from ezpyp.identity import fingerprint
from ezpyp.identity.inputs import Seen
from ezpyp.identity.outline import describe
from ezpyp.model.arguments import Arguments
from ezpyp.model.fingerprints import Identity
from ezpyp.model.naming import SCHEMA_FILE
from ezpyp.model.plan import Plan
from ezpyp.model.steps import Step, bound

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
    planned = _Planned(plan, cache_location, identity, folding.folds(plan) if folds is None else folds)
    phases, found, start = plan.graph.phases, dict[str, Any](), 0
    while start < len(phases):
        stop = bisect_right(phases, phases[start])
        found[str(phases[start])] = _Phase(planned, range(start, stop))
        start = stop
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


class _Planned:
    """A plan, of which entries are made."""

    def __init__(self, plan: Plan, cache_location: str, identity: Identity | None, folds: Sequence[Fold]) -> None:
        self._plan, self._cache_location, self._identity = plan, cache_location, identity
        self.folds = folds
        #: What entries have in common, by definition and code.
        self._common: dict[tuple[int, str], dict[str, Any]] = {}

    def between(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """The entries of these steps, of which none is folded."""
        plan, identity = self._plan, self._identity
        steps, parents = plan.steps, plan.graph.parents
        for k in range(start, stop):
            step, code = steps[k], identity.codes[k] if identity else ""
            name, (args, kwargs) = step.name, step.arguments_shown()
            common = self._common.get((id(step.family.definition), code))
            if common is None:
                common = self._common[id(step.family.definition), code] = self._shared(step, code)
            entry = common.copy()
            before = parents[k]
            names = folding.spans(plan, before) if before else []
            entry["args"], entry["kwargs"] = describe(args, kwargs)
            entry["arguments"] = bound(step.parameters, args, kwargs)
            entry["arguments_digest"] = _arguments_digest(step.arguments)
            few = len(before) <= folding.MOST
            entry["depends_on"] = f"[{', '.join((repr(steps[p]) for p in before) if few else names)}]"
            entry["fingerprint"] = identity.fingerprints[k] if identity else ""
            entry["inputs"] = _inputs_entry(identity.inputs.get(k, ()) if identity else ())
            entry["name"], entry["stem"], entry["upstream"] = name, plan.stems.of(step), names
            yield entry

    def known(self, start: int, stop: int) -> Iterator[tuple[str, str]]:
        """Names and fingerprints of these steps, of which none is folded."""
        prints = self._identity.fingerprints if self._identity else None
        for k, step in enumerate(self._plan.steps[start:stop], start):
            yield step.name, prints[k] if prints is not None else ""

    def known_whole(self, fold: Fold) -> tuple[str, str]:
        """The name and the fingerprint of a folded family."""
        return fold.name, folding.digest(self._identity.fingerprints, fold.start, fold.stop) if self._identity else ""

    def whole(self, fold: Fold) -> dict[str, Any]:
        """The entry of a folded family."""
        (first,) = self.between(fold.start, fold.start + 1)
        own = folding.entry(self._plan, fold)
        entry = {**first, **own, "depends_on": f"[{', '.join(own['upstream'])}]"}
        entry["fingerprint"] = self.known_whole(fold)[1]
        return entry

    def _shared(self, step: Step, code: str) -> dict[str, Any]:
        """All keys of an entry, in their order, with the values that are the same for all steps of a definition."""
        plan, identity, room = self._plan, self._identity, step.options.workdir
        return {
            "args": "",
            "arguments": {},
            "arguments_digest": "",
            "cache_location": self._cache_location,
            "code": code,
            "codec": step.options.codec,
            "depends_on": "",
            "fingerprint": "",
            "function_bytes": _function_bytes(step.function),
            "function_name": step.function_name,
            "inputs": {},
            "kwargs": "",
            "name": "",
            "named": step.named,
            "status_ext": "status",
            "stem": "",
            "packages": plan.following.counted(identity.functions[code].packages) if identity else {},
            "step_ext": "step",
            "title": step.title,
            "upstream": [],
            "version": step.options.version,
            **({"outputs": [*room.outputs]} if room and room.outputs else {}),
        }


class _Phase(Sequence[dict[str, Any]]):
    """The entries of a phase, made when they are looked at: those of very many steps need not be in memory."""

    def __init__(self, planned: _Planned, steps: range) -> None:
        self._planned, self._steps = planned, steps
        self._folds = [fold for fold in planned.folds if fold.start in steps]

    def __len__(self) -> int:
        return len(self._steps) - sum(fold.stop - fold.start - 1 for fold in self._folds)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        k = self._steps.start
        for fold in self._folds:
            yield from self._planned.between(k, fold.start)
            yield self._planned.whole(fold)
            k = fold.stop
        yield from self._planned.between(k, self._steps.stop)

    def known(self) -> Iterator[tuple[str, str]]:
        """The name and the fingerprint of each entry, without making it."""
        k = self._steps.start
        for fold in self._folds:
            yield from self._planned.known(k, fold.start)
            yield self._planned.known_whole(fold)
            k = fold.stop
        yield from self._planned.known(k, self._steps.stop)

    @overload
    def __getitem__(self, place: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, place: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, place: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        """Makes every entry up to there."""
        if isinstance(place, slice):
            return [*self][place]
        return next(islice(self, range(len(self))[place], None))


def _arguments_digest(arguments: Arguments) -> str:
    """What tells calls apart in two runs: as the fingerprint, and by the names of files."""
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


def encoded(content: Mapping[str, Any]) -> Iterator[bytes]:
    """The bytes of the schema file, in pieces. Of very many entries, each is one line."""
    phases = {key: value for key, value in content.items() if key != "ezpyp"}
    if sum(map(len, phases.values())) <= folding.MOST:
        listed = {**{key: list(entries) for key, entries in phases.items()}, "ezpyp": content["ezpyp"]}
        yield (json.dumps(listed, indent=2, ensure_ascii=False) + "\n").encode()
        return
    line = json.JSONEncoder(ensure_ascii=False).encode
    yield b"{\n"
    for key, entries in phases.items():
        yield f'  "{key}": [\n'.encode()
        made, before = iter(entries), ""
        while lines := [*map(line, islice(made, folding.MOST))]:
            yield (before + ",\n".join(lines)).encode()
            before = ",\n"
        yield b"\n  ],\n"
    yield f'  "ezpyp": {json.dumps(content["ezpyp"], ensure_ascii=False)}\n}}\n'.encode()


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


#: What comes last in a schema is looked for in so many bytes.
_TAIL = 1 << 20


def about(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What the schema of a folder says of it as a whole, None where there is none: of a long one nothing else is read.

    Raises:
        StoreError: as `read`.
    """
    try:
        with open(os.path.join(folder, SCHEMA_FILE), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            _, begun, text = file.read().rpartition(b'\n  "ezpyp": {')
        found = json.loads(b"{" + text.rstrip()[:-1]) if begun else {}
        if found.get("format") == FORMAT:
            return dict(found)
    except FileNotFoundError:
        return None
    except ValueError:
        pass  # what is wrong is told by who reads all
    content = read(folder)
    return None if content is None else dict(content["ezpyp"])


def known(content: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The name and the fingerprint of every entry of a schema, in order."""
    for phase in sorted((k for k in content if k != "ezpyp"), key=int):
        listed = content[phase]
        yield from listed.known() if isinstance(listed, _Phase) else ((e["name"], e["fingerprint"]) for e in listed)


def alike(content: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two schemas have the same steps, under the same names and in the same order."""
    missing = object()
    return all(mine == its for mine, its in zip_longest(known(content), known(other), fillvalue=missing))


def entries(content: Mapping[str, Any]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Every (phase, entry) of a schema, in order; a folded family is one."""
    for phase in sorted((k for k in content if k != "ezpyp"), key=int):
        for entry in content[phase]:
            yield int(phase), entry
