"""The face: what a script says and gets, without MPI. Every test runs real helpers unless it says inline."""

from __future__ import annotations

import json
import os
import random
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import ezpyp
from ezpyp import Pipeline, PlaceHolder, Status, Step, as_json_step, as_numpy_step, as_pickle_step
from ezpyp.front.functions import StepFunction
from tests.conftest import Launcher


def square(x: float) -> float:
    return x**2


def cube(x: float) -> float:
    return x**3


def divide(a: float, b: float) -> float:
    return a / b


def build(folder: Path, name: str = "my_pipeline", **options: Any) -> Pipeline:
    return Pipeline(folder / "cache", name, **options)


def quick_start(folder: Path, **options: Any) -> tuple[Pipeline, Step, Step, Step]:
    pipeline = build(folder, **options)
    alpha = as_pickle_step(pipeline, name="alpha")(square)(3)
    beta = as_pickle_step(pipeline, name="beta")(cube)(2)
    gamma = as_pickle_step(pipeline, depends_on=[alpha, beta], name="gamma")(divide)(
        PlaceHolder(alpha), PlaceHolder(beta)
    )
    return pipeline, alpha, beta, gamma


@pytest.fixture(params=["processes", "inline"])
def executor(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_the_quick_start_runs_and_leaves_its_files(
    tmp_path: Path, executor: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline, alpha, _, gamma = quick_start(tmp_path, executor=executor)
    pipeline.initialize_schema()
    summary = pipeline.execute()
    assert pipeline.get_result("gamma") == 1.125
    assert gamma.result() == 1.125
    assert alpha.get_status() == Status.DONE
    assert summary.ok
    assert (tmp_path / "cache" / "gamma.step").exists()
    out = capsys.readouterr().out
    assert (
        "[MPI process 00] [Running component of phase 00] [Executing Pickle Step Object 'alpha']\n"
        "  ╰─> [PASS] 'alpha'\n"
    ) in out


def test_the_schema_is_what_users_know(tmp_path: Path) -> None:
    pipeline, *_ = quick_start(tmp_path)
    pipeline.initialize_schema()
    schema = json.loads(Path(pipeline.schema_path).read_text())
    alpha = next(entry for entry in schema["0"] if entry["name"] == "alpha")
    assert alpha["args"] == "[3]"
    assert alpha["kwargs"] == "{}"
    assert alpha["depends_on"] == "[]"
    assert alpha["function_bytes"].startswith("b'")
    assert alpha["function_name"] == "square"
    assert (alpha["step_ext"], alpha["status_ext"]) == ("step", "status")
    assert alpha["cache_location"] == pipeline.cache_location
    assert len(alpha["fingerprint"]) == 32
    gamma = schema["1"][0]
    assert gamma["args"] == "[TMP for alpha, TMP for beta]"
    assert gamma["depends_on"] == "[Pickle Step Object 'alpha', Pickle Step Object 'beta']"
    assert pipeline.get_schema() == {k: v for k, v in schema.items() if k != "ezpyp"}


def test_the_summary_file_shows_what_was_bound(tmp_path: Path) -> None:
    pipeline, *_ = quick_start(tmp_path)
    pipeline.execute()
    lines = Path(pipeline.summary_path).read_text().splitlines()
    assert lines[0] == f"Pipeline Completed @ {pipeline.cache_location}"
    assert lines[2].split()[:7] == ["name", "args", "kwargs", "phase", "status", "result", "seconds"]
    row = next(line for line in lines if line.startswith("gamma"))
    assert "[9, 8]" in row
    assert f"{pipeline.cache_location}/gamma.step" in row


def test_a_second_run_runs_nothing(tmp_path: Path) -> None:
    pipeline, *_ = quick_start(tmp_path)
    pipeline.execute()
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").glob("*.st*")}
    again, *_ = quick_start(tmp_path)
    summary = again.execute()
    assert summary.cached == 3
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "cache").glob("*.st*")} == stamps


