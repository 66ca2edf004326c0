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


def seen(host: str, *gpus: str, own: bool = False) -> dict[str, Any]:
    return {"host": host, "gpus": [*gpus], "own_gpus": own}


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ([seen("a"), seen("b")], []),
        ([seen("a", "G1", "G2"), seen("a", "G1", "G2")], [("good", "GPUs of each rank: 1, 1 on a", "")]),
        (
            [seen("a", "0", own=True), seen("a", "0", own=True), seen("b", "0", own=True), seen("b", "0", own=True)],
            [("good", "GPUs of each rank: 1, 1 on a, b", "")],
        ),
        (
            [seen("a", "G1"), seen("b")],
            [("doubtful", "GPUs of each rank: 1 on a; 0 on b", "Some hosts have none: ask the scheduler")],
        ),
        (
            [seen("a", "G1", "G2", "G3"), seen("a", "G1", "G2", "G3")],
            [("doubtful", "GPUs of each rank: 2, 1 on a", "Start as many ranks on each host as divide its GPUs.")],
        ),
        (
            [seen("a", "G1"), seen("a", "G1")],
            [
                ("good", "GPUs of each rank: 1, 1 on a", ""),
                ("doubtful", "a: 2 processes share 1 GPU", "Say gpus=1 at the steps that use one"),
            ],
        ),
    ],
)
def test_the_gpus_of_each_rank_are_told(answer: list[dict[str, Any]], told: list[tuple[str, str, str]]) -> None:
    found = [*doctor.gpus_each(answer)]
    assert [(each.level, each.what) for each in found] == [each[:2] for each in told]
    assert all(each.remedy.startswith(start) for each, (*_, start) in zip(found, told, strict=True))
    assert all(bool(each.remedy) == (each.level != "good") for each in found)


QUOTA = """cat <<END
Disk quotas for user you (uid 1000):
Filesystem      blocks   quota   limit   grace   files   quota   limit   grace
nfs:/home       {}       0       {}      0       {}      0       {}      0
END"""


@pytest.mark.parametrize(
    ("numbers", "level", "says"),
    [
        ((12_000_000, 100_000_000, 4000, 1_000_000), "good", "12.0 of 100.0 GB and 4,000 of 1,000,000 files are used"),
        (("99000000*", 100_000_000, 4000, 0), "doubtful", "99.0 of 100.0 GB are used"),
        ((1, 0, 995_000, 1_000_000), "doubtful", "995,000 of 1,000,000 files are used"),
    ],
)
def test_a_quota_is_told_where_there_is_one(
    python: Launcher, tmp_path: Path, numbers: tuple[object, ...], level: str, says: str
) -> None:
    program(tmp_path / "tools", "quota", QUOTA.format(*numbers))
    _, found = examine(python, path=str(tmp_path / "tools"))
    told = about(found, "quota of ")
    assert told["level"] == level
    assert told["what"].endswith(says)
    assert bool(told["remedy"]) == (level != "good")


def test_a_quota_of_lustre_is_asked_of_lustre(python: Launcher, tmp_path: Path) -> None:
    line = "/scratch/with/a/very/long/name\n      500000  0  1000000  -  10  0  0  -"
    program(tmp_path / "tools", "lfs", f"""[ "$1 $2 $3" = 'quota -q -u' ] && printf '{line}'""")
    _, found = examine(python, path=str(tmp_path / "tools"))
    assert about(found, "quota of ")["what"].endswith("0.5 of 1.0 GB are used")


@pytest.mark.parametrize(
    "body", ["exit 1", "echo 'Disk quotas for user you (uid 1000): none'", QUOTA.format(5, 0, 5, 0)]
)
def test_of_no_quota_nothing_is_said(python: Launcher, tmp_path: Path, body: str) -> None:
    program(tmp_path / "tools", "quota", body)
    _, found = examine(python, path=str(tmp_path / "tools"))
    assert not any("quota of " in each["what"] for each in found)
