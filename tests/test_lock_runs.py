"""What the lock is to runs: the second is refused, a killed one followed, one that was taken over stops itself."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import ezpyp
from ezpyp import CacheInUse, CacheTakenOver, Pipeline, SchemaConflictError, as_pickle_step
from ezpyp.cli import main as cli
from ezpyp.folder import lock
from ezpyp.work.executors import Processes
from tests.conftest import Launcher, interpreter
from tests.test_lock import FAR, hold, locks, marks, nowhere

__all__ = ["nowhere"]


def pipeline(folder: Path, **options: Any) -> Pipeline:
    made = Pipeline(folder, "p", executor="inline", **options)
    as_pickle_step(made)(len)("abc")
    return made


def test_a_pipeline_holds_its_folder_until_it_was_executed(tmp_path: Path) -> None:
    first = pipeline(tmp_path / "c")
    assert locks(tmp_path / "c") == []
    first.initialize_schema()
    assert locks(tmp_path / "c") == [".lock"]
    first.execute()
    assert locks(tmp_path / "c") == []
    second = pipeline(tmp_path / "c")
    second.initialize_schema()
    first.execute()
    assert locks(tmp_path / "c") == [".lock"], "the second has not ended"
    assert second.execute().ok
    assert locks(tmp_path / "c") == []


def test_a_pipeline_that_was_refused_holds_nothing(tmp_path: Path) -> None:
    pipeline(tmp_path / "c").execute()
    other = Pipeline(tmp_path / "c", "another")
    as_pickle_step(other)(len)("abc")
    with pytest.raises(SchemaConflictError):
        other.initialize_schema()
    assert locks(tmp_path / "c") == []


def test_a_refused_pipeline_changes_nothing_and_may_try_again(tmp_path: Path) -> None:
    hold(tmp_path / "c", **FAR)
    made = pipeline(tmp_path / "c")
    with pytest.raises(CacheInUse, match="n017"):
        made.execute()
    assert os.listdir(tmp_path / "c") == [".lock"]
    (tmp_path / "c" / ".lock").unlink()
    assert made.execute().ok


def test_after_an_error_the_folder_is_looked_at_again(tmp_path: Path) -> None:
    made = pipeline(tmp_path / "c")
    made.initialize_schema()
    with pytest.raises(ezpyp.InitializationError):
        made.execute(schedule="no such")
    assert locks(tmp_path / "c") == []
    hold(tmp_path / "c", **FAR)
    with pytest.raises(CacheInUse, match="in use by") as error:
        made.execute()
    assert error.value.exit_code == 3, "refused, not stopped"


def test_reading_needs_no_lock(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline(tmp_path / "c").execute()
    hold(tmp_path / "c", **FAR)
    before = marks(tmp_path / "c")
    run = ezpyp.open(tmp_path / "c")
    assert run["len"] == 3
    assert run.summary().ok
    for verb in ("status", "summary"):
        with pytest.raises(SystemExit) as ended:
            cli.main([verb, str(tmp_path / "c")])
        assert ended.value.code == 0
    assert "1 of 1 done" in capsys.readouterr().out
    assert marks(tmp_path / "c") == before


def test_clean_refuses_a_folder_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline(tmp_path / "c").execute()
    hold(tmp_path / "c", **FAR, job="4711")
    with pytest.raises(SystemExit) as ended:
        cli.main(["clean", "-y", str(tmp_path / "c")])
    assert ended.value.code == 3
    assert "The cache is in use by job 4711" in capsys.readouterr().err
    assert ezpyp.open(tmp_path / "c")["len"] == 3


SLOW = """
import os, sys, time
from pathlib import Path
from ezpyp import Pipeline, as_pickle_step
from ezpyp.folder import lock

lock.EVERY = 0.1
pipeline = Pipeline("cache", "slow")

@as_pickle_step(pipeline)
def wait(k):
    until = time.monotonic() + 30
    Path(f"started{k}").touch()
    while not Path("go").exists() and time.monotonic() < until:
        time.sleep(0.01)
    return k