def test_arguments_are_taken_by_value(tmp_path: Path, executor: str) -> None:
    pipeline = build(tmp_path, executor=executor)

    @as_pickle_step(pipeline)
    def rate(config: dict[str, Any]) -> float:
        config["lr"] *= 10  # a step's own copy: no other step sees it
        return float(config["lr"])

    config = {"lr": 0.0}
    steps = []
    for lr in (1.0, 2.0, 3.0):
        config["lr"] = lr
        steps.append(rate(config))
    pipeline.execute()
    assert [step.result() for step in steps] == [10.0, 20.0, 30.0]
    assert [step.name for step in steps] == ["rate", "rate[1]", "rate[2]"]


def test_a_large_array_that_was_changed_is_refused(tmp_path: Path) -> None:
    import numpy as np

    pipeline = build(tmp_path)
    data = np.zeros(200_000)
    as_numpy_step(pipeline)(square)(data)
    data[7] = 1
    pipeline.initialize_schema()
    with pytest.raises(ezpyp.ArgumentChanged, match=r"'square'.*array\(float64, 200000\)"):
        pipeline.execute()


def test_large_arrays_are_shared_read_only_unless_copies_are_asked_for(tmp_path: Path) -> None:
    import numpy as np

    pipeline = build(tmp_path)
    data = np.zeros(200_000)

    def spoil(x: Any) -> float:
        x[0] = 5
        return float(x[0])

    shared = as_pickle_step(pipeline, name="shared")(spoil)(data)
    own = as_pickle_step(pipeline, name="own", copy=True)(spoil)(data)
    pipeline.execute(raise_on_failure=False)
    assert shared.get_status() == Status.FAILED
    assert own.result() == 5.0
    assert data[0] == 0


@dataclass
class Config:
    source: Any
    scale: float


def test_steps_are_found_at_any_depth(tmp_path: Path) -> None:
    pipeline = build(tmp_path)
    a = as_pickle_step(pipeline, name="a")(square)(2)
    b = as_pickle_step(pipeline, name="b")(cube)(2)

    @as_pickle_step(pipeline)
    def deep(config: Config, table: dict[str, list[Any]], pair: tuple[Any, ...]) -> Any:
        return config.source * config.scale, table, pair

    step = deep(Config(a, 0.5), {"x": [1, b]}, (a, PlaceHolder(b)))
    assert [s if isinstance(s, str) else s.name for s in step.depends_on] == ["a", "b"]
    pipeline.execute()
    assert step.result() == (2.0, {"x": [1, 8]}, (4, 8))


def test_sweeps_fan_in(tmp_path: Path) -> None:
    pipeline = build(tmp_path)
    squares = as_pickle_step(pipeline)(square).map([1, 2, 3])
    sums = as_pickle_step(pipeline)(divide).map([10, 20], [2, 4])
    grid = as_json_step(pipeline, name="grid")(divide).product(a=[1, 2], b=[1, 4])

    @as_pickle_step(pipeline)
    def collect(*groups: list[float]) -> list[list[float]]:
        return list(groups)

    last = collect(squares, sums, grid)
    pipeline.execute()
    assert last.result() == [[1, 4, 9], [5, 5], [1, 0.25, 2, 0.5]]
    assert [s.name for s in squares] == ["square[0]", "square[1]", "square[2]"]
    assert squares[1].label == "square[1] x=2"


def test_unequal_lengths_and_strings_are_refused(tmp_path: Path) -> None:
    f = as_pickle_step(build(tmp_path))(divide)
    with pytest.raises(ValueError, match="iterables of one length, not of 2, 1"):
        f.map([1, 2], [1])
    with pytest.raises(TypeError, match="takes lists of values"):
        f.map("ab", "cd")
    with pytest.raises(TypeError, match="missing a required argument: 'b'"):
        f(1)


def test_the_very_same_call_twice_is_refused_and_says_name(tmp_path: Path) -> None:
    f = as_pickle_step(build(tmp_path))(square)
    f(3)
    with pytest.raises(ezpyp.RepeatedStepError, match="name="):
        f(3)
    assert f(3, name="again").name == "again"
    with pytest.raises(ezpyp.RepeatedStepError, match="'again'"):
        f(4, name="again")


