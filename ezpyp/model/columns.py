"""The arguments of very many calls as columns: the arguments of one are made when they are asked for.

A column is what `map` or an axis of `product` was given: a range, plain values, or steps. What all calls share is
frozen once. The identity of each call is the one that the equal single call would have.
"""

from __future__ import annotations

import marshal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain, cycle, islice, repeat
from math import prod
from typing import Any, overload

from ezpyp.identity.atoms import BRIEF, FOLDED, brief, group, octets, text
from ezpyp.model.arguments import Arguments, Deferred, encoded, freeze, plain_encoder
from ezpyp.system.digests import blake2b

#: What stands for the only deferred value of a call.
_ONLY = octets(b"R", b"deferred 0 1")


class Column:
    """Values that repeat: the value of call i is `values[i // stride % len(values)]`."""

    __slots__ = ("stride", "values")

    def __init__(self, values: Sequence[Any], stride: int = 1) -> None:
        self.values, self.stride = values, stride

    def at(self, i: int) -> Any:
        return self.values[i // self.stride % len(self.values)]

    def between(self, members: range) -> Sequence[Any]:
        """The values of calls that follow each other."""
        if self.stride == 1 and members.stop <= len(self.values):
            return self.values[members.start : members.stop]
        return [self.at(i) for i in members]

    def pieces(self, size: int) -> Iterator[bytes]:
        """The bytes of the values of so many calls, or more."""
        values = self.values
        if isinstance(values, Deferred):
            return repeat(_ONLY)
        each: Iterator[bytes] = map(_piece if not isinstance(values, range) else b"i%d;".__mod__, values)
        if self.stride > 1:
            each = chain.from_iterable(repeat(one, self.stride) for one in each)
        return cycle(each) if len(values) * self.stride < size else iter(each)


def column_of(given: Iterable[Any]) -> Sequence[Any] | None:
    """What was given, kept as it is where it is immutable, else copied. None where its values are not plain."""
    if isinstance(given, range):
        return given if not given or max(abs(given[0]), abs(given[-1])) < 1 << 64 else None
    if isinstance(given, Deferred):
        return given if isinstance(given, Sequence) else None
    values = given if type(given) is tuple else tuple(given)
    return values if all(_is_plain_kind(kind, values) for kind in set(map(type, values))) else None


def _is_plain_kind(kind: type, values: tuple[Any, ...]) -> bool:
    if plain_encoder(kind) is None:
        return False
    return kind is not tuple or all(_is_plain(each) for each in values if type(each) is tuple)


def _is_plain(value: Any) -> bool:
    return all(map(_is_plain, value)) if type(value) is tuple else plain_encoder(type(value)) is not None


class _Calls(Sequence[Arguments]):
    """The arguments of so many calls, those of each made when they are asked for."""

    __slots__ = ("_size",)
    _size: int

    def __len__(self) -> int:
        return self._size

    @overload
    def __getitem__(self, i: int) -> Arguments: ...
    @overload
    def __getitem__(self, i: slice) -> list[Arguments]: ...
    def __getitem__(self, i: int | slice) -> Arguments | list[Arguments]:
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(self._size))]
        if not 0 <= i < self._size:
            raise IndexError(i)
        return self._make(i)

    def _make(self, i: int) -> Arguments:
        """The arguments of a call that is there."""
        raise NotImplementedError


