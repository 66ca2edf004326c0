"""Who of the ranks was not heard of for too long: a pure decision, the clock is an argument."""

from __future__ import annotations

from collections.abc import Iterable

#: Looks within the time after which a rank is taken for lost; but at least one so often, in seconds.
_LOOKS, _OFTEN = 12, 5.0


class Silence:
    """Counts for how long each rank has been silent while somebody listened.

    A listener that was stopped itself, by a debugger, a suspended job or a node that swaps, comes back to a clock that
    has jumped, and the others were perhaps stopped with it: so a look counts for no more than two periods, however
    long ago the last one was.
    """

    def __init__(self, ranks: Iterable[int], limit: float, now: float) -> None:
        """`limit` is in seconds; `now` on any clock that does not go backwards."""
        self.limit = limit
        #: Seconds between two looks.
        self.period = min(_OFTEN, limit / _LOOKS)
        self._looked, self._listened = now, 0.0
        self._heard = dict.fromkeys(ranks, 0.0)

    def look(self, now: float, heard: Iterable[int]) -> list[int]:
        """The ranks that have been silent for longer than the limit, after these were heard since the last look."""
        self._listened += min(max(0.0, now - self._looked), 2 * self.period)
        self._looked = now
        for rank in heard:
            if rank in self._heard:
                self._heard[rank] = self._listened
        since = self._listened - self.limit
        return sorted(rank for rank, when in self._heard.items() if when < since)
