"""Find the mpirun that belongs to mpi4py's library, and drive it: what `ezpyp run` does."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from functools import cache
from typing import TYPE_CHECKING

from ezpyp.errors import LauncherError
from ezpyp.tuples import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, MutableMapping, Sequence
    from subprocess import Popen
    from types import FrameType

#: The file into which rank 0 writes what came of each execute(), for `ezpyp run`.
OUTCOME = "EZPYP_OUTCOME"

#: The exit code of a run that was aborted; and what stands for that of one that began and told no end.
ABORTED, UNFINISHED = 4, -1

#: What the makes of MPI call themselves, in the library's version text and in `mpirun --version`. Those that share
#: MPICH's binary interface and its process manager count as MPICH.
_LIBRARIES = {"Open MPI": "openmpi", "MPICH": "mpich", "MVAPICH": "mpich", "Intel(R) MPI": "mpich"}
_LAUNCHERS = {
    "Open MPI": "openmpi",
    "PRRTE": "openmpi",
    "prterun": "openmpi",
    "HYDRA": "mpich",
    "Intel(R) MPI": "mpich",
}
#: What `srun --mpi` has to be for programs of a make.
PROTOCOLS = {"openmpi": "pmix", "mpich": "pmi2"}
TITLES = {"openmpi": "Open MPI", "mpich": "MPICH"}

#: Asks without initialising MPI, which may be done only once and by a rank.
_ASK = "import mpi4py; mpi4py.rc.initialize = False; from mpi4py import MPI; print(MPI.Get_library_version())"

_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class Command(NamedTuple):
    """What is to be started."""

    argv: tuple[str, ...]
    environ: Mapping[str, str]


def mpi_library(python: str = sys.executable) -> str:
    """The make of the library that mpi4py loads: "mpich", "openmpi", or "" for another.

    Raises:
        LauncherError: mpi4py or its library cannot be loaded.
    """
    code, text = _ask([python, "-c", _ASK])
    if code:
        reason = text.strip().splitlines()[-1] if text.strip() else f"exit code {code}"
        raise LauncherError(
            f"mpi4py cannot load an MPI library ({reason}). Load the site's MPI module, or pip install 'ezpyp[mpich]'. "
            "Without -n the script runs without MPI."
        )
    return _make_of(text, _LIBRARIES)


def find_mpirun(make: str) -> str:
    """The path of an mpirun of this make: beside Python first, then on PATH.

    Raises:
        LauncherError: there is none; the text says which others were found.
    """
    others = []
    for path in _candidates([os.path.dirname(sys.executable), *os.environ.get("PATH", os.defpath).split(os.pathsep)]):
        found = _make_of_launcher(path)
        if found == make:
            return path
        others.append(f"{path} is of {TITLES.get(found, 'an unknown make')}")
    title = TITLES.get(make, "a make that ezpyp does not know")
    raise LauncherError(
        f"mpi4py uses {title}, and no mpirun of it was found ({'; '.join(others) or 'there is none at all'}). "
        f"Load the site's module for it, or pip install 'ezpyp[{make or 'mpich'}]'. Nothing was run."
    )


def command(
    script: str,
    args: Sequence[str] = (),
    *,
    ranks: int,
    make: str,
    mpirun: str,
    all_output: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> Command:
    """How a script is started on so many ranks. Settings of the user's or the site's are left as they are."""
    env = {**environ, **({"EZPYP_ALL_OUTPUT": "1"} if all_output else {})}
    options = ["-n", str(ranks)]
    if make == "openmpi":
        if os.geteuid() == 0:
            env = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", **env}
        # An allocation knows its slots; a single machine counts its cores.
        if "SLURM_JOB_ID" not in env and ranks > len(os.sched_getaffinity(0)):
            options.append("--oversubscribe")
        for name in sorted(name for name in env if name.startswith("EZPYP_")):
            options += ["-x", name]
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    first = os.path.join(package, "ranks", "rank.py")
    python = [sys.executable, "-I", "-S", first, *python_flags(sys.orig_argv), script]
    return Command(argv=(mpirun, *options, *python, *args), environ=env)


def ranks_of(argv: Sequence[str], *, ranks: int, nodes: int = 1, environ: MutableMapping[str, str]) -> list[str]:
    """How a step starts a program on so many ranks: on one node, where they share the cores of this process, or on
    several nodes of the Slurm job. Takes from the environment what would lead the launcher elsewhere.

    Raises:
        LauncherError: there is nothing to start it with.
    """
    if nodes > 1:
        return [*_srun(ranks, nodes, environ), *argv]
    mpirun, make = mpirun_at_hand(environ.get("PATH", os.defpath))
    for name in [name for name in environ if name.startswith("SLURM_")]:
        del environ[name]  # or it would count the cores of the whole job, and ask Slurm for its own
    options = ["-n", str(ranks)]
    if make == "openmpi":
        if os.geteuid() == 0:
            environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT", "1")
            environ.setdefault("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        # Else it binds ranks to cores of its own choice; those of this process are the step's.
        options += ["--bind-to", "none", "--oversubscribe"]
    return [mpirun, *options, *argv]


def check_ranks(ranks: int, nodes: int, environ: Mapping[str, str]) -> None:
    """See whether a step could start a program on so many ranks.

    Raises:
        LauncherError: it could not; the text says what could be had.
    """
    if nodes > 1:
        _srun(ranks, nodes, environ)
    else:
        mpirun_at_hand(environ.get("PATH", os.defpath))


def mpirun_at_hand(search: str) -> tuple[str, str]:
    """The first mpirun of a known make, and the make: on this PATH where it leads to one, else beside Python.

    Raises:
        LauncherError: there is none.
    """
    for path in _candidates([*search.split(os.pathsep), os.path.dirname(sys.executable)]):
        if make := _make_of_launcher(path):
            return path, make
    raise LauncherError(
        "mpi= needs an mpirun, and there is none on the PATH of the step nor beside Python. Load the site's MPI with "
        "setup=, or pip install 'ezpyp[mpich]'. Without mpi= the program runs as one process."
    )


def _srun(ranks: int, nodes: int, environ: Mapping[str, str]) -> list[str]:
    from shutil import which

    srun = which("srun", path=environ.get("PATH", os.defpath))
    have = int(environ.get("SLURM_JOB_NUM_NODES", "0") or 0) if "SLURM_JOB_ID" in environ else 0
    if srun is None or have < nodes:
        here = f"this job has {have}" if have else "this is no Slurm job"
        raise LauncherError(
            f"mpi={ranks}, nodes={nodes} needs srun and a Slurm job of {nodes} nodes or more; {here}"
            f"{'' if srun else ' and there is no srun'}. On one node it could run: take nodes= away."
        )
    with contextlib.suppress(LauncherError):  # without an mpirun that says it, Slurm's own default has to fit
        make = mpirun_at_hand(environ.get("PATH", os.defpath))[1]
        return [*_exact(srun, ranks, nodes), f"--mpi={PROTOCOLS[make]}"]
    return _exact(srun, ranks, nodes)


def _exact(srun: str, ranks: int, nodes: int) -> list[str]:
    return [srun, "--overlap", "--exact", "-N", str(nodes), "-n", str(ranks)]


@cache
def _make_of_launcher(path: str) -> str:
    return _make_of(_ask([path, "--version"])[1], _LAUNCHERS)


def python_flags(orig_argv: Sequence[str]) -> list[str]:
    """The flags that Python was started with: of `python -X dev -W error script` the first four words."""
    flags: list[str] = []
    words = iter(orig_argv[1:])
    for word in words:
        if not word.startswith("-") or word in ("-", "-c", "-m", "--"):
            break
        flags.append(word)
        if word in ("-X", "-W"):
            flags.append(next(words, ""))
    return flags


def run(script: str, args: Sequence[str] = (), *, ranks: int | None = None, all_output: bool = False) -> int:
    """Run a script, under mpirun if ranks are given, and return the exit code that its pipelines earned.

    Without ranks this process becomes the script and the call does not return.

    Raises:
        LauncherError: no mpirun fits mpi4py.
    """
    if ranks is None:
        os.execv(sys.executable, [sys.executable, *python_flags(sys.orig_argv), script, *args])
    import tempfile

    make = mpi_library()
    descriptor, note = tempfile.mkstemp(prefix="ezpyp-", suffix=".json")
    os.close(descriptor)
    try:
        environ = {**os.environ, OUTCOME: note}
        told = command(
            script, args, ranks=ranks, make=make, mpirun=find_mpirun(make), all_output=all_output, environ=environ
        )
        code, stopped_by = _drive(told, gentle=make == "openmpi")
        earned = read_outcome(note)
        if earned == UNFINISHED and not stopped_by:
            print(
                f"ezpyp: the run was lost: mpirun ended with exit code {code} before it did. What is done is kept; run "
                "again to go on.",
                file=sys.stderr,
            )
        return honest(earned, code, stopped_by)
    finally:
        with contextlib.suppress(OSError):
            os.unlink(note)


def tell_outcome(exit_code: int | None, folder: str) -> None:
    """Tell `ezpyp run`, if it started this script, what came of an execute(), or by None that one began. Called on rank
    0; the last counts.
    """
    note = os.environ.get(OUTCOME)
    if note:
        # On another node than where `ezpyp run` waits the file may have no place: then the launcher's code counts.
        with contextlib.suppress(OSError), open(note, "w", encoding="utf-8") as file:
            json.dump({"exit_code": exit_code, "folder": folder}, file)


def read_outcome(note: str) -> int | None:
    """The exit code that was told, None if none was; UNFINISHED if an execute() began and did not come to its end."""
    try:
        with open(note, encoding="utf-8") as file:
            told = json.load(file)["exit_code"]
            return UNFINISHED if told is None else int(told)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def honest(told: int | None, launcher: int, stopped_by: int = 0) -> int:
    """The exit code of the whole: what the pipelines said, else what the launcher said; 0 only if neither failed.

    Open MPI says 0 where it lost a host.
    """
    if told == UNFINISHED:
        told = None if launcher else ABORTED
    if told == 85 and stopped_by == signal.SIGINT:
        return 130
    if told or not launcher:
        return told or 0
    if stopped_by:
        return 130 if stopped_by == signal.SIGINT else 85
    return launcher if launcher > 0 else 128 - launcher


def _drive(told: Command, *, gentle: bool) -> tuple[int, int]:
    """Start the launcher and wait: its exit code, and the first signal that was passed on to it, 0 for none.

    The launcher has a process group of its own, so that Ctrl-C reaches it once, from here. It must then not read from
    the terminal, which would stop it.
    """
    import subprocess

    stdin = subprocess.DEVNULL if sys.stdin is None or sys.stdin.isatty() else None
    relay = _Relay(gentle=gentle)
    former = {number: signal.signal(number, relay) for number in _FORWARDED}
    try:
        with subprocess.Popen(told.argv, env=dict(told.environ), stdin=stdin, process_group=0) as process:
            relay.attach(process)
            return process.wait(), relay.first
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


class _Relay:
    """A signal handler that passes signals on, also those that come before there is anyone to pass them to.

    `gentle`: Open MPI kills its ranks half a second after INT and TERM, but passes USR1 on; so USR1 is sent first, and
    the signal itself when it is repeated.
    """

    def __init__(self, *, gentle: bool) -> None:
        self.first = 0
        self._gentle = gentle
        self._process: Popen[bytes] | None = None

    def __call__(self, number: int, frame: FrameType | None = None) -> None:
        again, self.first = bool(self.first), self.first or number
        if self._process is not None:
            self._process.send_signal(number if again or not self._gentle else signal.SIGUSR1)

    def attach(self, process: Popen[bytes]) -> None:
        self._process = process
        if self.first:
            process.send_signal(signal.SIGUSR1 if self._gentle else self.first)


def _candidates(folders: Iterable[str]) -> list[str]:
    """Every mpirun and mpiexec of these folders; each once."""
    from shutil import which

    once = dict.fromkeys(folders)
    found = (which(name, path=folder) for folder in once if folder for name in ("mpirun", "mpiexec"))
    return [path for path in found if path]


def _make_of(text: str, signs: Mapping[str, str]) -> str:
    return next((make for sign, make in signs.items() if sign in text), "")


def _ask(argv: Sequence[str]) -> tuple[int, str]:
    """The exit code and output of a program that answers at once."""
    import subprocess

    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, done.stdout.decode(errors="replace")
