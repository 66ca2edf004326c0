"""Commands as the user writes them: `pipeline.command` and `as_command_step` make steps that are programs."""

from __future__ import annotations

import functools
import inspect
import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from ezpyp.front.functions import OPTIONS, Collector, StepFunction, Wishes, timeout_of
from ezpyp.identity.inputs import inputs_of
from ezpyp.identity.outline import shorten
from ezpyp.model.outputs import Outputs
from ezpyp.model.request import Request
from ezpyp.model.scratch import Room
from ezpyp.model.steps import Options, Step, Steps, callable_name
from ezpyp.programs import words
from ezpyp.programs.command import Program, pattern_of, stop_signal_of
from ezpyp.programs.words import Executable, RankLauncher
from ezpyp.system.running import inside_step

#: Options of commands beside those of every step.
_OF_COMMANDS = (
    *("cwd", "env", "inputs", "mpi", "nodes", "ok_codes", "outputs", "progress"),
    *("scratch", "setup", "shell", "stdout", "stop_signal", "timeout", "track", "workdir"),
)
#: Options of steps that say how Python code runs and what it is.
_NOT_OF_COMMANDS = ("codec", "copy", "fresh", "identity", "seed", "uses", "version")
_PROGRAM = Options(request=Request(program=True))


class Commands:
    """The commands of a pipeline: those that differ in their arguments alone are one function."""

    def __init__(self, home: Collector) -> None:
        self._home = home
        self._functions: dict[Any, StepFunction] = {}

    def function(self, program: Program, wishes: Wishes) -> StepFunction:
        """What makes steps of a program."""
        key = program, wishes.options, wishes.inputs, tuple(map(id, wishes.depends_on)), wishes.allowance
        if key not in self._functions:
            self._functions[key] = StepFunction(program, self._home, wishes)
        return self._functions[key]


