"""Processes below a process: found and ended wherever they have hidden, and nobody else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from ezpyp.system import offspring
from tests.conftest import CHECKOUT

if TYPE_CHECKING:
    from pathlib import Path

#: A program whose grandchild has a session of its own; each line of its output is a process id.
TREE = """
import os, sys, time
print(os.getpid(), flush=True)
if os.fork() == 0:
    print(os.getpid(), flush=True)
    if os.fork() == 0:
        os.setsid()
        print(os.getpid(), flush=True)
    time.sleep(60)
time.sleep(60)
"""


def start_tree() -> tuple[subprocess.Popen[str], list[int]]:
    tree = subprocess.Popen([sys.executable, "-c", TREE], stdout=subprocess.PIPE, text=True, process_group=0)
    assert tree.stdout is not None
    return tree, [int(tree.stdout.readline()) for _ in range(3)]


def is_alive(pid: int) -> bool:
    """Not gone, and not a zombie that init or this process has yet to bury."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until_gone(pids: list[int], seconds: float = 10) -> list[int]:
    """Those that are left."""
    until = time.monotonic() + seconds
    while (left := [pid for pid in pids if is_alive(pid)]) and time.monotonic() < until:
        time.sleep(0.01)
    return left


def test_descendants_are_found_in_other_sessions_too() -> None:
    tree, pids = start_tree()
    with tree:
        try:
            assert set(offspring.descendants(tree.pid)) == set(pids[1:])
        finally:
            offspring.end(tree.pid)
        tree.wait(10)


def test_end_leaves_nothing_below() -> None:
    tree, pids = start_tree()
    with tree:
        offspring.end(tree.pid)
        assert tree.wait(10) == -signal.SIGKILL
    assert wait_until_gone(pids) == []


def test_end_of_what_is_gone_does_nothing() -> None:
    tree, _ = start_tree()
    with tree:
        offspring.end(tree.pid)
        tree.wait(10)
        offspring.end(tree.pid)


ADOPTER = f"""
import os, subprocess, sys, time
sys.path.insert(0, {str(CHECKOUT)!r})
from ezpyp.system import offspring
spared = subprocess.Popen(["sleep", "60"])
offspring.adopt()
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid()
        os.execvp("sleep", ["sleep", "60"])
    os._exit(0)
while len(offspring.children(os.getpid())) < 3:
    time.sleep(0.01)
before = offspring.descendants(os.getpid())
offspring.end_children(spare=[spared.pid])
print(offspring.descendants(os.getpid()) == [spared.pid], len(before), spared.poll())
spared.kill()
spared.wait()
print(offspring.has_children())
"""


def test_an_adopter_ends_orphans_and_spares_whom_it_should(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ADOPTER], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=30
    )
    assert done.stdout.splitlines() == ["True 2 None", "False"], done.stderr


def test_has_children_sees_those_that_have_ended() -> None:
    child = os.posix_spawn("/bin/true", ["true"], {})
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert offspring.has_children()
    os.waitpid(child, 0)


def test_who_has_no_children_does_not_look_at_all_processes() -> None:
    code = """
from ezpyp.system import offspring
offspring._processes = None
offspring.end_children()
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, check=False)
    assert done.returncode == 0
