"""Values as one line that a person recognises."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def shorten(value: Any, width: int = 60) -> str:
    """One line of at most `width` characters that a person recognises: `array(float64, 1000x3)`, `Table(10x4)`."""
    text = _outline(value)
    if text is None:
        try:
            text = repr(value) if not isinstance(value, (list, tuple, dict)) else _sequence(value, width)
        except Exception as error:
            text = f"<{type(value).__name__}: its repr raised {type(error).__name__}>"
    text = " ".join(text.split())
    return text if len(text) <= width else text[: width - 1] + "…"


#: Of these, the repr is what `shorten` gives.
_ATOMS = frozenset({int, float, bool, complex, type(None)})


def describe(args: Iterable[Any], kwargs: Mapping[str, Any], width: int = 60) -> tuple[str, str]:
    """The two texts of a summary row: `[9, 8]` and `{'k': 1}`, each at most `width` characters."""
    if not kwargs and _ATOMS.issuperset(map(type, args := list(args))) and len(text := repr(args)) <= width:
        return text, "{}"
    return shorten(list(args), width), shorten(dict(kwargs), width)


def field_names(value: Any) -> list[str] | None:
    """The names of the fields of a dataclass; None of any other value."""
    if not hasattr(type(value), "__dataclass_fields__"):
        return None
    from dataclasses import fields  # loaded already, where there is a dataclass

    return [each.name for each in fields(value)]


def _outline(value: Any) -> str | None:
    """Shapes instead of contents for arrays and tables; None for everything else."""
    shape = getattr(value, "shape", None)
    if not isinstance(shape, tuple) or isinstance(value, type) or not shape:
        return None
    size = "x".join(str(n) for n in shape)
    dtype = getattr(value, "dtype", None)
    kind = "array" if type(value).__name__ == "ndarray" else type(value).__name__
    return f"{kind}({dtype}, {size})" if dtype is not None else f"{kind}({size})"


def _sequence(value: list[Any] | tuple[Any, ...] | dict[Any, Any], width: int) -> str:
    """The repr of a container whose members are shortened too, and no longer read than can be shown."""
    opening, closing = ("(", ")") if isinstance(value, tuple) else ("{", "}") if isinstance(value, dict) else ("[", "]")
    parts: list[str] = []
    length = 0
    items = value.items() if isinstance(value, dict) else value
    for item in items:
        part = f"{item[0]!r}: {shorten(item[1], width)}" if isinstance(value, dict) else shorten(item, width)
        parts.append(part)
        length += len(part) + 2
        if length > width:
            break
    lone = "," if isinstance(value, tuple) and len(value) == 1 else ""
    return f"{opening}{', '.join(parts)}{lone}{closing}"
