"""Families of very many steps as one entry of a schema, and the steps that such an entry stands for.

A folded entry has the keys of an entry of its first step, and: count, label and first (its members are `label[first]`
and so on), last (the texts of the last one), one_each (whether each member depends on one step of `upstream`, in order,
or all on all), positional (how many of its arguments are). Each of its arguments is a column, one of

    {"value": v}  {"text": t}  {"range": [start, stop, step]}  {"values": JSON}  {"texts": JSON}  {"steps": names}

with "stride" where values repeat (see `columns.Column`). Its fingerprint is a digest of theirs. In names of steps
`label[3..12]` stands for ten of them; no step is called so.
"""

from __future__ import annotations

import json
import re
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ezpyp.identity.outline import describe
from ezpyp.model.arguments import plain_value
from ezpyp.model.columns import Column, Columns
from ezpyp.model.fingerprints import SIZE, Fingerprints
from ezpyp.model.plan import Block, Plan
from ezpyp.model.steps import MANY, Steps
from ezpyp.system.digests import blake2b
from ezpyp.tuples import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ezpyp.storage.record import Record

#: Families of more steps than these are folded.
MOST = MANY

#: The keys that only a folded entry has.
FOLDED = frozenset({"count", "label", "first", "positional", "last", "one_each"})

_SPAN = re.compile(r"(.*)\[(\d+)\.\.(\d+)\]", re.DOTALL)


class Fold(NamedTuple):
    """Steps of a plan that are told together."""

    start: int
    stop: int
    #: Such as `train[0..9999]`.
    name: str


def folds(plan: Plan) -> list[Fold]:
    """The families of a plan that are folded, in its order."""
    return [
        Fold(block.start, block.stop, span(block.family.label, block.family.first or 0, len(block.family)))
        for block in plan.blocks
        if _folds(plan, block)
    ]


def _folds(plan: Plan, block: Block) -> bool:
    calls = block.family.calls
    if len(block.members) <= MOST or not isinstance(calls, Columns) or len(block.members) != len(calls):
        return False
    return plan.stems[block.start] == block.family.name(0) and _rule(plan, block) is not None


def _rule(plan: Plan, block: Block) -> tuple[bool, Sequence[int]] | None:
    """Whether each member depends on one of these steps, or all on all; None where it is neither."""
    edges, count = plan.graph.parents, block.stop - block.start
    begin, end = edges.first[block.start], edges.first[block.stop]
    each, rest = divmod(end - begin, count)
    if not each and not rest:
        return False, ()
    if rest or edges.first[block.start : block.stop + 1] != array("q", range(begin, end + 1, each)):
        return None
    flat = edges.flat[begin:end]
    if each == 1 and flat == array("i", range(flat[0], flat[0] + count)):
        return True, range(flat[0], flat[0] + count)
    return (False, flat[:each]) if flat == flat[:each] * count else None


def span(label: str, first: int, count: int) -> str:
    """`train[0..9999]`."""
    return f"{label}[{first}..{first + count - 1}]"


def spans(plan: Plan, indices: Sequence[int]) -> list[str]:
    """The names of steps, in order; more than `MOST` of one family that follow each other as one."""
    if len(indices) <= MOST:
        return [plan.steps[k].name for k in indices]
    found, place = [], 0
    while place < len(indices):
        block = plan.block(indices[place])
        family, member = block.family, block.members[indices[place] - block.start]
        run = place + 1
        if family.first is not None:
            most = min(len(indices) - place, block.stop - indices[place])
            wanted = array("i", range(indices[place], indices[place] + most))
            here = array("i", indices[place : place + most])
            run = place + (most if here == wanted else next(k for k in range(most) if here[k] != wanted[k]))
        if run - place > MOST and family.first is not None:
            found.append(span(family.label, family.first + member, run - place))
            place = run
        else:
            found.append(family.name(member))
            place += 1
    return found


def entry(plan: Plan, fold: Fold) -> dict[str, Any]:
    """What the entry of a folded family has of its own."""
    block = plan.block(fold.start)
    family, calls = block.family, block.family.calls
    assert isinstance(calls, Columns)
    rule = _rule(plan, block)
    assert rule is not None
    parameters = family.definition.parameters
    columns = {
        parameters[k] if k < len(parameters) else f"args[{k}]": _column(plan, column)
        for k, column in enumerate(calls.positional)
    }
    columns |= {name: _column(plan, column) for name, column in calls.named.items()}
    shared = plan.steps[fold.start].kwargs
    columns |= {name: _constant(value) for name, value in shared.items() if name not in calls.named}
    args, kwargs = plan.steps[fold.stop - 1].texts()
    return {
        "name": fold.name,
        "count": len(family),
        "label": family.label,
        "first": family.first,
        "positional": len(calls.positional),
        "arguments": columns,
        "arguments_digest": calls.digest().hex(),
        "last": {"args": args, "kwargs": kwargs},
        "upstream": spans(plan, rule[1]),
        "one_each": rule[0],
    }


