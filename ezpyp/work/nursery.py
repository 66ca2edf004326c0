"""A process that does nothing but fork helpers when asked, and tell how they ended.

It is forked from the agent before MPI starts, so neither it nor any helper inherits MPI's shared memory, sockets or
threads; a replacement for a helper that died is as clean as the first. (MPI in a forked child: MPI 4.1 leaves it
undefined, and Open MPI's shared-memory transport ends the parent when the child calls it.)
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import select
import signal
import socket
import struct
import sys
import time
import warnings
import weakref
from collections import deque
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, NoReturn

from ezpyp.errors import EzpypError
from ezpyp.system import offspring
from ezpyp.system.pauses import pause
from ezpyp.tuples import NamedTuple
from ezpyp.work import preloading
from ezpyp.work.wire import Wire

#: Seconds between two looks for orphans that have ended.
_BURY_EVERY = 30.0
QUIET_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
#: Seconds after which helpers that were killed and do not go away are left.
_PATIENCE = 2.0

#: The signals that were held before a step began to fork.
_held_before: set[int] = set()

#: Sockets that the agent holds; a process forked from it must not keep them open, or nobody would see them close.
_held: weakref.WeakSet[socket.socket] = weakref.WeakSet()


class Ending(NamedTuple):
    """How a helper ended: `code` as the exit status, negative for a signal; peak memory in bytes."""

    code: int
    peak: int


class NurseryGone(EzpypError, ConnectionError):
    """The process that forks helpers was ended by someone else."""

    exit_code = 4


#: What a helper does with its socket, its slot and the order it was started with. It never returns to its caller's
#: stack.
Body = Callable[[socket.socket, int, Any], None]


class Nursery:
    """The agent's end.

    Raises:
        NurseryGone: from any method but `release` and `close`, when the process itself is gone.
    """

    def __init__(self, body: Body, prepare: Callable[[], None] = lambda: None, *, spares: int = 0) -> None:
        """Fork the process. Call it before MPI starts; `body` and all it refers to are what helpers will know.

        Args:
            prepare: is called there, before the first helper is forked.
            spares: so many helpers are forked at once, without waiting for orders: they are the first to get one.
        """
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pairs: list[tuple[socket.socket, socket.socket]] = []
        with contextlib.suppress(OSError):  # too many files are open: who asks for a helper that is missing is told
            pairs.extend(socket.socketpair() for _ in range(spares))
        _held.update(ours for ours, _ in pairs)
        _flush()
        with warnings.catch_warnings():
            # Python 3.12 warns of forks beside threads; the engine has said by name which threads it saw.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            _live(theirs, self._socket, body, prepare, [each for _, each in pairs])
        for each in (theirs, *(each for _, each in pairs)):
            each.close()
        _held.add(self._socket)
        #: Sockets of helpers that have no order yet, with their numbers.
        self._spares = deque(enumerate(ours for ours, _ in pairs))
        #: Helpers have numbers in the order in which they were asked for, spares first: the last one of each slot, how
        #: many there are, and the process ids of those of which it has said that they were forked.
        self._numbers: dict[int, int] = {}
        self._asked = len(pairs)
        self._pids: list[int] = []

    def spawn(self, slot: int, order: Any) -> socket.socket:
        """Have a helper forked, or take one that is there; the socket to it. `order` is pickled.

        Does not wait for the fork: what is sent meanwhile it finds when it is there.
        """
        while self._spares:
            number, ours = self._spares.popleft()
            with contextlib.suppress(OSError):  # it was killed
                Wire(ours).send((slot, order))
                self._numbers[slot] = number
                return ours
            ours.close()
        try:
            ours, theirs = socket.socketpair()
        except OSError as error:
            raise EzpypError(
                f"Helper {slot} on {os.uname().nodename} cannot be started: {error.strerror}. Have fewer (workers=, "
                "helpers=), or let a process open more files (ulimit -n)."
            ) from error
        with theirs:
            try:
                self._tell(("spawn", slot, order), theirs)
            except BaseException:
                ours.close()
                raise
        self._numbers[slot] = self._asked
        self._asked += 1
        _held.add(ours)
        self._pids += self._receive(socket.MSG_DONTWAIT)  # it waits when too much is left unread
        return ours

    def helper(self, slot: int) -> int:
        """The process id of a slot's helper. Blocks for the few milliseconds until it is forked."""
        number = self._numbers[slot]
        self._hear_of_forks(number + 1)
        return self._pids[number]

    def reap(self, slot: int, *, kill: bool) -> Ending:
        """End the whole process group of a slot's helper, if it has not ended, and say how it ended. Blocks.

        With `kill` the helper itself is ended too; without, it is given a moment to end by itself.
        """
        self._tell(("reap", self.helper(slot), kill))
        code, peak = self._hear()
        return Ending(code=code, peak=peak)

    def release(self) -> None:
        """Have the process end, and with it every helper that is left. Does not wait for it."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def end(self) -> None:
        """Wait until every helper has ended, with what it started. A second call does nothing.

        Then nothing is left but to end the process itself, for which `close` waits.
        """
        if self._socket not in _held:
            return
        self.release()
        try:
            while self._hear() is not None:  # its last word
                pass
        except NurseryGone:  # it was killed: the kernel ended its helpers, but not what steps had started
            for number in self._numbers.values():
                if number < len(self._pids):
                    offspring.kill_group(self._pids[number])
        for each in (self._socket, *(ours for _, ours in self._spares)):
            _held.discard(each)
            each.close()

    def close(self) -> None:
        """`end`, and wait for the process, too. A second call does nothing."""
        self.end()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)

    def _tell(self, question: tuple[Any, ...], descriptor: socket.socket | None = None) -> None:
        try:
            _send(self._socket, pickle.dumps(question), descriptor)
        except OSError as error:
            raise self._gone(str(error)) from None

    def _hear_of_forks(self, count: int) -> None:
        """Wait until so many helpers are forked."""
        while len(self._pids) < count:
            self._pids += self._receive()

    def _hear(self) -> Any:
        """The answer to a question."""
        while isinstance(told := self._receive(), list):  # of forks
            self._pids += told
        return told

    def _receive(self, flags: int = 0) -> Any:
        try:
            told = self._socket.recv(1 << 16, flags)
        except BlockingIOError:
            return []
        except OSError as error:
            raise self._gone(str(error)) from None
        if not told:
            raise self._gone("it closed its socket")
        return pickle.loads(told)

    def _gone(self, why: str) -> NurseryGone:
        if loading := preloading.unfinished():
            why = f"{why} while it ran {loading}, which the script gave to ezpyp.preload"
        return NurseryGone(
            f"Process {self.pid} on {os.uname().nodename}, which forks those that run steps, is gone ({why}). Was it "
            "killed, or memory short? What was done is kept: run again to go on."
        )


_PACKET = 60_000


def _send(to: socket.socket, payload: bytes, descriptor: socket.socket | None) -> None:
    """A message of any size over packets: its length, with a descriptor if there is one, then its pieces."""
    head = struct.pack("Q", len(payload))
    socket.send_fds(to, [head], [descriptor.fileno()] if descriptor is not None else [])
    for start in range(0, len(payload), _PACKET):
        to.send(payload[start : start + _PACKET])


def _receive(source: socket.socket) -> tuple[bytes, list[int]]:
    head, descriptors, _, _ = socket.recv_fds(source, 8, 1)
    if not head:
        return b"", []
    left = struct.unpack("Q", head)[0]
    pieces = []
    while left > 0:
        piece = source.recv(_PACKET)
        pieces.append(piece)
        left -= len(piece)
    return b"".join(pieces), descriptors


def _live(
    own: socket.socket,
    agents: socket.socket,
    body: Body,
    prepare: Callable[[], None],
    spares: Sequence[socket.socket],
) -> NoReturn:
    """The nursery's whole life. Ends when the agent does, taking every helper's process group with it."""
    children: set[int] = set()
    gc.freeze()  # a collection would write to every object of the script, and so copy its pages
    try:
        agents.close()
        for other in list(_held):
            other.close()
        os.setsid()  # without a terminal: one that a step reads would stop it for ever
        offspring.adopt()
        for number in QUIET_SIGNALS:
            signal.signal(number, _ignore)
        is_ready = False
        if spares:
            _get_ready(prepare)
            is_ready = True
            forked = [
                _fork_helper(own, children, theirs, partial(_serve_when_told, theirs, body), spares)
                for theirs in spares
            ]
            own.send(pickle.dumps(forked))
        while (came := _next_question(own, children))[0]:
            question, descriptors = came
            verb, *rest = pickle.loads(question)
            if verb == "spawn":
                if not is_ready:
                    _get_ready(prepare)
                    is_ready = True
                slot, order = rest
                theirs = socket.socket(fileno=descriptors[0])
                own.send(pickle.dumps([_fork_helper(own, children, theirs, partial(body, theirs, slot, order))]))
            else:
                own.send(pickle.dumps(_end(children, *rest)))
    except BaseException as error:
        with contextlib.suppress(Exception):
            print(f"ezpyp: the process that forks helpers failed: {error!r}", file=sys.stderr, flush=True)
    finally:
        for pid in children:
            offspring.kill_group(pid)
        for pid in children:  # one by one: to look for all that is left takes milliseconds
            _wait(pid, _PATIENCE)
        offspring.end_children()
        with contextlib.suppress(OSError):  # the agent is gone
            own.send(pickle.dumps(None), socket.MSG_NOSIGNAL)
            _let_go_on(own)
        os._exit(0)


def _let_go_on(own: socket.socket) -> None:
    """Wait until the agent has closed its end: to end takes a core for a millisecond, which the agent may need now."""
    poll = select.poll()
    poll.register(own, 0)
    poll.poll(1000)


def _get_ready(prepare: Callable[[], None]) -> None:
    prepare()
    gc.freeze()  # helpers share these pages for as long as nobody counts references in them


def _next_question(own: socket.socket, helpers: Collection[int]) -> tuple[bytes, list[int]]:
    """Wait for the agent, and meanwhile bury orphans that have ended."""
    while not select.select([own], [], [], _BURY_EVERY)[0]:
        offspring.bury(helpers)
    try:
        return _receive(own)
    except ConnectionError:  # the agent was killed, and what it was told had not been read
        return b"", []


def _fork_helper(
    own: socket.socket,
    children: set[int],
    theirs: socket.socket,
    work: Callable[[], None],
    others: Sequence[socket.socket] = (),
) -> int:
    """Fork a helper, which gets the socket `theirs`, and none of the `others`, which may include it; its process id."""
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        own.close()
        for each in others:
            if each is not theirs:
                each.close()
        offspring.end_with(parent)
        os.setpgid(0, 0)
        be_helper(theirs, work)
    children.add(pid)
    theirs.close()
    with contextlib.suppress(OSError):
        os.setpgid(pid, pid)  # both sides, so that neither can be too late
    return pid


def _serve_when_told(own: socket.socket, body: Body) -> None:
    """A spare: wait for a slot and its order."""
    try:
        slot, order = Wire(own).receive()
    except (EOFError, OSError):  # the agent is gone, or needs no more
        return
    body(own, slot, order)


def be_helper(own: socket.socket, work: Callable[[], None]) -> NoReturn:
    """The rest of the life of a process that is a helper now, with its socket."""
    code = 70  # EX_SOFTWARE, if the work could not even say what went wrong
    try:
        for number in QUIET_SIGNALS:
            if signal.getsignal(number) is signal.SIG_IGN:
                with contextlib.suppress(ValueError):  # the script did not call execute() in its main thread
                    signal.signal(number, _ignore)
        # What a step forks gets ordinary signals back: multiprocessing.Pool ends its workers by SIGTERM. Held during
        # the fork, or one that comes before they are restored would be lost.
        os.register_at_fork(before=_hold_signals, after_in_parent=_release_signals, after_in_child=_restore_signals)
        # And not the socket, whose end must be seen when this process ends, whatever it leaves behind.
        os.register_at_fork(after_in_child=partial(_forget, own.fileno()))
        work()
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        _flush()
        os._exit(code)


def _end(children: set[int], pid: int, kill: bool) -> tuple[int, int]:
    """(exit code, peak bytes) of a helper. A helper cannot be waited for twice: then the code is 0."""
    if kill:
        offspring.end(pid)
    code, peak = _wait(pid, 5.0) or (None, 0)
    offspring.kill_group(pid)  # what the step left behind
    if code is None:
        code, peak = _wait(pid, 5.0) or (-signal.SIGKILL, 0)
    children.discard(pid)
    return code, peak


def _wait(pid: int, seconds: float) -> tuple[int, int] | None:
    began = time.monotonic()
    while True:
        try:
            gone, status, usage = os.wait4(pid, os.WNOHANG)
        except ChildProcessError:
            return 0, 0
        if gone:
            return os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024
        waited = time.monotonic() - began
        if waited > seconds:
            return None
        time.sleep(pause(waited))


def _hold_signals() -> None:
    global _held_before
    _held_before = signal.pthread_sigmask(signal.SIG_BLOCK, QUIET_SIGNALS)


def _release_signals() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _held_before)


def _forget(descriptor: int) -> None:
    """Close it, but keep its number taken: an object that still believes in it must not close another file."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, descriptor, inheritable=False)
    os.close(nothing)


def _restore_signals() -> None:
    for number in QUIET_SIGNALS:
        if signal.getsignal(number) is _ignore:  # else the step's own handler
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    _release_signals()


def _ignore(number: int, frame: object) -> None:
    """A handler, not SIG_IGN, which the programs that a step starts would inherit."""


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
