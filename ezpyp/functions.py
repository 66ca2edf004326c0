"""Decorated functions: calling one makes a step. Loops and sweeps (`map`, `product`) make many."""

from __future__ import annotations

import functools
import inspect
import itertools
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from ezpyp import codecs
from ezpyp.arguments import Deferred, freeze, shorten
from ezpyp.errors import InitializationError
from ezpyp.inputs import Input, inputs_of
from ezpyp.outputs import Outputs
from ezpyp.policy import Allowance, Retry
from ezpyp.resources import bytes_of
from ezpyp.running import inside_step
from ezpyp.scratch import Room
from ezpyp.steps import Group, Home, Options, Request, Step, Steps, callable_name

#: Options that a call or `map` takes as keywords, unless the function has a parameter of that name.
_CALL_WORDS = ("name", "allow_failure", "depends_on")


class Collector(Home, Protocol):
    """What a decorated function needs of its pipeline."""

    def add(self, step: Step, /) -> None:
        """Take a new step, or refuse it."""

    def number(self, base: str, /) -> int:
        """How many steps were named after `base` so far; counts one more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the user asked for the steps of a function, beside their arguments."""

    options: Options = Options()
    depends_on: tuple[Step | str, ...] = ()
    name: str | None = None
    allowance: Allowance = Allowance()
    #: What the steps read besides their arguments.
    inputs: tuple[Input, ...] = ()
    #: Parameters whose values are handed over as they are, with what makes of them something to count by.
    identity: Mapping[str, Callable[[Any], Any]] = field(default_factory=dict)

    def with_(self, **more: Any) -> Wishes:
        """The wishes after more of them, as the user writes them.

        Raises:
            TypeError: an option that does not exist; the text lists those that do.
        """
        wishes, options, request = self, self.options, self.options.request
        for key, value in more.items():
            if key == "name":
                wishes = replace(wishes, name=_checked_name(value))
            elif key == "depends_on":
                wishes = replace(wishes, depends_on=_dependencies(value))
            elif key == "inputs":
                wishes = replace(wishes, inputs=inputs_of(value))
            elif key == "identity":
                wishes = replace(wishes, identity=_identities(value))
            elif key == "allow_failure":
                wishes = replace(wishes, allowance=Allowance.of(value))
            elif key in ("cpus", "gpus", "memory"):
                request = replace(request, **{key: bytes_of(value) if key == "memory" else value})
            elif key == "max_age":
                options = replace(options, max_age=seconds_of(value))
            elif key in _OPTIONS:
                options = replace(options, **{key: _OPTIONS[key](value)})
            elif key in ("always", "copy", "keep", "seed", "timeout"):
                options = replace(options, **{key: value})
            else:
                raise TypeError(f"There is no option '{key}'. Options: {', '.join(OPTIONS)}.")
        return replace(wishes, options=replace(_placed(options), request=_checked(request)))


#: What becomes of options as the user writes them.
_OPTIONS: dict[str, Callable[[Any], Any]] = {
    "codec": lambda value: codecs.get(value).name,
    "outputs": Outputs.of,
    "retry": Retry.of,
    "uses": lambda value: tuple(value) if isinstance(value, (list, tuple)) else (value,),
    "version": lambda value: None if value is None else str(value),
    "workdir": Room.of,
}

OPTIONS = (
    *(
        "allow_failure",
        "always",
        "codec",
        "copy",
        "cpus",
        "depends_on",
        "gpus",
        "identity",
        "inputs",
        "keep",
        "max_age",
        "memory",
    ),
    *("name", "outputs", "retry", "seed", "timeout", "uses", "version", "workdir"),
)


