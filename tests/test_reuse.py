"""Nothing stale is reused, nothing valid is recomputed: what runs again after which change."""

from __future__ import annotations

import random
import textwrap
from pathlib import Path
from typing import Any

import pytest

import ezpyp
from ezpyp import Pipeline, SchemaConflictError, Status, as_pickle_step
from ezpyp.front.functions import StepFunction
from ezpyp.run import session
from tests.conftest import Launcher


class Book:
    """Counts what ran: each execution writes a line."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "executions"

    def note(self) -> str:
        return str(self._path)

    def take(self) -> list[str]:
        """What ran since the last look."""
        lines = self._path.read_text().split() if self._path.exists() else []
        self._path.unlink(missing_ok=True)
        return sorted(lines)


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path)


def mark(book: str, what: str, *inputs: Any) -> str:
    with open(book, "a") as file:
        file.write(f"{what}\n")
    return f"{what}({','.join(map(str, inputs))})"


def start(folder: Path, **options: Any) -> tuple[Pipeline, StepFunction]:
    """A new pipeline on the folder, as a new process would make it."""
    session._folders.clear()
    pipeline = Pipeline(folder / "cache", "reuse", executor="inline", **options)
    return pipeline, as_pickle_step(pipeline)(mark)


def test_inserting_at_the_front_of_a_sweep_runs_what_is_new(tmp_path: Path, book: Book) -> None:
    pipeline, f = start(tmp_path)
    f.map([book.note()] * 20, [f"s{k}" for k in range(20)])
    pipeline.execute()
    assert len(book.take()) == 20
    pipeline, f = start(tmp_path, on_change="extend")
    names = ["new", *[f"s{k}" for k in range(20)]]
    steps = f.map([book.note()] * 21, names)
    summary = pipeline.execute()
    assert book.take() == ["new"]
    assert summary.cached == 20
    assert [step.result() for step in steps] == [f"{name}()" for name in names]
    assert (tmp_path / "cache" / "mark[20].step").exists()


@pytest.mark.parametrize("seed", range(5))
def test_reordering_runs_nothing_and_needs_no_permission(tmp_path: Path, book: Book, seed: int) -> None:
    names = [f"s{k}" for k in range(12)]
    pipeline, f = start(tmp_path)
    f.map([book.note()] * 12, names)
    pipeline.execute()
    assert len(book.take()) == 12
    random.Random(seed).shuffle(names)
    pipeline, f = start(tmp_path)
    steps = f.map([book.note()] * 12, names)
    pipeline.execute()
    assert book.take() == []
    assert [step.result() for step in steps] == [f"{name}()" for name in names]
    assert not list((tmp_path / "cache").glob("old/*"))


def test_a_killed_rearrangement_loses_nothing(tmp_path: Path, book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop after every single file operation of a move; the next start finds all results."""
    from ezpyp.storage import filestore

    names = [f"s{k}" for k in range(4)]
    pipeline, f = start(tmp_path)
    f.map([book.note()] * 4, names)
    pipeline.execute()
    book.take()

    class Killed(BaseException):
        pass

    for survived in range(12):
        names = names[1:] + names[:1]
        left = survived

        def step(original: Any) -> Any:
            def guarded(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                if left == 0:
                    raise Killed
                left -= 1
                return original(*args, **kwargs)

            return guarded

        with monkeypatch.context() as patch:
            for operation in ("link_whole", "remove", "write_whole"):
                patch.setattr(filestore, operation, step(getattr(filestore, operation)))
            pipeline, f = start(tmp_path)
            f.map([book.note()] * 4, names)
            with pytest.raises(Killed):
                pipeline.initialize_schema()
        pipeline, f = start(tmp_path)
        steps = f.map([book.note()] * 4, names)
        pipeline.execute()
        assert book.take() == []
        assert [s.result() for s in steps] == [f"{name}()" for name in names]


def test_a_name_given_by_the_user_is_identity(tmp_path: Path, book: Book) -> None:
    pipeline, f = start(tmp_path)
    f(book.note(), "x", name="first")
    pipeline.execute()
    assert book.take() == ["x"]
    pipeline, f = start(tmp_path, on_change="extend")
    f(book.note(), "x", name="first")
    f(book.note(), "x", name="second")
    pipeline.execute()
    assert book.take() == ["x"]


def chain(f: StepFunction, book: Book, middle: str = "b") -> None:
    first = f(book.note(), "a", name="a")
    second = f(book.note(), middle, first, name="b")
    f(book.note(), "c", second, name="c")
    f(book.note(), "d", first, name="d")


def test_changed_steps_are_refused_then_rerun_with_their_descendants(tmp_path: Path, book: Book) -> None:
    pipeline, f = start(tmp_path)
    chain(f, book)
    pipeline.execute()
    book.take()
    for permission in ("refuse", "extend"):
        pipeline, f = start(tmp_path, on_change=permission)
        chain(f, book, "B")
        with pytest.raises(
            SchemaConflictError, match=r"2 of 4 steps changed.*argument what: 'b' -> 'B'.*--on-change rerun"
        ):
            pipeline.execute()
        assert book.take() == []
    pipeline, f = start(tmp_path, on_change="rerun")
    chain(f, book, "B")
    pipeline.execute()
    assert book.take() == ["B", "c"]
    assert len(list((tmp_path / "cache" / "old").glob("*.step"))) == 2


def test_going_back_recomputes_nothing(tmp_path: Path, book: Book) -> None:
    """The replaced result was kept, and is found by its fingerprint."""
    for middle, expected in (("b", 4), ("B", 2), ("b", 0), ("B", 0)):
        pipeline, f = start(tmp_path, on_change="rerun")
        chain(f, book, middle)
        pipeline.execute()
        assert len(book.take()) == expected, middle
        assert pipeline.result("c") == f"c({middle}(a()))"


def test_as_many_former_versions_are_kept_as_asked(tmp_path: Path, book: Book) -> None:
    for middle in "bcde":
        pipeline, f = start(tmp_path, on_change="rerun", keep_old=2 if middle > "c" else 1)
        f(book.note(), middle, name="only")
        pipeline.execute()
    kept = sorted((tmp_path / "cache" / "old").glob("*.step"))
    assert len(kept) == 2
    pipeline, f = start(tmp_path, on_change="rerun", keep_old=0)
    f(book.note(), "z", name="only")
    pipeline.execute()
    assert not list((tmp_path / "cache" / "old").glob("*.step"))


def test_no_step_in_common_is_always_refused(tmp_path: Path, book: Book) -> None:
    pipeline, f = start(tmp_path)
    f(book.note(), "x", name="one")
    pipeline.execute()
    pipeline, f = start(tmp_path, on_change="rerun")
    f(book.note(), "y", name="two")
    with pytest.raises(SchemaConflictError, match="no step is in common"):
        pipeline.execute()


def test_steps_join_and_leave_when_extending(tmp_path: Path, book: Book) -> None:
    pipeline, f = start(tmp_path)
    chain(f, book)
    pipeline.execute()
    book.take()
    pipeline, f = start(tmp_path)
    f(book.note(), "a", name="a")
    with pytest.raises(SchemaConflictError, match=r"3 gone: b, d, c.*--on-change extend"):
        pipeline.execute()
    pipeline, f = start(tmp_path, on_change="extend")
    f(book.note(), "a", name="a")
    assert pipeline.execute().cached == 1
    pipeline, f = start(tmp_path, on_change="extend")
    chain(f, book)
    assert pipeline.execute().cached == 4  # what left was not thrown away
    assert book.take() == []


def test_the_environment_chooses_too(tmp_path: Path, book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, f = start(tmp_path)
    chain(f, book)
    monkeypatch.setenv("EZPYP_ONLY", "b")
    pipeline.execute()
    assert book.take() == ["a", "b"]
    monkeypatch.delenv("EZPYP_ONLY")
    monkeypatch.setenv("EZPYP_ON_CHANGE", "rerun")
    pipeline, f = start(tmp_path)
    chain(f, book, "B")
    pipeline.execute()
    assert book.take() == ["B", "c", "d"]
    monkeypatch.setenv("EZPYP_ON_CHANGE", "maybe")
    pipeline, f = start(tmp_path)
    chain(f, book)
    with pytest.raises(ezpyp.InitializationError, match="'refuse', 'extend', 'rerun'"):
        pipeline.execute()


@pytest.mark.parametrize(
    ("what", "runs"),
    [
        ({"only": "c"}, ["a", "b", "c"]),
        ({"until": "b"}, ["a", "b"]),
        ({"from_": "b"}, ["a", "b", "c"]),
        ({"only": ["d", "b"]}, ["a", "b", "d"]),
        ({"only": "mark"}, ["a", "b", "c", "d"]),
    ],
)
def test_a_part_of_the_plan(tmp_path: Path, book: Book, what: dict[str, Any], runs: list[str]) -> None:
    pipeline, f = start(tmp_path)
    chain(f, book)
    summary = pipeline.execute(**what)
    assert book.take() == runs
    assert (summary.done, summary.not_run, summary.exit_code) == (len(runs), 4 - len(runs), 0)
    left = [step for step in pipeline.steps if step.name not in runs]
    assert all(step.get_status() == Status.NOT_RUN for step in left)
    assert pipeline.execute().done == 4
    assert book.take() == sorted(set("abcd") - set(runs))


def test_an_unknown_part_is_refused(tmp_path: Path, book: Book) -> None:
    pipeline, f = start(tmp_path)
    chain(f, book)
    with pytest.raises(ezpyp.UnknownStep, match="'e'"):
        pipeline.execute(only="e")


def test_a_version_stands_for_the_code(tmp_path: Path, book: Book) -> None:
    def run(version: str, factor: int) -> list[str]:
        session._folders.clear()
        pipeline = Pipeline(tmp_path / "cache", "version", executor="inline", on_change="rerun")

        def times(path: str, x: int) -> int:
            mark(path, "ran")
            return x * factor

        as_pickle_step(pipeline, version=version)(times)(book.note(), 3)
        pipeline.execute()
        return book.take()

    assert run("1", 2) == ["ran"]
    assert run("1", 5) == []
    assert run("2", 5) == ["ran"]


def test_always_and_max_age_run_again_with_what_follows(tmp_path: Path, book: Book) -> None:
    def run(**options: Any) -> list[str]:
        pipeline, f = start(tmp_path)
        first = f.options(**options)(book.note(), "first", name="first")
        f(book.note(), "second", first, name="second")
        f(book.note(), "other", name="other")
        pipeline.execute()
        return book.take()

    assert run() == ["first", "other", "second"]
    assert run() == []
    assert run(always=True) == ["first", "second"]
    assert run(max_age="1d") == []
    assert run(max_age=0.000001) == ["first", "second"]
    with pytest.raises(ValueError, match='"90s", "30m"'):
        run(max_age="soon")


def test_a_run_with_nothing_to_do_leaves_everything_as_it_is(
    tmp_path: Path, book: Book, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline, f = start(tmp_path)
    chain(f, book)
    pipeline.execute()

    def content() -> dict[str, tuple[int, bytes]]:
        files = sorted(p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.name != ".lock")
        return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in files}

    before = content()
    capsys.readouterr()
    pipeline, f = start(tmp_path)
    chain(f, book)
    summary = pipeline.execute()
    assert content() == before
    assert capsys.readouterr().out.count("\n") == 1
    assert (summary.done, summary.cached, summary.ok) == (4, 4, True)


def test_cached_steps_are_shown_and_noted(tmp_path: Path, book: Book, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline, f = start(tmp_path)
    chain(f, book)
    pipeline.execute(until="b")
    capsys.readouterr()
    pipeline, f = start(tmp_path)
    chain(f, book)
    summary = pipeline.execute()
    out = capsys.readouterr().out
    assert "  ╰─> [CACHED] 'a'\n" in out
    assert {row.name: row.note for row in summary.rows} == {"a": "cached", "b": "cached", "c": "", "d": ""}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "b.step").write_bytes(b""),
        lambda folder: (folder / "b.step").unlink(),
        lambda folder: (folder / "b.status").write_text("{"),
        lambda folder: (folder / "b.status").write_bytes(b""),
        lambda folder: (folder / "b.status").write_bytes((folder / "a.status").read_bytes()),
    ],
)
def test_a_torn_emptied_or_foreign_file_is_noticed_and_recomputed(
    tmp_path: Path, book: Book, spoil: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline, f = start(tmp_path)
    chain(f, book)
    pipeline.execute()
    book.take()
    spoil(tmp_path / "cache")
    pipeline, f = start(tmp_path)
    chain(f, book)
    assert pipeline.execute().ok
    assert book.take() == ["b"]
    assert str(tmp_path / "cache" / "b.st") in capsys.readouterr().err


def test_a_flipped_byte_is_never_unpickled(tmp_path: Path, book: Book) -> None:
    pipeline, f = start(tmp_path)
    chain(f, book)
    pipeline.execute()
    path = tmp_path / "cache" / "b.step"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ezpyp.StoreError, match=r"b\.step is not what 'b' wrote"):
        pipeline.result("b")


