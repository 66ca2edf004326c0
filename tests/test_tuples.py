"""Named tuples behave as those of the standard library."""

from __future__ import annotations

import pickle
import typing
from typing import Any

import pytest

from ezpyp.tuples import NamedTuple


class Ours(NamedTuple):
    """A place."""

    name: str
    row: int = 3
    others: tuple[str, ...] = ()

    @property
    def double(self) -> int:
        return 2 * self.row

    @classmethod
    def of(cls, text: str) -> Ours:
        return cls(text, row=len(text))


class Theirs(typing.NamedTuple):
    """A place."""

    name: str
    row: int = 3
    others: tuple[str, ...] = ()

    @property
    def double(self) -> int:
        return 2 * self.row

    @classmethod
    def of(cls, text: str) -> Theirs:
        return cls(text, row=len(text))


class Empty(NamedTuple):
    """Nothing."""


class Same(NamedTuple):
    """As many fields as `Ours`, with other names."""

    row: int
    name: str
    last: str


def plain(text: str) -> str:
    return text.replace("Theirs", "Ours")


def told(call: typing.Callable[[], object]) -> str:
    """What a call gives, or what it says that is wrong."""
    try:
        return plain(repr(call()))
    except Exception as error:
        return plain(f"{type(error).__name__}: {error}")


def matched(value: object) -> object:
    match value:
        case Ours(name, row) | Theirs(name, row):
            return name, row
    return None


def set_name(value: Any) -> None:
    value.name = "other"


def set_new(value: Any) -> None:
    value.new = "other"


@pytest.mark.parametrize(
    "act",
    [
        lambda kind: kind("a"),
        lambda kind: kind("a", 1, ("b",)),
        lambda kind: kind(others=("b",), name="a"),
        lambda kind: kind(),
        lambda kind: kind("a", "b", "c", "d"),
        lambda kind: kind("a", size=1),
        lambda kind: kind("a", name="b"),
        lambda kind: kind.of("abc").double,
        lambda kind: kind("a")._replace(row=5),
        lambda kind: kind("a")._asdict(),
        lambda kind: kind._make(["a", 1, ()]),
        lambda kind: kind._make(["a"]),
        lambda kind: (kind._fields, kind._field_defaults, kind.__match_args__, kind.__doc__, kind.__slots__),
        lambda kind: (kind.__annotations__.keys(), kind.__module__, kind.__qualname__, type(kind)),
        lambda kind: kind.row.__doc__,
        lambda kind: matched(kind("a", 1)),
        lambda kind: kind("a") == ("a", 3, ()) and hash(kind("a")) == hash(("a", 3, ())),
        lambda kind: pickle.loads(pickle.dumps(kind("a", 9))),
        lambda kind: (*kind("a"), kind("a")[1:]),
        lambda kind: type(kind("a")) is kind and isinstance(kind("a"), tuple),
        lambda kind: hasattr(kind("a"), "__dict__"),
        lambda kind: set_name(kind("a")),
        lambda kind: set_new(kind("a")),
    ],
)
def test_ours_do_as_theirs(act: typing.Callable[[Any], object]) -> None:
    assert told(lambda: act(Ours)) == told(lambda: act(Theirs))


def test_fields_may_have_the_names_of_another_class_in_another_order() -> None:
    value = Same(1, name="n", last="l")
    assert (value.row, value.name, value.last) == (1, "n", "l")
    assert Ours("a", 2).name == "a"


def test_a_field_that_is_not_there_cannot_be_replaced() -> None:
    """Python 3.13 says it by another class of error."""
    with pytest.raises(ValueError, match=r"Got unexpected field names: \['rows'\]"):
        Ours("a")._replace(rows=5)  # type: ignore[call-arg]


def test_there_may_be_no_fields() -> None:
    assert Empty() == ()
    assert repr(Empty()) == "Empty()"


def test_defaults_come_last() -> None:
    with pytest.raises(TypeError, match="Wrong has a field without a default after one that has one"):

        class Wrong(NamedTuple):
            first: int = 1
            last: int  # type: ignore[misc]
