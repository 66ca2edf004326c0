"""Which results nobody needs any more: of steps with `keep=False`, once all that depends on them is done. Pure."""

from __future__ import annotations

from ezpyp.model.plan import Plan


class Keeping:
    """What is left to do until results may be dropped.

    A step that was given Failed values is not finished: it runs again, and needs all its inputs, when what failed is
    mended.
    """

    def __init__(self, plan: Plan) -> None:
        """Nothing is done yet."""
        self._parents = plan.graph.parents
        passing = {k for b in plan.blocks if not b.family.definition.options.keep for k in range(b.start, b.stop)}
        #: For each step whose result is not kept, how many are not finished, of itself and its children.
        self._left = dict.fromkeys(passing.intersection(self._parents.flat), 1)
        for parents in self._parents if self._left else ():
            for p in self._left.keys() & parents:
                self._left[p] += 1

    @property
    def any(self) -> bool:
        """Whether there is anything left to be dropped."""
        return bool(self._left)

    def finish(self, index: int) -> list[int]:
        """A step is done, with all that it should get: the steps whose results nobody needs any more."""
        free: list[int] = []
        if not self._left:
            return free
        for k in self._left.keys() & {index, *self._parents[index]}:
            self._left[k] -= 1
            if not self._left[k]:
                free.append(k)
        return sorted(free)
