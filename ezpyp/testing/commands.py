"""Programs that write, fail, hang, fork, ignore signals and eat memory: argument lists for commands in tests.

    pipeline.command("sim", commands.write("out.txt", "1.5"), outputs="out.txt")
    pipeline.command("bad", commands.fail(3, "no convergence"))

Each is this file, run by the interpreter that runs the test. They need nothing of ezpyp and start in milliseconds.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any


def write(name: str, text: Any = "", *more: Any) -> list[Any]:
    """Write a file, with `text` and what follows it as its lines."""
    return _command("write", name, text, *more)


def say(*lines: Any, error: bool = False, every: float = 0.0) -> list[Any]:
    """Print lines, on standard error if asked, one in so many seconds."""
    return _command("say", int(error), every, *lines)


def fail(code: int = 1, message: str = "") -> list[Any]:
    """Say why on standard error, and end with an exit code."""
    return _command("fail", code, message)


def crash(number: int = signal.SIGSEGV) -> list[Any]:
    """End by a signal."""
    return _command("crash", int(number))


def hang(seconds: float = 600.0) -> list[Any]:
    """Write the process id to `pid`, and do nothing for long."""
    return _command("hang", seconds)


def fork(seconds: float = 600.0, *, wait: bool = True, session: bool = True) -> list[Any]:
    """Write to `pids` the ids of the process, of a child, and of a child's child that has a session of its own.

    Args:
        wait: do nothing for long; else end at once, and leave the others behind.
        session: False leaves all in one session.
    """
    return _command("fork", seconds, int(wait), int(session))


def ignore(seconds: float = 600.0, numbers: tuple[int, ...] = (signal.SIGTERM, signal.SIGINT)) -> list[Any]:
    """As `hang`, deaf to signals."""
    return _command("ignore", seconds, *map(int, numbers))


def save(code: int = 0, seconds: float = 600.0) -> list[Any]:
    """Write the process id to `$EZPYP_CHECKPOINT_DIR/pid` and do nothing for long; at SIGTERM or SIGUSR1, save its name
    there and end with an exit code. Where something is saved, write it to `saved`, and end.
    """
    return _command("save", code, seconds)


def eat(size: int, seconds: float = 0.0) -> list[Any]:
    """Hold so many bytes of memory for so long."""
    return _command("eat", size, seconds)


def _command(verb: str, *args: Any) -> list[Any]:
    return [sys.executable, "-I", "-S", os.path.abspath(__file__), verb, *args]


def _write(name: str, *lines: str) -> None:
    with open(name, "w", encoding="utf-8") as file:
        file.write("\n".join(lines))


def _say(error: str, every: str, *lines: str) -> None:
    for line in lines:
        print(line, file=sys.stderr if int(error) else sys.stdout, flush=True)
        time.sleep(float(every))


def _fail(code: str, message: str) -> None:
    if message:
        print(message, file=sys.stderr)
    sys.exit(int(code))


def _crash(number: str) -> None:
    signal.signal(int(number), signal.SIG_DFL)
    os.kill(os.getpid(), int(number))


def _hang(seconds: str) -> None:
    _note("pid", os.getpid())
    time.sleep(float(seconds))


def _fork(seconds: str, wait: str, session: str) -> None:
    told, tell = os.pipe()
    if os.fork() == 0:
        if os.fork() == 0 and int(session):
            os.setsid()
        os.write(tell, b"%d " % os.getpid())
        time.sleep(float(seconds))
        os._exit(0)
    found = b""
    while found.count(b" ") < 2:
        found += os.read(told, 64)
    _note("pids", os.getpid(), *map(int, found.split()))
    if int(wait):
        time.sleep(float(seconds))


def _ignore(seconds: str, *numbers: str) -> None:
    for number in map(int, numbers):
        signal.signal(number, signal.SIG_IGN)
    _hang(seconds)


def _save(code: str, seconds: str) -> None:
    folder, told = os.environ["EZPYP_CHECKPOINT_DIR"], list[int]()
    if os.path.exists(f"{folder}/saved"):
        with open(f"{folder}/saved", encoding="ascii") as file:
            _write("saved", file.read())
        return
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, frame: told.append(number))
    _note(f"{folder}/pid", os.getpid())
    until = time.monotonic() + float(seconds)
    while not told and time.monotonic() < until:
        time.sleep(0.05)
    _write(f"{folder}/saved", *(signal.Signals(number).name for number in told[:1]))
    sys.exit(int(code))


def _eat(size: str, seconds: str) -> None:
    held = bytearray(int(size))
    held[::4096] = b"x" * len(held[::4096])
    time.sleep(float(seconds))


def _note(name: str, *pids: int) -> None:
    """Whole or not at all: whoever waits for it reads it at once."""
    with open(f"{name}.new", "w", encoding="ascii") as file:
        print(*pids, file=file)
    os.rename(f"{name}.new", name)


_VERBS: dict[str, Callable[..., None]] = {
    "crash": _crash,
    "eat": _eat,
    "fail": _fail,
    "fork": _fork,
    "hang": _hang,
    "ignore": _ignore,
    "save": _save,
    "say": _say,
    "write": _write,
}

if __name__ == "__main__":
    _VERBS[sys.argv[1]](*sys.argv[2:])
