"""Every step draws from its own seed, so that results do not depend on rank, order or helper.

The seed comes from the pipeline's id, the function's name and the arguments, not from the code: an edit keeps the
draws. It is planted in `random`, and in `numpy.random` and `torch` where they are loaded; where a step loads them,
right after that. A generator that a step makes for itself takes `numpy.random.default_rng(ezpyp.seed())`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, cast

from ezpyp.errors import InitializationError
from ezpyp.system.digests import blake2b

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_OUTSIDE = object()
#: The seed of the step that runs in this process; None where it leaves the generators alone.
_current: Any = _OUTSIDE


def seed_of(pipeline_id: str, function_name: str, arguments_digest: bytes, name: str | None) -> int:
    """The seed of a step: 63 bits, the same on every machine and every day.

    `name` only where the user chose it: then two steps of one function and equal arguments draw differently.
    """
    return Seeds(pipeline_id, function_name).of(arguments_digest, name)


class Seeds:
    """The seeds of the steps of one function: what they have in common is digested once."""

    __slots__ = ("_begun",)

    def __init__(self, pipeline_id: str, function_name: str) -> None:
        self._begun = blake2b(digest_size=8, person=b"ezpyp-seed-1")
        self._begun.update(_part(pipeline_id.encode()) + _part(function_name.encode()))

    def of(self, arguments_digest: bytes, name: str | None) -> int:
        """See `seed_of`."""
        whole = self._begun.copy()
        # "name or none" and "the empty name" differ.
        whole.update(_part(arguments_digest) if name is None else _part(arguments_digest) + _part(name.encode()))
        return int.from_bytes(whole.digest(), "little") >> 1


def _part(data: bytes) -> bytes:
    """With its length: ("ab", "c") and ("a", "bc") are kept apart."""
    return len(data).to_bytes(4, "little") + data


def plant(seed: int | None) -> None:
    """A step begins, with this seed. None leaves all generators alone.

    Costs 4 µs, with `numpy.random` loaded 14: seeding a Mersenne twister fills 624 words.
    """
    global _current
    _current = seed
    if seed is None:
        return
    for name, sow in _SOW.items():
        module = sys.modules.get(name)
        if module is not None:
            sow(module, seed)


def clear() -> None:
    """The step is over."""
    global _current
    _current = _OUTSIDE


def current() -> int:
    """The seed of the running step.

    Raises:
        InitializationError: no step runs here, or the step has none.
    """
    if _current is _OUTSIDE:
        raise InitializationError(
            "ezpyp.seed() has a value only inside a running step. Call it in the step's function."
        )
    if _current is None:
        raise InitializationError(
            "This step was made with seed=None and has no seed. Take seed=None away, or give a number."
        )
    return int(_current)


def watch_imports() -> None:
    """Plant the running step's seed also in what is loaded only by the step. Once a process; again does nothing."""
    if not any(isinstance(finder, _Watch) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Watch())


class _Watch:
    """Finds nothing itself: lets the others find a module that has a generator, and plants once it is executed."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _SOW:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None) if finder is not self else None
            spec = find(name, path, target) if find is not None else None
            if spec is not None:
                _plant_after(spec)
                return cast("ModuleSpec", spec)
        return None


def _plant_after(spec: ModuleSpec) -> None:
    loader: Any = spec.loader
    if loader is None or isinstance(loader, type):
        return  # a namespace, or built in: its loader is a class that all such modules share
    execute, sow = loader.exec_module, _SOW[spec.name]

    def exec_module(module: ModuleType) -> None:
        del loader.exec_module
        execute(module)
        if _current is not _OUTSIDE and _current is not None:
            sow(module, _current)

    loader.exec_module = exec_module


# ----- one generator each; a module that is only half loaded has none yet


def _sow_random(module: Any, seed: int) -> None:
    if hasattr(module, "seed"):
        module.seed(seed)


def _sow_numpy(module: Any, seed: int) -> None:
    if not hasattr(module, "seed"):
        return
    # A small number gives what numpy.random.seed(number) gives; 32 bits are too few to keep 100,000 steps apart.
    seed = abs(seed)
    words = seed if seed < 2**32 else [seed >> shift & 0xFFFFFFFF for shift in range(0, seed.bit_length(), 32)]
    module.seed(words)


def _sow_torch(module: Any, seed: int) -> None:
    if hasattr(module, "manual_seed"):
        module.manual_seed(seed % 2**64)


#: The modules that have a generator of their own, and how each is seeded.
_SOW: dict[str, Callable[[Any, int], None]] = {
    "random": _sow_random,
    "numpy.random": _sow_numpy,
    "torch": _sow_torch,
}
