"""The families of a pipeline: every name and every call is there once. Names of families are not written out."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

from ezpyp.errors import RepeatedStepError
from ezpyp.model.arguments import Arguments
from ezpyp.model.columns import Columns, Gathered
from ezpyp.model.steps import Definition, Family, Step, Steps

_NUMBERED = re.compile(r"(.*)\[(0|[1-9][0-9]*)\]", re.DOTALL)


class Register(Mapping[str, Step]):
    """Families in the order of their calls, and their steps by name."""

    def __init__(self) -> None:
        self.families: list[Family] = []
        self._size = 0
        self._single: dict[str, Family] = {}
        #: By label, families with numbered members in the order of their first numbers.
        self._numbered: dict[str, list[Family]] = {}
        self._counts: dict[str, int] = {}
        self._calls: dict[Hashable, _Calls] = {}
        #: Names with a number that the user gave to single calls.
        self._odd: list[str] = []
        self._steps: Steps | None = None
        #: Families of single calls that follow each other; the last one grows while nothing else comes.
        self._growing: list[Family] = []

    @property
    def steps(self) -> Steps:
        """All steps in the order of their calls."""
        if self._steps is None:
            self._steps = Steps(parts=[(family, range(len(family))) for family in self.families if len(family)])
        return self._steps

    def number(self, base: str, count: int = 1) -> int:
        """How many steps were named after `base` so far; counts so many more."""
        number = self._counts.get(base, 0)
        self._counts[base] = number + count
        return number

    def add(self, family: Family, identity: bytes | None = None) -> None:
        """Take new steps.

        Args:
            identity: of its only call, where that is known.

        Raises:
            RepeatedStepError: the name or the very call of one is taken.
        """
        label, definition = family.label, family.definition
        if family.first is None:
            # What numbers itself does not meet what does too.
            if label in self._single or (definition.named and self._find_numbered(label) is not None):
                raise _taken(label)
        elif odd := next((name for name in self._odd if _member(family, name) is not None), None):
            raise _taken(odd)
        if not definition.named:
            calls = self._calls_of(definition)
            if identity is None:
                calls.add(family)
            else:
                calls.add_one(family, identity)
        if family.first is None:
            self._single[label] = family
            if definition.named and label.endswith("]"):
                self._odd.append(label)
        else:
            self._numbered.setdefault(label, []).append(family)
        family.number = len(self.families)
        self.families.append(family)
        self._size += len(family)
        self._steps = None

    def gather(
        self, definition: Definition, base: str, args: tuple[Any, ...], kwargs: dict[str, Any], identity: bytes
    ) -> Step | None:
        """Take a single call with plain arguments, of this identity, into the family of those right before it: they
        need not be kept one by one. None where it is to be added as a family of its own: the first of its function is
        called by the name of that alone.

        Raises:
            RepeatedStepError: as `add`.
        """
        number = self._counts.get(base, 0)
        if not number:
            return None
        family = self._growing[-1] if self._growing else None
        if family is not None and family is self.families[-1] and family.definition is definition:
            calls, first = family.calls, family.first or 0
            if first + len(calls) == number and isinstance(calls, Gathered) and calls.takes(args, kwargs):
                self._counts[base] = number + 1
                if self._odd and f"{base}[{number}]" in self._odd:
                    raise _taken(f"{base}[{number}]")
                calls.add(args, kwargs)
                try:
                    self._calls_of(definition).append(family, identity)
                except RepeatedStepError:
                    calls.undo()
                    raise
                self._size += 1
                self._steps = None
                return Step(family, number - first)
        calls = Gathered(len(args), (*kwargs,))
        calls.add(args, kwargs)
        family = Family(definition, calls, base, number)
        self._counts[base] = number + 1
        self.add(family, identity)
        self._growing.append(family)
        return Step(family)

    def settle(self) -> None:
        """No family grows any more."""
        for family in self._growing:
            if isinstance(family.calls, Gathered):
                family.calls = family.calls.columns(family.label) if len(family) > 1 else (family.calls[0],)
        self._growing.clear()

    def _calls_of(self, definition: Definition) -> _Calls:
        key = id(definition.function), definition.options.codec
        calls = self._calls.get(key)
        if calls is None:
            calls = self._calls[key] = _Calls()
        return calls

    def holds(self, step: Step) -> bool:
        """Whether a step is one of these, not only called like one."""
        number = step.family.number
        return 0 <= number < len(self.families) and self.families[number] is step.family

    def get(self, name: str, default: Any = None) -> Any:
        family = self._single.get(name)
        return Step(family) if family is not None else self._find_numbered(name) or default

    def __getitem__(self, name: str) -> Step:
        found = self.get(name)
        if found is None:
            raise KeyError(name)
        step: Step = found
        return step

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[str]:
        return (family.name(k) for family in self.families for k in range(len(family)))

    def _find_numbered(self, name: str) -> Step | None:
        match = _NUMBERED.fullmatch(name)
        families = self._numbered.get(match[1]) if match else None
        if match is None or families is None:
            return None
        place = bisect_right(families, int(match[2]), key=lambda family: family.first or 0) - 1
        member = _member(families[place], name) if place >= 0 else None
        return Step(families[place], member) if member is not None else None


def _member(family: Family, name: str) -> int | None:
    """Which member of a numbered family is called so."""
    match = _NUMBERED.fullmatch(name)
    if match is None or match[1] != family.label or family.first is None:
        return None
    member = int(match[2]) - family.first
    return member if 0 <= member < len(family) else None


def _taken(name: str) -> RepeatedStepError:
    return RepeatedStepError(f"There is a step named '{name}' already. Give another name=.")


class _Calls:
    """The calls of one function. Those of large families are not written out while it is plain that none repeats."""

    def __init__(self) -> None:
        #: Calls that were written out, numbered; the families that they are of, and the number of the first of each.
        self._known: dict[Hashable, int] = {}
        self._families: list[Family] = []
        self._firsts: list[int] = []
        self._unwritten: list[tuple[Family, Columns]] = []

    def add(self, family: Family) -> None:
        calls = family.calls
        if isinstance(calls, Columns) and self._is_plainly_new(calls):
            self._unwritten.append((family, calls))
            return
        self._write_all()
        self._write(family)

    def add_one(self, family: Family, key: Hashable) -> None:
        """Note a family of one call."""
        self._write_all()
        number = len(self._known)
        if (before := self._known.setdefault(key, number)) != number:
            raise _repeated(family, 0, *self._find(before))
        self._families.append(family)
        self._firsts.append(number)

    def append(self, family: Family, key: Hashable) -> None:
        """Note the last call of the last family, which grew by it."""
        number = len(self._known)
        if (before := self._known.setdefault(key, number)) != number:
            raise _repeated(family, len(family) - 1, *self._find(before))

    def _is_plainly_new(self, calls: Columns) -> bool:
        return not self._known and all(calls.apart(each) for _, each in self._unwritten) and calls.differ()

    def _write_all(self) -> None:
        for each, _ in self._unwritten:
            self._write(each)
        self._unwritten.clear()

    def _write(self, family: Family) -> None:
        """Note the calls, or none of them where one was made before."""
        first = len(self._known)
        mine: dict[Hashable, int] = {}
        for number, key in enumerate(_keys(family), first):
            if (before := self._known.get(key)) is not None:
                raise _repeated(family, number - first, *self._find(before))
            if (before := mine.setdefault(key, number)) != number:
                raise _repeated(family, number - first, family, before - first)
        self._known.update(mine)
        self._families.append(family)
        self._firsts.append(first)

    def _find(self, number: int) -> tuple[Family, int]:
        place = bisect_right(self._firsts, number) - 1
        return self._families[place], number - self._firsts[place]


def _keys(family: Family) -> Iterator[Hashable]:
    """What tells the calls of one function apart."""
    calls = family.calls
    if isinstance(calls, Columns) and not calls.deferred and not calls.shared.deferred:
        yield from calls.identities()
        return
    yield from map(_key, calls)


def _key(call: Arguments) -> Hashable:
    return (call.digest, *call.sources()) if call.deferred else call.digest


def _repeated(family: Family, member: int, before: Family, at: int) -> RepeatedStepError:
    step, former = Step(family, member), Step(before, at)
    name = former.name
    return RepeatedStepError(
        f"The call for '{step.name}' is the very same as for '{name}': {former.label}. One step is enough; if a "
        f"replicate is meant, name it: {step.function_name}(…, name='{name}_again')."
    )
