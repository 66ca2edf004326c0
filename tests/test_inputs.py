"""Files that steps read: what of them counts, what reruns after which change, and who looks at them."""

from __future__ import annotations

import json
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ezpyp import (
    File,
    Files,
    InitializationError,
    Pipeline,
    RepeatedStepError,
    SchemaConflictError,
    Step,
    Tree,
    as_pickle_step,
)
from ezpyp.identity.inputs import Memory
from ezpyp.model.arguments import Arguments, freeze
from ezpyp.run import session
from tests.conftest import Launcher

# ----- values


def test_a_file_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("hello")
    monkeypatch.chdir(tmp_path)
    file = File("a.txt")
    monkeypatch.chdir("/")
    assert file.path == str(file) == os.fspath(file) == str(tmp_path / "a.txt")
    assert file.name == "a.txt"
    assert repr(file) == "File('a.txt')"
    assert Path(file).read_text() == "hello"
    with open(file) as opened:
        assert opened.read() == "hello"
    assert file == File(tmp_path / "a.txt")
    assert file != File(tmp_path / "a.txt", verify="always")
    assert sorted([file, File("/a")]) == [File("/a"), file]


@pytest.mark.parametrize("make", [File, Files, Tree])
def test_inputs_travel(make: Callable[[str], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    value = make("some/thing")
    monkeypatch.chdir("/")
    copy = pickle.loads(pickle.dumps(value))
    assert copy == value
    assert hash(copy) == hash(value)
    assert copy.text == value.text
    with pytest.raises(AttributeError):
        value.path = "other"


def test_home_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert File("~/a").path == Tree("~/a").path == "/home/ada/a"
    assert Files("~/a*").pattern == "/home/ada/a*"


def test_files_are_a_sequence_of_what_is_there(tmp_path: Path) -> None:
    for name in ("b.nc", "a.nc", "c.txt"):
        (tmp_path / name).write_text(name)
    (tmp_path / "folder.nc").mkdir()
    files = Files(tmp_path / "*.nc")
    assert [file.name for file in files] == ["a.nc", "b.nc"]
    assert len(files) == 2
    assert files[0] == File(tmp_path / "a.nc")
    assert files[:1] == (File(tmp_path / "a.nc"),)


def test_names_begin_where_the_pattern_is_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = tmp_path / "wo[r]k"  # as good a name as any, and no part of a pattern
    (here / "obs" / "2020").mkdir(parents=True)
    (here / "obs" / "2020" / "a.nc").write_text("")
    monkeypatch.chdir(here)
    assert list(Files("obs/*/*.nc").found()) == ["2020/a.nc"]
    assert list(Files("obs/**/*.nc").found()) == ["2020/a.nc"]
    assert list(Files("obs/2020/?.nc").found()) == ["a.nc"]
    assert list(Files("*/2020/a.nc").found()) == ["obs/2020/a.nc"]
    files = Files("obs/*/*.nc")
    monkeypatch.chdir("/")
    assert [file.path for file in files] == [str(here / "obs" / "2020" / "a.nc")]
    assert list(files.found()) == ["2020/a.nc"]


def test_an_unknown_way_to_verify_is_refused() -> None:
    with pytest.raises(ValueError, match="verify='never': choose 'changed' or 'always'"):
        File("a", verify="never")  # type: ignore[arg-type]


# ----- what counts


def digest(thing: File | Files | Tree) -> bytes:
    return Memory().look(thing).digest


def make_tree(folder: Path) -> Path:
    (folder / "model" / "sub").mkdir(parents=True)
    (folder / "model" / "a").write_text("a")
    (folder / "model" / "sub" / "b").write_text("b")
    (folder / "model" / "empty").mkdir()
    (folder / "model" / "link").symlink_to("sub/b")
    return folder / "model"


def test_a_file_counts_by_name_and_content(tmp_path: Path) -> None:
    for folder, name, text in (("x", "a", "1"), ("y", "a", "1"), ("y", "b", "1"), ("z", "a", "2")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(text)
    first = digest(File(tmp_path / "x" / "a"))
    assert digest(File(tmp_path / "y" / "a")) == first
    assert digest(File(tmp_path / "y" / "b")) != first
    assert digest(File(tmp_path / "z" / "a")) != first


def test_a_tree_counts_by_its_name_and_what_is_in_it(tmp_path: Path) -> None:
    first = digest(Tree(make_tree(tmp_path / "x")))
    assert digest(Tree(make_tree(tmp_path / "y"))) == first
    os.utime(tmp_path / "y" / "model" / "a")
    assert digest(Tree(tmp_path / "y" / "model")) == first
    (tmp_path / "y" / "model").rename(tmp_path / "y" / "other")
    assert digest(Tree(tmp_path / "y" / "other")) != first


def _point(link: Path, target: str) -> None:
    link.unlink()
    link.symlink_to(target)


CHANGES: dict[str, Callable[[Path], Any]] = {
    "a file more": lambda tree: (tree / "sub" / "new").write_text(""),
    "a file less": lambda tree: (tree / "a").unlink(),
    "another content": lambda tree: (tree / "sub" / "b").write_text("c"),
    "another name": lambda tree: (tree / "a").rename(tree / "c"),
    "another place": lambda tree: (tree / "a").rename(tree / "sub" / "a"),
    "an empty folder more": lambda tree: (tree / "sub" / "none").mkdir(),
    "an empty folder less": lambda tree: (tree / "empty").rmdir(),
    "a link elsewhere": lambda tree: _point(tree / "link", "a"),
    "a file for a link": lambda tree: os.replace(tree / "a", tree / "link"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_everything_in_a_tree_counts(tmp_path: Path, change: str) -> None:
    tree = make_tree(tmp_path)
    first = digest(Tree(tree))
    CHANGES[change](tree)
    assert digest(Tree(tree)) != first


def test_links_in_a_tree_are_not_followed(tmp_path: Path) -> None:
    tree = make_tree(tmp_path)
    (tree / "loop").symlink_to(".")
    (tree / "nowhere").symlink_to("/does/not/exist")
    assert digest(Tree(tree)) == digest(Tree(tree))


# ----- as arguments


def frozen(*args: Any, **kwargs: Any) -> Arguments:
    return freeze(args, kwargs, of="f", names=("first", "second"))


def test_a_call_is_told_by_paths_and_identified_without_them() -> None:
    here, there = frozen(File("/x/a")), frozen(File("/y/a"))
    assert here.digest != there.digest
    assert here.identity == there.identity
    assert here.inputs == (File("/x/a"),)
    assert frozen(File("/x/a"), 1).identity != here.identity
    assert frozen([File("/x/a")]).identity != here.identity


@pytest.mark.parametrize("wrap", [list, tuple, lambda files: {"a": files[0], "b": {"c": files[1]}}])
def test_files_are_found_in_containers(wrap: Callable[[Any], Any]) -> None:
    files = [File("/x/a"), Tree("/x/b")]
    assert frozen(wrap(files)).inputs == tuple(files)
    assert frozen(wrap(files)).thaw()[0][0] == wrap(files)


def test_the_order_of_a_dict_does_not_count() -> None:
    one = frozen({"train": File("/x/a"), "test": File("/x/b")})
    other = frozen({"test": File("/x/b"), "train": File("/x/a")})
    assert (one.digest, one.identity, one.inputs) == (other.digest, other.identity, other.inputs)


def test_the_order_of_a_set_is_that_of_every_process(python: Launcher) -> None:
    program = """
from ezpyp import File
from ezpyp.model.arguments import freeze
arguments = freeze(({File(f"/x/{k}") for k in range(20)},), {}, of="f")
print(arguments.identity.hex(), [file.path for file in arguments.inputs])
"""
    told = {python.run(0, program, env={"PYTHONHASHSEED": str(seed)}).stdout for seed in range(3)}
    assert len(told) == 1
    assert "/x/19" in told.pop()


def test_what_is_not_read_here_need_not_be_there() -> None:
    assert frozen(Files("/does/not/*/exist")).inputs == (Files("/does/not/*/exist"),)


# ----- what reruns


def note(book: str, what: str) -> None:
    with open(book, "a") as file:
        file.write(f"{what}\n")


def load(book: str, source: Any) -> str:
    files = sorted(Path(source).iterdir()) if isinstance(source, Tree) else source
    files = [files] if isinstance(files, File) else files
    texts = [Path(each).read_text() for each in files]
    note(book, f"load:{''.join(texts)}")
    return "".join(texts)


def join(book: str, texts: list[str]) -> str:
    note(book, "join")
    return "".join(texts)


class Study:
    """A pipeline on one folder, begun anew each time, and what of it ran."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.book = folder, folder / "book"
        self.cache = folder / "cache"

    def write(self, **files: str) -> None:
        (self.folder / "data").mkdir(exist_ok=True)
        for name, text in files.items():
            (self.folder / "data" / name).write_text(text)

    def run(self, *sources: Any, inputs: Any = (), **options: Any) -> list[str]:
        """Load these, join what was loaded; the names of what ran."""
        session._folders.clear()
        self.book.unlink(missing_ok=True)
        pipeline = Pipeline(self.cache, "study", executor="inline", **options)
        loads = as_pickle_step(pipeline, inputs=inputs)(load).map([str(self.book)] * len(sources), sources)
        as_pickle_step(pipeline)(join)(str(self.book), loads)
        pipeline.execute()
        return sorted(self.book.read_text().split()) if self.book.exists() else []

    def refusal(self, *sources: Any, **options: Any) -> str:
        with pytest.raises(SchemaConflictError) as caught:
            self.run(*sources, **options)
        return str(caught.value)

    def files(self, *names: str, folder: str = "data") -> list[File]:
        return [File(self.folder / folder / name) for name in names]


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return Study(tmp_path)


def test_touched_and_moved_files_rerun_nothing(study: Study) -> None:
    study.write(a="1", b="2")
    assert study.run(*study.files("a", "b")) == ["join", "load:1", "load:2"]
    os.utime(study.folder / "data" / "a")
    assert study.run(*study.files("a", "b")) == []
    (study.folder / "data").rename(study.folder / "elsewhere")
    assert study.run(*study.files("a", "b", folder="elsewhere")) == []


def test_folders_may_change_their_order(study: Study) -> None:
    """Equal names are told apart by where they stand, not by the order of their folders."""
    for folder, text in (("old", "1"), ("new", "2")):
        (study.folder / folder).mkdir()
        (study.folder / folder / "a").write_text(text)
    assert study.run([File(study.folder / "old" / "a"), File(study.folder / "new" / "a")]) == ["join", "load:12"]
    (study.folder / "old").rename(study.folder / "zero")
    assert study.run([File(study.folder / "zero" / "a"), File(study.folder / "new" / "a")]) == []
    assert "changed" in study.refusal([File(study.folder / "new" / "a"), File(study.folder / "zero" / "a")])


def test_a_changed_byte_reruns_its_step_and_what_follows(study: Study) -> None:
    study.write(a="1", b="2", c="3")
    study.run(*study.files("a", "b", "c"))
    study.write(b="4")
    kept = {path.name: path.read_bytes() for path in study.cache.iterdir() if path.is_file()}
    assert "input b changed" in study.refusal(*study.files("a", "b", "c"))
    assert {path.name: path.read_bytes() for path in study.cache.iterdir() if path.is_file()} == kept
    assert study.run(*study.files("a", "b", "c"), on_change="rerun") == ["join", "load:4"]
    assert study.run(*study.files("a", "b", "c")) == []


def test_a_change_back_finds_the_former_result(study: Study) -> None:
    study.write(a="1")
    study.run(*study.files("a"))
    study.write(a="2")
    study.run(*study.files("a"), on_change="rerun")
    study.write(a="1")
    assert study.run(*study.files("a"), on_change="rerun") == []


def test_another_name_is_another_input(study: Study) -> None:
    study.write(a="1")
    study.run(*study.files("a"))
    (study.folder / "data" / "a").rename(study.folder / "data" / "b")
    text = study.refusal(*study.files("b"))
    assert f"argument source: '{study.folder}/data/a' -> '{study.folder}/data/b'" in text


def test_verify_always_reads_again(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    from ezpyp.identity import contents

    study.write(a="1")
    path = study.folder / "data" / "a"
    study.run(File(path))
    monkeypatch.setattr(contents.Contents, "__init__", _ahead(contents.Contents.__init__))
    study.run(File(path))
    path.write_text("2")
    memory = study.cache / contents.MEMORY_FILE
    known = json.loads(memory.read_text())
    now = path.stat()
    known["files"][str(path)][:4] = [now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino]
    memory.write_text(json.dumps(known))
    assert study.run(File(path)) == []
    assert "input a changed" in study.refusal(File(path, verify="always"))


def _ahead(original: Any) -> Any:
    def init(self: Any, folder: str | None = None) -> None:
        original(self, folder, clock=lambda: time.time_ns() + 10**10)

    return init


def test_a_new_match_is_a_change(study: Study) -> None:
    study.write(a="1", b="2")
    source = Files(study.folder / "data" / "*")
    assert study.run(source) == ["join", "load:12"]
    assert study.run(source) == []
    study.write(b="5", c="3")
    pattern = study.folder / "data" / "*"
    assert f"input {pattern} changed (b changed, c is new)" in study.refusal(source)
    assert study.run(source, on_change="rerun") == ["join", "load:153"]
    (study.folder / "data" / "a").unlink()
    assert f"input {pattern} changed (a is gone)" in study.refusal(source)


def test_a_step_sees_what_is_there_when_it_runs(study: Study) -> None:
    """What the script has looked at does not bind the step."""
    study.write(a="1")
    source = Files(study.folder / "data" / "*")
    assert len(source) == 1
    study.write(b="2")
    assert study.run(source) == ["join", "load:12"]


def test_inputs_beside_the_arguments(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    study.write(a="1", table="x", mesh1="m")
    monkeypatch.chdir(study.folder)
    inputs = ["data/table", "data/mesh*", Tree("data"), Path("data/table")]
    study.run(*study.files("a"), inputs=inputs)
    assert study.run(*study.files("a"), inputs=inputs) == []
    study.write(table="y")
    text = study.refusal(*study.files("a"), inputs=inputs)
    assert "input table changed; input data changed (table changed); input table (2) changed" in text
    study.write(table="x", mesh2="m")
    assert "input data/mesh* changed (mesh2 is new)" in study.refusal(*study.files("a"), inputs=inputs)
    (study.folder / "data" / "mesh2").unlink()
    assert study.run(*study.files("a"), inputs=inputs) == []
    assert "load[0]" in study.refusal(*study.files("a"), inputs="data/table")


def test_what_is_no_input_is_refused(study: Study) -> None:
    with pytest.raises(TypeError, match=r"inputs= holds 3: give paths, patterns, File\(…\), Files\(…\) or Tree\(…\)"):
        study.run(*study.files("a"), inputs=[3])


def test_a_schema_without_inputs_is_read(study: Study) -> None:
    """Such as was written before they were recorded."""
    study.write(a="1")
    study.run(*study.files("a"))
    path = study.cache / "pipeline.schema"
    schema = json.loads(path.read_text())
    for phase in ("0", "1"):
        for entry in schema[phase]:
            del entry["inputs"]
    del schema["ezpyp"]["inputs"]
    path.write_text(json.dumps(schema))
    study.write(a="2")
    assert "2 of 2 steps changed" in study.refusal(*study.files("a"))


DATA: Any = None
GONE = File("/nowhere")


def by_code(book: str) -> str:
    note(book, "by_code")
    return Path(DATA).read_text()


def by_default(book: str, source: Any = None, other: Any = GONE) -> str:
    note(book, "by_default")
    return str(source)


@pytest.mark.parametrize("kind", [File, Tree])
def test_inputs_that_code_leads_to_count_too(study: Study, monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:
    study.write(a="1")
    path = study.folder / "data" / ("a" if kind is File else "")
    monkeypatch.setitem(globals(), "DATA", kind(path))

    def run(**options: Any) -> None:
        session._folders.clear()
        pipeline = Pipeline(study.cache, "study", executor="inline", **options)
        as_pickle_step(pipeline)(_reads if kind is Tree else by_code)(str(study.book))
        pipeline.execute()

    run()
    os.utime(study.folder / "data" / "a")
    study.book.unlink()
    run()
    assert not study.book.exists()
    study.write(a="2")
    with pytest.raises(SchemaConflictError):
        run()


def _reads(book: str) -> str:
    note(book, "reads")
    return (Path(DATA) / "a").read_text()


def test_a_missing_input_of_the_code_is_an_error(study: Study) -> None:
    pipeline = Pipeline(study.cache, "study", executor="inline")
    as_pickle_step(pipeline)(by_default)(str(study.book))
    with pytest.raises(
        InitializationError, match=r"'by_default' reads File\('/nowhere'\) \(a value that its code uses\)"
    ):
        pipeline.initialize_schema()


# ----- errors


def test_a_missing_file_is_named_with_its_step_and_argument(study: Study) -> None:
    study.write(a="1")
    with pytest.raises(InitializationError) as caught:
        study.run(*study.files("a"), {"deep": study.files("gone")})
    path = study.folder / "data" / "gone"
    assert str(caught.value) == (
        f"Step 'load[1]' reads File('{path}') (source): {path} is not there. Make it before the run; where a step "
        "makes it, let that step return File(path) and pass on the step."
    )
    assert not (study.cache / "pipeline.schema").exists()


def test_what_is_no_file_or_no_tree_is_refused(study: Study) -> None:
    study.write(a="1")
    for source, text in {
        File(study.folder / "data"): "is a folder. Give it as Tree",
        Tree(study.folder / "data" / "a"): "is no folder. Give it as File",
        Tree(study.folder / "gone"): "gone is not there",
        Files(study.folder / "data" / "*.nc"): "no file in .* fits that",
    }.items():
        with pytest.raises(InitializationError, match=text):
            study.run(source)


def test_the_very_same_call_is_told_from_one_that_reads_elsewhere(study: Study) -> None:
    study.write(a="1")
    pipeline = Pipeline(study.cache, "study")
    step = as_pickle_step(pipeline)(load)
    step("book", File("/x/a"))
    step("book", File("/y/a"))
    step.options(inputs="/z")("book", File("/y/a"))
    with pytest.raises(RepeatedStepError):
        step("book", File("/y/a"))


# ----- what is shown


def test_the_schema_and_listings_show_files_as_the_user_wrote_them(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ezpyp

    study.write(a="1", b="2")
    monkeypatch.chdir(study.folder)
    study.run(File("data/a"), Files("data/*"), Tree("data"))
    schema = json.loads((study.cache / "pipeline.schema").read_text())
    entries = {entry["name"]: entry for entry in schema["0"]}
    assert [entries[f"load[{k}]"]["arguments"]["source"] for k in range(3)] == ["data/a", "data/*", "data"]
    assert [list(entries[f"load[{k}]"]["inputs"]) for k in range(3)] == [["a"], ["data/*"], ["data"]]
    members = schema["ezpyp"]["inputs"]
    assert list(members[entries["load[1]"]["inputs"]["data/*"]]) == ["a", "b"]
    assert list(ezpyp.open(study.cache).select("load", source="data/a")) == ["load[0]"]
    assert repr(Files("data/*")) == "Files('data/*')"


# ----- draws


def draw(source: File) -> float:
    import random

    return random.random()


def test_a_step_draws_by_the_content_of_its_files(tmp_path: Path) -> None:
    def drawn(*folders: str) -> list[float]:
        pipeline = Pipeline(tmp_path / "cache" / "-".join(folders), "draws")
        steps: list[Step] = list(as_pickle_step(pipeline)(draw).map([File(tmp_path / f / "a") for f in folders]))
        pipeline.execute()
        return [step.result() for step in steps]

    for folder, text in (("x", "1"), ("y", "2"), ("z", "1")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a").write_text(text)
    first, second = drawn("x", "y")
    assert first != second
    assert drawn("z") == [first]


# ----- who looks

SWEEP = """
import os, sys
from ezpyp import File, Pipeline, as_pickle_step

opened = []
sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
pipeline = Pipeline("cache", "sweep")

@as_pickle_step(pipeline)
def size(file):
    return len(open(file).read())

size.map([File(f"data/{k}.txt") for k in range(200)])
pipeline.initialize_schema()
count = sum(path.endswith(".txt") for path in opened)
os.write(1, f"rank {int(not pipeline.is_root)} opened {count}\\n".encode())
summary = pipeline.execute()
os.write(1, f"cached {summary.cached}\\n".encode())
"""


def make_data(folder: Path) -> None:
    (folder / "data").mkdir()
    for k in range(200):
        (folder / "data" / f"{k}.txt").write_text(str(k))


def wait_until_settled(folder: Path) -> None:
    """Until the files are as old as those that people read."""
    newest = max(path.stat().st_ctime for path in (folder / "data").iterdir())
    while time.time() < newest + 2.05:
        time.sleep(0.05)


def test_of_200_unchanged_files_the_second_run_opens_none(python: Launcher, tmp_path: Path) -> None:
    make_data(tmp_path)
    wait_until_settled(tmp_path)
    assert "opened 200\ncached" not in (first := python.run(0, SWEEP)).stdout
    assert "rank 0 opened 200\n" in first.stdout, first.stderr
    second = python.run(0, SWEEP).stdout
    assert "rank 0 opened 0\n" in second
    assert "cached 200\n" in second
    os.utime(tmp_path / "data" / "7.txt")
    third = python.run(0, SWEEP).stdout
    assert "rank 0 opened 1\n" in third
    assert "cached 200\n" in third


def test_one_rank_looks_at_the_files(mpirun: Launcher, tmp_path: Path) -> None:
    make_data(tmp_path)
    told = mpirun.run(2, SWEEP)
    assert told.returncode == 0, told.stderr
    assert "rank 0 opened 200\n" in told.stdout
    assert "rank 1 opened 0\n" in told.stdout


def test_a_missing_file_is_an_error_on_every_rank(mpirun: Launcher) -> None:
    program = """
import os
from ezpyp import File, InitializationError, Pipeline, as_pickle_step
pipeline = Pipeline("cache", "missing")
@as_pickle_step(pipeline)
def size(file):
    return 1
size(File("gone.txt"))
try:
    pipeline.initialize_schema()
except InitializationError as error:
    os.write(1, f"REFUSED {'gone.txt is not there' in str(error)}\\n".encode())
"""
    told = mpirun.run(2, program)
    assert told.stdout.count("REFUSED True") == 2, told.stderr


def test_nothing_heavy_is_loaded_for_files(python: Launcher) -> None:
    program = "import sys, ezpyp; ezpyp.File('a'); print('xxhash' in sys.modules, 'numpy' in sys.modules)"
    assert python.run(0, program).stdout == "False False\n"
