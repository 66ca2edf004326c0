"""Steps to phases: the plan and its digest."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Union

from ezpyp.errors import CyclicDependency, InitializationError, MissingDependency
from ezpyp.identity import fingerprint
from ezpyp.model.arguments import Arguments
from ezpyp.model.columns import Columns
from ezpyp.model.edges import Edges
from ezpyp.model.naming import Stems, some
from ezpyp.model.places import Index, Parts, Places, PlannedStems, Retries
from ezpyp.model.policy import Retry
from ezpyp.model.register import Register
from ezpyp.model.steps import Family, Group, Step, Steps
from ezpyp.system.digests import blake2b
from ezpyp.tuples import NamedTuple


class Graph:
    """The plan as the ledger sees it: integers only. Index order is phase order and then call order: the priority.

    Attributes:
        parents: indices of the nearest dependencies of each step, in increasing order.
        phases: the phase of each step; never decreasing along the index.
        groups, allowed: the failure group of each step, -1 for none; and how many members of each group may fail.
        retries: steps that are tried again.
    """

    def __init__(
        self,
        *,
        parents: Edges,
        phases: Sequence[int],
        groups: Sequence[int],
        allowed: tuple[int, ...] = (),
        retries: Mapping[int, Retry] = {},
    ) -> None:
        self.parents, self.phases, self.groups, self.allowed, self.retries = parents, phases, groups, allowed, retries


class Following:
    """Whose code counts, beside that of the user's own modules: what is not installed."""

    def __init__(
        self, also: tuple[str, ...] = (), never: tuple[str, ...] = (), packages: tuple[str, ...] | bool = ()
    ) -> None:
        """
        Args:
            also, never: modules that are followed although they are installed, and that are not although they are the
                user's.
            packages: those whose versions count; True for all that a step's code leads to.
        """
        self.also, self.never, self.packages = also, never, packages

    def counted(self, versions: Mapping[str, str]) -> dict[str, str]:
        """Of the packages that a step's code leads to, those whose versions count."""
        if self.packages is True:
            return dict(versions)
        wanted = self.packages or ()
        return {name: version for name, version in versions.items() if name in wanted}


class Block(NamedTuple):
    """Steps that follow each other in the plan and are of one family."""

    start: int
    stop: int
    family: Family
    members: range


