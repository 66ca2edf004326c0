"""Whether MPI and launcher, Slurm, the cache's file system and the hosts fit together; and what to do if not."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ezpyp.errors import EzpypError, LauncherError
from ezpyp.schedule import placement
from ezpyp.schedule.placement import Place
from ezpyp.system import files, gpus, launch
from ezpyp.system.resources import Stock, environments

#: Of packages whose versions have to be equal on all hosts.
PACKAGES = ("ezpyp", "mpi4py", "cloudpickle", "numpy")
#: Seconds that ranks may take to come together.
_PATIENCE = 120
#: What is written where a file system is tried, and how often.
_TRIAL, _TIMES = ".ezpyp-doctor", 20
#: Seconds for a small file, from which a file system is slow for a file a step.
_SLOW = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    level: Literal["good", "doubtful", "bad"]
    what: str
    #: What to do; "" where all is well.
    remedy: str = ""


def examine(folder: str, ranks: int | None, launcher: Sequence[str]) -> Iterator[Finding]:
    """Look at this host, at a folder, which need not be there yet, and at so many ranks. Nothing is left behind."""
    yield _mpi()
    yield from _slurm()
    there = folder
    while not os.path.isdir(there):
        there = os.path.dirname(there)
    yield from _file_system(there)
    if ranks:
        yield from _ranks(ranks, launcher, there)


def _mpi() -> Finding:
    try:
        make = launch.mpi_library()
        return Finding(level="good", what=f"MPI: {launch.TITLES.get(make, 'unknown')}, {launch.find_mpirun(make)}")
    except LauncherError as error:
        what, _, remedy = str(error).partition(". ")
        return Finding(level="bad", what=f"MPI: {what}.", remedy=remedy.removesuffix(" Nothing was run."))


def _slurm() -> Iterator[Finding]:
    if not shutil.which("sbatch"):
        yield Finding(level="good", what="Slurm: none here")
        return
    code, text = _output(["sinfo", "-h", "-o", "%P %a %D nodes"])
    if code:
        said = text.strip().splitlines()[-1] if text.strip() else "no answer"
        yield Finding(
            level="bad", what=f"Slurm does not answer: {said}", remedy="Try again, or ask those who run the cluster."
        )
        return
    yield Finding(level="good", what=f"Slurm: {'; '.join(line.strip() for line in text.splitlines()[:5])}")


def _file_system(folder: str) -> Iterator[Finding]:
    trial = os.path.join(folder, f"{_TRIAL}-{os.getpid()}")
    try:
        os.mkdir(trial)
    except OSError as error:
        yield Finding(
            level="bad", what=f"{folder} cannot be written: {error.strerror}.", remedy="Choose another folder."
        )
        return
    try:
        yield from _trials(trial)
        yield from _room(folder)
        yield from _quota(folder)
    finally:
        shutil.rmtree(trial, ignore_errors=True)


def _trials(folder: str) -> Iterator[Finding]:
    for what, trial in (("rename", _rename), ("exclusive creation", _exclusive)):
        try:
            trial(folder)
        except OSError as error:
            yield Finding(
                level="bad",
                what=f"{what} does not work in {os.path.dirname(folder)}: {error}.",
                remedy="Results would not be safe there. Choose a folder on another file system.",
            )
    seconds = []
    for k in range(_TIMES):
        began = time.perf_counter()
        files.write_whole(f"{folder}/{k}", [b"x" * 4096], sync=True)
        seconds.append(time.perf_counter() - began)
    typical = statistics.median(seconds)
    yield Finding(
        level="doubtful" if typical > _SLOW else "good",
        what=f"a small file takes {typical * 1e3:.1f} ms to be safe in {os.path.dirname(folder)}",
        remedy="Slow for a file a step: let steps take longer, or use Pipeline(store='packed')."
        if typical > _SLOW
        else "",
    )


def _rename(folder: str) -> None:
    for text in (b"old", b"new"):
        files.write_whole(f"{folder}/renamed", [text])
    with open(f"{folder}/renamed", "rb") as file:
        if file.read() != b"new":
            raise OSError("a file that was replaced has its former content")


def _exclusive(folder: str) -> None:
    def make() -> None:
        os.close(os.open(f"{folder}/exclusive", os.O_CREAT | os.O_EXCL | os.O_WRONLY))

    make()
    try:
        make()
    except FileExistsError:
        return
    raise OSError("a file was made that was there already")


def _room(folder: str) -> Iterator[Finding]:
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    # Some file systems have no fixed number of inodes, and say 0.
    inodes = status.f_favail if status.f_files else None
    text = f"{free / 1e9:,.1f} GB" + ("" if inodes is None else f" and {inodes:,} files")
    scarce = free < 1e9 or (inodes is not None and inodes < 10_000)
    yield Finding(
        level="doubtful" if scarce else "good",
        what=f"room for {text} in {folder}",
        remedy="Free some, or choose another folder (quotas may be less than this)." if scarce else "",
    )


def _quota(folder: str) -> Iterator[Finding]:
    """What this user may still write there, where quotas are set and told of."""
    user = getpass.getuser()
    for question in (["lfs", "quota", "-q", "-u", user, folder], ["quota", "-w", "-p", "-f", folder]):
        code, text = _output(question, patience=10) if shutil.which(question[0]) else (1, "")
        if not code and (found := _limits(text)):
            break
    else:
        return
    (kilobytes, most), (files_, most_files) = found
    parts = [f"{kilobytes / 1e6:,.1f} of {most / 1e6:,.1f} GB"] if most else []
    parts += [f"{files_:,} of {most_files:,} files"] if most_files else []
    scarce = (most and kilobytes > 0.9 * most) or (most_files and files_ > min(0.9 * most_files, most_files - 10_000))
    yield Finding(
        level="doubtful" if scarce else "good",
        what=f"quota of {user}: {' and '.join(parts)} are used",
        remedy="Free some, ask for more, or choose another folder. Pipeline(store='packed') needs few files."
        if scarce
        else "",
    )


def _limits(text: str) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Kilobytes and files, each with how many may be used, 0 for no limit. None where there is none of either.

    The last words of `lfs quota -q` and `quota -p`: for both used, quota, limit and grace; a star where it is exceeded.
    """
    words = [word.rstrip("*") for word in text.split()][-8:]
    numbers = [int(word) if word.isdecimal() else 0 for word in words]
    if len(words) < 8 or not all(words[k].isdecimal() for k in (0, 1, 2, 4, 5, 6)):
        return None
    found = (numbers[0], numbers[1] or numbers[2]), (numbers[4], numbers[5] or numbers[6])
    return found if found[0][1] or found[1][1] else None


