"""Every verb, as a person types it."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import ezpyp
from ezpyp.cli import console
from ezpyp.cli import main as cli
from ezpyp.folder.events import Journal, StepStarted, journals, replay
from ezpyp.inspection import drawing
from ezpyp.inspection.drawing import Node
from ezpyp.model.outcomes import Status
from ezpyp.storage.filestore import FileStore
from tests.conftest import interpreter

if TYPE_CHECKING:
    from collections.abc import Sequence

SCRIPT = """
    import sys
    import numpy
    from dataclasses import dataclass
    from ezpyp import Pipeline, as_pickle_step

    pipeline = Pipeline(sys.argv[1], "study")

    @dataclass
    class Point:
        x: int
        label: str

    @as_pickle_step(pipeline)
    def train(lr):
        print("training with", lr)
        if lr == 0.3:
            raise ValueError(f"no {lr}")
        return {"loss": 1 / lr, "lr used": lr}

    @as_pickle_step(pipeline)
    def best(losses):
        return min(losses, key=lambda each: each["loss"])

    @as_pickle_step(pipeline)
    def point(x):
        return {"at": Point(x, "p"), "trace": numpy.arange(3.0), "seen": (1, None)}

    best(train.map([0.1, 0.2, 0.3]))
    best(train.map([0.5, 0.6]), name="second")
    point(1)
    pipeline.execute()
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of a script that has run: one step failed, one was skipped."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.py").write_text(textwrap.dedent(SCRIPT), encoding="utf-8")
    done = interpreter(folder).run(0, folder / "study.py", "cache")
    assert done.returncode == 1, done.stdout + done.stderr
    return folder / "cache"


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A copy of the cache to spoil."""
    return Path(shutil.copytree(made, tmp_path / "cache"))


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A cache without failures, of one step."""
    script = "import ezpyp\np = ezpyp.Pipeline('cache', 'p')\n@p.step()\ndef f(x):\n    return x\nf('a')\np.execute()"
    done = interpreter(tmp_path).run(0, script)
    assert done.returncode == 0, done.stderr
    return tmp_path / "cache"


class Typed:
    """What a command printed and how it ended."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *argv: str | Path, code: int = 0) -> str:
        """Standard output; `err` keeps standard error."""
        with pytest.raises(SystemExit) as ended:
            cli.main([str(word) for word in argv])
        said = self._capsys.readouterr()
        self.err = said.err
        assert ended.value.code == code, said.out + said.err
        assert "Traceback" not in said.err
        return said.out


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Typed:
    return Typed(capsys)


VERBS = (
    *(
        "accept",
        "cancel",
        "check",
        "clean",
        "diff",
        "doctor",
        "export",
        "gpus",
        "graph",
        "invalidate",
        "log",
        "logs",
        "merge",
        "pack",
    ),
    *("plan", "repack", "result", "run", "show", "status", "submit", "summary", "version", "watch", "why"),
)


def test_help_names_every_verb(typed: Typed) -> None:
    text = typed("--help")
    assert [line.split()[0] for line in text.partition("Commands:\n")[2].splitlines()] == list(VERBS)
    assert "..." not in text.partition("Commands:\n")[2]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(typed: Typed, verb: str) -> None:
    text = typed(verb, "-h")
    assert verb == "version" or f"  ezpyp {verb}{'' if verb == 'gpus' else ' study'}" in text


def test_help_is_quick() -> None:
    code = """
import sys
from ezpyp.cli import console
from ezpyp.cli import main as cli
try:
    cli.main(["--help"])
