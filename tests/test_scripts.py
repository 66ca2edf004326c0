"""A script is run up to its first unfinished execute(), as Python would run it, and leaves no trace."""

from __future__ import annotations

import pickle
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from ezpyp.errors import InitializationError
from ezpyp.scripts import loading

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def script(tmp_path: Path) -> Path:
    return tmp_path / "study.py"


def write(path: Path, text: str) -> Path:
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def test_a_script_stops_where_its_pipeline_would_run(script: Path) -> None:
    write(
        script,
        """
        from ezpyp.scripts import loading
        ends = []
        try:
            assert loading.loading()
            loading.reached("the pipeline")
            ends.append("went on")
        except Exception:
            ends.append("caught")
        finally:
            ends.append("left")
        """,
    )
    loaded = loading.load(script)
    assert loaded.pipeline == "the pipeline"
    assert loaded.namespace["ends"] == ["left"]
    assert not loading.loading()


def test_a_finished_pipeline_lets_the_script_go_on(script: Path) -> None:
    write(
        script,
        """
        from ezpyp.scripts import loading
        loading.reached("first", finished=True)
        loading.reached("second")
        loading.reached("third")
        """,
    )
    assert loading.load(script).pipeline == "second"


def test_a_script_that_comes_to_its_end_gives_what_it_defined(script: Path) -> None:
    assert loading.load(write(script, "x = 3")).namespace["x"] == 3
    assert loading.load(script).pipeline is None
    assert loading.load(write(script, "y = 4\nraise SystemExit(2)\nz = 1")).namespace["y"] == 4


def test_outside_of_a_load_nothing_is_stopped() -> None:
    loading.reached("anything")
    assert not loading.loading()


def test_it_is_run_as_python_would_run_it(script: Path) -> None:
    (script.parent / "beside.py").write_text("value = 7")
    write(
        script,
        """
        import sys
        import beside
        seen = (__name__, sys.modules["__main__"].__dict__ is globals(), sys.argv, sys.path[0], __file__)
        """,
    )
    main, argv, path = sys.modules["__main__"], sys.argv, [*sys.path]
    try:
        seen = loading.load(script, ["--fast", "3"]).namespace["seen"]
    finally:
        sys.modules.pop("beside", None)
    assert seen == ("__main__", True, [str(script), "--fast", "3"], str(script.parent), str(script))
    assert (sys.modules["__main__"], sys.argv, sys.path) == (main, argv, path)


def test_what_it_prints_does_not_mix_with_what_is_asked(script: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loading.load(write(script, "print('hello')"))
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "hello\n")


def test_its_errors_are_its_own(script: Path) -> None:
    write(
        script,
        """
        def fit():
            try:
                1 / 0
            except ZeroDivisionError as error:
                raise ValueError("no fit") from error
        fit()
        """,
    )
    main = sys.modules["__main__"]
    with pytest.raises(ValueError, match="no fit") as caught:
        loading.load(script)
    assert sys.modules["__main__"] is main
    assert not loading.loading()
    text = loading.traceback_of(caught.value, str(script))
    assert "ZeroDivisionError" in text
    assert "direct cause" in text
    assert f'File "{script}", line 7, in <module>' in text
    assert "scripts.py" not in text


def test_a_syntax_error_shows_its_line(script: Path) -> None:
    with pytest.raises(SyntaxError) as caught:
        loading.load(write(script, "x = (\n"))
    text = loading.traceback_of(caught.value, str(script))
    assert text.startswith(f'  File "{script}", line 1')
    assert "scripts.py" not in text


def test_a_missing_script_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        InitializationError, match=r"The script .*/gone\.py cannot be read: No such file or directory\."
    ):
        loading.load(tmp_path / "gone.py")


def test_a_load_within_a_load_is_refused(script: Path) -> None:
    write(script, "from ezpyp.scripts import loading\nloading.load(__file__)")
    with pytest.raises(InitializationError, match="itself only being looked at"):
        loading.load(script)
    assert not loading.loading()


def test_objects_of_its_classes_can_be_read_while_it_stands_in(script: Path) -> None:
    write(
        script,
        """
        import pickle
        class Model:
            score = 5
        data = pickle.dumps(Model())
        """,
    )
    loaded = loading.load(script)
    with pytest.raises(AttributeError):
        pickle.loads(loaded.namespace["data"])
    with loading.standing_in(loaded.module):
        assert pickle.loads(loaded.namespace["data"]).score == 5
