"""The lasting identity of every step of a plan: code, arguments, inputs, and what comes before."""

from __future__ import annotations

import os
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from operator import add, methodcaller
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ezpyp.errors import InitializationError
from ezpyp.identity import fingerprint
from ezpyp.identity.inputs import Memory, Seen
from ezpyp.model.arguments import Arguments
from ezpyp.model.columns import Columns
from ezpyp.model.plan import Block, Plan
from ezpyp.model.steps import Definition, Family, Step, Steps, callable_name
from ezpyp.system.digests import blake2b

if TYPE_CHECKING:
    from ezpyp.identity.graph import Code

#: Bytes of a fingerprint.
SIZE = 16
_PIECES = 4096

T = TypeVar("T")


class Fingerprints(Sequence[str]):
    """Fingerprints in plan order, packed; each reads as 32 hexadecimal digits."""

    __slots__ = ("packed",)

    def __init__(self, packed: bytes) -> None:
        self.packed = packed

    def __len__(self) -> int:
        return len(self.packed) // SIZE

    def __getitem__(self, k: Any) -> Any:
        if isinstance(k, slice):
            return [self[each] for each in range(len(self))[k]]
        if piece := self.packed[k * SIZE : (k + 1) * SIZE]:
            return piece.hex()
        k = range(len(self))[k]  # the last, or none
        return self.packed[k * SIZE : (k + 1) * SIZE].hex()

    def __iter__(self) -> Iterator[str]:
        text = self.packed.hex()
        return (text[k : k + 2 * SIZE] for k in range(0, len(text), 2 * SIZE))

    def raw(self, k: int) -> bytes:
        """The bytes of one."""
        return self.packed[k * SIZE : (k + 1) * SIZE]


class Repeated(Sequence[T], Generic[T]):
    """Values of which many that follow each other are the same: each is kept once."""

    __slots__ = ("_ends", "_values")

    def __init__(self) -> None:
        self._ends, self._values = array("q"), list[T]()

    def add(self, value: T, count: int = 1) -> None:
        if self._values and self._values[-1] == value:
            self._ends[-1] += count
        elif count:
            self._ends.append(len(self) + count)
            self._values.append(value)

    def firsts(self) -> Iterator[tuple[T, int]]:
        """Each value with the place where it first follows another."""
        return zip(self._values, (0, *self._ends), strict=False)

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, k: Any) -> Any:
        if isinstance(k, slice):
            return [self[each] for each in range(len(self))[k]]
        return self._values[bisect_right(self._ends, range(len(self))[k])]


class Identity:
    """The lasting identity of every step of a plan; computed by one rank, since it reads the sources.

    Attributes:
        codes: for each step, the key of its function in `functions`.
        inputs: what steps read, by their indices, in the order of their arguments.
    """

    def __init__(
        self,
        fingerprints: Fingerprints,
        codes: Repeated[str],
        functions: Mapping[str, Code],
        inputs: Mapping[int, tuple[Seen, ...]],
    ) -> None:
        self.fingerprints, self.codes, self.functions, self.inputs = fingerprints, codes, functions, inputs


def identify(plan: Plan, memory: Memory | None = None) -> Identity:
    """Fingerprint every step: code, arguments, codec, a name given by the user, inputs, what is moved into the cache,
    and the fingerprints upstream.

    Reads each source file once. Each function is followed once however many steps call it. A version that the user gave
    stands for the code. Files that steps read are looked at through the memory.

    Raises:
        InitializationError: an input is not there or cannot be read; the text names the step and the argument.
    """
    return _Identifying(plan, memory or Memory()).all()


