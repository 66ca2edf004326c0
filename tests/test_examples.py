"""Every example runs: alone, on 2 and on 4 ranks, and says the same."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import CHECKOUT, interpreter

if TYPE_CHECKING:
    from tests.conftest import Launcher

EXAMPLES = CHECKOUT / "examples"
SIMPLE = EXAMPLES / "simple" / "simple_pipeline.py"
BEAM = EXAMPLES / "stages" / "beam.py"
DIGITS = EXAMPLES / "digits" / "digits.py"
HEAT = EXAMPLES / "heat"
SWEEP = EXAMPLES / "gpu" / "sweep.py"

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


# ----- a sweep for GPUs, which does without


def run_sweep(launcher: Launcher, ranks: int, **env: str) -> str:
    """Its table, without what it ran on."""
    done = launcher.run(ranks, SWEEP, env={"EPOCHS": "20", **env})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Best of 24 by" in done.stdout
    assert done.stderr == ""
    lines = (launcher.folder / "sweep.csv").read_text().splitlines()
    return "\n".join(line.rpartition(",")[0] for line in lines)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The table of the sweep without MPI."""
    table = run_sweep(interpreter(tmp_path_factory.mktemp("sweep")), 0)
    right = [int(line.split(",")[3]) for line in table.splitlines()[1:]]
    assert len(right) == 24
    assert max(right) > 330
    return table


def test_sweep_on_ranks(mpirun: Launcher, sweep: str) -> None:
    assert run_sweep(mpirun, 2) == sweep


def test_sweep_by_new_interpreters(python: Launcher, sweep: str) -> None:
    assert run_sweep(python, 0, EZPYP_START="fresh", EZPYP_WORKERS="2") == sweep


# ----- heat: a program in C


def copied(folder: Path, steps: int = 3000) -> Path:
    """The example where its source can be edited."""
    script = folder / "heat.py"
    text = (HEAT / "heat.py").read_text(encoding="utf-8")
    script.write_text(text.replace("64, 3000", f"64, {steps}"), encoding="utf-8")
    shutil.copy(HEAT / "heat.c", folder)
    return script


def run_heat(launcher: Launcher, ranks: int, script: Path, **env: str) -> tuple[str, int]:
    """What it concludes, and how many steps ran."""
    scratch = launcher.folder / "scratch"
    scratch.mkdir(exist_ok=True)
    done = launcher.run(ranks, script, timeout=100, env={"SLURM_TMPDIR": str(scratch), **env})
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(scratch.iterdir()) == []
    (conclusion,) = {line for line in done.stdout.splitlines() if line.startswith("Half of the heat")}
    return conclusion, done.stdout.count("[PASS]")


@pytest.fixture(scope="module")
def heat(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The figure that the heat example draws without MPI."""
    folder = tmp_path_factory.mktemp("heat")
    conclusion, ran = run_heat(interpreter(folder), 0, HEAT / "heat.py")
    assert conclusion == "Half of the heat is gone after 742 steps in simulate[11] conductivity=0.2 spot=0.8."
    assert ran == 26
    return (folder / "heat.png").read_bytes()


def test_heat_on_ranks(mpirun: Launcher, heat: bytes) -> None:
    assert run_heat(mpirun, 2, HEAT / "heat.py")[1] == 26
    assert (mpirun.folder / "heat.png").read_bytes() == heat


def test_heat_runs_again_when_its_source_is_edited_and_not_when_it_is_touched(python: Launcher) -> None:
    script = copied(python.folder)
    source = python.folder / "heat.c"
    first, _ = run_heat(python, 0, script)
    os.utime(source, (1, 1))
    assert run_heat(python, 0, script) == (first, 0)
    source.write_text(source.read_text().replace("conductivity * (at", "0.5 * conductivity * (at"))
    again, ran = run_heat(python, 0, script, EZPYP_ON_CHANGE="rerun")
    assert ran == 26
    assert again.startswith("Half of the heat is gone after 1486 steps"), again


def test_heat_goes_on_after_a_signal_to_mpirun(mpirun: Launcher) -> None:
    script = copied(mpirun.folder, steps=50_000)
    run = mpirun.start(2, script)
    fields = mpirun.folder / "heat_cache" / "files"
    until = time.monotonic() + 60
    while not list(fields.glob("simulate*")) and time.monotonic() < until and run.poll() is None:
        time.sleep(0.01)
    run.send_signal(signal.SIGUSR1)
    output, _ = run.communicate(timeout=60)
    assert run.returncode == 85, output
    assert "[FAIL]" not in output
    assert programs_in(mpirun.folder) == []
    before = output.count("[PASS]")
    assert 2 <= before < 26, output
    conclusion, ran = run_heat(mpirun, 2, script)
    assert before + ran == 26, conclusion


def programs_in(folder: Path) -> list[str]:
    """The programs at work whose files are in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*/exe"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(process))
    return [each for each in found if each.startswith(f"{folder}/")]
