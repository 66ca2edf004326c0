"""Functions that can reach nothing beyond their arguments: what they leave behind in a process need not be looked for.

Such a function uses no module, attribute, file or generator of random numbers, only built-in functions that compute,
global constants, and other such functions. For a step that takes a microsecond, the system calls that guard the process
against steps would take most of the time.
"""

from __future__ import annotations

import builtins
from functools import cache
from types import CodeType, FunctionType, NoneType
from typing import Any

#: Values that carry no code of the user's.
PLAIN = frozenset({int, float, str, bytes, bool, complex, NoneType})

_COMPUTING = {
    name: getattr(builtins, name)
    for name in (
        *("abs", "all", "any", "bool", "bytes", "chr", "complex", "dict", "divmod", "enumerate", "float", "frozenset"),
        *("int", "len", "list", "max", "min", "ord", "pow", "range", "reversed", "round", "set", "sorted", "str"),
        *("sum", "tuple", "zip", "ArithmeticError", "IndexError", "KeyError", "TypeError", "ValueError"),
    )
}
#: What reaches or changes something that is not the function's own: globals, attributes, modules, classes. Versions of
#: Python differ in which of these they have; without them a name in the code is that of a global that is read.
_REACHING = (
    *("DELETE_ATTR", "DELETE_GLOBAL", "DELETE_NAME", "IMPORT_FROM", "IMPORT_NAME", "IMPORT_STAR", "LOAD_ATTR"),
    *("LOAD_BUILD_CLASS", "LOAD_METHOD", "LOAD_SPECIAL", "LOAD_SUPER_ATTR", "MATCH_CLASS", "STORE_ATTR"),
    *("STORE_GLOBAL", "STORE_NAME"),
)
#: Coroutines complain when nobody awaits them (co_flags).
_AWAITED = 0x80 | 0x200
#: So far functions that call each other are followed.
_DEEPEST = 4


def is_confined(function: Any) -> bool:
    """Whether a call with `PLAIN` arguments can do nothing but compute. False where that cannot be told.

    It holds until something else runs in this process, which may put other values under the names that it uses.
    """
    return _is_confined(function, ())


def _is_confined(function: Any, callers: tuple[FunctionType, ...]) -> bool:
    if type(function) is not FunctionType:
        return any(function is each for each in _COMPUTING.values())
    if len(callers) > _DEEPEST:
        return False
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    return (
        function.__closure__ is None
        and all(type(each) in PLAIN for each in defaults)
        and getattr(function, "__builtins__", None) is builtins.__dict__
        and _computes(function.__code__, function.__globals__, (*callers, function))
    )


@cache
def _reaching() -> frozenset[int]:
    from opcode import opmap

    return frozenset(opmap[name] for name in _REACHING if name in opmap)


def _computes(code: CodeType, around: dict[str, Any], callers: tuple[FunctionType, ...]) -> bool:
    return (
        not code.co_flags & _AWAITED
        and _reaching().isdisjoint(code.co_code[::2])
        and all(_is_harmless(name, around, callers) for name in code.co_names)
        and all(_computes(each, around, callers) for each in code.co_consts if isinstance(each, CodeType))
    )


def _is_harmless(name: str, around: dict[str, Any], callers: tuple[FunctionType, ...]) -> bool:
    """Whether what a function reads under a global name is a constant, or can do nothing but compute."""
    if name not in around:
        return name in _COMPUTING and getattr(builtins, name, None) is _COMPUTING[name]
    value = around[name]
    return _is_constant(value) or any(value is each for each in callers) or _is_confined(value, callers)


def _is_constant(value: Any) -> bool:
    return type(value) in PLAIN or (type(value) is tuple and all(map(_is_constant, value)))
