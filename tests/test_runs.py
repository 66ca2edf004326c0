"""A cache folder is read without its script: by others, later, and while it runs."""

from __future__ import annotations

import gc
import json
import os
import shutil
import textwrap
from pathlib import Path
from typing import Any

import pytest

import ezpyp
from ezpyp import Pipeline
from ezpyp.errors import NotExecuted, StepFailed, StepSkipped, StoreError, UnknownStep
from ezpyp.folder import runs
from ezpyp.folder.events import Journal, StepStarted, journals, last_run, replay
from ezpyp.folder.runs import Run
from ezpyp.folder.schema import read as read_schema
from ezpyp.model.outcomes import Status
from tests.conftest import interpreter

SCRIPT = """
    import sys
    from collections import namedtuple
    from dataclasses import dataclass

    from ezpyp import Pipeline, as_pickle_step
    from beside import Beside

    pipeline = Pipeline("cache", "study")

    @dataclass
    class Model:
        loss: float
        lr: str = "mine"

    @as_pickle_step(pipeline)
    def train(lr, kind="a"):
        print("training with", lr)
        if lr == 0.3:
            raise ValueError(f"no {lr}")
        return {"loss": 1 / lr, "epochs": 3}

    @as_pickle_step(pipeline)
    def fit(n):
        return Model(n / 2)

    @as_pickle_step(pipeline)
    def far(n):
        return Beside()

    @as_pickle_step(pipeline)
    def total(parts):
        return sum(p["loss"] for p in parts)

    @as_pickle_step(pipeline)
    def plain(x):
        return x

    trained = train.map([0.1, 0.2, 0.3])
    one = train(0.5, kind="b", name="special")
    total(trained)
    fit.map([1, 2])
    far(int(sys.argv[1]))
    plain("text", name="größe/π")
    pipeline.execute()
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a script that has run: one step failed, one was skipped."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "beside.py").write_text("class Beside:\n    value = 7\n")
    (folder / "study.py").write_text(textwrap.dedent(SCRIPT), encoding="utf-8")
    done = interpreter(folder).run(0, folder / "study.py", "17")
    assert done.returncode == 1, done.stdout + done.stderr
    return folder


@pytest.fixture
def run(made: Path) -> Run:
    return ezpyp.open(made / "cache")


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A copy of the cache to spoil."""
    shutil.copytree(made / "cache", tmp_path / "cache")
    return tmp_path / "cache"


def rewrite(folder: Path, name: str, **change: Any) -> None:
    """Change a step's entry in the schema."""
    path = folder / "pipeline.schema"
    content = json.loads(path.read_text(encoding="utf-8"))
    for phase in content.values():
        for entry in phase if isinstance(phase, list) else ():
            if entry["name"] == name:
                entry.update(change)
    path.write_text(json.dumps(content), encoding="utf-8")


def test_a_result_is_read_by_the_name_of_its_step(run: Run) -> None:
    assert run["train[0]"] == {"loss": 10.0, "epochs": 3}
    assert run["größe/π"] == "text"
    assert run.pipeline_id == "study"


def test_a_step_that_failed_says_when_why_and_what_to_do(run: Run) -> None:
    pattern = (
        r"Step 'train\[2\]' failed on \d{4}-\d\d-\d\d at \d\d:\d\d \(rank 0 on \S+\): ValueError: no 0\.3\. "
        r"See: ezpyp log \S+/cache 'train\[2\]'\. To try it anew, run study\.py again\."
    )
    with pytest.raises(StepFailed, match=pattern):
        run["train[2]"]


def test_a_step_that_was_skipped_says_whose_fault_it_was(run: Run) -> None:
    with pytest.raises(
        StepSkipped, match=r"'total' was skipped on .* because 'train\[2\]' failed\. Mend that, and run"
    ):
        run["total"]


def test_a_name_that_nothing_has_is_compared_with_those_that_are(run: Run) -> None:
    with pytest.raises(UnknownStep, match=r"No step is called 'totl'\. Did you mean 'total'\?"):
        run["totl"]
    with pytest.raises(UnknownStep, match=r"Did you mean 'total'\?"):
        run["TOTAL"]
    with pytest.raises(UnknownStep, match=r"There are: train\[0\.\.2\], special, fit\[0\.\.1\]"):
        run["qqqqqqq"]


def test_a_step_that_has_not_run_says_so(copy: Path) -> None:
    (copy / "special.status").unlink()
    with pytest.raises(NotExecuted, match=r"Step 'special' has not run in .*cache\. To run it, run study\.py again\."):
        Run(copy)["special"]


