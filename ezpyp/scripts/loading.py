"""Run a person's script up to its first unfinished execute(), to see its steps and classes without running any step."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, redirect_stdout, suppress
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ezpyp.errors import InitializationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_loading = False
_reached: list[Any] = []


class _Reached(BaseException):
    """Ends the script. Not an Exception, so that a script's own handlers let it pass."""


class Loaded:
    """What a script had defined when it came to its first unfinished execute(), or to its end.

    Attributes:
        module: the script's `__main__`, in which its classes live.
        pipeline: the one that was about to run; where the script came to its end, the last that was finished, or None.
        pipelines: every one whose execute() it came to, in that order.
    """

    def __init__(self, path: str, module: ModuleType, pipelines: tuple[Any, ...]) -> None:
        self.path, self.module, self.pipelines = path, module, pipelines
        self.pipeline: Any = pipelines[-1] if pipelines else None

    @property
    def namespace(self) -> dict[str, Any]:
        """The script's globals."""
        return vars(self.module)


def main_script() -> str:
    """The absolute path of the script that this process runs, or looks at; "" where there is none."""
    path = getattr(sys.modules.get("__main__"), "__file__", None)
    return os.path.abspath(path) if path else ""


def loading() -> bool:
    """True while a script is only looked at: nothing may be written and no step run."""
    return _loading


def reached(pipeline: object, *, finished: bool = False) -> None:
    """A script calls `execute()`. While it is only looked at this ends it, unless the pipeline is finished.

    A finished one can give its results, from which the script may build the next.
    """
    if not _loading:
        return
    _reached.append(pipeline)
    if not finished:
        raise _Reached


def load(path: str | os.PathLike[str], argv: Sequence[str] = (), *, name: str = "__main__") -> Loaded:
    """Run a script as `python path argv…` would, up to its first unfinished execute().

    For the time of the call the script is `__main__`, and `sys.argv` and `sys.path[0]` are its own. What it prints goes
    to standard error, for standard output belongs to whoever looks. Its errors are raised as they are (see
    `traceback_of`); a sys.exit() ends it.

    Args:
        name: what its `__name__` is.

    Raises:
        InitializationError: there is no such script.
    """
    where = os.path.abspath(path)
    module = ModuleType(name)
    vars(module).update(__file__=where, __builtins__=__builtins__)
    with _looking(where, argv), standing_in(module), redirect_stdout(sys.stderr):
        _run(where, module)
        return Loaded(where, module, tuple(_reached))


def _run(path: str, module: ModuleType) -> None:
    from ezpyp.scripts import frozen

    source = frozen.text_of(path)
    if source is None:
        try:
            with open(path, "rb") as file:
                source = file.read()
        except OSError as error:
            raise InitializationError(f"The script {path} cannot be read: {error.strerror or error}.") from None
    with suppress(_Reached, SystemExit):
        exec(compile(source, path, "exec", dont_inherit=True), vars(module))


def traceback_of(error: BaseException, path: str) -> str:
    """What Python would have printed if the script at `path` had been run by itself."""
    import traceback

    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename != path:
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace))


@contextmanager
def standing_in(module: ModuleType) -> Iterator[None]:
    """Let a script's module be `__main__`, and what lies beside it importable, so that its objects can be unpickled."""
    former, path = sys.modules["__main__"], [*sys.path]
    sys.modules["__main__"] = module
    sys.path[:1] = [os.path.dirname(str(module.__file__))]
    try:
        yield
    finally:
        sys.modules["__main__"], sys.path[:] = former, path


@contextmanager
def _looking(path: str, argv: Sequence[str]) -> Iterator[None]:
    global _loading, _reached
    if _loading:
        raise InitializationError(f"{path} is asked for by a script that is itself only being looked at.")
    former = sys.argv
    sys.argv = [path, *argv]
    _loading, _reached = True, []
    try:
        yield
    finally:
        _loading, _reached, sys.argv = False, [], former
