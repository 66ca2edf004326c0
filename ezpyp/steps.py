"""What a step is, and what came of one. Frozen values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Any, NamedTuple, Protocol, TypeVar, overload

from ezpyp.arguments import Arguments, Deferred, describe, plain_value, shorten
from ezpyp.outputs import Kept, Left, Outputs
from ezpyp.policy import Allowance, Retry
from ezpyp.scratch import Room

__all__ = [
    "Brief",
    "Failed",
    "Group",
    "Home",
    "Options",
    "Outcome",
    "Place",
    "PlaceHolder",
    "Request",
    "Status",
    "Step",
    "Steps",
    "succeeded",
]

T = TypeVar("T")


class Status(IntEnum):
    """What came of a step, in the numbers that users of ezpyp know."""

    NOT_RUN = -1
    DONE = 0
    FAILED = 1
    SKIPPED = 2


class Home(Protocol):
    """What a step asks of the pipeline it belongs to."""

    def get_status(self, step: Step, /) -> Status: ...
    def get_result(self, name: str, /) -> Any: ...
    def result(self, name: str, /) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a step needs while it runs. `gpus` may be a fraction; `memory` is in bytes, 0 for unsaid."""

    cpus: int = 1
    gpus: float = 0
    memory: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a step is run and kept. Of these the codec, the version and what it uses are part of its identity."""

    codec: str = "pickle"
    request: Request = Request()
    retry: Retry = Retry()
    #: Seconds a run may take before its helper is ended; None for no limit.
    timeout: float | None = None
    #: Give the step private copies of large arrays instead of read-only views.
    copy: bool = False
    #: "auto": from pipeline id, function name and arguments; a number: that; None: leave the generators alone.
    seed: int | str | None = "auto"
    #: Stands for the code in the identity: edits are shown, and rerun nothing until it changes.
    version: str | None = None
    #: Functions, classes and values that its code leads to in ways that cannot be read from it.
    uses: tuple[object, ...] = ()
    #: Run again in every run, or when the result is older than so many seconds; what depends on it follows.
    always: bool = False
    max_age: float | None = None
    #: False: the result is dropped when the last step that needs it is done.
    keep: bool = True
    #: Files that it has to leave where they are.
    outputs: Outputs = Outputs()
    #: Where it runs, if not where the script was started.
    workdir: Room | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Group:
    """Steps that share an allowance for failures: the members of one `map`, or a single step."""

    label: str
    allowance: Allowance


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Step(Deferred):
    """One call of one function, not evaluated yet. Equal only to itself; unique by name in its pipeline."""

    name: str
    function: Callable[..., Any]
    arguments: Arguments
    #: Steps (or names of steps) that must be done first without giving a value.
    after: tuple[Step | str, ...] = ()
    options: Options = Options()
    group: Group | None = None
    #: True where the user chose the name: then it is part of the identity.
    named: bool = False
    #: The function's parameter names, in order, for display.
    parameters: tuple[str, ...] = ()
    #: "Pickle", "NumPy", …: how the codec calls itself in listings.
    title: str = "Pickle"
    home: Home = field(repr=False)

    def __repr__(self) -> str:
        return f"{self.title} Step Object '{self.name}'"

    def sources(self) -> tuple[Step, ...]:
        return (self,)

    @cached_property
    def depends_on(self) -> list[Step | str]:
        """The nearest dependencies, each once: those given by `depends_on`, then those whose values are arguments."""
        found: dict[int | str, Step | str] = {}
        for each in (*self.after, *self.arguments.sources()):
            found.setdefault(each if isinstance(each, str) else id(each), each)
        return list(found.values())

    @property
    def args(self) -> list[Any]:
        """The positional arguments, with a PlaceHolder for each value that another step will make."""
        return list(self.arguments.thaw(_as_placeholder)[0])

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword arguments, with a PlaceHolder for each value that another step will make."""
        return self.arguments.thaw(_as_placeholder)[1]

    @property
    def function_name(self) -> str:
        return callable_name(self.function)

    def bound(self) -> dict[str, Any]:
        """Parameter names to argument values as JSON can hold them."""
        args, kwargs = self.args, self.kwargs
        named = {self.parameters[k] if k < len(self.parameters) else f"args[{k}]": a for k, a in enumerate(args)}
        return {k: plain_value(v) for k, v in {**named, **kwargs}.items()}

    @property
    def label(self) -> str:
        """The name with its arguments: `sim[17] x=0.3 seed=4`."""
        texts = (f"{k}={v if isinstance(v, str) else shorten(v)}" for k, v in self.bound().items())
        return shorten_text(" ".join([self.name, *texts]), 120)

    def texts(self) -> tuple[str, str]:
        """The arguments as the schema shows them: `[TMP for alpha, TMP for beta]`, `{}`."""
        return describe(self.args, self.kwargs)

    def get_status(self) -> Status:
        """What came of it: -1 not run, 0 done, 1 failed, 2 skipped."""
        return self.home.get_status(self)

    def get_result(self) -> Any:
        """Its value, read from the cache; warns and gives None where there is none."""
        return self.home.get_result(self.name)

    def result(self) -> Any:
        """Its value, read from the cache.

        Raises:
            ResultUnavailable: it did not run, failed, or was skipped; the text says which, since when and what to do.
        """
        return self.home.result(self.name)


