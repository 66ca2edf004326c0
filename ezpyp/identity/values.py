"""What a value is, as bytes that are the same in every process, on every machine and every day.

Values count by type and content, never by name, address, `repr` or `hash`. Two values are the same where
nobody could tell them apart by looking: lists and tuples differ, as do 1, 1.0 and True, and 0.0 and -0.0;
every NaN is the same. The order of a dict does not count (equal dicts are equal), that of an OrderedDict
does. Being the same object twice does not count. A cycle counts by how far back it leads.
"""

from __future__ import annotations

import enum
import sys
import types
from collections import OrderedDict
from collections.abc import Callable
from functools import cache, cached_property, partial
from operator import add, itemgetter
from typing import Any

from ezpyp.errors import IdentityError
from ezpyp.identity import arrays
from ezpyp.identity.atoms import ATOMS, Encoder, Walk, group, octets, text

#: Asked for every object that is neither an atom nor a builtin container; bytes take the place of its
#: content.
Reference = Callable[[object], bytes | None]

#: Gives the bytes of a function or class: what it does, not where it lies.
CodeIdentity = Callable[[Any], bytes]

_registered: dict[type, Callable[[Any], object]] = {}


def register_identity(cls: type, function: Callable[[Any], object]) -> None:
    """Let instances of `cls` and its subclasses count by the value that `function` gives for them.

    For classes that are not yours; your own may define `__ezpyp_identity__(self)` instead.
    """
    if not isinstance(cls, type) or cls in ATOMS or cls in _CONTAINERS:
        raise TypeError(f"register_identity({cls!r}, …): give a class that is not a builtin")
    _registered[cls] = function
    _others.clear()


def encode(value: object, code: CodeIdentity, reference: Reference | None = None) -> bytes:
    """The bytes that a value is identified by. `code` is asked for functions and classes.

    Raises:
        IdentityError: the value, or something in it, has no lasting identity.
    """
    walker = Walker(code, reference)
    try:
        return walker.encode(value)
    except NoIdentityError as error:
        raise IdentityError(_refusal(type(error.culprit), error.culprit is not value)) from None
    except RecursionError:
        raise IdentityError("is nested too deeply to be identified. Pass it as a file.") from None


def _refusal(culprit: type, inside: bool) -> str:
    """Continues "Argument 'conn' of 'load' "."""
    name = type_name(culprit)
    article = "an" if name[0] in "aeiouAEIOU" else "a"
    verb, joint = ("holds", ", which has") if inside else ("is", " and has")
    return (
        f"{verb} {article} {name}{joint} no lasting identity. Pass what it is made from (a path), "
        f"or @step(identity=...), or register_identity({culprit.__qualname__}, ...)."
    )


def type_name(cls: type) -> str:
    """A class as people name it: `sqlite3.Connection`, `generator`."""
    plain = cls.__module__ in ("builtins", "__main__")
    return cls.__qualname__ if plain else f"{cls.__module__}.{cls.__qualname__}"


def library_name(value: Any) -> str | None:
    """`numpy:linalg.norm` for what a loaded module has under that name, as pickle would find it; else None.

    Only the top of the module's name counts, because libraries move things about inside and Python renames
    its own private modules.
    """
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    name = name if isinstance(name, str) else getattr(value, "__name__", None)
    if module is None and isinstance(getattr(value, "__self__", None), types.ModuleType):
        module = value.__self__.__name__
    if not isinstance(name, str) or not isinstance(module, str):
        return None
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{module.split('.')[0].lstrip('_')}:{name}" if found is value else None


class NoIdentityError(Exception):
    """Raised inside a walk by the value that has none."""

    def __init__(self, culprit: object) -> None:
        self.culprit = culprit


class Walker:
    """One walk through one value."""

    __slots__ = ("code", "path", "reference")

    def __init__(self, code: CodeIdentity, reference: Reference | None) -> None:
        self.code, self.reference = code, reference
        self.path: list[int] = []

    def encode(self, value: Any) -> bytes:
        cls = type(value)
        atom = ATOMS.get(cls)
        if atom is not None:
            return atom(value)
        container = _CONTAINERS.get(cls)
        if container is not None:
            return container(value, self)
        if self.reference is not None:
            data = self.reference(value)
            if data is not None:
                return octets(b"R", data)
        other = _others.get(cls)
        if other is None:
            other = _others[cls] = _encoder(cls)
        return other(value, self)

    def inside(self, value: Any, encode: Callable[[], bytes]) -> bytes:
        key, path = id(value), self.path
        if key in path:
            return b"@%d;" % (len(path) - path.index(key))
        path.append(key)
        try:
            return encode()
        finally:
            path.pop()


def _each(values: Any, walk: Walk) -> list[bytes]:
    """The bytes of some values. Most are atoms, which are not worth a call into the walk."""
    atom, encode = ATOMS.get, walk.encode
    return [encode(value) if (known := atom(type(value))) is None else known(value) for value in values]


