"""The arguments of a step, taken by value at the call and handed out anew to each run.

Immutable arguments (numbers, strings, other steps) are kept as they are. Everything else is pickled at the call, so
that a list changed afterwards does not change the step, and unpickled for the run, so that no step sees another's
changes. Two kinds of object never enter the pickle: values that other steps will make (`Deferred`), and numeric
arrays over `SHARED_BYTES`, which are kept by reference, digested at the call and again before the run, and handed out
read-only. Files among them (`Input`) are not looked at here, but when the plan is identified.
"""

from __future__ import annotations

import enum
import io
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ezpyp.errors import ArgumentChanged, IdentityError
from ezpyp.identity import fingerprint
from ezpyp.identity.atoms import ATOMS, BRIEF, brief, group, text
from ezpyp.identity.contents import printable
from ezpyp.identity.inputs import File, Input, Tree
from ezpyp.identity.outline import field_names, shorten

if TYPE_CHECKING:
    from ezpyp.model.steps import Step

_NONE: Mapping[str, Any] = {}

#: Arrays above this many bytes are shared between steps instead of copied into each.
SHARED_BYTES = 1 << 20

#: Types whose values need no copy. `Files` does: a copy looks up once what it finds.
_IMMUTABLE = frozenset({int, float, str, bytes, bool, complex, type(None), File, Tree})


class Deferred:
    """A value that other steps will make. `one` says whether it arrives as the value itself or as a list of values."""

    __slots__ = ()
    one = True

    def sources(self) -> Sequence[Step]:
        """The steps whose values it stands for, in order."""
        raise NotImplementedError

    def differ(self) -> bool:
        """Whether these are all different steps."""
        found = self.sources()
        return len(set(found)) == len(found)

    def apart(self, other: Deferred) -> bool:
        """Whether it is plain to see that no step is in both."""
        return False


class Handed(Deferred):
    """A value that reaches the step as it is, not as a copy: in a call it counts by what `identity=` makes of it."""

    __slots__ = ("stands", "value")

    def __init__(self, value: Any, stands: Any) -> None:
        self.value, self.stands = value, stands

    def __repr__(self) -> str:
        return shorten(self.stands)

    def sources(self) -> Sequence[Step]:
        return ()


#: Gives the value for a deferred argument when the step runs.
Resolve = Callable[[Deferred], Any]


