"""A bell wakes who sleeps, at once; and nothing goes wrong where it does not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from ezpyp.system import bells
from ezpyp.system.bells import Bell, Echo, sleep
from tests.conftest import CHECKOUT


@pytest.fixture
def bell() -> Iterator[Bell]:
    found = Bell()
    yield found
    found.close()


@pytest.mark.parametrize("times", [1, 1000])
def test_it_wakes_another_process(bell: Bell, times: int) -> None:
    child = os.fork()
    if child == 0:
        for _ in range(times):  # the first has to be heard, and none waits until others are
            Bell().ring(bell.address)
        os._exit(0)
    began = time.monotonic()
    bell.wait(30)
    assert time.monotonic() - began < 15
    assert began <= bell.heard <= time.monotonic()
    assert os.waitpid(child, 0)[1] == 0


def test_it_is_quiet_once_it_was_heard(bell: Bell) -> None:
    for _ in range(3):
        bell.ring(bell.address)
    bell.hush()
    began = time.monotonic()
    sleep(bell.fileno(), 0.02)
    assert time.monotonic() - began >= 0.02


def test_who_has_seen_a_message_for_each_ring_looks_for_no_more(bell: Bell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bells, "LASTS", 60.0)
    echo = Echo(bell)
    assert echo.since() is None
    for _ in range(2):
        bell.ring(bell.address)
    bell.hush()
    echo.see()
    since = echo.since()
    assert since is not None
    assert 0 <= since < 60
    echo.see()
    assert echo.since() is None
    echo.see()  # before its ring is heard
    assert echo.since() is not None
    bell.ring(bell.address)
    bell.hush()
    assert echo.since() is None


def test_what_was_rung_for_in_vain_is_not_looked_for_in_all_eternity(
    bell: Bell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bells, "LASTS", 0.0)
    echo = Echo(bell)
    bell.ring(bell.address)
    bell.hush()
    assert echo.since() is None
    monkeypatch.setattr(bells, "LASTS", 60.0)
    assert echo.since() is None
    bell.ring(bell.address)
    bell.hush()
    assert echo.since() is not None


def test_nobody_has_to_be_there(bell: Bell) -> None:
    gone = Bell()
    gone.close()
    bell.ring(gone.address)
    bell.ring(b"\0none of ours")


def test_a_container_with_a_network_of_its_own_is_another_room(bell: Bell) -> None:
    script = "from ezpyp.system.bells import Bell; print(Bell().room)"
    command = ["unshare", "--net", sys.executable, "-c", script]
    try:
        done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    except OSError:
        pytest.skip("there is no unshare")
    if done.returncode and "unshare" in done.stderr:
        pytest.skip("not allowed here")
    assert done.stdout.startswith("net:")
    assert done.stdout.strip() != bell.room
    assert bell.room == os.readlink("/proc/self/ns/net")


def test_descriptors_of_any_number_are_slept_at(monkeypatch: pytest.MonkeyPatch, bell: Bell) -> None:
    monkeypatch.setattr("ezpyp.system.bells._SELECTABLE", 0)
    bell.ring(bell.address)
    began = time.monotonic()
    sleep(bell.fileno(), 30)
    assert time.monotonic() - began < 15
