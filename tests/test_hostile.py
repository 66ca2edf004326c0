"""Runs where streams are closed, names are odd, and disks, descriptors and clocks are not what they should be."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

import ezpyp
from ezpyp.upkeep.checking import check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Launcher

STUDY = """
import sys
from ezpyp import Pipeline, as_pickle_step

pipeline = Pipeline(sys.argv[1] if sys.argv[1:] else "cache", "study")

@as_pickle_step(pipeline)
def made(k):
    print("made", k)
    return k

@as_pickle_step(pipeline)
def total(parts):
    return sum(parts)

total(made.map(range(6)))
pipeline.execute()
"""


def in_shell(
    python: Launcher, line: str, *, cwd: Path | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A line of the shell to its end, in the folder of the test unless elsewhere."""
    return subprocess.run(
        ["sh", "-c", line],
        cwd=cwd or python.folder,
        env=python.environment(env),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_nobody_elses(python: Launcher, closed: str) -> None:
    """What is opened next gets their numbers, and helpers put their output there."""
    (python.folder / "study.py").write_text(STUDY)
    done = in_shell(python, f"{python.bin}/python study.py {closed}")
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    seen = ezpyp.open(python.folder / "cache")
    assert seen["total"] == 15
    assert "made 3" in seen.log("made[3]")


@pytest.mark.parametrize("name", ["sp ace", "ü/ö", "li\nne", "-n", "per%cent", "d" * 200 + "/" + "d" * 200])
def test_a_folder_may_be_called_anything(python: Launcher, name: str) -> None:
    assert python.run(0, STUDY, name).returncode == 0
    assert "7 of 7 done" in python.run(0, STUDY, name).stdout
    assert ezpyp.open(python.folder / name)["total"] == 15


@pytest.mark.parametrize(("name", "why"), [("d" * 300, "File name too long"), ("ca\udcffche", "not UTF-8")])
def test_a_folder_that_cannot_be_is_refused_in_one_line(python: Launcher, name: str, why: str) -> None:
    done = python.run(0, STUDY, name)
    assert done.returncode == 3
    assert "ezpyp: StoreError: The cache folder " in done.stderr
    assert why in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_is_not_looked_for_where_nothing_is_any_more(python: Launcher) -> None:
    """A folder with a whole path can be used from there."""
    script = python.folder / "study.py"
    script.write_text(STUDY)
    (python.folder / "gone").mkdir()
    run = f"{python.bin}/python {script}"
    done = in_shell(
        python,
        f"rmdir {python.folder}/gone; {run}; echo ended with $?; {run} {python.folder}/cache",
        cwd=python.folder / "gone",
    )
    assert "ended with 3" in done.stdout
    assert "The cache folder 'cache' cannot be made: the working folder is gone" in done.stderr
    assert "Traceback" not in done.stderr
    assert "7 done" in done.stdout


def test_more_helpers_than_files_may_be_open_are_refused_in_one_line(python: Launcher) -> None:
    (python.folder / "study.py").write_text(STUDY)
    done = in_shell(python, f"ulimit -n 40; exec {python.bin}/python study.py", env={"EZPYP_WORKERS": "60"})
    assert done.returncode == 3, done.stderr
    assert "cannot be started: Too many open files. Have fewer (workers=, helpers=)" in done.stderr
    assert "Traceback" not in done.stderr
    assert python.run(0, STUDY, env={"EZPYP_WORKERS": "2"}).returncode == 0


@pytest.mark.parametrize("store", ["files", "packed"])
def test_few_files_are_enough_for_a_run(python: Launcher, store: str) -> None:
    (python.folder / "study.py").write_text(STUDY)
    done = in_shell(python, f"ulimit -n 24; exec {python.bin}/python study.py", env={"EZPYP_STORE": store})
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("store", ["files", "packed"])
def test_a_step_that_opens_too_many_files_says_so(python: Launcher, store: str) -> None:
    """Where nothing can be opened any more, neither is the module there that makes tracebacks."""
    leak = "    while k == 3:\n        kept.append(open('/dev/null'))\n"
    study = STUDY.replace("import sys\n", "import sys\nkept = []\n").replace("    return k\n", f"{leak}    return k\n")
    (python.folder / "study.py").write_text(study)
    done = in_shell(python, f"ulimit -n 900; exec {python.bin}/python study.py", env={"EZPYP_STORE": store})
    assert done.returncode == 1, done.stderr
    assert "5 done, 1 failed, 1 skipped" in done.stdout
    assert "'made[3]' (k=3) OSError: [Errno 24] Too many open files" in done.stdout


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A file system, mounted anew with each option that is given."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> Path:
        how = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(how, capture_output=True, check=False).returncode:
            pytest.skip("mounting takes rights that this user lacks")
        return folder

    yield mount
    subprocess.run(["umount", str(folder)], check=False, capture_output=True)


@pytest.mark.parametrize("store", ["files", "packed"])
def test_a_disk_that_is_full_at_any_moment_costs_nothing_that_was_done(
    python: Launcher, disk: Callable[[str], Path], store: str
) -> None:
    """From the schema to the summary. Nothing is wrong with what is there, and the next run goes on with it."""
    study = STUDY.replace("return k", 'return k if "+" not in sys.argv else bytes(3000)').replace("sum(parts)", "15")
    done = set()
    for size in (8, 16, 24, 32, 36, 40, 48, 128):
        folder = disk(f"size={size}k")
        full = python.run(0, study, f"{folder}/cache", "+", env={"EZPYP_STORE": store, "EZPYP_WORKERS": "2"})
        assert full.returncode in (0, 1, 3), full.stderr
        assert "/ezpyp/" not in full.stderr
        if full.returncode:
            assert "The disk is full: free space and run again." in full.stdout + full.stderr
        assert not (folder / "cache/.lock").exists()
        if full.returncode != 3:
            assert check(folder / "cache").wrong == ()
        subprocess.run(["mount", "-o", "remount,size=8m", str(folder)], check=True)
        again = python.run(0, study, f"{folder}/cache", "+", env={"EZPYP_STORE": store})
        assert again.returncode == 0, again.stderr
        assert check(folder / "cache") == replace(check(folder / "cache"), results=7, wrong=())
        done.add(full.returncode)
        subprocess.run(["umount", str(folder)], check=True)
    assert done == {0, 1, 3}