class Columns(_Calls):
    """The arguments of calls: of each column one value, with what all calls share.

    Attributes:
        positional, named: the columns of positional and of keyword arguments.
        shared: keyword arguments that every call gets; none where there are named columns.
    """

    __slots__ = ("_is_plain", "_parts", "named", "positional", "shared")

    def __init__(
        self, positional: Sequence[Column], named: Mapping[str, Column], constants: dict[str, Any], size: int, of: str
    ) -> None:
        """Raises IdentityError where the constants cannot be taken by value (`of` is the function's name)."""
        assert not (named and constants), "product() has no constants, map() no named columns"
        self.positional, self.named, self._size = tuple(positional), dict(named), size
        self.shared = freeze((), constants, of=of)
        self._is_plain = self.shared.plain is not None and not self.shared.deferred and not self.deferred
        #: What stands in the bytes of every call, and where the columns stand in it.
        self._parts: list[bytes | Column] = [b"t2(t%d(" % len(self.positional), *self.positional]
        if self.named:
            self._parts.append(b"d%d(" % len(self.named))
            for key, name in sorted((text(name), name) for name in self.named):
                self._parts += [key, self.named[name]]
        else:
            self._parts.append(encoded(constants, self.shared.deferred))

    @property
    def columns(self) -> tuple[Column, ...]:
        return (*self.positional, *self.named.values())

    @property
    def deferred(self) -> list[Column]:
        """The columns of steps."""
        return [column for column in self.columns if isinstance(column.values, Deferred)]

    @property
    def is_simple(self) -> bool:
        """Whether these calls can be kept so. Else each is frozen on its own: it reads files, or its deferred values
        cannot be told apart by their columns.
        """
        shared = self.shared
        return not shared.inputs and (shared.plain is not None or len(self.deferred) + len(shared.deferred) < 2)

    def _make(self, i: int) -> Arguments:
        args = tuple([column.at(i) for column in self.positional])
        kwargs = {name: column.at(i) for name, column in self.named.items()}
        shared = self.shared
        if shared.plain is not None:
            return freeze(args, {**shared.plain[1], **kwargs}, of="")
        return Arguments(
            None,
            None,
            (*[each for each in args if isinstance(each, Deferred)], *shared.deferred),
            shared.arrays,
            identity := self._identity(i),
            identity,
            met=shared.met,
            joined=(args, kwargs, shared),
        )

    def plain(self, i: int) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The arguments of a call, without finding its identity; None where there is more to them than plain values."""
        return self.given(i) if self._is_plain else None

    def given(self, i: int) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """The same, with steps in place of the values that they will make."""
        if self.shared.plain is None:
            return None
        kwargs = dict(self.shared.plain[1])
        for name, column in self.named.items():
            kwargs[name] = column.at(i)
        return tuple([column.at(i) for column in self.positional]), kwargs

    def between(self, members: range) -> list[Sequence[Any]] | None:
        """The columns of positional arguments of calls that follow each other; None where there are others than plain
        values, or keyword arguments that are not the same for all.
        """
        return [column.between(members) for column in self.positional] if self._is_plain and not self.named else None

    def identities(self, before: bytes = b"") -> Iterator[bytes]:
        """The identity of each call in order, in bulk; each comes after these bytes."""
        made = self._counted(before)
        if made is None:
            made = map(before.__add__, self._made()) if before else self._made()
        return made

    def _counted(self, before: bytes) -> Iterator[bytes] | None:
        """The identities where nothing but one number tells the calls apart, which most often is so."""
        (column, *others) = self.columns or (Column(()),)
        values = column.values
        if others or not isinstance(values, range) or len(values) != self._size or self._longest() > BRIEF:
            return None
        around = [part.replace(b"%", b"%%") if isinstance(part, bytes) else b"i%d;" for part in self._parts]
        return map(b"".join([before.replace(b"%", b"%%"), *around]).__mod__, values)

    def _made(self) -> Iterator[bytes]:
        if self.deferred and len(self.deferred) + len(self.shared.deferred) > 1:
            return (self[i].identity for i in range(self._size))  # the same step may come more than once in a call
        longest = self._longest()
        if longest > FOLDED:
            return map(self._identity, range(self._size))
        pieces = [repeat(part) if isinstance(part, bytes) else part.pieces(self._size) for part in self._parts]
        joined = islice(map(b"".join, zip(*pieces, strict=False)), self._size)
        return joined if longest <= BRIEF else map(brief, joined)

    def digest(self) -> bytes:
        """What tells these calls from others within one run, for all of them together."""
        whole = blake2b(repr([self._size, list(self.named)]).encode() + self.shared.digest, digest_size=16)
        for column in self.columns:
            values = column.values
            if isinstance(values, range):
                content = repr(values).encode()
            elif isinstance(values, Deferred):
                content = b"steps %d" % len(values)
            else:
                content = marshal.dumps(
                    tuple(values), 2
                )  # without references, which would depend on who else has a value
            whole.update(b"%d %d:" % (column.stride, len(content)) + content)
        return whole.digest()

    def differ(self) -> bool:
        """Whether no two of the calls are the same."""
        columns = self.columns
        if prod(len(column.values) for column in columns) == self._size:
            return all(_differ(column.values) for column in columns)
        return any(_differ(column.values) for column in columns) or len(set(self.identities())) == self._size

    def apart(self, other: Columns) -> bool:
        """Whether it is plain to see that none of these calls is one of those."""
        if len(self.positional) != len(other.positional) or self.named.keys() != other.named.keys():
            return True
        if not self.deferred and not other.deferred and self.shared.digest != other.shared.digest:
            return True
        return any(_apart(mine.values, theirs.values) for mine, theirs in zip(self.columns, other.columns, strict=True))

    def _longest(self) -> int:
        """No call has more bytes than this."""
        return sum(
            len(part)
            if isinstance(part, bytes)
            else 24
            if isinstance(part.values, (range, Deferred))
            else max(map(len, map(_piece, part.values)), default=0)
            for part in self._parts
        )

    def _identity(self, i: int) -> bytes:
        """The general way, which folds long pieces."""
        pieces = [part if isinstance(part, bytes) else _piece(part.at(i)) for part in self._parts]
        count = len(self.positional)
        tail = group(b"d", list(map(bytes.__add__, pieces[count + 2 :: 2], pieces[count + 3 :: 2])))
        return brief(group(b"t", [group(b"t", pieces[1 : count + 1]), tail if self.named else pieces[-1]]))


class Gathered(_Calls):
    """The arguments of single calls, plain and given in the same way, as they come in; columns once all are here."""

    __slots__ = ("_columns", "names")

    def __init__(self, positional: int, names: tuple[str, ...]) -> None:
        """
        Args:
            positional: how many arguments have no names. names: of the others.
        """
        self._columns: list[list[Any]] = [[] for _ in range(positional + len(names))]
        self.names, self._size = names, 0

    def add(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        for column, value in zip(self._columns, (*args, *kwargs.values()) if kwargs else args, strict=True):
            column.append(value)
        self._size += 1

    def takes(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether a call is given its arguments in the same way."""
        return len(args) + len(kwargs) == len(self._columns) and self.names == (*kwargs,)

    def undo(self) -> None:
        """Forget the last call."""
        for column in self._columns:
            column.pop()
        self._size -= 1

    def columns(self, of: str) -> Columns:
        """All of them; for the function of this name."""
        made = [Column(_counted(each) or tuple(each)) for each in self._columns]
        count = len(made) - len(self.names)
        return Columns(made[:count], dict(zip(self.names, made[count:], strict=True)), {}, self._size, of=of)

    def _make(self, i: int) -> Arguments:
        values = [column[i] for column in self._columns]
        count = len(values) - len(self.names)
        return freeze(tuple(values[:count]), dict(zip(self.names, values[count:], strict=True)), of="")


