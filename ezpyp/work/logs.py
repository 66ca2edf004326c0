"""The logs of an agent's helpers: shown as they grow, where that was asked for, and gone where nothing was printed."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable

#: Seconds between two looks.
_EVERY = 0.1


class Logs:
    """Those of one agent, by their paths in its folder; None where output is not captured."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        #: How much of each was shown.
        self._shown: dict[str, int] = {}
        self._looked = 0.0

    def show(self, logs: Iterable[str | None]) -> None:
        """Copy to standard output what was printed since the last look, unless that was just now."""
        now = time.monotonic()
        if now - self._looked >= _EVERY:
            self._looked = now
            for log in logs:
                self.show_rest(log)

    def show_rest(self, log: str | None) -> None:
        """Copy to standard output what of it was not shown."""
        if log is None:
            return
        with contextlib.suppress(OSError), open(os.path.join(self._folder, log), "rb") as file:
            file.seek(self._shown.get(log, 0))
            text = file.read()
            self._shown[log] = file.tell()
            sys.stdout.write(text.decode(errors="replace"))
            sys.stdout.flush()

    def drop_if_empty(self, log: str | None) -> None:
        """Nothing more is written to it."""
        if log is None:
            return
        path = os.path.join(self._folder, log)
        with contextlib.suppress(OSError):
            if os.path.getsize(path) == 0:
                os.unlink(path)
