"""Functions that can reach nothing beyond their arguments: what they leave behind in a process need not be looked for.

Such a function uses no module, attribute, file or generator of random numbers, only built-in functions that compute.
For a step that takes a microsecond, the system calls that guard the process against steps would take most of the time.
"""

from __future__ import annotations

import builtins
from opcode import opmap
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
_IMPORT = opmap["IMPORT_NAME"]
#: Coroutines complain when nobody awaits them (co_flags).
_AWAITED = 0x80 | 0x200


def is_confined(function: Any) -> bool:
    """Whether a call with `PLAIN` arguments can do nothing but compute. False where that cannot be told."""
    if type(function) is not FunctionType:
        return any(function is each for each in _COMPUTING.values())
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    return (
        function.__closure__ is None
        and all(type(each) in PLAIN for each in defaults)
        and getattr(function, "__builtins__", None) is builtins.__dict__
        and _computes(function.__code__, function.__globals__)
    )


def _computes(code: CodeType, around: dict[str, Any]) -> bool:
    return (
        not code.co_flags & _AWAITED
        and _IMPORT not in code.co_code[::2]
        and all(_is_builtin(name, around) for name in code.co_names)
        and all(_computes(each, around) for each in code.co_consts if isinstance(each, CodeType))
    )


def _is_builtin(name: str, around: dict[str, Any]) -> bool:
    return name in _COMPUTING and name not in around and getattr(builtins, name, None) is _COMPUTING[name]
