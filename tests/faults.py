"""Faults for tests: a process that dies, or a disk that fails, at any system call of a module."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest


class Died(BaseException):
    """The process was killed here."""


class Calls:
    """Stands in for `os` in a module: counts the system calls that change or sync files, and fails where told to.

    `dies_at`: the number of the call that is not made, nor any after it, as after kill -9: not even cleaning up.
    `fails`: what is raised in place of a call with that name; afterwards all goes on.
    """

    WATCHED: tuple[str, ...] = ("open", "write", "close", "replace", "unlink", "link", "fdatasync", "fsync", "makedirs")

    def __init__(self, *, dies_at: int | None = None, fails: dict[str, OSError] | None = None) -> None:
        self.made: list[tuple[str, Any]] = []
        self._dies_at = dies_at
        self._fails = fails or {}

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        return self._watched(name, real) if name in self.WATCHED else real

    def _watched(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._dies_at is not None and len(self.made) >= self._dies_at:
                raise Died
            if name in self._fails:
                raise self._fails[name]
            self.made.append((name, _file(args[0])))
            return real(*args, **kwargs)

        return call

    def names(self, name: str) -> list[str]:
        """The files that calls of this name were about."""
        return [file for made, file in self.made if made == name]


def _file(which: Any) -> str:
    path = os.readlink(f"/proc/self/fd/{which}") if isinstance(which, int) else os.fspath(which)
    return os.path.basename(path)


def watch(monkeypatch: pytest.MonkeyPatch, module: ModuleType, calls: Calls) -> Calls:
    """Put the stand-in in place until the test ends, or `monkeypatch.undo()`."""
    monkeypatch.setattr(module, "os", calls)
    return calls