class Arguments:
    """What a call was given, by value. Never changed.

    Attributes:
        plain: (args, kwargs) where all are immutable or deferred; then `pickled` and `joined` are None.
        pickled: (args, kwargs) as bytes; persistent ids index `deferred` and `arrays`.
        arrays: large arrays with their digests at the time of the call.
        digest: tells this call from others of one run: deferred values count by their order of appearance, files by
            their paths.
        identity: the same for good: files, too, count by their order of appearance. What they hold is added when the
            plan is identified. Both are the call itself in bytes where these are few, else a digest of them.
        inputs: files in the order of their appearance, then those of `inputs=`.
        met: functions and classes among them: what these do is followed when the pipeline is initialized.
        joined: of a member of a family: immutable (args, kwargs), and keyword arguments that all members share.
    """

    __slots__ = ("arrays", "deferred", "digest", "identity", "inputs", "joined", "met", "pickled", "plain")

    def __init__(
        self,
        plain: tuple[tuple[Any, ...], dict[str, Any]] | None,
        pickled: bytes | None,
        deferred: tuple[Deferred, ...],
        arrays: tuple[tuple[Any, bytes], ...],
        digest: bytes,
        identity: bytes,
        inputs: tuple[Input, ...] = (),
        met: tuple[object, ...] = (),
        joined: tuple[tuple[Any, ...], dict[str, Any], Arguments] | None = None,
    ) -> None:
        self.plain, self.pickled, self.deferred, self.arrays = plain, pickled, deferred, arrays
        self.digest, self.identity, self.inputs, self.met, self.joined = digest, identity, inputs, met, joined

    def sources(self) -> Iterator[Step]:
        """Every step that a deferred argument stands for, as often as it appears."""
        for each in self.deferred:
            yield from each.sources()

    def holder(self, thing: Input, names: Sequence[str]) -> str:
        """The name of the argument that holds an input."""
        args, kwargs = self.thaw()
        for label, value in _labelled(args, kwargs, names):
            found: list[Input] = []
            fingerprint.digest_value(value, reference=_by_path([], found), met=[])
            if thing in found:
                return label
        return "inputs"

    def thaw(self, resolve: Resolve | None = None, *, copy: bool = False) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Fresh (args, kwargs) for one run. Without `resolve`, deferred values stay as they are.

        Large arrays are read-only views of the caller's memory, or private copies with `copy`.
        """
        if self.plain is not None:
            args, kwargs = self.plain
            if resolve is None or not self.deferred:
                return args, dict(kwargs)
            return (
                tuple(resolve(a) if isinstance(a, Deferred) else a for a in args),
                {k: resolve(a) if isinstance(a, Deferred) else a for k, a in kwargs.items()},
            )
        if self.joined is not None:
            args, kwargs, shared = self.joined
            return args, {**shared.thaw(resolve, copy=copy)[1], **kwargs}
        assert self.pickled is not None
        thawed = _Thaw(io.BytesIO(self.pickled), self, resolve, copy).load()
        return thawed[0], thawed[1]

    def changed(self, known: dict[int, bytes]) -> str | None:
        """The description of a large array that differs from what the call was given, or None.

        `known` carries digests from step to step, so that an array shared by a thousand of them is read once.
        """
        for array, digest in self.arrays:
            now = known.get(id(array))
            if now is None:
                now = known[id(array)] = fingerprint.digest_value(array)
            if now != digest:
                return shorten(array)
        return None


def freeze(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    of: str,
    names: Sequence[str] = (),
    inputs: tuple[Input, ...] = (),
    identity: Mapping[str, Callable[[Any], Any]] = _NONE,
) -> Arguments:
    """Take the arguments of a call by value.

    Args:
        of: the function's name, for messages. names: its parameters, so that a message can name the argument.
        inputs: what the call reads besides its arguments.
        identity: for parameters whose values are handed over as they are, what makes of them something to count by.

    Raises:
        IdentityError: an argument that cannot be taken by value or has no lasting identity (message 7).
    """
    if identity:
        args, kwargs = _hand_over(args, kwargs, of, names, identity)
    if not inputs and (known := plain_call(args, kwargs)) is not None:
        return Arguments((args, kwargs), None, (), (), known, known)
    deferred: list[Deferred] = []
    if all(is_immutable(a) or _defer(a, deferred) for a in (*args, *kwargs.values())):
        digest, lasting, read = _digests((args, kwargs), deferred, inputs)
        return Arguments((args, dict(kwargs)), None, tuple(deferred), (), digest, lasting, read)
    deferred.clear()
    labelled = _labelled(args, kwargs, names)
    arrays: list[tuple[Any, bytes]] = []
    met: list[object] = []
    try:
        pickled = _pickled((args, kwargs), deferred, arrays)
        digest, lasting, read = _digests((args, kwargs), deferred, inputs, met)
    except Exception as error:
        # An open connection fails to pickle too, but what is wrong with it is that it has no identity.
        raise _without_identity(labelled, of) or IdentityError(
            f"Argument '{_unpicklable(labelled)}' of '{of}' cannot be taken by value "
            f"({type(error).__name__}: {error}). Pass what it is made from (a path), or make it inside the step."
        ) from error
    return Arguments(None, pickled, tuple(deferred), tuple(arrays), digest, lasting, read, tuple(met))


def plain_call(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes | None:
    """The identity of a call whose arguments are plain, as the general way gives it; None where they are not.

    Most calls are so, and the general way takes five times as long.
    """
    try:
        pieces = [_PLAIN[type(a)](a) for a in args]
        if not kwargs and len(data := b"t2(t%d(%bd0(" % (len(pieces), b"".join(pieces))) <= BRIEF:
            return data
        named = sorted([text(k) + _PLAIN[type(v)](v) for k, v in kwargs.items()]) if kwargs else []
    except (KeyError, RecursionError):
        return None
    return brief(group(b"t", [group(b"t", pieces), group(b"d", named)]))


def encoded(value: object, deferred: Sequence[Deferred]) -> bytes:
    """The bytes of something inside a call, as they stand in the call's identity."""
    return fingerprint.encoded_value(value, reference=_by_path(deferred, []), met=[])


