"""Steps to phases; the schema file; how two plans differ; the plan's digest.

The schema is written for people (phases, argument texts) and compared by fingerprints only. Its format:

    {"0": [entry, …], "1": […], "ezpyp": {format, pipeline_id, digest, store, script, when, functions,
     inputs}}

An entry has the keys that users of ezpyp know (args, cache_location, depends_on, function_bytes, function_name,
kwargs, name, status_ext, step_ext, fingerprint) and those that ezpyp reads back: arguments (parameter: JSON value),
arguments_digest, code (a key of "functions"), codec, inputs (names to digests; what is in those that hold several files
is in the "inputs" of "ezpyp", by digest), named, stem (of its files), title, upstream (names).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from ezpyp import fingerprint
from ezpyp.errors import CyclicDependency, InitializationError, MissingDependency, StoreError
from ezpyp.inputs import Memory, Seen
from ezpyp.policy import Retry
from ezpyp.steps import Group, Step

if TYPE_CHECKING:
    from ezpyp.graph import Code

FORMAT = 1
SCHEMA_FILE = "pipeline.schema"
SUMMARY_FILE = "pipeline.summary"


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """The plan as the ledger sees it: integers only. Index order is phase order and then call order: the priority."""

    #: Indices of the nearest dependencies of each step.
    parents: tuple[tuple[int, ...], ...]
    #: The phase of each step; never decreasing along the index.
    phases: tuple[int, ...]
    #: The failure group of each step, -1 for none, and how many members of each group may fail.
    groups: tuple[int, ...]
    allowed: tuple[int, ...] = ()
    #: Steps that are tried again.
    retries: Mapping[int, Retry] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The steps of a pipeline in the order of their phases. Made from memory alone, the same on every rank."""

    pipeline_id: str
    steps: tuple[Step, ...]
    graph: Graph
    #: The file stem of each step.
    stems: tuple[str, ...]

    @cached_property
    def index(self) -> dict[str, int]:
        """Names to indices."""
        return {step.name: k for k, step in enumerate(self.steps)}

    @cached_property
    def phases(self) -> list[list[Step]]:
        """The steps of each phase."""
        found: list[list[Step]] = []
        for step, phase in zip(self.steps, self.graph.phases, strict=True):
            if phase == len(found):
                found.append([])
            found[phase].append(step)
        return found

    @cached_property
    def digests(self) -> list[bytes]:
        """What each rank believes each step to be: name, code objects, arguments and edges. No file is read."""
        codes: dict[int, bytes] = {}
        found = []
        for k, step in enumerate(self.steps):
            code = codes.get(id(step.function))
            if code is None:
                code = codes[id(step.function)] = fingerprint.code_digest(step.function)
            edges = ",".join(map(str, self.graph.parents[k]))
            text = f"{step.name}\0{step.options.codec}\0{edges}\0".encode()
            found.append(blake2b(text + code + step.arguments.digest, digest_size=16).digest())
        return found

    @cached_property
    def digest(self) -> bytes:
        """One digest for the whole plan: equal on two ranks exactly if they mean the same run."""
        whole = blake2b(self.pipeline_id.encode(), digest_size=16)
        whole.update(b"".join(self.digests))
        return whole.digest()


def organise(steps: Sequence[Step], *, pipeline_id: str, stems: Callable[[Sequence[str]], Mapping[str, str]]) -> Plan:
    """Order steps by phase and resolve what they depend on.

    Raises:
        InitializationError: no steps; MissingDependency: a name or step that is not among them;
        CyclicDependency: steps that wait for each other.
    """
    if not steps:
        raise InitializationError(f"Pipeline '{pipeline_id}' has no steps. Call a decorated function to add one.")
    named = {step.name: k for k, step in enumerate(steps)}
    parents = [_parents(step, named, steps) for step in steps]
    depths = _depths(parents, steps)
    order = sorted(range(len(steps)), key=depths.__getitem__)
    place = [0] * len(steps)
    for new, old in enumerate(order):
        place[old] = new
    ordered = tuple(steps[old] for old in order)
    groups, allowed = _groups(ordered)
    graph = Graph(
        parents=tuple(tuple(sorted(place[p] for p in parents[old])) for old in order),
        phases=tuple(depths[old] for old in order),
        groups=groups,
        allowed=allowed,
        retries={k: step.options.retry for k, step in enumerate(ordered) if step.options.retry.times},
    )
    by_name = stems([step.name for step in steps])
    return Plan(
        pipeline_id=pipeline_id, steps=ordered, graph=graph, stems=tuple(by_name[step.name] for step in ordered)
    )