class StepFunction:
    """A function that makes steps of a pipeline. Inside a running step it is the plain function; so is `.function`."""

    def __init__(self, function: Callable[..., Any], home: Collector, wishes: Wishes) -> None:
        if not callable(function):
            raise TypeError(f"A step is made from a function, not from {shorten(function)}.")
        self.function = function
        self._home, self._wishes = home, wishes
        self._signature = _signature(function)
        functools.update_wrapper(self, function, updated=())

    def __repr__(self) -> str:
        return f"<step function {callable_name(self.function)}>"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Add a step that will make this call. Returns at once; nothing is evaluated.

        Raises:
            RepeatedStepError: the very same call was made before, and no `name=` tells them apart.
            IdentityError: an argument that would not be the same thing tomorrow.
            InitializationError: the pipeline was initialized already.
        """
        if inside_step():
            return self.function(*args, **kwargs)
        wishes, kwargs = self._split(kwargs)
        name = wishes.name or self._named()
        return self._make(name, args, kwargs, wishes, self._group(name, wishes))

    def options(self, **options: Any) -> StepFunction:
        """The same function with other options: `train.options(name="long", timeout=3600)(x)`."""
        return StepFunction(self.function, self._home, self._wishes.with_(**options))

    def map(self, *iterables: Iterable[Any], **constants: Any) -> Steps:
        """A step for each element, or for each tuple of elements of several iterables of the same length.

        Keywords are given to every step; `name=`, `allow_failure=` and `depends_on=` are taken as options (the
        allowance is for all of them together) unless the function has parameters of these names.
        """
        if not iterables:
            raise TypeError(f"{callable_name(self.function)}.map() needs at least one iterable")
        for each in iterables:
            _iterable(each, "map")
        return self._many(zip(*iterables, strict=True), lambda: itertools.repeat({}), constants)

    def product(self, *axes: Iterable[Any], **named_axes: Any) -> Steps:
        """A step for every combination: `train.product(model=["a", "b"], depth=[2, 4, 8])` makes six, the last axis
        fastest.
        """
        wishes, named = self._split(named_axes)
        for each in (*axes, *named.values()):
            _iterable(each, "product")
        columns = [list(axis) for axis in (*axes, *named.values())]
        rows = list(itertools.product(*columns))
        positional = (row[: len(axes)] for row in rows)
        keywords = [dict(zip(named, row[len(axes) :], strict=True)) for row in rows]
        return self._many(positional, lambda: iter(keywords), {}, wishes)

    def __get__(self, instance: object, owner: type | None = None) -> StepFunction:
        """In a class body: a method whose calls make steps."""
        if instance is None:
            return self
        return StepFunction(types.MethodType(self.function, instance), self._home, self._wishes)

    def __reduce__(self) -> str | tuple[Any, ...]:
        # By name where it can be found so, as in multiprocessing.Pool.map inside a step; else as the plain function.
        module = sys.modules.get(getattr(self, "__module__", ""))
        name = getattr(self, "__qualname__", "")
        return name if name and getattr(module, name, None) is self else (_plain, (self.function,))

    def _many(
        self,
        positional: Iterable[tuple[Any, ...]],
        keywords: Callable[[], Iterator[Mapping[str, Any]]],
        constants: dict[str, Any],
        wishes: Wishes | None = None,
    ) -> Steps:
        if wishes is None:
            wishes, constants = self._split(constants)
        label = wishes.name or callable_name(self.function)
        group = self._group(label, wishes)
        made = []
        for args, kwargs in zip(positional, keywords(), strict=False):
            name = f"{label}[{self._home.number(label)}]"
            made.append(self._make(name, args, {**constants, **kwargs}, wishes, group))
        return Steps(made)

    def _split(self, kwargs: dict[str, Any]) -> tuple[Wishes, dict[str, Any]]:
        """Take the words that are options out of a call's keywords."""
        words = [w for w in _CALL_WORDS if w in kwargs and not self._accepts(w)]
        if not words:
            return self._wishes, kwargs
        return (
            self._wishes.with_(**{w: kwargs[w] for w in words}),
            {k: v for k, v in kwargs.items() if k not in words},
        )

    def _accepts(self, word: str) -> bool:
        if self._signature is None:
            return False
        parameters = self._signature.parameters
        return word in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    def _named(self) -> str:
        base = callable_name(self.function)
        number = self._home.number(base)
        return f"{base}[{number}]" if number else base

    @staticmethod
    def _group(label: str, wishes: Wishes) -> Group | None:
        return Group(label=label, allowance=wishes.allowance) if wishes.allowance != Allowance() else None

    def _make(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], wishes: Wishes, group: Group | None
    ) -> Step:
        if self._signature is not None:
            try:
                self._signature.bind(*args, **kwargs)
            except TypeError as error:
                raise TypeError(f"{callable_name(self.function)}() for step '{name}': {error}") from None
        names = tuple(self._signature.parameters) if self._signature is not None else ()
        if strange := next((each for each in wishes.identity if not self._accepts(each)), None):
            raise TypeError(
                f"identity= of '{name}' has '{strange}': {callable_name(self.function)}() has no such parameter."
            )
        step = Step(
            name=name,
            function=self.function,
            arguments=freeze(args, kwargs, of=name, names=names, inputs=wishes.inputs, identity=wishes.identity),
            after=wishes.depends_on,
            options=wishes.options,
            group=group,
            named=wishes.name is not None,
            parameters=names,
            title=codecs.get(wishes.options.codec).title,
            home=self._home,
        )
        self._home.add(step)
        return step


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):  # some callables written in C have none
        return None


