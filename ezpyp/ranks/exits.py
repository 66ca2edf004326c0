"""How a script ends: one short message for an error of ours, the exit code its pipelines earned, and no rank left
behind.

Installed by the first Pipeline(), never by `import ezpyp`. A test runner, a notebook or an importing program keeps
its own exit code: only `execute()` called from a script that is run as `__main__` earns one.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType

from ezpyp.errors import EzpypError, RankMismatch
from ezpyp.ranks import launched, mpi

_installed = False
_owner = 0
_reason = ""
_PLACE = "_ezpyp_last_word"
_acts: list[Callable[[], None]] = []

#: Programs that run other people's code as `__main__` and answer for the exit code themselves.
_HOSTS = frozenset(
    {
        "pytest",
        "_pytest",
        "unittest",
        "IPython",
        "ipykernel",
        "nbclient",
        "doctest",
        "pdb",
        "bdb",
        "code",
        "idlelib",
        "xdist",
    }
)


def install() -> None:
    """Set the hooks of this process, once."""
    global _installed, _owner
    if _installed:
        return
    _installed, _owner = True, os.getpid()
    atexit.register(_leave)
    previous = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        _remember(error)
        if isinstance(error, EzpypError):
            _say(error, trace)
        else:
            previous(kind, error, trace)
        if isinstance(error, RankMismatch):
            _abort(error)

    sys.excepthook = hook


def earn(code: int) -> None:
    """A pipeline ended with this code: so will the script, unless a worse one follows."""
    if not code or from_host():
        return
    if not hasattr(sys, _PLACE):
        setattr(sys, _PLACE, _LastWord())
    last: _LastWord = getattr(sys, _PLACE)
    last.code = max(last.code, code)


def at_last(act: Callable[[], None]) -> None:
    """Do something when the script has ended and MPI is left, which ends the whole job. Every rank gives its own.

    A rank that is killed before it has left MPI leaves its shared memory behind, where the next start of the job, which
    has the same name for srun and MPICH, would take it for its own and wait for ever.
    """
    _acts.append(act)


def earned() -> int:
    """The exit code that this process will end with, as far as ezpyp is concerned."""
    return getattr(getattr(sys, _PLACE, None), "code", 0)


def from_host() -> bool:
    """True in an interactive prompt or a notebook, whose exit code is not ours."""
    main = sys.modules.get("__main__")
    has_text = getattr(main, "__file__", None) is not None or sys.argv[:1] == ["-c"]
    return not has_text or hasattr(sys, "ps1") or bool(sys.flags.interactive)


def from_script() -> bool:
    """True if the calling code runs because a person ran a script, not a test runner, a notebook or an interactive
    prompt.
    """
    if from_host():
        return False
    ends_in_main = False
    for name in _calling():
        if name.partition(".")[0] in _HOSTS:
            return False
        if name != "runpy":  # python -m
            ends_in_main = name == "__main__"
    return ends_in_main


def _calling() -> Iterator[str]:
    """The names of the modules whose code is running, the innermost first: of this thread, then of the main thread."""
    threads = [sys._getframe(1)]
    if threading.current_thread() is not threading.main_thread():
        threads += [f for k, f in sys._current_frames().items() if k == threading.main_thread().ident]
    for innermost in threads:
        frame: FrameType | None = innermost
        while frame is not None:
            yield str(frame.f_globals.get("__name__", ""))
            frame = frame.f_back


class _LastWord:
    """Ends the process with the code that was earned, when the interpreter takes `sys` apart.

    Later than every atexit callback and the flush of the streams: a callback of ours that ended the process would
    skip those registered before it, and Python offers no other way to change the exit code of a script that ran to
    its end. By exit(3) of the C library, not os._exit(): MPICH 5 tells its launcher only there that this rank has
    finished, and hydra kills the others of a rank that ends without that.
    """

    def __init__(self) -> None:
        import ctypes

        self.code = 0
        self._pid = os.getpid()
        self._end: Callable[[int], object] = ctypes.PyDLL(None).exit

    def __del__(self, here: Callable[[], int] = os.getpid) -> None:
        # A default, because the names of this module are gone by then.
        if here() == self._pid:
            self._end(self.code)


def _remember(error: BaseException) -> None:
    global _reason
    text = str(error).strip().splitlines()
    _reason = f"ended with {type(error).__name__}{': ' + text[0][:300] if text else ''}"
    if isinstance(error, EzpypError):
        earn(error.exit_code)


def _say(error: EzpypError, trace: TracebackType | None) -> None:
    """The text, and the line of the user's that led to it. No frame of ours helps anyone."""
    if error.quiet:
        return
    import traceback

    ours = os.path.dirname(os.path.dirname(__file__)) + os.sep
    theirs = [
        f for f in traceback.extract_tb(trace) if not f.filename.startswith(ours) and not f.filename.startswith("<")
    ]
    where = f"\n  at {theirs[-1].filename}:{theirs[-1].lineno}: {theirs[-1].line}" if theirs else ""
    with contextlib.suppress(Exception):
        print(f"ezpyp: {type(error).__name__}: {error}{where}", file=sys.stderr, flush=True)


def _abort(error: RankMismatch) -> None:
    """Some ranks will never come: end the job. Those who do not speak give the one that does a moment."""
    link = mpi.connected()
    if link is not None and link.broken:
        if error.quiet:
            time.sleep(error.delay)
        link.abort(error.exit_code)


def _leave() -> None:
    """Join the others once more, as one that leaves, so that none waits in vain; then do what comes last."""
    if os.getpid() != _owner:
        return
    if launched.launch() is not None:
        _leave_others()
    for act in _acts:
        with contextlib.suppress(EzpypError):
            act()


def _leave_others() -> None:
    with contextlib.suppress(EzpypError):
        link = mpi.connect()
        if link is not None and link.lost is not None:
            link.abort(link.lost.exit_code)
        if link is not None and not link.over:
            link.meet(mpi.Mark.LEAVING, b"", lambda: _reason or "left its script")
            _ = [*link.signs()]  # UCX warns of messages that nobody took
        if link is not None and (earned() or _acts):
            link.finalize()
