"""How tests start programs: `mpirun` gives every MPI at hand in turn, `python` the interpreter alone.

    def test_ranks(mpirun: Launcher) -> None:
        done = mpirun.run(2, "print('hello')")

Everything runs in the test's own folder. An MPI is a virtual environment with `bin/mpirun` and `bin/python`:
the one that runs pytest, and those that EZPYP_TEST_MPIS names (folders, separated by colons). Ranks write to
one pipe without agreement: where several print, look for what was printed, not for whole lines.
"""

from __future__ import annotations

import math
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import surroundings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

CHECKOUT, OPEN_MPI = surroundings.CHECKOUT, surroundings.OPEN_MPI


#: What the launcher of Open MPI (5.0) says when it gives up before it has started anything: in one start of some
#: hundreds, whatever it was to start (lfortran/lfortran#8610).
GAVE_UP = "The PMIx server's listener thread failed to start"


def completed(command: Sequence[str], *, cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """A program run to its end; once more where its launcher could not."""
    for _ in range(2):
        done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
        if GAVE_UP not in done.stderr:
            break
    return done


@dataclass(frozen=True, kw_only=True)
class Launcher:
    """Starts Python programs with this checkout's ezpyp, alone (0 ranks) or under one MPI's mpirun."""

    name: str
    #: The folder that holds `python` and, for an MPI, `mpirun`.
    bin: Path
    #: Where programs run, and where code given as text becomes `script.py`.
    folder: Path

    def run(
        self,
        ranks: int,
        program: str | Path,
        *args: str,
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        timeout: float = 60,
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end, return what was printed. A program that takes longer is killed, and the test fails.

        Args:
            ranks: 0 for the bare interpreter.
            program: a path, or the text of a script.
        """
        began = time.monotonic()
        command = ["timeout", "-k", "5", str(timeout), *self.command(ranks, program, *args)]
        done = completed(command, cwd=cwd or self.folder, env=self.environment(env))
        if time.monotonic() - began >= timeout:
            pytest.fail(f"{self.name}, {ranks} ranks: not done after {timeout} s\n{done.stdout}\n{done.stderr}")
        return done

    def start(
        self, ranks: int, program: str | Path, *args: str, env: dict[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Run in the background, for tests that send signals; standard error goes to standard output."""
        return subprocess.Popen(
            self.command(ranks, program, *args),
            cwd=self.folder,
            env=self.environment(env),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def command(self, ranks: int, program: str | Path, *args: str) -> list[str]:
        """The argument list that runs the program."""
        launch = [str(self.bin / "mpirun"), "-n", str(ranks)] if ranks else []
        return [*launch, str(self.bin / "python"), str(self._script(program)), *args]

    def environment(self, extra: dict[str, str] | None = None) -> dict[str, str]:
        """This process's environment without its settings for ezpyp and Python: compiled modules are kept, and a line
        that is printed is written at once."""
        mine = {k: v for k, v in os.environ.items() if not k.startswith(("EZPYP_", "PYTHON"))}
        path = f"{self.bin}{os.pathsep}{mine.get('PATH', os.defpath)}"
        return {**mine, **OPEN_MPI, "PATH": path, "PYTHONPATH": str(CHECKOUT), **(extra or {})}

    def _script(self, program: str | Path) -> Path:
        if isinstance(program, Path):
            return program
        script = self.folder / "script.py"
        script.write_text(program, encoding="utf-8")
        return script


def environments() -> Iterator[Path]:
    """The `bin` folders of every MPI at hand."""
    named = os.environ.get("EZPYP_TEST_MPIS", "").split(os.pathsep)
    for folder in [Path(sys.executable).parent, *((CHECKOUT / name / "bin") for name in named if name)]:
        if (folder / "mpirun").exists():
            yield folder


def mpi_name(folder: Path) -> str:
    """Which MPI a `bin` folder holds."""
    return "openmpi" if (folder / "ompi_info").exists() else "mpich"


MPIS = [pytest.param(folder, id=mpi_name(folder), marks=pytest.mark.mpi) for folder in environments()]


@pytest.fixture(params=MPIS or [pytest.param(None, id="none", marks=pytest.mark.mpi)])
def mpirun(request: pytest.FixtureRequest, tmp_path: Path) -> Launcher:
    """Each MPI in turn. Without any, the test is skipped, or fails where CI=true."""
    folder: Path | None = request.param
    if folder is None:
        refuse = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        refuse("no mpirun: pip install 'ezpyp[mpich]'")
    return Launcher(name=mpi_name(folder), bin=folder, folder=tmp_path)


@pytest.fixture
def python(tmp_path: Path) -> Launcher:
    """The interpreter alone: `python.run(0, ...)`."""
    return interpreter(tmp_path)


def interpreter(folder: Path) -> Launcher:
    """Starts programs in this folder, without MPI."""
    return Launcher(name="python", bin=Path(sys.executable).parent, folder=folder)


def least_cost(work: Callable[[], object], limit: float, *, patience: float = 40.0) -> float:
    """Processor seconds of the programs that `work` runs: the least of several times.

    Other work on the machine, and of the machine on its host, only adds. So it is measured again, at least three times,
    until the least is below the limit or patience has run out.
    """
    least, times, until = math.inf, 0, time.monotonic() + patience
    while times < 3 or (least >= limit and time.monotonic() < until):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        work()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        least = min(least, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        times += 1
    return least