def test_a_function_with_a_parameter_called_name_keeps_it(tmp_path: Path) -> None:
    pipeline = build(tmp_path)

    @as_pickle_step(pipeline)
    def greet(name: str) -> str:
        return f"hello {name}"

    step = greet(name="ann")
    other = greet.options(name="second")(name="ben")
    assert (step.name, other.name) == ("greet", "second")
    pipeline.execute()
    assert (step.result(), other.result()) == ("hello ann", "hello ben")


def fail(x: float) -> float:
    raise ValueError(f"x is {x}")


def test_failures_cost_their_descendants_and_only_them(tmp_path: Path, executor: str) -> None:
    pipeline = build(tmp_path, executor=executor)
    bad = as_pickle_step(pipeline, name="bad")(fail)(0)
    fine = as_pickle_step(pipeline, name="fine")(square)(3)
    child = as_pickle_step(pipeline, name="child")(square)(bad)
    grandchild = as_pickle_step(pipeline, name="grandchild")(divide)(child, fine)
    bystander = as_pickle_step(pipeline, name="bystander")(square)(fine)
    summary = pipeline.execute(raise_on_failure=False)
    statuses = [s.get_status() for s in (bad, fine, child, grandchild, bystander)]
    assert statuses == [1, 0, 2, 2, 0]
    assert summary.failures == {"bad": "ValueError: x is 0"}
    notes = {row.name: row.note for row in summary.rows}
    assert notes["grandchild"] == "because 'bad' failed"
    with pytest.raises(ezpyp.StepFailed, match="x is 0"):
        bad.result()
    with pytest.raises(ezpyp.StepSkipped, match="'bad'"):
        grandchild.result()
    with pytest.warns(ezpyp.FailedStepWarning):
        assert pipeline.get_result("bad") is None
    with pytest.warns(ezpyp.SkippedStepWarning):
        assert pipeline.get_result("child") is None
    with pytest.warns(ezpyp.UnrecognizedStepWarning):
        assert pipeline.get_result("nobody") is None
    with pytest.raises(ezpyp.UnknownStep, match="nobody"):
        pipeline.result("nobody")


def test_all_failures_in_one_error(tmp_path: Path) -> None:
    pipeline = build(tmp_path)
    as_pickle_step(pipeline)(fail).map([1, 2])
    with pytest.raises(ezpyp.PipelineFailed, match=r"2 steps failed.*fail\[0\].*x is 1") as caught:
        pipeline.execute(raise_on_failure=True)
    assert list(caught.value.failures) == ["fail[0]", "fail[1]"]


def test_it_failed_i_fixed_it_i_run_again(tmp_path: Path) -> None:
    def attempt(f: Callable[[float], float]) -> ezpyp.Summary:
        pipeline = build(tmp_path)
        first = as_pickle_step(pipeline, name="first")(square)(3)
        second = as_pickle_step(pipeline, name="second")(f)(first)
        as_pickle_step(pipeline, name="third")(square)(second)
        return pipeline.execute(raise_on_failure=False)

    from ezpyp.run import session

    assert attempt(fail).skipped == 1
    session._folders.clear()  # as a new process would
    summary = attempt(cube)
    assert (summary.done, summary.cached) == (3, 1)


def test_another_plan_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    from ezpyp.run import session

    pipeline, *_ = quick_start(tmp_path)
    pipeline.execute()
    before = {p.name: p.read_bytes() for p in (tmp_path / "cache").iterdir() if p.is_file()}
    session._folders.clear()
    other = build(tmp_path)
    as_pickle_step(other, name="alpha")(square)(4)
    as_pickle_step(other, name="delta")(square)(5)
    with pytest.raises(ezpyp.SchemaConflictError) as caught:
        other.initialize_schema()
    text = str(caught.value)
    assert "1 of 2 steps changed" in text
    assert "alpha: argument x: 3 -> 4" in text
    assert "1 new: delta" in text
    assert "2 gone: beta, gamma" in text
    assert "Nothing was run." in text
    assert {p.name: p.read_bytes() for p in (tmp_path / "cache").iterdir() if p.is_file()} == before


