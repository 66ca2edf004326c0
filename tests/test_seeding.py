"""Seeds: the numbers themselves, and that each generator draws from them however and whenever it was loaded."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from types import ModuleType
from typing import TYPE_CHECKING

import pytest

from ezpyp.errors import InitializationError
from ezpyp.work import seeding
from ezpyp.work.seeding import clear, current, plant, seed_of

if TYPE_CHECKING:
    from collections.abc import Iterator

DIGEST = bytes(range(16))
GOLDEN = (7172750462021751499, 1463627807077895041)


@pytest.fixture(autouse=True)
def _leave_no_trace() -> Iterator[None]:
    state = random.getstate()
    yield
    clear()
    random.setstate(state)


# ----- the number


def test_seeds_never_change() -> None:
    """If this fails, every stochastic result of every user would change: give the digest another name instead."""
    assert seed_of("my_pipeline", "alpha", DIGEST, None) == GOLDEN[0]
    assert seed_of("my_pipeline", "alpha", DIGEST, "alpha") == GOLDEN[1]


def test_seeds_have_63_bits() -> None:
    seeds = [seed_of("p", "f", str(k).encode(), None) for k in range(2000)]
    assert len(set(seeds)) == 2000
    assert max(seeds) < 2**63
    assert max(seeds) > 2**62
    assert min(seeds) >= 0


def test_everything_that_makes_a_step_counts() -> None:
    calls = [
        ("p", "f", b"a", None),
        ("q", "f", b"a", None),
        ("p", "g", b"a", None),
        ("p", "f", b"b", None),
        ("p", "f", b"a", "x"),
        ("p", "f", b"a", ""),
        ("pf", "", b"a", None),
        ("", "pf", b"a", None),
    ]
    assert len({seed_of(*call) for call in calls}) == len(calls)


# ----- inside and outside of a step


def test_the_seed_is_known_while_a_step_runs() -> None:
    with pytest.raises(InitializationError, match="only inside a running step"):
        current()
    plant(7)
    assert current() == 7
    plant(0)
    assert current() == 0
    clear()
    with pytest.raises(InitializationError, match="only inside a running step"):
        current()


def test_none_leaves_the_generators_alone_and_has_no_number() -> None:
    before = random.getstate()
    plant(None)
    assert random.getstate() == before
    with pytest.raises(InitializationError, match="seed=None"):
        current()


# ----- the generators


@pytest.mark.parametrize("seed", [0, 42, 2**32 - 1, 2**32, 2**63 - 1, 2**80, -5])
def test_the_same_seed_gives_the_same_draws(seed: int) -> None:
    numpy = pytest.importorskip("numpy")
    numpy.random.seed(1)
    drawn = []
    for _ in range(2):
        plant(seed)
        drawn.append((random.random(), numpy.random.random(3).tolist()))
        random.random()
        numpy.random.random()
    assert drawn[0] == drawn[1]


def test_seeds_that_differ_only_above_32_bits_give_other_draws() -> None:
    numpy = pytest.importorskip("numpy")
    numpy.random.seed(1)
    drawn = []
    for seed in (5 + 2**32, 5 + 2**33, 5 + 2**62):
        plant(seed)
        drawn.append((random.random(), float(numpy.random.random())))
    assert len({a for a, _ in drawn}) == len({b for _, b in drawn}) == 3


def test_a_number_that_the_user_gives_is_what_the_libraries_know() -> None:
    numpy = pytest.importorskip("numpy")
    expected = (random.Random(42).random(), float(numpy.random.RandomState(42).random()))
    plant(42)
    assert (random.random(), float(numpy.random.random())) == expected


def test_another_generator_in_numpys_global_place_is_seeded_too() -> None:
    numpy = pytest.importorskip("numpy")
    before = numpy.random.get_bit_generator()
    numpy.random.set_bit_generator(numpy.random.PCG64(1))
    try:
        drawn = []
        for _ in range(2):
            plant(2**40)
            drawn.append(float(numpy.random.random()))
        assert drawn[0] == drawn[1]
        assert type(numpy.random.get_bit_generator()).__name__ == "PCG64"
    finally:
        numpy.random.set_bit_generator(before)


def test_torch_is_seeded_where_it_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    torch = ModuleType("torch")
    monkeypatch.setitem(sys.modules, "torch", torch)
    plant(3)  # half loaded: there is nothing to seed yet
    torch.manual_seed = given.append  # type: ignore[attr-defined]
    plant(3)
    plant(2**64 + 4)
    plant(None)
    assert given == [3, 4]


# ----- what a step loads itself


def run(code: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")[:-1]


LATE = """
import sys
from ezpyp.work import seeding
seeding.watch_imports()
seeding.watch_imports()
assert len([f for f in sys.meta_path if type(f).__module__ == "ezpyp.work.seeding"]) == 1
def step(seed):
    seeding.plant(seed)
    import numpy
    print(numpy.random.random())
    seeding.clear()
assert "numpy.random" not in sys.modules
step(5 + 2**40)
step(5 + 2**40)
step(6)
"""


def test_a_step_that_is_the_first_to_load_numpy_draws_from_its_seed() -> None:
    pytest.importorskip("numpy")
    first, second, other = run(LATE)
    assert first == second != other


def test_the_python_generator_too() -> None:
    code = """
import sys
from ezpyp.work import seeding
seeding.watch_imports()
seeding.plant(5)
import random
print(random.random(), random.Random(5).random(), random.__loader__.get_source("random")[:3])
"""
    late, known, source = run(code)[0].split()
    assert late == known
    assert source == '"""'


def test_torch_too(tmp_path: os.PathLike[str]) -> None:
    folder = os.path.join(tmp_path, "torch")
    os.mkdir(folder)
    with open(os.path.join(folder, "__init__.py"), "w", encoding="utf-8") as file:
        file.write("given = []\nmanual_seed = given.append\n")
    code = f"""
import importlib.util, sys
sys.path.insert(0, {os.fspath(tmp_path)!r})
from ezpyp.work import seeding
seeding.watch_imports()
seeding.plant(9)
assert importlib.util.find_spec("torch") is not None and "torch" not in sys.modules
import torch, torch
print(torch.given)
"""
    assert run(code) == ["[9]"]


def test_outside_of_a_step_and_without_a_seed_an_import_plants_nothing() -> None:
    pytest.importorskip("numpy")
    code = """
from ezpyp.work import seeding
seeding.watch_imports()
BEFORE
import numpy
print(numpy.random.random())
"""
    for before in ("", "seeding.plant(None)", "seeding.plant(5); seeding.clear()"):
        assert run(code.replace("BEFORE", before)) != run(code.replace("BEFORE", before))


def test_a_module_that_is_not_there_is_still_not_there() -> None:
    watch = seeding._Watch()
    assert watch.find_spec("random.nothing") is None
    assert watch.find_spec("numpy.random", ["/nowhere"]) is None
