"""Decorated functions: calling one makes a step. Loops and sweeps (`map`, `product`) make many."""

from __future__ import annotations

import functools
import math
import re
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from ezpyp.encoding import codecs
from ezpyp.errors import InitializationError
from ezpyp.front import parameters
from ezpyp.identity.inputs import Input, inputs_of
from ezpyp.identity.outline import shorten
from ezpyp.model.arguments import Arguments, Deferred, freeze, plain_call
from ezpyp.model.columns import Column, Columns, column_of
from ezpyp.model.outputs import Outputs
from ezpyp.model.policy import Allowance, Retry
from ezpyp.model.request import Request
from ezpyp.model.scratch import Room
from ezpyp.model.steps import Definition, Family, Group, Home, Options, Step, Steps, callable_name
from ezpyp.system.resources import bytes_of
from ezpyp.system.running import inside_step
from ezpyp.tuples import NamedTuple

#: Options that a call or `map` takes as keywords, unless the function has a parameter of that name.
_CALL_WORDS = ("name", "allow_failure", "depends_on")


class Collector(Home, Protocol):
    """What a decorated function needs of its pipeline."""

    def add(self, family: Family, /) -> None:
        """Take new steps, or refuse them."""

    def gather(
        self, definition: Definition, base: str, args: tuple[Any, ...], kwargs: dict[str, Any], identity: bytes, /
    ) -> Step | None:
        """Take a single call with plain arguments together with those before it, or None where it has to be added."""

    def number(self, base: str, count: int = 1, /) -> int:
        """How many steps were named after `base` so far; counts so many more."""


class Wishes(NamedTuple):
    """What the user asked for the steps of a function, beside their arguments."""

    options: Options = Options()
    depends_on: tuple[Step | str, ...] = ()
    name: str | None = None
    allowance: Allowance = Allowance()
    #: What the steps read besides their arguments.
    inputs: tuple[Input, ...] = ()
    #: Parameters whose values are handed over as they are, with what makes of them something to count by.
    identity: Mapping[str, Callable[[Any], Any]] = {}

    def with_(self, **more: Any) -> Wishes:
        """The wishes after more of them, as the user writes them.

        Raises:
            TypeError: an option that does not exist; the text lists those that do.
        """
        wishes, options, request = self, self.options, self.options.request
        for key, value in more.items():
            if key == "name":
                wishes = wishes._replace(name=_checked_name(value))
            elif key == "depends_on":
                wishes = wishes._replace(depends_on=_dependencies(value))
            elif key == "inputs":
                wishes = wishes._replace(inputs=inputs_of(value))
            elif key == "identity":
                wishes = wishes._replace(identity=_identities(value))
            elif key == "allow_failure":
                wishes = wishes._replace(allowance=Allowance.of(value))
            elif key in ("cpus", "gpus", "memory", "fresh"):
                asked: dict[str, Any] = {key: bytes_of(value) if key == "memory" else value}
                request = request._replace(**asked)
            elif key == "max_age":
                options = options._replace(max_age=seconds_of(value))
            elif key in _OPTIONS:
                options = options._replace(**{key: _OPTIONS[key](value)})
            elif key in ("always", "copy", "keep", "seed"):
                options = options._replace(**{key: value})
            else:
                raise TypeError(f"There is no option '{key}'. Options: {', '.join(OPTIONS)}.")
        if options is self.options and request is options.request:
            return wishes  # with the very options: steps that share them are known as alike
        return wishes._replace(options=_placed(options)._replace(request=_checked(request)))


def timeout_of(value: Any) -> float | None:
    """The seconds after which a step is ended, as the user writes them; None for no limit.

    Raises:
        ValueError: it is no time.
    """
    seconds = seconds_of(value)
    if seconds is not None and not seconds > 0:
        raise ValueError(f"timeout={value!r}: give a time over 0, or None for no limit")
    return seconds