def test_another_pipeline_id_is_refused(tmp_path: Path) -> None:
    from ezpyp.run import session

    quick_start(tmp_path)[0].initialize_schema()
    session._folders.clear()
    other = build(tmp_path, "another")
    as_pickle_step(other)(square)(1)
    with pytest.raises(ezpyp.SchemaConflictError, match="'my_pipeline', not to 'another'"):
        other.initialize_schema()


def test_two_pipelines_of_a_process_keep_apart(tmp_path: Path) -> None:
    quick_start(tmp_path)[0].initialize_schema()
    quick_start(tmp_path)[0].initialize_schema()  # identical: fine
    other = build(tmp_path)
    as_pickle_step(other)(square)(1)
    with pytest.raises(ezpyp.SchemaConflictError, match="own cache folder"):
        other.initialize_schema()


def test_calls_at_the_wrong_time(tmp_path: Path) -> None:
    pipeline = build(tmp_path)
    with pytest.raises(ezpyp.InitializationError, match="no steps"):
        pipeline.initialize_schema()
    f = as_pickle_step(pipeline)(square)
    f(1)
    with pytest.raises(ezpyp.InitializationError, match="organize_steps"):
        pipeline.get_schema()
    pipeline.initialize_schema()
    pipeline.initialize_schema()
    with pytest.raises(ezpyp.InitializationError, match=r"square\[1\].*after initialize_schema"):
        f(2)


def test_cycles_unknown_and_foreign_dependencies_are_refused(tmp_path: Path) -> None:
    pipeline = build(tmp_path)
    as_pickle_step(pipeline, depends_on="b", name="a")(square)(1)
    as_pickle_step(pipeline, depends_on="a", name="b")(square)(2)
    with pytest.raises(ezpyp.CyclicDependency, match=r"'a' → 'b' → 'a'|'b' → 'a' → 'b'"):
        pipeline.initialize_schema()
    lone = Pipeline(tmp_path / "lone", "lone")
    as_pickle_step(lone, depends_on="ghost")(square)(1)
    with pytest.raises(ezpyp.MissingDependency, match="'ghost'"):
        lone.initialize_schema()
    foreign = Pipeline(tmp_path / "foreign", "foreign")
    as_pickle_step(foreign)(square)(pipeline.steps[0])
    with pytest.raises(ezpyp.MissingDependency, match="'a'"):
        foreign.initialize_schema()


def test_allowed_failures_arrive_as_failed(tmp_path: Path) -> None:
    def flaky(x: int) -> int:
        if x == 3:
            raise ValueError("three")
        return x

    def count(values: list[Any]) -> tuple[int, str]:
        failed = [v for v in values if not v and isinstance(v, ezpyp.Failed)]
        return len(ezpyp.succeeded(values)), failed[0].reason if failed else ""

    pipeline = build(tmp_path)
    members = as_pickle_step(pipeline)(flaky).map(range(1, 11), allow_failure=0.1)
    last = as_pickle_step(pipeline)(count)(members)
    summary = pipeline.execute(raise_on_failure=True)
    assert (summary.failed, summary.allowed, summary.exit_code) == (1, 1, 0)
    assert last.result() == (9, "ValueError: three")

    strict = Pipeline(tmp_path / "strict", "strict")
    members = as_pickle_step(strict)(flaky).map(range(1, 11), allow_failure=0.05)
    last = as_pickle_step(strict)(count)(members)
    assert strict.execute(raise_on_failure=False).exit_code == 1
    assert last.get_status() == Status.SKIPPED