class Plan:
    """The steps of a pipeline in the order of their phases. Made from memory alone, the same on every rank; never
    changed.
    """

    def __init__(
        self,
        *,
        pipeline_id: str,
        steps: Steps,
        graph: Graph,
        stems: PlannedStems,
        register: Register,
        places: Places,
        following: Following = Following(),
    ) -> None:
        """
        Args:
            steps: in index order; a step is made when it is looked at.
            stems: the file stem of each step.
        """
        self.pipeline_id, self.steps, self.graph, self.stems = pipeline_id, steps, graph, stems
        self.register, self.places, self.following = register, places, following

    @cached_property
    def blocks(self) -> list[Block]:
        """The steps as runs of one family each: what is the same for a whole family is found out once."""
        ends = accumulate(len(members) for _, members in self.steps.parts)
        return [
            Block(end - len(members), end, family, members)
            for end, (family, members) in zip(ends, self.steps.parts, strict=True)
        ]

    @cached_property
    def index(self) -> Mapping[str, int]:
        """Names to indices."""
        return Index(self.register, self.places, self.steps)

    @cached_property
    def phases(self) -> list[Steps]:
        """The steps of each phase."""
        phases, found, start = self.graph.phases, [], 0
        while start < len(phases):
            stop = bisect_right(phases, phases[start])
            found.append(self.steps[start:stop])
            start = stop
        return found

    def block(self, k: int) -> Block:
        """The block that a step is in."""
        family, members, stop = self.steps.part(k)
        return Block(stop - len(members), stop, family, members)

    @cached_property
    def digests(self) -> list[bytes]:
        """What each rank believes each block to be: names, code objects, arguments and edges. No file is read."""
        codes: dict[int, bytes] = {}
        found = []
        for block in self.blocks:
            family, members, definition = block.family, block.members, block.family.definition
            code = codes.get(id(definition.function))
            if code is None:
                code = codes[id(definition.function)] = fingerprint.code_digest(definition.function)
            names = family.label if family.first is None else f"{family.label}[{family.first}]"
            edges = self.graph.parents.digest(block.start, block.stop)
            text = f"{names}\0{members!r}\0{definition.options.codec}\0".encode()
            found.append(blake2b(text + edges + code + _calls_digest(family, members), digest_size=16).digest())
        return found

    @cached_property
    def digest(self) -> bytes:
        """One digest for the whole plan: equal on two ranks exactly if they mean the same run."""
        whole = blake2b(self.pipeline_id.encode(), digest_size=16)
        whole.update(b"".join(self.digests))
        return whole.digest()

    def member_digests(self, block: Block) -> list[bytes]:
        """The same for each step of a block: to find the one that two ranks built differently."""
        family, edges = block.family, self.graph.parents
        code = fingerprint.code_digest(family.definition.function)
        return [
            family.name(member).encode() + code + family.calls[member].digest + edges.digest(k, k + 1)
            for k, member in zip(range(block.start, block.stop), block.members, strict=True)
        ]

    def frozen(self) -> Iterator[tuple[str, Arguments]]:
        """Names of steps with what was frozen for them; what a family shares comes once."""
        for family in self.register.families:
            calls = family.calls
            shared = [calls.shared] if isinstance(calls, Columns) else calls
            yield from ((family.name(k), each) for k, each in enumerate(shared))


def _calls_digest(family: Family, members: range) -> bytes:
    calls = family.calls
    if isinstance(calls, Columns):
        return calls.digest()
    return b"".join([calls[k].digest for k in members])


def organise(register: Register, *, pipeline_id: str, following: Following = Following()) -> Plan:
    """Order steps by phase and resolve what they depend on.

    Raises:
        InitializationError: no steps; MissingDependency: a name or step that is not among them;
        CyclicDependency: steps that wait for each other.
    """
    if not register:
        raise InitializationError(f"Pipeline '{pipeline_id}' has no steps. Call a decorated function to add one.")
    register.settle()
    needs = [_needs(family, register) for family in register.families]
    depths = _depths(register, needs)
    parts, phases = _ordered(register.families, depths)
    places = Places(register, parts)
    steps = Steps(parts=parts)
    groups, allowed = _groups(parts)
    retried = any(family.definition.options.retry.times for family in register.families)
    graph = Graph(
        parents=_parents(parts, needs, places),
        phases=phases,
        groups=groups,
        allowed=allowed,
        retries=Retries(steps) if retried else {},
    )
    return Plan(
        pipeline_id=pipeline_id,
        steps=steps,
        graph=graph,
        stems=PlannedStems(steps, _other_stems(register.families)),
        register=register,
        places=places,
        following=following,
    )


class _Needs(NamedTuple):
    """What the members of a family depend on.

    Attributes:
        all: what every member does. columns: steps of which each member depends on one.
        each: what each member does beside that, where calls are kept one by one.
    """

    all: Parts = ()
    columns: Sequence[tuple[Steps, int]] = ()
    each: Sequence[Steps] | None = None

    def steps(self) -> Iterator[tuple[Family, range]]:
        """Everything that any member depends on."""
        yield from self.all
        for column, _ in self.columns:
            yield from column.parts
        for one in self.each or ():
            yield from one.parts


_NOTHING = _Needs()


