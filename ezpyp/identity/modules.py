"""Whose a thing is: the user's own, which is followed; a library's, which counts by name; or of no account."""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Sequence
from functools import cache
from importlib.machinery import ModuleSpec, PathFinder
from types import FunctionType, ModuleType
from typing import Any

from ezpyp.identity.atoms import ATOMS

#: Where Python's own modules are.
_STANDARD = (os.path.dirname(os.__file__), os.path.dirname(os.path.realpath(os.__file__)))

#: Stands for one of ezpyp's own objects that stands for nothing else.
NOTHING = object()

#: Everything that is a function and nothing else, written in Python or C.
FUNCTIONS = (
    FunctionType,
    types.BuiltinFunctionType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.ClassMethodDescriptorType,
)


class UserModules:
    """Which modules are the user's own: all that are not installed, with those named more or fewer.

    A name stands for the module and everything in it: `UserModules(also=("lab_tools",), never=("generated",))`.
    """

    def __init__(self, also: tuple[str, ...] = (), never: tuple[str, ...] = ()) -> None:
        self.also, self.never = also, never

    def holds(self, name: str) -> bool:
        """Whether the module of this name, loaded or not, is the user's own."""
        if _within(name, ("ezpyp", *self.never)):
            return False
        return _within(name, self.also) or _is_own(name)


def top(name: str) -> str:
    """The package that a module belongs to; Python's own private modules under their public name."""
    return name.partition(".")[0].lstrip("_")


def source_path(name: str) -> str | None:
    """The file of a module that is not loaded, found without importing anything; None where there is none."""
    spec: ModuleSpec | None = None
    path: Sequence[str] | None = None
    for part in _prefixes(name):
        try:
            spec = PathFinder.find_spec(part, path)
        except KeyError:  # a folder without __init__.py: Python asks the package around it, which is not loaded
            inner = [os.path.join(each, part.rpartition(".")[2]) for each in path or ()]
            spec, path = None, [each for each in inner if os.path.isdir(each)]
            continue
        if spec is None:
            return None
        path = spec.submodule_search_locations
    return spec.origin if spec is not None else None


def version(package: str) -> str | None:
    """The version of a third-party package, None for Python's own modules and where it is not said."""
    if package in sys.stdlib_module_names or package == "builtins":
        return None
    said = getattr(sys.modules.get(package), "__version__", None)
    if isinstance(said, str):
        return said
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def name_of(value: Any) -> str:
    """The module that a function, class or module is from; code that does not say counts as typed in."""
    if isinstance(value, ModuleType):
        return value.__name__
    if isinstance(value, FunctionType):
        return str(value.__globals__.get("__name__", "__main__"))
    for holder in (value, getattr(value, "__objclass__", None), getattr(value, "__self__", None)):
        name = holder.__name__ if isinstance(holder, ModuleType) else getattr(holder, "__module__", None)
        if isinstance(name, str):
            return name
    return "builtins"


def _within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == each or name.startswith(f"{each}.") for each in packages)


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: k + 1]) for k in range(len(parts))]


def _is_own(name: str) -> bool:
    module = sys.modules.get(name)
    if name == "__main__":
        return True
    if module is None:
        return name not in sys.stdlib_module_names and _is_own_file(source_path(name))
    path = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
    return _is_own_file(path) if path else name not in sys.stdlib_module_names


@cache
def _is_own_file(path: str | None) -> bool:
    """Neither installed nor Python's own; code without any file is the user's, from exec or a prompt."""
    if path is None:
        return True
    if path in ("built-in", "frozen") or {"site-packages", "dist-packages"} & {*path.split(os.sep)}:
        return False
    return not any(path.startswith(folder + os.sep) for folder in _STANDARD)


def unwrapped(value: Any) -> Any:
    """What one of ezpyp's own objects stands for: the decorated function. Files, and anything else, for themselves."""
    while top(type(value).__module__) == "ezpyp" and not hasattr(type(value), "__ezpyp_identity__"):
        value = vars(value).get("__wrapped__", NOTHING) if hasattr(value, "__dict__") else NOTHING
    # What lru_cache adds is in the decorator of the function, and has no effect on results.
    return value.__wrapped__ if isinstance(value, _CACHED) else value


def never_counts(value: Any) -> bool:
    """ezpyp itself, loggers, locks and typing: they have no effect on what a function computes."""
    if type(value) in ATOMS:
        return False
    if type(value) is object or _is_typing(value):
        return True
    if isinstance(value, (ModuleType, type, *FUNCTIONS)):
        return top(name_of(value)) == "ezpyp"
    logging = sys.modules.get("logging")
    if logging is not None and isinstance(value, (logging.Logger, logging.LoggerAdapter)):
        return True
    return type(value).__name__.lower().lstrip("_") in _LOCKS and top(type(value).__module__) in _LOCK_MODULES


_CACHED = type(cache(lambda: None))
_LOCKS = frozenset({"lock", "rlock", "locktype", "condition", "event", "semaphore", "boundedsemaphore", "barrier"})
_LOCK_MODULES = frozenset({"thread", "threading", "multiprocessing", "asyncio"})


def _is_typing(value: Any) -> bool:
    aliases = (types.GenericAlias, types.UnionType)
    return isinstance(value, aliases) or top(type(value).__module__) in ("typing", "typing_extensions")
