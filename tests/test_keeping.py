"""Results of steps with keep=False: gone when nothing needs them any more, done all the same, remade on need."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ezpyp import Pipeline, ResultDropped, Status, as_pickle_step, open
from ezpyp.front.functions import StepFunction
from ezpyp.run import session
from ezpyp.schedule.ledger import Ledger
from ezpyp.storage import filestore
from tests.conftest import Launcher


def mark(book: str, what: str, *inputs: Any, fails: str = "") -> str:
    """Counts what ran: each execution writes a line. Fails as long as the file `fails` is there."""
    with Path(book).open("a") as file:
        file.write(f"{what}\n")
    if fails and Path(fails).exists():
        raise ValueError("not yet")
    return f"{what}({','.join(map(str, inputs))})"


def start(folder: Path, **options: Any) -> tuple[Pipeline, StepFunction]:
    session._folders.clear()
    pipeline = Pipeline(folder / "cache", "keeping", executor="inline", on_change="rerun", **options)
    return pipeline, as_pickle_step(pipeline)(mark)


def ran(folder: Path) -> list[str]:
    """What ran since the last look."""
    book = folder / "book"
    lines = book.read_text().split() if book.exists() else []
    book.unlink(missing_ok=True)
    return sorted(lines)


def results(folder: Path) -> list[str]:
    return sorted(path.stem for path in (folder / "cache").glob("*.step"))


def chain(folder: Path, *more: str, keep: bool = False) -> Pipeline:
    pipeline, f = start(folder)
    book = str(folder / "book")
    first = f.options(keep=keep)(book, "a", name="a")
    second = f.options(keep=keep)(book, "b", first, name="b")
    f(book, "c", second, name="c")
    for name in more:
        f(book, name, second, name=name)
    pipeline.execute()
    return pipeline


def test_a_result_is_dropped_when_its_last_consumer_is_done(tmp_path: Path) -> None:
    pipeline = chain(tmp_path, "d")
    assert results(tmp_path) == ["c", "d"]
    assert pipeline.result("c") == "c(b(a()))"
    assert ran(tmp_path) == ["a", "b", "c", "d"]


def test_it_still_counts_as_done(tmp_path: Path) -> None:
    pipeline = chain(tmp_path)
    for each in (pipeline, chain(tmp_path)):
        assert [each.get_status(name) for name in "abc"] == [Status.DONE] * 3
    assert ran(tmp_path) == ["a", "b", "c"]  # the second time there was nothing to do
    run = open(tmp_path / "cache")
    assert (run.status.done, run.status.problems) == (3, ())
    rows = {row.name: row for row in run.summary().rows}
    assert (rows["a"].note, rows["a"].result, rows["c"].note) == ("dropped", "", "")
    assert "dropped" in (tmp_path / "cache" / "pipeline.summary").read_text()


def test_asking_for_it_says_how_to_remake_it(tmp_path: Path) -> None:
    pipeline = chain(tmp_path)
    with pytest.raises(ResultDropped, match=r"'a' was dropped .*keep=False.* take keep=False from the step and run"):
        pipeline.result("a")
    assert open(tmp_path / "cache").select() == {"c": "c(b(a()))"}
    ran(tmp_path)
    assert chain(tmp_path, keep=True).result("a") == "a()"
    assert ran(tmp_path) == ["a", "b"]


def test_a_new_consumer_has_it_remade_with_what_that_needs(tmp_path: Path) -> None:
    chain(tmp_path)
    ran(tmp_path)
    pipeline = chain(tmp_path, "new")
    assert ran(tmp_path) == ["a", "b", "new"]
    assert pipeline.result("new") == "new(b(a()))"
    assert results(tmp_path) == ["c", "new"]


def test_a_step_that_nothing_needs_is_kept(tmp_path: Path) -> None:
    pipeline, f = start(tmp_path)
    alone = f.options(keep=False)(str(tmp_path / "book"), "alone")
    pipeline.execute()
    assert alone.result() == "alone()"


def test_it_stays_while_a_consumer_failed(tmp_path: Path) -> None:
    book, fails = str(tmp_path / "book"), tmp_path / "fails"
    fails.touch()
    for expected in (["a", "b", "c"], ["b"]):
        pipeline, f = start(tmp_path)
        first = f.options(keep=False)(book, "a", name="a")
        f(book, "b", first, name="b", fails=str(fails))
        f(book, "c", first, name="c")
        pipeline.execute(raise_on_failure=False)
        assert ran(tmp_path) == expected
        assert ("a" in results(tmp_path)) == fails.exists()
        fails.unlink(missing_ok=True)


def test_it_stays_while_a_consumer_lacks_another_value(tmp_path: Path) -> None:
    """When what failed is mended the consumer is made anew, and needs everything."""
    book, fails = str(tmp_path / "book"), tmp_path / "fails"
    fails.touch()
    for expected in (["a", "b", "c", "d"], ["b", "c", "d"]):
        pipeline, f = start(tmp_path)
        first = f.options(keep=False)(book, "a", name="a")
        second = f.options(allow_failure=True)(book, "b", name="b", fails=str(fails))
        third = f.options(keep=False)(book, "c", first, second, name="c")
        last = f(book, "d", third, name="d")
        assert pipeline.execute(raise_on_failure=False).ok
        assert ran(tmp_path) == expected
        assert set(results(tmp_path)) == ({"a", "c", "d"} if fails.exists() else {"b", "d"})
        fails.unlink(missing_ok=True)
    assert last.result() == "d(c(a(),b()))"


def test_saying_so_later_drops_what_is_there(tmp_path: Path) -> None:
    chain(tmp_path, keep=True)
    assert results(tmp_path) == ["a", "b", "c"]
    chain(tmp_path, keep=False)
    assert results(tmp_path) == ["c"]
    assert ran(tmp_path) == ["a", "b", "c"]


def test_a_part_of_the_plan_drops_what_it_used_up_only(tmp_path: Path) -> None:
    pipeline, f = start(tmp_path)
    book = str(tmp_path / "book")
    first = f.options(keep=False)(book, "a", name="a")
    f(book, "b", first, name="b")
    f(book, "c", first, name="c")
    pipeline.execute(only="b")
    assert results(tmp_path) == ["a", "b"]
    pipeline.execute()
    assert results(tmp_path) == ["b", "c"]
    assert ran(tmp_path) == ["a", "b", "c"]


class Killed(BaseException):
    pass


def killing(number: int) -> Callable[[Any], Any]:
    """Lets so many calls of what it is put around pass, and then none."""
    left = [number]

    def around(original: Any) -> Any:
        def guarded(*args: Any, **kwargs: Any) -> Any:
            if not left[0]:
                raise Killed
            left[0] -= 1
            return original(*args, **kwargs)

        return guarded

    return around


@pytest.mark.parametrize("seed", range(60))
def test_random_graphs_that_are_killed_now_and_then(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop at any file operation, run again, perhaps with more steps: every kept result is right, every other is gone,
    and nothing runs when all is done."""
    rng = random.Random(seed)
    size = rng.randint(2, 9)
    parents = [sorted(rng.sample(range(k), rng.randint(0, min(k, 3)))) for k in range(size)]
    keeps = [rng.random() < 0.4 for _ in range(size)]
    values: list[str] = []
    for k in range(size):
        values.append(f"{k}({','.join(values[p] for p in parents[k])})")

    def build(steps: int) -> Pipeline:
        pipeline, f = start(tmp_path)
        made: list[Any] = []
        for k in range(steps):
            step = f.options(keep=keeps[k])(
                str(tmp_path / "book"), f"{k}", *[made[p] for p in parents[k]], name=f"s{k}"
            )
            made.append(step)
        return pipeline

    for steps in sorted({rng.randint(1, size), size}):
        for _ in range(4):
            with monkeypatch.context() as patch:
                guard = killing(rng.randint(3, 3 + 2 * size))
                for operation in ("write_whole", "write_vouched", "remove"):
                    patch.setattr(filestore, operation, guard(getattr(filestore, operation)))
                patch.setattr(Ledger, "settle", guard(Ledger.settle))
                with contextlib.suppress(Killed):
                    build(steps).execute()
        pipeline = build(steps)
        assert pipeline.execute().ok
        ran(tmp_path)
        has_children = {p for k in range(steps) for p in parents[k]}
        for k in range(steps):
            if keeps[k] or k not in has_children:
                assert pipeline.result(f"s{k}") == values[k]
            else:
                assert f"s{k}" not in results(tmp_path)
        again = build(steps)
        assert again.execute().cached == steps
        assert ran(tmp_path) == []


def test_under_mpi_too(mpirun: Launcher) -> None:
    script = """
from ezpyp import Pipeline, as_pickle_step
pipeline = Pipeline("cache", "ranks")
@as_pickle_step(pipeline, keep=False)
def part(x):
    return [x] * 1000
@as_pickle_step(pipeline)
def total(parts):
    return sum(map(sum, parts))
last = total(part.map(range(20)))
assert pipeline.execute().ok
assert last.result() == 190_000
"""
    for _ in range(2):
        done = mpirun.run(2, script)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "21 of 21 done" in done.stdout
    assert [path.name for path in (mpirun.folder / "cache").glob("*.step")] == ["total.step"]
