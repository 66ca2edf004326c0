"""Agents on ranks: the only module that knows mpi4py.

MPI starts at `connect()`, after the nursery has been forked. Ranks meet in one fixed-size collective whatever they came
for, so that it cannot itself diverge: a rank that leaves joins with the mark "leaving", and the others then know its
name.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import signal
import sys
import time
import warnings
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from functools import cached_property
from typing import Any, NoReturn, TypeVar

from ezpyp.errors import EzpypError, LauncherError, RankLost, RankMismatch
from ezpyp.ranks.launched import Launch, cannot_meet, launch, wrong_launcher
from ezpyp.system.bells import Bell, Echo
from ezpyp.system.pauses import WOKEN, pause

T = TypeVar("T")

#: Seconds after which a rank that waits says for what.
PATIENCE = 60.0
_TAG = 7
#: Of signs of life, which another thread sends and receives.
_SIGN = 8


def started() -> bool:
    """True if MPI runs in this process, whoever started it."""
    module = sys.modules.get("mpi4py.MPI")
    return module is not None and module.Is_initialized() and not module.Is_finalized()


class Mark(IntEnum):
    """What a rank came to a meeting for."""

    LEAVING = 0
    INITIALIZE = 1
    EXECUTE = 2
    BARRIER = 3
    SHARE = 4
    FINISH = 5


_PLACES = {
    Mark.LEAVING: "the end of its script",
    Mark.INITIALIZE: "initialize_schema()",
    Mark.EXECUTE: "execute()",
    Mark.BARRIER: "barrier()",
    Mark.SHARE: "what rank 0 does for all",
    Mark.FINISH: "the end of execute()",
}


class Link:
    """This rank's connection to the others. Made by `connect()`, once a process."""

    def __init__(self, comm: Any, module: Any) -> None:
        self._mpi = module
        self._comm = comm
        self.rank: int = comm.Get_rank()
        self.size: int = comm.Get_size()
        self.host = os.uname().nodename
        #: Others of this node ring it when they have sent something. None where there are no bells.
        self.bell = _bell()
        self._echo = Echo(self.bell) if self.bell is not None else None
        #: Those of the other ranks of this node; and whether all of whom this rank hears can ring its own.
        self._bells: dict[int, bytes] = {}
        self._is_woken = False
        #: Messages that are on their way.
        self._sending: list[Any] = []
        #: Set when a rank left or died: no further meeting can succeed.
        self.broken = False
        #: Set by a vigil that hears nothing of some rank any more.
        self.lost: RankLost | None = None
        self._signs: list[Any] = []
        first = str(module.Get_library_version()).strip("\0").splitlines()[0]
        self.library = " ".join(first.replace("Version:", "").split())[:80]

    def meet(self, mark: Mark, digest: bytes, detail: Callable[[], str]) -> bool:
        """Wait for every rank, sleeping. True if all came for the same with the same digest.

        Args:
            digest: what this rank believes, any length. detail: text that a message may need.

        Raises:
            RankMismatch: some rank is leaving, or came for something else. False is left for unequal digests, which the
            caller can explain.
        """
        self._check_all_live()
        if self.over:
            raise RankMismatch(
                "An earlier meeting of the ranks failed, or the script ended MPI (MPI.Finalize); this run cannot go on."
            )
        value = int.from_bytes(digest[:7], "big")
        ours = array("q", [mark, -mark, value, -value])
        theirs = array("q", [0] * 4)
        integer = self._mpi.INT64_T
        request = self._comm.Iallreduce([ours, integer], [theirs, integer], self._mpi.MAX)
        self._await(request, _PLACES[mark])
        self._forget_sent()
        if theirs[0] != -theirs[1]:
            self.broken = True
            _explain_absence(self._comm.allgather((int(mark), self.host, detail())), mark, self.rank)
        return theirs[2] == -theirs[3]

    def once(self, work: Callable[[], T]) -> T:
        """Rank 0 does it; every rank gets the value, or raises the same error. The others sleep meanwhile.

        Raises:
            EzpypError: on ranks other than 0, where rank 0 failed with an error that is not of ezpyp.
        """
        told: tuple[bool, Any] | None = None
        try:
            if self.rank == 0:
                told = (True, work())
        except BaseException as error:
            told = (False, _portable(error))
            self._share(told)
            raise
        good, content = self._share(told)
        if not good:
            content.quiet = True
            raise content
        found: T = content
        return found

    def _share(self, value: Any) -> Any:
        self.meet(Mark.SHARE, b"", lambda: "left")
        return self.share(value)

    def share(self, value: Any) -> Any:
        """Rank 0's value, on every rank. Only after a meeting."""
        told = pickle.dumps(value, pickle.HIGHEST_PROTOCOL) if self.rank == 0 else b""
        length = array("q", [len(told)])
        self._await(self._comm.Ibcast([length, self._mpi.INT64_T], 0), _PLACES[Mark.SHARE])
        content = bytearray(told or length[0])
        self._await(self._comm.Ibcast([content, self._mpi.BYTE], 0), _PLACES[Mark.SHARE])
        return value if self.rank == 0 else pickle.loads(content)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value, on every rank. Only after a meeting: who waits here does not sleep."""
        found: list[Any] = self._comm.allgather(value)
        return found

    @cached_property
    def places(self) -> list[tuple[str, int, int]]:
        """(host, place among the ranks of its node, number of ranks there) of every rank. Only after a meeting, the
        first time.
        """
        # Splitting the communicator would tell too, and takes 6 ms with two ranks.
        node = self.host, _boot()
        room = (*node, self.bell.room) if self.bell is not None else ()
        told = self.gather((node, room, self.bell.address if self.bell is not None else b""))
        self._bells = {rank: bell for rank, (_, there, bell) in enumerate(told) if bell and there == room}
        heard = range(self.size) if self.rank == 0 else (0,)
        self._is_woken = self.bell is not None and all(each in self._bells for each in heard)
        size, place = Counter(there for there, *_ in told), Counter[tuple[str, str]]()
        found = []
        for there, *_ in told:
            found.append((there[0], place[there], size[there]))
            place[there] += 1
        return found

    def send(self, message: Any, to: int) -> None:
        """Does not wait until it is received: two ranks may send to each other at once, and one may have left."""
        self._forget_sent()
        self._sending.append(self._comm.isend(message, to, _TAG))
        if self.bell is not None and to in self._bells:
            self.bell.ring(self._bells[to])

    def nap(self, waited: float) -> float:
        """Seconds to sleep, after so many seconds in which nothing came. Rank 0 hears of all others, they of rank 0."""
        self._forget_sent()
        if self.bell is None or not self._is_woken or self._sending:  # a long message goes on only while both look
            return pause(waited)
        since = self._echo.since() if self._echo is not None else None
        return WOKEN if since is None else pause(since)

    def _forget_sent(self) -> None:
        self._sending = [each for each in self._sending if not each.Test()]

    def receive(self) -> tuple[int, Any] | None:
        """(rank, message) if one is here, else None at once.

        Raises:
            RankLost: some rank is, that this one cannot do without.
        """
        self._check_all_live()
        status, probe, anyone = self._mpi.Status(), self._comm.iprobe, self._mpi.ANY_SOURCE
        # What has come since the last look is taken in by one that does not see it yet.
        if not (probe(anyone, _TAG, status) or probe(anyone, _TAG, status)):
            return None
        source = status.Get_source()
        if self._echo is not None:
            self._echo.see()
        return source, self._comm.recv(None, source, _TAG)

    @cached_property
    def takes_threads(self) -> bool:
        """Whether MPI may be called by several threads at once."""
        return bool(self._mpi.Query_thread() == self._mpi.THREAD_MULTIPLE)

    def sign(self, ranks: Iterable[int]) -> None:
        """Tell others that this rank lives. Does not wait."""
        self._signs = [each for each in self._signs if not each.Test()]
        self._signs += [self._comm.Isend([b"+", self._mpi.BYTE], rank, _SIGN) for rank in ranks]

    def signs(self) -> Iterator[int]:
        """Of which ranks a sign of life has come since the last look."""
        status, sign = self._mpi.Status(), bytearray(1)
        while self._comm.Iprobe(self._mpi.ANY_SOURCE, _SIGN, status):
            self._comm.Recv([sign, self._mpi.BYTE], status.Get_source(), _SIGN)
            yield status.Get_source()

    def lose(self, why: str) -> NoReturn:
        """Rank 0 says that some rank is lost: wait for the end of the job, which rank 0 brings about.

        Raises:
            RankLost: always.
        """
        self.lost = RankLost(why)
        self.lost.quiet, self.lost.delay = True, PATIENCE
        self.broken = True
        raise self.lost

    def _check_all_live(self) -> None:
        if self.lost is not None:
            self.broken = True
            raise self.lost

    def abort(self, code: int) -> NoReturn:
        """End all ranks now."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        if self.lost is None:  # without all of the network it may hang; the launcher notices an exit, too
            self._comm.Abort(code)
        os._exit(code)

    @property
    def over(self) -> bool:
        """No meeting can succeed any more: one failed, or the script ended MPI itself."""
        return self.broken or bool(self._mpi.Is_finalized())

    def finalize(self) -> None:
        """Leave MPI in good order, for a process that will end before mpi4py would do it."""
        self.broken = True
        if not self._mpi.Is_finalized():
            self._mpi.Finalize()

    def _await(self, request: Any, what: str) -> None:
        text = f"ezpyp: rank {self.rank} ({self.host}) has waited {PATIENCE:.0f} s at {what}."
        _sleep_until(request, self.rank, text, self._check_all_live)


