"""The steps that a schema holds, and which of them a pattern with arguments means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ezpyp.arguments import plain_value
from ezpyp.errors import UnknownStep
from ezpyp.selection import meant, unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A step as the schema has it."""

    name: str
    phase: int
    stem: str
    fingerprint: str
    function_name: str
    args: str
    kwargs: str
    #: Parameters with their values as JSON holds them.
    arguments: Mapping[str, Any]
    #: Names of the nearest dependencies.
    upstream: tuple[str, ...]


def entry_of(phase: int, content: Mapping[str, Any]) -> Entry:
    """The step that an entry of a schema tells of."""
    return Entry(
        name=content["name"],
        phase=phase,
        stem=content["stem"],
        fingerprint=content["fingerprint"],
        function_name=content["function_name"],
        args=content["args"],
        kwargs=content["kwargs"],
        arguments=content["arguments"],
        upstream=tuple(content["upstream"]),
    )


def choose(entries: Sequence[Entry], pattern: str, arguments: Mapping[str, Any]) -> list[Entry]:
    """The steps that a pattern means (see `selection.meant`), in their order, of which only those with these arguments.

    Raises:
        UnknownStep: no step is meant, or none of them has an argument of that name.
    """
    found = meant(pattern, entries, name=lambda e: e.name, function=lambda e: e.function_name)
    if not found:
        raise UnknownStep(unknown(pattern, (entry.name for entry in entries)))
    for key, wanted in arguments.items():
        if not any(key in entry.arguments for entry in found):
            known = dict.fromkeys(k for entry in found for k in entry.arguments)
            raise UnknownStep(
                f"No step of '{pattern}' has an argument '{key}'. Theirs are: {', '.join(known) or 'none'}."
            )
        found = [e for e in found if key in e.arguments and _fits(e.arguments[key], plain_value(wanted))]
    return found


def _fits(recorded: Any, wanted: Any) -> bool:
    """Whether an argument is the wanted one, or the one that a text spells."""
    if recorded == wanted:
        return isinstance(recorded, bool) == isinstance(wanted, bool)
    if not isinstance(wanted, str):
        return False
    if str(recorded) == wanted:
        return True
    try:
        return type(recorded) in (int, float) and float(wanted) == recorded
    except ValueError:
        return False
