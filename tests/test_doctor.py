"""Findings of `ezpyp doctor` that need no cluster; those that do are in tests/lab."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from ezpyp.cluster import doctor
from tests.test_launch import program

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Launcher


def examine(launcher: Launcher, *words: str, path: str = "") -> tuple[int, list[dict[str, str]]]:
    """The exit code and the findings."""
    env = launcher.environment()
    done = subprocess.run(
        [
            str(launcher.bin / "python"),
            "-c",
            "from ezpyp.cli.main import main; main()",
            "doctor",
            *words,
            "--output",
            "json",
        ],
        cwd=launcher.folder,
        env={**env, "PATH": f"{path}:{env['PATH']}"} if path else env,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def about(findings: list[dict[str, str]], word: str) -> dict[str, str]:
    return next(each for each in findings if word in each["what"])


def test_ranks_that_fit_are_told_as_good(mpirun: Launcher, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    program(tools, "sbatch", "")
    program(tools, "sinfo", "echo 'debug* up 2 nodes'")
    code, found = examine(mpirun, "new/cache", "-n", "2", path=str(tools))
    assert code == 0, found
    assert {each["level"] for each in found} <= {"good", "doubtful"}
    assert about(found, "2 ranks see each other")
    assert about(found, "all have python")
    assert list(tmp_path.iterdir()) == [tools], "something was left behind"


def test_a_folder_that_cannot_be_written_is_bad(python: Launcher) -> None:
    code, found = examine(python, "/proc/cache")
    assert code == 1
    assert about(found, "/proc cannot be written")["remedy"] == "Choose another folder."


def test_a_slurm_that_does_not_answer_is_bad(python: Launcher, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    program(tools, "sbatch", "")
    program(tools, "sinfo", "echo 'slurm_load_partitions: Unable to contact slurm controller' >&2; exit 1")
    code, found = examine(python, path=str(tools))
    assert code == 1
    assert "Unable to contact slurm controller" in about(found, "Slurm does not answer")["what"]


def test_an_mpirun_that_does_not_fit_is_bad_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ezpyp.system.launch.mpi_library", lambda: "")
    (found,) = (each for each in doctor.examine(str(tmp_path), None, []) if each.what.startswith("MPI"))
    assert found.level == "bad"
    assert "Load the site's module for it" in found.remedy


def answer(host: str, **versions: str) -> dict[str, Any]:
    return {"host": host, "versions": {**dict.fromkeys(("python", *doctor.PACKAGES), "1"), **versions}}


def test_versions_that_differ_are_named_with_their_hosts() -> None:
    (found,) = doctor.compare([answer("a"), answer("b", numpy="2"), answer("b", numpy="2")])
    assert (found.level, found.what) == ("bad", "numpy is 1 on a; 2 on b")
    (same,) = doctor.compare([answer("a"), answer("b")])
    assert same.level == "good"