def _tuple(value: tuple[Any, ...], walk: Walk) -> bytes:
    return group(b"t", _each(value, walk)) if value else b"t0("


def _list(value: list[Any], walk: Walk) -> bytes:
    return walk.inside(value, lambda: group(b"l", _each(value, walk))) if value else b"l0("


def _dict(value: dict[Any, Any], walk: Walk) -> bytes:
    if not value:
        return b"d0("
    keys = _each(value, walk)
    if all(type(each) in ATOMS for each in value.values()):  # no cycle can come of these
        return group(b"d", sorted([k + ATOMS[type(v)](v) for k, v in zip(keys, value.values(), strict=True)]))
    # In the order of the keys, so that what a reference numbers does not depend on the order of the dict.
    ordered = sorted(zip(keys, value.values(), strict=True), key=itemgetter(0))
    return walk.inside(value, lambda: group(b"d", [*map(add, sorted(keys), _each([v for _, v in ordered], walk))]))


def _set(value: set[Any], walk: Walk) -> bytes:
    return group(b"e", sorted(_each(value, walk)))


def _frozenset(value: frozenset[Any], walk: Walk) -> bytes:
    return group(b"z", sorted(_each(value, walk)))


_CONTAINERS: dict[type, Encoder] = {tuple: _tuple, list: _list, dict: _dict, set: _set, frozenset: _frozenset}

#: Encoders of all other classes, found at the first instance of each.
_others: dict[type, Encoder] = {}


def _encoder(cls: type) -> Encoder:
    """How instances of a class are encoded: the user's word first, then what is known, then what can be
    seen.
    """
    for base in cls.__mro__:
        if base in _registered:
            return partial(_by_function, _registered[base])
        if "__ezpyp_identity__" in vars(base):
            return partial(_by_function, cls.__ezpyp_identity__)  # type: ignore[attr-defined]
    if issubclass(cls, _CODE):
        return _code
    if issubclass(cls, enum.Enum):
        return _member
    return arrays.encoder(cls) or _known(cls) or _seen(cls)


def _by_function(function: Callable[[Any], object], value: Any, walk: Walk) -> bytes:
    name = text(type_name(type(value)))
    return walk.inside(value, lambda: group(b"r", [name, walk.encode(function(value))]))


#: What is identified by what it does.
_CODE = (
    type,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
)


def _code(value: Any, walk: Walk) -> bytes:
    owner = getattr(value, "__self__", None)
    if isinstance(value, types.BuiltinFunctionType) and not isinstance(owner, (types.ModuleType, type, type(None))):
        return group(b"h", [text(value.__name__), walk.encode(owner)])
    return octets(b"k", walk.code(value))


def _member(value: enum.Enum, walk: Walk) -> bytes:
    """A member by its name and value; the name of a combination of flags is spelled differently from
    Python to Python.
    """
    name = None if isinstance(value, enum.Flag) else value.name
    return group(b"n", [walk.code(type(value)), walk.encode(name), walk.encode(value._value_)])


def _known(cls: type) -> Encoder | None:
    """The encoder of a class of the standard library, or of a class derived from one without hidden
    state of its own.
    """
    for (module, name), plain in _PLAIN.items():
        known = getattr(sys.modules.get(module), name, None)
        if isinstance(known, type) and issubclass(cls, known):
            return partial(_by_plain, f"{module}.{name}", known, plain)
    return None


def _by_plain(name: str, known: type, plain: Callable[[Any], object], value: Any, walk: Walk) -> bytes:
    """What a known object is made of, and what a subclass adds."""
    cls = type(value)

    def content() -> bytes:
        parts = [text(name), walk.encode(plain(value))]
        if cls is not known:
            parts += [octets(b"k", walk.code(cls)), walk.encode(_state(value, name.partition(".")[0]))]
        return group(b"o", parts)

    return walk.inside(value, content)


def _moment(value: Any) -> object:
    return value.replace(tzinfo=None, fold=0).isoformat(), value.fold, value.tzinfo


