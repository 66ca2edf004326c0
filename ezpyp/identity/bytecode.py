"""What a code object does, where its source cannot be trusted or must not be read.

Bytecode differs from one Python version to the next, so what is said here holds within one version only.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from types import CodeType
from typing import TYPE_CHECKING, Any

from ezpyp.identity.atoms import group, octets, text
from ezpyp.identity.values import encode

if TYPE_CHECKING:
    from ezpyp.identity.syntax import Reads

_LOADS = frozenset({"LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"})
_ATTRIBUTES = frozenset({"LOAD_ATTR", "LOAD_METHOD"})


@lru_cache(4096)
def code_bytes(code: CodeType) -> bytes:
    """The instructions, names and constants of a code object and of those inside it. Positions do not
    count.
    """
    counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    held = encode((code.co_consts, counts, names), text_of_class, _inner)
    return group(b"c", [text(code.co_name), octets(b"y", code.co_code), held])


def text_of_class(value: Any) -> bytes:
    """A function or class by name alone."""
    return text(f"{value.__module__}.{value.__qualname__}")


def _inner(value: object) -> bytes | None:
    return code_bytes(value) if isinstance(value, CodeType) else None


def code_reads(code: CodeType) -> Reads:
    """The names that a code object reads from around it, as `syntax.reads` gives them for source."""
    import dis

    names: set[tuple[str, ...]] = set()
    imports: set[tuple[int, str, tuple[str, ...]]] = set()
    for each in _all(code):
        path: tuple[str, ...] = ()
        for instruction in dis.get_instructions(each):
            what, value = instruction.opname, instruction.argval
            if what in _ATTRIBUTES and path:
                path = (*path, value)
                continue
            names.add(path)
            starts = what in _LOADS and (what != "LOAD_DEREF" or value in code.co_freevars)
            path = (value,) if starts else ()
            if what == "IMPORT_NAME":
                imports.add((0, value, ()))
    from ezpyp.identity.syntax import Reads

    return Reads(names=frozenset(names - {()}), hints=frozenset(), imports=frozenset(imports))


def _all(code: CodeType) -> Iterator[CodeType]:
    yield code
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _all(each)
