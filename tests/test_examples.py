"""Every example runs: alone, on 2 and on 4 ranks, and says the same."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.conftest import CHECKOUT, interpreter

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Launcher

EXAMPLES = CHECKOUT / "examples"
SIMPLE = EXAMPLES / "simple" / "simple_pipeline.py"
BEAM = EXAMPLES / "stages" / "beam.py"
DIGITS = EXAMPLES / "digits" / "digits.py"

#: The first roots of cos(x) cosh(x) = -1, as every textbook on vibration has them.
ROOTS = ("1.875104069", "4.694091133", "7.854757438", "10.995540735")


def run(launcher: Launcher, ranks: int, script: Path, timeout: float = 60) -> str:
    done = launcher.run(ranks, script, timeout=timeout)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_simple(launcher: Launcher, ranks: int) -> None:
    output = run(launcher, ranks, SIMPLE)
    for phase, name in [(0, "alpha"), (0, "beta"), (1, "gamma")]:
        line = f"[Running component of phase {phase:02}] [Executing Pickle Step Object '{name}']\n"
        assert f"{line}  ╰─> [PASS] '{name}'\n" in output
    assert output.count("Pipeline result for gamma: 1.125") == max(1, ranks)


def check_beam(launcher: Launcher, ranks: int) -> None:
    output = run(launcher, ranks, BEAM)
    assert output.count("19 frequencies below x = 60") == 1
    for mode, root in enumerate(ROOTS, 1):
        assert f"mode {mode}: x = {root}" in output


def run_digits(launcher: Launcher, ranks: int) -> dict[str, bytes]:
    """The files of the report."""
    run(launcher, ranks, DIGITS, timeout=110)
    report = launcher.folder / "digits_report"
    return {path.name: path.read_bytes() for path in report.iterdir()}


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """Where the digits example ran without MPI, and its report."""
    folder = tmp_path_factory.mktemp("digits")
    return folder, run_digits(interpreter(folder), 0)


def test_simple_alone(python: Launcher) -> None:
    check_simple(python, 0)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_simple_on_ranks(mpirun: Launcher, ranks: int) -> None:
    check_simple(mpirun, ranks)


def test_simple_again_runs_nothing(python: Launcher) -> None:
    run(python, 0, SIMPLE)
    output = run(python, 0, SIMPLE)
    assert "Executing" not in output
    assert "Pipeline result for gamma: 1.125" in output


def test_stages_alone(python: Launcher) -> None:
    check_beam(python, 0)


@pytest.mark.parametrize("ranks", [2, 4])
def test_stages_on_ranks(mpirun: Launcher, ranks: int) -> None:
    check_beam(mpirun, ranks)


def test_digits_report(digits: tuple[Path, dict[str, bytes]]) -> None:
    _, files = digits
    assert set(files) == {"confusion.png", "misread.png", "report.md"}
    report = files["report.md"].decode()
    assert "The best of 69 settings is **support vectors** (C 3, gamma 0.3)" in report
    for kind in ("neighbours", "support vectors", "random forest", "logistic regression"):
        assert f"| {kind} |" in report
    for picture in ("confusion.png", "misread.png"):
        assert f"]({picture})" in report
        assert files[picture].startswith(b"\x89PNG")


def test_digits_summary(digits: tuple[Path, dict[str, bytes]]) -> None:
    folder, _ = digits
    lines = (folder / "digits_cache" / "pipeline.summary").read_text(encoding="utf-8").splitlines()
    rows = lines[lines.index("") + 2 :]
    assert len([row for row in rows if row.strip()]) == 75


@pytest.mark.parametrize("ranks", [2, 4])
def test_digits_on_ranks(mpirun: Launcher, ranks: int, digits: tuple[Path, dict[str, bytes]]) -> None:
    assert run_digits(mpirun, ranks) == digits[1]


@pytest.mark.parametrize("name", ["one_node", "many_nodes"])
def test_slurm_script(mpirun: Launcher, name: str) -> None:
    """What Slurm would run: the batch script in a shell, with the variables it sets."""
    script = CHECKOUT / "slurm" / f"{name}.sbatch"
    job = {"SLURM_NTASKS": "2", "STUDY_ENV": str(mpirun.bin.parent)}
    done = subprocess.run(
        ["timeout", "-k", "5", "60", "bash", str(script), str(SIMPLE)],
        cwd=mpirun.folder,
        env=mpirun.environment(job),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Pipeline result for gamma: 1.125") == 2