def _needs(family: Family, register: Register) -> _Needs:
    calls, after = family.calls, family.definition.after
    every = [_found(each, family, register) for each in after] if after else []
    if isinstance(calls, Columns):
        every += calls.shared.sources()
        columns = [(column.values, column.stride) for column in calls.deferred]
        if not every and not columns:
            return _NOTHING
        found = _Needs(Steps(every).parts, [(steps, stride) for steps, stride in columns if isinstance(steps, Steps)])
    elif any(call.deferred for call in calls):
        found = _Needs(Steps(every).parts, (), [Steps(call.sources()) for call in calls])
    elif not every:
        return _NOTHING
    else:
        found = _Needs(Steps(every).parts)
    for other, members in found.steps():
        if not register.holds(Step(other, members.start)):
            raise _missing(family, Step(other, members.start), register)
    return found


def _found(each: Step | str, family: Family, register: Register) -> Step:
    if isinstance(each, Step):
        return each
    step: Step | None = register.get(each)
    if step is None:
        raise MissingDependency(
            f"Step '{family.name(0)}' depends on '{each}', which is not a step of this pipeline. "
            f"Known: {some(register)}."
        )
    return step


def _missing(family: Family, other: Step, register: Register) -> MissingDependency:
    if other.name not in register:
        return MissingDependency(
            f"Step '{family.name(0)}' depends on '{other.name}', which is not a step of this pipeline. "
            f"Known: {some(register)}."
        )
    owner = getattr(other.home, "pipeline_id", "?")
    return MissingDependency(
        f"Step '{family.name(0)}' depends on '{other.name}' of another pipeline ('{owner}'). Results of another "
        "pipeline are passed as values: execute it first and use its result()."
    )


#: The phase of all members of a family, or of each.
_Depth = Union[int, "array[int]"]


def _depths(register: Register, needs: Sequence[_Needs]) -> list[_Depth]:
    """Depth in the graph. Families mostly come after what they depend on; what does not is left to graphlib."""
    found: list[_Depth] = []
    for family, need in zip(register.families, needs, strict=True):
        if need is _NOTHING:
            found.append(0)
        elif any(other.number >= family.number for other, _ in need.steps()):
            return _depths_in_any_order(register, needs)
        else:
            found.append(_depth(family, need, found))
    return found


def _depth(family: Family, need: _Needs, found: Sequence[_Depth]) -> _Depth:
    """One below the deepest that each member depends on."""
    if all(isinstance(found[other.number], int) for other, _ in need.steps()):
        least = _deepest(need.all, found)
        if need.each is None and all(_even(steps.parts, found) for steps, _ in need.columns):
            return max([least, *(_deepest(steps.parts, found) for steps, _ in need.columns)])
        if need.each is not None and len(family) == 1:
            return max(least, _deepest(need.each[0].parts, found))
    depths = array("i", (_deepest(parts, found) for parts in _of_members(need, range(len(family)))))
    return depths[0] if len(set(depths)) == 1 else depths


def _even(parts: Parts, found: Sequence[_Depth]) -> bool:
    return len({found[other.number] for other, _ in parts}) <= 1


def _deepest(parts: Parts, found: Sequence[_Depth]) -> int:
    """The phase after the last of these."""
    deepest = -1
    for other, members in parts:
        depth = found[other.number]
        deepest = max(deepest, depth if isinstance(depth, int) else max(depth[members.start : members.stop]))
    return 1 + deepest


