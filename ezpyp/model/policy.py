"""What to do when something happens: pure decisions. What happened goes in, a decision comes out; the clock is an
argument.
"""

from __future__ import annotations

from math import floor

from ezpyp.tuples import NamedTuple

#: How long a lot should last; and where slots are to be held busy, what is not worth to be cut in two.
LOT_SECONDS = 0.05
WHOLE_SECONDS = 0.002
#: What a step costs at least, with its result; and what is no lot where there is more, for a lot costs as much itself.
STEP_SECONDS = 0.00001
LEAST_SECONDS = 0.0005


class Retry(NamedTuple):
    """Run a failed step again. `times` is how often (attempts = times + 1), `delay` the seconds before each."""

    times: int = 0
    delay: float = 0.0
    #: Causes that are tried again; empty means all. See `ezpyp.steps.Outcome.cause`.
    causes: frozenset[str] = frozenset()

    @classmethod
    def of(cls, value: Retry | int | bool | None) -> Retry:
        """What a user may write: nothing, True (once), a number, or a Retry."""
        if isinstance(value, Retry):
            return value
        times = int(value or 0)
        if times < 0:
            raise ValueError(f"retry={value!r}: give the number of further attempts, 0 or more")
        return cls(times=times)

    def after(self, cause: str, attempt: int, now: float) -> float | None:
        """When to try again, as a time on the caller's clock, or None for never."""
        if attempt > self.times or (self.causes and cause not in self.causes):
            return None
        return now + self.delay


class Allowance(NamedTuple):
    """How many members of a group may fail before what depends on them is skipped."""

    share: float = 0.0
    number: int = 0

    def __bool__(self) -> bool:
        """Whether any may."""
        return bool(self.share or self.number)

    @classmethod
    def of(cls, value: Allowance | bool | int | float | None) -> Allowance:
        """What a user may write: True (all), a share below 1, or a count."""
        if isinstance(value, Allowance):
            return value
        if value is None or value is False:
            return cls()
        if value is True:
            return cls(share=1.0)
        if value < 0 or (isinstance(value, float) and value > 1):
            raise ValueError(f"allow_failure={value!r}: give True, a share between 0 and 1, or a count")
        return cls(share=value) if isinstance(value, float) else cls(number=value)

    def of_members(self, members: int) -> int:
        """The number of failures that a group of so many members may have. 1e-9 absorbs 0.1 * 30 == 3.0000000004."""
        return max(self.number, floor(self.share * members + 1e-9))


def lot_size(
    seconds: float | None,
    ready: int,
    slots: int,
    *,
    together: int = 0,
    target: float = LOT_SECONDS,
    most: int = 512,
) -> int:
    """How many ready steps travel together.

    Args:
        seconds: the expected duration of one, None when nothing is known yet.
        ready: how many could start now; slots: how many can run at once.
        together: how many could when the first of the lots was made that are handed out now.
        target: seconds a lot should last. An unknown duration counts as long until many are ready.
    """
    fair = max(1, ready // (2 * max(1, slots)))
    if seconds is None:
        return 1 if ready < 8 * slots else min(fair, 4)
    seconds = max(seconds, 1e-7)
    # A lot costs two messages, and what is learnt of its end decides on the next: of very short steps each slot gets
    # its share of all that is ready at once, and more where that is hardly any work.
    whole = min(-(-max(ready, together) // max(1, slots)), int(WHOLE_SECONDS / seconds))
    least = min(ready, int(LEAST_SECONDS / max(seconds, STEP_SECONDS)))
    return max(1, min(most, max(fair, whole, least), int(target / seconds)))


def depth(seconds: float | None, ready: int, slots: int) -> int:
    """How many lots a slot may hold: two, so that none waits for a message; one where steps are long or of unknown
    duration, or where what is ready is less than the least lot for each: by when a slot is done there may be more.
    """
    if seconds is None or seconds > 0.25:
        return 1
    return 2 if ready * max(seconds, STEP_SECONDS) >= slots * LEAST_SECONDS else 1
