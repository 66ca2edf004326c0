"""From a function to all of the user's that it leads to: helpers, methods, classes, constants, closure values.

Installed libraries count by name. Everything is looked at when asked, so a helper may be defined after the
step that uses it. Moving code between modules, or the modules themselves, changes nothing.
"""

from __future__ import annotations

import ast
import builtins
import enum
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from functools import cache, cached_property, partial, partialmethod
from importlib.util import resolve_name
from types import FunctionType, ModuleType
from typing import Any

from ezpyp.identity import sources, syntax
from ezpyp.identity.atoms import ATOMS, buffer, digest, group, text
from ezpyp.identity.bytecode import code_bytes, code_reads
from ezpyp.identity.graph import Code, Node, summed
from ezpyp.identity.modules import (
    FUNCTIONS,
    NOTHING,
    UserModules,
    name_of,
    never_counts,
    source_path,
    top,
    unwrapped,
    version,
)
from ezpyp.identity.values import NoIdentityError, Walker, library_name, type_name

_MISSING = object()

#: What every module has, where it lies among them: moving a file changes nothing.
_OF_MODULES = frozenset({"__name__", "__file__", "__doc__", "__package__", "__path__", "__spec__", "__loader__"})


class Follower:
    """Follows many functions and looks at each thing once. Valid as long as nothing is redefined."""

    def __init__(self, user_modules: UserModules | None = None) -> None:
        self._own = user_modules or UserModules()
        self._nodes: dict[object, Node] = {}
        self._todo: list[Callable[[], None]] = []
        self._codes: dict[tuple[int, ...], tuple[Code, object]] = {}
        self._version = cache(version)

    def follow(self, function: object, *, uses: Sequence[object] = ()) -> Code:
        """The identity of a function, method, partial, class or callable object.

        Args:
            uses: what it uses besides what its source shows; a module of the user's stands for all that it
            defines.
        """
        key = id(function), *map(id, uses)
        if key not in self._codes:
            self._codes[key] = self._followed(function, uses), (function, *uses)
        return self._codes[key][0]

    def is_own(self, value: object) -> bool:
        """Whether a function, class or module is the user's own."""
        return self._own.holds(name_of(value))

    def _is_own_module(self, value: object) -> bool:
        return isinstance(value, ModuleType) and self.is_own(value)

    def _is_installed(self, value: Any) -> bool:
        """Whether an object is found under its name in a library, as numpy's universal functions are."""
        return not self.is_own(value) and library_name(value) is not None

    def _followed(self, function: object, uses: Sequence[object]) -> Code:
        root = self._node(function, type_name(type(function))) or Node("value", "nothing")
        if uses:
            root = Node("value", "uses", edges=[("", root)])
            for place, value in enumerate(uses):
                self._use(root, value, place)
        while self._todo:
            self._todo.pop()()
        return summed(root, self._version)

    def _use(self, root: Node, value: Any, place: int) -> None:
        if not self._is_own_module(value):
            root.lead(f"uses {place}", self._node(value, f"uses[{place}]"))
            return
        for name, each in sorted(vars(value).items()):
            if getattr(each, "__module__", None) == value.__name__:
                root.lead(f"uses {place} {name}", self._node(each, f"{value.__name__}.{name}"))

    # -- one thing

    def _node(self, value: Any, label: str, kind: str = "value", owner: str = "", name: str = "") -> Node | None:
        """The node of something met under a name; None where it never counts."""
        value = unwrapped(value)
        if never_counts(value):
            return None
        if isinstance(value, ModuleType):
            return self._once(value, self._module)
        if isinstance(value, type):
            return self._once(value, self._class if self.is_own(value) else self._library)
        if isinstance(value, FunctionType):
            return self._once(value, self._function if self.is_own(value) else self._wrapper)
        if isinstance(value, FUNCTIONS) and not _is_bound(value):
            return self._once(value, self._extension if self.is_own(value) else self._library)
        if callable(value) and not self.is_own(type(value)) and self._is_installed(value):
            return self._once(value, self._library)
        return self._value(value, label, kind, owner, name)

    def _once(self, value: Any, make: Callable[[Any], Node | None]) -> Node | None:
        node = self._nodes.get(id(value))
        if node is None:
            node = make(value)
            if node is not None:
                node.subject = value
                self._nodes[id(value)] = node
        return node

    def _module(self, value: ModuleType) -> Node | None:
        """A library by its name. Of a module of the user's only what is asked of it counts."""
        name = value.__name__
        if self.is_own(value):
            return Node("unknown", name, own=b"module", shown="a module used as a whole")
        return Node("module", name, own=text(name), shown=name)

    def _library(self, value: Any) -> Node:
        return _installed(library_name(value) or f"{top(name_of(value))}:{value.__qualname__}")

    def _extension(self, value: Any) -> Node:
        """A function of the user's in compiled code: the file it is in."""
        path = str(getattr(sys.modules.get(name_of(value)), "__file__", ""))
        content = b""
        if path.endswith(".so"):
            with open(path, "rb") as file:
                content = buffer(file.read())
        own = group(b"x", [text(value.__qualname__), content])
        return Node("function", _label(name_of(value), value.__qualname__), own=own)

    # -- functions

    def _wrapper(self, value: FunctionType) -> Node:
        """A function of a library, with those of the user's that it was made to wrap."""
        node = _installed(f"{top(name_of(value))}:{value.__code__.co_qualname}")
        self._todo.append(lambda: self._wrapped(node, value))
        return node

    def _wrapped(self, node: Node, value: FunctionType) -> None:
        seen, todo = {id(value)}, [value]
        for wrapper in todo:
            for each in map(unwrapped, _held(wrapper)):
                if isinstance(each, (FunctionType, type)) and id(each) not in seen:
                    seen.add(id(each))
                    if self.is_own(each):
                        node.lead("wraps", self._node(each, ""))
                    elif isinstance(each, FunctionType):
                        todo.append(each)

    def _function(self, value: FunctionType) -> Node:
        code, around = value.__code__, value.__globals__
        label = _label(name_of(value), code.co_qualname)
        tree = sources.find_function(code, around)
        try:
            if isinstance(tree, str):
                raise LookupError(tree)
            data, shown, read = _reduced(tree, _decorators(tree, around))
            node = Node("function", label, own=data, shown=shown)
        except (LookupError, RecursionError) as error:
            why = str(error) if isinstance(error, LookupError) else "its source is nested too deeply"
            node = Node("function", label, own=b"code" + digest(code_bytes(code)), fallback=why)
            read = code_reads(code)
        self._todo.append(lambda: self._lead_on(node, value, read))
        return node

    def _lead_on(self, node: Node, function: FunctionType, read: syntax.Reads) -> None:
        """Everything that a function gets from around it."""
        for name, value in _defaults(function):
            key = f"{node.label}({name})"
            node.lead(f"{name}=", self._node(value, key, "default", node.label, name))
        node.lead("__wrapped__", self._wrapped_by(function))
        cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        extra = {("__class__",)} & {(name,) for name in cells}
        for path in sorted(read.names | extra):
            if path[0] in cells:
                value = _content_of(cells[path[0]])
                value = _present(value) if path[0] == "__class__" else value
                self._lead_to(node, value, path, f"{node.label}[{path[0]}]", "closure")
            else:
                self._lead_global(node, function.__globals__, path)
        for path in sorted(read.hints):
            self._lead_hint(node, function.__globals__.get(path[0], _MISSING), path)
        for level, module, asked in sorted(read.imports):
            package = function.__globals__.get("__package__") or ""
            self._import(node, _absolute(level, module, package), asked)

    def _wrapped_by(self, function: FunctionType) -> Node | None:
        """What a decorator of the user's says that it wraps, which need not be in its closure."""
        found = unwrapped(vars(function).get("__wrapped__"))
        return self._node(found, "") if isinstance(found, FunctionType) else None

    def _lead_global(self, node: Node, around: dict[str, Any], path: tuple[str, ...]) -> None:
        label = _label(str(around.get("__name__", "__main__")), path[0])
        self._lead_to(node, around.get(path[0], _MISSING), path, label, "value")

    def _lead_to(self, node: Node, value: Any, path: tuple[str, ...], label: str, kind: str) -> None:
        """Go along a path of attributes as long as it leads through modules of the user's."""
        used = 1
        while self._is_own_module(value) and used < len(path):
            label = f"{value.__name__}.{path[used]}"
            value = _attribute(value, path[used])
            used += 1
            if value is _MISSING:
                node.lead(".".join(path[:used]), _unknown(label, "not there when it was looked for"))
        if value is not _MISSING and path[0] not in _OF_MODULES:
            owner, name = (node.label, path[0]) if kind == "closure" else ("", "")
            node.lead(".".join(path[:used]), self._node(value, label, kind, owner, name))

    def _lead_hint(self, node: Node, value: Any, path: tuple[str, ...]) -> None:
        """Of names in annotations only classes of the user's count: what they say of other things has no
        effect.
        """
        for name in path[1:]:
            value = _attribute(value, name) if isinstance(value, ModuleType) else value
        if isinstance(value, type) and self.is_own(value):
            node.lead(".".join(path), self._node(value, ""))

    def _import(self, node: Node, name: str, asked: tuple[str, ...]) -> None:
        """An import inside a function: by what is asked of a loaded module; else by the whole source."""
        module = sys.modules.get(name)
        inner = f"{name}.{asked[0]}" if asked else name
        if module is None:
            node.lead(f"import {name}", self._unloaded(name))
        elif inner not in sys.modules and asked and asked[0] not in vars(module) and source_path(inner):
            node.lead(f"import {inner}", self._unloaded(inner))
        elif len(asked) > 1 or not self._is_own_module(_attribute(module, asked[0]) if asked else module):
            self._lead_to(node, module, (name, *asked), name, "value")

    def _unloaded(self, name: str) -> Node | None:
        """A module that nobody imported yet: as a whole, with the user's modules that it imports."""
        node = self._nodes.get(name)
        if node is None and top(name) != "ezpyp":
            path = source_path(name)
            tree = sources.find_module(path) if path and path.endswith(".py") else None
            if not self._own.holds(name):
                node = Node("module", name, own=text(name), shown=name)
            elif tree is None:
                node = _unknown(name, "a module that was not found")
            else:
                node = Node("module", name, own=syntax.normal(syntax.tidy(tree)))
                self._todo.append(lambda: self._imports_of(node, tree, name))
            self._nodes[name] = node
        return node

    def _imports_of(self, node: Node, tree: ast.Module, name: str) -> None:
        path = source_path(name) or ""
        package = name if path.endswith("__init__.py") else name.rpartition(".")[0]
        for level, module, asked in sorted(syntax.reads(tree).imports):
            target = _absolute(level, module, package)
            for each in (target, *(f"{target}.{asked[0]}" for _ in asked[:1])):
                if source_path(each) and self._own.holds(each):
                    node.lead(f"import {each}", self._unloaded(each))

    # -- classes

    def _class(self, value: type) -> Node:
        node = Node("class", _label(value.__module__, value.__qualname__))
        self._todo.append(lambda: self._lead_class(node, value))
        return node

    def _lead_class(self, node: Node, cls: type) -> None:
        """Methods and data of a class count by what they are now; its statement for the rest."""
        tree = sources.find_class(cls)
        separate = set()
        for name, value in self._attributes(cls):
            if self._attribute_counts(cls, name, value, tree is not None):
                child = self._node(value, f"{node.label}.{name}")
                node.lead(name, child)
                if child is not None and child.kind != "unknown":
                    separate.add(name.partition(" ")[0])
        for place, base in enumerate((*cls.__bases__, type(cls))):
            if base not in (object, type):
                node.lead(f"base {place}", self._node(base, ""))
        node.own = b"class" + text(cls.__qualname__)
        if tree is not None:
            around = _globals_of(cls)
            node.own, node.shown, read = _reduced(tree, _decorators(tree, around), frozenset(separate))
            for path in sorted(read.names | read.hints):
                self._lead_global(node, around, path)

    def _attributes(self, cls: Any) -> Iterator[tuple[str, Any]]:
        """What a class body defined, with functions taken out of what holds them."""
        members = cls.__members__ if issubclass(cls, enum.Enum) else {}
        yield from ((name, member._value_) for name, member in members.items())
        for name, value in sorted(vars(cls).items()):
            if isinstance(value, property):
                for suffix, each in (("", value.fget), (" setter", value.fset), (" deleter", value.fdel)):
                    yield from [(name + suffix, each)] if each is not None else ()
            elif isinstance(value, (cached_property, partialmethod)):
                yield name, value.func
            elif name not in members:
                own = isinstance(value, (type, FunctionType)) or self.is_own(type(value))
                yield name, value if own else getattr(value, "__wrapped__", value)

    def _attribute_counts(self, cls: type, name: str, value: Any, has_source: bool) -> bool:
        """Methods and data that the user put into a class; not what Python or a decorator puts there."""
        if isinstance(value, FunctionType):
            made = value.__code__.co_filename.startswith("<") or value.__code__.co_name == "__annotate__"
            return self.is_own(value) and not (made and (has_source or hasattr(cls, "_fields")))
        if name.startswith(("__", "_abc_")) or (issubclass(cls, enum.Enum) and name.startswith("_")):
            return False
        return isinstance(value, type) or not hasattr(value, "__get__") or self.is_own(type(value))

    # -- values

    def _value(self, value: Any, label: str, kind: str, owner: str, name: str) -> Node:
        key = (id(value), label, kind)
        node = self._nodes.get(key)
        if node is None:
            node = Node(kind, label, owner=owner, name=name, subject=value)
            try:
                node.own, node.shown = digest(self._content(node, value)), outline(value)
            except Exception as error:  # whatever an object of the user's does when it is looked at
                node = _unidentified(label, value, error)
            self._nodes[key] = node
        return node

    def _content(self, node: Node, value: Any) -> bytes:
        """The content of a value; functions and classes in it become nodes that it leads to."""

        def code(inner: Any) -> bytes:
            child = self._node(inner, "")
            node.lead("", child)
            if child is None:
                return b"-"
            # The own identity of a class is known only when all of it has been seen.
            return child.own if child.kind != "class" else b"class" + text(inner.__qualname__)

        def reference(inner: object) -> bytes | None:
            plain = unwrapped(inner)
            if never_counts(plain):
                return b"-"
            return code(plain) if plain is not inner or isinstance(plain, ModuleType) else None

        return Walker(code, reference).encode(value)


