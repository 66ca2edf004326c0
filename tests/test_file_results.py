"""Files that steps leave: returned ones move into the cache and stay whole; declared ones have to stay as they were."""

from __future__ import annotations

import dataclasses
import json
import os
import stat
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import ezpyp
from ezpyp import File, Files, Pipeline, Status, Step, Summary, Tree, as_json_step, as_pickle_step
from ezpyp.identity.contents import content_of
from ezpyp.identity.inputs import Memory
from ezpyp.model import outputs
from ezpyp.model.outputs import Outputs
from ezpyp.run import session
from ezpyp.upkeep import cleaning
from tests.conftest import Launcher


def write(path: str, text: str = "text") -> str:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text)
    return path


def plot(path: str, text: str = "text") -> File:
    return File(write(path, text))


def read(file: File) -> str:
    return Path(file).read_text()


@dataclass(frozen=True)
class Report:
    score: int
    page: File


class Work:
    """A pipeline in a folder that is the working directory, begun anew each time."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.cache = folder, folder / "cache"
        self.steps: dict[str, Step] = {}

    def run(self, *functions: Callable[..., Any], **options: Any) -> Summary:
        """Each function is given the result of the one before; the first its own words."""
        session._folders.clear()
        pipeline = Pipeline(self.cache, "work", executor=options.pop("executor", "inline"))
        decorate = options.pop("decorate", as_pickle_step)
        given: list[Any] = []
        for function in functions:
            step = decorate(pipeline, name=function.__name__, **options)(function)(*given)
            self.steps[function.__name__], given = step, [step]
        return pipeline.execute(raise_on_failure=False)

    def result(self, name: str) -> Any:
        return ezpyp.open(self.cache)[name]

    def status(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.cache / f"{name}.status").read_text())
        return found


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    monkeypatch.chdir(tmp_path)
    return Work(tmp_path)


# ----- returned


def alpha() -> File:
    return plot("plot.png", "alpha")


def beta(file: File) -> str:
    return f"beta of {read(file)} at {file.path}"


@pytest.mark.parametrize("executor", ["inline", "processes"])
def test_a_returned_file_is_moved_and_its_consumers_get_it(work: Work, executor: str) -> None:
    summary = work.run(alpha, beta, executor=executor)
    place = work.cache / "files" / "alpha" / "plot.png"
    assert summary.ok
    assert work.result("beta") == f"beta of alpha at {place}"
    assert work.result("alpha") == work.steps["alpha"].result() == File(place)
    assert repr(work.result("alpha")) == "File('files/alpha/plot.png')"
    assert not (work.folder / "plot.png").exists()
    assert work.status("alpha")["codec"] == "file"
    assert work.status("alpha")["files"] == [["files/alpha/plot.png", 5, content_of(str(place))]]
    assert work.run(alpha, beta, executor=executor).cached == 2


def test_a_cache_that_was_moved_is_read_where_it_is(work: Work) -> None:
    work.run(alpha, beta)
    work.cache.rename(work.folder / "elsewhere")
    file = ezpyp.open(work.folder / "elsewhere")["alpha"]
    assert file.path == str(work.folder / "elsewhere" / "files" / "alpha" / "plot.png")
    assert read(file) == "alpha"
    work.cache = work.folder / "elsewhere"
    assert work.run(alpha, beta).cached == 2


def many() -> Any:
    page = plot("page.html", "page")
    return {
        "list": [plot("a/x.png", "a"), plot("b/x.png", "b")],
        "deep": ({"report": Report(score=3, page=page)}, page),
        "number": 4,
    }


@pytest.mark.parametrize("decorate", [as_pickle_step, as_json_step, ezpyp.as_cloudpickle_step])
def test_files_are_found_at_any_depth(work: Work, decorate: Any) -> None:
    assert work.run(many, decorate=decorate).ok
    result = work.result("many")
    assert [read(file) for file in result["list"]] == ["a", "b"]
    assert [file.name for file in result["list"]] == ["x.png", "x.png"]
    report = result["deep"][0]["report"]
    assert dataclasses.replace(report, page=result["deep"][1]) == report
    assert read(report.page) == "page"
    assert result["number"] == 4
    assert len(work.status("many")["files"]) == 3


def local() -> Any:
    return (lambda: 5), plot("a", "a")


def test_files_beside_what_only_cloudpickle_takes(work: Work) -> None:
    assert work.run(local).ok
    function, file = work.result("local")
    assert function() == 5
    assert read(file) == "a"


def test_a_result_without_files_is_stored_as_before(work: Work) -> None:
    def plain() -> list[int]:
        return [1]

    work.run(plain)
    assert work.status("plain")["codec"] == "pickle"
    assert "files" not in work.status("plain")
    assert not (work.cache / "files").exists()


def gone() -> Any:
    return [plot("there"), File("not/there")]


def folder_() -> Any:
    write("folder/a")
    return File("folder")


def tree() -> Any:
    write("folder/a")
    return {"x": Tree("folder")}


def pattern() -> Any:
    return Files("*")


@pytest.mark.parametrize(
    ("function", "note"),
    [
        (gone, "not/there'), which is not there"),
        (folder_, "folder'), which is no file"),
        (tree, "result['x'] is an ezpyp.identity.inputs.Tree"),
        (pattern, "only single files are moved into the cache: return File(path), or several in a list"),
    ],
)
def test_what_cannot_be_kept_fails_the_step_and_moves_nothing(
    work: Work, function: Callable[..., Any], note: str
) -> None:
    work.run(function)
    failed = work.status(function.__name__)
    assert failed["status"] == Status.FAILED
    assert note in failed["note"]
    assert not (work.cache / "files").exists()
    if function is gone:
        assert (work.folder / "there").exists()


def test_what_a_step_did_not_make_is_copied(work: Work) -> None:
    for name in ("old", "input"):
        write(name, name)

    def passes(file: File) -> Any:
        return [file, File("link"), plot("mine")]

    (work.folder / "link").symlink_to("old")
    pipeline = Pipeline(work.cache, "work", executor="inline")
    step = as_pickle_step(pipeline)(passes)(File("input"))
    pipeline.execute()
    assert [read(file) for file in step.result()] == ["input", "old", "text"]
    assert not os.path.islink(step.result()[1])
    assert [name for name in ("old", "input", "link", "mine") if (work.folder / name).exists()] == [
        "old",
        "input",
        "link",
    ]


def test_what_was_there_before_a_step_is_copied(work: Work) -> None:
    began = time.time()
    path = write("data")
    outputs.keep([path], str(work.cache), "first", since=began + 10)
    assert os.path.exists(path)
    outputs.keep([path], str(work.cache), "second", since=began)
    assert not os.path.exists(path)


def again(file: File) -> File:
    return file


def test_the_result_of_another_step_can_be_returned_again(work: Work) -> None:
    work.run(alpha, again, beta)
    first, second = work.result("alpha"), work.result("again")
    assert first.path != second.path
    assert read(first) == read(second) == "alpha"
    assert os.stat(first).st_ino == os.stat(second).st_ino


def test_a_file_that_is_gone_or_torn_is_made_again(work: Work) -> None:
    work.run(alpha, beta)
    place = work.cache / "files" / "alpha" / "plot.png"
    for harm in ("gone", "torn"):
        place.unlink() if harm == "gone" else place.write_text("alp")
        assert ezpyp.open(work.cache).status.problems
        with pytest.raises(ezpyp.StoreError, match=r"plot\.png is (gone|torn)"):
            work.result("alpha")
        assert work.run(alpha, beta).cached == 1
        assert read(work.result("alpha")) == "alpha"
        place = Path(work.result("alpha"))


def test_what_is_replaced_does_not_pile_up(work: Work) -> None:
    for _ in range(3):
        work.run(alpha, always=True)
        assert read(work.result("alpha")) == "alpha"
    assert [path.name for path in (work.cache / "files").rglob("*") if path.is_file()] == ["plot.png"]


def test_a_former_result_keeps_its_files(work: Work) -> None:
    """At no moment does a record name files of another run of its step."""
    work.run(alpha)
    former = Path(work.result("alpha"))
    kept = outputs.keep([write("plot.png", "later")], str(work.cache), "alpha")
    assert former.read_text() == "alpha"
    assert kept[0][0] == "files/alpha/2/plot.png"
    outputs.discard(str(work.cache), kept)
    assert former.exists()
    assert not (work.cache / "files" / "alpha" / "2").exists()


def test_dropping_a_result_drops_its_files(work: Work) -> None:
    from ezpyp.storage.opening import open_store

    work.run(alpha)
    open_store("files", work.cache).drop("alpha")
    assert not list((work.cache / "files").iterdir())


def test_cleaning_takes_returned_files_too(work: Work) -> None:
    (work.folder / "given").write_text("given")
    work.run(many, inputs="given")
    run = ezpyp.open(work.cache)
    cleaning.remove(run.folder, cleaning.files(run))
    assert not work.cache.exists()


def test_a_record_cannot_name_files_elsewhere(work: Work) -> None:
    work.run(alpha)
    path = work.cache / "alpha.status"
    write("plot.png", "alpha")
    write("cache/plot.png", "alpha")
    for place in ("../plot.png", "files/../../plot.png", "plot.png"):
        content = json.loads(path.read_text())
        content["files"][0][0] = place
        path.write_text(json.dumps(content))
        assert ezpyp.open(work.cache).status.problems


def test_temporary_files_are_opened_to_those_who_may_read_the_cache(work: Work) -> None:
    def private() -> File:
        descriptor, path = tempfile.mkstemp(dir=".")
        os.close(descriptor)
        return File(path)

    work.run(private)
    other = stat.S_IMODE(os.stat(work.cache / "private.step").st_mode)
    assert stat.S_IMODE(os.stat(work.result("private")).st_mode) == other


def test_a_file_of_another_file_system_is_copied_whole(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    (work.folder / "cache" / "files").mkdir(parents=True)
    path = write("big", "x" * 3_000_000)
    monkeypatch.setattr(os, "rename", refuse)
    (kept,) = outputs.keep([path], str(work.cache), "big")
    assert kept[1] == 3_000_000
    assert not Path(path).exists()
    assert [p.name for p in (work.cache / "files" / "big").iterdir()] == ["big"]


def test_files_go_from_rank_to_rank(mpirun: Launcher, tmp_path: Path) -> None:
    program = """