def _counted(values: list[Any]) -> range | None:
    """Numbers that follow each other at equal distances as a range."""
    if len(values) < 2 or set(map(type, values)) != {int} or not (step := values[1] - values[0]):
        return None
    found = range(values[0], values[0] + step * len(values), step)
    return found if column_of(found) is not None and values == [*found] else None


def _piece(value: Any) -> bytes:
    if isinstance(value, Deferred):
        return _ONLY
    encode = plain_encoder(type(value))
    assert encode is not None, "columns hold plain values and steps"
    return encode(value)


def _differ(values: Sequence[Any]) -> bool:
    """Whether no two values are the same, 1 and 1.0 being different."""
    if isinstance(values, range):
        return True
    if isinstance(values, Deferred):
        return values.differ()
    if len(set(map(type, values))) == 1 and type(values[0]) in (int, str, bytes):
        return len(set(values)) == len(values)
    return len(set(map(_piece, values))) == len(values)


def _apart(mine: Sequence[Any], theirs: Sequence[Any]) -> bool:
    """Whether it is plain to see that no value is in both."""
    if isinstance(mine, Deferred) or isinstance(theirs, Deferred):
        return not isinstance(mine, Deferred) or not isinstance(theirs, Deferred) or mine.apart(theirs)
    if not isinstance(mine, range) or not isinstance(theirs, range):
        return False
    low, high = (sorted((each[0], each[-1])) for each in (mine, theirs))
    return low[1] < high[0] or high[1] < low[0]
