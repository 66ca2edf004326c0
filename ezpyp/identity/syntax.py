"""Source code reduced to what it means: its normal form, the names it reads, and how two versions differ.

The normal form is the syntax tree without positions, comments, docstrings and statements that do nothing.
It is the same under every Python that can parse the source: fields that are empty are left out (newer
Pythons have more of them), and the pieces of f-strings are joined (older Pythons cut them differently).
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator
from typing import Any

from ezpyp.identity.atoms import ATOMS, group, text
from ezpyp.tuples import NamedTuple

Function = ast.FunctionDef | ast.AsyncFunctionDef
Scoped = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef | ast.Module

#: What a default or an attribute is replaced by where its value is looked at instead.
ELSEWHERE = ast.Constant(value=...)

#: Fields that say nothing about what the code does.
_SILENT = frozenset({"ctx", "kind", "type_comment", "type_ignores"})


def normal(node: ast.AST) -> bytes:
    """The normal form of a tidied tree, as bytes."""
    if isinstance(node, ast.Constant):
        return b"=" + ATOMS[type(node.value)](node.value)
    parts = [text(type(node).__name__)]
    for name in sorted(node._fields):
        value = getattr(node, name, None)
        if name not in _SILENT and not (value is None or value == []):
            parts += [text(name), _field(value)]
    return group(b"n", parts)


def _field(value: Any) -> bytes:
    if isinstance(value, ast.AST):
        return normal(value)
    if isinstance(value, list):
        return group(b"l", map(_field, value))
    return ATOMS[type(value)](value)


def tidy(
    node: Scoped,
    *,
    decorators: Collection[ast.expr] = (),
    separate: Collection[str] = (),
) -> Scoped:
    """A copy of a function, class or module without what does not count in it.

    Args:
        decorators: those of its decorators that count. A function's defaults and a lambda's are left out:
        they count
            by value.
        separate: names in a class body that count by themselves: their values, functions and classes are
        left out.
    """
    tidied: Any = _copy(node)
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        tidied.decorator_list = [_copy(each) for each in decorators]
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
        arguments = tidied.args
        arguments.defaults = [ELSEWHERE for _ in arguments.defaults]
        arguments.kw_defaults = [None if each is None else ELSEWHERE for each in arguments.kw_defaults]
    if isinstance(node, ast.ClassDef):
        kept = [_apart(each, separate) for each in tidied.body]
        tidied.body = [each for each in kept if each] or [ast.Pass()]
    return tidied  # type: ignore[no-any-return]


def _apart(statement: Any, separate: Collection[str]) -> Any:
    """A statement of a class body without what counts by itself; None where nothing is left."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return None if statement.name in separate else statement
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
        if isinstance(target, ast.Name) and target.id in separate:
            return ast.Assign(targets=[target], value=ELSEWHERE)
    if isinstance(statement, ast.AnnAssign) and statement.value is not None:
        target = statement.target
        if isinstance(target, ast.Name) and target.id in separate:
            return ast.AnnAssign(
                target=target, annotation=statement.annotation, value=ELSEWHERE, simple=statement.simple
            )
    return statement


def _copy(node: Any) -> Any:
    """A copy without docstrings, idle statements and the cuts inside f-strings."""
    if isinstance(node, list):
        return [_copy(each) for each in node]
    if not isinstance(node, ast.AST):
        return node
    fields = {name: _copy(getattr(node, name)) for name in node._fields if hasattr(node, name)}
    if isinstance(fields.get("body"), list):
        fields["body"] = [each for each in fields["body"] if not _idle(each)] or [ast.Pass()]
    if isinstance(fields.get("orelse"), list):
        fields["orelse"] = [each for each in fields["orelse"] if not _idle(each)]
    if isinstance(node, ast.JoinedStr):
        return _joined(fields["values"])
    spec = fields.get("format_spec")
    if isinstance(spec, ast.Constant):
        fields["format_spec"] = ast.JoinedStr(values=[spec]) if spec.value else None
    return type(node)(**fields)


def _idle(statement: ast.AST) -> bool:
    """Docstrings, other bare constants, `pass`."""
    return isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )


def _joined(values: list[Any]) -> ast.expr:
    """An f-string with its neighbouring texts joined and empty ones dropped; one that holds nothing but
    text is text.
    """
    pieces: list[Any] = []
    for each in values:
        if isinstance(each, ast.Constant) and pieces and isinstance(pieces[-1], ast.Constant):
            pieces[-1] = ast.Constant(value=str(pieces[-1].value) + str(each.value))
        elif not (isinstance(each, ast.Constant) and each.value == ""):
            pieces.append(each)
    if not pieces:
        return ast.Constant(value="")
    return pieces[0] if len(pieces) == 1 and isinstance(pieces[0], ast.Constant) else ast.JoinedStr(values=pieces)


def show(node: ast.AST) -> str:
    """The tidied tree as source for people to read; "" where this Python cannot write it."""
    try:
        return ast.unparse(ast.fix_missing_locations(node))
    except (ValueError, RecursionError):
        return ""


