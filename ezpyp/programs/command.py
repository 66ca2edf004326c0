"""A step that is a program: what it does when it runs, and what came of it."""

from __future__ import annotations

import contextlib
import difflib
import errno
import fnmatch
import os
import re
import signal
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from inspect import Parameter, Signature
from typing import Any, ClassVar

from ezpyp.errors import CommandFailed, Interrupted
from ezpyp.folder.progress import Meter
from ezpyp.identity.contents import printable
from ezpyp.identity.inputs import File, Tree
from ezpyp.model import scratch
from ezpyp.model.scratch import Place
from ezpyp.programs import processes, surroundings, words
from ezpyp.programs.processes import Ended, StopSignal
from ezpyp.programs.words import Executable
from ezpyp.system import launch, stopping
from ezpyp.system.capture import TAIL_LINES
from ezpyp.work.checkpoints import checkpoint_dir
from ezpyp.work.postmortem import signal_name

#: Signals that a program brings upon itself: nobody has to be asked whether they came with the end of the run.
_OWN_FAULT = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGSYS})
#: Seconds by which a signal to the whole job may reach a program before it reaches the agent.
_AHEAD = 1.0
_TAIL_BYTES = 8192
#: Where a program that is told of a stop may save, for its step to go on from: see `checkpoint_dir`.
CHECKPOINTS = "EZPYP_CHECKPOINT_DIR"
_LAST_WORDS = 300


@dataclass(frozen=True, kw_only=True)
class Completed:
    """What came of a program: `result["out.nc"]` is a file that it left, and so are patterns and folders.

    In a command, and wherever a path is wanted, it stands for its output, if it has just one.
    """

    command: tuple[str, ...]
    exit_code: int
    seconds: float
    #: User and system time of the program and of all processes below it that were waited for.
    cpu_seconds: float
    #: The most that the program, or one process below it that was waited for, held in memory at a time, in bytes; 0
    #: where that was less than a helper holds, and too short to be seen.
    peak_memory: int
    #: Names in its folder to files in the cache.
    files: Mapping[str, File] = field(default_factory=dict)
    #: Declared outputs to the names that they stand for.
    outputs: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __repr__(self) -> str:
        listed = "".join(f", {name}" for name in self.outputs)
        return f"Completed({os.path.basename(self.command[0])}, {_duration(self.seconds)}{listed})"

    def __getitem__(self, name: str) -> File | Tree | list[File]:
        """A file, a folder, or the files that a pattern fits.

        Raises:
            KeyError: it left nothing of that name; the text lists what it left.
        """
        name = os.path.normpath(name)
        if name in self.files:
            return self.files[name]
        inside = next((each for each in self.files if each.startswith(f"{name}/")), None)
        if inside is not None:
            return Tree(self.files[inside].path.removesuffix(inside.removeprefix(name)))
        found = [file for each, file in self.files.items() if fnmatch.fnmatchcase(each, name)]
        if not found:
            raise KeyError(f"no output {name!r}: it left {', '.join(self.files) or 'none'}")
        return found

    def __fspath__(self) -> str:
        if len(self.outputs) == 1:
            (only,) = map(self.__getitem__, self.outputs)
            if isinstance(only, list):
                only = only[0] if len(only) == 1 else only
            if not isinstance(only, list):
                return os.fspath(only)
        listed = ", ".join(self.files) or "none"
        raise TypeError(f"a command whose outputs are {listed}: name one, as in ezpyp.Output(step, 'out.nc')")