def _ranks(ranks: int, launcher: Sequence[str], folder: str) -> Iterator[Finding]:
    """Start ranks, and compare what they say."""
    token = os.path.join(folder, f"{_TRIAL}-{os.getpid()}-{time.time_ns():x}")
    try:
        files.write_whole(token, [b"x"], sync=True)
        answer = _called(ranks, launcher, token)
    except EzpypError as error:
        yield Finding(level="bad", what=str(error), remedy="See above.")
        return
    finally:
        if os.path.exists(token):
            os.unlink(token)
    if isinstance(answer, str):
        what, sign, remedy = answer.partition(" Use: ")
        yield Finding(
            level="bad", what=what, remedy=f"Use: {remedy}" if sign else "Try the launcher with a program of one line."
        )
        return
    hosts = list(dict.fromkeys(each["host"] for each in answer))
    yield Finding(
        level="good" if len(answer) == ranks else "bad",
        what=f"{len(answer)} ranks see each other, on {', '.join(hosts[:8])}{' …' * (len(hosts) > 8)}",
        remedy="" if len(answer) == ranks else f"{ranks} were asked for. Give the launcher the number of ranks.",
    )
    blind = [each["host"] for each in answer if not each["sees"]]
    yield Finding(
        level="bad" if blind else "good",
        what=f"{folder} is {'not seen by ' + ', '.join(dict.fromkeys(blind)) if blind else 'seen by all'}",
        remedy="Put the cache on a file system that all hosts share." if blind else "",
    )
    yield from compare(answer)
    yield from gpus_each(answer)