class CommandOptions:
    """What was asked for a command, checked."""

    def __init__(self, name: str, parameters: Sequence[str] = (), **options: Any) -> None:
        """Options as the user writes them.

        Raises:
            TypeError, ValueError: one that there is not, or that is no such thing; the text says what there is.
        """
        known = sorted({*OPTIONS, *_OF_COMMANDS} - {*_NOT_OF_COMMANDS})
        if strange := next((word for word in options if word not in known), None):
            raise TypeError(f"There is no option '{strange}' for commands. Options: {', '.join(known)}.")
        own = {word: options.pop(word) for word in _OF_COMMANDS if word in options}
        self.folder = words.script_folder()
        self.track = bool(own.get("track", True))
        self.links, counted = self._inputs(own.get("inputs"))
        taken = [word for word in ("command", "inputs") if word in parameters]
        if taken:
            raise TypeError(f"{name}() has a parameter '{taken[0]}', which is what its command is called. Rename it.")
        outputs = Outputs.of(own.get("outputs")).patterns
        room, cwd = self._room(own)
        mpi, nodes = _count("mpi", own.get("mpi", 0)), _count("nodes", own.get("nodes", 1))
        if mpi < 0 or nodes < 1 or (nodes > 1 and mpi < nodes):
            raise ValueError(f"mpi={mpi}, nodes={nodes} of '{name}': give the number of ranks, at least one a node")
        if nodes > 1 and not room.cwd and not room.scratch:
            raise ValueError(
                f"nodes={nodes} of '{name}': its folder has to be there on all of them. Give scratch= on a file system "
                "that they share, or cwd=."
            )
        if mpi and "cpus" not in options:
            options["cpus"] = -(-mpi // nodes)
        stdout = _path("stdout", own.get("stdout") or "")
        self.program = Program(
            name=name,
            parameters=(*parameters, "command", *(["inputs"] if self.links else [])),
            links=bool(self.links),
            shell=_shell(own.get("shell")),
            env=_env(own.get("env")),
            setup=_texts("setup", own.get("setup")),
            ok_codes=_codes(own.get("ok_codes", (0,))),
            stdout=stdout,
            cwd=cwd,
            mpi=mpi,
            nodes=nodes,
            timeout=timeout_of(own.get("timeout")),
            progress=pattern_of(own.get("progress")),
            stop_signal=stop_signal_of(own.get("stop_signal")),
        )
        self._search = next((value for key, value in self.program.env if key == "PATH" and value), "")
        if mpi:
            launcher = RankLauncher(ranks=mpi, nodes=nodes, search=self._search, setup=self.program.setup)
            counted = (*counted, launcher)
        wishes = Wishes(options=_PROGRAM).with_(**options, inputs=counted, seed=None)
        if room.cwd:
            placed = wishes.options._replace(workdir=room, outputs=Outputs(outputs, room.cwd))
        else:
            left = (stdout,) if stdout and stdout not in outputs else ()
            placed = wishes.options._replace(workdir=room.leaving((*outputs, *left)))
        self.wishes = wishes._replace(options=placed)

    def values(self, command: Any) -> tuple[Any, ...]:
        """The last arguments of a call: the command, its program told from its arguments, and what is linked in.

        Raises:
            TypeError: it is no command; the text says what it is and what to give.
        """
        name, program = self.program.name, self.program
        if isinstance(command, str) and not program.shell:
            raise TypeError(
                f"The command '{name}' is one text: give a list, ['./sim', '--x', 3], or say shell=\"bash\"."
            )
        if not isinstance(command, str) and (not isinstance(command, (list, tuple)) or not command):
            raise TypeError(f"The command '{name}' is {shorten(command)}: give a list, such as ['./sim', '--x', 3].")
        command = words.rooted(list(command) if isinstance(command, tuple) else command, self.folder)
        words.check(command, name)
        if isinstance(command, list) and not program.shell and isinstance(command[0], (str, os.PathLike)):
            command = [self._executable(command[0]), *command[1:]]
        return (command, self.links) if program.links else (command,)

    def _executable(self, first: Any) -> Any:
        if isinstance(first, PurePath):  # a file, not a name to be looked for
            first = f"./{first}" if "/" not in str(first) else str(first)
        if not isinstance(first, str):
            return first
        return Executable(
            given=first,
            folder=self.folder,
            search=self._search,
            setup=self.program.setup,
            track=self.track,
        )

    def _inputs(self, value: Any) -> tuple[dict[str, Any], Any]:
        """Inputs to link in, by name, and those that only count."""
        if not isinstance(value, Mapping):
            return {}, words.rooted(inputs_of(value), self.folder)
        for name, each in value.items():
            if not isinstance(name, str) or os.path.isabs(name) or ".." in name.split("/"):
                raise ValueError(f"inputs= has the name {name!r}: give names for links in the folder of the step")
            words.check(each, "inputs=")
        links = {name: inputs_of(each)[0] if isinstance(each, str) else each for name, each in value.items()}
        return words.rooted(links, self.folder), ()

    def _room(self, own: Mapping[str, Any]) -> tuple[Room, str]:
        """Where it runs, and how the user wrote that."""
        given = own.get("cwd")
        wanted = own.get("workdir", given is None)
        if given is not None and wanted:
            raise ValueError("cwd= and workdir= exclude each other: a step runs in a folder of its own or in yours")
        if wanted:
            room = Room.of(wanted)
            assert room is not None
            return room._replace(scratch=os.path.abspath(own["scratch"])) if own.get("scratch") else room, ""
        folder = os.path.expanduser(os.fsdecode(given if given is not None else "."))
        if self.links:
            raise ValueError(
                "inputs= as a dict makes links, which only a folder of the step's own gets: take cwd= away"
            )
        return Room(cwd=os.path.normpath(os.path.join(self.folder, folder))), folder


class CommandFunction:
    """A function that returns commands; its calls make steps. It is called at once, and only arranges: the results of
    steps that it is given can be put into the list, but not looked at.
    """

    def __init__(
        self, function: Callable[..., Any], commands: Commands, options: Mapping[str, Any], name: str | None = None
    ) -> None:
        if not callable(function):
            raise TypeError(f"A command step is made from a function, not from {shorten(function)}.")
        self.function = function
        self._commands, self._given = commands, dict(options)
        self._signature = inspect.signature(function)
        self._options = CommandOptions(callable_name(function), tuple(self._signature.parameters), **options)
        self._steps = commands.function(self._options.program, self._options.wishes)
        functools.update_wrapper(self, function, updated=())

    def __repr__(self) -> str:
        return f"<command function {callable_name(self.function)}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Add a step that will run the command. Returns at once; nothing is run.

        Raises:
            RepeatedStepError: the very same call was made before, and no `name=` tells them apart.
            TypeError: what the function returned is no command.
        """
        if inside_step():
            return self.function(*args, **kwargs)
        mine, given = self._split(kwargs)
        return self._steps(*self._row(args, given), **mine)

    def options(self, **options: Any) -> CommandFunction:
        """The same function with other options."""
        return CommandFunction(self.function, self._commands, {**self._given, **options})

    def map(self, *iterables: Iterable[Any], **constants: Any) -> Steps:
        """A step for each element, or for each tuple of elements of several iterables of the same length; as for
        functions.
        """
        mine, given = self._split(constants)
        return self._many([self._row(args, given) for args in zip(*iterables, strict=True)], mine)

    def product(self, *axes: Iterable[Any], **named_axes: Any) -> Steps:
        """A step for every combination, the last axis fastest; as for functions."""
        mine, named = self._split(named_axes)
        rows = itertools.product(*axes, *named.values())
        split = len(axes)
        return self._many([self._row(r[:split], dict(zip(named, r[split:], strict=True))) for r in rows], mine)

    def _many(self, rows: list[tuple[Any, ...]], mine: Mapping[str, Any]) -> Steps:
        columns = list(zip(*rows, strict=True)) or [()] * len(self._options.program.parameters)
        return self._steps.map(*columns, **mine)

    def _row(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
        """What a step gets: what the function was given, in the order of its parameters, and what it returned."""
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{callable_name(self.function)}(): {error}") from None
        bound.apply_defaults()
        bound.arguments.update(words.rooted(dict(bound.arguments), self._options.folder))
        command = self.function(*bound.args, **bound.kwargs)
        return (*bound.arguments.values(), *self._options.values(command))

    def _split(self, kwargs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Words that are options, and the function's own."""
        own = self._signature.parameters
        open_ended = any(p.kind is p.VAR_KEYWORD for p in own.values())
        mine = ("name", "allow_failure", "depends_on")
        options = {k: v for k, v in kwargs.items() if k in mine and k not in own and not open_ended}
        return options, {k: v for k, v in kwargs.items() if k not in options}


def command(commands: Commands, name: str, argv: Any, options: Mapping[str, Any]) -> Step:
    """A single command; see `Pipeline.command`."""
    if not isinstance(name, str) or not name.strip():
        raise TypeError(f"command({name!r}, …): the first argument is the name of the step, the second its command")
    asked = CommandOptions(name, **options)
    step: Step = commands.function(asked.program, asked.wishes)(*asked.values(argv))
    return step


def _shell(value: Any) -> bool:
    if value in (None, False, "bash"):
        return bool(value)
    raise ValueError(f'shell={value!r}: there is only "bash"')


def _env(value: Any) -> tuple[tuple[str, str | None], ...]:
    if not isinstance(value or {}, Mapping):
        raise TypeError(f"env={shorten(value)}: give values by name, such as env={{'OMP_NUM_THREADS': 4}}")
    found = tuple((str(key), None if each is None else str(each)) for key, each in (value or {}).items())
    for key, each in found:
        if not key or "=" in key or "\0" in f"{key}{each}":
            raise ValueError(f"env={shorten(value)}: {key!r} cannot be set; names have no '=', nothing has a zero byte")
    return found


def _texts(option: str, value: Any) -> tuple[str, ...]:
    found = (value,) if isinstance(value, str) else value or ()
    if not isinstance(found, (list, tuple)) or not all(isinstance(each, str) for each in found):
        raise TypeError(f"{option}={shorten(value)}: give a line for the shell, or several in a list")
    return tuple(found)


def _path(option: str, value: Any) -> str:
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{option}={shorten(value)}: give the name of a file")
    return os.fsdecode(value)


def _count(option: str, value: Any) -> int:
    if not isinstance(value, int):
        raise TypeError(f"{option}={shorten(value)}: give a number")
    return value


def _codes(value: Any) -> tuple[int, ...]:
    found = (value,) if isinstance(value, int) else value
    if not isinstance(found, (list, tuple, set, frozenset, range)) or not all(isinstance(each, int) for each in found):
        raise TypeError(f"ok_codes={shorten(value)}: give exit codes, such as ok_codes=(0, 3)")
    return tuple(sorted(found)) if isinstance(found, (set, frozenset)) else tuple(found)
