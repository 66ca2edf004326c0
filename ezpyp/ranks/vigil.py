"""Signs of life between hosts: no MPI and few launchers notice that a host was cut from the network, and a run would
wait for it until its time limit.

While agents run, those of other hosts than rank 0's tell it every few seconds that they live, and it tells them. By a
thread, which also speaks for an agent that waits for a file system; agents run no user code that would keep Python's
lock from it. Who hears nothing for too long ends this process in good order, and with certainty: what is left of a lost
run must not write on while another has taken its place.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType

from ezpyp.errors import InitializationError, RankLost
from ezpyp.ranks.mpi import Link
from ezpyp.ranks.silence import Silence
from ezpyp.system import offspring
from ezpyp.system.allocation import seconds_of

VARIABLE = "EZPYP_LOST_AFTER"
#: Seconds without a sign of life after which a rank is lost.
_LIMIT = 60.0
#: Seconds that a rank other than 0 has to end in good order; rank 0, which has more to write, has at least as many.
_LAST = 10.0
#: Seconds that a launcher has to end by itself, and again after SIGTERM.
_LAUNCHER = 5.0
_LAUNCHERS = frozenset(("mpirun", "mpiexec", "mpiexec.hydra", "prterun", "orterun"))
#: More open files than this no rank has.
_FILES = 65536


def limit_of(environ: Mapping[str, str]) -> float:
    """The seconds without a sign of life after which a rank is taken for lost; 0 for never.

    Raises:
        InitializationError: EZPYP_LOST_AFTER makes no sense.
    """
    text = environ.get(VARIABLE, "").strip()
    limit = seconds_of(text) if text else _LIMIT
    if limit is None:
        raise InitializationError(f"{VARIABLE}={text!r}: give seconds, as in 90s or 5min, or 0 for never.")
    return limit


class Vigil:
    """Watches, for as long as it is entered, over the ranks of other hosts: rank 0 over all, the others over rank 0.

    When one is lost, `Link.receive` and `Link.meet` raise RankLost, and the process has a while to end.
    """

    def __init__(self, link: Link | None, limit: float) -> None:
        """With a `limit` of 0, or where MPI does not take calls from several threads, nobody is watched."""
        self._link, self._limit = link, limit
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Vigil:
        link = self._link
        if link is not None and self._limit and link.takes_threads:
            others = range(1, link.size) if link.rank == 0 else (0,)
            peers = [rank for rank in others if link.places[rank][0] != link.host]
            if peers:
                self._thread = threading.Thread(target=self._watch, args=(link, peers), name="ezpyp-vigil", daemon=True)
                self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join(_LAST)  # in MPI it may hang, and is of no more use

    def _watch(self, link: Link, peers: Sequence[int]) -> None:
        silence = Silence(peers, self._limit, time.monotonic())
        while True:
            heard: list[int] = []
            with contextlib.suppress(Exception):  # an error of MPI says nothing that silence does not
                link.sign(peers)
                heard += link.signs()
            lost = silence.look(time.monotonic(), heard)
            if lost and link.lost is None:
                _end_surely(max(self._limit, _LAST) if link.rank == 0 else _LAST)
                link.lost = _loss(link, lost, self._limit)
            if self._over.wait(silence.period):
                return


def _loss(link: Link, lost: Sequence[int], limit: float) -> RankLost:
    names = [f"rank {rank} ({link.places[rank][0]})" for rank in lost[:3]]
    who = ", ".join(names) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
    error = RankLost(
        f"Nothing was heard of {who} for {limit:g} s: the host or its network is gone. "
        + (
            "The run ends. What was done is kept; run again to do the rest."
            if link.rank == 0
            else f"Rank {link.rank} ({link.host}) ends with its steps; what was done is kept."
        ),
        who,
    )
    error.quiet = link.rank > 1  # two speak for all
    return error


def _end_surely(seconds: float) -> None:
    """Have a process of its own see to it that this one has ended after so many seconds, with all that it started; and
    then the launcher that started it here, which may wait for ever for hosts that it does not reach.
    """
    parent, launcher = os.getpid(), offspring.ancestor(_LAUNCHERS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, which the child does not need
        child = os.fork()
    if child:
        return
    try:
        os.setsid()  # nobody who ends the rank's group ends this one
        os.dup2(2, 0)
        os.closerange(1, _FILES)  # whoever waits for the end of the rank's connections and output does not wait for us
        if not _ends(seconds, lambda: os.getppid() != parent):
            os.write(0, b"ezpyp: a rank that was to end did not, and is killed.\n")
            os.kill(parent, signal.SIGSTOP)
            for pid in offspring.descendants(parent):
                if pid != os.getpid():
                    os.kill(pid, signal.SIGKILL)
            os.kill(parent, signal.SIGKILL)
        os.close(0)
        for number in (signal.SIGTERM, signal.SIGKILL):
            if launcher is None or _ends(_LAUNCHER, lambda: not offspring.is_alive(launcher)):
                break
            os.kill(launcher, number)
    finally:
        os._exit(0)


def _ends(seconds: float, has_ended: Callable[[], bool]) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if has_ended():
            return True
        time.sleep(0.05)
    return False
