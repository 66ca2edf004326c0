"""The processes that a process started, and theirs: adopt them, find them, end them all."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache

from ezpyp.system.proc import look

PR_SET_CHILD_SUBREAPER, PR_SET_PDEATHSIG = 36, 1
#: Seconds after which processes that do not go away, for instance in a system call that hangs, are left.
_PATIENCE = 2.0


def adopt(*, really: bool = True) -> None:
    """Become the parent of what descendants leave behind, daemons with sessions of their own included (prctl(2)).

    `really=False` leaves that to the next adopter above again. Not inherited by a fork.
    """
    _prctl()(PR_SET_CHILD_SUBREAPER, int(really), 0, 0, 0)


def end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent, which has this number, ends (prctl(2))."""
    _prctl()(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before we asked
        os._exit(0)


def has_children() -> bool:
    """Whether this process has any child, ended or not. One system call."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def children(pid: int) -> list[int]:
    """The children of a process, ended or not."""
    return [child for child, parent, _ in _processes() if parent == pid]


def ancestor(names: Collection[str]) -> int | None:
    """The nearest process above this one that has one of these names."""
    process = look()
    while process is not None and process.parent > 1:
        pid = process.parent
        process = look(pid)
        if process is not None and process.name in names:
            return pid
    return None


def descendants(pid: int) -> list[int]:
    """Every living process below one, those nearest to it first."""
    families: dict[int, list[int]] = {}
    for child, parent, alive in _processes():
        if alive:
            families.setdefault(parent, []).append(child)
    return _below(families.get(pid, []), families)


def is_below(pid: int, root: int) -> bool:
    """Whether a process is another one, or its child, or a child's."""
    while pid > 1 and pid != root:
        process = look(pid)
        pid = process.parent if process is not None else 0
    return pid == root


def bury(spare: Collection[int] = ()) -> list[int]:
    """Wait for children that have ended, except some that others wait for; the living descendants of this process."""
    if not has_children():
        return []
    families: dict[int, list[int]] = {}
    for pid, parent, alive in _processes():
        if alive:
            families.setdefault(parent, []).append(pid)
        elif parent == os.getpid() and pid not in spare:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
    return _below([child for child in families.get(os.getpid(), []) if child not in spare], families)


def end(pid: int) -> None:
    """Kill everything below a process, then the process itself with its group. The caller waits for it.

    It is stopped first, so that it cannot tell anyone of deaths that are not the doing of those who died.
    """
    if is_alive(pid):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGSTOP)
        _kill_until_none(lambda: descendants(pid))
    kill_group(pid)


def end_children(spare: Collection[int] = ()) -> None:
    """Kill all below this process, except some children with theirs, and wait for those that were its own.

    Of an adopter nothing is left: the children of one that was killed come to this process.
    """
    _kill_until_none(lambda: bury(spare))


def kill_group(pid: int) -> None:
    """Kill the members of a process group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def _kill_until_none(find: Callable[[], list[int]]) -> None:
    until = time.monotonic() + _PATIENCE
    while (found := find()) and time.monotonic() < until:
        for pid in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)


def _below(pids: list[int], families: Mapping[int, list[int]]) -> list[int]:
    found = [*pids]
    for each in found:
        found += families.get(each, [])
    return found


def _processes() -> Iterator[tuple[int, int, bool]]:
    """(process id, its parent's, whether it is alive) of every process of this machine that can be seen.

    Reads all of /proc, some milliseconds: not every kernel is built to list the children of a process.
    """
    for name in os.listdir("/proc"):
        if name.isdecimal() and (process := look(int(name))) is not None:
            yield int(name), process.parent, process.is_alive


def is_alive(pid: int) -> bool:
    """Whether there is such a process and it has not ended, waited for or not."""
    process = look(pid)
    return process is not None and process.is_alive


@cache
def _prctl() -> Callable[..., int]:
    import ctypes

    function: Callable[..., int] = ctypes.CDLL(None, use_errno=True).prctl
    return function
