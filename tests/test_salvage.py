"""Salvage: the part to blame is found, the rest is kept, and the result itself is left alone."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ezpyp.encoding.salvage import Unstored, complaint, culprit, partial_of


class Lock:
    """Cannot be pickled, and can be looked at."""

    def __reduce__(self) -> Any:
        raise TypeError("locks stay here")

    def __repr__(self) -> str:
        return "<lock>"


LISTED = "Return a list, or write it to a file and return File(path)."
LOST = Unstored(type_name=f"{Lock.__module__}.Lock", text="<lock>")


@dataclass(frozen=True, slots=True)
class Fit:
    loss: float
    log: Any


@dataclass
class Study:
    fits: list[Fit]
    note: str = "six hours"
    unset: int = field(init=False)


class Model:
    def __init__(self) -> None:
        self.weights = [1.0, 2.0]
        self.lock: Any = threading.Lock()


class Pair(NamedTuple):
    one: Any
    other: Any


class Refusing:
    def __init__(self) -> None:
        self.content = 3

    def __reduce__(self) -> Any:
        raise RuntimeError("not me")


def kept(value: Any) -> Any:
    return pickle.loads(partial_of(value))


# Blame


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (Lock(), "result"),
        ({"a": [0, {"b": (1, Lock())}]}, "result['a'][1]['b'][1]"),
        (Study(fits=[Fit(0.5, None), Fit(0.5, {"x": Lock()})]), "result.fits[1].log['x']"),
        ({1: Model()}, "result[1].lock"),
        ([1] * 1000 + [Lock()] + [2] * 1000, "result[1000]"),
        (Pair(1, Lock()), "result[1]"),
        ([Refusing()], "result[0]"),
    ],
)
def test_the_innermost_part_is_blamed(value: Any, path: str) -> None:
    assert culprit(value)[0] == path


def test_what_holds_itself_is_blamed_once() -> None:
    value: list[Any] = [Lock()]
    value.append(value)
    assert culprit(value)[0] == "result[0]"
    ring: dict[str, Any] = {}
    ring["self"] = [ring, Lock()]
    assert culprit(ring)[0].startswith("result['self']")


def test_where_only_the_whole_is_to_blame_the_reason_is_given() -> None:
    text = complaint(Refusing(), RuntimeError("not\nme"))
    assert text == (
        f"a value that cannot be stored: result is a {__name__}.Refusing (RuntimeError: not me). "
        "Return what it is made from, such as a path or plain numbers."
    )


def numbers() -> Iterator[int]:
    yield 1


async def moments() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (numbers(), f"a generator, which cannot be stored. {LISTED}"),
        (moments(), f"an async_generator, which cannot be stored. {LISTED}"),
        ([numbers()], f"a value that cannot be stored: result[0] is a generator. {LISTED}"),
    ],
)
def test_what_is_made_on_demand_is_to_be_listed(value: Any, text: str) -> None:
    assert complaint(value, TypeError("no")) == text


def test_a_coroutine_is_to_be_run() -> None:
    waiting = asyncio.sleep(0)
    assert complaint(waiting, TypeError("no")) == (
        "a coroutine, which cannot be stored. Return what it gives: asyncio.run(...)."
    )
    waiting.close()


# What is kept


def test_what_can_be_stored_is_kept_as_it_is() -> None:
    assert kept({"a": (1, [2])}) == {"a": (1, [2])}


def test_every_part_that_cannot_be_stored_is_replaced() -> None:
    value = {"a": [1, Lock(), 3], "b": (Lock(), "x"), "c": Fit(0.5, Lock()), "d": {"e": 1}}
    assert kept(value) == {"a": [1, LOST, 3], "b": (LOST, "x"), "c": Fit(0.5, LOST), "d": {"e": 1}}


def test_the_result_itself_is_not_changed() -> None:
    lock = Lock()
    model, fit = Model(), Fit(0.5, lock)
    inner = model.lock
    partial_of([model, fit, {"a": lock}])
    assert model.lock is inner
    assert fit.log is lock


def test_objects_keep_their_type_where_they_can() -> None:
    study = kept(Study(fits=[Fit(0.5, Lock())]))
    assert isinstance(study, Study)
    assert (study.fits, study.note) == ([Fit(0.5, LOST)], "six hours")
    model = kept(Model())
    assert isinstance(model, Model)
    assert model.weights == [1.0, 2.0]
    assert isinstance(model.lock, Unstored)
    assert model.lock.type_name == "_thread.lock"


def test_an_open_file_is_no_container(tmp_path: Any) -> None:
    with (tmp_path / "log").open("w") as log:
        assert kept({"log": log, "loss": 0.5}) == {
            "log": Unstored(type_name="_io.TextIOWrapper", text=repr(log)),
            "loss": 0.5,
        }


def test_keys_that_cannot_be_stored_are_replaced() -> None:
    assert kept({Lock(): 1, "b": 2}) == {LOST: 1, "b": 2}


def test_what_holds_itself_ends() -> None:
    value: list[Any] = [1, Lock()]
    value.append(value)
    first, lost, again = kept(value)
    assert (first, lost, again.type_name) == (1, LOST, "list")


def test_one_handle_among_a_million_numbers_is_found_in_time() -> None:
    """By halves: one by one it would be a minute."""
    value: list[Any] = list(range(1_000_000))
    value[654_321] = Lock()
    found = kept(value)
    assert found[654_321] == LOST
    assert found[654_322:] == value[654_322:]


Values = st.recursive(
    st.integers() | st.text() | st.builds(Lock),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=3), inner, max_size=4)
        | st.tuples(inner, inner)
        | st.builds(Fit, loss=st.just(0.5), log=inner)
    ),
    max_leaves=12,
)


def replaced(value: Any) -> Any:
    """What salvage should make, said plainly."""
    if isinstance(value, Lock):
        return LOST
    if isinstance(value, dict):
        return {key: replaced(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(replaced(part) for part in value)
    return Fit(value.loss, replaced(value.log)) if isinstance(value, Fit) else value


@given(Values)
def test_exactly_the_leaves_that_cannot_be_stored_are_lost(value: Any) -> None:
    assert kept(value) == replaced(value)