def differences(before: str, after: str) -> list[str]:
    """What changed between two texts made by `show`: `constant 3 -> 4`, or `code changed`."""
    try:
        old, new = ast.parse(before), ast.parse(after)
    except (SyntaxError, ValueError):
        return ["code changed"]
    pairs = zip(_constants(old), _constants(new), strict=False)
    changed = [f"constant {_short(a)} -> {_short(b)}" for a, b in pairs if normal(a) != normal(b)]
    if changed and _shape(old) == _shape(new):
        return list(dict.fromkeys(changed))
    return [_changed_line(before, after)]


def _constants(tree: ast.AST) -> Iterator[ast.Constant]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.Constant))


def _shape(tree: ast.AST) -> bytes:
    """The normal form with all constants alike. Spoils the tree."""
    for node in _constants(tree):
        node.value = 0
    return normal(tree)


def _short(node: ast.Constant, width: int = 40) -> str:
    shown = ast.unparse(node)
    return shown if len(shown) <= width else shown[: width - 1] + "…"


def _changed_line(before: str, after: str) -> str:
    """`code changed`, and the line where it is only one."""
    from difflib import ndiff

    lines = list(ndiff(before.splitlines(), after.splitlines()))
    gone = [line[2:].strip() for line in lines if line.startswith("- ")]
    come = [line[2:].strip() for line in lines if line.startswith("+ ")]
    if len(gone) == len(come) == 1 and max(len(gone[0]), len(come[0])) <= 60:
        return f"code changed: {gone[0]} -> {come[0]}"
    return "code changed"


class Reads(NamedTuple):
    """Names that code reads and does not bind itself, each with the attributes asked of it: `("np",
    "linalg", "norm")`.

    Attributes:
        names: those read when it runs.
        hints: those read in annotations only.
        imports: what it imports itself: (level, module, names asked of it), as in an import statement.
    """

    names: frozenset[tuple[str, ...]]
    hints: frozenset[tuple[str, ...]]
    imports: frozenset[tuple[int, str, tuple[str, ...]]]


def reads(node: Scoped, decorators: Collection[ast.expr] = (), separate: Collection[str] = ()) -> Reads:
    """The names that a function, class or module reads from around it, its inner functions included.

    `decorators` and `separate` as for `tidy`: what it leaves out is not read here either.
    """
    reader = _Reader()
    if isinstance(node, ast.ClassDef) and separate:
        node = ast.ClassDef(
            **{name: getattr(node, name) for name in node._fields if name != "body"},
            body=[each for each in (_apart(s, separate) for s in node.body) if each],
        )
    reader.root(node, decorators)
    names, imports = frozenset(reader.names), frozenset(reader.imports)
    return Reads(names=names, hints=frozenset(reader.hints) - names, imports=imports)


class _Scope:
    """The names bound in one function, class or comprehension."""

    def __init__(self, outer: _Scope | None, *, is_open: bool = False) -> None:
        """Class bodies are open: their names are not seen from inside functions, and may be read before they are
        bound.
        """
        self.outer, self.open = outer, is_open
        self.bound: set[str] = set()
        self.nonlocals: set[str] = set()
        self.globals: set[str] = set()
        self.imported: dict[str, tuple[int, str, tuple[str, ...]]] = {}

    def bind(self, nodes: list[Any]) -> _Scope:
        """Enter every name that statements bind here, without entering the scopes inside."""
        todo = [(each, False) for each in nodes]
        while todo:
            node, inner = todo.pop()
            self._enter(node, inner)
            inner = inner or isinstance(node, _COMPREHENSIONS)
            todo += [(each, inner) for each in _around(node)]
        return self

    def _enter(self, node: ast.AST, inner: bool) -> None:
        if isinstance(node, ast.NamedExpr):
            self.bound.add(node.target.id)
        elif isinstance(node, ast.Name):
            if not inner and not isinstance(node.ctx, ast.Load):
                self.bound.add(node.id)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            self._import(node)
        elif isinstance(node, ast.Global):
            self.globals.update(node.names)
        elif isinstance(node, ast.Nonlocal):
            self.nonlocals.update(node.names)
        elif isinstance(node, ast.MatchMapping):
            self.bound.add(node.rest or "")
        elif isinstance(getattr(node, "name", None), str) and not isinstance(node, ast.alias):
            self.bound.add(node.name)  # type: ignore[attr-defined]  # def, class, except, match, type parameters

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        for alias in node.names:
            if isinstance(node, ast.ImportFrom):
                self.imported[alias.asname or alias.name] = (node.level, node.module or "", (alias.name,))
            elif alias.asname:
                self.imported[alias.asname] = (0, alias.name, ())
            else:
                top = alias.name.split(".")[0]
                self.imported[top] = (0, top, ())
        self.bound.update(self.imported)