wait.map(range(2))
pipeline.execute()
"""


def until(there: Callable[[], bool], seconds: float = 30) -> None:
    limit = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < limit, "it did not come"
        time.sleep(0.01)


@contextmanager
def running(launcher: Launcher, ranks: int) -> Iterator[subprocess.Popen[str]]:
    """The slow script, when its first step runs; let go at the end."""
    with launcher.start(ranks, SLOW) as process:
        try:
            until(lambda: any(launcher.folder.glob("started*")) or process.poll() is not None)
            assert process.poll() is None, process.communicate()[0]
            yield process
        finally:
            (launcher.folder / "go").touch()
            process.communicate(timeout=30)


def test_a_second_mpirun_is_refused_and_the_first_is_unharmed(mpirun: Launcher) -> None:
    with running(mpirun, 2) as first:
        second = mpirun.run(2, mpirun.folder / "script.py")
        assert second.returncode == 3
        assert re.search(
            rf"ezpyp: CacheInUse: The cache is in use by process \d+ \(user \w+, {os.uname().nodename}, "
            r"since \d\d:\d\d, last sign \d+ s ago\)\. "
            rf"Watch it: ezpyp watch {mpirun.folder}/cache\. If it is surely gone: --take-over\.",
            second.stderr,
        ), second.stderr
        assert second.stderr.count("CacheInUse") == 1, "said once, not by every rank"
        assert first.poll() is None
        (mpirun.folder / "go").touch()
        said = first.communicate(timeout=60)[0]
        assert first.returncode == 0, said
    assert ezpyp.open(mpirun.folder / "cache").select("wait") == {"wait[0]": 0, "wait[1]": 1}
    assert locks(mpirun.folder / "cache") == []


def test_the_exit_code_of_a_refused_script_is_3(tmp_path: Path) -> None:
    hold(tmp_path / "cache", **FAR)
    done = interpreter(tmp_path).run(0, SLOW)
    assert done.returncode == 3
    assert done.stdout == ""


def test_a_signal_of_life_comes_while_steps_run(tmp_path: Path) -> None:
    with running(interpreter(tmp_path), 0):
        file = tmp_path / "cache" / ".lock"
        os.utime(file, (1e9, 1e9))
        until(lambda: file.stat().st_mtime > 1e9)


def test_a_killed_run_is_followed_by_the_next(tmp_path: Path) -> None:
    with running(interpreter(tmp_path), 0) as first:
        first.kill()
        first.wait()
        assert locks(tmp_path / "cache") == [".lock"]
        (tmp_path / "go").touch()
        done = interpreter(tmp_path).run(0, tmp_path / "script.py")
    assert done.returncode == 0, done.stderr
    assert "taken over" not in done.stderr
    assert locks(tmp_path / "cache") == []


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_run_that_was_taken_over_stops_itself(tmp_path: Path, workers: str) -> None:
    stopped_at_once(interpreter(tmp_path), 0, env={"EZPYP_WORKERS": workers})


def test_a_run_on_ranks_that_was_taken_over_stops_itself(mpirun: Launcher) -> None:
    stopped_at_once(mpirun, 2)


def stopped_at_once(launcher: Launcher, ranks: int, env: dict[str, str] | None = None) -> None:
    """Stop the slow script by taking its folder, while a step runs that would not end by itself."""
    with launcher.start(ranks, SLOW, env=env) as process:
        until(lambda: any(launcher.folder.glob("started*")))
        began = time.monotonic()
        with lock.acquire(str(launcher.folder / "cache"), take_over=True) as ours:
            said = process.communicate(timeout=25)[0]
            assert time.monotonic() - began < 25
            ours.sign()
    assert f"cache was taken over from this run by process {os.getpid()} (user " in said
    assert process.returncode == 4, said
    assert "RankMismatch" not in said  # the other ranks end as rank 0 does
    assert not list((launcher.folder / "cache").glob("*.step"))
    assert locks(launcher.folder / "cache") == []


def test_nothing_runs_any_more_when_a_run_stops_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []
    close = Processes.close

    def closed(self: Processes) -> None:
        held.append(self.lots)
        close(self)

    def give_away() -> None:
        hold(tmp_path / "far", **FAR)
        os.replace(tmp_path / "far" / ".lock", tmp_path / "c" / ".lock")
        time.sleep(60)

    (tmp_path / "far").mkdir()
    monkeypatch.setattr(Processes, "close", closed)
    monkeypatch.setattr(lock, "EVERY", 0.01)
    made = Pipeline(tmp_path / "c", "p")
    as_pickle_step(made)(give_away)()
    with pytest.raises(CacheTakenOver, match="n017"):
        made.execute()
    assert held == [0]
    assert locks(tmp_path / "c") == [".lock"]


def test_a_suspended_run_that_was_taken_over_stops_itself(tmp_path: Path) -> None:
    with running(interpreter(tmp_path), 0) as process:
        process.send_signal(signal.SIGSTOP)
        done = interpreter(tmp_path)
        (tmp_path / "go").touch()
        second = done.run(0, tmp_path / "script.py", env={lock.TAKE_OVER: "1"})
        assert second.returncode == 0, second.stderr
        assert f"ezpyp: the cache was taken over from process {process.pid} (user " in second.stderr
        process.send_signal(signal.SIGCONT)
        said = process.communicate(timeout=30)[0]
        assert process.returncode == 4, said
        assert "no longer held by this run" in said


def test_the_command_line_takes_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[tuple[str, ...]] = []

    def run(script: str, args: tuple[str, ...], **options: Any) -> int:
        given.append((os.environ.get(lock.TAKE_OVER, ""), *args))
        return 0

    monkeypatch.setattr("ezpyp.system.launch.run", run)
    (tmp_path / "s.py").touch()
    for words in (["s.py", "x"], ["--take-over", "s.py"], ["s.py", "--take-over", "y"], ["s.py", "--", "--take-over"]):
        monkeypatch.setenv(lock.TAKE_OVER, "")
        monkeypatch.chdir(tmp_path)
        with pytest.raises(SystemExit):
            cli.main(["run", *words])
    assert given == [("", "x"), ("1",), ("1", "y"), ("", "--take-over")]
