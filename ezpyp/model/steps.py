"""What a step is. Frozen values."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate, repeat
from typing import TYPE_CHECKING, Any, Protocol, overload

from ezpyp.identity.outline import describe, shorten
from ezpyp.model.arguments import Arguments, Deferred, plain_value
from ezpyp.model.outputs import Outputs
from ezpyp.model.policy import Allowance, Retry
from ezpyp.model.request import Request
from ezpyp.model.scratch import Room
from ezpyp.tuples import NamedTuple

if TYPE_CHECKING:
    from ezpyp.model.outcomes import Status

#: Families of more members are told of as one, in the schema and in the summary.
MANY = 1000


class Home(Protocol):
    """What a step asks of the pipeline it belongs to."""

    def get_status(self, step: Step, /) -> Status: ...
    def get_result(self, name: str, /) -> Any: ...
    def result(self, name: str, /) -> Any: ...


class Options(NamedTuple):
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


class Group:
    """Steps that share an allowance for failures: the members of one `map`, or a single step. Never changed."""

    __slots__ = ("allowance", "label")

    def __init__(self, label: str, allowance: Allowance) -> None:
        self.label, self.allowance = label, allowance


class Definition:
    """What all steps of a decorated function have in common. Never changed; each is itself and no other.

    Attributes:
        after: steps (or names of steps) that must be done first without giving a value.
        named: True where the user chose the name: then it is part of the identity.
        parameters: the function's parameter names, in order, for display.
        title: "Pickle", "NumPy", …: how the codec calls itself in listings.
    """

    __slots__ = ("after", "function", "home", "named", "options", "parameters", "title")

    def __init__(
        self,
        *,
        function: Callable[..., Any],
        home: Home,
        options: Options = Options(),
        after: tuple[Step | str, ...] = (),
        named: bool = False,
        parameters: tuple[str, ...] = (),
        title: str = "Pickle",
    ) -> None:
        self.function, self.home, self.options = function, home, options
        self.after, self.named, self.parameters, self.title = after, named, parameters, title


class Family:
    """Calls of one function made together: by `map` or `product`, or a single one, or single ones that follow each
    other. More of these may come until the plan is made (`Register.gather`); else it never changes once it is numbered.

    Attributes:
        label: the name of a single call; members of others are called `label[first]` and so on.
        first: the number of the first member; None for a single call.
        calls: the arguments of each member.
        group: who shares an allowance for failures.
        number: its place among the families of its pipeline; -1 before it has one.
    """

    __slots__ = ("calls", "definition", "first", "group", "label", "number")

    def __init__(
        self,
        definition: Definition,
        calls: Sequence[Arguments],
        label: str,
        first: int | None = None,
        group: Group | None = None,
    ) -> None:
        self.definition, self.calls, self.label, self.first, self.group = definition, calls, label, first, group
        self.number = -1

    def __len__(self) -> int:
        return len(self.calls)

    def name(self, member: int) -> str:
        return self.label if self.first is None else f"{self.label}[{self.first + member}]"

    def names(self, members: range) -> Iterator[str]:
        """The names of these members, in order."""
        first = self.first
        if first is None:
            return repeat(self.label, len(members))
        numbers = range(first + members.start, first + members.stop, members.step)
        return map(f"{self.label.replace('%', '%%')}[%d]".__mod__, numbers)


class Step(Deferred):
    """One call of one function, not evaluated yet: a view of a member of a family. Unique by name in its pipeline."""

    __slots__ = ("family", "member")

    def __init__(self, family: Family, member: int = 0) -> None:
        self.family, self.member = family, member

    def __repr__(self) -> str:
        return f"{self.title} Step Object '{self.name}'"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Step):
            return NotImplemented
        return self.family is other.family and self.member == other.member

    def __hash__(self) -> int:
        return hash((id(self.family), self.member))

    def sources(self) -> Sequence[Step]:
        return (self,)

    @property
    def name(self) -> str:
        return self.family.name(self.member)

    @property
    def arguments(self) -> Arguments:
        return self.family.calls[self.member]

    @property
    def function(self) -> Callable[..., Any]:
        return self.family.definition.function

    @property
    def options(self) -> Options:
        return self.family.definition.options

    @property
    def after(self) -> tuple[Step | str, ...]:
        """Steps (or names of steps) that must be done first without giving a value."""
        return self.family.definition.after

    @property
    def group(self) -> Group | None:
        return self.family.group

    @property
    def named(self) -> bool:
        """True where the user chose the name: then it is part of the identity."""
        return self.family.definition.named

    @property
    def parameters(self) -> tuple[str, ...]:
        """The function's parameter names, in order, for display."""
        return self.family.definition.parameters

    @property
    def title(self) -> str:
        """ "Pickle", "NumPy", …: how the codec calls itself in listings."""
        return self.family.definition.title

    @property
    def home(self) -> Home:
        return self.family.definition.home

    @property
    def depends_on(self) -> list[Step | str]:
        """The nearest dependencies, each once: those given by `depends_on`, then those whose values are arguments."""
        return list(dict.fromkeys((*self.after, *self.arguments.sources())))

    @property
    def args(self) -> list[Any]:
        """The positional arguments, with a PlaceHolder for each value that another step will make."""
        return list(self.arguments_shown()[0])

    @property
    def kwargs(self) -> dict[str, Any]:
        """The keyword arguments, with a PlaceHolder for each value that another step will make."""
        return self.arguments_shown()[1]

    @property
    def function_name(self) -> str:
        return callable_name(self.function)

    def arguments_shown(self) -> tuple[Sequence[Any], dict[str, Any]]:
        """`args` and `kwargs`."""
        return self.arguments.thaw(_as_placeholder)

    def bound(self) -> dict[str, Any]:
        """Parameter names to argument values as JSON can hold them."""
        return bound(self.parameters, *self.arguments_shown())

    @property
    def label(self) -> str:
        """The name with its arguments: `sim[17] x=0.3 seed=4`."""
        hidden = getattr(self.function, "not_in_labels", ())
        shown = ((k, v) for k, v in self.bound().items() if k not in hidden)
        texts = (f"{k}={v if isinstance(v, str) else shorten(v)}" for k, v in shown)
        return shorten_text(" ".join([self.name, *texts]), 120)

    def texts(self) -> tuple[str, str]:
        """The arguments as the schema shows them: `[TMP for alpha, TMP for beta]`, `{}`."""
        return describe(*self.arguments_shown())

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


