"""What the package promises before anything runs: a cheap import, a full front door, arrows pointing down."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import textwrap
import types
import zipfile
from typing import TYPE_CHECKING

import pytest

import ezpyp
from tests.conftest import CHECKOUT, least_cost

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.conftest import Launcher

#: What a thousand ranks must not read from a shared file system before they need it.
HEAVY = {
    *("asyncio", "multiprocessing", "sqlite3", "ssl", "subprocess"),
    *("click", "cloudpickle", "mpi4py", "numpy", "pandas", "pyarrow", "pynvml", "xxhash", "yaml"),
}


# Importing


def cost(launcher: Launcher, code: str, limit: float) -> float:
    """Seconds of processor time that the interpreter takes for this code."""
    command = [str(launcher.bin / "python"), "-c", code]
    return least_cost(lambda: subprocess.run(command, env=launcher.environment(), check=True), limit)


def test_import_costs_under_80_ms(python: Launcher) -> None:
    nothing = min(cost(python, "pass", 0.1) for _ in range(3))
    assert cost(python, "import ezpyp", nothing + 0.080) - nothing < 0.080


def test_import_brings_nothing_heavy(python: Launcher) -> None:
    code = f"import sys; before = set(sys.modules); import ezpyp; print({HEAVY!r} & (set(sys.modules) - before))"
    found = python.run(0, code)
    assert found.returncode == 0, found.stderr
    assert found.stdout == "set()\n"


#: What only some runs need, by what these ask for: GPUs, programs, shares, failures, other plans, other ranks.
SELDOM = {
    *("copy", "dataclasses", "difflib", "dis", "glob", "hashlib", "inspect", "linecache"),
    *("pathlib", "shutil", "tempfile", "tokenize", "traceback"),
    *("ezpyp.cluster", "ezpyp.front.commands", "ezpyp.inspection", "ezpyp.programs", "ezpyp.upkeep"),
    *("ezpyp.folder.borrowing", "ezpyp.folder.entries", "ezpyp.folder.progress", "ezpyp.folder.script"),
    *("ezpyp.folder.sharing", "ezpyp.folder.tallies", "ezpyp.model.shares", "ezpyp.ranks.leftovers"),
    *("ezpyp.ranks.team", "ezpyp.run.collecting", "ezpyp.run.division", "ezpyp.run.prospect"),
    *("ezpyp.schedule.allowances", "ezpyp.schedule.deadline", "ezpyp.schedule.dispatch", "ezpyp.schedule.seats"),
    *("ezpyp.scripts.cuda", "ezpyp.scripts.frozen"),
    *("ezpyp.scripts.snapshot", "ezpyp.storage.memory", "ezpyp.storage.transfer", "ezpyp.system.usage"),
    *("ezpyp.work.postmortem", "ezpyp.work.renewal"),
}
#: What a run needs of the other kind of store.
OTHERS = {
    "files": {"ezpyp.storage.packed", "ezpyp.storage.catalog", "ezpyp.storage.index", "ezpyp.storage.series"},
    "packed": {"ezpyp.storage.filestore"},
}


@pytest.mark.parametrize("store", OTHERS)
def test_a_run_loads_nothing_that_it_has_no_use_for(python: Launcher, store: str) -> None:
    code = f"""
        import sys
        before = set(sys.modules)
        import ezpyp
        pipeline = ezpyp.Pipeline("cache", "study", store={store!r})
        @ezpyp.as_pickle_step(pipeline)
        def alpha(x):
            return x
        alpha(alpha(1), name="beta")
        assert pipeline.execute().done == 2
        print(*(set(sys.modules) - before), file=sys.stderr)
    """
    found = python.run(0, textwrap.dedent(code), env={"EZPYP_LINES": "off"})
    assert found.returncode == 0, found.stderr
    assert (SELDOM | HEAVY | OTHERS[store]) & set(found.stderr.split()) == {"xxhash"}


#: What looks at the folder, decides and tells: on rank 0.
FIRST = {
    *("ast", "ezpyp.folder.admission", "ezpyp.folder.archive", "ezpyp.folder.durations", "ezpyp.folder.folding"),
    *("ezpyp.folder.holder", "ezpyp.folder.lock", "ezpyp.folder.schema", "ezpyp.folder.surveys", "ezpyp.identity.code"),
    *("ezpyp.run.conductor", "ezpyp.run.provenance", "ezpyp.run.report", "ezpyp.run.resume", "ezpyp.schedule.ledger"),
    *("ezpyp.schedule.pace", "ezpyp.schedule.ready", "ezpyp.schedule.seats"),
}


def test_other_ranks_load_nothing_of_what_only_rank_0_does(mpirun: Launcher) -> None:
    code = """
        import os, sys
        import ezpyp
        pipeline = ezpyp.Pipeline("cache", "study")
        @ezpyp.as_pickle_step(pipeline)
        def alpha(x):
            return x
        alpha.map(range(4))
        pipeline.execute()
        from mpi4py import MPI
        os.write(2, f"{MPI.COMM_WORLD.rank} {' '.join(sys.modules)}\\n".encode())
    """
    found = mpirun.run(2, textwrap.dedent(code), env={"EZPYP_LINES": "off"})
    assert found.returncode == 0, found.stderr
    loaded = dict(line.split(" ", 1) for line in found.stderr.splitlines() if " ezpyp " in line)
    assert set(loaded["0"].split()) >= FIRST
    assert FIRST & set(loaded["1"].split()) == set()


@pytest.mark.parametrize("store", OTHERS)
def test_a_helper_loads_nothing_to_keep_a_result(mpirun: Launcher, store: str) -> None:
    """A step may leave it no file that it could open."""
    code = f"""
        import os, sys
        import ezpyp
        pipeline = ezpyp.Pipeline("cache", "study", store={store!r})
        loaded = set()
        @ezpyp.as_pickle_step(pipeline)
        def alpha(x):
            late = sorted(set(sys.modules) - loaded) if loaded else []
            loaded.update(sys.modules)
            return late
        steps = alpha.map(range(20))
        pipeline.execute()
        late = {{name for step in steps for name in step.result()}}
        os.write(2, f"late {{late}}\\n".encode())
    """
    found = mpirun.run(2, textwrap.dedent(code), env={"EZPYP_LINES": "off"})
    assert found.returncode == 0, found.stderr
    assert {line for line in found.stderr.splitlines() if line.startswith("late")} == {"late set()"}


def test_every_exported_name_is_there_and_every_public_name_is_exported() -> None:
    public = {
        name
        for name, value in vars(ezpyp).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType) and name != "annotations"
    }
    assert list(ezpyp.__all__) == sorted(ezpyp.__all__)
    assert public <= set(ezpyp.__all__)
    assert [name for name in ezpyp.__all__ if not hasattr(ezpyp, name)] == []


# Layers


def layers() -> list[str]:
    """The modules in the order of the README's architecture section, highest last: `errors`, `system.files`."""
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    section = re.search(r"^## Architecture$(.*?)(?=^## )", readme, re.MULTILINE | re.DOTALL)
    assert section, "README.md has no section 'Architecture'"
    found, package = [], ""
    for indent, name, is_package in re.findall(r"^ {4}( {2})?(\w+)(/?) {2,}\S", section[1], re.MULTILINE):
        if is_package:
            package = name
        else:
            found.append(f"{package}.{name}" if indent else name)
    return found


