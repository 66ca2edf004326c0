"""Where the members of families are in a plan, and what is read from that: nothing is kept for a single step."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ezpyp.model.policy import Retry
from ezpyp.model.register import Register
from ezpyp.model.steps import Family, Step, Steps

#: Families with the members of each that are meant, in order.
Parts = Sequence[tuple[Family, range]]


class Places:
    """Where the members of each family are in the plan."""

    def __init__(self, register: Register, parts: Parts) -> None:
        #: By family: the index of its first member where all follow each other, else an index for each.
        self._places: list[int | array[int]] = [0] * len(register.families)
        start = 0
        for family, members in parts:
            if len(members) == len(family):
                self._places[family.number] = start
            else:
                places = self._places[family.number]
                if isinstance(places, int):
                    places = self._places[family.number] = array("i", bytes(4 * len(family)))
                places[members.start : members.stop] = array("i", range(start, start + len(members)))
            start += len(members)

    def of(self, family: Family, members: range) -> Sequence[int]:
        """The indices of members."""
        places = self._places[family.number]
        if isinstance(places, int):
            return range(places + members.start, places + members.stop)
        return places[members.start : members.stop]

    def all(self, parts: Parts) -> Sequence[int]:
        """The indices of steps of any families."""
        if len(parts) == 1:
            return self.of(*parts[0])
        found = array("i")
        for part in parts:
            found.extend(self.of(*part))
        return found

    def __getitem__(self, step: Step) -> int:
        places = self._places[step.family.number]
        return places + step.member if isinstance(places, int) else places[step.member]


class Index(Mapping[str, int]):
    """Names to indices; nothing is kept for a name."""

    def __init__(self, register: Register, places: Places, steps: Steps) -> None:
        self._register, self._places, self._steps = register, places, steps

    def __getitem__(self, name: str) -> int:
        return self._places[self._register[name]]

    def __contains__(self, name: object) -> bool:
        return name in self._register

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[str]:
        return (step.name for step in self._steps)


class Stems(Sequence[str]):
    """The stems of steps in their order, which need not be made one by one."""

    def runs(self) -> Iterator[tuple[str, int, int]]:
        """Stems that follow each other: `label[number]` for so many numbers, from the first on, as label, first number
        and count; or one as it stands, with -1 and 1.
        """
        raise NotImplementedError


class Numbered(Stems):
    """The stems `label[first]` and so on."""

    def __init__(self, label: str, numbers: range) -> None:
        self._label, self._numbers = label, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, k: Any) -> Any:
        if isinstance(k, slice):
            return Numbered(self._label, self._numbers[k])
        return f"{self._label}[{self._numbers[k]}]"

    def runs(self) -> Iterator[tuple[str, int, int]]:
        yield self._label, self._numbers.start, len(self._numbers)


class PlannedStems(Stems):
    """The stem of each step: its name, unless its family needs others."""

    def __init__(self, steps: Steps, others: Mapping[int, Sequence[str]]) -> None:
        self._steps, self._others = steps, others

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, k: Any) -> Any:
        if isinstance(k, slice):
            return [self[each] for each in range(len(self))[k]]
        family, member = self._steps.find(range(len(self))[k])
        others = self._others.get(family.number)
        return family.name(member) if others is None else others[member]

    def runs(self) -> Iterator[tuple[str, int, int]]:
        for family, members in self._steps.parts:
            others = self._others.get(family.number)
            if others is not None:
                yield from ((others[member], -1, 1) for member in members)
            elif family.first is None:
                yield family.label, -1, 1
            else:
                yield family.label, family.first + members.start, len(members)

    def are_others(self, family: Family) -> bool:
        """Whether the stems of a family are not its names."""
        return family.number in self._others

    def of(self, step: Step) -> str:
        """The stem of a step that is here."""
        others = self._others.get(step.family.number)
        return step.name if others is None else others[step.member]

    def named(self, some: Sequence[int]) -> tuple[list[str], list[str]]:
        """The names of these steps, and their stems."""
        steps, others = self._steps, self._others
        chosen = steps[some.start : some.stop] if isinstance(some, range) else Steps(map(steps.__getitem__, some))
        names = [name for family, members in chosen.parts for name in family.names(members)]
        return names, [*PlannedStems(chosen, others)] if others else names

    def __iter__(self) -> Iterator[str]:
        for family, members in self._steps.parts:
            others = self._others.get(family.number)
            yield from family.names(members) if others is None else map(others.__getitem__, members)


class Retries(Mapping[int, Retry]):
    """Steps that are tried again, and how."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def __getitem__(self, k: int) -> Retry:
        retry = self._steps[k].options.retry
        if not retry.times:
            raise KeyError(k)
        return retry

    def __iter__(self) -> Iterator[int]:
        return (k for k in range(len(self._steps)) if self._steps[k].options.retry.times)

    def __len__(self) -> int:
        return sum(1 for _ in self)