except SystemExit:
    sys.exit(str({"pandas", "numpy", "mpi4py", "subprocess"} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "set()"


def test_results_are_printed(typed: Typed, made: Path) -> None:
    assert typed("result", made, "train[0]") == "{'loss': 10.0, 'lr used': 0.1}\n"
    assert typed("result", made, "second") == f"{{'loss': {1 / 0.6}, 'lr used': 0.6}}\n"


def test_many_results_are_printed_with_their_names(typed: Typed, made: Path) -> None:
    text = typed("result", made, "train")
    assert [line.partition(":")[0] for line in text.splitlines()] == ["train[0]", "train[1]", "train[3]", "train[4]"]
    assert "1 of 5 steps have no result" in typed.err
    assert typed("result", made, "*", "--where", "lr=0.20") == "train[1]: {'loss': 5.0, 'lr used': 0.2}\n"


def test_results_as_json_keep_what_json_can_hold(typed: Typed, made: Path) -> None:
    value = json.loads(typed("result", made, "point", "--output", "json"))
    assert value == {"at": {"x": 1, "label": "p"}, "trace": [0.0, 1.0, 2.0], "seen": [1, None]}
    assert list(json.loads(typed("result", made, "train*", "--output", "json"))) == [
        f"train[{k}]" for k in (0, 1, 3, 4)
    ]


def test_a_result_that_is_not_there_is_one_line(typed: Typed, made: Path) -> None:
    assert typed("result", made, "best", code=1) == ""
    assert typed.err.startswith("ezpyp: Step 'best' was skipped on ")
    assert typed.err.count("\n") == 1
    typed("result", made, "bset", code=1)
    assert typed.err == "ezpyp: No step is called 'bset'. Did you mean 'best'?\n"
    typed("result", made, "train", "--where", "lr=0.3", code=1)
    assert "None of the 1 steps that 'train' means has a result." in typed.err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["result", "{}", "train", "--where", "lr"], "--where lr: write ARGUMENT=VALUE"),
        (["result", "{}"], "Missing argument 'STEP'"),
        (["result", "/nowhere", "train"], "does not exist"),
        (["export", "{}", "train", "-o", "t.xls"], "give a file that ends in .csv, .json, .parquet"),
        (["run", "gone.py"], "does not exist"),
        (["run", "-n", "0", "gone.py"], "0 is not in the range x>=1"),
        (["fly"], "No such command 'fly'"),
    ],
)
def test_mistakes_of_usage_end_with_2(typed: Typed, made: Path, argv: Sequence[str], says: str) -> None:
    typed(*(word.format(made) for word in argv), code=2)
    assert says in typed.err


def test_a_folder_that_is_no_cache_is_refused(typed: Typed, tmp_path: Path) -> None:
    for argv in (["status"], ["summary"], ["result", "x"], ["log", "x"], ["graph"], ["clean", "-y"]):
        verb, *rest = argv
        typed(verb, tmp_path, *rest, code=1)
        assert typed.err.startswith(f"ezpyp: {tmp_path} has no pipeline.schema, so it is no cache folder of ezpyp.")


def test_the_status_says_where_it_stands(typed: Typed, made: Path) -> None:
    lines = typed("status", made).splitlines()
    assert lines[0] == f"Pipeline 'study' @ {made}: 6 of 8 done, 1 failed, 1 skipped"
    assert lines[1].startswith("Last run: ")
    assert lines[1].endswith(", exit code 1")
    assert lines[2] == "  failed: train[2]: ValueError: no 0.3"
    assert {line.rpartition(" ")[2] for line in lines[3:]} == {"train", "best", "point"}
    content = json.loads(typed("status", made, "--output", "json"))
    assert (content["done"], content["failures"]) == (6, {"train[2]": "ValueError: no 0.3"})
    assert content["exit_code"] == 1


def test_the_status_of_a_run_that_goes_on(typed: Typed, copy: Path) -> None:
    started = next(iter(replay(*journals(copy).values())))
    journal = Journal(copy, "99991231T000000-1", every=0)
    journal.hear(started)
    journal.hear(StepStarted(when=1.0, name="second"))
    lines = typed("status", copy).splitlines()
    assert lines[1].startswith("Running since ")
    assert "; last sign 0." in lines[1]
    assert lines[2].startswith("  running: second for ")
    assert list(json.loads(typed("status", copy, "--output", "json"))["running"]) == ["second"]
    journal.close()


def test_the_summary_is_the_table(typed: Typed, made: Path) -> None:
    assert typed("summary", made) == (made / "pipeline.summary").read_text(encoding="utf-8")


def test_files_in_results_are_paths_in_json() -> None:
    assert console.jsonable([ezpyp.File("/data/a.nc"), Path("b")]) == ["/data/a.nc", "b"]


def test_the_summary_as_csv_and_json_has_every_row(typed: Typed, made: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(typed("summary", made, "--output", "csv"))))
    assert [row["name"] for row in rows][:2] == ["train[0]", "train[1]"]
    assert {row["status"] for row in rows} == {"0", "1", "2"}
    content = json.loads(typed("summary", made, "--output", "json"))
    assert (content["done"], content["exit_code"], len(content["rows"])) == (6, 1, 8)
    assert content["rows"][0]["args"] == "[0.1]"
    assert content["rows"][0]["result"] == f"{made}/train[0].step"


