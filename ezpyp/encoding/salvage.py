"""What can be kept of a result that cannot be stored, and which part of it is to blame."""

from __future__ import annotations

import types
from typing import Any

from ezpyp.identity.outline import field_names
from ezpyp.system.files import Buffer
from ezpyp.tuples import NamedTuple

# ----- whom to blame


_LAZY = (types.GeneratorType, types.AsyncGeneratorType, map, filter, zip)
_LISTED = "Return a list, or write it to a file and return File(path)."


def complaint(value: Any, error: Exception) -> str:
    """What a step returned that cannot be stored, and what to do: the end of "Step 'fit' returned …"."""
    if isinstance(value, types.CoroutineType):
        return "a coroutine, which cannot be stored. Return what it gives: asyncio.run(...)."
    if isinstance(value, _LAZY):
        return f"{a(value)}, which cannot be stored. {_LISTED}"
    where, part = culprit(value)
    why = f" ({one_line(error)})" if part is value else ""
    remedy = _LISTED if isinstance(part, _LAZY) else "Return what it is made from, such as a path or plain numbers."
    return f"a value that cannot be stored: {where} is {a(part)}{why}. {remedy}"


def culprit(value: Any) -> tuple[str, Any]:
    """The innermost part that cannot be stored, and how to reach it: `result['log']`."""
    path, above = "result", set[int]()
    while id(value) not in above:
        above.add(id(value))
        keys, parts, how = _opened(value)
        k = _first_unfit(parts)
        if k is None:
            break
        path, value = path + how.format(keys[k]), parts[k]
    return path, value


def _first_unfit(parts: list[Any]) -> int | None:
    """By halves: one file handle among a million numbers is found in twenty tries."""
    low, high = 0, len(parts)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _fits(parts[low:middle]) else (low, middle)
    return low if parts and not _fits(parts[low]) else None


def a(value: Any) -> str:
    """A value by its type, with an article: `an _io.TextIOWrapper`."""
    name = _type_name(value)
    return f"{'an' if name.lstrip('_')[:1].lower() in tuple('aeiou') else 'a'} {name}"


def one_line(error: Exception) -> str:
    """`TypeError: cannot pickle '_thread.lock' object`."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def _type_name(value: Any) -> str:
    kind = type(value)
    plain = kind.__module__ in ("builtins", "__main__")
    return kind.__qualname__ if plain else f"{kind.__module__}.{kind.__qualname__}"


# ----- what to keep


class Unstored(NamedTuple):
    """Stands in NAME.partial for a part of a result that could not be stored."""

    type_name: str
    text: str


def partial_of(value: Any) -> bytes:
    """Cloudpickle of a result with an Unstored in place of each part that cannot be stored.

    Looks into dicts, lists, tuples, dataclasses and plain objects, at any depth. The value itself is not changed.
    """
    import cloudpickle

    return bytes(cloudpickle.dumps(_mended(value, frozenset()), 5))


def _mended(value: Any, above: frozenset[int]) -> Any:
    if _fits(value):
        return value
    keys, parts, _ = _opened(value)
    if not parts or id(value) in above:
        return _unstored(value)
    mended = _all_mended(parts, above | {id(value)})
    if mended is parts and not _is_container(value):
        return _unstored(value)  # not for what is in it: a file, which has a few attributes
    return _rebuilt(value, keys, mended)


def _all_mended(parts: list[Any], above: frozenset[int]) -> list[Any]:
    """The same list where nothing needs mending. By halves, as above."""
    if _fits(parts):
        return parts
    if len(parts) == 1:
        return [_mended(parts[0], above)]
    half = len(parts) // 2
    return _all_mended(parts[:half], above) + _all_mended(parts[half:], above)


def _rebuilt(value: Any, keys: list[Any], parts: list[Any]) -> Any:
    """A container with other parts; a plain one where its own type does not take them."""
    if isinstance(value, dict):
        return {k if _fits(k) else _unstored(k): part for k, part in zip(keys, parts, strict=True)}
    if isinstance(value, (list, tuple)):
        return parts if isinstance(value, list) else tuple(parts)
    try:
        from copy import copy

        twin = copy(value)
        for name, part in zip(keys, parts, strict=True):
            object.__setattr__(twin, name, part)
    except Exception:  # user code may do anything
        twin = None
    return twin if twin is not None and _fits(twin) else dict(zip(keys, parts, strict=True))


def _unstored(value: Any) -> Unstored:
    try:
        text = repr(value)[:200]
    except Exception:  # user code
        text = "?"
    return Unstored(type_name=_type_name(value), text=text)


# ----- looking inside


def _opened(value: Any) -> tuple[list[Any], list[Any], str]:
    """The keys and parts of a container or object, and how a key is written; nothing of anything else."""
    if isinstance(value, dict):
        return list(value), list(value.values()), "[{!r}]"
    if isinstance(value, (list, tuple)):
        return list(range(len(value))), list(value), "[{}]"
    names = _attributes(value)
    return names, [getattr(value, name) for name in names], ".{}"


def _attributes(value: Any) -> list[str]:
    if isinstance(value, type):
        return []
    if (names := field_names(value)) is not None:
        return [name for name in names if hasattr(value, name)]
    inner = getattr(value, "__dict__", None)
    return [name for name in inner if hasattr(value, name)] if type(inner) is dict else []


def _is_container(value: Any) -> bool:
    return isinstance(value, (dict, list, tuple)) or field_names(value) is not None


class _Nowhere:
    """A file for a pickler whose bytes nobody wants."""

    def write(self, data: Buffer) -> int:
        return len(data)


def _fits(value: Any) -> bool:
    """Whether it can be stored. Costs the time to pickle it, but no memory."""
    import cloudpickle

    try:
        cloudpickle.Pickler(_Nowhere(), protocol=5, buffer_callback=lambda _: None).dump(value)
    except Exception:
        return False
    return True
