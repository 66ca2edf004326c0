"""Which functions can do nothing but compute. Wrong in one direction only: what is not sure is not confined."""

from __future__ import annotations

import random
from collections.abc import Callable
from random import random as draw
from typing import Any

import pytest

from ezpyp.system.confined import is_confined

FACTOR = 3
NAMED = ("a", (1, 2.5, None))
LISTED = [1, 2]
MIXED = ("a", [1])
absolute = abs


def nothing() -> None:
    pass


def arithmetic(x: float, y: int = 2) -> float:
    return (x * x + y) / 2


def built_ins(n: int) -> int:
    return sum(k * k for k in range(n)) + max([abs(-k) for k in range(n)], default=0)


def fails(x: int) -> None:
    raise ValueError(x)


def uses_constants(x: int) -> Any:
    return x * FACTOR, NAMED, __name__


def uses_a_function(x: int) -> Any:
    return [uses_constants(absolute(k)) for k in range(x)]


def factorial(n: int) -> int:
    return n * factorial(n - 1) if n else 1


def even(n: int) -> bool:
    return not n or odd(n - 1)


def odd(n: int) -> bool:
    return n > 0 and even(n - 1)


def changes_its_own(n: int) -> list[int]:
    found = [n]
    found[0] += FACTOR
    return found


@pytest.mark.parametrize(
    "function",
    [
        *(nothing, arithmetic, built_ins, fails, abs, int, lambda x: -x),
        *(uses_constants, uses_a_function, factorial, even, changes_its_own),
    ],
)
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


def looks_into_a_constant() -> int:
    return FACTOR.real


def looks_into_itself() -> Any:
    return looks_into_itself.__globals__


def reads_what_may_change() -> int:
    return LISTED[0]


def reads_what_holds_such() -> Any:
    return MIXED


def writes_a_global() -> None:
    global FACTOR
    FACTOR = 3


def writes_over_a_built_in() -> None:
    global sum
    sum = 3  # type: ignore[name-defined]  # noqa: A001


def deletes_a_global() -> None:
    global FACTOR
    del FACTOR


def writes_an_attribute(x: Any) -> None:
    x.FACTOR = FACTOR


def makes_a_class() -> Any:
    class Made:
        pass

    return Made


def matches(x: Any) -> Any:
    match x:
        case int(FACTOR=found):  # type: ignore[misc]
            return found
    return None


def calls_what_draws(x: int) -> float:
    return draws() * x


def calls_what_is_missing() -> Any:
    return missing()  # type: ignore[name-defined]  # noqa: F821


def a(x: int) -> int:
    return b(x)


def b(x: int) -> int:
    return c(x)


def c(x: int) -> int:
    return d(x)


def d(x: int) -> int:
    return e(x)


def e(x: int) -> int:
    return arithmetic(x)  # type: ignore[return-value]


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
        *(prints, draws, draws_by_name, imports, opens, looks_up, calls_inside, with_default, awaited),
        *(looks_into_a_constant, looks_into_itself, reads_what_may_change, reads_what_holds_such, writes_a_global),
        *(writes_over_a_built_in, deletes_a_global, writes_an_attribute, makes_a_class, matches, calls_what_draws),
        *(calls_what_is_missing, a),
        *(around(1), Called(), Called, random.random, print, open, getattr, exec),
    ],
)
def test_what_may_do_more_is_not(function: Callable[..., Any]) -> None:
    assert not is_confined(function)


def test_chains_of_functions_are_followed_so_far() -> None:
    assert is_confined(b)
    assert not is_confined(a)


def test_a_constant_that_was_replaced_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(__name__ + ".FACTOR", random)
    assert not is_confined(uses_constants)
    assert not is_confined(uses_a_function)


def test_a_name_that_hides_a_built_in_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(built_ins.__globals__, "abs", print)
    assert not is_confined(built_ins)


def test_a_built_in_that_was_replaced_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    monkeypatch.setattr(builtins, "abs", print)
    assert not is_confined(built_ins)
