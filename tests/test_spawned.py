"""Steps that use multiprocessing, in scripts that do not say `if __name__ == "__main__"`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Launcher

SCRIPT = """
import multiprocessing, sys
from dataclasses import dataclass
from ezpyp import Pipeline, as_pickle_step

with open("imports", "a") as file:
    print(__name__, file=file)
pipeline = Pipeline("cache", "spawn")

@dataclass
class Point:
    x: int

@as_pickle_step(pipeline)
def triple(x):
    return 3 * x

def enlarge(point):
    return Point(2 * triple(point.x))

@as_pickle_step(pipeline)
def pool(method, x):
    with multiprocessing.get_context(method).Pool(1) as workers:
        return workers.map(enlarge, [Point(x)])

pool("METHOD", triple(1))
pipeline.execute()
print(pipeline.result("pool"))
"""


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("ranks", [0, 2])
def test_a_process_that_a_step_starts_does_not_run_the_pipeline(
    mpirun: Launcher, tmp_path: Path, method: str, ranks: int
) -> None:
    done = mpirun.run(ranks, SCRIPT.replace("METHOD", method), timeout=30)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("[Point(x=18)]") == max(1, ranks)
    imports = (tmp_path / "imports").read_text().split()
    assert imports.count("__main__") == max(1, ranks)
    assert imports.count("__mp_main__") == (0 if method == "fork" else 1)