#: What becomes of options as the user writes them.
_OPTIONS: dict[str, Callable[[Any], Any]] = {
    "codec": lambda value: codecs.get(value).name,
    "outputs": Outputs.of,
    "retry": Retry.of,
    "timeout": timeout_of,
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
        "fresh",
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
        self._name = callable_name(function)
        self._parameters = parameters.of(function)
        self._fewest, self._most = self._parameters.arity if self._parameters is not None else (0, math.inf)
        self._definition: Definition | None = None
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
        wishes, kwargs = self._split(kwargs) if kwargs else (self._wishes, kwargs)
        args, kwargs = tuple(map(_as_steps, args)), {key: _as_steps(value) for key, value in kwargs.items()}
        if (step := self._gathered(wishes, args, kwargs)) is not None:
            return step
        name = wishes.name or self._named()
        family = Family(
            self._defined(wishes), (self._taken(name, args, kwargs, wishes),), name, None, self._group(name, wishes)
        )
        self._home.add(family)
        return Step(family)

    def _gathered(self, wishes: Wishes, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Step | None:
        """A call with plain arguments and no wishes of its own, taken with those before it; None where it is another,
        or one that the function does not take.
        """
        plain = not (wishes.inputs or wishes.identity or wishes.allowance or wishes.name)
        if wishes is not self._wishes or not plain or (identity := plain_call(args, kwargs)) is None:
            return None
        try:
            self._check("", args, kwargs)
        except TypeError:
            return None
        return self._home.gather(self._defined(wishes), self._name, args, kwargs, identity)

    def options(self, **options: Any) -> StepFunction:
        """The same function with other options: `train.options(name="long", timeout=3600)(x)`."""
        return StepFunction(self.function, self._home, self._wishes.with_(**options))

    def map(self, *iterables: Iterable[Any], **constants: Any) -> Steps:
        """A step for each element, or for each tuple of elements of several iterables of the same length.

        Keywords are given to every step; `name=`, `allow_failure=` and `depends_on=` are taken as options (the
        allowance is for all of them together) unless the function has parameters of these names.
        """
        if not iterables:
            raise TypeError(f"{self._name}.map() needs at least one iterable")
        for each in iterables:
            _iterable(each, "map")
        wishes, constants = self._split({key: _as_steps(value) for key, value in constants.items()})
        columns = [*map(_taken_once, iterables)]
        sizes = [*map(len, columns)]
        if len(set(sizes)) > 1:
            raise ValueError(f"{self._name}.map() needs iterables of one length, not of {', '.join(map(str, sizes))}")
        return self._many([Column(each) for each in columns], {}, constants, sizes[0], wishes)

    def product(self, *axes: Iterable[Any], **named_axes: Any) -> Steps:
        """A step for every combination: `train.product(model=["a", "b"], depth=[2, 4, 8])` makes six, the last axis
        fastest.
        """
        wishes, named = self._split(named_axes)
        for each in (*axes, *named.values()):
            _iterable(each, "product")
        given = [_taken_once(each) for each in (*axes, *named.values())]
        sizes = [len(each) for each in given]
        columns = [Column(each, math.prod(sizes[k + 1 :])) for k, each in enumerate(given)]
        keywords = dict(zip(named, columns[len(axes) :], strict=True))
        return self._many(columns[: len(axes)], keywords, {}, math.prod(sizes), wishes)

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
        positional: list[Column],
        named: dict[str, Column],
        constants: dict[str, Any],
        size: int,
        wishes: Wishes,
    ) -> Steps:
        label = wishes.name or self._name
        first = self._home.number(label, size)
        calls: Sequence[Arguments] | None = None
        if not wishes.inputs and not wishes.identity:
            calls = self._in_columns(f"{label}[{first}]", positional, named, constants, size)
        if calls is None:
            calls = tuple(
                self._taken(
                    f"{label}[{first + k}]",
                    tuple([column.at(k) for column in positional]),
                    {**constants, **{key: column.at(k) for key, column in named.items()}},
                    wishes,
                )
                for k in range(size)
            )
        family = Family(self._defined(wishes), calls, label, first, self._group(label, wishes))
        self._home.add(family)
        return Steps(parts=[(family, range(size))] if size else [])

    def _in_columns(
        self, name: str, positional: list[Column], named: dict[str, Column], constants: dict[str, Any], size: int
    ) -> Columns | None:
        """The calls as columns; None where each has to be frozen on its own."""
        plain = {id(column): column_of(column.values) for column in (*positional, *named.values())}
        if not size or any(values is None for values in plain.values()):
            return None
        self._check(name, tuple([c.at(0) for c in positional]), {**constants, **{k: c.at(0) for k, c in named.items()}})
        found = Columns(
            [Column(plain[id(c)] or (), c.stride) for c in positional],
            {key: Column(plain[id(c)] or (), c.stride) for key, c in named.items()},
            constants,
            size,
            of=name,
        )
        return found if found.is_simple else None

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
        return self._parameters is not None and self._parameters.accepts(word)

    def _named(self) -> str:
        number = self._home.number(self._name)
        return f"{self._name}[{number}]" if number else self._name

    @staticmethod
    def _group(label: str, wishes: Wishes) -> Group | None:
        return Group(label=label, allowance=wishes.allowance) if wishes.allowance else None

    def _defined(self, wishes: Wishes) -> Definition:
        """What the steps have in common; made once for all calls without options of their own."""
        if wishes is self._wishes and self._definition is not None:
            return self._definition
        found = Definition(
            function=self.function,
            home=self._home,
            options=wishes.options,
            after=wishes.depends_on,
            named=wishes.name is not None,
            parameters=self._parameters.names if self._parameters is not None else (),
            title=getattr(self.function, "step_title", "") or codecs.get(wishes.options.codec).title,
        )
        if wishes is self._wishes:
            self._definition = found
        return found

    def _taken(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], wishes: Wishes) -> Arguments:
        """The arguments of a call, checked and frozen."""
        self._check(name, args, kwargs)
        if strange := next((each for each in wishes.identity if not self._accepts(each)), None):
            raise TypeError(f"identity= of '{name}' has '{strange}': {self._name}() has no such parameter.")
        names = self._defined(wishes).parameters
        return freeze(args, kwargs, of=name, names=names, inputs=wishes.inputs, identity=wishes.identity)

    def _check(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """See that the function takes these arguments."""
        if not kwargs and self._fewest <= len(args) <= self._most:
            return
        if self._parameters is None or self._parameters.take(len(args), kwargs):
            return
        if why := parameters.misfit(self.function, args, kwargs):
            raise TypeError(f"{self._name}() for step '{name}': {why}")


def _taken_once(given: Iterable[Any]) -> Sequence[Any]:
    """What was given to `map` or `product`, which may be used up by being read."""
    if isinstance(given, (range, tuple, Steps)):
        return given
    listed = [*given]
    found = _as_steps(listed)
    return found if isinstance(found, Steps) else tuple(listed)


def _as_steps(value: Any) -> Any:
    """A list of steps as what `map` gives for them: it arrives as the list of their values, and counts as the same."""
    return Steps(value) if type(value) is list and value and set(map(type, value)) == {Step} else value


def _plain(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


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
    if name is not None and re.search(r"\[\d+\.\.\d+\]$", name):
        raise ValueError(f"name={name!r}: several steps are written so together. Give another.")
    return name


def _placed(options: Options) -> Options:
    """What is to be left in a folder of the step's own is moved into the cache; elsewhere it stays."""
    if options.workdir is None or not options.outputs.patterns:
        return options
    return options._replace(workdir=options.workdir.leaving(options.outputs.patterns), outputs=Outputs())


def _checked(request: Request) -> Request:
    whole = isinstance(request.cpus, int)
    if not whole or request.cpus < 1 or request.gpus < 0 or request.memory < 0:
        raise ValueError(f"{request}: ask for at least one core, and for no negative amount")
    return request
