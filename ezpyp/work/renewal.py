"""Helpers that are new interpreters (EZPYP_START=fresh): they run the script up to execute() by themselves.

The process that forks helpers forks one here, too, that only waits for its first lot, and becomes the interpreter then:
so a step that was granted GPUs has them before the script's first line. They know the plan because they made it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import signal
import socket
import sys
from typing import TYPE_CHECKING, NoReturn

from ezpyp.errors import InitializationError
from ezpyp.scripts import renewed
from ezpyp.scripts.renewed import Call
from ezpyp.system import gpus, resources
from ezpyp.work import helper, nursery
from ezpyp.work.helper import Order
from ezpyp.work.position import Position
from ezpyp.work.wire import Wire

if TYPE_CHECKING:
    from ezpyp.model.plan import Plan
    from ezpyp.scripts.renewed import Command
    from ezpyp.work.lots import Lot


def wait(own: socket.socket, slot: int, order: Order, again: Command, digest: bytes, memory: int) -> None:
    """Wait for a lot, and become a helper that runs it. Returns if there comes none."""
    wire, lot = Wire(own), None
    with contextlib.suppress(EOFError, ConnectionError):  # the agent is gone
        while not (lot := wire.receive()):
            if lot is None:
                wire.send(None)  # all that it did is on disk
                return
    if lot is None:
        return
    environ = {**resources.scrubbed(os.environ), **order.environment}
    letter = os.memfd_create("ezpyp-letter")
    with open(letter, "wb", closefd=False) as file:
        pickle.dump((slot, order, digest, lot), file)
    descriptors = Call(own.fileno(), memory, letter, os.dup(1))
    for each in descriptors:
        os.set_inheritable(each, True)
    environ[renewed.VARIABLE] = " ".join(map(str, (os.getpid(), *descriptors)))
    for number in nursery.QUIET_SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # until it is a helper
    _redirect(order)
    os.chdir(again.folder)
    grant = lot.grant
    with gpus.granted(grant.gpus if grant is not None and grant.process != "any" else (), environ):
        os.execve(again.words[0], again.words, environ)


def _redirect(order: Order) -> None:
    """What the script prints once more goes to the helper's log, or nowhere. It finds nothing to read."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    if order.log is not None:
        path = os.path.join(order.folder, order.log)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(log, 1)
        os.dup2(log, 2)


def expect(call: Call) -> None:
    """See to it that the agent hears of a script that ends before it comes to the execute() at work."""
    atexit.register(_ended, call, os.getpid())


def _ended(call: Call, pid: int) -> None:
    if os.getpid() != pid:
        return
    error: BaseException | None = getattr(sys, "last_value", None)
    how = f"ended with {type(error).__name__}: {error}" if error is not None else "came to its end"
    _refuse(call, f"it {how} before the execute() that is at work.")


def _refuse(call: Call, why: str) -> NoReturn:
    _, order, _, _ = _letter(call)
    with socket.socket(fileno=call.socket) as own:
        log = f" What it printed is in {order.folder}/{order.log}." if order.log else ""
        Wire(own).send(
            InitializationError(
                f"By EZPYP_START=fresh the script was run once more on {order.host}, and {why}{log} It has to do the "
                "same each time: do not let it depend on the time, random numbers or standard input."
            )
        )
    os._exit(3)


def take_part(call: Call, plan: Plan, folder: str) -> None:
    """The script has come to an execute(). If it is the one at work this process is its helper, and never returns."""
    slot, order, digest, lot = _letter(call)
    if folder != order.folder:
        return
    if plan.digest != digest:
        _refuse(call, "it built another plan.")
    with contextlib.suppress(Exception):  # whatever the script made of it
        sys.stdout.flush()
    os.dup2(call.output, 1)
    for each in (call.letter, call.output):
        os.close(each)
    own, position = socket.socket(fileno=call.socket), Position(call.memory)

    def work() -> None:
        helper.prepare()
        helper.serve(own, slot, order, plan=plan, position=position, first=[lot])

    nursery.be_helper(own, work)


def _letter(call: Call) -> tuple[int, Order, bytes, Lot]:
    with open(call.letter, "rb", closefd=False) as file:
        file.seek(0)
        found: tuple[int, Order, bytes, Lot] = pickle.load(file)
        return found