# -- small looks at functions and classes


def _is_bound(value: Any) -> bool:
    """Whether a C function belongs to an object, as `[].append` does."""
    return not isinstance(getattr(value, "__self__", None), (ModuleType, type, type(None)))


@cache
def _reduced(
    tree: Any, decorators: tuple[ast.expr, ...], separate: frozenset[str] = frozenset()
) -> tuple[bytes, str, syntax.Reads]:
    """The normal form of a tree, its text for people, and the names it reads."""
    tidied = syntax.tidy(tree, decorators=decorators, separate=separate)
    return digest(syntax.normal(tidied)), syntax.show(tidied), syntax.reads(tree, decorators, separate)


def _decorators(tree: Any, around: dict[str, Any]) -> tuple[ast.expr, ...]:
    return tuple(each for each in getattr(tree, "decorator_list", ()) if _counts(each, around))


def _counts(decorator: ast.expr, around: dict[str, Any]) -> bool:
    """Whether a decorator counts: its name must be found and lead to something that is not ezpyp's."""
    path = syntax.path_of(decorator)
    if not path:
        return True
    value = around.get(path[0], vars(builtins).get(path[0], _MISSING))
    for name in path[1:]:
        value = _attribute(value, name) if isinstance(value, ModuleType) else value
    while isinstance(value, partial):
        value = value.func
    return value is not _MISSING and unwrapped(value) is not NOTHING and not never_counts(value)