def test_a_result_of_a_former_plan_counts_as_none(copy: Path) -> None:
    rewrite(copy, "special", fingerprint="0" * 32)
    run = Run(copy)
    with pytest.raises(NotExecuted):
        run["special"]
    assert run.status.not_run == 1
    assert run.summary().not_run == 1


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("train", ["train[0]", "train[1]", "train[2]"]),
        ("train[1]", ["train[1]"]),
        ("*[1]", ["train[1]", "fit[1]"]),
        ("train[?]", ["train[0]", "train[1]", "train[2]"]),
        ("*e*", ["special", "größe/π"]),
        ("special", ["special"]),
        ("fit*", ["fit[0]", "fit[1]"]),
        ("plain", ["größe/π"]),
    ],
)
def test_patterns_mean_names_families_and_functions(run: Run, pattern: str, names: list[str]) -> None:
    found = run.names(pattern)
    assert [name for name in found if pattern != "*e*" or "train" not in name] == names


def test_arguments_narrow_a_pattern(run: Run) -> None:
    assert run.names("*", lr=0.1) == ["train[0]"]
    assert run.names("*", lr="0.10") == ["train[0]"]
    assert run.names("*", kind="b") == ["special"]
    assert run.names("fit", n=2) == ["fit[1]"]
    assert run.names("fit", n=2.0) == ["fit[1]"]
    assert run.names("fit", n=True) == []
    assert run.names("train", lr=99) == []


def test_an_argument_that_no_step_has_is_an_error(run: Run) -> None:
    with pytest.raises(UnknownStep, match=r"No step of 'train' has an argument 'rate'\. Theirs are: lr"):
        run.names("train", rate=1)


def test_select_gives_the_results_that_are_there(run: Run) -> None:
    assert {name: value["loss"] for name, value in run.select("train").items()} == {"train[0]": 10.0, "train[1]": 5.0}
    assert list(run.select("*", lr=0.1)) == ["train[0]"]


def test_a_table_has_a_column_for_each_argument_and_field(run: Run) -> None:
    frame = run.table("train")
    assert list(frame.columns) == ["name", "lr", "loss", "epochs", "status", "seconds"]
    assert list(frame["name"]) == ["train[0]", "train[1]", "train[2]"]
    assert list(frame["status"]) == [0, 0, 1]
    assert frame["loss"].iloc[:2].tolist() == [10.0, 5.0]
    assert frame["epochs"].iloc[0] == 3
    assert frame["epochs"].dtype.name == "Int64"
    assert frame.iloc[2][["loss", "epochs"]].isna().all()
    assert (frame["seconds"] > 0).all()


def test_a_field_called_like_an_argument_is_told_apart(copy: Path, made: Path) -> None:
    rewrite(copy, "fit[0]", arguments={"loss": 9})
    frame = Run(copy).table("fit[0]")
    assert list(frame.columns) == ["name", "loss", "result.loss", "lr", "status", "seconds"]
    assert frame.iloc[0]["loss"] == 9
    assert frame.iloc[0]["result.loss"] == 0.5


def test_a_result_without_fields_is_one_column(run: Run) -> None:
    frame = run.table("plain")
    assert list(frame.columns) == ["name", "x", "result", "status", "seconds"]
    assert frame.iloc[0]["result"] == "text"


def test_a_class_of_the_script_is_found_by_running_it_up_to_execute(run: Run, capfd: Any) -> None:
    model = run["fit[1]"]
    assert (type(model).__name__, model.loss, model.lr) == ("Model", 1.0, "mine")
    assert "Cache" not in capfd.readouterr().out


def test_a_class_of_a_module_beside_the_script_is_found(run: Run) -> None:
    assert run["far"].value == 7


def test_a_script_that_is_gone_is_named(copy: Path) -> None:
    path = copy / "pipeline.schema"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["ezpyp"]["script"] = "/nowhere/gone.py"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(
        StoreError, match=r"'fit\[0\]' has a class of its script, /nowhere/gone\.py, and that cannot be run: Init"
    ):
        Run(copy)["fit[0]"]


def test_a_spoiled_result_is_never_decoded(copy: Path) -> None:
    (copy / "special.step").write_bytes(b"x" * (copy / "special.step").stat().st_size)
    with pytest.raises(StoreError, match=r"special\.step is not what 'special' wrote: its checksum differs"):
        Run(copy)["special"]


def test_what_a_step_printed(run: Run) -> None:
    assert run.log("train[1]") == "training with 0.2\n"
    assert run.log("total") == ""
    with pytest.raises(UnknownStep):
        run.log("nothing")


def test_a_log_that_is_gone_is_named(copy: Path) -> None:
    shutil.rmtree(copy / "logs")
    with pytest.raises(StoreError, match=r"The log .*/logs/.* cannot be read: No such file"):
        Run(copy).log("train[1]")


