"""Run one program: start it without a fork of this process, watch it, count what it used, and leave nothing of it.

It is a member of this process's group, so that who ends the group ends the program, whatever became of this process.
What it leaves behind, in sessions of its own too, is found and ended when it has ended.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
import select
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ezpyp.system import offspring, stopping

#: Python ignores these, and a program must not.
_DEFAULT = (signal.SIGPIPE, signal.SIGXFSZ)
#: Seconds between two looks at the memory of a program: the first one soon, for most end soon.
_LOOK_FIRST, _LOOK_EVERY = 0.02, 1.0
#: Seconds between two looks at whether it has ended, where the kernel cannot tell when it does.
_ASK_EVERY = 0.01
#: Seconds between two looks at whether the run is to stop, for a program that is to be told.
_STOP_EVERY = 0.1
#: Seconds in which a program goes away that was killed, unless it hangs in a system call.
_DYING = 5.0
_PIECE = 1 << 16

#: Is given what a program writes, as it comes.
Reader = Callable[[bytes], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a program ended, and what it used."""

    #: The exit code, or the negative number of the signal.
    code: int
    seconds: float
    #: User and system time of the program and of all below it that were waited for.
    cpu_seconds: float
    #: The most memory that it, or one process below it that was waited for, held at a time, in bytes. 0: less than
    #: this process, and gone before it was looked at.
    peak_memory: int
    timed_out: bool = False
    #: It was sent the signal for a stop of the run.
    stopped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StopSignal:
    """What a program is sent when the run is to stop."""

    number: int
    #: Whether it is for what the program has started: a shell would end of it and leave its commands.
    below: bool = False

    def send(self, pid: int) -> None:
        for each in (self.below and offspring.children(pid)) or [pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, self.number)


def run(
    path: str,
    argv: list[str],
    environ: Mapping[str, str],
    *,
    errors: Reader,
    output: Reader | str | None = None,
    timeout: float | None = None,
    idle: Callable[[], None] | None = None,
    stop: StopSignal | None = None,
) -> Ended:
    """Run a program to its end. Only from a main thread, one at a time.

    Args:
        errors: reads its standard error.
        output: reads its standard output, or the path of a file to write it to; None lets it write where this process
            does. Standard input is empty.
        timeout: seconds after which it is ended.
        idle: called now and then, about once a second.
        stop: sent to it once when the run is to stop. It then has as long as its step has.

    Raises:
        OSError: it cannot be started, or the file for its output not be opened, which then has `filename`.
    """
    spare = offspring.children(os.getpid()) if offspring.has_children() else []
    readers: dict[int, Reader] = {}
    actions: list[tuple[int, int, str, int, int] | tuple[int, int, int]] = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)
    ]
    written: list[int] = []

    def watch(descriptor: int, reader: Reader) -> None:
        ours, theirs = os.pipe()
        os.set_blocking(ours, False)
        readers[ours] = reader
        written.append(theirs)
        actions.append((os.POSIX_SPAWN_DUP2, theirs, descriptor))

    offspring.adopt()
    try:
        watch(2, errors)
        if callable(output):
            watch(1, output)
        elif output is not None:
            written.append(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666))
            actions.append((os.POSIX_SPAWN_DUP2, written[-1], 1))
        began = time.monotonic()
        pid = os.posix_spawn(path, argv, environ, file_actions=actions, setsigmask=(), setsigdef=_DEFAULT)
        while written:
            os.close(written.pop())
        return _Watch(pid, readers, began).until_it_ends(timeout, idle, stop)
    finally:
        for descriptor in (*readers, *written):
            os.close(descriptor)
        if offspring.has_children():
            offspring.end_children(spare)
        offspring.adopt(really=False)


class _Watch:
    """A program at work."""

    def __init__(self, pid: int, readers: Mapping[int, Reader], began: float) -> None:
        self._pid, self._readers, self._began = pid, readers, began
        self._own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self._poll = select.poll()
        for descriptor in readers:
            self._poll.register(descriptor, select.POLLIN)
        self._end = _end_of(pid)
        if self._end is not None:
            self._poll.register(self._end, select.POLLIN)
        self._peak, self._look, self._look_at = 0, _LOOK_FIRST, began + _LOOK_FIRST

    def until_it_ends(self, timeout: float | None, idle: Callable[[], None] | None, stop: StopSignal | None) -> Ended:
        until = None if timeout is None else self._began + timeout
        timed_out, awaits = False, stop
        try:
            while not self._has_ended(min(self._pause(until), _STOP_EVERY if awaits else math.inf)):
                now = time.monotonic()
                if awaits and stopping.stopping():
                    awaits.send(self._pid)
                    awaits = None
                    end = now + stopping.time_left()
                    until = end if until is None else min(until, end)
                if until is not None and now >= until:
                    if timed_out:
                        break  # it hangs in the kernel
                    timed_out, until = True, now + _DYING
                    os.kill(self._pid, signal.SIGKILL)
                elif now >= self._look_at:
                    self._look_at_memory(now)
                    if idle is not None:
                        idle()
            return self._ended(timed_out, stopped=awaits is not stop)
        finally:
            if self._end is not None:
                os.close(self._end)

    def _pause(self, until: float | None) -> float:
        at = self._look_at if until is None else min(self._look_at, until)
        pause = max(0.0, at - time.monotonic())
        return pause if self._end is not None else min(pause, _ASK_EVERY)

    def _has_ended(self, seconds: float) -> bool:
        """Wait for something to happen, and pass on what it wrote."""
        ended = False
        for descriptor, _ in self._poll.poll(int(seconds * 1000) + 1):
            if descriptor == self._end:
                ended = True
            elif not self._pass_on(descriptor):
                self._poll.unregister(descriptor)
        if self._end is None:
            ended = os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        return ended

    def _pass_on(self, descriptor: int) -> bool:
        """False at the end of what can come."""
        try:
            piece = os.read(descriptor, _PIECE)
        except BlockingIOError:
            return True
        if piece:
            self._readers[descriptor](piece)
        return bool(piece)

    def _look_at_memory(self, now: float) -> None:
        self._peak = max(self._peak, _high_water(self._pid))
        self._look = min(2 * self._look, _LOOK_EVERY)
        self._look_at = now + self._look

    def _ended(self, timed_out: bool, *, stopped: bool) -> Ended:
        gone, status, usage = os.wait4(self._pid, os.WNOHANG)
        for descriptor, reader in self._readers.items():
            with contextlib.suppress(BlockingIOError):
                while piece := os.read(descriptor, _PIECE):
                    reader(piece)
        # Until it became the program, the new process was this one, and counts as large as this one was.
        peak = usage.ru_maxrss if usage.ru_maxrss > self._own else self._peak
        return Ended(
            code=os.waitstatus_to_exitcode(status) if gone else -signal.SIGKILL,
            seconds=time.monotonic() - self._began,
            cpu_seconds=usage.ru_utime + usage.ru_stime,
            peak_memory=peak * 1024,
            timed_out=timed_out,
            stopped=stopped,
        )


def _end_of(pid: int) -> int | None:
    """A descriptor that becomes readable when a process ends; None where the kernel or a container offers none."""
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _high_water(pid: int) -> int:
    """The most memory that a process has held so far, in KiB; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            lines = file.read().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(b"VmHWM:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return 0
