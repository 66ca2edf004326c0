"""The next start of a job: ordered when all is written, never by whoever ends it, and not for ever.

Programs stand in for Slurm's; tests/lab has the real one.
"""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ezpyp.cluster import requeue, restarts, submission
from ezpyp.cluster.restarts import Start, begun, ended
from ezpyp.cluster.submission import Job
from tests.test_launch import program

if TYPE_CHECKING:
    from tests.conftest import Launcher

FIRST = begun(None, job="7", restart=0, now=100.0)


def at_end(start: Start, **changes: Any) -> Start:
    """A start that needs more time, and gets it."""
    found = ended(start, **{"left": start.left - 1, "saved": start.saved, **changes})
    return found if found.is_last else replace(found, next=start.job)


# ----- which start goes on from which


def test_a_requeued_job_goes_on() -> None:
    second = begun(at_end(FIRST), job="7", restart=1, now=200.0)
    assert (second.number, second.first, second.began) == (2, 100.0, 200.0)
    assert [second.keeps(when) for when in (99.0, 150.0, 250.0)] == [False, True, True]


def test_so_does_the_job_in_its_place() -> None:
    second = begun(replace(FIRST, next="8"), job="8", restart=0, now=200.0)
    assert (second.job, second.number) == ("8", 2)
    assert second.keeps(150.0)


@pytest.mark.parametrize("former", [None, FIRST, at_end(FIRST), replace(FIRST, next="8")])
def test_one_that_a_person_submits_does_not(former: Start | None) -> None:
    start = begun(former, job="9", restart=0, now=200.0)
    assert (start.number, start.first, start.idle) == (1, 200.0, 0)
    assert not any(start.keeps(when) for when in (50.0, 150.0, 250.0))


def test_what_failed_in_a_start_that_was_lost_is_tried_again() -> None:
    """Its node may have been what failed."""
    second = begun(at_end(FIRST), job="7", restart=1, now=200.0)
    third = begun(second, job="7", restart=2, now=300.0)
    assert [third.keeps(when) for when in (99.0, 150.0, 250.0)] == [False, True, False]
    assert third.number == 3


# ----- whether they get on


@given(st.lists(st.booleans(), min_size=1, max_size=8))
def test_the_second_start_in_a_row_without_progress_is_the_last(gets_on: list[bool]) -> None:
    start, left = FIRST, 100
    for k, progress in enumerate(gets_on):
        start = replace(start, left=left)
        left -= progress
        start = at_end(start, left=left)
        is_last = not any(gets_on[max(0, k - 1) : k + 1]) and k > 0
        assert start.is_last == is_last
        assert bool(start.next) != is_last
        if is_last:
            return
        start = begun(start, job="7", restart=k + 1, now=200.0 + k)


def test_what_a_step_saved_is_progress() -> None:
    assert at_end(replace(FIRST, idle=1, left=3, saved="a"), left=3, saved="b").idle == 0


def test_saving_the_same_again_is_no_progress(tmp_path: Path) -> None:
    assert restarts.saved_in(str(tmp_path)) == ""
    path = tmp_path / "checkpoints/train-0123456789abcdef/at"
    path.parent.mkdir(parents=True)
    path.write_text("3")
    first = restarts.saved_in(str(tmp_path))
    os.utime(path, (1, 1))
    assert restarts.saved_in(str(tmp_path)) == first != ""
    path.write_text("4")
    assert restarts.saved_in(str(tmp_path)) != first


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2, "job": "7"}', '{"format": 1, "job": "7"}'])
def test_what_cannot_be_read_is_no_former_start(tmp_path: Path, text: str) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / restarts.NAME).write_text(text)
    assert restarts.read(str(tmp_path)) is None


def test_a_start_is_read_as_it_was_written(tmp_path: Path) -> None:
    restarts.write(str(tmp_path), FIRST)
    assert restarts.read(str(tmp_path)) == FIRST
    assert submission.jobs(str(tmp_path)) == []