def test_the_status_counts_and_names_failures(run: Run) -> None:
    now = run.status
    assert (now.total, now.done, now.failed, now.skipped, now.not_run) == (9, 7, 1, 1, 0)
    assert now.failures == {"train[2]": "ValueError: no 0.3"}
    assert now.problems == ()
    assert now.run.started is not None
    assert now.run.started.total == 9
    assert now.run.ended is not None
    assert now.run.ended.exit_code == 1
    assert now.run.running == ()


def test_a_torn_file_is_reported_and_costs_only_itself(copy: Path) -> None:
    (copy / "special.status").write_bytes(b'{"format": 1, "na')
    now = Run(copy).status
    assert (now.done, now.not_run) == (6, 1)
    assert len(now.problems) == 1
    assert now.problems[0].startswith(f"{copy}/special.status: ")


def test_a_run_that_goes_on_shows_what_it_is_at(copy: Path) -> None:
    started = next(iter(replay(*journals(copy).values())))
    journal = Journal(copy, "99991231T000000-1", every=0)
    journal.hear(started)
    journal.hear(StepStarted(when=5e9, name="special"))
    journal.hear(StepStarted(when=5e9, name="total"))
    now = Run(copy).status.run
    assert now.ended is None
    assert [each.name for each in now.running] == ["special", "total"]
    assert now.last_sign > 1e9
    journal.close()


def test_the_summary_of_a_folder_is_that_of_its_run(run: Run, made: Path) -> None:
    found = run.summary()
    assert (found.done, found.failed, found.skipped, found.exit_code) == (7, 1, 1, 1)
    assert "".join(found.text()) == (made / "cache" / "pipeline.summary").read_text(encoding="utf-8")
    assert found.failures == {"train[2]": "ValueError: no 0.3"}


def test_the_summary_is_made_without_a_journal(copy: Path) -> None:
    shutil.rmtree(copy / "journal")
    found = Run(copy).summary()
    assert (found.exit_code, found.seconds, found.failed) == (1, 0.0, 1)
    for path in copy.glob("train*.status"):
        path.unlink()
    assert Run(copy).summary().exit_code == 85
    assert last_run(copy).started is None


def test_rows_of_steps_that_never_ran_show_the_plan(copy: Path) -> None:
    for path in copy.glob("*.status"):
        path.unlink()
    found = Run(copy).summary()
    assert {row.status for row in found.rows} == {Status.NOT_RUN}
    assert found.rows[-1].args == "[[TMP for train[0], TMP for train[1], TMP for train[2]]]"
    assert found.headline().startswith(f"Pipeline Stopped @ {copy} (9 of 9 not run")


def test_a_folder_that_is_no_cache_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"has no pipeline\.schema, so it is no cache folder"):
        ezpyp.open(tmp_path)
    with pytest.raises(StoreError, match=r"gone is not there, so it is no cache folder"):
        ezpyp.open(tmp_path / "gone")


def test_reading_writes_nothing(copy: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    run = Run(copy)
    run.table("*")
    run.summary()
    assert run.status.done == 7
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


def test_the_face_reads_a_result_by_folder_and_name(made: Path, copy: Path, tmp_path: Path) -> None:
    assert runs.status_of(copy, "special") is Status.DONE
    assert runs.status_of(copy, "unheard") is Status.NOT_RUN
    assert runs.status_of(tmp_path / "nothing", "special") is Status.NOT_RUN
    assert runs.result_of(copy, "special")["epochs"] == 3
    with pytest.raises(NotExecuted, match=r"Step 'special' has not run in .*\. Call execute\(\) first\."):
        runs.result_of(copy, "special", Status.NOT_RUN)
    with pytest.raises(NotExecuted):
        runs.result_of(tmp_path / "nothing", "special")


def test_the_plan_is_read_once_for_many_results_and_again_when_it_changed(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def read(folder: str) -> dict[str, Any] | None:
        asked.append(folder)
        return read_schema(folder)

    monkeypatch.setattr("ezpyp.folder.schema.read", read)
    for _ in range(3):
        runs.result_of(copy, "special")
    assert len(asked) == 1
    rewrite(copy, "special", fingerprint="0" * 32)
    assert runs.status_of(copy, "special") is Status.NOT_RUN
    assert len(asked) == 2


def test_results_of_many_folders_keep_few_files_open(tmp_path: Path) -> None:
    for k in range(20):
        pipeline = Pipeline(tmp_path / f"c{k}", "many", store="packed", executor="inline")
        step = pipeline.step()(double)(k)
        pipeline.execute()
        assert step.result() == 2 * k
    gc.collect()  # a pipeline and its steps are a cycle
    found = (Path(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd"))
    there = [p for p in map(os.path.realpath, found) if p.startswith(str(tmp_path))]
    assert len(there) <= 10, there


def double(x: int) -> int:
    return 2 * x