_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def _around(node: ast.AST) -> Iterator[ast.AST]:
    """The children of a node that are evaluated in the scope of the node itself."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
        yield from _defaults(node)
        yield from getattr(node, "decorator_list", ())
    elif isinstance(node, ast.ClassDef):
        yield from (*node.decorator_list, *node.bases, *(each.value for each in node.keywords))
    else:
        yield from ast.iter_child_nodes(node)


def _defaults(node: Function | ast.Lambda) -> list[ast.expr]:
    return [each for each in (*node.args.defaults, *node.args.kw_defaults) if each is not None]


def _parameters(node: Function | ast.Lambda) -> list[ast.arg]:
    args = node.args
    every = (*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg)
    return [each for each in every if each is not None]


class _Reader:
    """Walks once over a tree with the scopes around the present place."""

    def __init__(self) -> None:
        self.names: set[tuple[str, ...]] = set()
        self.hints: set[tuple[str, ...]] = set()
        self.imports: set[tuple[int, str, tuple[str, ...]]] = set()
        self.hinting = False

    def root(self, node: Scoped, decorators: Collection[ast.expr]) -> None:
        for each in decorators:
            self.visit(each, None)
        if isinstance(node, ast.Module):
            self.all(node.body, _Scope(None, is_open=True).bind([*node.body]))
        elif isinstance(node, ast.ClassDef):
            self._class(node, None)
        else:
            self._function(node, None)

    def all(self, nodes: Collection[ast.AST], scope: _Scope | None) -> None:
        for node in nodes:
            self.visit(node, scope)

    def visit(self, node: ast.AST, scope: _Scope | None) -> None:
        if isinstance(node, ast.Name):
            if isinstance(node.ctx, ast.Load):
                self._read((node.id,), scope)
        elif isinstance(node, ast.Attribute):
            self._attribute(node, scope)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            self.all([*_around(node)], scope)
            self._function(node, scope)
        elif isinstance(node, ast.ClassDef):
            self.all(node.decorator_list, scope)
            self._class(node, scope)
        elif isinstance(node, _COMPREHENSIONS):
            self._comprehension(node, scope)
        elif isinstance(node, ast.AnnAssign):
            self._hint(node.annotation, scope)
            self.all([node.target, *([node.value] if node.value else [])], scope)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            self._import(node)
        else:
            if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
                self._read((node.target.id,), scope)
            self.all([*ast.iter_child_nodes(node)], scope)

    def _attribute(self, node: ast.Attribute, scope: _Scope | None) -> None:
        """A chain of attributes on a name is read as a whole; on anything else only the beginning is."""
        chain: list[str] = []
        value: ast.expr = node
        while isinstance(value, ast.Attribute):
            chain.append(value.attr)
            value = value.value
        if isinstance(value, ast.Name):
            self._read((value.id, *reversed(chain)), scope)
        else:
            self.visit(value, scope)

    def _function(self, node: Function | ast.Lambda, scope: _Scope | None) -> None:
        body: list[Any] = node.body if isinstance(node.body, list) else [node.body]
        kinds = [*getattr(node, "type_params", ())]
        inner = _Scope(scope).bind([*body, *kinds])
        inner.bound |= {each.arg for each in _parameters(node)}
        inner.bound -= inner.nonlocals
        for each in (*_parameters(node), node):
            self._hint(getattr(each, "annotation", None) or getattr(each, "returns", None), inner)
        self.all([*body, *kinds], inner)

    def _class(self, node: ast.ClassDef, scope: _Scope | None) -> None:
        inner = _Scope(scope, is_open=True).bind([*node.body, *getattr(node, "type_params", ())])
        self.all([*node.bases, *(each.value for each in node.keywords)], inner)
        self.all(node.body, inner)

    def _comprehension(self, node: Any, scope: _Scope | None) -> None:
        self.visit(node.generators[0].iter, scope)
        inner = _Scope(scope).bind([each.target for each in node.generators])
        results = [node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]
        tests = [test for each in node.generators for test in each.ifs]
        self.all([*results, *tests, *(each.iter for each in node.generators[1:])], inner)

    def _hint(self, annotation: ast.expr | None, scope: _Scope | None) -> None:
        if annotation is not None:
            before, self.hinting = self.hinting, True
            self.visit(annotation, scope)
            self.hinting = before

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        if isinstance(node, ast.ImportFrom):
            self.imports |= {(node.level, node.module or "", (alias.name,)) for alias in node.names}
        else:
            self.imports |= {(0, alias.name, ()) for alias in node.names}

    def _read(self, path: tuple[str, ...], scope: _Scope | None) -> None:
        """Enter a name that none of the scopes around it binds."""
        name = path[0]
        while scope is not None and name not in scope.globals:
            if name in scope.imported:
                level, module, inside = scope.imported[name]
                self.imports.add((level, module, (*inside, *path[1:])))
                return
            if name in scope.bound and not scope.open:
                return
            scope = scope.outer
        (self.hints if self.hinting else self.names).add(path)


def path_of(decorator: ast.expr) -> tuple[str, ...]:
    """The name that a decorator begins with: `("pipeline", "step")` for `@pipeline.step(codec="json")`."""
    chain: list[str] = []
    while not isinstance(decorator, ast.Name):
        if isinstance(decorator, ast.Attribute):
            chain.append(decorator.attr)
            decorator = decorator.value
        elif isinstance(decorator, ast.Call):
            decorator = decorator.func
        else:
            return ()
    return (decorator.id, *reversed(chain))
