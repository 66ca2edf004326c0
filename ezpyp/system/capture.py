"""What steps print, sent to a log: by file descriptor, so that C code and child programs are caught too."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO

TAIL_LINES = 20
_TAIL_BYTES = 8192

#: A piece of a log: (file, relative to the cache folder; first byte; end).
Place = tuple[str, int, int]


class Capture:
    """The output of this process from now on. Each step calls `begin`, then `end`."""

    def __init__(self, folder: str, log: str | None) -> None:
        """Standard input becomes empty; output goes to `log` in the folder, or stays where it is if that is None."""
        import ctypes

        self._log, self._start, self._end = log, 0, 0
        self._flush_c = ctypes.CDLL(None).fflush
        self._flush_c.argtypes = (ctypes.c_void_p,)
        nothing = os.open(os.devnull, os.O_RDONLY)
        written = _open_log(folder, log) if log is not None else None
        if written is not None:
            self._kept = (nothing, written, written)
            self._end = os.lseek(written, 0, os.SEEK_END)
        else:
            self._log = None
            self._kept = (nothing, _duplicate(1), _duplicate(2))
        self._restore()
        # New streams: a notebook or a test runner may have put its own in place of those that write to 1 and 2.
        there = sys.stdout is not None and sys.stderr is not None
        self._streams = (sys.stdout, sys.stderr) if there and written is None else _open_streams()
        sys.stdout, sys.stderr = self._streams

    @property
    def log(self) -> str | None:
        """The file that gets the output, relative to the cache folder."""
        return self._log

    def begin(self) -> int:
        """A step starts: its output begins at this offset. What the one before closed or replaced is put back."""
        self._restore()
        out, err = self._streams
        if out.closed or err.closed:
            self._streams = out, err = _open_streams()
        sys.stdout, sys.stderr = out, err
        self._start = self._end
        return self._start

    def end(self) -> Place | None:
        """Where the output of the step is, None if it printed nothing. Everything buffered counts as its output."""
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except Exception:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(Exception):
                    stream.flush()
        self._flush_c(None)
        if self._log is None:
            return None
        self._end = os.lseek(self._kept[1], 0, os.SEEK_END)
        return (self._log, self._start, self._end) if self._end > self._start else None

    def _restore(self) -> None:
        nothing, out, err = self._kept
        os.dup2(nothing, 0)
        os.dup2(out, 1)
        os.dup2(err, 2)


def stand_in() -> None:
    """Open nothing in place of closed standard streams: else sockets and files get their descriptors, and those
    of helpers are taken for their output.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest that is free


def _open_log(folder: str, log: str) -> int | None:
    path = os.path.join(folder, log)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    except OSError as error:
        with contextlib.suppress(OSError):
            text = f"ezpyp: {path} could not be written ({error.strerror}): what steps print is not kept.\n"
            os.write(2, text.encode(errors="backslashreplace"))
        return None


def _duplicate(descriptor: int) -> int:
    try:
        return os.dup(descriptor)
    except OSError:  # the script was started without it
        return os.open(os.devnull, os.O_WRONLY)


def _open_streams() -> tuple[TextIO, TextIO]:
    """New ones that write to 1 and 2."""
    return (
        open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False),
        open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False, buffering=1),
    )


def tail(folder: str, place: Place | None) -> str:
    """The last lines of a piece of a log, at most 8 kB of them."""
    if place is None:
        return ""
    log, start, end = place
    first = max(start, end - _TAIL_BYTES)
    try:
        with open(os.path.join(folder, log), "rb") as file:
            file.seek(first)
            text = file.read(end - first).decode(errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-TAIL_LINES:])
