"""EZPYP_START=fresh: helpers are new interpreters that run the script up to execute()."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Launcher

FRESH = {"EZPYP_START": "fresh"}

SCRIPT = """
import json, os, sys, threading
print("BEGUN", flush=True)
waiting = threading.Event()
beside = threading.Thread(target=waiting.wait, daemon=True)
beside.start()
mask = os.environ.get("CUDA_VISIBLE_DEVICES")
IMPORT
from ezpyp import Pipeline, as_pickle_step
pipeline = Pipeline("cache", "again")
if pipeline.is_root:
    print("ROOT", flush=True)
    open("made", "x").close()

@as_pickle_step(pipeline, name="plain", uses=[1])
def work(k):
    print("STEP", k)
    return [__name__, sys.argv[1:], "beside" in globals() and beside.is_alive(), mask, os.getpid()]

plain = work.map(range(6))
gpu = work.options(name="gpu", gpus=1).map(range(4)) if os.environ.get("CUDA_VISIBLE_DEVICES") is not None else []

if __name__ == "__main__":
    summary = pipeline.execute()
    if pipeline.is_root:
        print("FOUND", json.dumps([step.result() for step in (*plain, *gpu)]), flush=True)
"""


def found(output: str) -> list[list[object]]:
    (line,) = (line for line in output.splitlines() if line.startswith("FOUND "))
    return [list(each) for each in json.loads(line.removeprefix("FOUND "))]


def test_the_script_runs_as_main_up_to_execute_and_nothing_of_it_is_seen(python: Launcher) -> None:
    done = python.run(0, SCRIPT.replace("IMPORT", ""), "x", "-y", env={**FRESH, "EZPYP_WORKERS": "2"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout.count("BEGUN"), done.stdout.count("ROOT"), done.stdout.count("STEP")) == (1, 1, 0)
    steps = found(done.stdout)
    assert [each[:4] for each in steps] == [["__main__", ["x", "-y"], True, None]] * 6
    assert 1 <= len({each[4] for each in steps}) <= 2
    assert "threads run beside execute()" not in done.stderr
    # What a step prints is its own, what the script prints before it is nobody's.
    ezpyp = [str(python.bin / "python"), "-m", "ezpyp", "log", "cache", "plain[3]"]
    log = subprocess.run(ezpyp, cwd=python.folder, env=python.environment(), capture_output=True, text=True, check=True)
    assert log.stdout == "STEP 3\n"


def test_signals_to_the_whole_job_end_no_step_but_what_it_started(python: Launcher) -> None:
    lines = """
    import signal, subprocess
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        os.kill(os.getpid(), number)
    found = subprocess.run(["sh", "-c", "kill -TERM $$; echo alive"], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (-signal.SIGTERM, "")
"""
    done = python.run(0, SCRIPT.replace("IMPORT", "").replace('    print("STEP", k)\n', lines), env=FRESH)
    assert done.returncode == 0, done.stdout + done.stderr


def test_where_output_is_not_captured_only_steps_are_seen(python: Launcher) -> None:
    done = python.run(0, SCRIPT.replace("IMPORT", ""), env={**FRESH, "EZPYP_CAPTURE": "off"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout.count("BEGUN"), done.stdout.count("STEP")) == (1, 6)


def test_on_ranks_with_mpi_in_the_script_and_gpus_from_its_first_line(mpirun: Launcher) -> None:
    script = SCRIPT.replace("IMPORT", "from mpi4py import MPI")
    done = mpirun.run(2, script, env={**FRESH, "CUDA_VISIBLE_DEVICES": "4,7"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout.count("BEGUN"), done.stdout.count("ROOT")) == (2, 1)
    steps = found(done.stdout)
    assert all(each[:3] == ["__main__", [], True] for each in steps)
    assert {each[3] for each in steps} == {"4", "7"}  # and the others have the part of their rank
    assert len({each[4] for each in steps[6:]}) == 4


def test_a_script_that_started_cuda_runs_its_gpu_steps(python: Launcher) -> None:
    started = """
import sys, types
torch = sys.modules["torch"] = types.ModuleType("torch")
torch.cuda = types.SimpleNamespace(is_initialized=lambda: True)
"""
    script = started + SCRIPT.replace("IMPORT", "")
    assert "EZPYP_START=fresh" in python.run(0, script, env={"CUDA_VISIBLE_DEVICES": "0"}).stderr
    (python.folder / "made").unlink()
    done = python.run(0, script, env={**FRESH, "CUDA_VISIBLE_DEVICES": "0,1"})
    assert done.returncode == 0, done.stdout + done.stderr
    plain, gpu = found(done.stdout)[:6], found(done.stdout)[6:]
    assert len({each[4] for each in gpu}) == 4
    assert ({each[3] for each in gpu}, {each[3] for each in plain}) == ({"0"}, {"0,1"})


def test_a_crash_fails_one_step(python: Launcher) -> None:
    script = SCRIPT.replace("IMPORT", "").replace('    print("STEP", k)\n', "    if k == 2: os.kill(os.getpid(), 11)\n")
    done = python.run(0, script.replace("if pipeline.is_root:\n        print", "if False:\n        print"), env=FRESH)
    assert done.returncode == 1
    assert "5 done, 1 failed" in done.stdout
    assert "ended with signal 11 (Segmentation fault)" in done.stdout


CHANGES = """
import os, sys
from ezpyp import Pipeline, as_pickle_step
pipeline = Pipeline("cache", "again")
again = not pipeline.is_root  # what a script is not to ask
LINE
as_pickle_step(pipeline)(abs).map(range(2 + CHANGE))
pipeline.execute()
"""


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "it built another plan."),
        ("if again: sys.exit()", "it came to its end before the execute() that is at work."),
        ("if again: raise OSError('full')", "it ended with OSError: full before the execute() that is at work."),
    ],
)
def test_a_script_that_does_something_else_the_second_time_is_told_so(python: Launcher, line: str, said: str) -> None:
    script = CHANGES.replace("LINE", line).replace("CHANGE", "0" if line else "again")
    done = python.run(0, script, env=FRESH)
    assert done.returncode == 3, done.stdout + done.stderr
    assert f"and {said} What it printed is in {python.folder}/cache/logs/" in done.stderr
    assert "do not let it depend on the time, random numbers or standard input." in done.stderr


def test_ranks_are_told_too(mpirun: Launcher) -> None:
    line = "again = not any(name.startswith(('PMI_', 'PMIX_')) for name in os.environ)  # a helper is no rank"
    done = mpirun.run(2, CHANGES.replace("LINE", line).replace("CHANGE", "again"), env=FRESH)
    assert done.returncode != 0
    assert "it built another plan." in done.stderr


def test_where_no_script_could_be_run_again_nothing_is_run(python: Launcher) -> None:
    script = "from ezpyp import Pipeline, as_pickle_step\npipeline = Pipeline('cache', 'p')\n"
    script += "as_pickle_step(pipeline)(abs)(-1)\nprint(pipeline.execute().done)\n"
    for words, code in (([], 3), (["-"], 3), (["-c", script], 0)):
        done = subprocess.run(
            [sys.executable, *words],
            input=script,
            cwd=python.folder,
            env=python.environment(FRESH),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == code, done.stdout + done.stderr
        assert ("there is no script that could be run again" in done.stderr) == bool(code)


def test_modules_and_what_follows_from_a_first_pipeline(python: Launcher) -> None:
    package = python.folder / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "study.py").write_text(
        """
import os
from ezpyp import Pipeline, as_pickle_step
from package import other
first, second = Pipeline("one", "one"), Pipeline("two", "two")
count = as_pickle_step(first)(lambda: 3)()
first.execute()
os.chdir("package")
@as_pickle_step(second)
def work(k):
    return k, __name__, __spec__.name
steps = work.map(range(count.result()))
second.execute()
print([step.result()[1] for step in steps])
"""
    )
    (package / "other.py").touch()
    done = subprocess.run(
        [sys.executable, "-m", "package.study"],
        cwd=python.folder,
        env=python.environment(FRESH),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "['__main__', '__main__', '__main__']" in done.stdout


def test_a_pipeline_of_a_test_cannot_start_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ezpyp

    monkeypatch.setenv("EZPYP_START", "fresh")
    pipeline = ezpyp.Pipeline(tmp_path / "cache", "p")
    ezpyp.as_pickle_step(pipeline)(abs)(-1)
    with pytest.raises(ezpyp.ResourceError, match="this is a prompt, a notebook or a test"):
        pipeline.execute()
    monkeypatch.setenv("EZPYP_START", "slow")
    with pytest.raises(ezpyp.InitializationError, match="choose one of 'fork', 'fresh'"):
        pipeline.execute()
