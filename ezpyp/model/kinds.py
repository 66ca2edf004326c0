"""What steps have in common, as a number for each step: the functions that they call, and what they ask for."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import compress, count

from ezpyp.model.plan import Plan
from ezpyp.model.request import Request
from ezpyp.model.steps import callable_name


class Functions:
    """The functions of a plan: a number for each step, and the name of each number."""

    def __init__(self, numbers: Sequence[int], names: Sequence[str]) -> None:
        self.numbers, self.names = numbers, names

    @classmethod
    def of(cls, plan: Plan) -> Functions:
        """Those of a plan."""
        known: dict[int, int] = {}
        names: list[str] = []
        numbers = array("i")
        for block in plan.blocks:
            function = block.family.definition.function
            number = known.setdefault(id(function), len(names))
            if number == len(names):
                names.append(callable_name(function))
            numbers += array("i", [number]) * len(block.members)
        return cls(numbers, names)

    def order(self, phases: Sequence[int], seconds: Mapping[str, float]) -> array[int] | None:
        """The steps by priority: phase, then longest expected first, then call order. None where that is the order in
        which they are. A function of which nothing is remembered may be as long as any.
        """
        longest = max(seconds.values(), default=0.0)
        rank = [-seconds.get(name, longest) for name in self.names]
        if len(set(rank)) < 2:
            return None
        expected = array("d", map(rank.__getitem__, self.numbers))
        order = array("i")
        start = 0
        for stop in (*_borders(phases), len(phases)):
            order.extend(sorted(range(start, stop), key=expected.__getitem__))
            start = stop
        return None if order == array("i", range(len(phases))) else order


class Requests:
    """What steps ask for: a number for each step, 0 for the ordinary request, and the request of each number."""

    def __init__(self, numbers: Sequence[int], listed: Sequence[Request]) -> None:
        self.numbers, self.listed = numbers, listed

    @classmethod
    def of(cls, plan: Plan) -> Requests | None:
        """Those of a plan; None where all are ordinary."""
        known, seen = {Request(): 0}, dict[int, int]()
        numbers = array("i")
        for block in plan.blocks:
            request = block.family.definition.options.request
            number = seen.get(id(request), -1)  # most steps share theirs
            if number < 0:
                # What is as it is without saying so.
                usual = request.process == "any" and not request.gpus
                plain = request._replace(fresh=None, program=False) if usual else request
                number = seen[id(request)] = known.setdefault(plain, len(known))
            numbers += array("i", [number]) * len(block.members)
        return cls(numbers, tuple(known)) if len(known) > 1 else None

    def special(self, steps: Iterable[int]) -> dict[int, Request]:
        """Of these steps the first of each request that is not the ordinary one."""
        first: dict[int, int] = {}
        for step in steps:
            if number := self.numbers[step]:
                first[number] = min(step, first.get(number, step))
        return {step: self.listed[number] for number, step in sorted(first.items())}


def _borders(phases: Sequence[int]) -> Iterator[int]:
    """Where a phase begins, but the first."""
    changes = map(int.__ne__, phases, phases[1:])
    return compress(count(1), changes)