def test_200_random_graphs_rerun_the_descendants_of_the_edit(tmp_path: Path) -> None:
    """What reruns equals the edited steps and their descendants, whatever the graph."""
    for number in range(200):
        rng = random.Random(number)
        size = rng.randint(1, 10)
        parents = [sorted(rng.sample(range(k), rng.randint(0, min(k, 3)))) for k in range(size)]
        folder = tmp_path / str(number)
        folder.mkdir()
        book = Book(folder)

        def run(values: list[str], folder: Path = folder, book: Book = book, parents: Any = parents) -> set[str]:
            pipeline, f = start(folder, on_change="rerun")
            steps: list[Any] = []
            for k, value in enumerate(values):
                steps.append(f(book.note(), value, *[steps[p] for p in parents[k]], name=f"step{k}"))
            pipeline.execute()
            return {line.partition(".")[0] for line in book.take()}

        first = [f"{k}.0" for k in range(size)]
        assert run(first) == {str(k) for k in range(size)}
        edited = set(rng.sample(range(size), rng.randint(0, min(2, size))))
        second = [f"{k}.{int(k in edited)}" for k in range(size)]
        affected = set(edited)
        for k in range(size):
            if affected & set(parents[k]):
                affected.add(k)
        assert run(second) == {str(k) for k in affected}, number


