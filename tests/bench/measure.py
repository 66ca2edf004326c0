"""Run contestants as real processes, in turn, and take down what each cost."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.surroundings import CHECKOUT, OPEN_MPI

SCRIPTS = Path(__file__).resolve().parent / "scripts"
#: Seconds after which a contestant is ended and left out.
PATIENCE = 900


class WrongError(Exception):
    """A contestant failed, or did not compute what it had to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One run of one contestant."""

    #: What the script timed; the whole process, its start and end included.
    seconds: float
    wall: float
    #: Processor seconds of the process and all that it waited for; bytes of the largest of them.
    busy: float
    peak: int
    #: What else the script told.
    facts: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """Somebody who does a workload.

    Attributes:
        kind: "ezpyp"; "floor"; "durable": a peer whose results are on disk; "volatile": a peer whose results are not.
        how: how it is driven, for the table.
        command: the arguments after the interpreter or mpirun; `{folder}` is a folder of its own.
        ranks: 0 for the interpreter alone.
        n: how many steps; divides what is measured.
        needs: the module that must be installed.
        prepare: run once in the same folder, unmeasured, before the measured runs, which then share the folder.
        answer: what it must tell.
    """

    name: str
    kind: str
    how: str
    command: Sequence[str]
    answer: Any
    ranks: int = 0
    n: int = 1
    needs: str = ""
    prepare: Sequence[str] = ()
    environment: dict[str, str] = field(default_factory=dict)


def environment(extra: dict[str, str]) -> dict[str, str]:
    """This process's environment without settings for ezpyp: one thread for libraries, wherever steps run."""
    mine = {k: v for k, v in os.environ.items() if not k.startswith(("EZPYP_", "PYTHON"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{mine.get('PATH', os.defpath)}"
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    return {**mine, **OPEN_MPI, **threads, "PATH": path, "PYTHONPATH": str(CHECKOUT), **extra}


def start_of(ranks: int) -> list[str]:
    """How a script is started on so many ranks."""
    mpirun = Path(sys.executable).parent / "mpirun"
    launch = [str(mpirun) if mpirun.exists() else "mpirun", "-n", str(ranks)] if ranks else []
    return [*launch, sys.executable]


def run(contestant: Contestant, folder: str, *, prepare: bool = False) -> Sample:
    """Run it to its end in this folder, and see that it computed what it had to.

    Raises:
        WrongError: it did not.
    """
    parts = contestant.prepare if prepare else contestant.command
    command = [*start_of(contestant.ranks), *(part.format(folder=folder) for part in parts)]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        began = time.perf_counter()
        process = subprocess.Popen(
            ["timeout", "-k", "5", str(PATIENCE), *command],
            stdout=out,
            stderr=err,
            stdin=subprocess.DEVNULL,
            cwd=folder,
            env=environment(contestant.environment),
        )
        try:
            _, status, used = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()  # `timeout` ends all that it started
            raise
        wall = time.perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        printed = _content(out)
        told = [line for line in printed.splitlines() if "BENCH {" in line]
        if process.returncode or len(told) != 1:
            raise WrongError(
                f"{contestant.name}: exit code {process.returncode}, {len(told)} reports\n"
                f"{printed[-500:]}\n{_content(err)[-1000:]}"
            )
    report = json.loads(told[0][told[0].index("{") :])
    if not _equal(report["answer"], contestant.answer):
        raise WrongError(f"{contestant.name}: computed {report['answer']!r}, not {contestant.answer!r}")
    facts = {key: value for key, value in report.items() if key not in ("seconds", "answer")}
    return Sample(
        seconds=report["seconds"],
        wall=wall,
        busy=used.ru_utime + used.ru_stime,
        peak=used.ru_maxrss * 1024,
        facts=facts,
    )


def _content(file: Any) -> str:
    file.seek(0)
    return bytes(file.read()).decode(errors="replace")


def _equal(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(_equal, found, wanted))
    return isinstance(found, (int, float)) and math.isclose(found, wanted, rel_tol=1e-4)


def in_turn(
    contestants: Sequence[Contestant], rounds: int, tell: Callable[[str], None]
) -> tuple[dict[str, list[Sample]], dict[str, str]]:
    """Samples of each contestant, A B A B …, so that a machine that slows down does so for all; and who failed, why."""
    samples: dict[str, list[Sample]] = {each.name: [] for each in contestants}
    failed: dict[str, str] = {}
    with _folders(contestants) as lasting:
        for each in contestants:
            if each.prepare:
                tell(f"{each.name}: preparing")
                _try(failed, each, lambda c: run(c, lasting[c.name], prepare=True))
        for number in range(rounds):
            for each in contestants:
                if each.name in failed:
                    continue
                tell(f"{each.name}: round {number + 1} of {rounds}")
                sample = _try(failed, each, lambda c: _measured(c, lasting))
                if sample is not None:
                    samples[each.name].append(sample)
    return {name: each for name, each in samples.items() if each and name not in failed}, failed


def _measured(contestant: Contestant, lasting: dict[str, str]) -> Sample:
    if contestant.prepare:
        return run(contestant, lasting[contestant.name])
    with tempfile.TemporaryDirectory(prefix="ezpyp-bench-", ignore_cleanup_errors=True) as folder:
        return run(contestant, folder)


def _try(failed: dict[str, str], contestant: Contestant, work: Callable[[Contestant], Sample]) -> Sample | None:
    try:
        return work(contestant)
    except WrongError as error:
        failed[contestant.name] = str(error)
        return None


@contextlib.contextmanager
def _folders(contestants: Sequence[Contestant]) -> Iterator[dict[str, str]]:
    """A folder for each contestant that is prepared once."""
    made = {each.name: tempfile.mkdtemp(prefix="ezpyp-bench-") for each in contestants if each.prepare}
    try:
        yield made
    finally:
        for folder in made.values():
            shutil.rmtree(folder, ignore_errors=True)


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def installed(names: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Which of these modules are installed, with their versions ("" for those that are not)."""
    from importlib import metadata

    for name in names:
        try:
            yield name, metadata.version({"dask": "distributed"}.get(name, name))
        except metadata.PackageNotFoundError:
            yield name, ""
