"""What a function can be called with, told from its code: `inspect` is asked only about other callables, and for the
words of an error. It takes as long to load as a tenth of all modules of a run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from types import FunctionType
from typing import Any


class Parameters:
    """The parameters of a function.

    Attributes:
        names: all, in the order in which they are written.
        positional: those that are filled from the left.
        nameless: how many of these, the first ones, cannot be given by name.
        named: those that have to be.
        required: those without a default.
        takes_more: whether it takes any number of further arguments without a name.
        takes_any_name: whether it takes further ones with any name.
    """

    def __init__(
        self,
        *,
        names: tuple[str, ...],
        positional: tuple[str, ...],
        nameless: int,
        named: frozenset[str],
        required: frozenset[str],
        takes_more: bool,
        takes_any_name: bool,
    ) -> None:
        self.names, self.positional, self.nameless, self.named = names, positional, nameless, named
        self.required, self.takes_more, self.takes_any_name = required, takes_more, takes_any_name

    def accepts(self, name: str) -> bool:
        """Whether an argument of this name is for the function."""
        return self.takes_any_name or name in self.names

    @property
    def arity(self) -> tuple[int, float]:
        """With how many arguments without a name and no others it can be called: at least, at most."""
        if self.required & self.named:
            return 1, 0  # with none at all
        return len(self.required), math.inf if self.takes_more else len(self.positional)

    def take(self, count: int, names: Collection[str]) -> bool:
        """Whether it can be called with so many arguments without a name, and with these named ones."""
        if count > len(self.positional) and not self.takes_more:
            return False
        filled = self.positional[:count]
        free = self.named.union(self.positional[max(count, self.nameless) :])
        if self.takes_any_name:
            if any(name in names for name in filled[self.nameless :]):
                return False
        elif not free.issuperset(names):
            return False
        return self.required.issubset((*filled, *free.intersection(names)))


def of(function: Callable[..., Any]) -> Parameters | None:
    """The parameters of a callable; None where they cannot be told, as of some that are written in C."""
    if type(function) is FunctionType and not function.__dict__:  # nothing there can speak of other parameters
        return _of_plain(function)
    import inspect

    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return None
    kinds = {name: each.kind for name, each in signature.parameters.items()}
    nameless = [name for name, kind in kinds.items() if kind is inspect.Parameter.POSITIONAL_ONLY]
    either = [name for name, kind in kinds.items() if kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
    named = frozenset(name for name, kind in kinds.items() if kind is inspect.Parameter.KEYWORD_ONLY)
    usual = [name for name, each in signature.parameters.items() if each.default is not inspect.Parameter.empty]
    return Parameters(
        names=tuple(kinds),
        positional=(*nameless, *either),
        nameless=len(nameless),
        named=named,
        required=named.union(nameless, either).difference(usual),
        takes_more=inspect.Parameter.VAR_POSITIONAL in kinds.values(),
        takes_any_name=inspect.Parameter.VAR_KEYWORD in kinds.values(),
    )


def _of_plain(function: FunctionType) -> Parameters:
    code = function.__code__
    count, end = code.co_argcount, code.co_argcount + code.co_kwonlyargcount
    positional, named = code.co_varnames[:count], code.co_varnames[count:end]
    takes_more, takes_any_name = bool(code.co_flags & _VARARGS), bool(code.co_flags & _VARKEYWORDS)
    rest = code.co_varnames[end : end + takes_more + takes_any_name]
    usual = count - len(function.__defaults__ or ())
    return Parameters(
        names=(*positional, *rest[:takes_more], *named, *rest[takes_more:]),
        positional=positional,
        nameless=code.co_posonlyargcount,
        named=frozenset(named),
        required=frozenset(positional[:usual]).union(named).difference(function.__kwdefaults__ or ()),
        takes_more=takes_more,
        takes_any_name=takes_any_name,
    )


#: Flags of code that takes `*args` and `**kwargs` (inspect.CO_VARARGS, inspect.CO_VARKEYWORDS).
_VARARGS, _VARKEYWORDS = 4, 8


def misfit(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    """Why a function cannot be called so: `missing a required argument: 'b'`; "" where it can."""
    import inspect

    try:
        inspect.signature(function).bind(*args, **kwargs)
    except TypeError as error:
        return str(error)
    return ""