class _Identifying:
    """The way through a plan, in its order."""

    def __init__(self, plan: Plan, memory: Memory) -> None:
        from ezpyp.identity.code import Follower  # enters here: only the rank that reads sources needs it

        self._plan, self._memory = plan, memory
        self._follower = Follower(fingerprint.UserModules(also=plan.following.also, never=plan.following.never))
        self._followed: dict[tuple[int, ...], str] = {}
        self._functions: dict[str, Code] = {}
        self._inputs: dict[int, tuple[Seen, ...]] = {}
        self._codes: Repeated[str] = Repeated()
        self._packed = bytearray()
        #: By code and definition.
        self._frames: dict[tuple[str, int], bytes] = {}

    def all(self) -> Identity:
        for block in self._plan.blocks:
            calls = block.family.calls
            if isinstance(calls, Columns) and self._is_even(block, calls):
                self._at_once(block.family, calls)
                continue
            for k, member in enumerate(block.members, block.start):
                self._one(k, Step(block.family, member), calls[member])
        return Identity(
            fingerprints=Fingerprints(bytes(self._packed)),
            codes=self._codes,
            functions=self._functions,
            inputs=self._inputs,
        )

    @staticmethod
    def _is_even(block: Block, calls: Columns) -> bool:
        """Whether fingerprints of members differ in what their columns hold, and in nothing else."""
        deferred = len(calls.deferred) + bool(calls.shared.deferred)
        return len(block.members) == len(calls) and not block.family.definition.named and deferred < 2

    def _at_once(self, family: Family, calls: Columns) -> None:
        code = self._code(Step(family), calls.shared)
        self._codes.add(code, len(calls))
        head = self._frame(code, family.definition)
        if calls.deferred:
            upstream = map(head.__add__, self._of_columns(calls))
            wholes: Iterator[bytes] = map(add, upstream, calls.identities())
        else:
            wholes = calls.identities(head + self._upstream(calls.shared.sources()))
        digests = map(_digest_of, map(_hashed, wholes))
        while some := [*islice(digests, _PIECES)]:  # so many small objects at a time
            self._packed += b"".join(some)

    def _one(self, k: int, step: Step, arguments: Arguments) -> None:
        definition = step.family.definition
        code = self._code(step, arguments)
        whole = self._frame(code, definition)
        if arguments.deferred:
            whole += self._upstream(arguments.sources())
        if arguments.inputs:
            seen = self._inputs[k] = _look(self._memory, step)
            whole += _parts(b"inputs", *(each.digest for each in seen))
        if definition.named:
            whole += _parts(b"name", step.name.encode("utf-8", "surrogatepass"))
        self._packed += _hashed(whole + arguments.identity).digest()
        self._codes.add(code)

    def _code(self, step: Step, arguments: Arguments) -> str:
        """The key of what a step's function leads to, which is followed once."""
        definition = step.family.definition
        uses = (*definition.options.uses, *arguments.met) if arguments.met else definition.options.uses
        leads = (id(definition.function), *map(id, uses)) if uses else (id(definition.function),)
        code = self._followed.get(leads)
        if code is None:
            with self._memory.asked():
                followed = self._follower.follow(definition.function, uses=uses)
            _check_asked(self._memory, step)
            code = self._followed[leads] = followed.digest
            self._functions[code] = followed
        return code

    def _frame(self, code: str, definition: Definition) -> bytes:
        """What the fingerprints of all steps of a definition begin with. The identity of the call, which begins with no
        digit, comes last; what stands between are parts.
        """
        key = code, id(definition)
        frame = self._frames.get(key)
        if frame is None:
            plan, options = self._plan, definition.options
            name = callable_name(definition.function)
            made_by = code if options.version is None else f"version {options.version} of {name}"
            places = (plan.index[each] if isinstance(each, str) else plan.places[each] for each in definition.after)
            versions = plan.following.counted(self._functions[code].packages)
            whole = _parts(made_by.encode(), options.codec.encode(), b"after", *sorted(map(self._raw, places)))
            whole += _parts(b"packages", *(f"{name} {versions[name]}".encode() for name in sorted(versions)))
            if options.workdir and options.workdir.outputs:
                whole += _parts(b"outputs", *map(os.fsencode, options.workdir.outputs))
            frame = self._frames[key] = _hashed(whole).digest()
        return frame

    def _upstream(self, sources: Iterable[Step]) -> bytes:
        return _parts(*(self._raw(self._plan.places[source]) for source in sources))

    def _of_columns(self, calls: Columns) -> Iterator[bytes]:
        """The fingerprints upstream of each member, where one column is of steps."""
        (column,) = calls.deferred
        assert isinstance(column.values, Steps)
        places, packed = self._plan.places.all(column.values.parts), self._packed
        for k in range(len(calls)):
            start = places[k // column.stride % len(places)] * SIZE
            yield b"%d:%b" % (SIZE, bytes(packed[start : start + SIZE]))

    def _raw(self, k: int) -> bytes:
        return bytes(self._packed[k * SIZE : (k + 1) * SIZE])


_hashed = partial(blake2b, digest_size=SIZE)
_digest_of = methodcaller("digest")


def _parts(*parts: bytes) -> bytes:
    """Parts with their lengths: no two lists of parts give the same bytes."""
    return b"".join([b"%d:%b" % (len(part), part) for part in parts])


def _look(memory: Memory, step: Step) -> tuple[Seen, ...]:
    found = []
    for thing in step.arguments.inputs:
        try:
            found.append(memory.look(thing))
        except InitializationError as error:
            holder = step.arguments.holder(thing, step.parameters)
            raise InitializationError(f"Step '{step.name}' reads {thing!r} ({holder}): {error}") from error
    return tuple(found)


def _check_asked(memory: Memory, step: Step) -> None:
    """Inputs that code leads to: what follows code bears whatever objects raise, so that it is told here."""
    for thing, error in memory.missed:
        raise InitializationError(
            f"Step '{step.name}' reads {thing!r} (a value that its code uses): {error}"
        ) from error