def _of_members(need: _Needs, members: range) -> Iterator[list[tuple[Family, range]]]:
    """What each of these members depends on."""
    for member in members:
        parts = [*need.all]
        for steps, stride in need.columns:
            family, at = steps.find(member // stride % len(steps))
            parts.append((family, range(at, at + 1)))
        if need.each is not None:
            parts += need.each[member].parts
        yield parts


def _depths_in_any_order(register: Register, needs: Sequence[_Needs]) -> list[_Depth]:
    """The same step by step, where a family comes before what it depends on."""
    from graphlib import CycleError, TopologicalSorter

    families = register.families
    first = [0, *accumulate(map(len, families))]
    parents: list[list[int]] = []
    for family, need in zip(families, needs, strict=True):
        for parts in _of_members(need, range(len(family))):
            parents.append([first[other.number] + k for other, members in parts for k in members])
    try:
        order = list(TopologicalSorter(dict(enumerate(parents))).static_order())
    except CycleError as error:
        names = list(register)
        circle = " → ".join(f"'{names[k]}'" for k in reversed(error.args[1]))
        raise CyclicDependency(f"These steps wait for each other: {circle}. Take one dependency away.") from None
    depths = array("i", bytes(4 * len(parents)))
    for k in order:
        depths[k] = 1 + max((depths[p] for p in parents[k]), default=-1)
    mine = [depths[first[k] : first[k + 1]] for k in range(len(families))]
    return [each[0] if len(set(each)) == 1 else each for each in mine]


def _ordered(families: Sequence[Family], depths: Sequence[_Depth]) -> tuple[list[tuple[Family, range]], array[int]]:
    """The steps by phase and then in the order of their calls, and the phase of each."""
    runs: list[tuple[int, int, Family, range]] = []
    for family, depth in zip(families, depths, strict=True):
        if isinstance(depth, int):
            if len(family):
                runs.append((depth, len(runs), family, range(len(family))))
            continue
        start = 0
        while start < len(depth):
            stop = next((k for k in range(start, len(depth)) if depth[k] != depth[start]), len(depth))
            runs.append((depth[start], len(runs), family, range(start, stop)))
            start = stop
    runs.sort(key=lambda run: run[:2])
    phases = array("i")
    for depth, _, _, members in runs:
        phases.extend(array("i", [depth]) * len(members))
    return [(family, members) for _, _, family, members in runs], phases


def _parents(parts: Parts, needs: Sequence[_Needs], places: Places) -> Edges:
    """What each step depends on, as indices."""
    first, flat = array("q", [0]), array("i")
    for family, members in parts:
        need = needs[family.number]
        total, end = len(members), len(flat)
        if need is _NOTHING:
            first.extend(array("q", [end]) * total)
        elif need.each is None and not need.columns:
            every = array("i", sorted({*places.all(need.all)}))
            flat.extend(every * total)
            first.extend(range(end + len(every), end + len(every) * total + 1, len(every)))
        elif need.each is None and not need.all and len(need.columns) == 1 and need.columns[0][1] == 1:
            # One to one: of a product, the last axis may come again and again.
            each = places.all(need.columns[0][0].parts)
            again = each if len(each) == len(family) else [each[k % len(each)] for k in range(len(family))]
            flat.extend(array("i", again[members.start : members.stop]))
            first.extend(range(end + 1, end + total + 1))
        else:
            for mine in _of_members(need, members):
                flat.extend(sorted({*places.all(mine)}))
                first.append(len(flat))
    return Edges(first, flat)


def _groups(parts: Parts) -> tuple[array[int], tuple[int, ...]]:
    """Numbers for the failure groups, and how many members of each may fail."""
    numbers: dict[Group, int] = {}
    sizes: list[int] = []
    found = array("i")
    for family, members in parts:
        number = -1
        if family.group is not None:
            number = numbers.setdefault(family.group, len(numbers))
            sizes += [0] * (len(numbers) - len(sizes))
            sizes[number] += len(members)
        found.extend(array("i", [number]) * len(members))
    return found, tuple(group.allowance.of_members(sizes[k]) for group, k in numbers.items())


def _other_stems(families: Sequence[Family]) -> dict[int, list[str]]:
    """The stems of families whose names are no stems."""
    taken, found = Stems(), {}
    for family in families:
        if family.first is None:
            stem = taken.add(family.label)
            if stem != family.label:
                found[family.number] = [stem]
        elif not taken.add_numbered(family.label, range(family.first, family.first + len(family))):
            found[family.number] = [taken.add(family.name(k)) for k in range(len(family))]
    return found