def test_the_log_is_what_the_step_printed(typed: Typed, made: Path) -> None:
    assert typed("log", made, "train[1]") == "training with 0.2\n"


def test_the_log_of_a_failure_shows_how_it_failed(typed: Typed, made: Path) -> None:
    lines = typed("log", made, "train[2]").splitlines()
    assert lines[0] == "training with 0.3"
    assert lines[-1] == "ValueError: no 0.3"
    assert any("study.py" in line for line in lines)
    assert typed("log", made, "best") == "because 'train[2]' failed\n"


def test_logs_of_many_steps_have_headings(typed: Typed, copy: Path) -> None:
    (copy / "train[4].status").unlink()
    text = typed("log", copy, "train")
    assert text.startswith("==> train[0] <==\ntraining with 0.1\n==> train[1] <==\n")
    assert text.endswith("==> train[4] <==\n(has not run)\n")
    typed("log", copy, "train[4]", code=1)
    assert "'train[4]' has not run" in typed.err


def test_a_table_is_exported(typed: Typed, made: Path, tmp_path: Path) -> None:
    out = tmp_path / "t.csv"
    assert typed("export", made, "train", "-o", out) == ""
    assert typed.err == f"5 rows, 6 columns: {out}\n"
    rows = list(csv.DictReader(io.StringIO(out.read_text(encoding="utf-8"))))
    assert [row["lr"] for row in rows] == ["0.1", "0.2", "0.3", "0.5", "0.6"]
    assert [row["loss"] for row in rows][:3] == ["10.0", "5.0", ""]
    typed("export", made, "train", "--where", "lr=0.1", "-o", tmp_path / "t.json")
    content = json.loads((tmp_path / "t.json").read_text())
    assert len(content) == 1
    assert content[0]["loss"] == 10.0


def test_a_table_is_exported_as_parquet(typed: Typed, made: Path, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    typed("export", made, "train", "-o", tmp_path / "t.parquet")
    assert pandas.read_parquet(tmp_path / "t.parquet")["loss"].iloc[1] == 5.0


def test_the_graph_of_a_folder_shows_what_came_of_its_steps(typed: Typed, made: Path) -> None:
    text = typed("graph", made)
    assert text.startswith('flowchart TD\n    s0["train[0]"]:::done\n')
    assert 's2["train[2]"]:::failed' in text
    assert "classDef skipped fill:" in text
    dot = typed("graph", made, "--output", "dot")
    assert '"train[2]" -> "best";' in dot
    content = json.loads(typed("graph", made, "--output", "json"))
    assert {each["name"]: each["status"] for each in content}["best"] == 2


def test_the_graph_of_a_script_runs_no_step(typed: Typed, made: Path, tmp_path: Path) -> None:
    content = json.loads(typed("graph", made.parent / "study.py", tmp_path / "new", "--output", "json"))
    by_name = {each["name"]: each for each in content}
    assert by_name["best"] == {
        "name": "best",
        "phase": 1,
        "upstream": ["train[0]", "train[1]", "train[2]"],
        "status": None,
    }
    assert not (tmp_path / "new").exists()


def test_a_script_that_cannot_be_looked_at_shows_its_own_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "s.py"
    script.write_text("x = 1\nx.y\n")
    with pytest.raises(SystemExit) as ended:
        cli.main(["graph", str(script)])
    assert ended.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1] == f'  File "{script}", line 2, in <module>'
    assert lines[-1].startswith("AttributeError")


def test_a_script_without_a_pipeline_has_no_graph(typed: Typed, tmp_path: Path) -> None:
    (tmp_path / "s.py").write_text("x = 1\n")
    typed("graph", tmp_path / "s.py", code=3)
    assert "came to its end without execute()" in typed.err


def test_odd_names_are_drawn_as_they_are() -> None:
    nodes = [Node(name='a "b"\\#', phase=0, upstream=()), Node(name="c", phase=1, upstream=(0,))]
    assert (
        "".join(drawing.mermaid(nodes)) == 'flowchart TD\n    s0["a #quot;b#quot;\\#35;"]\n    s1["c"]\n    s0 --> s1\n'
    )
    assert r'    "a \"b\"\\#" -> "c";' in "".join(drawing.dot(nodes))


