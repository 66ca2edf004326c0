"""How programs end when the run is to end: by themselves, interrupted, never failed, and with all that they started."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ezpyp import Pipeline, Status
from ezpyp.folder.runs import status_of
from tests.test_offspring import wait_until_gone

if TYPE_CHECKING:
    from tests.conftest import Launcher

#: Programs that tell in `at/` that they are there, run until `go` is, and then say that they were let.
SCRIPT = """
import os, sys
from ezpyp import Pipeline
from ezpyp.testing import commands

pipeline = Pipeline("cache", "ends", workers=2)
here = os.getcwd()
for k in range(6):
    told = f"echo $$ > {here}/at/{k}.new; mv {here}/at/{k}.new {here}/at/{k}"
    line = f"{told}; until [ -e {here}/go ]; do sleep 0.02; done"
    pipeline.command("sim", f"{line}; echo {k} > done", shell="bash", outputs="done", scratch="node")
pipeline.execute()
"""


def started(folder: Path, count: int, run: subprocess.Popen[str]) -> list[int]:
    """The process ids of so many programs, once they run."""
    until = time.monotonic() + 40
    while time.monotonic() < until:
        found = [path for path in (folder / "at").iterdir() if path.suffix != ".new"]
        if len(found) >= count:
            return [int(path.read_text()) for path in found]
        if run.poll() is not None:
            break
        time.sleep(0.01)
    run.kill()
    pytest.fail(f"no {count} programs: {run.communicate()[0]}")


def begin(launcher: Launcher, ranks: int) -> subprocess.Popen[str]:
    (launcher.folder / "at").mkdir()
    (launcher.folder / "node").mkdir()
    return launcher.start(ranks, SCRIPT)


def statuses(folder: Path) -> list[Status]:
    return [status_of(str(folder / "cache"), f"sim[{k}]" if k else "sim") for k in range(6)]


def check_stop(launcher: Launcher, ranks: int) -> None:
    run = begin(launcher, ranks)
    pids = started(launcher.folder, 2, run)
    run.send_signal(signal.SIGUSR1)
    time.sleep(0.3)  # what a signal would kill is dead by now
    assert wait_until_gone(pids, 0) == pids
    (launcher.folder / "go").touch()
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 85, output
    assert wait_until_gone(pids) == []
    assert statuses(launcher.folder).count(Status.DONE) == 2, output
    assert set(statuses(launcher.folder)) == {Status.DONE, Status.NOT_RUN}
    assert list((launcher.folder / "node").iterdir()) == []
    done = launcher.run(ranks, launcher.folder / "script.py")
    assert done.returncode == 0, done.stdout
    assert statuses(launcher.folder) == [Status.DONE] * 6


def test_a_stop_lets_programs_finish(python: Launcher) -> None:
    check_stop(python, 0)


def test_a_signal_to_mpirun_reaches_no_program(mpirun: Launcher) -> None:
    check_stop(mpirun, 2)


def test_a_second_signal_ends_programs_and_leaves_nothing(python: Launcher) -> None:
    run = begin(python, 0)
    pids = started(python.folder, 2, run)
    for _ in range(2):
        run.send_signal(signal.SIGUSR1)
        time.sleep(0.2)
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 85, output
    assert wait_until_gone(pids) == []
    assert set(statuses(python.folder)) == {Status.NOT_RUN}, output
    assert "[FAIL]" not in output
    assert list((python.folder / "node").iterdir()) == []


@pytest.mark.parametrize("late", [0.0, 0.5])
def test_what_a_signal_ends_shortly_before_the_stop_is_interrupted(python: Launcher, late: float) -> None:
    """As scancel does it: every process of the job gets the signal, in any order."""
    run = begin(python, 0)
    for pid in started(python.folder, 2, run):
        os.kill(pid, signal.SIGTERM)
    time.sleep(late)
    run.send_signal(signal.SIGTERM)
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 85, output
    assert set(statuses(python.folder)) == {Status.NOT_RUN}, output


@pytest.mark.parametrize("late", [False, True])
def test_a_rank_hears_of_a_stop_that_another_was_asked_for(mpirun: Launcher, late: bool) -> None:
    """What is killed there after it is interrupted. A launcher's own signal may come later, and is not a second one."""
    run = begin(mpirun, 2)
    program_of = {rank_of(grandparent(pid)): pid for pid in started(mpirun.folder, 2, run)}
    os.kill(grandparent(program_of[0]), signal.SIGUSR1)
    time.sleep(0.3)
    if late:
        os.kill(grandparent(program_of[1]), signal.SIGUSR1)
        time.sleep(0.3)
        assert wait_until_gone([*program_of.values()], 0) == [*program_of.values()]
    os.kill(program_of[1], signal.SIGKILL)
    time.sleep(1.2)  # a rank that heard nothing would say that it failed
    (mpirun.folder / "go").touch()
    output, _ = run.communicate(timeout=60)
    assert "[FAIL]" not in output
    assert statuses(mpirun.folder).count(Status.DONE) == 1, output
    assert statuses(mpirun.folder).count(Status.NOT_RUN) == 5, output


def rank_of(pid: int) -> int:
    environ = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    found = dict(each.split(b"=", 1) for each in environ if b"=" in each)
    return int(found.get(b"PMI_RANK") or found[b"OMPI_COMM_WORLD_RANK"])


