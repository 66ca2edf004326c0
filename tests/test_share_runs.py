"""Shares as runs: each in a folder of its own, and what the next run in the main folder makes of them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

import ezpyp
from ezpyp.folder.summary import Row
from tests.conftest import Launcher

STUDY = """
import os, signal, sys
import ezpyp
from ezpyp import File, Pipeline, as_json_step, as_pickle_step

pipeline = Pipeline("cache", "study", store=os.environ.get("STORE"))
os.environ["AGENT"] = str(os.getpid())

@as_json_step(pipeline)
def f(k):
    print("f", k)
    if k == 5 and os.path.exists("deadly"):
        os.kill(int(os.environ["AGENT"]), signal.SIGKILL)
    return k * k

@as_pickle_step(pipeline)
def g(x):
    with open(f"g-{x}.txt", "w") as file:
        file.write(str(x))
    return File(f"g-{x}.txt")

@as_json_step(pipeline)
def total(files):
    return sum(int(open(file).read()) for file in files)

step = total(g.map(f.map(range(10))))
pipeline.execute()
print("total", step.result())
"""

EZPYP = "from ezpyp.cli.main import main; main()"


def ezpyp_command(python: Launcher, *words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """`ezpyp …` in the folder of the test."""
    program = [str(python.bin / "python"), "-c", EZPYP, *words]
    whole = python.environment(env)
    return subprocess.run(program, cwd=python.folder, env=whole, capture_output=True, text=True, check=False)


def share(python: Launcher, text: str, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
    return ezpyp_command(python, "run", "script.py", "--share", text, *args, env=env)


def write(python: Launcher, text: str = STUDY) -> None:
    (python.folder / "script.py").write_text(text)


def rows(folder: Path) -> list[tuple[object, ...]]:
    """The rows of a summary, but for where and when."""

    def known(row: Row) -> tuple[object, ...]:
        result = os.path.relpath(row.result, folder) if row.result and "#" not in row.result else bool(row.result)
        args = row.args.replace(str(folder), "")
        return row.name, args, row.kwargs, row.phase, row.status, result, row.attempts, row.note

    return [known(row) for row in ezpyp.open(folder).summary().rows]


def plan_of(folder: Path) -> dict[str, object]:
    """The schema, but for when."""
    content = json.loads((folder / "pipeline.schema").read_text())
    del content["ezpyp"]["when"]
    assert isinstance(content, dict)
    return content


@pytest.mark.parametrize("store", ["files", "packed"])
def test_five_shares_and_a_last_run_equal_one_run(python: Launcher, tmp_path: Path, store: str) -> None:
    """One of them killed in the middle, and not run again."""
    write(python)
    alone = ezpyp_command(python, "run", "script.py", env={"STORE": store})
    assert "total 285" in alone.stdout, alone.stderr
    shutil.move(tmp_path / "cache", tmp_path / "alone" / "cache")
    (tmp_path / "deadly").touch()
    codes = [share(python, f"{k}/5", STORE=store).returncode for k in range(1, 6)]
    assert codes.count(0) == 4, codes
    (tmp_path / "deadly").unlink()
    last = ezpyp_command(python, "run", "script.py", env={"STORE": store})
    assert last.returncode == 0, last.stderr
    assert "total 285" in last.stdout
    assert "of 5 shares were taken in" in last.stderr
    assert rows(tmp_path / "cache") == rows(tmp_path / "alone" / "cache")
    assert plan_of(tmp_path / "cache") == plan_of(tmp_path / "alone" / "cache")
    assert ezpyp_command(python, "check", "cache").returncode == 0
    assert not (tmp_path / "cache" / "shares").exists()
    assert ezpyp.open(tmp_path / "cache").log("f[3]") == "f 3\n"
    assert "total 285" in share(python, "2/5", STORE=store).stdout, "all is there: the script goes on"


def test_a_share_ends_the_script_where_its_results_would_be_missing(python: Launcher, tmp_path: Path) -> None:
    write(python)
    done = share(python, "1/3")
    assert done.returncode == 0, done.stderr
    assert "total" not in done.stdout.splitlines()[-1]
    assert (
        "share 1/3: 6 of 21 steps to run, 14 are in other shares, 1 left to the run that takes them in" in done.stderr
    )
    assert os.listdir(tmp_path / "cache") == ["shares"]
    again = share(python, "1/3")
    assert "0 to run" in again.stdout or "6 done (all before)" in again.stdout


def test_the_number_of_a_share_is_checked_before_anything(python: Launcher, tmp_path: Path) -> None:
    write(python)
    for text in ("0/5", "6/5", "1-5"):
        done = share(python, text)
        assert (done.returncode, done.stdout) == (3, "")
        assert done.stderr.startswith("ezpyp: share ")
    assert not (tmp_path / "cache").exists()


def test_a_share_takes_what_the_main_folder_has_and_writes_nothing_there(python: Launcher, tmp_path: Path) -> None:
    write(python)
    ezpyp_command(python, "run", "script.py", "--only", "f")
    before = sorted(os.listdir(tmp_path / "cache"))
    done = share(python, "2/2")
    assert done.returncode == 0, done.stderr
    assert "share 2/2: 5 of 11 steps to run" in done.stderr
    assert done.stdout.count("PASS") == 5
    assert sorted(os.listdir(tmp_path / "cache")) == sorted([*before, "shares"])


def test_what_failed_in_a_share_is_tried_by_the_last_run(python: Launcher, tmp_path: Path) -> None:
    write(python, STUDY.replace("return k * k", "assert k != 5 or os.path.exists('mended'), 'five'; return k * k"))
    codes = [share(python, f"{k}/2").returncode for k in (1, 2)]
    assert sorted(codes) == [0, 1]
    (tmp_path / "mended").touch()
    planned = ezpyp_command(python, "plan", "script.py", "--output", "json")
    assert json.loads(planned.stdout)["counts"]["run"] == 3
    last = ezpyp_command(python, "run", "script.py")
    assert "total 285" in last.stdout, last.stderr
    assert last.stdout.count("PASS") == 3, "f[5], its g and the total"


def test_what_failed_in_a_share_is_told_where_the_last_run_does_not_try_it(python: Launcher, tmp_path: Path) -> None:
    write(python, STUDY.replace("return k * k", "assert k != 5, 'five'; return k * k"))
    for k in (1, 2):
        share(python, f"{k}/2")
    ezpyp_command(python, "run", "script.py", "--only", "f[0]")
    assert ezpyp.open(tmp_path / "cache").status.failures == {"f[5]": "AssertionError: five"}


def test_an_edit_between_shares_and_the_last_run_uses_nothing_stale(python: Launcher, tmp_path: Path) -> None:
    write(python)
    assert share(python, "1/1").returncode == 0
    write(python, STUDY.replace("k * k", "k + 1"))
    refused = share(python, "1/1")
    assert refused.returncode == 3
    assert "f: constant" in refused.stderr or "changed since" in refused.stderr, refused.stderr
    last = ezpyp_command(python, "run", "script.py")
    assert "total 55" in last.stdout, last.stderr
    assert "of its results are of no step of this plan" in last.stderr
    assert (tmp_path / "cache/shares/1-of-1").exists()
    assert ezpyp_command(python, "clean", "cache", "-y").returncode == 0
    assert not (tmp_path / "cache").exists()


def test_a_share_that_is_at_work_keeps_its_folder(python: Launcher, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    slow = STUDY.replace("return k * k", "k == 9 and not os.path.exists('go') and open('fifo').read(); return k * k")
    write(python, slow)
    command = [str(python.bin / "python"), "-c", EZPYP, "run", "script.py", "--share", "1/1"]
    with subprocess.Popen(
        command, cwd=tmp_path, env=python.environment(), stdout=subprocess.PIPE, text=True
    ) as working:
        with open(tmp_path / "fifo", "w"):  # opens when the step reads
            second = share(python, "1/1")
            assert second.returncode == 3
            assert "is in use by" in second.stderr
            (tmp_path / "go").touch()
            last = ezpyp_command(python, "run", "script.py")
        assert "total 285" in last.stdout, last.stderr
        assert "share 1/1 is at work" in last.stderr
        assert working.wait(30) == 0
    assert (tmp_path / "cache/shares/1-of-1").exists()
    after = ezpyp_command(python, "run", "script.py")
    assert "total 285" in after.stdout
    assert not (tmp_path / "cache/shares").exists()


CHECKPOINT = """
import ezpyp, os, signal
from ezpyp import Pipeline, as_json_step

