"""Objects between an agent and a helper."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ezpyp.work.wire import Wire


@pytest.fixture
def ends() -> Iterator[tuple[Wire, Wire]]:
    here, there = map(Wire, socket.socketpair())
    yield here, there
    here.close()
    there.close()


@given(st.lists(st.one_of(st.none(), st.binary(), st.integers(), st.lists(st.text()))))
def test_objects_arrive_one_by_one_in_their_order(sent: list[Any]) -> None:
    here, there = map(Wire, socket.socketpair())
    for each in sent:
        here.send(each)
    assert [there.receive() for _ in sent] == sent
    assert not there.has_come()
    here.close()
    assert there.has_come()
    with pytest.raises(EOFError):
        there.receive()
    there.close()


def test_a_large_object_arrives_whole(ends: tuple[Wire, Wire]) -> None:
    here, there = ends
    large = bytes(range(256)) * 20_000
    sender = threading.Thread(target=here.send, args=(large,))
    sender.start()
    assert there.receive() == large
    sender.join()


def test_an_object_that_was_cut_off_is_the_end() -> None:
    here, there = socket.socketpair()
    wire = Wire(there)
    here.sendall(b"\x05" + bytes(7) + b"ab")
    here.close()
    with pytest.raises(EOFError):
        wire.receive()
    wire.close()


def test_who_sends_to_nobody_gets_an_error_and_no_signal(ends: tuple[Wire, Wire]) -> None:
    here, there = ends
    there.close()
    before = signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        with pytest.raises(BrokenPipeError):
            here.send("anyone?")
    finally:
        signal.signal(signal.SIGPIPE, before)


def test_a_default_timeout_of_the_script_does_not_matter() -> None:
    socket.setdefaulttimeout(0.01)
    try:
        here, there = map(Wire, socket.socketpair())
    finally:
        socket.setdefaulttimeout(None)
    late = threading.Timer(0.1, here.send, ("at last",))
    late.start()
    assert there.receive() == "at last"
    late.join()
    here.close()
    there.close()