def bound(parameters: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Parameter names to argument values as JSON can hold them."""
    named = {parameters[k] if k < len(parameters) else f"args[{k}]": plain_value(a) for k, a in enumerate(args)}
    return named | {k: plain_value(v) for k, v in kwargs.items()} if kwargs else named


class PlaceHolder(Deferred):
    """Stands in an argument list for the value that `step` will make. Passing the step itself does the same."""

    __slots__ = ("step",)

    def __init__(self, step: Step) -> None:
        if not isinstance(step, Step):
            raise TypeError(f"PlaceHolder({shorten(step)}): give the step that a decorated function returned")
        self.step = step

    def __repr__(self) -> str:
        return f"TMP for {self.step.name}"

    def sources(self) -> Sequence[Step]:
        return (self.step,)


class Steps(Deferred, Sequence[Step]):
    """Steps in order, most often those made together by `map` or `product`. A step is made when it is looked at.

    Passed to a later step, it arrives as the list of their values.

    Attributes:
        parts: families with the members of each that are here, in order.
    """

    __slots__ = ("_ends", "parts")
    one = False

    def __init__(self, steps: Iterable[Step] = (), *, parts: Iterable[tuple[Family, range]] | None = None) -> None:
        self.parts = tuple(_joined(steps) if parts is None else parts)
        self._ends = array("q", accumulate(len(members) for _, members in self.parts))

    def __repr__(self) -> str:
        few = ", ".join(f"TMP for {step.name}" for step in self[:3])
        return f"[{few}{', …' if len(self) > 3 else ''}]"

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[Step]:
        return (Step(family, member) for family, members in self.parts for member in members)

    @overload
    def __getitem__(self, place: int) -> Step: ...
    @overload
    def __getitem__(self, place: slice) -> Steps: ...
    def __getitem__(self, place: int | slice) -> Step | Steps:
        if isinstance(place, slice):
            return self._sliced(range(len(self))[place])
        family, member = self.find(range(len(self))[place])
        return Step(family, member)

    def __contains__(self, step: object) -> bool:
        return isinstance(step, Step) and any(
            family is step.family and step.member in members for family, members in self.parts
        )

    def __add__(self, other: Iterable[Step]) -> Steps:
        more = other if isinstance(other, Steps) else Steps(other)
        return Steps(parts=(*self.parts, *more.parts))

    def part(self, place: int) -> tuple[Family, range, int]:
        """The part that a place is in, and where the next begins."""
        part = bisect_right(self._ends, place)
        return *self.parts[part], self._ends[part]

    def find(self, place: int) -> tuple[Family, int]:
        """The family and the member at a place that is there."""
        part = bisect_right(self._ends, place)
        family, members = self.parts[part]
        return family, members[place - self._ends[part] + len(members)]

    def sources(self) -> Sequence[Step]:
        return self

    def differ(self) -> bool:
        return len(self.parts) < 2 or len(set(self)) == len(self)

    def apart(self, other: Deferred) -> bool:
        return isinstance(other, Steps) and not {f for f, _ in self.parts} & {f for f, _ in other.parts}

    def _sliced(self, places: range) -> Steps:
        if places == range(len(self)):
            return self
        if places.step != 1:
            return Steps(map(self.__getitem__, places))
        parts = []
        first = bisect_right(self._ends, places.start)
        for k, (family, members) in enumerate(self.parts[first:], first):
            begin = self._ends[k] - len(members)
            if begin >= places.stop:
                break
            parts.append((family, members[max(places.start - begin, 0) : places.stop - begin]))
        return Steps(parts=parts)


def _joined(steps: Iterable[Step]) -> Iterator[tuple[Family, range]]:
    """Steps as parts, those that follow each other in their family together."""
    family, members = None, range(0)
    for step in steps:
        if step.family is family and step.member == members.stop:
            members = range(members.start, members.stop + 1)
            continue
        if family is not None:
            yield family, members
        family, members = step.family, range(step.member, step.member + 1)
    if family is not None:
        yield family, members


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
