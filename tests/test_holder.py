"""Who is provably gone, and who only may be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ezpyp.folder import holder
from ezpyp.folder.holder import Holder, from_json, is_gone, present, to_json
from ezpyp.system.proc import look

ELSEWHERE: dict[str, Any] = {"host": "n017", "machine": "f00d", "boot": "another"}
IN_4711: dict[str, Any] = {**ELSEWHERE, "job": "4711"}


def us(**changes: Any) -> Holder:
    """This process, on a machine and outside of any job that is known."""
    known: dict[str, Any] = {"host": "n001", "machine": "cafe", "boot": "this", "namespace": "pid:[4026531836]"}
    return present({})._replace(**{**known, **changes})


def them(**changes: Any) -> Holder:
    return us(**{"token": "0123456789abcdef", **changes})


def squeue(folder: Path, text: str) -> Path:
    """An squeue that notes how it was asked."""
    folder.mkdir(exist_ok=True)
    path = folder / "squeue"
    path.write_text(f'#!/bin/sh\necho "$@ $SLURM_CLUSTERS" >> {folder}/asked\n{text}\n', encoding="utf-8")
    path.chmod(0o755)
    return folder / "asked"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for squeue, first on PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    monkeypatch.delenv("SLURM_CLUSTERS", raising=False)
    return tmp_path / "bin"


# ----- this process


def test_this_process_is_told_so_that_others_can_find_it() -> None:
    environ = {"SLURM_JOB_ID": "4711", "SLURM_CLUSTER_NAME": "big", "SLURM_RESTART_COUNT": "2"}
    found = present(environ)
    assert (found.pid, found.host) == (os.getpid(), os.uname().nodename)
    assert (found.job, found.cluster, found.restart, found.name) == ("4711", "big", 2, "job 4711")
    assert found.boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert found.started > 0
    assert present({}).name == f"process {os.getpid()}"
    assert present({}).token != present({}).token


def test_it_comes_back_from_its_file() -> None:
    before = them()._replace(since=1e9, user="Zoë")
    text = to_json(before)
    assert next(iter(json.loads(text))) == "format"
    assert from_json(text) == before


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b"\xff\xfe",
        b'{"format": 1}',
        to_json(them())[:-20],
        to_json(them()).replace(b'"format": 1', b'"format": 2'),
        to_json(them(token="../../x")),
        to_json(them(pid=0)),
    ],
)
def test_what_ezpyp_did_not_write_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 the texts are Python's own
        from_json(text)


# ----- on this machine


def ticks(pid: int) -> int:
    process = look(pid)
    assert process is not None
    return process.ticks


def test_a_process_that_lives_is_there() -> None:
    assert not is_gone(present({}), present({}))
    with subprocess.Popen(["sleep", "60"]) as other:
        there = present({})._replace(pid=other.pid, started=ticks(other.pid))
        assert not is_gone(there, present({}))
        other.kill()
        os.waitid(os.P_PID, other.pid, os.WEXITED | os.WNOWAIT)
        assert is_gone(there, present({})), "a zombie does not run"
        other.wait()
        assert is_gone(there, present({}))


def test_another_process_with_the_same_pid_is_another() -> None:
    assert is_gone(present({})._replace(started=1), present({}))


def test_a_process_that_cannot_be_looked_at_may_live(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    there = present({})._replace(started=1)
    monkeypatch.setattr(os, "kill", refuse)
    assert is_gone(there, present({})), "its start can be read"
    monkeypatch.setattr(holder, "look", lambda *_: None)
    assert not is_gone(there, us(boot=there.boot, namespace=there.namespace))


def test_pids_of_another_container_say_nothing() -> None:
    assert not is_gone(them(namespace="pid:[7]", started=1), us())


# ----- on another


def test_a_machine_that_was_started_again_has_none_of_its_processes() -> None:
    assert is_gone(them(boot="before"), us())


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"host": "n017"}, {}),
        ({"machine": "f00d"}, {}),
        ({"machine": ""}, {"machine": ""}),
        ({"host": "localhost"}, {"host": "localhost"}),
        ({"namespace": "pid:[7]"}, {"namespace": "pid:[7]"}),
        ({"namespace": "pid:[7]"}, {}),
    ],
)
def test_a_machine_that_may_be_another_proves_nothing(before: dict[str, str], now: dict[str, str]) -> None:
    assert not is_gone(them(**{"boot": "before", **before}), us(**now))


def test_another_host_proves_nothing(path: Path) -> None:
    asked = squeue(path, "exit 0")
    assert not is_gone(them(**ELSEWHERE), us(job="5000"))
    assert not asked.exists()


# ----- Slurm


@pytest.mark.parametrize(("theirs", "ours", "gone"), [(0, 1, True), (1, 3, True), (0, 0, False), (2, 1, False)])
def test_a_job_that_was_restarted_follows_itself(path: Path, theirs: int, ours: int, gone: bool) -> None:
    asked = squeue(path, "exit 0")
    assert is_gone(them(**IN_4711, restart=theirs), us(job="4711", restart=ours)) is gone
    assert not asked.exists()


def test_a_process_that_lives_is_there_whatever_slurm_counts() -> None:
    assert not is_gone(present({})._replace(job="4711"), present({})._replace(job="4711", restart=1))


@pytest.mark.parametrize(
    ("answer", "gone"),
    [
        ("echo RUNNING", False),
        ("echo COMPLETING", False),
        ("echo SUSPENDED", False),
        ("echo CONFIGURING", False),
        ("echo SOMETHING_NEW", False),
        ("echo COMPLETED", True),
        ("echo PENDING", True),
        ("echo NODE_FAIL", True),
        ("echo COMPLETED; echo RUNNING", False),
        ("exit 0", True),
        ("echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1", True),
        ("echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1", False),
        ("echo COMPLETED; exit 1", False),
    ],
)
def test_one_question_tells_whether_a_job_is_over(path: Path, answer: str, gone: bool) -> None:
    asked = squeue(path, answer)
    assert is_gone(them(**IN_4711), us(job="5000")) is gone
    assert asked.read_text() == "-h -j 4711 -o %T \n"


def test_a_job_of_another_user_may_be_hidden(path: Path) -> None:
    squeue(path, "exit 0")
    assert not is_gone(them(**IN_4711, user="u2041"), us())
    squeue(path, "echo FAILED")
    assert is_gone(them(**IN_4711, user="u2041"), us())


def test_a_slow_slurm_proves_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    squeue(path, "exec sleep 60")
    monkeypatch.setattr(holder, "_ANSWER", 0.2)
    assert not is_gone(them(**IN_4711), us(job="5000"))


def test_without_squeue_nothing_is_proved(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(path))
    assert not is_gone(them(**IN_4711), us(job="5000"))


def test_another_cluster_is_not_asked_about(path: Path) -> None:
    asked = squeue(path, "exit 0")
    assert not is_gone(them(**IN_4711, cluster="big"), us(job="5000", cluster="small"))
    assert not is_gone(them(**IN_4711, cluster="big"), us(job="4711", cluster="small", restart=1))
    assert not asked.exists()
    assert is_gone(them(**IN_4711, cluster="big"), us())
    assert asked.read_text() == "-h -j 4711 -o %T big\n", "on a login node the cluster is named"


def test_a_job_that_is_no_number_is_not_asked_about(path: Path) -> None:
    asked = squeue(path, "exit 0")
    assert not is_gone(them(**{**IN_4711, "job": "--help"}), us())
    assert not asked.exists()


def test_a_process_of_the_same_machine_is_found_by_a_fresh_interpreter() -> None:
    code = (
        "import sys; from ezpyp.folder.holder import *; print(is_gone(from_json(sys.stdin.buffer.read()), present()))"
    )
    environ = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(holder.__file__))}
    with subprocess.Popen(["sleep", "60"]) as other:
        told = to_json(present()._replace(pid=other.pid, started=ticks(other.pid)))

        def answer() -> bytes:
            return subprocess.run(
                [sys.executable, "-c", code], input=told, env=environ, capture_output=True, check=True
            ).stdout

        assert answer() == b"False\n"
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert answer() == b"True\n"
