"""The families of a pipeline: every name and every call is there once. Names of families are not written out."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Hashable, Iterator, Mapping
from typing import Any

from ezpyp.errors import RepeatedStepError
from ezpyp.model.arguments import Arguments
from ezpyp.model.columns import Columns
from ezpyp.model.steps import Family, Step, Steps

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

    def add(self, family: Family) -> None:
        """Take new steps.

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
            key = id(definition.function), definition.options.codec
            calls = self._calls.get(key)
            if calls is None:
                calls = self._calls[key] = _Calls()
            calls.add(family)
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
        self._known: dict[Hashable, tuple[Family, int]] = {}
        self._unwritten: list[tuple[Family, Columns]] = []

    def add(self, family: Family) -> None:
        calls = family.calls
        if family.first is None and not self._unwritten:
            before = self._known.setdefault(_key(calls[0]), (family, 0))
            if before[0] is not family:
                raise _repeated(family, 0, *before)
            return
        if isinstance(calls, Columns) and self._is_plainly_new(calls):
            self._unwritten.append((family, calls))
            return
        for each, _ in self._unwritten:
            self._write(each)
        self._unwritten.clear()
        self._write(family)

    def _is_plainly_new(self, calls: Columns) -> bool:
        return not self._known and all(calls.apart(each) for _, each in self._unwritten) and calls.differ()

    def _write(self, family: Family) -> None:
        """Note the calls, or none of them where one was made before."""
        mine: dict[Hashable, tuple[Family, int]] = {}
        for member, key in enumerate(_keys(family)):
            before = self._known.get(key) or mine.get(key)
            if before is not None:
                raise _repeated(family, member, *before)
            mine[key] = family, member
        self._known.update(mine)


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
