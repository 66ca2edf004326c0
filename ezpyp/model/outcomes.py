"""What came of a step. Frozen values."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, TypeVar, overload

from ezpyp.tuples import NamedTuple

if TYPE_CHECKING:
    from ezpyp.model.outputs import Kept, Left
    from ezpyp.system.usage import Use

K = TypeVar("K")
T = TypeVar("T")


class Status(IntEnum):
    """What came of a step, in the numbers that users of ezpyp know."""

    NOT_RUN = -1
    DONE = 0
    FAILED = 1
    SKIPPED = 2


class Outcome(NamedTuple):
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
    #: What it used of GPUs, where it was granted some.
    gpu: Use | None = None
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


class Failed:
    """What arrives in place of a value when the failure of its step was allowed. It is falsy, and no tuple: who takes
    the value apart without a look at it shall not get these texts.
    """

    __slots__ = ("arguments", "name", "reason")

    def __init__(self, *, name: str, arguments: str, reason: str) -> None:
        self.name, self.arguments, self.reason = name, arguments, reason

    def __repr__(self) -> str:
        return f"Failed(name={self.name!r}, arguments={self.arguments!r}, reason={self.reason!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Failed) and self._texts() == other._texts()

    def __hash__(self) -> int:
        return hash(self._texts())

    def __bool__(self) -> bool:
        return False

    def _texts(self) -> tuple[str, str, str]:
        return self.name, self.arguments, self.reason


@overload
def succeeded(results: dict[K, T]) -> dict[K, T]: ...
@overload
def succeeded(results: Sequence[T]) -> list[T]: ...
def succeeded(results: Any) -> Any:
    """The results without those that failed: a list for a list, a dict for a dict."""
    if isinstance(results, dict):
        return {k: v for k, v in results.items() if not isinstance(v, Failed)}
    return [each for each in results if not isinstance(each, Failed)]
