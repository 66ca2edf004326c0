"""`reuse_from=`: what other folders have is taken, not run, if it is sound and fits."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from ezpyp import File, Pipeline, SchemaConflictError, StoreError, as_pickle_step, open
from ezpyp.run import session
from ezpyp.storage import transfer
from ezpyp.storage.filestore import FileStore
from tests.conftest import Launcher


def mark(book: str, what: str, *inputs: Any) -> str:
    with Path(book).open("a") as file:
        file.write(f"{what}\n")
    return f"{what}({','.join(map(str, inputs))})"


def leave(book: str, called: str) -> dict[str, File]:
    mark(book, called)
    path = Path(book).parent / called
    path.write_text(f"content of {called}")
    return {"made": File(path)}


def run(folder: Path, cache: str, *names: str, execute: bool = True, **options: Any) -> Pipeline:
    """A chain of steps: each gets the one before."""
    session._folders.clear()
    pipeline = Pipeline(folder / cache, options.pop("pipeline_id", "lend"), executor="inline", **options)
    f = as_pickle_step(pipeline)(mark)
    before: list[Any] = []
    for name in names:
        before = [f(str(folder / "book"), name, *before, name=name)]
    if execute:
        pipeline.execute()
    return pipeline


def ran(folder: Path) -> list[str]:
    book = folder / "book"
    lines = book.read_text().split() if book.exists() else []
    book.unlink(missing_ok=True)
    return lines


def test_what_is_there_is_taken_and_the_rest_is_run(tmp_path: Path) -> None:
    run(tmp_path, "a", "x", "y")
    assert ran(tmp_path) == ["x", "y"]
    pipeline = run(tmp_path, "b", "x", "y", "z", reuse_from=tmp_path / "a")
    assert ran(tmp_path) == ["z"]
    assert pipeline.result("z") == "z(y(x()))"
    assert (tmp_path / "a" / "x.step").samefile(tmp_path / "b" / "x.step")
    rows = {row.name: row.note for row in open(tmp_path / "b").summary().rows}
    assert rows == {"x": f"from {tmp_path}/a", "y": f"from {tmp_path}/a", "z": ""}
    shutil.rmtree(tmp_path / "a")
    assert run(tmp_path, "b", "x", "y", "z").result("x") == "x()"
    assert ran(tmp_path) == []
    assert not list((tmp_path / "b" / "old").iterdir())


def test_other_code_or_arguments_are_not_taken(tmp_path: Path) -> None:
    run(tmp_path, "a", "x", "y")
    ran(tmp_path)
    run(tmp_path, "b", "w", "y", reuse_from=[tmp_path / "a"])
    assert ran(tmp_path) == ["w", "y"]


def test_the_first_folder_that_has_it_gives_it(tmp_path: Path) -> None:
    run(tmp_path, "a", "x")
    run(tmp_path, "b", "x", "y")
    ran(tmp_path)
    run(tmp_path, "c", "x", "y", reuse_from=[tmp_path / "a", str(tmp_path / "b"), tmp_path / "c"])
    assert ran(tmp_path) == []
    rows = {row.name: row.note for row in open(tmp_path / "c").summary().rows}
    assert rows == {"x": f"from {tmp_path}/a", "y": f"from {tmp_path}/b"}


def test_a_copy_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    run(tmp_path, "a", "x")
    with monkeypatch.context() as patch:
        patch.setattr("os.link", refuse)
        (tmp_path / "c").mkdir()
        source, target = FileStore(tmp_path / "a"), FileStore(tmp_path / "c")
        record = source.read("x")
        assert record is not None
        transfer.take(record, source, str(tmp_path / "a"), target, str(tmp_path / "c"), "x")
    assert not (tmp_path / "a" / "x.step").samefile(tmp_path / "c" / "x.step")
    assert target.get(target.records().records["x"]) == source.get(record)


def test_a_torn_result_is_named_and_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tmp_path, "a", "x", "y")
    ran(tmp_path)
    path = tmp_path / "a" / "x.step"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert run(tmp_path, "b", "x", "y", reuse_from=tmp_path / "a").result("y") == "y(x())"
    assert ran(tmp_path) == ["x"]
    assert f"{path} is not what 'x' wrote" in capsys.readouterr().err


def test_returned_files_come_along(tmp_path: Path) -> None:
    def build(cache: str, **options: Any) -> Pipeline:
        session._folders.clear()
        pipeline = Pipeline(tmp_path / cache, "lend", executor="inline", **options)
        as_pickle_step(pipeline)(leave)(str(tmp_path / "book"), "data.txt", name="made")
        pipeline.execute()
        return pipeline

    build("a")
    assert ran(tmp_path) == ["data.txt"]
    build("b", reuse_from=tmp_path / "a")
    assert ran(tmp_path) == []
    shutil.rmtree(tmp_path / "a")
    file = build("b").result("made")["made"]
    assert Path(file).read_text() == "content of data.txt"
    assert Path(file).is_relative_to(tmp_path / "b")
    build("c", reuse_from=tmp_path / "b")
    assert ran(tmp_path) == []
    Path(file).write_text("content of DATA.txt")
    build("d", reuse_from=tmp_path / "b")
    assert ran(tmp_path) == ["data.txt"]


def test_failures_and_dropped_results_are_not_taken(tmp_path: Path) -> None:
    def build(cache: str, book: str, **options: Any) -> Pipeline:
        session._folders.clear()
        pipeline = Pipeline(tmp_path / cache, "lend", executor="inline", **options)
        f = as_pickle_step(pipeline)(mark)
        first = f.options(keep=False)(book, "first", name="first")
        f(book, "second", first, name="second")
        pipeline.execute(raise_on_failure=False)
        return pipeline

    book = str(tmp_path / "book")
    build("a", book)
    assert ran(tmp_path) == ["first", "second"]
    build("b", book, reuse_from=tmp_path / "a")
    assert ran(tmp_path) == ["first"]
    Path(book).mkdir()  # nothing can be written there
    build("c", book)
    Path(book).rmdir()
    build("d", book, reuse_from=tmp_path / "c")
    assert ran(tmp_path) == ["first", "second"]


def test_replaced_results_are_kept_all_the_same(tmp_path: Path) -> None:
    run(tmp_path, "a", "x", "new")
    run(tmp_path, "b", "x", "old")
    ran(tmp_path)

    def again(what: str, **options: Any) -> Pipeline:
        session._folders.clear()
        pipeline = Pipeline(tmp_path / "c", "lend", executor="inline", on_change="rerun", **options)
        as_pickle_step(pipeline)(mark)(str(tmp_path / "book"), what, name="only")
        pipeline.execute()
        return pipeline

    again("one")
    shutil.copytree(tmp_path / "c", tmp_path / "d")
    again("two")
    ran(tmp_path)
    again("one", reuse_from=tmp_path / "d", keep_old=1)
    assert ran(tmp_path) == []


@pytest.mark.parametrize("kind", ["missing", "plain", "torn", "foreign"])
def test_folders_that_are_none_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    if kind == "plain":
        other.mkdir()
    elif kind == "torn":
        run(tmp_path, "other", "x")
        (other / "pipeline.schema").write_text("{")
    elif kind == "foreign":
        run(tmp_path, "other", "x", pipeline_id="foreign")
    ran(tmp_path)
    with pytest.raises((StoreError, SchemaConflictError), match=str(other)):
        run(tmp_path, "b", "x", reuse_from=other)
    assert ran(tmp_path) == []
    assert not (tmp_path / "b" / "pipeline.schema").exists()


def test_under_mpi_too(mpirun: Launcher) -> None:
    script = """
import sys
from ezpyp import Pipeline, as_pickle_step
pipeline = Pipeline(sys.argv[1], "ranks", reuse_from=sys.argv[2:])
@as_pickle_step(pipeline)
def part(x):
    print("RUNNING", x)
    return x
part.map(range(int(6)))
assert pipeline.execute().ok
"""
    assert mpirun.run(2, script, "a").returncode == 0
    done = mpirun.run(2, script, "b", "a")
    assert done.returncode == 0, done.stderr
    assert "6 of 6 done, 0 to run" in done.stdout