def plain_encoder(kind: type) -> Callable[[Any], bytes] | None:
    """What gives the bytes of values of a plain type, as they stand in the identity of a call."""
    return _PLAIN.get(kind)


def _plain_tuple(value: tuple[Any, ...]) -> bytes:
    return group(b"t", [_PLAIN[type(each)](each) for each in value])


#: Plain are numbers and texts, and tuples of such: they need no copy, and nothing has to be followed.
_PLAIN: dict[type, Callable[[Any], bytes]] = {
    **{kind: ATOMS[kind] for kind in (int, float, str, bytes, bool, complex, type(None))},
    tuple: _plain_tuple,
}


def is_immutable(value: Any) -> bool:
    """Whether a value needs no copy."""
    kind = type(value)
    return kind in _IMMUTABLE or (kind is tuple and all(map(is_immutable, value)))


def _hand_over(
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    of: str,
    names: Sequence[str],
    identity: Mapping[str, Callable[[Any], Any]],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments, those that `identity` is for within `Handed`. What other steps will make stays as it is."""

    def handed(label: str, value: Any) -> Any:
        if label not in identity or isinstance(value, Deferred):
            return value
        try:
            stands = identity[label](value)
            fingerprint.digest_value(stands, reference=_placeholder, met=[])
        except IdentityError as error:
            raise IdentityError(f"What identity= makes of argument '{label}' of '{of}' {error}") from None
        except Exception as error:
            raise IdentityError(
                f"identity= for argument '{label}' of '{of}' failed: {type(error).__name__}: {error}. "
                "Give a function of the argument that returns what it is made from."
            ) from error
        return Handed(value, stands)

    labelled = _labelled(args, kwargs, names)
    values = [handed(label, value) for label, value in labelled]
    return tuple(values[: len(args)]), dict(zip(kwargs, values[len(args) :], strict=True))


def _labelled(args: tuple[Any, ...], kwargs: dict[str, Any], names: Sequence[str]) -> list[tuple[str, Any]]:
    labels = [names[k] if k < len(names) else f"{k + 1}" for k in range(len(args))]
    return [*zip(labels, args, strict=True), *kwargs.items()]


def _digests(
    value: object, deferred: list[Deferred], more: tuple[Input, ...], met: list[object] | None = None
) -> tuple[bytes, bytes, tuple[Input, ...]]:
    """The digest, the identity, and the files that are read."""
    found: list[Input] = []
    digest = brief(fingerprint.encoded_value(value, reference=_by_path(deferred, found), met=met))
    if not found and not more:
        return digest, digest, ()
    identity = brief(fingerprint.encoded_value(value, reference=_by_place(deferred), met=[])) if found else digest
    if more:
        digest = bytes.fromhex(fingerprint.combine(digest, *(each.text for each in more)))
    return digest, identity, (*found, *more)


def _without_identity(labelled: list[tuple[str, Any]], of: str) -> IdentityError | None:
    """The error for the first argument that has no lasting identity (message 7)."""
    for label, value in labelled:
        try:
            fingerprint.digest_value(value, reference=_placeholder)
        except IdentityError as error:
            return IdentityError(f"Argument '{label}' of '{of}' {error}")
    return None


def check_unchanged(frozen: Iterable[tuple[str, Arguments]]) -> None:
    """Digest every large array again, of arguments with the names of steps that have them.

    Raises:
        ArgumentChanged: one differs from what its call was given.
    """
    known: dict[int, bytes] = {}
    for name, arguments in frozen:
        what = arguments.changed(known)
        if what is not None:
            raise ArgumentChanged(
                f"An argument of '{name}', {what}, was changed after the call that took it. "
                "Pass a copy, or make the change before the call. Nothing was run."
            )


def _defer(value: Any, into: list[Deferred]) -> bool:
    if isinstance(value, Deferred):
        into.append(value)
        return True
    return False


def _placeholder(value: Any) -> bytes | None:
    return b"deferred" if isinstance(value, Deferred) else None


def _by_path(deferred: Sequence[Deferred], found: list[Input]) -> Callable[[Any], bytes | None]:
    """Deferred values count by their place among the deferred, never by name; files by path, and are gathered."""
    places: dict[Deferred, int] = {}
    for k, each in enumerate(deferred):
        places.setdefault(each, k)

    def reference(value: Any) -> bytes | None:
        if isinstance(value, Handed):
            return b"handed " + fingerprint.digest_value(value.stands, reference=reference, met=[])
        if isinstance(value, Deferred):
            return b"deferred %d %d" % (places.get(value, -1), len(value.sources()))
        if isinstance(value, Input):
            found.append(value)
            return value.text
        return None

    return reference


def _by_place(deferred: list[Deferred]) -> Callable[[Any], bytes | None]:
    """As `_by_path`, but files by their place among the files."""
    found: list[Input] = []
    by_path = _by_path(deferred, found)

    def reference(value: Any) -> bytes | None:
        data = by_path(value)
        return b"input %d" % len(found) if isinstance(value, Input) else data

    return reference


class _Persistent:
    """What both picklers keep out of the pickle."""

    deferred: list[Deferred]
    arrays: list[tuple[Any, bytes]]

    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, Deferred):
            self.deferred.append(value)
            return ("deferred", len(self.deferred) - 1)
        if _is_large_array(value):
            self.arrays.append((value, fingerprint.digest_value(value)))
            return ("array", len(self.arrays) - 1)
        return None


class _Freeze(_Persistent, pickle.Pickler):
    pass


def _pickled(value: Any, deferred: list[Deferred], arrays: list[tuple[Any, bytes]]) -> bytes:
    buffer = io.BytesIO()
    pickler: Any = _Freeze(buffer, protocol=5)
    pickler.deferred, pickler.arrays = deferred, arrays
    try:
        pickler.dump(value)
        return buffer.getvalue()
    except Exception:
        # Lambdas and local classes: cloudpickle takes them by value.
        import cloudpickle

        class Freeze(_Persistent, cloudpickle.Pickler):  # type: ignore[misc]
            pass

        deferred.clear()
        arrays.clear()
        buffer = io.BytesIO()
        pickler = Freeze(buffer, protocol=5)
        pickler.deferred, pickler.arrays = deferred, arrays
        pickler.dump(value)
        return buffer.getvalue()


def _unpicklable(items: list[tuple[str, Any]]) -> str:
    for label, value in items:
        try:
            _pickled(value, [], [])
        except Exception:
            return label
    return items[0][0]


def _is_large_array(value: Any) -> bool:
    if type(value).__name__ != "ndarray":
        return False
    numpy = sys.modules.get("numpy")
    return (
        numpy is not None
        and isinstance(value, numpy.ndarray)
        and value.nbytes > SHARED_BYTES
        and not value.dtype.hasobject
    )


class _Thaw(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, arguments: Arguments, resolve: Resolve | None, copy: bool) -> None:
        super().__init__(file)
        self._arguments, self._resolve, self._copy = arguments, resolve, copy

    def persistent_load(self, pid: Any) -> Any:
        kind, place = pid
        if kind == "deferred":
            value = self._arguments.deferred[place]
            return value if self._resolve is None else self._resolve(value)
        array = self._arguments.arrays[place][0]
        if self._copy:
            return array.copy()
        view = array.view()
        view.flags.writeable = False
        return view


def plain_value(value: Any) -> Any:
    """The value as JSON can hold it: numbers, strings and None as they are, the rest as a short text."""
    if isinstance(value, enum.Enum):
        return value.name
    if type(value) in (int, float, str, bool, type(None)):
        return value if not isinstance(value, str) or len(value) <= 200 else shorten(value)
    if isinstance(value, Input):
        return printable(value.given)
    if isinstance(value, Handed):
        return plain_value(value.stands)
    if isinstance(value, partial):
        return f"partial({getattr(value.func, '__name__', value.func)})"
    if field_names(value) is not None:
        return shorten(value)
    item = getattr(value, "item", None)
    if item is not None and getattr(value, "shape", None) == ():
        return plain_value(item())
    return shorten(value)
