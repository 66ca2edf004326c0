"""An array of jobs, and the last one, as slurm/array.sbatch says it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import ezpyp
from tests.conftest import CHECKOUT
from tests.test_share_runs import STUDY, plan_of, rows

if TYPE_CHECKING:
    from tests.conftest import Launcher
    from tests.lab.conftest import Slurm

#: The task that has the step is killed there, once.
DEADLY = STUDY.replace("        os.kill(int", '        os.unlink("deadly")\n        os.kill(int')
SCRIPTS = CHECKOUT / "slurm"


def test_an_array_of_five_shares_with_one_killed_equals_one_run(slurm: Slurm, mpirun: Launcher) -> None:
    folder = mpirun.folder
    (folder / "study.py").write_text(DEADLY)
    alone = mpirun.run(0, folder / "study.py")
    assert "total 285" in alone.stdout, alone.stderr
    shutil.move(folder / "cache", folder / "alone" / "cache")
    (folder / "deadly").touch()
    env = mpirun.environment({"STUDY_ENV": str(mpirun.bin.parent)})
    flags = ("--cpus-per-task=1", "--mem-per-cpu=0", "--time=20", "--exclusive", "--output=%a.log")
    array = slurm.sbatch(SCRIPTS / "array.sbatch", *flags, args=("study.py",), env=env, cwd=folder)
    after = ("--ntasks=2", "--time=20", f"--dependency=afterany:{array}")
    last = slurm.sbatch(SCRIPTS / "one_node.sbatch", *after, args=("study.py",), env=env, cwd=folder)
    state, log = slurm.ended(last, 90), (folder / f"{last}.log").read_text()
    told = {k: (folder / f"{k}.log").read_text() for k in range(1, 6)}
    assert state == "COMPLETED", log
    assert "total 285" in log
    assert "results of 5 shares were taken in" in log, told
    states = slurm.state(array)
    assert "FAILED" in states, (states, told)
    assert "COMPLETED" in states, (states, told)
    assert not (folder / "deadly").exists()
    assert rows(folder / "cache") == rows(folder / "alone" / "cache")
    assert plan_of(folder / "cache") == plan_of(folder / "alone" / "cache")
    assert not (folder / "cache" / "shares").exists()
    hosts = {row.host for row in ezpyp.open(folder / "cache").summary().rows}
    assert hosts == slurm.hosts


#: The last task, whose number is that of the whole array, has too little time; the others wait until it began again.
SLOW = """
import os, time
import ezpyp
from ezpyp import Pipeline, as_json_step

task = os.environ["SLURM_ARRAY_TASK_ID"]
with open(f"starts-{task}", "a") as file:
    file.write(os.environ["SLURM_JOB_ID"] + "\\n")
if task == "3":
    os.environ["EZPYP_TIME_LIMIT"] = "4s"
pipeline = Pipeline("cache", "slow")

@as_json_step(pipeline)
def f(k):
    while len(open("starts-3").readlines()) < 2:
        if ezpyp.stopping():
            raise ezpyp.Interrupted("again")
        time.sleep(0.05)
    return k

f.map(range(3))
pipeline.execute()
"""


def test_a_task_that_runs_out_of_time_requeues_itself_alone(slurm: Slurm, python: Launcher) -> None:
    folder: Path = python.folder
    (folder / "study.py").write_text(SLOW)
    (folder / "starts-3").touch()
    env = python.environment({"STUDY_ENV": str(python.bin.parent)})
    flags = ("--array=1-3", "--cpus-per-task=1", "--mem-per-cpu=0", "--time=20", "--output=%a.log")
    array = slurm.sbatch(SCRIPTS / "array.sbatch", *flags, args=("study.py",), env=env, cwd=folder)
    state = slurm.ended(array, 90)
    told = {k: (folder / f"{k}.log").read_text() for k in range(1, 4)}
    assert state == "COMPLETED", told
    starts = [(folder / f"starts-{k}").read_text().split() for k in range(1, 4)]
    assert [len(each) for each in starts] == [1, 1, 2], told
    assert {*starts[2]} == {array}