def digest(prints: Fingerprints, start: int, stop: int) -> str:
    """The fingerprint of some steps together."""
    return blake2b(prints.packed[start * SIZE : stop * SIZE], digest_size=SIZE).hexdigest()


def _constant(value: Any) -> dict[str, Any]:
    return {"value": value} if _is_json(value) else {"text": plain_value(value)}


def _column(plan: Plan, column: Column) -> dict[str, Any]:
    values = column.values
    found: dict[str, Any]
    if isinstance(values, range):
        found = {"range": [values.start, values.stop, values.step]}
    elif isinstance(values, Steps):
        found = {"steps": spans(plan, plan.places.all(values.parts))}
    elif all(map(_is_json, values)):
        found = {"values": json.dumps(list(values), ensure_ascii=False)}
    else:
        found = {"texts": json.dumps([plain_value(each) for each in values], ensure_ascii=False)}
    return found if column.stride == 1 else {**found, "stride": column.stride}


def _is_json(value: Any) -> bool:
    return type(value) in (int, float, bool, type(None)) or (type(value) is str and len(value) <= 200)


# ----- reading


class Member(NamedTuple):
    """A step that a folded entry stands for."""

    name: str
    args: str
    kwargs: str
    arguments: dict[str, Any]
    upstream: list[str]


class Folded:
    """A folded entry, to be looked into."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        self.content = content
        self._columns = {name: _Values(column) for name, column in content["arguments"].items()}

    def name(self, i: int) -> str:
        return f"{self.content['label']}[{self.content['first'] + i}]"

    def argument(self, i: int, name: str) -> Any:
        """An argument of a member, as JSON holds it."""
        value = self._columns[name].at(i)
        return str(value) if isinstance(value, _Shown) else value

    def member(self, i: int) -> Member:
        shown = {name: column.at(i) for name, column in self._columns.items()}
        count, listed = self.content["positional"], list(shown.items())
        args, kwargs = describe([v for _, v in listed[:count]], dict(listed[count:]))
        upstream = self.content["upstream"]
        return Member(
            name=self.name(i),
            args=args,
            kwargs=kwargs,
            arguments={name: str(v) if isinstance(v, _Shown) else v for name, v in listed},
            upstream=[nth(upstream, i)] if self.content["one_each"] else list(named(upstream)),
        )


class _Shown(str):
    """Text that shows as it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class _Values:
    """The values of a column."""

    def __init__(self, content: Mapping[str, Any]) -> None:
        (self._kind, self._given), *_ = ((k, v) for k, v in content.items() if k != "stride")
        self._stride = content.get("stride", 1)
        self._listed: Sequence[Any] | None = range(*self._given) if self._kind == "range" else None

    def at(self, i: int) -> Any:
        if self._kind == "value":
            return self._given
        if self._kind == "text":
            return _Shown(self._given)
        if self._kind == "steps":
            count = sum(size for *_, size in map(parsed, self._given))
            return _Shown(f"TMP for {nth(self._given, i // self._stride % count)}")
        if self._listed is None:
            self._listed = json.loads(self._given)
        value = self._listed[i // self._stride % len(self._listed)]
        return _Shown(value) if self._kind == "texts" else value


def parsed(name: str) -> tuple[str, int, int]:
    """The label, the first number, and the count of names told together; of any other, itself once."""
    match = _SPAN.fullmatch(name) if ".." in name else None
    count = int(match[3]) + 1 - int(match[2]) if match else 1
    return (match[1], int(match[2]), count) if match else (name, -1, 1)


def nth(names: Iterable[str], i: int) -> str:
    """The i-th of the steps that names stand for."""
    for name in names:
        label, first, count = parsed(name)
        if i < count:
            return name if first < 0 else f"{label}[{first + i}]"
        i -= count
    raise IndexError(i)


def named(names: Iterable[str]) -> Iterator[str]:
    """The steps that names stand for."""
    for name in names:
        label, first, count = parsed(name)
        if first < 0:
            yield name
        else:
            yield from (f"{label}[{first + k}]" for k in range(count))


def count(names: Iterable[str]) -> int:
    """How many steps names stand for."""
    return sum(parsed(name)[2] for name in names)


def fits(record: Record, fingerprint: str) -> bool:
    """Whether a record is of the step as the plan has it. Of a folded family nothing else is left under its stems."""
    return record.fingerprint == fingerprint or (not fingerprint and len(record.fingerprint) == 2 * SIZE)


def told(column: Mapping[str, Any]) -> str:
    """A column in a few words."""
    if "range" in column:
        listed = range(*column["range"])
        return f"{listed[0]}..{listed[-1]}" + (f" in steps of {listed.step}" if listed.step != 1 else "")
    ((kind, content),) = ((k, v) for k, v in column.items() if k != "stride")
    text = content if isinstance(content, str) else repr(content)
    text = text if kind != "steps" else ", ".join(content)
    return text if len(text) <= 60 else f"{text[:40]} … {text[-16:]}"
