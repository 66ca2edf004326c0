"""What all steps of a node read and none makes: loaded once, before the processes that run steps are forked."""

from __future__ import annotations

import contextlib
import mmap
import sys
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")

#: What the script asked for, in its order.
_asked: list[Preloaded[Any]] = []
#: Which of them is being loaded, from 1; shared with the process that loads, for it may not live to say it.
_at: memoryview | None = None


class Preloaded(Generic[T]):
    """A value that is loaded where steps run: call it inside a step. It counts by its function and their arguments."""

    def __init__(self, function: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._function, self._args, self._kwargs = function, args, kwargs
        self._is_loaded = False
        self._value: T | None = None

    def __call__(self) -> T:
        """The value; loaded now where that did not happen before this process was forked."""
        if not self._is_loaded:
            self._value = _read_only(self._function(*self._args, **self._kwargs))
            self._is_loaded = True
        return cast("T", self._value)

    @property
    def function(self) -> Callable[..., T]:
        """What loads the value."""
        return self._function

    def __ezpyp_identity__(self) -> object:
        return self._function, self._args, self._kwargs


def preload(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Preloaded[T]:
    """Have `function(*args, **kwargs)` called once, before this rank's helpers are forked: they share the value.

    Inside steps, call what this gives back: `climate = ezpyp.preload(load, "climate.nc")` in the script, `climate()`
    in a step. Helpers share the memory until they write to it; arrays come read-only. The code of the function and its
    arguments count as the step's own code does; name files that it reads in `inputs=` of the steps.

    Each MPI rank loads its own before its first step, all at the same time: with one rank a node and `helpers="auto"`
    that is once a node. Ask before `initialize_schema()` or `execute()`. The function should read and not compute: a
    library whose threads it starts may hang in forked processes. If it raises, so does each step that calls for the
    value. In line, and where it was asked for too late, each process loads the value at its first call.
    """
    global _at
    if _at is None:
        _at = memoryview(mmap.mmap(-1, 8)).cast("q")
    found = Preloaded(function, args, kwargs)
    _asked.append(found)
    return found


def asked() -> bool:
    """Whether the script has asked for anything."""
    return bool(_asked)


def load() -> None:
    """Load all that was asked for; in the process that forks those who use it."""
    for number, each in enumerate(_asked, 1):
        assert _at is not None
        _at[0] = number
        with contextlib.suppress(BaseException):  # the steps that need it raise the same, and say so by name
            each()
        _at[0] = 0


def unfinished() -> str:
    """What is being loaded, or was when the process that loads it ended: the function and its place; "" for nothing."""
    if _at is None or not _at[0]:
        return ""
    function: Any = _asked[_at[0] - 1].function
    code = getattr(function, "__code__", None)
    where = f" ({code.co_filename}:{code.co_firstlineno})" if code is not None else ""
    return f"{getattr(function, '__qualname__', function)}(){where}"


def _read_only(value: T) -> T:
    numpy: Any = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.ndarray):
        value.flags.writeable = False
    return value