pipeline = Pipeline("cache", "saving")

@as_json_step(pipeline)
def count():
    saved = ezpyp.checkpoint_dir() / "at"
    if saved.exists():
        return int(saved.read_text())
    saved.write_text("7")
    raise ezpyp.Interrupted("saved")

step = count()
pipeline.execute()
print("count", step.result())
"""


def test_what_a_step_of_a_share_saved_is_there_in_the_last_run(python: Launcher) -> None:
    write(python, CHECKPOINT)
    share(python, "1/1")
    assert "count 7" in ezpyp_command(python, "run", "script.py").stdout


ALWAYS = """
from ezpyp import Pipeline, as_json_step

pipeline = Pipeline("cache", "always")

@as_json_step(pipeline, always=True)
def now():
    return 1

@as_json_step(pipeline)
def then(x):
    return x

@as_json_step(pipeline)
def other(k):
    return k

then(now())
other.map(range(4))
pipeline.execute()
"""


def test_steps_that_every_run_makes_anew_are_left_to_the_last(python: Launcher) -> None:
    write(python, ALWAYS)
    assert "2 of 6 steps to run, 2 are in other shares, 2 left" in share(python, "1/2").stderr
    share(python, "2/2")
    last = ezpyp_command(python, "run", "script.py")
    assert last.stdout.count("PASS") == 2


def test_a_script_with_two_pipelines_divides_the_first_that_is_not_done(python: Launcher, tmp_path: Path) -> None:
    second = STUDY.replace('"cache"', '"second"').replace('"study"', '"next"').partition("pipeline =")[2]
    write(python, STUDY + "pipeline =" + second)
    for k in (1, 2):
        assert share(python, f"{k}/2").returncode == 0
    assert not (tmp_path / "second").exists()
    assert ezpyp_command(python, "run", "script.py").stdout.count("total 285") == 2
    shutil.rmtree(tmp_path / "second")
    done = share(python, "1/2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("total 285") == 1
    assert f"Cache {tmp_path}/second/shares/1-of-2" in done.stdout


def test_the_status_of_a_folder_tells_of_its_shares(python: Launcher, tmp_path: Path) -> None:
    write(python, STUDY.replace("return k * k", "assert k != 5, 'five'; return k * k"))
    for k in (1, 2, 3):
        share(python, f"{k}/3")
    told = ezpyp_command(python, "status", "cache").stdout.splitlines()
    assert told[0] == f"3 shares in {tmp_path}/cache/shares: 18 of 20 done, 3 ended"
    assert "1 failed" in told[1]
    assert "exit code 1" in told[1]
    values = json.loads(ezpyp_command(python, "status", "cache", "--output", "json").stdout)["shares"]
    assert sum(each["done"] for each in values.values()) == 18
    refused = ezpyp_command(python, "summary", "cache")
    assert "has only shares yet" in refused.stderr
    assert ezpyp_command(python, "run", "script.py").returncode == 1
    assert "shares" not in ezpyp_command(python, "status", "cache").stdout


def test_a_plan_of_a_share_is_what_it_would_run(python: Launcher, tmp_path: Path) -> None:
    write(python)
    planned = ezpyp_command(python, "plan", "script.py", "--share", "2/5", "--output", "json")
    assert json.loads(planned.stdout)["counts"] == {"run": 4, "blocked": 0, "cached": 0, "left out": 17}
    assert not (tmp_path / "cache").exists()


STAR = """
from ezpyp import Pipeline, as_json_step