def test_what_a_signal_ends_without_a_stop_has_failed(python: Launcher) -> None:
    run = begin(python, 0)
    os.kill(started(python.folder, 2, run)[0], signal.SIGTERM)
    time.sleep(1.2)
    (python.folder / "go").touch()
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 1, output
    assert "ended with signal 15 (terminated)" in output
    assert sorted(statuses(python.folder)) == [*[Status.DONE] * 5, Status.FAILED]


def test_a_rank_that_is_lost_leaves_no_program(mpirun: Launcher) -> None:
    """The agent of rank 1 is killed: its programs, grandchildren of its own, end with it."""
    run = begin(mpirun, 2)
    pids = started(mpirun.folder, 2, run)
    agents = {grandparent(pid) for pid in pids}
    assert len(agents) == 2
    os.kill(agents.pop(), signal.SIGKILL)
    run.communicate(timeout=60)
    assert wait_until_gone(pids) == []


def grandparent(pid: int) -> int:
    """Of a program: the helper's parent's parent, which is the agent."""
    for _ in range(3):
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        pid = int(stat.rpartition(")")[2].split()[1])
    return pid


RAISES = """
import ezpyp
from ezpyp import Pipeline, as_pickle_step

pipeline = Pipeline("cache", "raises")

@as_pickle_step(pipeline)
def wait(k):
    if k == 1:
        raise ezpyp.Interrupted("not yet")
    return k

@as_pickle_step(pipeline)
def after(values):
    return sum(values)

steps = wait.map([0, 1, 2])
end = after(steps)
summary = pipeline.execute()
print([int(step.get_status()) for step in (*steps, end)])
"""


def test_a_step_may_say_that_it_is_not_done(python: Launcher) -> None:
    done = python.run(0, RAISES)
    assert done.stdout.splitlines()[-1] == "[0, -1, 0, -1]", done.stdout + done.stderr
    assert "not yet" in done.stdout


#: Programs that save when they are told to stop.
SAVES = """
import sys
from ezpyp import Pipeline
from ezpyp.testing import commands

pipeline = Pipeline("cache", "saves", workers=2)
words = commands.save(int(sys.argv[1]))
line = " ".join(map(str, words)) + "; touch more"
pipeline.command("plain", words, outputs="saved", stop_signal="TERM")
pipeline.command("shell", line, shell="bash", outputs=["saved", "more"], stop_signal="SIGUSR1")
pipeline.execute()
"""


@pytest.mark.parametrize("code", ["0", "3"])
def test_a_program_that_is_told_saves_and_goes_on_from_there(python: Launcher, code: str) -> None:
    """However it ends: what it left by then is not what it was to leave."""
    run = python.start(0, SAVES, code)
    until = time.monotonic() + 30
    while len(list(python.folder.glob("cache/checkpoints/*/pid"))) < 2:
        assert time.monotonic() < until
        assert run.poll() is None
        time.sleep(0.02)
    run.send_signal(signal.SIGUSR1)
    output, _ = run.communicate(timeout=30)
    assert run.returncode == 85, output
    assert "[STOP] 'plain'" in output
    assert "was sent SIGTERM and ended; the next run goes on with it" in output
    assert "0 done, 2 not run" in output
    again = python.run(0, SAVES, code)
    assert again.returncode == 0, again.stdout + again.stderr
    found = {name: python.folder / f"cache/files/{name}/saved" for name in ("plain", "shell")}
    assert {name: path.read_text() for name, path in found.items()} == {"plain": "SIGTERM", "shell": "SIGUSR1"}
    assert not list(python.folder.glob("cache/checkpoints/*"))


DEAF = """
from ezpyp import Pipeline
from ezpyp.testing import commands

pipeline = Pipeline("cache", "deaf")
pipeline.command("deaf", commands.ignore(), cwd=".", stop_signal="TERM")
pipeline.execute()
"""


@pytest.mark.parametrize("executor", ["processes", "inline"])
def test_one_that_does_not_end_is_killed_when_its_time_is_over(python: Launcher, executor: str) -> None:
    run = python.start(0, DEAF, env={"EZPYP_EXECUTOR": executor, "EZPYP_TIME_LIMIT": "4s"})
    until = time.monotonic() + 30
    while not (python.folder / "pid").exists():
        assert time.monotonic() < until
        assert run.poll() is None
        time.sleep(0.02)
    pid = int((python.folder / "pid").read_text())
    run.send_signal(signal.SIGUSR1)
    time.sleep(0.5)
    assert wait_until_gone([pid], 0) == [pid]
    output, _ = run.communicate(timeout=10)
    assert run.returncode == 85, output
    assert "[STOP] 'deaf'" in output
    assert wait_until_gone([pid]) == []


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("KILL", "no program can handle it. Give 'TERM'"),
        ("SIGSTOP", "no program can handle it"),
        ("term", "there is no such signal. Did you mean 'TERM'?"),
        ("USR", "Did you mean 'USR"),
        (15, "there is no such signal. Did you mean '"),
    ],
)
def test_a_signal_that_cannot_be_is_refused_at_the_call(tmp_path: Path, name: object, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        Pipeline(tmp_path / "cache", "x").command("sim", ["true"], stop_signal=name)