def test_colours_are_given_only_to_what_is_known() -> None:
    nodes = [Node(name="a", phase=0, upstream=(), statuses={Status.DONE: 1})]
    text = "".join(drawing.dot(nodes))
    assert "fillcolor=white" in text
    assert '"a" [fillcolor="#c8e6c9"];' in text
    assert "".join(drawing.mermaid(nodes)).endswith("classDef done fill:#c8e6c9\n")


def test_clean_removes_what_ezpyp_wrote(typed: Typed, good: Path) -> None:
    (good / ".ezpyp-tmp-host-1-abcd").touch()
    (good / ".lock.0a1b").touch()
    FileStore(good).move("f", "old/f~1")
    assert (good / "old" / "f~1.step").exists()
    assert typed("clean", good, "-y").startswith("Removed ")
    assert not good.exists()


def test_clean_leaves_what_others_wrote(typed: Typed, good: Path) -> None:
    (good / "notes.txt").write_text("mine")
    (good / "other.step").write_text("mine too")
    (good / "logs" / "deep").mkdir()
    (good / "logs" / "mine.txt").touch()
    assert typed("clean", good, "-y").endswith(f"Other files are left in {good}.\n")
    assert sorted(path.name for path in good.iterdir()) == ["logs", "notes.txt", "other.step"]


def test_clean_asks_first(typed: Typed, good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert "of 'p'? [y/N]" in typed("clean", good, code=130)
    assert (good / "f.step").exists()
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    typed("clean", good)
    assert not good.exists()


def test_the_version_is_that_of_the_package(typed: Typed) -> None:
    assert typed("version").startswith(f"ezpyp {ezpyp.__version__}\npython 3.")
    content = json.loads(typed("version", "--output", "json"))
    assert content["ezpyp"] == ezpyp.__version__
    assert "mpi4py" in content


@pytest.mark.parametrize(
    ("words", "found", "rest"),
    [
        ((), {}, ()),
        (("a", "-n", "2"), {}, ("a", "-n", "2")),
        (("-n", "2", "a"), {"ranks": 2}, ("a",)),
        (("-n4", "--all-output", "--", "-n", "3"), {"ranks": 4, "all_output": True}, ("-n", "3")),
        (("--", "--all-output"), {}, ("--all-output",)),
        (("--nice", "-n", "2"), {}, ("--nice", "-n", "2")),
    ],
)
def test_our_options_may_follow_the_script(
    words: tuple[str, ...],
    found: dict[str, object],
    rest: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    typed: Typed,
) -> None:
    asked: list[object] = []

    def run(script: str, args: tuple[str, ...], *, ranks: int | None, all_output: bool) -> int:
        asked.extend([args, {k: v for k, v in {"ranks": ranks, "all_output": all_output}.items() if v}])
        return 85

    monkeypatch.setattr("ezpyp.system.launch.run", run)
    typed("run", __file__, *words, code=85)
    assert asked == [rest, found]


def test_ranks_that_are_no_number_are_refused(typed: Typed) -> None:
    typed("run", __file__, "-n", "many", code=2)
    assert "-n many: give the number of ranks" in typed.err


def test_a_reader_that_leaves_early_is_no_error(made: Path) -> None:
    line = f"'{sys.executable}' -m ezpyp summary '{made}' --output json | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout == "0\n"


def test_watch_follows_a_run_to_its_end(tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text(
        "import time\n"
        "from ezpyp import Pipeline, as_pickle_step\n"
        "pipeline = Pipeline('cache', 'slow')\n"
        "wait = as_pickle_step(pipeline)(lambda k: time.sleep(0.3))\n"
        "wait.map(range(5))\n"
        "pipeline.execute()\n",
        encoding="utf-8",
    )
    launcher = interpreter(tmp_path)
    run = launcher.start(0, script)
    try:
        deadline = time.monotonic() + 20
        while not (tmp_path / "cache" / "pipeline.schema").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        code = "import sys; from ezpyp.cli.main import main; sys.exit(main(['watch', 'cache', '--every', '0.1']))"
        watched = launcher.run(0, code)
    finally:
        run.communicate(timeout=30)
    lines = watched.stdout.splitlines()
    assert watched.returncode == 0, watched.stderr
    assert sum(" of 5 done" in line for line in lines) >= 3
    assert "5 of 5 done" in lines[-2]
    assert lines[-1].startswith("Last run: ")