pipeline = Pipeline("cache", "star")

@as_json_step(pipeline)
def load():
    return 1

@as_json_step(pipeline)
def use(x, k):
    return x + k

base = load()
for k in range(20):
    use(base, k)
pipeline.execute()
"""


def test_of_one_step_nothing_is_advised(python: Launcher) -> None:
    write(python, STAR.replace("range(20)", "range(0)"))
    told = share(python, "1/4").stderr
    assert told == "ezpyp: share 1/4: 1 of 1 steps to run, 0 are in other shares.\n"


def test_what_all_steps_wait_for_is_named_and_then_they_are_divided(python: Launcher) -> None:
    write(python, STAR)
    planned = share(python, "2/4")
    assert "21 steps are in one share, for they wait for 'load'. Run that before the array" in planned.stderr
    assert ezpyp_command(python, "run", "script.py", "--only", "load").returncode == 0
    assert "share 1/4: 5 of 20 steps to run, 15 are in other shares." in share(python, "1/4").stderr


def test_failures_that_are_allowed_are_allowed_in_a_share(python: Launcher) -> None:
    """Whether they are too many together is for the last run to say: it tries them again."""
    allowed = STUDY.replace("return k * k", "assert k not in (2, 3), k; return k * k")
    allowed = allowed.replace("g.map(f.map(range(10)))", "g.map(f.map(range(10), allow_failure=1), allow_failure=2)")
    write(python, allowed.replace("total(g.map", "total.function and (g.map").replace("step.result()", "0"))
    codes = [share(python, f"{k}/5").returncode for k in range(1, 6)]
    assert codes == [0] * 5
    assert ezpyp_command(python, "run", "script.py").returncode == 1


@pytest.mark.mpi
def test_ranks_share_a_share(mpirun: Launcher) -> None:
    write(mpirun)
    for k in (1, 2):
        done = ezpyp_command(mpirun, "run", "script.py", "-n", "2", "--share", f"{k}/2")
        assert done.returncode == 0, done.stderr
        assert "total 285" not in done.stdout
    begun = ezpyp.open(mpirun.folder / "cache/shares/1-of-2").status.run.started
    assert begun is not None
    assert (begun.ranks, begun.part) == (2, 10)
    last = ezpyp_command(mpirun, "run", "script.py", "-n", "2")
    assert "total 285" in last.stdout, last.stderr
    assert "total 285" in ezpyp_command(mpirun, "run", "script.py", "-n", "2", "--share", "1/2").stdout
    refused = ezpyp_command(mpirun, "run", "script.py", "-n", "2", env={"EZPYP_SHARE": "3/2"})
    assert refused.returncode == 3
    assert refused.stderr.count("share 3/2: they are numbered from 1 to 2") == 1, refused.stderr


def test_a_share_that_was_stopped_after_its_last_step_is_done(python: Launcher) -> None:
    """There is something that it leaves to others: that is no reason to go on."""
    script = ALWAYS.replace("    return k", "    os.kill(int(os.environ['AGENT']), signal.SIGUSR1)\n    return k")
    write(
        python, f"import os, signal\nos.environ['AGENT'] = str(os.getpid())\n{script}".replace("range(4)", "range(1)")
    )
    assert share(python, "1/1").returncode == 0


def test_a_run_that_dies_while_it_takes_shares_in_loses_nothing(python: Launcher, tmp_path: Path) -> None:
    """Wherever it dies: what a share made is in its folder until all of it is in the main one."""
    write(python)
    for k in (1, 2):
        share(python, f"{k}/2")
    for most in (0, 5, 9):
        deadly = (
            "import os\nfrom ezpyp.storage import transfer\ntake, calls = transfer.take, []\n"
            f"def dying(*args, **more):\n    calls.append(1)\n    len(calls) > {most} and os._exit(9)\n"
            "    return take(*args, **more)\ntransfer.take = dying\n"
        )
        assert python.run(0, deadly + STUDY).returncode == 9
        assert len(os.listdir(tmp_path / "cache/shares")) == 2
    write(python)
    last = ezpyp_command(python, "run", "script.py")
    assert "total 285" in last.stdout, last.stderr
    assert last.stdout.count("PASS") == 1, "the total"
    assert ezpyp_command(python, "check", "cache").returncode == 0