def test_a_seed_belongs_to_the_call(tmp_path: Path) -> None:
    def draw(k: int) -> tuple[float, int]:
        return random.random(), ezpyp.seed()

    def run(folder: str, workers: int, order: list[int]) -> dict[int, Any]:
        pipeline = Pipeline(tmp_path / folder, "draws", workers=workers)
        steps = {k: as_pickle_step(pipeline, name=f"draw_{k}")(draw)(k) for k in order}
        pipeline.execute()
        return {k: step.result() for k, step in steps.items()}

    one = run("one", 1, [1, 2, 3, 4])
    assert run("two", 2, [4, 3, 2, 1]) == one
    assert len({value for value, _ in one.values()}) == 4


@pytest.mark.parametrize(
    ("act", "cause", "words"),
    [
        (lambda: os.kill(os.getpid(), 11), "signal", "signal 11"),
        (lambda: os._exit(7), "exit", "exit code 7"),
        (lambda: os._exit(0), "exit", "exit code 0"),
        (lambda: exec("raise SystemExit(3)"), "exit", "sys.exit(3)"),
    ],
)
def test_a_step_that_ends_its_process_costs_only_itself(
    tmp_path: Path, act: Callable[[], None], cause: str, words: str
) -> None:
    def crash() -> None:
        print("last words", flush=True)
        act()

    pipeline = build(tmp_path)
    others = as_pickle_step(pipeline)(square).map(range(20))
    bad = as_pickle_step(pipeline)(crash)()
    more = as_pickle_step(pipeline)(cube).map(range(20))
    summary = pipeline.execute(raise_on_failure=False)
    assert (summary.done, summary.failed) == (40, 1)
    assert words in summary.failures["crash"]
    assert [s.result() for s in (*others, *more)] == [k**2 for k in range(20)] + [k**3 for k in range(20)]
    assert "last words" in ezpyp.open(pipeline.cache_location).log(bad.name)


def test_a_step_that_hangs_is_ended(tmp_path: Path) -> None:
    import time

    pipeline = build(tmp_path)
    slow = as_pickle_step(pipeline, timeout=0.3)(time.sleep)(60)
    after = as_pickle_step(pipeline)(square)(2)
    summary = pipeline.execute(raise_on_failure=False)
    assert "timeout of 0.3 s" in summary.failures[slow.name]
    assert after.result() == 4


def test_retries_are_counted(tmp_path: Path) -> None:
    marker = tmp_path / "tries"

    def third_time(path: str) -> int:
        with open(path, "a") as file:
            file.write("x")
        if len(Path(path).read_text()) < 3:
            raise RuntimeError("not yet")
        return len(Path(path).read_text())

    pipeline = build(tmp_path)
    step = as_pickle_step(pipeline, retry=3)(third_time)(str(marker))
    summary = pipeline.execute()
    assert step.result() == 3
    assert next(iter(summary.rows)).attempts == 3


def test_what_cannot_be_stored_fails_and_keeps_the_rest(tmp_path: Path) -> None:
    def leaky(path: str) -> dict[str, Any]:
        return {"accuracy": 0.9, "log": open(path, "a")}

    def lazy() -> Any:
        return (k for k in range(3))

    (tmp_path / "file").write_text("x")
    pipeline = build(tmp_path)
    as_pickle_step(pipeline)(leaky)(str(tmp_path / "file"))
    as_pickle_step(pipeline)(lazy)()
    summary = pipeline.execute(raise_on_failure=False)
    assert "result['log']" in summary.failures["leaky"]
    assert (
        "Step 'lazy' returned a generator, which cannot be stored. "
        "Return a list, or write it to a file and return File(path)." in summary.failures["lazy"]
    )
    assert (tmp_path / "cache" / "leaky.partial").exists()


def test_an_argument_without_identity_is_refused_at_the_call(tmp_path: Path) -> None:
    import sqlite3

    def load(conn: Any) -> None: ...

    with sqlite3.connect(":memory:") as conn:
        f = as_pickle_step(build(tmp_path))(load)
        with pytest.raises(ezpyp.IdentityError) as caught:
            f(conn)
    conn.close()
    assert str(caught.value) == (
        "Argument 'conn' of 'load' is a sqlite3.Connection and has no lasting identity. Pass what it is made from "
        "(a path), or @step(identity=...), or register_identity(Connection, ...)."
    )


