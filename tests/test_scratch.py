"""Folders of steps: empty, their own, gone when they are done, kept when they failed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import ezpyp
from ezpyp.model import scratch
from ezpyp.model.scratch import Place, Room
from ezpyp.system import offspring

if TYPE_CHECKING:
    from tests.conftest import Launcher


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Node-local scratch."""
    folder = tmp_path / "node"
    folder.mkdir()
    monkeypatch.setenv("SLURM_TMPDIR", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def place(room: Room = Room(), attempt: int = 1) -> Place:
    return Place(room, name="sim[17]", stem="sim[17]", host="n017", attempt=attempt)


def test_a_place_is_new_empty_and_gone_afterwards(node: Path) -> None:
    before = Path.cwd()
    with scratch.at(place()):
        here = ezpyp.workdir()
        assert here == Path.cwd()
        assert here.parent == node
        assert list(here.iterdir()) == []
        (here / "sub").mkdir()
        (here / "sub" / "file").write_text("x")
    assert Path.cwd() == before
    assert list(node.iterdir()) == []


def test_two_never_share_one(node: Path) -> None:
    first = place()
    second = place()
    third = place(attempt=2)
    assert len({first.path, second.path, third.path}) == 3
    for each in (third, second, first):
        each.leave()
    assert list(node.iterdir()) == []


def test_its_name_says_whose_it_is(node: Path) -> None:
    with scratch.at(place()) as _:
        name = ezpyp.workdir().name
    assert re.fullmatch(rf"ezpyp\.[0-9a-f]{{8}}\.n017\.{os.getpid()}\.1\.sim_17", name)


def test_what_it_links_to_is_not_removed(node: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o500)
    with scratch.at(place()):
        (ezpyp.workdir() / "link").symlink_to(data)
    assert data.stat().st_mode & 0o777 == 0o500
    assert list(node.iterdir()) == []


def test_folders_that_forbid_writing_are_removed_all_the_same(node: Path) -> None:
    with scratch.at(place()):
        locked = ezpyp.workdir() / "locked"
        locked.mkdir()
        (locked / "file").touch()
        locked.chmod(0o500)
    assert list(node.iterdir()) == []


def test_tmpdir_serves_where_slurm_says_nothing(node: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("SLURM_TMPDIR", str(node / "is_not_there"))
    assert scratch.node_local() == str(tmp_path)


def test_a_scratch_of_ones_own_is_made(node: Path, tmp_path: Path) -> None:
    with scratch.at(place(Room(scratch=str(tmp_path / "mine" / "deep")))):
        assert ezpyp.workdir().parent == tmp_path / "mine" / "deep"


@pytest.mark.parametrize("pattern", ["/etc/passwd", "../x", "a/../../x"])
def test_outputs_lead_nowhere_else(pattern: str) -> None:
    with pytest.raises(ValueError, match="is named from there"):
        Room().leaving((pattern,))


def test_outputs_are_names_patterns_and_folders(node: Path) -> None:
    with scratch.at(at := place(Room(outputs=("a.txt", "*.nc", "plots")))):
        for name in ("a.txt", "1.nc", "2.nc", "plots/deep/x.png", "plots/y.png", "other"):
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).touch()
        at.given.add("2.nc")
        assert at.outputs() == {
            "a.txt": ("a.txt",),
            "*.nc": ("1.nc",),
            "plots": ("plots/deep/x.png", "plots/y.png"),
        }


@pytest.mark.parametrize("pattern", ["a.txt", "*.nc", "plots"])
def test_an_output_that_is_missing_is_named(node: Path, pattern: str) -> None:
    with scratch.at(at := place(Room(outputs=(pattern,)))):
        Path("plots").mkdir()
        with pytest.raises(FileNotFoundError, match=f"its output '{pattern.replace('*', '[*]')}' is not there"):
            at.outputs()


def test_a_kept_folder_is_said_to_be_and_an_empty_one_is_not(node: Path) -> None:
    with scratch.at(at := place()):
        assert at.kept() == ""
        Path("core").touch()
        assert at.kept() == f"Folder kept: {at.path}."
    assert [each.name for each in Path(at.path).iterdir()] == ["core"]


def test_outside_a_step_there_is_none() -> None:
    with pytest.raises(ezpyp.EzpypError, match="workdir=True"):
        ezpyp.workdir()


SCRIPT = """
import ezpyp, os, sys
from ezpyp import File, Pipeline, as_pickle_step

pipeline = Pipeline("cache", "folders", workers=2)

@as_pickle_step(pipeline, workdir="{scratch}", outputs=["plots"])
def draw(n):
    assert os.listdir() == []
    os.mkdir("plots")
    open("plots/a.png", "w").write(str(n))
    open("table.csv", "w").write(str(n))
    open("rest", "w").write(str(n))
    if n == 3:
        raise ValueError("three")
    return File("table.csv"), str(ezpyp.workdir())

steps = draw.map([1, 2, 3])
pipeline.execute(raise_on_failure=False)
for step in steps[:2]:
    file, folder = step.result()
    print(os.path.relpath(file, "cache"), open(file).read(), os.path.exists(folder))
"""


def test_steps_have_folders(python: Launcher, tmp_path: Path) -> None:
    done = python.run(0, SCRIPT.replace("{scratch}", str(tmp_path / "node")))
    assert "files/draw[0]/table.csv 1 False\nfiles/draw[1]/table.csv 2 False\n" in done.stdout, done.stderr
    assert (tmp_path / "cache/files/draw[0]/plots/a.png").read_text() == "1"
    (kept,) = (tmp_path / "node").iterdir()
    assert f"ValueError: three Folder kept: {kept}." in done.stdout
    assert sorted(each.name for each in kept.iterdir()) == ["plots", "rest", "table.csv"]


HANGS = """
import glob, os, subprocess, sys, time
from ezpyp import Pipeline, as_pickle_step

pipeline = Pipeline("cache", "hangs", capture="off")

@as_pickle_step(pipeline, workdir="node", timeout=1)
def hang():
    daemon = subprocess.Popen(["sleep", "60"], start_new_session=True)
    open("daemon.txt", "w").write(str(daemon.pid))
    time.sleep(60)

@as_pickle_step(pipeline)
def look():
    (daemon,) = glob.glob("node/*/daemon.txt")
    print("DAEMON", os.path.exists(f"/proc/{open(daemon).read()}/exe"))

hang()
look()
pipeline.execute(raise_on_failure=False)
"""


def test_a_step_that_is_ended_leaves_its_folder_and_no_process(python: Launcher, tmp_path: Path) -> None:
    done = python.run(0, HANGS)
    (kept,) = (tmp_path / "node").iterdir()
    assert f"Folder kept: {kept}." in done.stdout, done.stdout + done.stderr
    assert "DAEMON False" in done.stdout


KILLED = """
import os, time
from ezpyp import Pipeline, as_pickle_step

pipeline = Pipeline("cache", "killed", workers=2)

@as_pickle_step(pipeline, workdir=True)
def hang(n):
    os.mkdir("data")
    os.rename("data", "there")
    if n:
        raise ValueError("one")
    time.sleep(60)

hang.map([0, 1])
pipeline.execute()
"""


def test_clean_removes_what_was_left_on_the_scratch(python: Launcher, node: Path, tmp_path: Path) -> None:
    run = python.start(0, KILLED)
    until = time.monotonic() + 30
    while len([*node.glob("*/there")]) < 2 and time.monotonic() < until:
        time.sleep(0.01)
    (node / "ezpyp.other").mkdir()
    for pid in (run.pid, *offspring.descendants(run.pid)):
        os.kill(pid, signal.SIGKILL)
    run.communicate(timeout=30)
    while len(scratch.abandoned("cache")) < 2 and time.monotonic() < until:
        time.sleep(0.01)  # until they are dead
    assert len(scratch.abandoned("cache")) == 2
    assert scratch.abandoned("another") == []
    clean = [str(python.bin / "python"), "-m", "ezpyp", "clean", "cache", "--yes"]
    shown = subprocess.run([*clean, "--dry-run"], env=python.environment(), capture_output=True, text=True, check=True)
    assert all(f"{path}/\n" in shown.stdout for path in scratch.abandoned("cache"))
    subprocess.run(clean, env=python.environment(), check=True)
    assert [path.name for path in node.iterdir()] == ["ezpyp.other"]
    assert not (tmp_path / "cache").exists()