def test_another_job_is_told_nothing_of_this_one() -> None:
    mine = {"PATH": "/bin", "SLURM_CONF": "/etc/slurm.conf", "EZPYP_LINES": "off", "EZPYP_TIME_LIMIT": "18s"}
    theirs = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "PMI_RANK": "0", "OMPI_COMM_WORLD_RANK": "0"}
    assert requeue.surroundings({**mine, **theirs, "CUDA_VISIBLE_DEVICES": "0"}) == mine
    assert "EZPYP_TIME_LIMIT" not in requeue.surroundings({"EZPYP_TIME_LIMIT": "@1700000000"})


# ----- runs

#: The first step waits for a signal; then only what is asked for fails.
STUDY = """
import os, time
import ezpyp
from ezpyp import Pipeline, as_json_step

pipeline = Pipeline("cache", "study")

@as_json_step(pipeline)
def wait(k):
    with open("ran", "a") as file:
        file.write(f"{k}\\n")
    until = time.monotonic() + 30
    while k == 1 and not os.path.exists("go") and time.monotonic() < until:
        time.sleep(0.01)
        if ezpyp.stopping() and not os.path.exists("deaf"):
            raise ezpyp.Interrupted("later")
    if k == 0 and os.path.exists("bad"):
        raise ValueError("bad")
    return k

@as_json_step(pipeline)
def after(ks):
    return ks

after(wait.map(range(2)))
pipeline.execute()
"""


class Scene:
    """A folder with a script, and programs that stand in for Slurm's."""

    def __init__(self, python: Launcher) -> None:
        self.python, self.folder = python, python.folder
        self.says("scontrol", f"ls cache > {self.folder}/there; echo $* >> {self.folder}/asked")

    def says(self, name: str, text: str) -> None:
        program(self.folder / "bin", name, text)

    def environment(self, job: str, restart: int) -> dict[str, str]:
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        found = {"PATH": path, "SLURM_JOB_ID": job, "EZPYP_REQUEUE": "1", "EZPYP_TIME_LIMIT": "1h"}
        return {**found, "SLURM_RESTART_COUNT": str(restart)} if restart else found

    def run(
        self, *numbers: int, job: str = "7", restart: int = 0, env: dict[str, str] | None = None
    ) -> tuple[int, str]:
        """A start that gets signals when the last step runs."""
        ran = self.ran
        run = self.python.start(0, STUDY, env={**self.environment(job, restart), **(env or {})})
        until = time.monotonic() + 30
        while numbers and "1" not in self.ran[len(ran) :]:
            assert time.monotonic() < until
            assert run.poll() is None
            time.sleep(0.01)
        for number in numbers:
            run.send_signal(number)
            time.sleep(0.05)
        out, _ = run.communicate(timeout=30)
        return run.returncode, out

    def ezpyp(self, *words: str) -> str:
        """What `ezpyp …` says."""
        return self.python.run(0, "import sys; from ezpyp.cli.main import main; main(sys.argv[1:])", *words).stdout

    @property
    def ran(self) -> list[str]:
        path = self.folder / "ran"
        return path.read_text().split() if path.exists() else []

    @property
    def asked(self) -> str:
        path = self.folder / "asked"
        return path.read_text() if path.exists() else ""

    def record(self) -> Start:
        found = restarts.read(str(self.folder / "cache"))
        assert found is not None
        return found


@pytest.fixture
def scene(python: Launcher) -> Scene:
    return Scene(python)


def test_the_warning_has_the_job_requeued_when_all_is_written(scene: Scene) -> None:
    code, out = scene.run(signal.SIGUSR1)
    assert (code, scene.asked) == (85, "requeue 7\n"), out
    assert out.endswith("Job 7 is requeued, and goes on from here.\n"), out
    status = scene.ezpyp("status", "cache")
    assert "Job 7 is requeued, and goes on from here (start 2).\n" in status
    there = (scene.folder / "there").read_text().split()
    assert "pipeline.summary" in there
    assert ".lock" not in there
    (scene.folder / "go").touch()
    code, out = scene.run(restart=1)
    assert (code, scene.ran) == (0, ["0", "1", "1"]), out
    assert scene.asked == "requeue 7\n", "one requeue a stop"
    assert (scene.record().number, scene.record().next) == (2, "")


