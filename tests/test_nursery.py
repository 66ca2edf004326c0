"""The process that forks helpers: nobody waits for a fork, and nothing is left of it, however it ends."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest

from ezpyp.system import offspring
from ezpyp.system.offspring import is_alive
from ezpyp.work import preloading
from ezpyp.work.nursery import Nursery, NurseryGone


class Forked(Protocol):
    def __call__(self, body: Callable[[socket.socket, int, Any], None], spares: int = 0) -> Nursery: ...


def echo(own: socket.socket, slot: int, order: Any) -> None:
    """Say what it is, then wait to be told to end."""
    own.sendall(f"{os.getpid()} {slot} {order}\n".encode())
    own.recv(1)


def with_a_child(own: socket.socket, slot: int, order: Any) -> None:
    """Start a process that does not end with this one."""
    child = os.fork()
    if child == 0:
        signal.pause()
    own.sendall(f"{child}\n".encode())
    own.recv(1)


class Kept(Nursery):
    """One that closes the sockets that it gave away."""

    def __init__(self, body: Callable[[socket.socket, int, Any], None], spares: int) -> None:
        super().__init__(body, spares=spares)
        self.given: list[socket.socket] = []

    def spawn(self, slot: int, order: Any) -> socket.socket:
        self.given.append(super().spawn(slot, order))
        return self.given[-1]

    def close(self) -> None:
        super().close()
        for each in self.given:
            each.close()


@pytest.fixture
def forked() -> Iterator[Forked]:
    found: list[Kept] = []

    def fork(body: Callable[[socket.socket, int, Any], None], spares: int = 0) -> Nursery:
        found.append(Kept(body, spares))
        return found[-1]

    yield fork
    for each in found:
        each.close()


def line(own: socket.socket) -> str:
    own.settimeout(10)
    with own.makefile() as file:
        return file.readline().strip()


def ends(pid: int) -> bool:
    until = time.monotonic() + 10
    while (alive := is_alive(pid)) and time.monotonic() < until:
        time.sleep(0.005)
    return not alive


def test_nobody_waits_for_a_helper_to_be_forked(forked: Forked, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, gate = os.pipe()
    load = preloading.Preloaded(lambda: select.select([waiting], [], [], 30), (), {})
    monkeypatch.setattr(preloading, "_asked", [load])
    nursery = forked(echo)
    began = time.monotonic()
    first, second = nursery.spawn(0, "a"), nursery.spawn(1, "b")
    assert time.monotonic() - began < 15
    os.write(gate, b"x")
    assert line(second) == f"{nursery.helper(1)} 1 b"
    assert line(first) == f"{nursery.helper(0)} 0 a"
    for each in (waiting, gate):
        os.close(each)


def test_the_answers_to_questions_are_not_mixed_up(forked: Forked) -> None:
    nursery = forked(echo)
    owns = [nursery.spawn(slot, "x") for slot in range(3)]
    owns[1].send(b"x")  # it ends by itself
    assert nursery.reap(1, kill=False).code == 0
    assert nursery.reap(0, kill=True).code == -signal.SIGKILL
    assert line(owns[2]) == f"{nursery.helper(2)} 2 x"
    again = nursery.spawn(1, "y")
    assert line(again) == f"{nursery.helper(1)} 1 y"


def test_it_ends_with_all_that_helpers_started(forked: Forked) -> None:
    nursery = forked(with_a_child)
    child = int(line(nursery.spawn(0, None)))
    helper = nursery.helper(0)
    nursery.close()
    assert not is_alive(nursery.pid)
    assert not is_alive(helper)
    assert not is_alive(child)


def test_of_one_that_is_killed_nothing_is_left_either(forked: Forked) -> None:
    nursery = forked(with_a_child)
    child = int(line(nursery.spawn(0, None)))
    nursery.helper(0)  # a moment before it is told of the fork, nobody knows what to end
    os.kill(nursery.pid, signal.SIGKILL)
    with pytest.raises(NurseryGone, match="which forks those that run steps, is gone"):
        nursery.reap(0, kill=False)
    nursery.close()
    assert ends(child)


def test_a_helper_that_cannot_be_forked_is_seen_at_its_socket(forked: Forked) -> None:
    nursery = forked(echo)
    os.kill(nursery.pid, signal.SIGKILL)
    with contextlib.suppress(NurseryGone):
        assert line(nursery.spawn(0, None)) == ""
    with pytest.raises(NurseryGone):
        nursery.helper(0)


def test_spares_are_there_before_they_are_asked_for_and_get_the_first_orders(forked: Forked) -> None:
    nursery = forked(echo, spares=2)
    pids = set(children_of(nursery.pid, 2))
    owns = [nursery.spawn(slot, "x") for slot in (5, 3, 4)]
    assert [line(own) for own in owns] == [f"{nursery.helper(slot)} {slot} x" for slot in (5, 3, 4)]
    assert {nursery.helper(5), nursery.helper(3)} == pids
    assert nursery.helper(4) not in pids
    assert nursery.reap(3, kill=True).code == -signal.SIGKILL
    assert line(nursery.spawn(3, "y")) == f"{nursery.helper(3)} 3 y"


def test_a_spare_that_was_killed_is_passed_over(forked: Forked) -> None:
    nursery = forked(echo, spares=2)
    first, second = children_of(nursery.pid, 2)
    os.kill(first, signal.SIGKILL)
    assert ends(first)
    assert line(nursery.spawn(0, "x")) == f"{second} 0 x"
    assert nursery.helper(0) == second
    assert line(nursery.spawn(1, "x")) == f"{nursery.helper(1)} 1 x"


def test_the_end_of_a_spare_is_seen_while_others_live(forked: Forked) -> None:
    nursery = forked(echo, spares=2)
    owns = [nursery.spawn(slot, "x") for slot in range(2)]
    assert all(line(own) for own in owns)
    os.kill(nursery.helper(1), signal.SIGKILL)
    assert line(owns[1]) == ""


def test_spares_that_nobody_asked_for_end_with_it(forked: Forked) -> None:
    nursery = forked(with_a_child, spares=2)
    spares = children_of(nursery.pid, 2)
    nursery.close()
    assert not any(map(is_alive, spares))


def children_of(pid: int, count: int) -> list[int]:
    """The children of a process, when there are so many."""
    until = time.monotonic() + 10
    while len(found := sorted(offspring.children(pid))) < count and time.monotonic() < until:
        time.sleep(0.005)
    return found


def test_hundreds_of_helpers_do_not_wait_for_somebody_to_hear_of_them(forked: Forked) -> None:
    nursery = forked(echo, spares=150)
    owns = [nursery.spawn(slot, slot) for slot in range(450)]
    assert line(owns[-1]) == f"{nursery.helper(449)} 449 449"


def test_one_whose_agent_is_killed_before_it_hears_of_forks_ends_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    ours, theirs = os.pipe()
    agent = os.fork()
    if agent == 0:
        nursery = Nursery(echo, spares=1)
        select.select([nursery._socket], [], [], 10)
        os.kill(os.getpid(), signal.SIGKILL)
    os.close(theirs)
    assert os.read(ours, 1) == b""  # all of them have ended
    os.close(ours)
    os.waitpid(agent, 0)
    assert capfd.readouterr().err == ""
