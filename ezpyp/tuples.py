"""Named tuples that cost a start of the program a tenth of what typing's do.

For type checkers this is `typing.NamedTuple`, and it behaves so, but for what nothing here needs: calls in place of
classes, and annotations that are no text. typing compiles the annotation of each field, and collections a constructor
for each class; here a constructor is that of another class of as many fields, with other names.
"""

from __future__ import annotations

from functools import cache
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NamedTuple  # noqa: TID251

__all__ = ["NamedTuple"]


@cache
def _constructor(count: int) -> CodeType:
    """What makes a tuple of so many fields."""
    names = "".join(f"_{i}, " for i in range(count))
    code: CodeType = eval(f"lambda _cls, {names}: new(_cls, ({names}))").__code__
    return code


@cache
def _getter(place: int) -> Any:
    """The field at this place, by what `collections.namedtuple` takes for it: in C, where there is such."""
    from collections import _tuplegetter  # type: ignore[attr-defined]

    return _tuplegetter(place, f"Alias for field number {place}")


class _Named(tuple[Any, ...]):
    """What all named tuples have in common, by the names that `collections.namedtuple` gives it."""

    __slots__ = ()
    _fields: tuple[str, ...] = ()

    @classmethod
    def _make(cls, values: Iterable[Any]) -> Any:
        made = tuple.__new__(cls, values)
        if len(made) != len(cls._fields):
            raise TypeError(f"Expected {len(cls._fields)} arguments, got {len(made)}")
        return made

    def _replace(self, /, **changes: Any) -> Any:
        made = self._make(map(changes.pop, self._fields, self))
        if changes:
            raise ValueError(f"Got unexpected field names: {[*changes]!r}")
        return made

    def _asdict(self) -> dict[str, Any]:
        return dict(zip(self._fields, self, strict=True))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self._asdict().items())})"

    def __getnewargs__(self) -> tuple[Any, ...]:
        """Pickles name the class and hold the values."""
        return tuple(self)


class _Making(type):
    """Turns what is written as a class into a named tuple, whose own class is `type`."""

    def __new__(cls, name: str, bases: tuple[type, ...], names: dict[str, Any]) -> Any:
        if not bases:
            return super().__new__(cls, name, bases, names)
        fields = tuple(names.get("__annotations__", ()))
        defaults = {field: names[field] for field in fields if field in names}
        if fields[len(fields) - len(defaults) :] != tuple(defaults):
            raise TypeError(f"{name} has a field without a default after one that has one")
        code = _constructor(len(fields)).replace(
            co_name="__new__", co_qualname=f"{names['__qualname__']}.__new__", co_varnames=("_cls", *fields)
        )
        own = {field: _getter(place) for place, field in enumerate(fields)}
        own["__new__"] = FunctionType(code, {"new": tuple.__new__}, "__new__", tuple(defaults.values()))
        told = {"__slots__": (), "__match_args__": fields, "_fields": fields, "_field_defaults": defaults}
        return type(name, (_Named,), names | told | own)


if not TYPE_CHECKING:

    class NamedTuple(metaclass=_Making):
        """Base of classes that are named tuples: `class Place(NamedTuple)`, and a line for each field."""
