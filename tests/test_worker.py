"""What a step may do to the process that runs it, and what of that the steps after it notice: nothing."""

from __future__ import annotations

import asyncio
import io
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ezpyp
from ezpyp import Pipeline, Status, Summary, as_pickle_step

#: Files that a leaking step keeps open.
LEAKED: list[Any] = []


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class OwnBase(BaseException):
    pass


def unspeakable() -> None:
    raise Unspeakable


def own_base() -> None:
    raise OwnBase("not an Exception")


def cancelled() -> None:
    raise asyncio.CancelledError("given up")


def interrupted() -> None:
    raise KeyboardInterrupt


def run(folder: Path, *functions: Callable[[], Any], **options: Any) -> tuple[Pipeline, Summary]:
    pipeline = Pipeline(folder / "cache", "worker", **options)
    for function in functions:
        as_pickle_step(pipeline)(function)()
    return pipeline, pipeline.execute(raise_on_failure=False)


@pytest.mark.parametrize(
    ("act", "note"),
    [
        (unspeakable, "Unspeakable: (its text cannot be made: RuntimeError)"),
        (own_base, "OwnBase: not an Exception"),
        (cancelled, "CancelledError: given up"),
        (interrupted, "KeyboardInterrupt"),
    ],
)
def test_whatever_is_raised_is_a_failure_with_its_name(tmp_path: Path, act: Callable[[], None], note: str) -> None:
    pipeline, summary = run(tmp_path, act)
    assert summary.failures == {act.__name__: note}
    status = json.loads(Path(pipeline.cache_location, f"{act.__name__}.status").read_text())
    assert status["cause"] == "exception"
    assert f"in {act.__name__}" in status["traceback"]
    assert "/worker.py" not in status["traceback"]


def test_in_line_what_is_raised_is_a_failure_too(tmp_path: Path) -> None:
    _, summary = run(tmp_path, own_base, executor="inline")
    assert summary.failures == {"own_base": "OwnBase: not an Exception"}


def test_long_texts_are_cut(tmp_path: Path) -> None:
    def wordy() -> None:
        raise ValueError("first " + "x" * 5_000_000 + " last")

    pipeline, summary = run(tmp_path, wordy)
    note = summary.failures["wordy"]
    assert note.startswith("ValueError: first ")
    assert "characters left out" in note
    assert note.endswith(" last")
    assert sum(path.stat().st_size for path in Path(pipeline.cache_location).rglob("*.*")) < 100_000


def comes_back() -> str:
    child = os.fork()
    if child == 0:
        return "child"
    return f"parent of {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}"


def raises_in_child() -> str:
    child = os.fork()
    if child == 0:
        raise ValueError("in the child")
    return f"parent of {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}"


def exits_in_child() -> str:
    child = os.fork()
    if child == 0:
        sys.exit(7)
    return f"parent of {os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}"


@pytest.mark.parametrize("executor", ["processes", "inline"])
def test_a_child_that_a_step_forks_ends_with_the_function(tmp_path: Path, executor: str) -> None:
    pipeline, summary = run(tmp_path, comes_back, raises_in_child, exits_in_child, executor=executor)
    assert summary.ok, summary.failures
    assert [pipeline.result(s.name) for s in pipeline.steps] == ["parent of 0", "parent of 1", "parent of 7"]


def test_a_child_can_be_ended_from_its_first_moment(tmp_path: Path) -> None:
    """As multiprocessing.Pool ends its workers: one that ignored it would be waited for without end."""

    def survivors() -> int:
        found = 0
        for _ in range(10):
            child = os.fork()
            if child == 0:
                time.sleep(0.2)
                os._exit(3)
            os.kill(child, signal.SIGTERM)
            found += os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
        return found

    pipeline, _ = run(tmp_path, survivors)
    assert pipeline.result("survivors") == 0


def test_a_child_keeps_the_handlers_that_its_step_set(tmp_path: Path) -> None:
    def own_handler() -> int:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(9))
        child = os.fork()
        if child == 0:
            time.sleep(5)
        os.kill(child, signal.SIGTERM)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    pipeline, _ = run(tmp_path, own_handler)
    assert pipeline.result("own_handler") == 9


def close_output() -> None:
    os.close(1)
    os.close(2)


def close_streams() -> None:
    sys.stdout.close()
    sys.stderr.close()


def replace_streams() -> None:
    sys.stdout = io.StringIO()
    sys.stderr = None


def go_elsewhere() -> None:
    os.chdir("/")


def set_an_alarm() -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.05)


def forbid_files() -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def leak_files() -> None:
    last = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 20_000) - 100
    LEAKED.append(os.open("/dev/null", os.O_RDONLY))
    while LEAKED[-1] < last:
        LEAKED.append(os.open("/dev/null", os.O_RDONLY))


def start_a_thread() -> None:
    threading.Thread(target=time.sleep, args=(0.1,)).start()


@pytest.mark.parametrize("capture", ["file", "off"])
@pytest.mark.parametrize(
    "act", [close_output, close_streams, replace_streams, go_elsewhere, set_an_alarm, leak_files, start_a_thread]
)
def test_the_next_step_finds_things_as_they_were(tmp_path: Path, act: Callable[[], None], capture: str) -> None:
    here = os.getcwd()

    def look() -> str:
        time.sleep(0.1)
        print("here I am")
        print("and here", file=sys.stderr)
        Path("/dev/null").read_text()
        return os.getcwd()

    pipeline, summary = run(tmp_path, act, look, capture=capture)
    assert summary.ok, summary.failures
    assert pipeline.result("look") == here
    if capture == "file":
        assert ezpyp.open(pipeline.cache_location).log("look").splitlines() == ["and here", "here I am"]


def test_a_helper_that_can_open_no_file_is_replaced(tmp_path: Path) -> None:
    pipeline, summary = run(tmp_path, forbid_files, start_a_thread)
    assert [s.get_status() for s in pipeline.steps] == [Status.FAILED, Status.DONE]
    assert "Too many open files" in summary.failures["forbid_files"]
