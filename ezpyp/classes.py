"""Dataclasses of which a process makes only what it uses.

`dataclasses.dataclass` writes and compiles up to nine methods when a class is defined: half a millisecond a class, on
every rank, for some seventy classes of which a process needs half. Here the methods that all classes can share are
shared, `__init__` is compiled for the first instance, and the fields as `dataclasses` knows them are made when somebody
asks. To a reader, to a type checker and to `dataclasses.fields` these are dataclasses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import MISSING, Field, FrozenInstanceError, field
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

T = TypeVar("T")

__all__ = ["dataclass", "field", "replace"]

if TYPE_CHECKING:
    from dataclasses import dataclass, replace
else:

    def dataclass(**options: bool) -> Callable[[type], type]:
        """As `dataclasses.dataclass`, to which it leaves classes without slots and those that inherit."""

        def make(cls: type) -> type:
            own = options.get("slots") and options.get("init", True) and cls.__bases__ == (object,)
            apart = any(isinstance(each, Field) and not each.init for each in vars(cls).values())
            if not own or apart or "__init__" in vars(cls):
                return dataclasses.dataclass(**options)(cls)
            return _make(cls, options)

        return make

    def replace(value: T, **changes: Any) -> T:
        """As `dataclasses.replace`, without asking for the fields."""
        kind = type(value)
        if not isinstance(vars(kind).get("__dataclass_fields__"), _Late):
            return dataclasses.replace(value, **changes)
        return kind(**{**{name: getattr(value, name) for name in kind.__slots__}, **changes})


def _make(cls: type, options: dict[str, bool]) -> type:
    names = tuple(name for name, kind in cls.__annotations__.items() if not kind.startswith("ClassVar"))
    space = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    defaults = {name: space.pop(name) for name in names if name in space}
    frozen, eq = options.get("frozen", False), options.get("eq", True)
    shared = _shared(names, defaults, frozen=frozen, eq=eq, shown=options.get("repr", True))
    space = {**shared, **space, "__slots__": names, "__match_args__": () if options.get("kw_only") else names}
    made = type(cls)(cls.__name__, cls.__bases__, space)
    made.__qualname__ = cls.__qualname__

    def begin(self: Any, *args: Any, **values: Any) -> None:
        initialize = _initializer(made, names, defaults, only_by_name=options.get("kw_only", False))
        made.__init__ = initialize  # type: ignore[misc]
        initialize(self, *args, **values)

    made.__init__ = begin  # type: ignore[misc]
    full: Callable[[], type] = cache(lambda: dataclasses.dataclass(**options)(cls))  # which can be asked only once
    for name in ("__dataclass_fields__", "__dataclass_params__"):
        setattr(made, name, _Late(name, full))
    return made


class _Late:
    """An attribute of a class that is found out when somebody asks for it."""

    __slots__ = ("_find", "_name")

    def __init__(self, name: str, find: Callable[[], type]) -> None:
        self._name, self._find = name, find

    def __get__(self, instance: object, owner: type) -> Any:
        return getattr(self._find(), self._name)


def _initializer(made: Any, names: tuple[str, ...], defaults: dict[str, Any], *, only_by_name: bool) -> Any:
    """`__init__` of a class, compiled. It sets the slots themselves, past the `__setattr__` of a frozen class."""
    known: dict[str, Any] = {"_missing": MISSING}
    takes, does = ["self", "*"] if only_by_name and names else ["self"], []
    for name in names:
        default, value = defaults.get(name, MISSING), name
        if isinstance(default, Field):
            if default.default_factory is not MISSING:
                known[f"_make_{name}"], default = default.default_factory, MISSING
                value = f"_make_{name}() if {name} is _missing else {name}"
                takes.append(f"{name}=_missing")
            else:
                default = default.default
        if default is not MISSING:
            known[f"_default_{name}"] = default
            takes.append(f"{name}=_default_{name}")
        elif value == name:
            takes.append(name)
        known[f"_set_{name}"] = vars(made)[name].__set__
        does.append(f" _set_{name}(self, {value})")
    if hasattr(made, "__post_init__"):
        does.append(" self.__post_init__()")
    exec(f"def __init__({', '.join(takes)}):\n" + ("\n".join(does) or " pass"), known)
    known["__init__"].__qualname__ = f"{made.__qualname__}.__init__"
    return known["__init__"]


def _shared(names: tuple[str, ...], defaults: dict[str, Any], *, frozen: bool, eq: bool, shown: bool) -> dict[str, Any]:
    """The methods that need no code of their own."""
    found: dict[str, Any] = {}
    values = _getter(names)
    if shown:

        def show(self: Any) -> str:
            told = ", ".join(f"{name}={value!r}" for name, value in zip(names, values(self), strict=True))
            return f"{type(self).__qualname__}({told})"

        found["__repr__"] = show
    if eq:
        apart = {name for name, each in defaults.items() if isinstance(each, Field) and not each.compare}
        compared = _getter(tuple(name for name in names if name not in apart))

        def equals(self: Any, other: object) -> bool:
            return compared(self) == compared(other) if other.__class__ is self.__class__ else NotImplemented

        def digest(self: Any) -> int:
            return hash(compared(self))

        found.update(__eq__=equals, __hash__=digest if frozen else None)
    if frozen:

        def state_of(self: Any) -> list[Any]:
            return [*values(self)]

        def restore(self: Any, state: list[Any]) -> None:
            for name, value in zip(names, state, strict=True):
                object.__setattr__(self, name, value)

        found.update(__setattr__=_refuse_to_set, __delattr__=_refuse_to_delete)
        found.update(__getstate__=state_of, __setstate__=restore)
    return found


def _getter(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    """The values of some fields."""
    if len(names) > 1:
        return attrgetter(*names)
    return lambda value: tuple(getattr(value, name) for name in names)


def _refuse_to_set(self: object, name: str, value: object) -> NoReturn:
    raise FrozenInstanceError(f"cannot assign to field '{name}'")


def _refuse_to_delete(self: object, name: str) -> NoReturn:
    raise FrozenInstanceError(f"cannot delete field '{name}'")
