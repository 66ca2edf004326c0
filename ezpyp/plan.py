"""Steps to phases: the plan, its digest, and the lasting identity of its steps."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING

from ezpyp import fingerprint
from ezpyp.edges import Edges
from ezpyp.errors import CyclicDependency, InitializationError, MissingDependency
from ezpyp.inputs import Memory, Seen
from ezpyp.naming import some
from ezpyp.policy import Retry
from ezpyp.steps import Group, Step

if TYPE_CHECKING:
    from ezpyp.graph import Code


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """The plan as the ledger sees it: integers only. Index order is phase order and then call order: the priority."""

    #: Indices of the nearest dependencies of each step, in increasing order.
    parents: Edges
    #: The phase of each step; never decreasing along the index.
    phases: Sequence[int]
    #: The failure group of each step, -1 for none, and how many members of each group may fail.
    groups: Sequence[int]
    allowed: tuple[int, ...] = ()
    #: Steps that are tried again.
    retries: Mapping[int, Retry] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Following:
    """Whose code counts, beside that of the user's own modules: what is not installed."""

    #: Modules that are followed although they are installed, and that are not although they are the user's.
    also: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    #: Packages whose versions count; True for all that a step's code leads to.
    packages: tuple[str, ...] | bool = ()

    def counted(self, versions: Mapping[str, str]) -> dict[str, str]:
        """Of the packages that a step's code leads to, those whose versions count."""
        if self.packages is True:
            return dict(versions)
        wanted = self.packages or ()
        return {name: version for name, version in versions.items() if name in wanted}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The steps of a pipeline in the order of their phases. Made from memory alone, the same on every rank."""

    pipeline_id: str
    steps: tuple[Step, ...]
    graph: Graph
    #: The file stem of each step.
    stems: tuple[str, ...]
    following: Following = Following()

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


def organise(
    steps: Sequence[Step],
    *,
    pipeline_id: str,
    stems: Callable[[Sequence[str]], Mapping[str, str]],
    following: Following = Following(),
) -> Plan:
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
        parents=Edges.of(sorted(place[p] for p in parents[old]) for old in order),
        phases=array("i", (depths[old] for old in order)),
        groups=groups,
        allowed=allowed,
        retries={k: step.options.retry for k, step in enumerate(ordered) if step.options.retry.times},
    )
    by_name = stems([step.name for step in steps])
    return Plan(
        pipeline_id=pipeline_id,
        steps=ordered,
        graph=graph,
        stems=tuple(by_name[step.name] for step in ordered),
        following=following,
    )


def _parents(step: Step, named: Mapping[str, int], steps: Sequence[Step]) -> list[int]:
    found = []
    for each in step.depends_on:
        name = each if isinstance(each, str) else each.name
        place = named.get(name)
        if place is None:
            raise MissingDependency(
                f"Step '{step.name}' depends on '{name}', which is not a step of this pipeline. Known: {some(named)}."
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


def _groups(steps: Sequence[Step]) -> tuple[Sequence[int], tuple[int, ...]]:
    """Numbers for the failure groups, and how many members of each may fail."""
    numbers: dict[Group, int] = {}
    members = array("i", (-1 if s.group is None else numbers.setdefault(s.group, len(numbers)) for s in steps))
    sizes = [0] * len(numbers)
    for number in members:
        if number >= 0:
            sizes[number] += 1
    return members, tuple(g.allowance.of_members(sizes[k]) for g, k in numbers.items())


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

    follower = Follower(fingerprint.UserModules(also=plan.following.also, never=plan.following.never))
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
        versions = plan.following.counted(functions[code].packages)
        prints.append(_fingerprint(plan, step, code, prints, inputs.get(k, ()), versions))
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


def _fingerprint(
    plan: Plan, step: Step, code: str, prints: Sequence[str], inputs: Sequence[Seen], versions: Mapping[str, str]
) -> str:
    upstream = [prints[plan.index[source.name]] for source in step.arguments.sources()]
    read: list[bytes | str] = [b"inputs", *(seen.digest for seen in inputs)] if inputs else []
    counted: list[bytes | str] = [b"packages", *(f"{n} {versions[n]}" for n in sorted(versions))] if versions else []
    order_only = sorted(prints[plan.index[s if isinstance(s, str) else s.name]] for s in step.after)
    return fingerprint.combine(
        code if step.options.version is None else f"version {step.options.version} of {step.function_name}",
        step.arguments.identity,
        step.options.codec,
        step.name if step.named else "",
        *upstream,
        b"after",
        *order_only,
        *read,
        *counted,
    )
