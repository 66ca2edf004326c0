"""Which functions can do nothing but compute. Wrong in one direction only: what is not sure is not confined."""

from __future__ import annotations

import random
from collections.abc import Callable
from random import random as draw
from typing import Any

import pytest

from ezpyp.system.confined import is_confined

FACTOR = 3


def nothing() -> None:
    pass


def arithmetic(x: float, y: int = 2) -> float:
    return (x * x + y) / 2


def built_ins(n: int) -> int:
    return sum(k * k for k in range(n)) + max([abs(-k) for k in range(n)], default=0)


def fails(x: int) -> None:
    raise ValueError(x)


@pytest.mark.parametrize("function", [nothing, arithmetic, built_ins, fails, abs, int, lambda x: -x])
def test_what_only_computes_is_confined(function: Callable[..., Any]) -> None:
    assert is_confined(function)


def prints() -> None:
    print("hello")


def draws() -> float:
    return random.random()


def draws_by_name() -> float:
    return draw()


def imports() -> Any:
    import sum  # type: ignore[import-not-found]

    return sum


def opens() -> None:
    open("/dev/null").close()


def looks_up(x: int) -> type:
    return x.__class__


def uses_a_global(x: int) -> int:
    return x * FACTOR


def calls_inside(x: int) -> float:
    return sum(draw() for _ in range(x))


def with_default(x: int, by: Any = random) -> Any:
    return by


async def awaited() -> None:
    pass


def around(value: Any) -> Callable[[], Any]:
    return lambda: value


class Called:
    def __call__(self) -> None:
        pass


@pytest.mark.parametrize(
    "function",
    [
        *(prints, draws, draws_by_name, imports, opens, looks_up, uses_a_global, calls_inside, with_default, awaited),
        *(around(1), Called(), Called, random.random, print, open, getattr, exec),
    ],
)
def test_what_may_do_more_is_not(function: Callable[..., Any]) -> None:
    assert not is_confined(function)


def test_a_name_that_hides_a_built_in_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(built_ins.__globals__, "abs", print)
    assert not is_confined(built_ins)


def test_a_built_in_that_was_replaced_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    monkeypatch.setattr(builtins, "abs", print)
    assert not is_confined(built_ins)