@dataclass(frozen=True, kw_only=True)
class Program:
    """What a command step calls. Its last arguments are the command and, where there are some, the inputs to link in;
    those before them are what a user's function was given, for people to read.
    """

    #: What kind of step it makes, in listings.
    step_title: ClassVar[str] = "Command"

    name: str
    parameters: tuple[str, ...] = ("command",)
    links: bool = False
    shell: bool = False
    #: Variables to set; None to take away.
    env: tuple[tuple[str, str | None], ...] = ()
    setup: tuple[str, ...] = ()
    ok_codes: tuple[int, ...] = (0,)
    #: The file that gets its standard output, "" for the log.
    stdout: str = ""
    #: As the user wrote it, "" for a folder of its own.
    cwd: str = ""
    mpi: int = 0
    nodes: int = 1
    timeout: float | None = None
    progress: str = ""
    #: The name of the signal that it is sent when the run is to stop, "" for none.
    stop_signal: str = ""

    @property
    def __name__(self) -> str:
        return self.name

    @property
    def not_in_labels(self) -> tuple[str, ...]:
        """What the arguments of a user's function say better."""
        own = 2 if self.links else 1
        return self.parameters[-own:] if len(self.parameters) > own else ()

    @property
    def __signature__(self) -> Signature:
        return Signature([Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in self.parameters])

    def __ezpyp_identity__(self) -> object:
        """All that may change what it leaves. The command itself is an argument, and `outputs=` counts for itself."""
        kind = ("bash",) if self.shell else ()
        ranks = (self.mpi, self.nodes) if self.mpi else ()
        return kind, sorted(self.env), self.setup, self.ok_codes, self.stdout, self.cwd, ranks

    def __ezpyp_outline__(self) -> str:
        """The options that are not what they are by default."""
        listed = ("shell", "env", "setup", "ok_codes", "stdout", "cwd", "mpi", "nodes")
        given = ((name, getattr(self, name), getattr(type(self), name)) for name in listed)
        return ", ".join(f"{name}={value!r}" for name, value, usual in given if value != usual) or "no options"

    def __call__(self, *values: Any) -> Completed:
        """Run the program in the folder of this step.

        Raises:
            CommandFailed: it ended otherwise than it should, could not be started, or left too little.
            Interrupted: it was ended from outside while the run was stopped.
        """
        place = scratch.here()
        assert place is not None, "a command always has a place"
        command = values[-1]
        if self.links:
            *_, command, inputs = values
            place.given.update(words.linked(inputs))
        environ = self._environment()
        argv = self._argv(command, environ)
        errors, progress = _Tail(), Meter.of(self.progress, place)
        readers: list[processes.Reader] = [errors, progress.read] if progress else [errors]
        try:
            ended = processes.run(
                argv[0],
                argv,
                environ,
                errors=lambda piece: _pass_on(2, piece, readers),
                output=self._output(progress, place),
                timeout=self.timeout,
                idle=progress.idle if progress else None,
                stop=StopSignal(number=signal.Signals[self.stop_signal], below=self.shell)
                if self.stop_signal
                else None,
            )
        except OSError as error:
            raise CommandFailed(f"{self._shown(command)} cannot be started: {_hindrance(error, argv)}") from None
        finally:
            if progress:
                progress.close()
        self._judge(ended, self._shown(command), errors, _misplaced(argv) if place.own and not self.shell else "")
        return self._completed(argv, ended, place, errors)

    def _environment(self) -> MutableMapping[str, str]:
        """What the program is to see: a copy where that is not just what this process sees."""
        if not (self.env or self.setup or self.mpi or self.stop_signal):
            return os.environ
        environ = surroundings.difference(self.setup).applied(os.environ) if self.setup else {**os.environ}
        if self.stop_signal:
            environ[CHECKPOINTS] = str(checkpoint_dir())
        for name, value in self.env:
            if value is None:
                environ.pop(name, None)
            else:
                environ[name] = value
        return environ

    def _argv(self, command: Any, environ: MutableMapping[str, str]) -> list[str]:
        search = environ.get("PATH", os.defpath)
        if self.shell:
            bash = Executable(given="bash", folder="").find(search) or "/bin/bash"
            argv = [bash, "-c", f"set -euo pipefail\n{words.line(command)}", self.name]
        else:
            first = command[0]
            argv = words.written(command)
            if isinstance(first, Executable):
                argv[0] = first.find(search) or argv[0]
        if self.mpi:
            return launch.ranks_of(argv, ranks=self.mpi, nodes=self.nodes, environ=environ)
        return argv

    def _output(self, progress: Meter | None, place: Place) -> processes.Reader | str | None:
        if self.stdout:
            if place.own and (folder := os.path.dirname(self.stdout)):
                os.makedirs(folder, exist_ok=True)
            return self.stdout
        if progress is None:
            return None
        readers = [progress.read]
        return lambda piece: _pass_on(1, piece, readers)

    def _shown(self, command: Any) -> str:
        if self.shell:
            return "its shell"
        first = command[0]
        return first.given if isinstance(first, Executable) else os.path.basename(words.written([first])[0])

    def _judge(self, ended: Ended, shown: str, errors: _Tail, hint: str) -> None:
        """Raise unless it ended as it should."""
        if ended.stopped:
            raise Interrupted(f"{shown} was sent {self.stop_signal} and ended; the next run goes on with it")
        if ended.timed_out:
            how = f"{shown} ran longer than its timeout of {self.timeout:g} s on {os.uname().nodename} and was ended."
            raise CommandFailed(f"{how}{errors.words()}", cause="timeout", tail=errors.text())
        code = ended.code
        if code in self.ok_codes:
            return
        # A shell and the launchers of ranks tell of a signal by an exit code.
        number = -code if code < 0 else code - 128 if 128 < code < 128 + signal.NSIG else 0
        if (number or self.mpi) and stopping.was_asked(0.0 if number in _OWN_FAULT else _AHEAD):
            raise Interrupted(f"{shown} was ended with the run; the next run does it")
        how = f"signal {number} ({signal_name(number).lower()})" if code < 0 else f"exit code {code}"
        raise CommandFailed(
            f"{shown} ended with {how} on {os.uname().nodename} after {_duration(ended.seconds)}.{errors.words()}"
            f"{hint if code > 0 else ''}",
            cause="signal" if code < 0 else "exit",
            tail=errors.text(),
        )

    def _completed(self, argv: Sequence[str], ended: Ended, place: Place, errors: _Tail) -> Completed:
        try:
            outputs = place.outputs() if place.own else {}
        except FileNotFoundError as error:
            raise CommandFailed(str(error), cause="output", tail=errors.text()) from None
        names = [name for listed in outputs.values() for name in listed]
        return Completed(
            command=tuple(argv),
            exit_code=ended.code,
            seconds=ended.seconds,
            cpu_seconds=ended.cpu_seconds,
            peak_memory=ended.peak_memory,
            files={name: File(os.path.join(place.path, name)) for name in names},
            outputs=outputs,
        )


