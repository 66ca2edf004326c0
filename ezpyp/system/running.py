"""Whether a step runs in this process: inside one, a decorated function is the plain function."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_under_way = 0


def inside_step() -> bool:
    """True while a step runs in this process."""
    return _under_way > 0


@contextmanager
def step() -> Iterator[None]:
    """Around each run of a step; one may call another's function, and nothing else nests."""
    global _under_way
    _under_way += 1
    try:
        yield
    finally:
        _under_way -= 1


def stay() -> None:
    """For a process that does nothing but a part of a step."""
    global _under_way
    _under_way += 1
