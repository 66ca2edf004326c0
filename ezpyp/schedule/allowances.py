"""Which failures are let through, and the values that the steps below then do without. Pure.

A group has members of which some may fail. Once all have settled, its verdict says whether what depends on those that
failed, or were skipped, runs without their values.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ezpyp.model.plan import Graph


class Allowances:
    """The groups of one run. Steps are named by their indices.

    Attributes:
        verdicts: for failed and skipped members of groups with an allowance, once decided: do their descendants run?
        absent: for steps that run, or ran, without some value upstream: which ones.
        undecided: for each group without a verdict the members that failed or were skipped, if any.
    """

    def __init__(self, graph: Graph) -> None:
        self._parents, self._groups, self._allowed = graph.parents, graph.groups, graph.allowed
        self.verdicts: dict[int, bool] = {}
        self.absent: dict[int, tuple[int, ...]] = {}
        self.undecided: dict[int, list[int]] = {}
        # For each group: members not settled; members failed or skipped.
        self._left = Counter(graph.groups)
        self._failed = [0] * len(graph.allowed)
        #: For each held step, what `absent` was when its result was made.
        self._recorded: dict[int, tuple[int, ...]] = {}

    def leave_out(self, indices: Iterable[int]) -> None:
        """Steps that groups need not wait for: they are done from the start, or not asked for."""
        for index in indices:
            self._left[self._groups[index]] -= 1

    # ----- verdicts

    def concern(self, index: int) -> bool:
        """Whether the step is in a group of which some may fail."""
        group = self._groups[index]
        return group >= 0 and self._allowed[group] > 0

    def condemn(self, index: int) -> bool:
        """Whether a failed or skipped step skips its children: not where its group is undecided or allows it."""
        return not self.concern(index) or self.verdicts.get(index) is False

    def settle(self, index: int, *, done: bool) -> Sequence[int]:
        """A step that they concern has settled; the failed and skipped ones of its group, if that decides on them."""
        group = self._groups[index]
        if not done:
            self._failed[group] += 1
            self.undecided.setdefault(group, []).append(index)
        self._left[group] -= 1
        return () if self._left[group] else self._decide(group)

    def decide_first(self) -> Sequence[int]:
        """The first undecided group, as it stands: those of it that failed or were skipped."""
        return self._decide(min(self.undecided))

    def _decide(self, group: int) -> Sequence[int]:
        """Whether the failures of a group, so far as not decided on, stop what depends on them."""
        decided = self.undecided.pop(group, ())
        self.verdicts.update(dict.fromkeys(decided, self._failed[group] <= self._allowed[group]))
        return decided

    # ----- values that are absent

    def missing(self, index: int) -> tuple[int, ...]:
        """The parents whose values a step that may run does not get."""
        return tuple(p for p in self._parents[index] if self.verdicts.get(p, False)) if index in self.absent else ()

    def hold(self, is_done: Sequence[int], absent: Mapping[int, tuple[int, ...]]) -> set[int]:
        """Of steps done in earlier runs those made without some value upstream, and those below them: they are held.

        Args:
            absent: what `absent` was when a result was made.
        """
        doubtful = {index for index, each in absent.items() if each and is_done[index]}
        if not doubtful:
            return doubtful
        for index, parents in enumerate(self._parents):
            if not doubtful.isdisjoint(parents):
                doubtful.add(index)
        held = {index for index in doubtful if is_done[index]}
        self._recorded = {index: tuple(sorted(absent.get(index, ()))) for index in held}
        return held

    def admit(self, index: int) -> bool:
        """Find what is absent from a step whose parents have all settled; whether it is held and its result is good."""
        absent = self._find_absent(index) if self.verdicts or self.absent else ()
        if absent:
            self.absent[index] = absent
        return self._recorded.get(index) == absent

    def _find_absent(self, index: int) -> tuple[int, ...]:
        parents = self._parents[index]
        missing = [p for p in parents if self.verdicts.get(p, False)]
        # What was absent from a parent that failed does not matter: its value is absent itself.
        further = {self.absent[p] for p in parents if p in self.absent and p not in self.verdicts}
        if not missing and len(further) == 1:
            return further.pop()  # one tuple, shared by all steps below one fan-in
        return tuple(sorted({*missing, *(each for one in further for each in one)}))
