"""What a function can be called with, held against what `inspect` says."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ezpyp.front import parameters

NAMES = "abcdxyz"


def none() -> None: ...
def some(a: int, b: int, c: int = 0) -> None: ...
def nameless(a: int, b: int = 0, /, c: int = 0) -> None: ...
def collects(a: int, *args: int) -> None: ...
def named(a: int, *, x: int, y: int = 0) -> None: ...
def any_name(a: int, b: int = 0, **kwargs: int) -> None: ...
def nameless_and_any_name(a: int, /, b: int, **kwargs: int) -> None: ...
def everything(a: int, /, b: int, c: int = 0, *args: int, x: int, y: int = 0, **kwargs: int) -> None: ...
def with_locals(a: int, *, x: int = 0) -> int:
    y = z = a + x
    return y + z


@functools.wraps(some)
def wrapped(*args: int) -> None: ...


class Called:
    def __call__(self, a: int, *, x: int = 0) -> None: ...
    def method(self, a: int, b: int = 0) -> None: ...


PLAIN = [none, some, nameless, collects, named, any_name, nameless_and_any_name, everything, with_locals]
CALLABLES = [
    *PLAIN,
    wrapped,
    Called(),
    Called().method,
    Called.method,
    functools.partial(some, 1),
    functools.partial(some, b=1),
    print,
    lambda a, b=1: a,
]


@pytest.mark.parametrize("function", CALLABLES)
def test_names_come_in_their_order(function: Callable[..., Any]) -> None:
    found = parameters.of(function)
    assert found is not None
    assert found.names == tuple(inspect.signature(function).parameters)


@given(st.sampled_from(CALLABLES), st.integers(0, 6), st.sets(st.sampled_from(NAMES)))
def test_a_call_is_taken_exactly_if_it_can_be_made(function: Callable[..., Any], count: int, names: set[str]) -> None:
    found = parameters.of(function)
    assert found is not None
    assert found.take(count, names) == (not parameters.misfit(function, (0,) * count, dict.fromkeys(names, 0)))
    if not names:
        fewest, most = found.arity
        assert found.take(count, names) == (fewest <= count <= most)


@pytest.mark.parametrize(
    ("function", "arity"),
    [(none, (0, 0)), (some, (2, 3)), (collects, (1, math.inf)), (named, (1, 0)), (wrapped, (2, 3)), (type, None)],
)
def test_how_many_arguments_do(function: Callable[..., Any], arity: tuple[int, float] | None) -> None:
    found = parameters.of(function)
    assert (found and found.arity) == arity


def test_some_names_are_for_the_function() -> None:
    found, more = parameters.of(named), parameters.of(any_name)
    assert found is not None
    assert more is not None
    assert [found.accepts(name) for name in "axz"] == [True, True, False]
    assert more.accepts("z")


def test_why_a_call_cannot_be_made() -> None:
    assert parameters.misfit(some, (1,), {}) == "missing a required argument: 'b'"