def _explain_absence(found: list[tuple[int, str, str]], mark: Mark, own: int) -> None:
    """Raise on those who stay; those who leave have said why already."""
    if mark is Mark.LEAVING:
        return
    others = [(rank, each) for rank, each in enumerate(found) if each[0] != mark]
    lines = [
        f"Rank {rank} ({host}) {detail}"
        if kind == Mark.LEAVING
        else f"Rank {rank} ({host}) is at {_PLACES[Mark(kind)]}"
        for rank, (kind, host, detail) in others[:3]
    ]
    more = f" and {len(others) - 3} more" if len(others) > 3 else ""
    error = RankMismatch(
        f"{'; '.join(lines)}{more}, while {len(found) - len(others)} of {len(found)} ranks are at {_PLACES[mark]}. "
        "All ranks must run the same script to its end."
    )
    error.quiet = own != min(r for r, each in enumerate(found) if each[0] == mark)
    raise error


def _portable(error: BaseException) -> EzpypError:
    """An error as other ranks can be told of it."""
    return error if isinstance(error, EzpypError) else EzpypError(f"Rank 0 failed with {type(error).__name__}: {error}")


def _bell() -> Bell | None:
    try:
        return Bell()
    except OSError:
        return None


def _boot() -> str:
    """What tells this machine from others of the same name, "" where it cannot be known."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
            return file.read().strip()
    except OSError:
        return ""


_link: Link | None = None


def connect() -> Link | None:
    """Start MPI if a launcher asked for several tasks and join the others; None where this process is alone.

    Collective over all ranks the first time. It duplicates the world communicator, so that nothing a script sends is
    mistaken for a message of ours.

    Raises:
        LauncherError: the launcher started several tasks and MPI sees one, or would abort: they would all write one
            cache (message 3).
    """
    global _link
    if _link is not None:
        return _link
    told = launch()
    if told is None:
        return None
    with _watched(told):
        import mpi4py

        if mpi4py.rc.initialize and "mpi4py.MPI" not in sys.modules:
            # We start MPI below, after a look at the library; mpi4py still ends it, as if it had.
            mpi4py.rc.initialize = False
            mpi4py.rc.finalize = mpi4py.rc.finalize is not False
        from mpi4py import MPI

        if MPI.Is_finalized():
            raise LauncherError("The script ended MPI (MPI.Finalize) before execute(). Leave that to mpi4py.")
        if not MPI.Is_initialized():
            version = MPI.Get_library_version()
            if cannot_meet(told, version):
                raise LauncherError(wrong_launcher(told, version))
            if os.environ.get("SLURM_MPI_TYPE") == "pmi2" and re.search(r"Device: *ch4:.*\bofi\b", version):
                # By UCX, MPICH (5.0.2) tells Slurm texts without an end: ranks that imported much before abort or hang.
                os.environ.setdefault("MPIR_CVAR_CH4_NETMOD", "ofi")
            if "MPICH" in version and "SLURM_RESTART_COUNT" in os.environ:
                from ezpyp.ranks import leftovers

                leftovers.remove(os.environ)
            MPI.Init_thread(MPI.THREAD_MULTIPLE)
    if MPI.COMM_WORLD.Get_size() == 1:
        raise LauncherError(wrong_launcher(told, MPI.Get_library_version()))
    comm, request = MPI.COMM_WORLD.Idup()
    _sleep_until(request, told.rank, _waits_for_all(told))
    _link = Link(comm, MPI)
    _ = _link.places  # now all are here
    return _link


def connected() -> Link | None:
    """The link, if `connect()` made one."""
    return _link


def _sleep_until(request: Any, rank: int, text: str, check: Callable[[], None] = lambda: None) -> None:
    """Wait until a request is complete: an MPI wait would spin on the core that a helper computes on."""
    began, said = time.monotonic(), rank > 1  # two speak for all: one of them may be the late one
    while not request.Test():
        check()
        waited = time.monotonic() - began
        time.sleep(pause(waited))
        if not said and waited > PATIENCE:
            said = True
            print(text, file=sys.stderr, flush=True)


def _waits_for_all(told: Launch) -> str:
    return (
        f"ezpyp: rank {told.rank} ({os.uname().nodename}) has waited {PATIENCE:.0f} s for all {told.size} ranks "
        "to come to initialize_schema(). Does each of them make a Pipeline?"
    )


@contextlib.contextmanager
def _watched(told: Launch) -> Iterator[None]:
    """Say for what this rank waits, while MPI_Init waits for the others inside the library.

    By a process: mpi4py holds Python's lock meanwhile, which stops threads and signal handlers.
    """
    if started() or told.rank > 1:
        yield
        return
    parent = os.getpid()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads, which the child does not need
        try:
            watcher = os.fork()
        except (OSError, RuntimeError):  # no room for it; or the script has ended, where Python 3.12.1 forks no more
            watcher = None
    if watcher is None:
        yield
        return
    if watcher == 0:
        with contextlib.suppress(BaseException):
            from ezpyp.system import offspring

            time.sleep(min(1.0, PATIENCE))  # most are not needed for longer, and the next line takes milliseconds
            offspring.end_with(parent)
            time.sleep(max(0.0, PATIENCE - 1.0))
            os.write(2, f"{_waits_for_all(told)}\n".encode(errors="backslashreplace"))
        os._exit(0)
    try:
        yield
    finally:
        os.kill(watcher, signal.SIGKILL)
        os.waitpid(watcher, 0)


_SHARED_BY_MPI = (
    r"mpich|ompi|openmpi|open-mpi|pmix|prte|gds|dstore|vader|sm_segment|psm|ucx|/SYSV|/dev/infiniband|/dev/xpmem|hydra"
)


def shield_forks() -> None:
    """Keep the shared memory that MPI made out of processes forked from now on (madvise(2), MADV_DONTFORK).

    A forked child that calls MPI would otherwise write into the agents' message queues; so it only ends itself. Only
    segments that MPI_Init made are marked: shared memory of the script stays usable in steps.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        for line in maps:
            fields = line.split(maxsplit=5)
            if len(fields) < 6 or fields[1][3] != "s" or not re.search(_SHARED_BY_MPI, fields[5], re.IGNORECASE):
                continue
            start, end = (int(each, 16) for each in fields[0].split("-"))
            libc.madvise(start, end - start, 10)  # MADV_DONTFORK