def _parents(step: Step, named: Mapping[str, int], steps: Sequence[Step]) -> list[int]:
    found = []
    for each in step.depends_on:
        name = each if isinstance(each, str) else each.name
        place = named.get(name)
        if place is None:
            raise MissingDependency(
                f"Step '{step.name}' depends on '{name}', which is not a step of this pipeline. Known: {_some(named)}."
            )
        if not isinstance(each, str) and steps[place] is not each:
            raise MissingDependency(
                f"Step '{step.name}' depends on '{name}' of another pipeline ('{_owner(each)}'). Results of another "
                "pipeline are passed as values: execute it first and use its result()."
            )
        found.append(place)
    return list(dict.fromkeys(found))


def _owner(step: Step) -> str:
    return str(getattr(step.home, "pipeline_id", "?"))


def _depths(parents: Sequence[Sequence[int]], steps: Sequence[Step]) -> list[int]:
    """Depth in the graph. Calls mostly come after what they depend on; what does not is left to graphlib."""
    depths = [-1] * len(parents)
    order: Iterable[int] = range(len(parents))
    if any(p >= k for k, each in enumerate(parents) for p in each):
        from graphlib import CycleError, TopologicalSorter

        try:
            order = list(TopologicalSorter(dict(enumerate(parents))).static_order())
        except CycleError as error:
            circle = " → ".join(f"'{steps[k].name}'" for k in reversed(error.args[1]))
            raise CyclicDependency(f"These steps wait for each other: {circle}. Take one dependency away.") from None
    for k in order:
        depths[k] = 1 + max((depths[p] for p in parents[k]), default=-1)
    return depths


