"""Which line of a script starts CUDA, as far as its text tells: for a message that says where to look."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator

#: Calls of `torch.cuda` that do not start it.
_HARMLESS = frozenset({"device_count", "is_available", "is_initialized", "manual_seed", "manual_seed_all"})


def starts_cuda(path: str) -> str:
    """`study.py:12`, the first line outside functions that moves something to a GPU; "" where none is found."""
    try:
        with open(path, encoding="utf-8") as file:
            tree = ast.parse(file.read())
    except (OSError, SyntaxError, ValueError):
        return ""
    calls = sorted((call for call in _calls(tree)), key=lambda call: call.lineno)
    for sure in (True, False):
        for call in calls:
            if _starts(call, sure):
                return f"{os.path.basename(path)}:{call.lineno}"
    return ""


def _calls(node: ast.AST) -> Iterator[ast.Call]:
    """The calls that happen when the script is run from top to bottom."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if isinstance(child, ast.Call):
            yield child
        yield from _calls(child)


def _starts(call: ast.Call, sure: bool) -> bool:
    """Whether a call says `cuda`; where none of the script does, whether it moves something to a device of any kind."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
    if not sure:
        return name == "to" or any(keyword.arg == "device" for keyword in call.keywords)
    if name in _HARMLESS or name == "device":
        return False
    words = [*call.args, *(keyword.value for keyword in call.keywords)]
    said = (each.value for each in words if isinstance(each, ast.Constant) and isinstance(each.value, str))
    return "cuda" in ast.unparse(call.func).lower().split(".") or any(each.startswith("cuda") for each in said)