import os
from ezpyp import File, Pipeline, as_pickle_step
pipeline = Pipeline("cache", "ranks")
@as_pickle_step(pipeline)
def make(k):
    open(f"{k}.txt", "w").write(str(k))
    return {"file": File(f"{k}.txt"), "pid": os.getpid()}
@as_pickle_step(pipeline)
def total(*made):
    return sum(int(open(m["file"]).read()) for m in made)
totals = [total(*make.map([10 * k + j for j in range(5)])) for k in range(4)]
pipeline.execute()
os.write(1, f"TOTAL {sum(t.result() for t in totals)}\\n".encode())
"""
    told = mpirun.run(2, program)
    assert told.stdout.count(f"TOTAL {sum(10 * k + j for k in range(4) for j in range(5))}") == 2, told.stderr
    assert len(list((tmp_path / "cache" / "files").iterdir())) == 20
    assert not list(tmp_path.glob("*.txt"))


# ----- declared


def leaves() -> int:
    write("made/a.bin", "a")
    write("made/b.bin", "b")
    write("log.txt", "log")
    return 1


OUTPUTS = ["made/*.bin", "log.txt"]


def test_what_a_step_has_to_leave_is_recorded(work: Work) -> None:
    assert work.run(leaves, outputs=OUTPUTS).ok
    recorded = work.status("leaves")["outputs"]
    assert [each[:3] for each in recorded] == [
        ["made/*.bin", "made/a.bin", 1],
        ["made/*.bin", "made/b.bin", 1],
        ["log.txt", "log.txt", 3],
    ]
    assert work.run(leaves, outputs=OUTPUTS).cached == 1


def test_what_a_step_does_not_leave_fails_it(work: Work) -> None:
    work.run(leaves, outputs=["log.txt", "made/*.png"])
    failed = work.status("leaves")
    assert failed["status"] == Status.FAILED
    assert failed["note"] == (
        f"its output 'made/*.png' is not there when it ends: it has to be {work.folder}/made/*.png"
    )


HARM: dict[str, Callable[[], Any]] = {
    "gone": lambda: os.unlink("log.txt"),
    "changed": lambda: write("log.txt", "gol"),
    "changed, another size": lambda: write("made/b.bin", "bb"),
}


@pytest.mark.parametrize("harm", HARM)
def test_a_step_whose_output_is_not_as_it_was_runs_again(work: Work, harm: str) -> None:
    work.run(leaves, outputs=OUTPUTS)
    HARM[harm]()
    assert work.run(leaves, outputs=OUTPUTS).cached == 0
    assert Path("log.txt").read_text() == "log"
    assert work.run(leaves, outputs=OUTPUTS).cached == 1


def test_a_change_behind_a_restored_time_is_noticed(work: Work) -> None:
    work.run(leaves, outputs=OUTPUTS)
    status = os.stat("log.txt")
    write("log.txt", "gol")
    os.utime("log.txt", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert work.run(leaves, outputs=OUTPUTS).cached == 0


def test_touched_and_moved_outputs_are_as_they_were(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    work.run(leaves, outputs=OUTPUTS)
    os.utime("log.txt")
    assert work.run(leaves, outputs=OUTPUTS).cached == 1
    project = work.folder / "project"
    project.mkdir()
    for name in ("made", "log.txt", "cache"):
        (work.folder / name).rename(project / name)
    monkeypatch.chdir(project)
    work.cache = project / "cache"
    assert work.run(leaves, outputs=OUTPUTS).cached == 1


def test_unchanged_outputs_are_not_opened(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded = outputs.left(Outputs.of(write("out")))
    memory = Memory()
    monkeypatch.setattr(memory.contents, "digest", None)
    assert outputs.lost(Outputs.of("out"), recorded, memory) == ""


def test_an_output_more_is_asked_for_and_one_less_is_not(work: Work) -> None:
    work.run(leaves, outputs=["log.txt"])
    assert work.run(leaves, outputs=OUTPUTS).cached == 0
    os.unlink("log.txt")
    assert work.run(leaves, outputs=["made/*.bin"]).cached == 1


def test_a_folder_may_be_an_output(work: Work) -> None:
    work.run(leaves, outputs=Tree("made"))
    assert work.run(leaves, outputs="made").cached == 1
    os.utime("made")
    assert work.run(leaves, outputs="made").cached == 1
    write("made/c.bin")
    assert outputs.lost(Outputs.of("made"), tuple(map(tuple, work.status("leaves")["outputs"])), Memory()) == (
        "output made changed"
    )
    assert work.run(leaves, outputs="made").cached == 0


def test_a_name_with_brackets_is_a_name_where_it_is_there(work: Work) -> None:
    write("log[1].txt")
    assert outputs.left(Outputs.of("log[1].txt"))[0][1] == "log[1].txt"


def test_what_is_no_path_is_refused() -> None:
    with pytest.raises(TypeError, match=r"outputs=\[3\]: give paths or patterns"):
        Outputs.of([3])