class PlaceHolder(Deferred):
    """Stands in an argument list for the value that `step` will make. Passing the step itself does the same."""

    __slots__ = ("step",)

    def __init__(self, step: Step) -> None:
        if not isinstance(step, Step):
            raise TypeError(f"PlaceHolder({shorten(step)}): give the step that a decorated function returned")
        self.step = step

    def __repr__(self) -> str:
        return f"TMP for {self.step.name}"

    def sources(self) -> tuple[Step, ...]:
        return (self.step,)


class Steps(Deferred, Sequence[Step]):
    """Steps made together by `map` or `product`. Passed to a later step, it arrives as the list of their values."""

    __slots__ = ("_steps",)
    one = False

    def __init__(self, steps: Iterable[Step]) -> None:
        self._steps = tuple(steps)

    def __repr__(self) -> str:
        few = ", ".join(f"TMP for {step.name}" for step in self._steps[:3])
        return f"[{few}{', …' if len(self._steps) > 3 else ''}]"

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[Step]:
        return iter(self._steps)

    @overload
    def __getitem__(self, place: int) -> Step: ...
    @overload
    def __getitem__(self, place: slice) -> Steps: ...
    def __getitem__(self, place: int | slice) -> Step | Steps:
        return Steps(self._steps[place]) if isinstance(place, slice) else self._steps[place]

    def __add__(self, other: Iterable[Step]) -> Steps:
        return Steps((*self._steps, *other))

    def sources(self) -> tuple[Step, ...]:
        return self._steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """What arrives in place of a value when the failure of its step was allowed. It is falsy."""

    name: str
    arguments: str
    reason: str

    def __bool__(self) -> bool:
        return False


K = TypeVar("K")


@overload
def succeeded(results: dict[K, T]) -> dict[K, T]: ...
@overload
def succeeded(results: Sequence[T]) -> list[T]: ...
def succeeded(results: Any) -> Any:
    """The results without those that failed: a list for a list, a dict for a dict."""
    if isinstance(results, dict):
        return {k: v for k, v in results.items() if not isinstance(v, Failed)}
    return [each for each in results if not isinstance(each, Failed)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one run of one step. Travels between ranks; a few hundred bytes unless it carries a traceback."""

    #: The step's index in the plan.
    step: int
    status: Status
    #: When it ended, in seconds since 1970 (UTC), and how long it took.
    when: float = 0.0
    seconds: float = 0.0
    rank: int = 0
    host: str = ""
    attempt: int = 1
    #: The arguments as bound, shortened.
    args: str = "[]"
    kwargs: str = "{}"
    #: One line: the reason of a failure, whom a skip is to blame on, or something worth knowing.
    note: str = ""
    #: "exception", "exit", "signal", "oom", "timeout", "encode", "input", "output", "lost", "interrupted", "blamed"; ""
    #: when done.
    cause: str = ""
    #: The user's frames.
    traceback: str = ""
    #: Where its output is: (file in logs/, first byte, end).
    log: tuple[str, int, int] | None = None
    #: The last lines of its output, for failures.
    tail: str = ""
    #: Names of the inputs that arrived as Failed.
    missing: tuple[str, ...] = ()
    #: Where and how the result lies: relative to the cache folder.
    location: str = ""
    codec: str = ""
    bytes: int = 0
    checksum: str = ""
    #: Returned files, in the order in which the result numbers them.
    files: tuple[Kept, ...] = ()
    outputs: tuple[Left, ...] = ()
    #: Its result was there and is gone, because nothing needs it any more.
    dropped: bool = False


class Place(NamedTuple):
    """Where a result lies in a store, in numbers that travel. Without segments only its size and checksum tell."""

    segment: int
    #: Of its record, in bytes.
    offset: int
    #: Of the result, in bytes.
    size: int
    #: xxh3, 64 bits.
    checksum: int


class Brief(NamedTuple):
    """A step that is done and of which there is nothing to say but numbers: most are. See `briefs`, how they travel."""

    step: int
    attempt: int
    rank: int
    #: As in Outcome.
    when: float
    seconds: float
    place: Place


def callable_name(function: Callable[..., Any]) -> str:
    """A name for any callable: functions, methods, partials, instances with __call__. A lambda is `lambda`."""
    inner = getattr(function, "func", None)
    name = getattr(function, "__name__", None) or (
        callable_name(inner) if inner is not None else type(function).__name__
    )
    return "lambda" if name == "<lambda>" else str(name)


def shorten_text(text: str, width: int) -> str:
    """At most `width` characters of one line."""
    return text if len(text) <= width else text[: width - 1] + "…"


def _as_placeholder(value: Deferred) -> Any:
    if isinstance(value, Step):
        return PlaceHolder(value)
    return value
