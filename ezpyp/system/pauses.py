"""How long to sleep between two looks at something that comes when it comes.

Each look costs about ten microseconds of a core that somebody computes on, and who sleeps is late by half a pause. At
a pause that grows as the root of the time waited so far, both stay about equal, and small beside what is waited for.
"""

from __future__ import annotations

from math import sqrt

SHORTEST, LONGEST = 50e-6, 0.010
#: Seconds after which somebody who would be woken looks all the same.
WOKEN = 0.2
#: sqrt(2 * what a look costs).
_GROWTH = 0.0045


def pause(waited: float) -> float:
    """Seconds to sleep, after so many seconds in which nothing came."""
    return min(LONGEST, max(SHORTEST, _GROWTH * sqrt(waited)))
