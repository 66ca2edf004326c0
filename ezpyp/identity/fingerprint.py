"""Identity: the same for the same thing on every rank, machine and day, and under every Python from 3.11 on.

The door to the modules below it: `atoms`, `arrays` and `identity` say what a value is; `syntax`, `sources`,
`bytecode`, `modules`, `graph` and `code` what a function does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from ezpyp.identity.atoms import combine, digest, group, octets, text
from ezpyp.identity.bytecode import code_bytes, text_of_class
from ezpyp.identity.modules import UserModules, name_of, top, unwrapped
from ezpyp.identity.values import NoIdentityError, Walker, encode, library_name, register_identity, type_name

if TYPE_CHECKING:
    from ezpyp.identity.graph import Code, Part

__all__ = [
    "UserModules",
    "code_digest",
    "combine",
    "digest_value",
    "encoded_value",
    "explain",
    "follow",
    "register_identity",
]


def digest_value(
    value: object,
    *,
    reference: Callable[[object], bytes | None] | None = None,
    met: list[object] | None = None,
) -> bytes:
    """The identity of a value by type and content, 16 bytes.

    Functions and the user's classes count by what they do now, which reads their sources.

    Args:
        reference: asked for every object that is neither a number, a text nor a builtin container; bytes that
            it returns take the place of the object's content.
        met: gathers functions and classes, those of objects too, to be given to `follow(uses=...)` once all
            helpers are defined. Classes then count by name only, and no source is read for them.

    Raises:
        IdentityError: there is none. The text continues "Argument 'conn' of 'load' ".
    """
    return digest(encoded_value(value, reference=reference, met=met))


def encoded_value(
    value: object,
    *,
    reference: Callable[[object], bytes | None] | None = None,
    met: list[object] | None = None,
) -> bytes:
    """The bytes that `digest_value` gives the digest of."""
    return encode(value, _code if met is None else partial(_noted, met), reference)


def follow(function: object, *, uses: Sequence[object] = (), user_modules: UserModules | None = None) -> Code:
    """The identity of a function with all of the user's that it leads to. For many functions use one `Follower`.

    Args:
        uses: what it uses besides what its source shows.
        user_modules: whose code is followed; by default all that is not installed.
    """
    from ezpyp.identity.code import Follower

    return Follower(user_modules).follow(function, uses=uses)


def code_digest(function: object) -> bytes:
    """What a function does, 16 bytes, from memory alone: to compare the ranks of one run, not two days.

    Bytecode, constants, names and defaults; of partials and methods also what they are bound to. Helpers are
    not followed.
    """
    return digest(_in_memory(function))


def explain(before: Mapping[str, Part], after: Mapping[str, Part]) -> list[str]:
    """What changed between the parts of a function then and now: `helpers.loss: constant 3 -> 4`."""
    changes = {key: _changes(key, before[key], after[key]) for key in before if key in after}
    lines = [line for key in changes for line in changes[key] if not _said_inside(key, line, changes)]
    lines += [f"{key} is no longer used" for key, part in before.items() if _is_gone(key, part, after)]
    lines += [f"{key} is used now" for key, part in after.items() if _is_gone(key, part, before)]
    return lines


def _changes(key: str, old: Part, new: Part) -> list[str]:
    if old["digest"] == new["digest"]:
        pairs = ((name, to, new["uses"].get(name, to)) for name, to in old["uses"].items())
        return [f"{key}: {name} is {now}, was {then}" for name, then, now in pairs if then != now]
    if old["kind"] != new["kind"]:
        return [f"{key}: is a {new['kind']}, was a {old['kind']}"]
    if new["kind"] in ("function", "class", "module"):
        from ezpyp.identity.syntax import differences

        return [f"{key}: {each}" for each in differences(old["shown"], new["shown"])]
    if old["shown"] == new["shown"]:
        return [f"{_subject(key, new)} content changed ({new['shown']})"]
    return [f"{_subject(key, new)} {old['shown']} -> {new['shown']}"]


def _said_inside(key: str, line: str, changes: Mapping[str, list[str]]) -> bool:
    """Whether a function inside this one is said to have changed in the same way."""
    inner = f"{key}.<locals>."
    return any(each.startswith(inner) and each + line.removeprefix(key) in changes[each] for each in changes)


def _subject(key: str, part: Part) -> str:
    """`train: default of lr`, `make.<locals>.f: closure value k`, `helpers.K:`."""
    kinds = {"default": "default of", "closure": "closure value"}
    kind = kinds.get(part["kind"])
    return f"{key}:" if kind is None else f"{part['owner']}: {kind} {part['name']}"


def _is_gone(key: str, part: Part, others: Mapping[str, Part]) -> bool:
    """Whether others lack this part; the values of a function that they lack too go without saying."""
    return key not in others and (not part["owner"] or part["owner"] in others)


def _code(value: Any) -> bytes:
    """A function or class inside a value."""
    if _OWN.holds(name_of(value)):
        return text(follow(value).digest)
    return text(library_name(value) or f"{top(name_of(value))}:{value.__qualname__}")


def _noted(met: list[object], value: Any) -> bytes:
    if not _OWN.holds(name_of(value)):
        return _code(value)
    met.append(value)
    return text_of_class(value) if isinstance(value, type) else _code(value)


_OWN = UserModules()


def _in_memory(value: Any) -> bytes:
    """The bytes of any value as one process can know it: functions by bytecode, classes and handles by name."""
    value = unwrapped(value)
    if isinstance(value, FunctionType):
        bound = [_in_memory(each) for each in (value.__defaults__, value.__kwdefaults__)]
        return group(b"c", [code_bytes(value.__code__), *bound])
    if isinstance(value, MethodType):
        return group(b"m", [_in_memory(value.__func__), _in_memory(value.__self__)])
    try:
        return Walker(_by_memory, None).encode(value)
    except NoIdentityError as error:
        return octets(b"k", text(type_name(type(error.culprit))))


def _by_memory(value: Any) -> bytes:
    if isinstance(value, FunctionType):
        return _in_memory(value)
    if isinstance(value, type):
        own = [each.__code__ for each in vars(value).values() if isinstance(each, FunctionType)]
        return group(b"k", [text_of_class(value), *map(code_bytes, own)])
    return text(library_name(value) or type_name(type(value)))