def test_names_become_files_safely(tmp_path: Path) -> None:
    pipeline = build(tmp_path)
    names = ["../../evil", "a.b", "a/b", "sim[1]", "naïve ünïcode", "x" * 300, "Case", "case", ".hidden", "pipeline"]
    f = as_pickle_step(pipeline)(square)
    steps = [f(k, name=name) for k, name in enumerate(names)]
    pipeline.execute()
    assert [s.result() for s in steps] == [k**2 for k in range(len(names))]
    assert not (tmp_path.parent / "evil.step").exists()
    files = [p.name.casefold() for p in (tmp_path / "cache").glob("*.step")]
    assert len(files) == len(set(files)) == len(names)


def test_lambdas_methods_partials_and_closures_are_steps(tmp_path: Path) -> None:
    from functools import partial

    class Model:
        def __init__(self, k: int) -> None:
            self.k = k

        def fit(self, x: int) -> int:
            return x * self.k

    pipeline = build(tmp_path)
    decorate = as_pickle_step(pipeline)
    offset = 5
    steps = [
        decorate(lambda x: x + offset)(1),
        decorate(Model(3).fit)(2),
        decorate(partial(divide, b=4))(8),
        decorate(len)("four"),
    ]
    pipeline.execute()
    assert [s.result() for s in steps] == [6, 6, 2.0, 4]


def test_inside_a_step_a_decorated_function_is_plain(tmp_path: Path, executor: str) -> None:
    pipeline = build(tmp_path, executor=executor)
    inner = as_pickle_step(pipeline, name="inner")(square)
    assert isinstance(inner, StepFunction)

    def outer(x: int) -> Any:
        return inner(x) + 1

    step = as_pickle_step(pipeline)(outer)(3)
    pipeline.execute()
    assert step.result() == 10
    assert inner.function is square


def test_phases_are_walls_when_asked(tmp_path: Path) -> None:
    pipeline, *_ = quick_start(tmp_path, schedule="phase", workers=2)
    assert pipeline.execute().ok
    assert [[s.name for s in phase] for phase in pipeline.phases] == [["alpha", "beta"], ["gamma"]]