def _defaults(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """The parameters that have a default, with it."""
    code, values = function.__code__, function.__defaults__ or ()
    positional = code.co_varnames[: code.co_argcount]
    yield from zip(positional[len(positional) - len(values) :], values, strict=True)
    yield from sorted((function.__kwdefaults__ or {}).items())


def _content_of(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _MISSING


def _held(function: FunctionType) -> Iterator[Any]:
    """What a closure and the attributes of a function hold, and what the containers among them hold."""
    cells = map(_content_of, function.__closure__ or ())
    for value in (*cells, *vars(function).values()):
        yield value
        if isinstance(value, (list, tuple)):
            yield from value
        elif isinstance(value, (dict, types.MappingProxyType)):
            yield from value.values()


def _attribute(module: ModuleType, name: str) -> Any:
    """An attribute of a module that is there already, or a loaded submodule; no code is run to make one."""
    return vars(module).get(name, sys.modules.get(f"{module.__name__}.{name}", _MISSING))


def _globals_of(cls: type) -> dict[str, Any]:
    module = sys.modules.get(cls.__module__)
    return {} if module is None else vars(module)


def _absolute(level: int, module: str, package: str) -> str:
    """The full name of what an import statement names."""
    try:
        return resolve_name("." * level + module, package) if level else module
    except ImportError:
        return module


def _label(module: str, name: str) -> str:
    return name if module == "__main__" else f"{module}.{name}"


def _installed(name: str) -> Node:
    label = name.replace(":", ".")
    return Node("library", label, own=text(name), shown=label)


def _unknown(label: str, what: str, own: str = "") -> Node:
    return Node("unknown", label, own=b"?" + text(own or what), shown=what)


def _unidentified(label: str, value: object, error: Exception) -> Node:
    """A value without identity, by its type and the type of what in it has none."""
    cls, shown = type(value), type_name(type(value))
    if not isinstance(error, NoIdentityError):
        shown += f" that raised {type(error).__name__}"
    elif error.culprit is not value:
        shown += f" holding {type_name(type(error.culprit))}"
    node = _unknown(label, shown, f"{top(cls.__module__)}:{cls.__qualname__}")
    node.subject = value
    return node


def _present(cls: Any) -> Any:
    """The class that stands under the name of this one now: a dataclass with slots is made anew by its decorator."""
    found: Any = sys.modules.get(cls.__module__)
    for name in cls.__qualname__.split("."):
        found = getattr(found, name, None)
    return found if isinstance(found, type) else cls


def outline(value: Any, width: int = 60) -> str:
    """A value in one line for people: small things as Python writes them, large ones by type and shape."""
    shape = getattr(value, "shape", None)
    if type(value) in ATOMS:
        shown = repr(value)
    elif told := getattr(type(value), "__ezpyp_outline__", None):
        return str(told(value))
    elif isinstance(value, (type, *FUNCTIONS)):
        shown = value.__qualname__
    elif type(value) in (list, tuple, set, dict) and len(value) <= 12:
        parts = [f"{outline(k)}: {outline(v)}" for k, v in value.items()] if isinstance(value, dict) else None
        inside = ", ".join(parts or map(outline, value))
        opening, closing = "[]" if type(value) is list else "()" if type(value) is tuple else "{}"
        shown = f"{opening}{inside}{closing}"
    elif isinstance(shape, tuple) and shape:
        size = "x".join(map(str, shape))
        shown = f"{type(value).__name__}({getattr(value, 'dtype', '')} {size})".replace("( ", "(")
    else:
        shown = f"a {type_name(type(value))}"
    return shown if len(shown) <= width else shown[: width - 1] + "…"