HELPERS = """
    K = {k}
    def deeper(x):
        return x + K
    def g(x):
        return deeper(x) {more}
    class Model:
        def fit(self, x):
            return x * {fit}
"""

SCRIPT = """
    import functools
    import helpers
    from ezpyp import Pipeline, as_pickle_step

    def loud(function):
        @functools.wraps(function)
        def inner(*args):
            return function(*args) {loud}
        return inner

    def make(k):
        def f_closure(x):
            return x + k
        return f_closure

    pipeline = Pipeline("cache", "code", on_change="rerun")

    @as_pickle_step(pipeline)
    def f(x, scale={default}):
        {comment}
        open("executions", "a").write("f\\n")
        return helpers.g(x) * scale ** {power} + helpers.Model().fit(x)

    @as_pickle_step(pipeline)
    @loud
    def decorated(x):
        open("executions", "a").write("decorated\\n")
        return x

    @as_pickle_step(pipeline)
    def closed(x):
        open("executions", "a").write("closed\\n")
        return inner(x)
    inner = make({closure})

    @as_pickle_step(pipeline)
    def after(x):
        open("executions", "a").write("after\\n")
        return x

    @as_pickle_step(pipeline)
    def apart(x):
        open("executions", "a").write("apart\\n")
        return x

    after(f(1)); decorated(2); closed(3); apart(4)
    pipeline.execute()
"""