def gpus_each(answer: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    """How many GPUs each rank would have; nothing where there are none."""
    places = [
        Place(
            rank=rank,
            host=each["host"],
            slots=1,
            stock=Stock(gpus=tuple(each["gpus"]), own_gpus=each["own_gpus"]),
        )
        for rank, each in enumerate(answer)
    ]
    own = placement.shares(places)
    if not any(own.values()):
        return
    by_host: dict[str, list[int]] = {}
    for place in places:
        by_host.setdefault(place.host, []).append(len(own[place.rank]))
    by_counts: dict[tuple[int, ...], list[str]] = {}
    for host, each in by_host.items():
        by_counts.setdefault(tuple(each), []).append(host)
    told = "; ".join(f"{', '.join(map(str, counts))} on {', '.join(on)}" for counts, on in by_counts.items())
    remedy = ""
    if not all(map(any, by_host.values())):
        remedy = "Some hosts have none: ask the scheduler for as many on each (--gpus-per-node), or for fewer nodes."
    elif len({count for each in by_host.values() for count in each}) > 1:
        remedy = "Start as many ranks on each host as divide its GPUs."
    yield Finding(level="doubtful" if remedy else "good", what=f"GPUs of each rank: {told}", remedy=remedy)
    for text in placement.crowded(places):
        what, _, remedy = text.partition(". ")
        yield Finding(level="doubtful", what=what, remedy=remedy)


def compare(answer: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    """Whether all hosts have the same packages."""
    for name in ("python", *PACKAGES):
        found: dict[str, list[str]] = {}
        for each in answer:
            found.setdefault(str(each["versions"][name]), []).append(each["host"])
        if len(found) > 1:
            told = "; ".join(f"{version} on {', '.join(dict.fromkeys(on))}" for version, on in found.items())
            yield Finding(level="bad", what=f"{name} is {told}", remedy="Use one environment on all hosts.")
    if all(each["versions"] == answer[0]["versions"] for each in answer):
        told = ", ".join(f"{name} {version}" for name, version in answer[0]["versions"].items())
        yield Finding(level="good", what=f"all have {told}")


def gpu_bindings(ranks: int, helpers: int) -> dict[str, Any]:
    """The GPUs that this process may use, and how so many ranks of its node with so many helpers would divide them:
    what the variable would be for each, None where it would be left as it is.
    """
    have, host = gpus.devices(), os.uname().nodename
    stock = Stock(gpus=have, own_gpus=gpus.bound_by_slurm(have))
    places = [Place(rank=rank, host=host, slots=helpers, stock=stock) for rank in range(ranks)]
    name, own = gpus.variable(), placement.shares(places)
    bound = [environments(own[rank], have=have, helpers=helpers, cores=1) for rank in range(ranks)]
    return {
        "gpus": have,
        "variable": name,
        "left_alone": gpus.left_alone(),
        "ranks": [[each.get(name) for each in rank] for rank in bound],
        "warnings": placement.crowded(places) if not gpus.left_alone() else [],
    }


def _called(ranks: int, launcher: Sequence[str], token: str) -> list[dict[str, Any]] | str:
    """What each rank says, or why none did."""
    program = ("-P", "-m", "ezpyp.cluster.rollcall", token)
    if launcher:
        argv: Sequence[str] = [*launcher, "-n", str(ranks), sys.executable, *program]
        environ = dict(os.environ)
    else:
        make = launch.mpi_library()
        mpirun = launch.find_mpirun(make)
        told = launch.command(program[0], program[1:], ranks=ranks, make=make, mpirun=mpirun)
        argv, environ = told.argv, dict(told.environ)
    code, text = _output(argv, environ)
    lines = text.splitlines()
    answers = (line for line in lines if line.startswith('[{"rollcall"'))
    if line := next(answers, ""):
        found: list[dict[str, Any]] = json.loads(line)
        return found
    errors = (line.partition("Error: ")[2] for line in lines if line.startswith("ezpyp: "))
    said = next(errors, "") or (lines[-1] if lines else "nothing was said")
    return said if "Use: " in said else f"{argv[0]} with {ranks} ranks ended with {code}: {said}"


def _output(argv: Sequence[str], environ: dict[str, str] | None = None, patience: int = _PATIENCE) -> tuple[int, str]:
    import subprocess

    try:
        done = subprocess.run(
            ["timeout", "-k", "5", str(patience), *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environ,
            check=False,
        )
    except OSError as error:
        return 1, str(error)
    return done.returncode, done.stdout.decode(errors="replace")


def here(token: str, installed: Callable[[str], str]) -> dict[str, Any]:
    """What a rank says of itself."""

    def version(package: str) -> str:
        try:
            return installed(package)
        except Exception:
            return "not installed"

    from ezpyp import __version__

    versions = {"python": sys.version.split()[0], **{name: version(name) for name in PACKAGES}, "ezpyp": __version__}
    have = gpus.devices()
    return {
        "rollcall": 1,
        "host": os.uname().nodename,
        "sees": os.path.exists(token),
        "versions": versions,
        "gpus": have,
        "own_gpus": gpus.bound_by_slurm(have),
    }
