"""How a script ends, however it was started."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Launcher

SCRIPT = """
import sys, threading
from ezpyp import Pipeline, as_pickle_step

pipeline = Pipeline("cache", "failing")

@as_pickle_step(pipeline)
def bad():
    raise ValueError("no")

bad()
if "thread" in sys.argv:
    thread = threading.Thread(target=pipeline.execute)
    thread.start()
    thread.join()
else:
    pipeline.execute()
print("the script goes on")
"""


@pytest.mark.parametrize(
    ("arguments", "stdin", "code"),
    [
        (["script.py"], "", 1),
        (["script.py", "thread"], "", 1),
        (["-m", "script"], "", 1),
        (["-c", SCRIPT], "", 1),
        (["-"], SCRIPT, 1),
        (["-m", "mpi4py", "script.py"], "", 1),
        (["-m", "cProfile", "-o", "profile", "script.py"], "", 1),
        (["-c", "import runpy; runpy.run_path('script.py', run_name='__main__')"], "", 1),
        (["-c", "import code; code.InteractiveInterpreter().runsource('import script')"], "", 0),
        (["-m", "unittest", "-q", "script"], "", 5 if sys.version_info >= (3, 12) else 0),
    ],
    ids=lambda value: " ".join(value)[:20] if isinstance(value, list) else "",
)
def test_a_failed_pipeline_ends_its_script_with_1(
    python: Launcher, tmp_path: Path, arguments: list[str], stdin: str, code: int
) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env=python.environment(),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "the script goes on" in done.stdout, done.stderr
    assert done.returncode == code, done.stderr