@pytest.mark.parametrize(
    "numbers",
    [(signal.SIGTERM,), (signal.SIGINT,), (signal.SIGUSR1, signal.SIGTERM), (signal.SIGUSR1, signal.SIGUSR1)],
    ids=lambda numbers: "+".join(each.name for each in numbers),
)
def test_whoever_ends_a_run_does_not_have_it_started_again(scene: Scene, numbers: tuple[int, ...]) -> None:
    if len(numbers) > 1:
        (scene.folder / "deaf").touch()
    code, out = scene.run(*numbers)
    assert code in (85, 130), out
    assert scene.asked == "", out
    assert "To go on: the same command again" in out


@pytest.mark.parametrize("env", [{"EZPYP_REQUEUE": "0"}, {"EZPYP_REQUEUE": ""}, {"SLURM_JOB_ID": ""}])
def test_nor_does_a_warning_where_nobody_asked_for_it(scene: Scene, env: dict[str, str]) -> None:
    code, out = scene.run(signal.SIGUSR1, env=env)
    assert (code, scene.asked) == (85, ""), out
    assert "To go on: the same command again" in out


def test_what_failed_is_tried_again_by_a_person_only(scene: Scene) -> None:
    (scene.folder / "bad").touch()
    code, out = scene.run(signal.SIGUSR1)
    assert code == 85, out
    (scene.folder / "bad").unlink()
    (scene.folder / "go").touch()
    code, out = scene.run(restart=1)
    assert code == 1, out
    assert scene.ran == ["0", "1", "1"]
    assert "not tried again by the job in which they failed: 'wait[0]'" in out
    assert "1 done, 1 failed, 1 skipped" in out
    code, out = scene.run(job="8")
    assert code == 0, out
    assert scene.ran == ["0", "1", "1", "0"]


def test_where_a_job_may_not_be_requeued_another_takes_its_place(scene: Scene) -> None:
    scene.says("scontrol", "echo 'Requested operation is presently disabled for job 7' >&2; exit 1")
    scene.says("sbatch", f'echo "$@" > {scene.folder}/submitted; env > {scene.folder}/env; echo 8')
    (scene.folder / "cache/jobs").mkdir(parents=True)
    names = ("job", "7"), ("user", "eve"), ("host", "login"), ("script", "x.py"), ("code", "abc")
    job = Job(**dict(names), cluster="", when=1.0, args=(), batch="jobs/x.sbatch")
    submission.note(str(scene.folder / "cache"), job)
    (scene.folder / "bad").touch()
    code, out = scene.run(signal.SIGUSR1)
    assert code == 85
    why = "Requested operation is presently disabled for job 7"
    assert f"ezpyp: job 7 may not be requeued ({why}): job 8 takes its place.\n" in out
    submitted = (scene.folder / "submitted").read_text()
    assert submitted == f"--parsable --dependency=singleton {scene.folder}/cache/jobs/x.sbatch\n"
    assert "SLURM_JOB_ID" not in (scene.folder / "env").read_text()
    found = {each.job: each for each in submission.jobs(str(scene.folder / "cache"))}
    assert (found["8"].batch, found["8"].code, found["8"].log) == ("jobs/x.sbatch", "abc", "jobs/8.log")
    (scene.folder / "bad").unlink()
    (scene.folder / "go").touch()
    code, out = scene.run(job="8")
    assert (code, scene.ran) == (1, ["0", "1", "1"]), "it goes on as the same job would"


