# ruff: noqa: UP017, F541, C416  (what is written here is what is tested)
# mypy: ignore-errors
"""Functions and values whose digests are the same under every Python; see digests.py."""

import datetime
import decimal
import fractions
import functools
import pathlib
import uuid
from collections import OrderedDict, deque

import helpers
from helpers import Colour, Config, Mode, Model, Pair, Plain, Point

cycle: list = [1]
cycle.append(cycle)

VALUES = {
    "none": None,
    "true": True,
    "one": 1,
    "one.0": 1.0,
    "big": 1 << 200,
    "minus": -7,
    "zero": 0.0,
    "minus zero": -0.0,
    "nan": float("nan"),
    "infinity": float("-inf"),
    "complex": 1 - 2j,
    "text": "Grüße ╰─> \udcff",
    "bytes": b"\x00\xff",
    "bytearray": bytearray(b"ab"),
    "ellipsis": ...,
    "list": [1, "a", None],
    "tuple": (1, "a", None),
    "nested": {"a": [1, {2: (3,)}], 4: {5, "six", 7.0}, (8, 9): frozenset({"x", "y", "z"})},
    "empty": ([], (), {}, set(), frozenset(), "", b""),
    "ordered": OrderedDict(b=1, a=2),
    "deque": deque([1, 2], maxlen=5),
    "cycle": cycle,
    "range": range(0, 10, 3),
    "slice": slice(1, None, 2),
    "enum": Colour.BLUE,
    "flag": Mode.READ | Mode.WRITE,
    "dataclass": Plain(1, [2]),
    "slots": Config(lr=0.5, names=["a"]),
    "namedtuple": Pair(1, 2),
    "typed namedtuple": Point(1.0),
    "object": Model(3),
    "path": pathlib.PurePosixPath("a/b"),
    "real path": pathlib.Path("a/b"),
    "date": datetime.date(2026, 11, 20),
    "time": datetime.time(14, 2, fold=1),
    "moment": datetime.datetime(2026, 11, 20, 14, 2, 3, 4, tzinfo=datetime.timezone.utc),
    "delta": datetime.timedelta(days=-1, microseconds=1),
    "decimal": decimal.Decimal("1.10"),
    "fraction": fractions.Fraction(1, 3),
    "uuid": uuid.UUID(int=5),
    "function": helpers.loss,
    "builtin": len,
    "class": Model,
    "library class": decimal.Decimal,
    "partial": functools.partial(helpers.loss, 1.0),
    "method": Model(1).fit,
    "bound builtin": [1].append,
    "long list": list(range(50_000)),
}


def constants(x):
    """Docstring."""
    return x + K + helpers.K  # a comment


K = 5


def strings(x, width=8):
    name = "ab"
    spec = f"{x!r:>{width}.{helpers.K}}tail{name=}"
    return f"{x:%Y-%m}" + f"plain" + f"{x}{{}}" + spec + rb"\d".decode() + "\N{BULLET}"


def comprehensions(rows):
    found = [(a, b) for a in rows if (last := a) for b in range(helpers.K)]
    return {k: helpers.loss(v) for k, v in found}, {x for x in rows}, sum(helpers.odd(x) for x in rows), last


def branches(x: "int", *rest: float, scale: float = 2.0, **options):
    match x:
        case {"a": value, **others}:
            return value, others
        case Point(x=0.0, y=y) | Pair(_, y):
            return y
        case [first, *_] if first is None:
            return first
    try:
        with open(x) as file, helpers.remembered(file):
            pass
    except* (ValueError, OSError) as error:
        raise RuntimeError from error
    else:
        pass
    while x := x - 1:
        del rest
    return x if x else not scale, -x, ~x, options


async def waits(source):
    async with source as each:
        async for item in each:
            yield await item


def inner(x):
    global counter
    counter += x

    def nested(y, power=helpers.K):
        nonlocal x
        x += y**power
        return lambda z: x + z + K

    class Local(helpers.Model):
        rate = K

        def fit(self, x):
            return super().fit(x) + __name__.count("a")

    return nested, Local


counter = 0


def everything():
    made = helpers.Config(), helpers.Colour.RED.shade(), helpers.Mode.READ, Point(1.0).norm(), Pair(1, 2)
    called = helpers.decorated(1), helpers.remembered(2), helpers.general(3), helpers.even(4)
    return made, called, helpers.add_three(1), helpers.lambdas[1](2)


FUNCTIONS = {
    "constants": constants,
    "strings": strings,
    "comprehensions": comprehensions,
    "branches": branches,
    "waits": waits,
    "inner": inner,
    "everything": everything,
    "decorated": helpers.decorated,
    "dispatched": helpers.general,
    "remembered": helpers.remembered,
    "closure": helpers.add_three,
    "first lambda": helpers.lambdas[0],
    "second lambda": helpers.lambdas[1],
    "class": helpers.Config,
    "enum": helpers.Colour,
    "named tuple": helpers.Point,
    "made tuple": helpers.Pair,
    "method": Model(2).fit,
    "partial": functools.partial(helpers.decorated, 1),
}
