"""What steps print, sent to a log: by file descriptor, so that C code and child programs are caught too."""

from __future__ import annotations

import contextlib
import os
import sys

TAIL_LINES = 20
_TAIL_BYTES = 8192

#: A piece of a log: (file, relative to the cache folder; first byte; end).
Place = tuple[str, int, int]


class Capture:
    """The output of this process from now on. Each step calls `begin`, then `end`."""

    def __init__(self, folder: str, log: str | None) -> None:
        """Standard input becomes empty; output goes to `log` in the folder, or stays where it is if that is None."""
        import ctypes

        self._log, self._start = log, 0
        self._flush_c = ctypes.CDLL(None).fflush
        _redirect(os.devnull, os.O_RDONLY, 0)
        if log is not None:
            self._path = os.path.join(folder, log)
            _redirect(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 1, 2)
            # New streams: a notebook or a test runner may have put its own in place of those that write to 1 and 2.
            sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False, buffering=1)  # noqa: SIM115

    def begin(self) -> int:
        """A step starts: its output begins at this offset."""
        if self._log is not None:
            self._start = os.lseek(1, 0, os.SEEK_END)
        return self._start

    def end(self) -> Place | None:
        """Where the output of the step is, None if it printed nothing. Everything buffered counts as its output."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        self._flush_c(None)
        if self._log is None:
            return None
        end = os.lseek(1, 0, os.SEEK_END)
        return (self._log, self._start, end) if end > self._start else None


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


def _redirect(path: str, flags: int, *descriptors: int) -> None:
    opened = os.open(path, flags, 0o666)
    for descriptor in descriptors:
        os.dup2(opened, descriptor)
    if opened not in descriptors:
        os.close(opened)
