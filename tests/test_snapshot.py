"""A copy of a script runs as the script did when it was copied, whatever becomes of the script."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from ezpyp.errors import StoreError
from ezpyp.scripts import frozen, loading, snapshot

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Launcher

SCRIPT = """
import sys
from pathlib import Path
import lab.tools
from ezpyp import Pipeline, as_json_step

pipeline = Pipeline("cache", "study")
HERE = Path(__file__).parent

@as_json_step(pipeline)
def measure(word):
    import late
    beside = (HERE / "data.txt").read_text()
    return [word, lab.tools.scale(3), late.VALUE, beside]

@as_json_step(pipeline)
def spawned(k):
    import concurrent.futures, multiprocessing
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(lab.tools.scale, k).result()

one, two = measure(sys.argv[1]), spawned(4)
if __name__ == "__main__":
    pipeline.execute()
    print(one.result(), two.result())
"""


@pytest.fixture
def study(tmp_path: Path) -> Path:
    """A script with a package, a module that is imported in a step, and data beside it."""
    folder = tmp_path / "my study"
    (folder / "lab").mkdir(parents=True)
    (folder / "study.py").write_text(SCRIPT)
    (folder / "lab/__init__.py").write_text("")
    (folder / "lab/tools.py").write_text("from .units import FACTOR\n\ndef scale(x):\n    return x * FACTOR\n")
    (folder / "lab/units.py").write_text("FACTOR = 10\n")
    (folder / "late.py").write_text("VALUE = 'late'\n")
    (folder / "data.txt").write_text("data")
    return folder / "study.py"


def copy(script: Path, cache: Path) -> str:
    """As `ezpyp submit` makes it."""
    foreign = set(sys.modules)
    try:
        return snapshot.write(snapshot.gather(loading.load(script, ["word"]), foreign), str(cache))
    finally:
        for name in set(sys.modules) - foreign:
            del sys.modules[name]


def run(python: Launcher, code: str, *args: str, **env: str) -> tuple[int, str, str]:
    """As a job starts it."""
    done = subprocess.run(
        [str(python.bin / "python"), "-P", "-m", "ezpyp.cluster.submitted", code, *args],
        cwd=python.folder,
        env=python.environment(env),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout, done.stderr


def edit(script: Path) -> None:
    script.write_text("raise SystemExit('edited')")
    (script.parent / "lab/units.py").write_text("FACTOR = 0\n")
    (script.parent / "late.py").unlink()


def test_a_copy_holds_the_users_modules_and_those_only(study: Path, tmp_path: Path) -> None:
    modules = frozen.read(copy(study, tmp_path / "cache"))
    assert [*modules] == ["__main__", "lab", "lab.tools", "lab.units", "late"]
    assert modules["lab.units"].origin == str(study.parent / "lab/units.py")


def test_edits_after_the_copy_change_nothing(python: Launcher, study: Path, tmp_path: Path) -> None:
    code = copy(study, tmp_path / "cache")
    edit(study)
    status, out, err = run(python, code, "word")
    assert status == 0, err
    assert out.endswith("\n['word', 30, 'late', 'data'] 40\n")


def test_helpers_that_are_new_interpreters_run_the_copy(python: Launcher, study: Path, tmp_path: Path) -> None:
    code = copy(study, tmp_path / "cache")
    edit(study)
    status, out, err = run(python, code, "word", EZPYP_START="fresh")
    assert status == 0, err
    assert out.endswith("\n['word', 30, 'late', 'data'] 40\n")


def test_results_of_a_copy_are_those_of_the_script(python: Launcher, study: Path, tmp_path: Path) -> None:
    """Nothing runs again where the script is started by itself afterwards, and the folder names the script."""
    code = copy(study, tmp_path / "cache")
    assert run(python, code, "word")[0] == 0
    done = python.run(0, study, "word")
    assert "2 of 2 done, 0 to run" in done.stderr + done.stdout
    assert str(study) in (tmp_path / "cache/pipeline.schema").read_text()


def test_errors_show_the_lines_of_the_copy_and_none_of_ours(python: Launcher, tmp_path: Path) -> None:
    script = tmp_path / "study.py"
    script.write_text("def fail():\n    raise ValueError('as copied')\nif __name__ == '__main__':\n    fail()\n")
    modules = {frozen.SCRIPT: frozen.Source(origin=str(script), text=script.read_bytes())}
    code = snapshot.write(modules, str(tmp_path / "cache"))
    script.write_text("\n\n\nedited\n")
    status, _, err = run(python, code)
    assert status == 1
    assert "raise ValueError('as copied')" in err
    assert "ezpyp" not in err
    assert "edited" not in err


def test_one_content_is_one_copy(study: Path, tmp_path: Path) -> None:
    first = copy(study, tmp_path / "cache")
    before = os.stat(f"{first}/{frozen.MANIFEST}").st_mtime_ns
    assert copy(study, tmp_path / "cache") == first
    assert os.stat(f"{first}/{frozen.MANIFEST}").st_mtime_ns == before
    (study.parent / "lab/units.py").write_text("FACTOR = 11\n")
    assert copy(study, tmp_path / "cache") != first


def test_a_copy_that_was_not_finished_is_made_again(study: Path, tmp_path: Path) -> None:
    code = copy(study, tmp_path / "cache")
    os.unlink(f"{code}/{frozen.MANIFEST}")
    with pytest.raises(StoreError, match="Submit again"):
        frozen.read(code)
    assert copy(study, tmp_path / "cache") == code
    assert frozen.read(code)


def test_a_torn_copy_is_not_run(study: Path, tmp_path: Path, python: Launcher) -> None:
    code = copy(study, tmp_path / "cache")
    with open(f"{code}/modules/lab/units.py", "w") as file:
        file.write("FAC")
    status, _, err = run(python, code, "word")
    assert status == 1
    assert "modules/lab/units.py is torn. Submit again." in err
