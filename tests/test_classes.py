"""Dataclasses that make their methods late: nobody can tell."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any, ClassVar

import pytest

from ezpyp import classes


def both(**options: bool) -> Any:
    """The same class, made by the standard library and here."""

    def make(body: type) -> tuple[Any, Any]:
        twin = type(body.__name__, (), dict(vars(body)))
        twin.__qualname__ = body.__qualname__
        return dataclasses.dataclass(**options)(body), classes.dataclass(**options)(twin)

    return make


@classes.dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    x: int
    y: int = 2
    tags: list[str] = classes.field(default_factory=list)
    note: str = classes.field(default="", compare=False)
    origin: ClassVar[int] = 0


@classes.dataclass(slots=True)
class Counter:
    name: str
    count: int = 0

    def __post_init__(self) -> None:
        self.count += 1


@classes.dataclass(frozen=True, slots=True, kw_only=True)
class Never:
    value: int = 0


def test_fields_defaults_and_comparison_are_those_of_a_dataclass() -> None:
    point = Point(x=1, note="a")
    assert (point.y, point.tags, point.origin) == (2, [], 0)
    assert point == Point(x=1, note="b") != Point(x=3)
    assert Point(x=1).tags is not point.tags
    assert repr(point) == "Point(x=1, y=2, tags=[], note='a')"
    assert dataclasses.is_dataclass(point)
    assert dataclasses.asdict(point) == {"x": 1, "y": 2, "tags": [], "note": "a"}
    assert [(f.name, f.compare) for f in dataclasses.fields(Point)] == [
        ("x", True),
        ("y", True),
        ("tags", True),
        ("note", False),
    ]
    assert dataclasses.replace(point, x=5) == classes.replace(point, x=5) == Point(x=5)


def test_frozen_values_hash_and_cannot_be_changed() -> None:
    value: Any = Never(value=1)
    assert {value, Never(value=1)} == {value}
    with pytest.raises(dataclasses.FrozenInstanceError):
        value.value = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        del value.value
    assert not hasattr(value, "__dict__")


def test_others_can_be_changed_and_do_not_hash() -> None:
    counter = Counter("a", 1)
    assert counter.count == 2
    counter.count = 7
    assert counter == Counter("a", 6)
    assert Counter.__hash__ is None


@pytest.mark.parametrize("value", [Point(x=1, tags=["t"]), Counter("a")])
def test_they_travel(value: Any) -> None:
    assert pickle.loads(pickle.dumps(value)) == value == copy.copy(value) == copy.deepcopy(value)


def test_what_is_pickled_can_be_read_before_any_was_made_here() -> None:
    """Nothing but `__init__` waits for the first instance."""
    value = Never.__new__(Never)
    value.__setstate__([3])  # type: ignore[attr-defined]
    assert value == Never(value=3)


@pytest.mark.parametrize("arguments", [{}, {"x": 1, "z": 2}])
def test_wrong_arguments_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match=r"Point\.__init__\(\)"):
        Point(**arguments)
    with pytest.raises(TypeError):
        Point(1)  # type: ignore[call-arg]


def test_a_class_may_bring_its_own_methods() -> None:
    @classes.dataclass(frozen=True, slots=True, kw_only=True)
    class Own:
        value: int = 1

        def __repr__(self) -> str:
            return "own"

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Own)

        def __hash__(self) -> int:
            return 3

    assert repr(Own()) == "own"
    assert Own(value=1) == Own(value=2)
    assert hash(Own()) == 3


def test_a_class_that_inherits_may_begin_in_its_own_way() -> None:
    @classes.dataclass(slots=True, kw_only=True)
    class Base:
        value: int = 1

    class Derived(Base):
        def __init__(self) -> None:
            super().__init__(value=5)

    assert Derived().value == 5
    assert Base().value == 1
