"""Whose code it is: the user's own, which is followed, or an installed library's, which counts by name."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from pathlib import PurePath
from types import FunctionType, ModuleType
from typing import Any

_STANDARD = (os.path.dirname(os.__file__), os.path.dirname(os.path.realpath(os.__file__)))


@dataclass(frozen=True, slots=True, kw_only=True)
class UserModules:
    """Which modules are the user's own: all that are not installed, with those named more or fewer.

    A name stands for the module and everything in it: `UserModules(also=("lab_tools",),
    never=("generated",))`.
    """

    also: tuple[str, ...] = ()
    never: tuple[str, ...] = ()

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
    spec, path = None, None
    for part in _prefixes(name):
        spec = PathFinder.find_spec(part, path)
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
    if path in ("built-in", "frozen") or {"site-packages", "dist-packages"} & {*PurePath(path).parts}:
        return False
    return not any(path.startswith(folder + os.sep) for folder in _STANDARD)