def imported(path: Path) -> Iterator[str]:
    """The modules of ezpyp that a module imports, anywhere but for type checkers alone."""
    files = path.rglob("*.py") if path.is_dir() else [path]
    waiting: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8")) for file in files]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[2] for alias in node.names if alias.name.startswith("ezpyp."))
        elif isinstance(node, ast.ImportFrom) and node.module == "ezpyp":
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ezpyp."):
            source = str(node.module).partition(".")[2]
            package = (CHECKOUT / "ezpyp" / source).is_dir() and source != "testing"
            yield from (f"{source}.{alias.name}" if package else source for alias in node.names)
        waiting.extend(ast.iter_child_nodes(node))


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(CHECKOUT / "ezpyp").with_suffix("").parts)


def modules() -> list[Path]:
    """Every module; the programs to test with count as one."""
    package = CHECKOUT / "ezpyp"
    files = [path for path in package.rglob("*.py") if not path.name.startswith("__")]
    return sorted([*(path for path in files if path.parent.name != "testing"), package / "testing"])


def test_the_readme_lists_every_module_once() -> None:
    assert sorted(layers()) == sorted(map(name_of, modules()))


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_imports_point_down(path: Path) -> None:
    order = layers()
    below = set(order[: order.index(name_of(path))])
    upwards = [name for name in imported(path) if name not in below and name != "__version__"]
    assert upwards == [], f"{name_of(path)} imports what is above it in the README's list"


# The wheel


def test_the_wheel_holds_the_package_and_its_types(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    wanted = {str(path.relative_to(CHECKOUT)) for path in (CHECKOUT / "ezpyp").rglob("*.py")} | {"ezpyp/py.typed"}
    assert wanted <= names
    assert any(name.endswith("/licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests", "examples"))]