SAME: dict[str, Any] = {
    "k": 3,
    "more": "",
    "fit": 2,
    "loud": "",
    "default": 1,
    "comment": "pass",
    "power": 2,
    "closure": 1,
}


@pytest.mark.parametrize(
    ("edit", "runs"),
    [
        ({"comment": "# a comment\n        pass"}, []),
        ({"comment": "'a docstring'\n        pass"}, []),
        ({"k": 4}, ["after", "f"]),
        ({"more": "- 1"}, ["after", "f"]),
        ({"fit": 5}, ["after", "f"]),
        ({"default": 2}, ["after", "f"]),
        ({"power": 3}, ["after", "f"]),
        ({"loud": "+ 1"}, ["decorated"]),
        ({"closure": 2}, ["closed"]),
    ],
)
def test_code_is_followed_to_the_end(python: Launcher, tmp_path: Path, edit: dict[str, Any], runs: list[str]) -> None:
    def run(values: dict[str, Any]) -> list[str]:
        (tmp_path / "helpers.py").write_text(textwrap.dedent(HELPERS.format(**values)))
        # Two edits within a second would leave Python itself with the compiled file of the first.
        done = python.run(0, textwrap.dedent(SCRIPT.format(**values)), env={"PYTHONDONTWRITEBYTECODE": "1"})
        assert done.returncode == 0, done.stderr
        return Book(tmp_path).take()

    assert run(SAME) == ["after", "apart", "closed", "decorated", "f"]
    moved = {**SAME, "comment": "\n\n        # moved down\n        pass"}
    assert run(moved) == []
    assert run({**SAME, **edit}) == runs