class _Tail:
    """The end of what a program writes to its standard error."""

    def __init__(self) -> None:
        self._end = b""

    def __call__(self, piece: bytes) -> None:
        self._end = (self._end + piece)[-_TAIL_BYTES:]

    def text(self) -> str:
        """The last lines."""
        return "\n".join(self._end.decode(errors="replace").splitlines()[-TAIL_LINES:])

    def words(self) -> str:
        """The last line, for a message."""
        lines = [line.strip() for line in self._end.decode(errors="replace").splitlines() if line.strip()]
        if not lines:
            return ""
        last = lines[-1]
        return f" Its last words: {last if len(last) <= _LAST_WORDS else last[: _LAST_WORDS - 1] + '…'}"


def _pass_on(descriptor: int, piece: bytes, readers: Sequence[processes.Reader]) -> None:
    """To the readers, and to where it was meant for."""
    for reader in readers:
        reader(piece)
    try:
        rest = memoryview(piece)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except OSError:
        return  # the disk is full: what it says is lost, what it does is not


def _hindrance(error: OSError, argv: Sequence[str]) -> str:
    """Why a program cannot be started, and what to do."""
    path = argv[0]
    if error.filename is not None and error.filename != path:
        return f"{error.filename}: {error.strerror}"
    if error.errno == errno.E2BIG:
        size = sum(len(os.fsencode(word)) + 1 for word in argv)
        return (
            f"its arguments are too long for the kernel ({size:,} bytes, the longest "
            f"{max(len(os.fsencode(word)) for word in argv):,}). Write them to a file, and give that"
        )
    if error.errno == errno.ENOENT and os.path.exists(path):
        return f"{path} is there, but not what runs it ({_interpreter(path) or 'the loader that it was linked for'})"
    if error.errno == errno.ENOEXEC:
        return f"{path} is no program for this machine. Was it built for another, or is it a script without a #! line?"
    if error.errno == errno.EACCES:
        return f"{path} may not be run. Is it executable, and may programs be run from that file system?"
    return f"{error.strerror} ({path})"


def _misplaced(argv: Sequence[str]) -> str:
    """What may have been wrong, where an argument is the name of a file that is beside the script only."""
    folder = words.script_folder()
    for word in argv[1:]:
        if os.path.isfile(os.path.join(folder, word)) and not os.path.lexists(word):
            return f"  {printable(word)} is in the script's folder, not in that of the step: give File({word!r})."
    return ""


def _interpreter(path: str) -> str:
    """The first line of a script, "" of other programs."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        first = file.readline(200)
        return printable(os.fsdecode(first.strip())) if first.startswith(b"#!") else ""
    return ""


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def stop_signal_of(name: Any) -> str:
    """The name of a signal as Python has it, "" for none.

    Raises:
        ValueError: there is no such signal, or no program can handle it.
    """
    if name is None or name == "":
        return ""
    wanted = name.name if isinstance(name, signal.Signals) else f"SIG{str(name).removeprefix('SIG')}"
    if wanted in ("SIGKILL", "SIGSTOP"):
        raise ValueError(f"stop_signal={name!r}: no program can handle it. Give 'TERM', or another that yours handles.")
    if wanted not in signal.Signals.__members__:
        near = (difflib.get_close_matches(wanted.upper(), signal.Signals.__members__, n=1) or ["SIGTERM"])[0]
        raise ValueError(f"stop_signal={name!r}: there is no such signal. Did you mean '{near.removeprefix('SIG')}'?")
    return wanted


def pattern_of(progress: str | None) -> str:
    """A pattern for lines that tell how far a program is.

    Raises:
        ValueError: it is none, or finds no number.
    """
    if not progress:
        return ""
    if not isinstance(progress, str):
        raise TypeError(f"progress={progress!r}: give a pattern, as in r'step (\\d+) of (\\d+)'")
    try:
        groups = re.compile(progress.encode()).groups
    except re.error as error:
        raise ValueError(f"progress={progress!r} is no pattern: {error}") from None
    if groups not in (1, 2):
        raise ValueError(
            rf"progress={progress!r}: put the number, or number and total, into (), as in r'(\d+) of (\d+)'"
        )
    return progress
