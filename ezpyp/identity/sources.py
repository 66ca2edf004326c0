"""From a function or class that runs to the syntax tree it came from, proved to be the same.

Each file is read, parsed and compiled once in a process. A function's tree is believed only where compiling
the file gives the very code that runs; where it does not (edited meanwhile, made by exec, typed at a
prompt) there is none.
"""

from __future__ import annotations

import ast
import os
import sys
import warnings
from collections import defaultdict
from types import CodeType, FunctionType
from typing import Any

from ezpyp.identity.syntax import Function

#: (line, column) of the beginning and the end.
Span = tuple[tuple[int, int], tuple[int, int]]


class File:
    """One source file: its tree, its code objects, and where in the tree functions and classes are."""

    def __init__(self, name: str, lines: list[str]) -> None:
        self.lines = lines
        self.codes: dict[tuple[str, int], list[CodeType]] = defaultdict(list)
        self.functions: dict[tuple[str, int], list[Function | ast.Lambda]] = defaultdict(list)
        self.classes: dict[str, list[ast.ClassDef]] = defaultdict(list)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the import has given them already
            tree = ast.parse("".join(lines), name)
            self._enter_code(compile(tree, name, "exec", dont_inherit=True))
        self._enter_nodes(tree, "")
        self.tree = tree

    def _enter_code(self, code: CodeType) -> None:
        self.codes[code.co_name, code.co_firstlineno].append(code)
        for each in code.co_consts:
            if isinstance(each, CodeType):
                self._enter_code(each)

    def _enter_nodes(self, node: ast.AST, outer: str) -> None:
        inner = outer
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            self.functions[node.name, first_line(node)].append(node)
            inner = f"{outer}{node.name}.<locals>."
        elif isinstance(node, ast.Lambda):
            self.functions["<lambda>", node.lineno].append(node)
            inner = f"{outer}<lambda>.<locals>."
        elif isinstance(node, ast.ClassDef):
            self.classes[outer + node.name].append(node)
            inner = f"{outer}{node.name}."
        for child in ast.iter_child_nodes(node):
            self._enter_nodes(child, inner)


_files: dict[str, File | None] = {}


def find_function(code: CodeType, context: dict[str, Any]) -> Function | ast.Lambda | str:
    """The tree of the function whose code this is, or in one clause why there is none.

    Args:
        context: the function's globals, for sources that only a module's loader can give.
    """
    file = _file(code.co_filename, context)
    if file is None:
        return "no source was found"
    key = code.co_name, code.co_firstlineno
    if not any(same(code, each) for each in file.codes.get(key, ())):
        return "its source does not compile to the code that runs"
    return _pick(code, file.functions[key]) or "which lambda of its line it is cannot be told"


def find_class(cls: type) -> ast.ClassDef | None:
    """The tree of a class statement, None where there is none."""
    context = vars(sys.modules.get(cls.__module__, object))
    methods = [each.__code__ for each in vars(cls).values() if isinstance(each, FunctionType)]
    names = [str(context.get("__file__") or "")]
    names += [each.co_filename for each in methods if each.co_qualname.startswith(cls.__qualname__ + ".")]
    for name in dict.fromkeys(names):
        file = _file(name, context) if name else None
        found = file.classes.get(cls.__qualname__) if file is not None else None
        if found:
            lines = [vars(cls).get("__firstlineno__"), *(each.co_firstlineno for each in methods)]
            return _around_lines(found, [each for each in lines if isinstance(each, int)])
    return None


def find_module(path: str) -> ast.Module | None:
    """The tree of a source file that is not loaded."""
    file = _file(path, {})
    return None if file is None else file.tree


def first_line(node: Function | ast.ClassDef) -> int:
    """The line that Python counts as a function's first: that of its first decorator."""
    return min([node.lineno, *(each.lineno for each in node.decorator_list)])