def test_versions_of_packages_count_only_if_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    from ezpyp.identity import code

    def run(version: str, **options: Any) -> ezpyp.Summary:
        session._folders.clear()
        monkeypatch.setattr(code, "version", lambda name: version if name == "numpy" else None)
        pipeline = Pipeline(tmp_path / str(options), "versions", executor="inline", **options)
        as_pickle_step(pipeline)(lambda: int(np.add(1, 2)))()
        return pipeline.execute()

    for options in ({}, {"packages": ["scipy"]}):
        assert run("1.0", **options).cached == 0
        assert run("2.0", **options).cached == 1
    for counted in ({"packages": ["numpy"]}, {"packages": True}):
        assert run("1.0", **counted).cached == 0
        assert run("1.0", **counted).cached == 1
        with pytest.raises(SchemaConflictError, match=r"lambda: numpy 1\.0 -> 2\.0"):
            run("2.0", **counted)


def test_a_setting_names_more_and_fewer_modules(python: Launcher, tmp_path: Path) -> None:
    """`generated` is the user's own and not to be followed."""

    def run(k: int, options: str) -> str:
        (tmp_path / "generated.py").write_text(f"def g(x):\n    return x + {k}\n")
        code = f"""
from ezpyp import Pipeline, as_pickle_step
import generated
pipeline = Pipeline("cache{len(options)}", "modules", on_change="rerun"{options})
@as_pickle_step(pipeline)
def f(x):
    return generated.g(x)
step = f(1)
pipeline.execute()
print(step.result())
"""
        done = python.run(0, code, env={"PYTHONDONTWRITEBYTECODE": "1"})
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()[-1]

    assert [run(1, ""), run(2, "")] == ["2", "3"]
    assert [run(1, ', ignore=["generated"]'), run(2, ', ignore=["generated"]')] == ["2", "2"]