@pytest.mark.parametrize("given", ["{}/script.py", "{}/script.py --fast", ""])
def test_so_does_one_that_was_submitted_by_hand(scene: Scene, given: str) -> None:
    args = given.format(scene.folder)
    shown = " ".join(filter(None, ("JobName=eve NumNodes=2 Command=/x/b.sh", args, f"WorkDir={scene.folder}")))
    script = f"{scene.folder}/cache/jobs/7.sbatch"
    scene.says(
        "scontrol",
        f"case $1 in requeue) echo disabled >&2; exit 1;; write) echo '# mine' > $4;; *) echo '{shown}';; esac",
    )
    scene.says("sbatch", f'echo "$@" > {scene.folder}/submitted; cp {script} {scene.folder}/copy; echo 8')
    code, out = scene.run(signal.SIGUSR1)
    assert code == 85
    if args.endswith("--fast"):
        assert f"job 7 is not started again (disabled): the arguments of its script, '{args}', cannot" in out
        return
    assert "ezpyp: job 7 may not be requeued (disabled): job 8 takes its place.\n" in out
    flags, _, rest = (scene.folder / "submitted").read_text().partition(f" {script}")
    assert flags == f"--parsable --job-name=eve --nodes=2 --chdir={scene.folder} --dependency=afterany:7"
    assert rest.strip() == args
    assert (scene.folder / "copy").read_text() == "# mine\n"
    assert not os.path.exists(script)


ARRAY = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}


def test_a_task_of_an_array_is_requeued_alone(scene: Scene) -> None:
    code, out = scene.run(signal.SIGUSR1, env=ARRAY)
    assert (code, scene.asked) == (85, "requeue 7_3\n"), out
    assert "Job 7_3 is requeued, and goes on from here (start 2).\n" in scene.ezpyp("status", "cache")


def test_nothing_takes_the_place_of_a_task_of_an_array(scene: Scene) -> None:
    """Its script would begin the whole array anew."""
    scene.says("scontrol", "echo 'disabled' >&2; exit 1")
    scene.says("sbatch", f"touch {scene.folder}/submitted; echo 8")
    code, out = scene.run(signal.SIGUSR1, env=ARRAY)
    assert code == 85
    assert "job 7_3 is not started again (disabled): it is a task of an array" in out
    assert not (scene.folder / "submitted").exists()


def test_a_job_of_which_nothing_is_known_is_left_to_people(scene: Scene) -> None:
    scene.says("scontrol", "echo 'Requested operation is presently disabled for job 7' >&2; exit 1")
    code, out = scene.run(signal.SIGUSR1)
    assert code == 85
    assert "job 7 is not started again (Requested operation is presently disabled for job 7)" in out
    assert "To go on: submit it again.\n" in out
    assert scene.record().next == ""


def test_a_job_that_gets_nothing_done_is_not_started_for_ever(scene: Scene) -> None:
    for restart in range(3):
        code, out = scene.run(signal.SIGUSR1, restart=restart)
        assert code == 85, out
    assert scene.asked == "requeue 7\n" * 2, "the first start did a step"
    assert "Job 7 is not started again: two starts in a row got nothing done." in out
    assert json.loads((scene.folder / "cache" / restarts.NAME).read_text())["job"] == "7"


LONG = """
import sys, time
from ezpyp import Pipeline, as_json_step

pipeline = Pipeline("cache", "long")

@as_json_step(pipeline)
def long(k):
    time.sleep(1)
    return k

long.map(range(int(sys.argv[1])))
pipeline.execute()
"""


def test_nor_is_one_whose_steps_take_longer_than_it_has(scene: Scene) -> None:
    done = scene.python.run(0, LONG, "1")
    assert done.returncode == 0, done.stderr
    for restart in range(2):
        env = {**scene.environment("7", restart), "EZPYP_TIME_LIMIT": "2s", "EZPYP_ON_CHANGE": "extend"}
        again = scene.python.run(0, LONG, "2", env=env)
        assert again.returncode == 85, again.stderr
        assert "Nothing can start: 'long' took 1.0 s in earlier runs" in again.stderr
    assert "Job 7 is not started again: two starts in a row got nothing done. Ask more by --time" in again.stderr
    assert "To go on: the same command again" in again.stdout
    assert scene.asked == "requeue 7\n"