def _iterable(value: Any, verb: str) -> None:
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise TypeError(f"{verb}() takes lists of values, not {shorten(value)}. For a constant, write it in a list.")
    if isinstance(value, Deferred) and value.one:
        raise TypeError(
            f"{verb}() cannot see how many values {value!r} will have. Execute that pipeline first and build the "
            "next from its result, or take the loop into the step."
        )


def _dependencies(value: Any) -> tuple[Step | str, ...]:
    listed = [value] if isinstance(value, (str, Step)) else list(value or ())
    found: list[Step | str] = []
    for each in listed:
        if isinstance(each, Deferred):
            found += each.sources()
        elif isinstance(each, str):
            found.append(each)
        else:
            raise InitializationError(
                f"depends_on holds {shorten(each)}: give steps (what a decorated function returned) or names of steps."
            )
    return tuple(found)


def _identities(value: Any) -> dict[str, Callable[[Any], Any]]:
    if not isinstance(value, Mapping) or not all(isinstance(k, str) and callable(v) for k, v in value.items()):
        raise TypeError(
            f"identity={shorten(value)}: give functions by parameter, such as identity={{'conn': get_path}}"
        )
    return dict(value)


def seconds_of(value: Any) -> float | None:
    """A span of time as the user writes it: seconds, or a text such as "90s", "30m", "12h", "1d", "2w".

    Raises:
        ValueError: it is none.
    """
    if value is None:
        return None
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
    text = str(value).strip()
    try:
        return float(text[:-1]) * units[text[-1:]] if text[-1:] in units else float(text)
    except ValueError:
        raise ValueError(f'{value!r} is no span of time: give seconds, or "90s", "30m", "12h", "1d"') from None


def _checked_name(name: Any) -> str | None:
    if name is not None and (not isinstance(name, str) or not name.strip()):
        raise TypeError(f"name={name!r}: give a text that is not empty")
    return name


def _placed(options: Options) -> Options:
    """What is to be left in a folder of the step's own is moved into the cache; elsewhere it stays."""
    if options.workdir is None or not options.outputs.patterns:
        return options
    return replace(options, workdir=options.workdir.leaving(options.outputs.patterns), outputs=Outputs())


def _checked(request: Request) -> Request:
    whole = isinstance(request.cpus, int)
    if not whole or request.cpus < 1 or request.gpus < 0 or request.memory < 0:
        raise ValueError(f"{request}: ask for at least one core, and for no negative amount")
    return request