#: What objects of the standard library are made of. A class stands before those it is derived from.
_PLAIN: dict[tuple[str, str], Callable[[Any], object]] = {
    ("datetime", "datetime"): _moment,
    ("datetime", "date"): lambda v: v.isoformat(),
    ("datetime", "time"): _moment,
    ("datetime", "timedelta"): lambda v: (v.days, v.seconds, v.microseconds),
    ("datetime", "timezone"): lambda v: (v.utcoffset(None), v.tzname(None)),
    ("zoneinfo", "ZoneInfo"): lambda v: v.key,
    ("decimal", "Decimal"): str,
    ("fractions", "Fraction"): lambda v: (v.numerator, v.denominator),
    ("uuid", "UUID"): lambda v: v.int,
    ("pathlib", "PurePath"): str,
    ("re", "Pattern"): lambda v: (v.pattern, v.flags),
    ("builtins", "range"): lambda v: (v.start, v.stop, v.step),
    ("builtins", "slice"): lambda v: (v.start, v.stop, v.step),
    ("builtins", "memoryview"): lambda v: (v.format, v.shape, v.tobytes()),
    ("types", "MappingProxyType"): dict,
    ("types", "SimpleNamespace"): vars,
    ("types", "MethodType"): lambda v: (v.__func__, v.__self__),
    ("functools", "partial"): lambda v: (v.func, v.args, v.keywords),
    ("array", "array"): lambda v: (v.typecode, v.tobytes()),
    ("random", "Random"): lambda v: v.getstate(),
    ("collections", "deque"): lambda v: (list(v), v.maxlen),
    ("collections", "defaultdict"): lambda v: (v.default_factory, dict(dict.items(v))),
    ("collections", "OrderedDict"): lambda v: list(OrderedDict.items(v)),
    ("builtins", "bool"): bool,
    ("builtins", "int"): int.__int__,
    ("builtins", "float"): float.__float__,
    ("builtins", "complex"): lambda v: complex(v.real, v.imag),
    ("builtins", "str"): str.__str__,
    ("builtins", "bytes"): lambda v: bytes(memoryview(v)),
    ("builtins", "bytearray"): lambda v: bytearray(memoryview(v)),
    ("builtins", "tuple"): lambda v: tuple(tuple.__iter__(v)),
    ("builtins", "list"): lambda v: list(list.__iter__(v)),
    ("builtins", "dict"): lambda v: dict(dict.items(v)),
    ("builtins", "set"): lambda v: set(set.__iter__(v)),
    ("builtins", "frozenset"): lambda v: frozenset(frozenset.__iter__(v)),
    ("builtins", "BaseException"): lambda v: v.args,
}


def _seen(cls: type) -> Encoder:
    """Objects made of attributes alone, whoever wrote their class; what C code keeps out of sight is
    refused.
    """
    if cls is object or any(_hides(base) for base in cls.__mro__ if base is not object):
        return _by_name
    return _object


def _hides(base: type) -> bool:
    """Whether a class was made in C, so that its instances may hold what no attribute shows."""
    heap_type, immutable = 1 << 9, 1 << 8
    if not base.__flags__ & heap_type or base.__flags__ & immutable:
        return base.__module__ != "typing"  # Generic and Protocol hold nothing
    return any(isinstance(each, _C_METHODS) and each.__objclass__ is base for each in vars(base).values())


_C_METHODS = (types.MethodDescriptorType, types.WrapperDescriptorType, types.ClassMethodDescriptorType)


def _object(value: Any, walk: Walk) -> bytes:
    return walk.inside(value, lambda: group(b"o", [octets(b"k", walk.code(type(value))), walk.encode(_state(value))]))


def _state(value: Any, besides: str = "") -> object:
    """The attributes of an object: what its class says it is made of when pickled, else dict and slots.

    Slots of classes of the package `besides` are left out.
    """
    cls: Any = type(value)
    if cls.__getstate__ is not object.__getstate__ and cls.__getstate__.__module__ != "dataclasses":
        state = value.__getstate__()
        # scikit-learn notes its version in every estimator; packages are recorded elsewhere, not part of
        # identity.
        return {k: v for k, v in state.items() if k != "_sklearn_version"} if type(state) is dict else state
    slots, derived = _attributes(cls, besides)
    state = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    state.update((k, v) for k, v in getattr(value, "__dict__", {}).items() if k not in derived)
    return state


#: What `functools.wraps` leaves on an object that stands for a function.
_COPIED = frozenset({"__doc__", "__name__", "__qualname__", "__module__", "__annotations__", "__type_params__"})


@cache
def _attributes(cls: Any, besides: str) -> tuple[tuple[str, ...], frozenset[str]]:
    """The slots of a class, and the names in `__dict__` that say nothing new: cached properties and
    copied names.
    """
    bases = [base for base in cls.__mro__ if base.__module__.partition(".")[0] != besides]
    members = [(name, each) for base in bases for name, each in vars(base).items()]
    slots = [name for name, each in members if isinstance(each, types.MemberDescriptorType)]
    return tuple(slots), _COPIED | {name for name, each in members if isinstance(each, cached_property)}


def _by_name(value: Any, walk: Walk) -> bytes:
    """C objects that stand for a function, or that anybody finds under their name."""
    from inspect import getattr_static

    wrapped = getattr_static(value, "__wrapped__", None)
    if wrapped is not None:
        return group(b"h", [text(type_name(type(value))), walk.encode(value.__wrapped__)])
    name = library_name(value)
    if name is None:
        raise NoIdentityError(value)
    return octets(b"k", text(name))
