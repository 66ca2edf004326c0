"""What setup lines do to the environment, and that they are asked once a node."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ezpyp
from ezpyp.programs import surroundings
from ezpyp.programs.surroundings import Difference
from ezpyp.work import helper

if TYPE_CHECKING:
    from tests.conftest import Launcher

VALUES = st.text("ab:/", max_size=6)
ENVIRONMENTS = st.dictionaries(st.sampled_from("ABCDE"), VALUES)


@given(before=ENVIRONMENTS, after=ENVIRONMENTS)
def test_a_difference_leads_from_before_to_after(before: dict[str, str], after: dict[str, str]) -> None:
    assert Difference.between(before, after).applied(before) == after


def test_what_was_put_in_front_of_a_path_is_put_in_front_of_another() -> None:
    difference = Difference.between({"PATH": "/bin"}, {"PATH": "/sw/cdo/bin:/bin:/late", "CDO": "2"})
    assert difference.applied({"PATH": "/venv/bin:/bin"}) == {"PATH": "/sw/cdo/bin:/venv/bin:/bin:/late", "CDO": "2"}
    assert difference.applied({}) == {"PATH": "/sw/cdo/bin:/late", "CDO": "2"}


def test_lines_are_evaluated_in_order_in_a_login_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "_known", {})
    found = surroundings.difference(("shopt -q login_shell && export A=1; echo noise", 'export B="$A\n2"'))
    assert found.changed == {"A": "1", "B": "1\n2"}


@pytest.mark.parametrize(
    "setup", [("false", "export A=1"), ("echo no such module >&2; exit 3",), ("export A=1; exit 4",)]
)
def test_a_line_that_fails_says_what_it_said(setup: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "_known", {})
    with pytest.raises(ezpyp.InitializationError, match=r"setup=.* failed on .* with exit code [134]"):
        surroundings.difference(setup)


def test_a_module_that_old_environment_modules_cannot_load_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "_known", {})
    said = "ModuleCmd_Load.c(213):ERROR:105: Unable to locate a modulefile for 'cdo'"
    module = f'module() {{ echo "{said}" >&2; }}'
    with pytest.raises(ezpyp.InitializationError, match=r"an error that its exit code hides: .*modulefile for 'cdo'"):
        surroundings.difference((module, "module load cdo", "export A=1"))
    assert surroundings.difference(("echo ERROR: none", "export A=1")).changed == {"A": "1"}


def test_it_is_asked_once_a_node_and_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path))
    line = f"echo >> {tmp_path}/asked; export A=1"
    for run in ("one", "one", "two"):
        monkeypatch.setenv(helper.RUN, run)
        monkeypatch.setattr(surroundings, "_known", {})  # another process
        assert surroundings.difference((line,)).changed == {"A": "1"}
    assert (tmp_path / "asked").read_text() == "\n\n"


def test_a_torn_note_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_TMPDIR", str(tmp_path))
    monkeypatch.setenv(helper.RUN, "one")
    for _ in range(2):
        monkeypatch.setattr(surroundings, "_known", {})
        assert surroundings.difference(("export A=1",)).changed == {"A": "1"}
        (note,) = tmp_path.iterdir()
        assert note.stat().st_mode & 0o077 == 0
        note.write_bytes(note.read_bytes()[:10])


SCRIPT = """
import os
from ezpyp import Pipeline, as_command_step

pipeline = Pipeline("cache", "setup", workers=2)

setup = ["echo >> asked; export TOOLS=" + os.getcwd() + "/tools", "PATH=$TOOLS:$PATH"]

@as_command_step(pipeline, setup=setup, stdout="o")
def tool(k):
    return ["tool", k]

steps = tool.map(range(20))
pipeline.execute()
print(*sorted({open(step.result()).read().strip().split()[0] for step in steps}))
"""


def test_programs_are_found_where_modules_put_them(python: Launcher, mpirun: Launcher) -> None:
    for launcher, ranks, folder in ((python, 0, "a"), (mpirun, 2, "b")):
        where = launcher.folder / folder
        (where / "tools").mkdir(parents=True)
        tool = where / "tools" / "tool"
        tool.write_text("#!/bin/sh\necho $TOOLS $1\n")
        tool.chmod(0o755)
        (where / "script.py").write_text(SCRIPT)
        (where / "node").mkdir()
        done = launcher.run(ranks, where / "script.py", cwd=where, env={"SLURM_TMPDIR": str(where / "node")})
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{where}/tools" in done.stdout.splitlines()
        assert (where / "asked").read_text() == "\n", "once for the look before the run and for the run"


def test_the_script_is_told_before_the_run(python: Launcher) -> None:
    script = """
from ezpyp import Pipeline
pipeline = Pipeline("cache", "setup")
pipeline.command("sim", ["true"], setup="module load no-such-module")
pipeline.execute()
"""
    done = python.run(0, script, env={"HOME": os.getcwd()})
    assert done.returncode == 3
    assert "Step 'sim' reads 'true' (command): setup=module load no-such-module failed on" in done.stderr
    assert not Path(python.folder / "cache/sim.status").exists()
