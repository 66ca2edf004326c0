"""Threads of OpenMP and BLAS libraries, as those libraries count them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ezpyp.system import pools


def run(code: str, **environ: str) -> str:
    """What a program prints that has ezpyp, numpy and no settings for threads."""
    mine = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**mine, **environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_loaded_nothing_limited() -> None:
    assert run("from ezpyp.system import pools; print(pools.limit_threads(1))") == "{}\n"


LIMIT = """
import numpy
from threadpoolctl import threadpool_info
from ezpyp.system.pools import limit_threads
print(set(limit_threads(1).values()), {pool["num_threads"] for pool in threadpool_info()})
"""


def test_loaded_pools_are_limited_as_another_library_sees_it() -> None:
    pytest.importorskip("threadpoolctl")
    pytest.importorskip("numpy")
    assert run(LIMIT, OPENBLAS_NUM_THREADS="") == "{1} {1}\n"


def test_what_the_user_set_wins_over_the_cores() -> None:
    pytest.importorskip("numpy")
    code = "import numpy; from ezpyp.system.pools import limit_threads; print(set(limit_threads(1).values()))"
    assert run(code, OMP_NUM_THREADS="2,1") == "{2}\n"
    assert run(code, OMP_NUM_THREADS="2", OPENBLAS_NUM_THREADS="3") == "{3}\n"


FORK = """
import ctypes, os, signal
from sklearn.utils import _openmp_helpers
from ezpyp.system import pools
gomp = [path for path in pools._loaded() if "libgomp" in path][0]
library = ctypes.CDLL(gomp)
assert pools.spoilt_pools() == []
assert pools.limit_threads(2)[gomp] == 2
library.GOMP_parallel(library.omp_get_num_threads, None, 2, 0)
assert pools.spoilt_pools(0.3) == [gomp]
child = os.fork()
if child == 0:
    signal.alarm(20)
    assert pools.limit_threads(2)[gomp] == 1
    library.GOMP_parallel(library.omp_get_num_threads, None, 0, 0)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_pool_that_ran_before_the_fork_is_found_and_gets_one_thread() -> None:
    pytest.importorskip("sklearn")
    if "gomp" not in run("import sklearn.utils._openmp_helpers; print(open('/proc/self/maps').read())"):
        pytest.skip("this scikit-learn was built with another OpenMP")
    assert run(FORK) == "0\n"


def test_threads_are_limited_where_the_user_did_not() -> None:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    assert pools.variables(4, {}) == dict.fromkeys(names, "4")
    assert pools.variables(4, {"MKL_NUM_THREADS": "2"}) == dict.fromkeys(set(names) - {"MKL_NUM_THREADS"}, "4")
    assert pools.variables(4, {"OMP_NUM_THREADS": "2"}) == {}
