# ruff: noqa: RUF012  (what is written here is what is tested)
# mypy: ignore-errors
"""What the functions in `study` lead to. Editing this file, comments excepted, changes golden digests."""

import dataclasses
import enum
import functools
import math
from collections import namedtuple
from typing import Any, NamedTuple

K = 3
SCALES = {"low": 0.5, "high": 2.0, "both": (0.5, 2.0)}
Pair = namedtuple("Pair", "x y")


class Point(NamedTuple):
    x: float
    y: float = 1.0

    def norm(self) -> float:
        return math.hypot(self.x, self.y)


class Colour(enum.Enum):
    RED = 1
    BLUE = enum.auto()

    def shade(self) -> int:
        return int(self.value) * K


class Mode(enum.Flag):
    READ = enum.auto()
    WRITE = enum.auto()


class Model:
    """A class with data, a property, static and class methods."""

    rate = 0.1
    layers = [1, 2]

    def __init__(self, depth: int = 2) -> None:
        self.depth = depth

    def fit(self, x: float) -> float:
        return loss(x) * self.rate**self.depth

    @property
    def size(self) -> int:
        return sum(self.layers)

    @size.setter
    def size(self, value: int) -> None:
        self.layers = [value]

    @staticmethod
    def empty() -> "Model":
        return Model(0)

    @classmethod
    def deep(cls) -> "Model":
        return cls(K)


@dataclasses.dataclass(frozen=True, slots=True)
class Config(Model):
    lr: float = 0.1
    colour: Colour = Colour.RED
    names: list = dataclasses.field(default_factory=list)

    def fit(self, x: float) -> float:
        return super().fit(x) * self.lr


@dataclasses.dataclass
class Plain:
    a: int
    b: Any = None


def loss(x: float) -> float:
    """The docstring does not count."""
    return math.sin(x) * K + SCALES["low"]


def plus_one(function):
    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        return function(*args, **kwargs) + 1

    return wrapper


@plus_one
def decorated(x, lr=0.1, *, power=2):
    return x**power * lr


@functools.lru_cache(maxsize=4)
def remembered(x):
    return loss(x)


@functools.singledispatch
def general(x):
    return x


@general.register
def _(x: int):
    return x * K


def even(n):
    return n == 0 or odd(n - 1)


def odd(n):
    return n != 0 and even(n - 1)


def adder(k):
    def add(x):
        return x + k

    return add


add_three = adder(3)
lambdas = (lambda x: x + 1, lambda x: x + 2)
