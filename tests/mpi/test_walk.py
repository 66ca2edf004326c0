"""One pipeline wherever it runs: on one folder from one kind of run to the next, and on folders of their own."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

import ezpyp
from tests.conftest import Launcher, environments, interpreter, mpi_name

SCRIPT = """
import os, random, sys, zlib
import ezpyp
from ezpyp import Pipeline, as_json_step, as_numpy_step, as_pickle_step

pipeline = Pipeline("cache", "walk", store=os.environ["WALK_STORE"], on_change="extend")
most = int(sys.argv[1])

@as_pickle_step(pipeline)
def draw(k):
    import numpy
    return k, random.random(), float(numpy.random.rand()), ezpyp.seed()

@as_numpy_step(pipeline)
def row(drawn, length):
    import numpy
    return numpy.full(length, drawn[1])

@as_json_step(pipeline, allow_failure=True)
def ratio(x, rows):
    if x % 7 == 3:
        raise ValueError(f"{x} will not do")
    return x / (1 + sum(map(len, rows)))

@as_pickle_step(pipeline)
def total(ratios):
    return sum(ezpyp.succeeded(ratios))

@as_pickle_step(pipeline)
def spoil(x):
    raise ValueError(f"{x} is spoilt")

draws = draw.map(range(most))
rows = [row(each, 3) for each in draws]
ratios = [ratio(k, rows[max(0, k - 3) : k + 1]) for k in range(most)]
total(ratios[: most // 2], name=f"half{most}")
total([spoil(1), *ratios[:2]], name="skipped")
summary = pipeline.execute(raise_on_failure=False)
"""


@dataclass(frozen=True)
class Way:
    """One way of running it."""

    launcher: Launcher
    ranks: int = 0
    helpers: int = 1

    def run(self, folder: Path, store: str, most: int) -> None:
        launcher = replace(self.launcher, folder=folder)
        env = {"WALK_STORE": store, "EZPYP_WORKERS": str(self.helpers), "EZPYP_HELPERS": str(self.helpers)}
        done = launcher.run(self.ranks, SCRIPT, str(most), env=env, timeout=100)
        assert done.returncode in (0, 1), f"{self}\n{done.stdout}\n{done.stderr}"


def standing(folder: Path) -> tuple[list[tuple[Any, ...]], dict[str, Any]]:
    """Summary rows but for rank, host and times; and all results."""
    opened = ezpyp.open(folder / "cache")
    rows = [(r.name, r.args, r.kwargs, r.phase, r.status, r.attempts, r.note) for r in opened.summary().rows]
    return rows, {name: repr(opened[name]) for name, *_, status, _, _ in rows if status == 0}


MPICH = next((folder for folder in environments() if mpi_name(folder) == "mpich"), None)
OPENMPI = next((folder for folder in environments() if mpi_name(folder) == "openmpi"), None)
STORES = ("files", "packed")


def by(folder: Path | None, ranks: int, helpers: int = 1) -> Way:
    assert folder is not None
    return Way(Launcher(name=mpi_name(folder), bin=folder, folder=folder), ranks, helpers)


@pytest.mark.mpi
@pytest.mark.skipif(MPICH is None, reason="no MPICH: pip install 'ezpyp[mpich]'")
@pytest.mark.parametrize("store", STORES)
def test_one_rank_with_four_helpers_four_ranks_and_four_workers_are_equal(tmp_path: Path, store: str) -> None:
    alone = Way(interpreter(tmp_path))
    found = []
    for number, way in enumerate([alone, replace(alone, helpers=4), by(MPICH, 1, 4), by(MPICH, 4), by(MPICH, 2, 2)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        way.run(folder, store, 24)
        found.append(standing(folder))
    assert {row[4] for row in found[0][0]} == {0, 1, 2}
    for each in found[1:]:
        assert each == found[0]


@pytest.mark.mpi
@pytest.mark.timeout(300)
@pytest.mark.skipif(MPICH is None or OPENMPI is None, reason="needs both MPIs: EZPYP_TEST_MPIS names the other")
@pytest.mark.parametrize("store", STORES)
def test_a_folder_walks_from_one_rank_to_four_and_from_one_mpi_to_the_other(tmp_path: Path, store: str) -> None:
    """Each stage of the walk has more to do; in the end nothing tells it from a folder that one process filled."""
    walked, filled = tmp_path / "walked", tmp_path / "filled"
    walked.mkdir()
    filled.mkdir()
    ways = [by(MPICH, 1), by(MPICH, 4), Way(interpreter(tmp_path), helpers=3), by(OPENMPI, 2), by(MPICH, 3)]
    for stage, way in enumerate(ways, start=1):
        way.run(walked, store, 8 * stage)
    Way(interpreter(tmp_path)).run(filled, store, 8 * len(ways))
    assert standing(walked) == standing(filled)
    assert len(os.listdir(walked / "cache" / "journal")) == len(ways)