def _groups(steps: Sequence[Step]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Numbers for the failure groups, and how many members of each may fail."""
    numbers: dict[Group, int] = {}
    members = [-1 if s.group is None else numbers.setdefault(s.group, len(numbers)) for s in steps]
    sizes = [0] * len(numbers)
    for number in members:
        if number >= 0:
            sizes[number] += 1
    return tuple(members), tuple(g.allowance.of_members(sizes[k]) for g, k in numbers.items())


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The lasting identity of every step of a plan; computed by one rank, since it reads the sources."""

    fingerprints: tuple[str, ...]
    #: For each step, the key of its function in `functions`.
    codes: tuple[str, ...]
    functions: Mapping[str, Code]
    #: What steps read, by their indices, in the order of their arguments.
    inputs: Mapping[int, tuple[Seen, ...]]


def identify(plan: Plan, memory: Memory | None = None) -> Identity:
    """Fingerprint every step: code, arguments, codec, a name given by the user, inputs, and the fingerprints upstream.

    Reads each source file once. Each function is followed once however many steps call it. A version that the user gave
    stands for the code. Files that steps read are looked at through the memory.

    Raises:
        InitializationError: an input is not there or cannot be read; the text names the step and the argument.
    """
    memory = memory or Memory()
    functions: dict[str, Code] = {}
    known: dict[tuple[int, ...], str] = {}
    from ezpyp.code import Follower  # enters here: only the rank that reads sources needs it

    follower = Follower()
    prints: list[str] = []
    codes: list[str] = []
    inputs: dict[int, tuple[Seen, ...]] = {}
    for k, step in enumerate(plan.steps):
        uses = (*step.options.uses, *step.arguments.met)
        leads = (id(step.function), *map(id, uses))
        code = known.get(leads)
        if code is None:
            with memory.asked():
                followed = follower.follow(step.function, uses=uses)
            _check_asked(memory, step)
            code = known[leads] = followed.digest
            functions[code] = followed
        if step.arguments.inputs:
            inputs[k] = _look(memory, step)
        codes.append(code)
        prints.append(_fingerprint(plan, step, code, prints, inputs.get(k, ())))
    return Identity(fingerprints=tuple(prints), codes=tuple(codes), functions=functions, inputs=inputs)


def _look(memory: Memory, step: Step) -> tuple[Seen, ...]:
    found = []
    for thing in step.arguments.inputs:
        try:
            found.append(memory.look(thing))
        except InitializationError as error:
            holder = step.arguments.holder(thing, step.parameters)
            raise InitializationError(f"Step '{step.name}' reads {thing!r} ({holder}): {error}") from error
    return tuple(found)


def _check_asked(memory: Memory, step: Step) -> None:
    """Inputs that code leads to: what follows code bears whatever objects raise, so that it is told here."""
    for thing, error in memory.missed:
        raise InitializationError(
            f"Step '{step.name}' reads {thing!r} (a value that its code uses): {error}"
        ) from error


def _fingerprint(plan: Plan, step: Step, code: str, prints: Sequence[str], inputs: Sequence[Seen]) -> str:
    upstream = [prints[plan.index[source.name]] for source in step.arguments.sources()]
    order_only = sorted(prints[plan.index[s if isinstance(s, str) else s.name]] for s in step.after)
    return fingerprint.combine(
        code if step.options.version is None else f"version {step.options.version} of {step.function_name}",
        step.arguments.identity,
        step.options.codec,
        step.name if step.named else "",
        *upstream,
        b"after",
        *order_only,
        *((b"inputs", *(seen.digest for seen in inputs)) if inputs else ()),
    )


def schema(
    plan: Plan,
    *,
    cache_location: str,
    identity: Identity | None = None,
    store: str = "files",
    script: str = "",
    when: str = "",
) -> dict[str, Any]:
    """The plan as the schema file holds it. Without `identity` (before it is known) fingerprints are empty."""
    bytecode: dict[int, str] = {}
    found: dict[str, Any] = {}
    for k, step in enumerate(plan.steps):
        if id(step.function) not in bytecode:
            bytecode[id(step.function)] = _function_bytes(step.function)
        args, kwargs = step.texts()
        entry = {
            "args": args,
            "arguments": step.bound(),
            "arguments_digest": _arguments_digest(step),
            "cache_location": cache_location,
            "code": identity.codes[k] if identity else "",
            "codec": step.options.codec,
            "depends_on": f"[{', '.join(repr(plan.steps[p]) for p in plan.graph.parents[k])}]",
            "fingerprint": identity.fingerprints[k] if identity else "",
            "function_bytes": bytecode[id(step.function)],
            "function_name": step.function_name,
            "inputs": _inputs_entry(identity.inputs.get(k, ()) if identity else ()),
            "kwargs": kwargs,
            "name": step.name,
            "named": step.named,
            "status_ext": "status",
            "stem": plan.stems[k],
            "step_ext": "step",
            "title": step.title,
            "upstream": [plan.steps[p].name for p in plan.graph.parents[k]],
            "version": step.options.version,
        }
        found.setdefault(str(plan.graph.phases[k]), []).append(entry)
    found["ezpyp"] = {
        "format": FORMAT,
        "pipeline_id": plan.pipeline_id,
        "digest": fingerprint.combine(*(identity.fingerprints if identity else ())),
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


def encode_schema(content: Mapping[str, Any]) -> bytes:
    """The bytes of the schema file."""
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def read_schema(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
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
    """Every (phase, entry) of a schema, in order."""
    for phase in sorted((k for k in content if k != "ezpyp"), key=int):
        for entry in content[phase]:
            yield int(phase), entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """How a plan differs from a former one, by the names of steps. A step is the same if its fingerprint is, whatever
    its name.
    """

    new: tuple[str, ...]
    gone: tuple[str, ...]
    #: Changed steps by their names now, with what about them changed.
    changed: Mapping[str, tuple[str, ...]]
    #: What changed steps, and those that are the same under another name, were called.
    former: Mapping[str, str]

    def __bool__(self) -> bool:
        return bool(self.new or self.gone or self.changed)


NO_DIFFERENCES = Differences(new=(), gone=(), changed={}, former={})


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> Differences:
    """Compare two schemas. Only fingerprints decide; everything else explains.

    A step that is not in the other schema is taken for a changed one if there is one of the same function and arguments
    there, or else of the same name, that is not in this one.
    """
    old = {entry["name"]: entry for _, entry in entries(before)}
    now = {entry["name"]: entry for _, entry in entries(after)}
    prints = {entry["fingerprint"]: name for name, entry in old.items()}
    former = {name: prints[e["fingerprint"]] for name, e in now.items() if e["fingerprint"] in prints}
    known = {entry["fingerprint"] for entry in now.values()}
    lost = {name: entry for name, entry in old.items() if entry["fingerprint"] not in known}
    strange = {name: entry for name, entry in now.items() if name not in former}
    for alike in (_call, lambda entry: entry["name"]):
        places: dict[Any, list[str]] = {}
        for name, entry in lost.items():
            places.setdefault(alike(entry), []).append(name)
        for name, entry in list(strange.items()):
            if candidates := places.get(alike(entry)):
                former[name] = candidates.pop(0)
                del lost[former[name]], strange[name]
    edits: dict[tuple[str, str], list[str]] = {}
    changed = {
        name: tuple(
            _reasons(
                Pair(old=old[former[name]], now=entry, before=before, after=after),
                former,
                olds=old,
                nows=now,
                edits=edits,
            )
        )
        for name, entry in now.items()
        if name in former and old[former[name]]["fingerprint"] != entry["fingerprint"]
    }
    return Differences(new=tuple(strange), gone=tuple(lost), changed=changed, former=former)


def _call(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return entry["function_name"], entry["arguments_digest"], entry["named"] and entry["name"], len(entry["upstream"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A step then and now, with the schemas that hold it."""

    old: Mapping[str, Any]
    now: Mapping[str, Any]
    before: Mapping[str, Any]
    after: Mapping[str, Any]


def _reasons(
    pair: Pair,
    former: Mapping[str, str],
    *,
    olds: Mapping[str, Any],
    nows: Mapping[str, Any],
    edits: dict[tuple[str, str], list[str]],
) -> Iterator[str]:
    """What changed about a step. `edits` keeps what was found out about code that many steps share."""
    old, now = pair.old, pair.now
    if old.get("version") != now.get("version"):
        yield f"version {old.get('version')} -> {now.get('version')}"
    elif now.get("version") is None and old["code"] != now["code"]:
        codes = old["code"], now["code"]
        if codes not in edits:
            edits[codes] = explain_code(pair) or ["code changed"]
        yield from edits[codes]
    if old["codec"] != now["codec"]:
        yield f"codec {old['codec']} -> {now['codec']}"
    if (old["named"] or now["named"]) and old["name"] != now["name"]:
        yield f"name {old['name']} -> {now['name']}"
    then = [former.get(name, name) for name in now["upstream"]]
    if sorted(old["upstream"]) != sorted(then):
        yield f"depends on {_some(now['upstream'])}, before on {_some(old['upstream'])}"
    elif moved := [u for u, t in zip(now["upstream"], then, strict=True) if _prints(olds, t) != _prints(nows, u)]:
        yield f"{_UPSTREAM}{_some(moved)} changed"
    if old["arguments_digest"] != now["arguments_digest"]:
        yield from _argument_reasons(old["arguments"], now["arguments"])
    yield from _input_reasons(pair)


_UPSTREAM = "upstream "


def own_reasons(reasons: Iterable[str]) -> list[str]:
    """Of the reasons why a step changed those that are not with a step before it."""
    return [reason for reason in reasons if not reason.startswith(f"{_UPSTREAM}'")]


def _input_reasons(pair: Pair) -> Iterator[str]:
    then, now = pair.old.get("inputs", {}), pair.now["inputs"]
    for name in now:
        if name in then and then[name] != now[name]:
            members = (
                schema["ezpyp"].get("inputs", {}).get(digest)
                for schema, digest in ((pair.before, then[name]), (pair.after, now[name]))
            )
            yield f"input {name} changed{_member_reasons(*members)}"
    if pair.old["arguments_digest"] == pair.now["arguments_digest"]:
        return
    yield from (f"input {name} is new" for name in now if name not in then)
    yield from (f"input {name} is no longer read" for name in then if name not in now)


def _member_reasons(then: Mapping[str, str] | None, now: Mapping[str, str] | None) -> str:
    """Which files of several, and how: ` (b.nc changed, c.nc is new)`."""
    if then is None or now is None:
        return ""
    told = [f"{name} {'is new' if name not in then else 'changed'}" for name in now if then.get(name) != now[name]]
    told += [f"{name} is gone" for name in then if name not in now]
    return f" ({', '.join(told[:3])}{f' and {len(told) - 3} more' if len(told) > 3 else ''})"


def _prints(entries_by_name: Mapping[str, Any], name: str) -> str:
    return str(entries_by_name[name]["fingerprint"]) if name in entries_by_name else ""


def explain_code(pair: Pair) -> list[str]:
    """What changed in the code of a step, also where a version stands for it."""
    then, now = (
        schema["ezpyp"]["functions"].get(entry["code"], {}).get("parts", {})
        for schema, entry in ((pair.before, pair.old), (pair.after, pair.now))
    )
    return fingerprint.explain(then, now)


def _argument_reasons(old: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    visible = [k for k in {**old, **now} if old.get(k) != now.get(k)]
    for key in visible:
        yield f"argument {key}: {old.get(key, 'not given')!r} -> {now.get(key, 'not given')!r}"
    if not visible:
        yield "an argument has another content"


def compact(names: Iterable[str]) -> str:
    """Names as people write them: `load, train[0..11]`."""
    runs: dict[str, list[int]] = {}
    order: list[str] = []
    for name in names:
        base, bracket, rest = name.partition("[")
        numbered = bool(bracket) and rest.endswith("]") and rest[:-1].isdecimal()
        key = base if numbered else name
        if key not in runs:
            runs[key] = []
            order.append(key)
        if numbered:
            runs[key].append(int(rest[:-1]))
    return ", ".join(_range(key, sorted(runs[key])) for key in order)


def _range(base: str, numbers: list[int]) -> str:
    if not numbers:
        return base
    spans: list[list[int]] = []
    for n in numbers:
        if spans and spans[-1][1] == n - 1:
            spans[-1][1] = n
        else:
            spans.append([n, n])
    return f"{base}[{','.join(str(a) if a == b else f'{a}..{b}' for a, b in spans)}]"


def _some(names: Iterable[str], most: int = 5) -> str:
    listed = list(names)
    if not listed:
        return "nothing"
    return ", ".join(f"'{n}'" for n in listed[:most]) + (
        f" and {len(listed) - most} more" if len(listed) > most else ""
    )