def test_output_goes_to_the_log_and_failures_show_it(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def noisy() -> None:
        print("from python")
        os.system("echo from a child program")
        raise ValueError("done talking")

    pipeline = build(tmp_path)
    as_pickle_step(pipeline)(noisy)()
    pipeline.execute(raise_on_failure=False)
    text = ezpyp.open(pipeline.cache_location).log("noisy")
    assert "from python" in text
    assert "from a child program" in text
    out = capfd.readouterr().out
    assert "[FAIL] 'noisy' ValueError: done talking" in out
    assert "from a child program" in out  # the last lines, beneath the failure


@pytest.mark.parametrize("capture", ["tee", "off"])
def test_output_can_be_shown(tmp_path: Path, capture: str, capfd: pytest.CaptureFixture[str]) -> None:
    pipeline = build(tmp_path, capture=capture)
    as_pickle_step(pipeline)(os.system)("echo hello from a step")
    pipeline.execute()
    assert "hello from a step" in capfd.readouterr().out


def test_settings_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, *_ = quick_start(tmp_path)
    with pytest.raises(ezpyp.InitializationError, match="'processes', 'inline'"):
        pipeline.execute(executor="threads")
    monkeypatch.setenv("EZPYP_WORKERS", "many")
    with pytest.raises(ezpyp.InitializationError, match="workers='many'"):
        pipeline.execute()


def test_a_gpu_that_is_not_there_is_refused_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    pipeline = build(tmp_path)
    as_pickle_step(pipeline, gpus=1)(square)(1)
    with pytest.raises(ezpyp.ResourceError, match="asks for a GPU"):
        pipeline.execute()


def test_helpers_get_their_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")

    def visible(k: int) -> str:
        import time

        time.sleep(0.05)
        return os.environ["CUDA_VISIBLE_DEVICES"]

    pipeline = build(tmp_path, workers=2)
    steps = as_pickle_step(pipeline)(visible).map(range(8))
    pipeline.execute()
    assert {s.result() for s in steps} == {"2", "5"}


def run_script(python: Launcher, code: str) -> int:
    return python.run(0, textwrap.dedent(code)).returncode


FAILING = """
    from ezpyp import Pipeline, as_pickle_step
    pipeline = Pipeline("cache", "failing")
    @as_pickle_step(pipeline)
    def bad():
        raise ValueError("no")
    bad()
    pipeline.execute({})
    print("the script goes on")
"""


def test_a_script_whose_pipeline_failed_ends_with_1(python: Launcher) -> None:
    done = python.run(0, textwrap.dedent(FAILING.format("")))
    assert done.returncode == 1
    assert "the script goes on" in done.stdout
    assert "Traceback" not in done.stderr
    assert run_script(python, FAILING.format("raise_on_failure=False")) == 0
    assert run_script(python, FAILING.format("raise_on_failure=True")) == 1


def test_an_exit_callback_registered_earlier_still_runs(python: Launcher) -> None:
    code = "import atexit\natexit.register(print, 'goodbye')\n" + textwrap.dedent(FAILING.format(""))
    done = python.run(0, code)
    assert done.returncode == 1
    assert "goodbye" in done.stdout


def test_an_error_of_the_users_shows_no_frame_of_ours(python: Launcher) -> None:
    done = python.run(0, "from ezpyp import Pipeline\nPipeline('cache', 'empty').execute()\n")
    assert done.returncode == 3
    assert "InitializationError: Pipeline 'empty' has no steps" in done.stderr
    assert "script.py:2" in done.stderr
    assert "Traceback" not in done.stderr


def test_later_pipelines_are_built_from_earlier_results(tmp_path: Path) -> None:
    first = Pipeline(tmp_path / "first", "first")
    size = as_pickle_step(first, name="size")(square)(3)
    first.execute()
    second = Pipeline(tmp_path / "second", "second")
    steps = as_pickle_step(second)(cube).map(range(int(size.result())))
    second.execute()
    assert len(steps) == 9
    assert steps[8].result() == 512


def test_a_second_execute_tries_failures_again(tmp_path: Path) -> None:
    marker = tmp_path / "marker"

    def needs(path: str) -> str:
        return Path(path).read_text()

    pipeline = build(tmp_path)
    step = as_pickle_step(pipeline)(needs)(str(marker))
    after = as_pickle_step(pipeline)(len)(step)
    assert pipeline.execute(raise_on_failure=False).skipped == 1
    marker.write_text("here")
    assert pipeline.execute().ok
    assert after.result() == 4


def test_libraries_get_as_many_threads_as_the_step_asked_cores_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One, so that the order of additions does not depend on where a step runs."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("ezpyp.system.resources.allotted_cores", lambda: 16)

    def threads() -> list[str]:
        return [os.environ["OMP_NUM_THREADS"], os.environ["OPENBLAS_NUM_THREADS"]]

    pipeline = build(tmp_path)
    steps = [as_pickle_step(pipeline, cpus=cpus, name=f"on{cpus}")(threads)() for cpus in (1, 2, 16)]
    pipeline.execute()
    assert [step.result() for step in steps] == [["1", "1"], ["2", "2"], ["16", "16"]]


def test_a_pool_inside_a_step_may_map_a_decorated_function(python: Launcher) -> None:
    code = """
        from multiprocessing import Pool
        from ezpyp import Pipeline, as_pickle_step
        pipeline = Pipeline("cache", "pool")
        @as_pickle_step(pipeline)
        def double(x):
            return 2 * x
        @as_pickle_step(pipeline)
        def many(xs):
            with Pool(2) as pool:
                return pool.map(double, xs)
        step = many([1, 2, 3])
        pipeline.execute()
        print(step.result())
    """
    done = python.run(0, textwrap.dedent(code))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[2, 4, 6]"
