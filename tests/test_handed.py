"""Values without lasting identity: as arguments with `identity=`, and in code under `strict=True`."""

from __future__ import annotations

import sqlite3
import textwrap
from pathlib import Path
from typing import Any

import pytest

from ezpyp import IdentityError, Pipeline, as_pickle_step
from ezpyp.run import session
from tests.conftest import Launcher


class Database:
    """Holds what can be neither pickled nor identified."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.connection = sqlite3.connect(path)

    def __reduce__(self) -> Any:
        raise TypeError("a connection cannot be pickled")


def rows(conn: Database, more: int = 0) -> list[Any]:
    with open(f"{conn.path}.runs", "a") as file:
        file.write("ran\n")
    return [*conn.connection.execute("select x from t"), more]


def database(path: Path, *values: int) -> Database:
    found = Database(path)
    found.connection.execute("create table if not exists t (x)")
    found.connection.executemany("insert into t values (?)", [(value,) for value in values])
    found.connection.commit()
    return found


def start(folder: Path, conn: Any, identity: Any = None, **options: Any) -> Any:
    session._folders.clear()
    pipeline = Pipeline(folder / "cache", "handed", executor="inline", **options)
    wishes = {"identity": identity or {"conn": lambda conn: conn.path}}
    step = as_pickle_step(pipeline, **wishes)(rows)(conn, more=1)
    return pipeline, step


def test_an_argument_is_handed_over_and_counts_by_what_its_function_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    conn = database(Path("a.db"), 7)
    for _ in range(2):
        pipeline, step = start(tmp_path, conn)
        summary = pipeline.execute()
        assert step.result() == [(7,), 1]
        assert summary.rows[0].args == "['a.db']"
    assert (tmp_path / "a.db.runs").read_text() == "ran\n"  # the second run found it
    pipeline, step = start(tmp_path, database(Path("b.db"), 8), on_change="rerun")
    pipeline.execute()
    assert step.result() == [(8,), 1]


def test_the_very_object_reaches_the_step(tmp_path: Path) -> None:
    conn = database(tmp_path / "a.db", 7)
    pipeline = Pipeline(tmp_path / "cache", "same", executor="inline")
    seen = []

    def look(conn: Database) -> None:
        seen.append(conn)

    as_pickle_step(pipeline, uses=[1], identity={"conn": lambda conn: conn.path})(look)(conn)
    pipeline.execute()
    assert len(seen) == 1
    assert seen[0] is conn


def test_it_goes_through_the_fork(tmp_path: Path, python: Launcher) -> None:
    script = """
        import sqlite3, sys, threading
        from ezpyp import Pipeline, as_pickle_step

        class Held:
            def __init__(self, name):
                self.name, self.lock = name, threading.Lock()   # a lock cannot be pickled

        pipeline = Pipeline("cache", "fork", workers=2)

        @as_pickle_step(pipeline, identity={"held": lambda held: held.name})
        def use(held, x):
            with held.lock:
                return f"{held.name} {x}"

        held = Held("one")
        steps = use.map([held, held], [1, 2])
        pipeline.execute()
        print([step.result() for step in steps])
    """
    for _ in range(2):
        done = python.run(0, textwrap.dedent(script))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "['one 1', 'one 2']" in done.stdout
    assert "2 of 2 done, 0 to run" in done.stdout


def test_what_other_steps_make_stays_as_it_is(tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path / "cache", "mixed", executor="inline")
    first = as_pickle_step(pipeline)(abs)(-3)
    last = as_pickle_step(pipeline, identity={"x": str})(_double)(first)
    pipeline.execute()
    assert last.result() == 6


def _double(x: int) -> int:
    return 2 * x


@pytest.mark.parametrize(
    ("identity", "error", "text"),
    [
        ({"con": str}, TypeError, r"'rows' has 'con': rows\(\) has no such parameter"),
        ("path", TypeError, "give functions by parameter"),
        ({"conn": 3}, TypeError, "give functions by parameter"),
        ({"conn": lambda conn: conn.nothing}, IdentityError, "argument 'conn' of 'rows' failed: AttributeError"),
        ({"conn": lambda conn: conn.connection}, IdentityError, r"What identity= makes of .*sqlite3\.Connection"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, identity: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        start(tmp_path, database(tmp_path / "a.db"), identity)


SCRIPT = """
    import sqlite3, sys
    from ezpyp import IdentityError, Pipeline, as_pickle_step

    CONN = sqlite3.connect(":memory:")
    pipeline = Pipeline("cache", "strict", strict={strict})

    @as_pickle_step(pipeline)
    def ask(x):
        return CONN.execute("select 1").fetchone(), x

    step = ask(1)
    pipeline.initialize_schema()
    print("initialized")
    pipeline.execute()
"""


def test_strict_refuses_globals_without_identity(tmp_path: Path, python: Launcher) -> None:
    done = python.run(0, textwrap.dedent(SCRIPT.format(strict=True)))
    assert done.returncode == 3
    assert "initialized" not in done.stdout
    assert "'ask' uses " in done.stderr
    assert "CONN (sqlite3.Connection)" in done.stderr
    assert "Nothing was run." in done.stderr
    assert not (tmp_path / "cache" / "pipeline.schema").exists()


def test_else_they_are_said_once(python: Launcher) -> None:
    done = python.run(0, textwrap.dedent(SCRIPT.format(strict=False)))
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("CONN (sqlite3.Connection)") == 1
    assert "not followed" in done.stderr