def same(one: CodeType, other: CodeType) -> bool:
    """Whether two code objects do the same with the same names. Where they stand does not count."""
    return _plain(one) == _plain(other) and _same_constants(one.co_consts, other.co_consts)


#: inspect.CO_ITERABLE_COROUTINE
_ITERABLE_COROUTINE = 0x100


def _plain(code: CodeType) -> tuple[object, ...]:
    flags = code.co_flags & ~_ITERABLE_COROUTINE  # `types.coroutine` sets it afterwards
    counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, flags
    names = code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_name
    return code.co_code, counts, names, code.co_exceptiontable


def _same_constants(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, CodeType):
        return same(one, other)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(_same_constants, one, other))
    return repr(one) == repr(other) if isinstance(one, (float, complex)) else bool(one == other)


def _file(name: str, context: dict[str, Any]) -> File | None:
    """The file of that name as it is now: one `stat`, and nothing is read where nothing changed."""
    lines = _lines(name, context)
    known = _files.get(name)
    if known is None or known.lines != lines:
        _files[name] = _parsed(name, lines)
    return _files[name]


def _lines(name: str, context: dict[str, Any]) -> list[str]:
    """The lines of a source: from linecache, which also has those of prompts, archives and copies.

    It takes a start 1 ms, so a file is read without it until somebody has loaded it.
    """
    if "linecache" not in sys.modules and (lines := _lines_of_file(name)):
        return lines
    import linecache

    linecache.checkcache(name)
    return linecache.getlines(name, context)


#: By name: size and time of a file, and its lines.
_read: dict[str, tuple[tuple[int, int], list[str]]] = {}


def _lines_of_file(name: str) -> list[str]:
    """What linecache gives for a file of UTF-8 that says nothing of its encoding. None for any other."""
    try:
        found = os.stat(name)
        stamp, lines = _read.get(name, (None, []))
        if stamp != (found.st_size, found.st_mtime_ns):
            with open(name, encoding="utf-8") as file:
                lines = file.readlines()
            if any("coding" in line or line.startswith("\ufeff") for line in lines[:2]):
                lines = []
            if lines and not lines[-1].endswith("\n"):
                lines[-1] += "\n"
            _read[name] = (found.st_size, found.st_mtime_ns), lines
    except (OSError, ValueError):
        return []
    return lines


def _parsed(name: str, lines: list[str]) -> File | None:
    try:
        return File(name, lines) if lines else None
    except (SyntaxError, ValueError, RecursionError):
        return None


def _around_lines(found: list[ast.ClassDef], lines: list[int]) -> ast.ClassDef:
    """Of several class statements of one name the one that holds these lines; the last if none does."""
    for node in found:
        if any(first_line(node) <= line <= (node.end_lineno or 0) for line in lines):
            return node
    return found[-1]


def _pick(code: CodeType, found: list[Function | ast.Lambda]) -> Function | ast.Lambda | None:
    """Of several lambdas on a line the one whose body is what the code's instructions stand for."""
    if len(found) == 1:
        return found[0]
    span = _span(code)
    if span is None:
        return None
    around = [each for each in found if isinstance(each, ast.Lambda) and _holds(_body(each), span)]
    return min(around, key=lambda each: _size(_body(each)), default=None)


def _span(code: CodeType) -> Span | None:
    """From where to where the instructions of a code object stand in the source; None without columns."""
    places: list[Any] = [p for p in code.co_positions() if None not in p and p[2:] != (0, 0)]
    if not places:
        return None
    return min((p[0], p[2]) for p in places), max((p[1], p[3]) for p in places)


def _body(node: ast.Lambda) -> Span:
    body = node.body
    return (body.lineno, body.col_offset), (body.end_lineno or body.lineno, body.end_col_offset or 0)


def _holds(outer: Span, inner: Span) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]


def _size(span: Span) -> tuple[int, int]:
    (line, column), (last, end) = span
    return last - line, end - column if last == line else end
