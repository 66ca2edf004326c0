"""Bells: a process that sleeps is woken by another of its machine. MPI has nothing for that: whoever waits for its
messages has to look whether they have come.

A bell is a socket for datagrams, whose address the kernel chose (unix(7), autobind). To ring one never blocks, and that
nobody heard it is no error: it is there to be early, and who was not woken looks a little later.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time

#: select(2) takes descriptors below this.
_SELECTABLE = 1024
#: Seconds after a ring in which its message is looked for.
LASTS = 0.002


class Bell:
    """One's own, which others ring; and what rings those of others."""

    def __init__(self) -> None:
        """
        Raises:
            OSError: there is none on this system.
        """
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        try:
            self._socket.bind("")
        except BaseException:
            self._socket.close()
            raise
        #: What others have to know to ring it, and where that is known: in the same network namespace, which another
        #: machine is not, and another container need not be.
        self.address: bytes = self._socket.getsockname()
        self.room = ""
        with contextlib.suppress(OSError):
            self.room = os.readlink("/proc/self/ns/net")
        #: When it was last heard, by the monotonic clock, and how often it was rung until then, as far as it was heard.
        self.heard, self.rings = 0.0, 0

    def fileno(self) -> int:
        """Can be read from when it rings, until `hush`."""
        return self._socket.fileno()

    def ring(self, address: bytes) -> None:
        """Wake whoever sleeps at the bell with that address."""
        with contextlib.suppress(OSError):
            self._socket.sendto(b"\0", address)

    def hush(self) -> None:
        """It was heard, however often it was rung."""
        self.heard = time.monotonic()
        with contextlib.suppress(OSError):
            while True:
                self._socket.recv(1)
                self.rings += 1

    def wait(self, seconds: float) -> None:
        """Sleep until it rings, at most this long."""
        sleep(self.fileno(), seconds)
        self.hush()

    def close(self) -> None:
        self._socket.close()


class Echo:
    """Whether there is something to look for: a bell may be heard a moment before the message can be seen for which it
    was rung, or after. Who has seen a message for each ring may sleep until it rings again.
    """

    __slots__ = ("_bell", "_seen", "_when")

    def __init__(self, bell: Bell) -> None:
        self._bell, self._seen, self._when = bell, 0, 0.0

    def see(self) -> None:
        """A message was seen."""
        self._seen, self._when = self._seen + 1, time.monotonic()

    def since(self) -> float | None:
        """Seconds since something was heard or seen; None where nothing is to be looked for.

        After `LASTS` what was rung for is seen, and what was seen was rung for, or never will be: a ring may be lost.
        """
        since = time.monotonic() - max(self._bell.heard, self._when)
        if since >= LASTS:
            self._seen = self._bell.rings
        return since if self._seen != self._bell.rings else None


def sleep(descriptor: int, seconds: float) -> None:
    """Sleep until something can be read there, at most this long, to the microsecond where that can be."""
    if descriptor < _SELECTABLE:
        select.select([descriptor], [], [], seconds)
    else:  # this counts in milliseconds
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.poll(1000 * seconds)
