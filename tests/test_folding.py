"""Families of very many steps: one entry in the schema, one row in the summary, every step still found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ezpyp
from ezpyp import Pipeline, SchemaConflictError, Status, Summary, as_pickle_step
from ezpyp.folder import folding
from ezpyp.folder.entries import Entries
from ezpyp.folder.schema import encoded, of
from ezpyp.model.steps import Steps
from ezpyp.run import session
from ezpyp.upkeep import merging


@pytest.fixture(autouse=True)
def _fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Families are large from eleven steps on."""
    monkeypatch.setattr(folding, "MOST", 10)


def build(folder: Path, total: int = 20, offset: int = 0, **options: Any) -> tuple[Pipeline, Any]:
    session._folders.clear()
    pipeline = Pipeline(folder, "folded", executor="inline", **options)

    def f(x: Any, y: Any = None) -> Any:
        if x == "bad":
            raise ValueError("no")
        return x + offset if isinstance(x, int) else x

    made = as_pickle_step(pipeline)(f)
    if total:
        made.map(range(total))
    return pipeline, made


def schema(folder: Path) -> Any:
    return json.loads((folder / "pipeline.schema").read_text())


def test_a_large_family_is_one_entry_and_one_row(tmp_path: Path) -> None:
    pipeline, f = build(tmp_path / "c", 0)
    first = f.map([*range(12), "bad"])
    f.map(first, y=3)
    f(first[0], y=4)
    summary = pipeline.execute(raise_on_failure=False)
    names = [[entry["name"] for entry in schema(tmp_path / "c")[phase]] for phase in "01"]
    assert names == [["f[0..12]"], ["f[13..25]", "f[26]"]]
    told = [line.split()[0] for line in "".join(summary.text()).splitlines()[3:]]
    assert told == ["f[0..12]", "f[12]", "f[13..25]", "f[25]", "f[26]"]
    assert "12 done, 1 failed" in "".join(summary.text())
    assert len(summary.rows) == 27
    assert summary.rows[12].status is Status.FAILED
    assert list(summary.failures) == ["f[12]"]
    run = ezpyp.open(tmp_path / "c")
    assert run["f[3]"] == run["f[16]"] == 3
    assert run.entries[run.index["f[16]"]].upstream == ("f[3]",)
    assert run.entries[run.index["f[16]"]].arguments == {"x": "TMP for f[3]", "y": 3}
    assert run.names(x=4) == ["f[4]"]
    assert len(run.table()) == 27
    assert [str(row) for row in run.summary().rows][:12] == [str(row) for row in summary.rows][:12]
    for unknown in ("f[27]", "f[03]", "f[0..12]", "g[1]"):
        assert unknown not in run.index


columns = st.one_of(
    st.builds(range, st.integers(-5, 5), st.just(30)),
    st.lists(st.integers() | st.text() | st.booleans() | st.none(), min_size=11, max_size=14, unique_by=repr),
    st.lists(st.tuples(st.integers(), st.text(max_size=3)), min_size=11, max_size=14, unique=True),
)


@settings(deadline=None, max_examples=40)
@given(columns, st.lists(st.integers(), min_size=1, max_size=3, unique=True), st.booleans())
def test_a_folded_entry_tells_every_step_as_an_entry_of_its_own_would(
    tmp_path_factory: pytest.TempPathFactory, values: Any, more: list[int], over_steps: bool
) -> None:
    pipeline, f = build(tmp_path_factory.mktemp("folded") / "c", 0)
    sources = f.map(values)
    f.product(Steps(sources) if over_steps and len(more) == 1 else range(100, 120), y=[f"y{k}" for k in more])
    pipeline.organize_steps()
    organised = pipeline._organised("looking")
    folded, apart = Entries(of(organised, cache_location="c")), Entries(of(organised, cache_location="c", folds=[]))
    assert sum(1 for _ in folded.wholes()) == 2
    assert list(folded) == list(apart)
    assert [folded.place(entry.name) for entry in apart] == list(range(len(apart)))


def test_a_schema_of_very_many_entries_has_a_line_for_each(tmp_path: Path) -> None:
    pipeline, f = build(tmp_path / "c", 0)
    for k in range(25):
        f([k])
    f.map(range(30, 50), y=f(f(0, y="é"), y=1))
    pipeline.organize_steps()
    content = of(pipeline._organised("looking"), cache_location="c")
    text = b"".join(encoded(content)).decode()
    read = json.loads(text)
    assert {key: read[key] for key in "012"} == {key: list(content[key]) for key in "012"}
    assert [len(content[key]) for key in "012"] == [26, 1, 1]
    assert [each["name"] for each in content["0"]] == ["f", *(f"f[{k}]" for k in range(1, 26))]
    assert content["0"][25] == content["0"][-1] == content["0"][20:][5] == read["0"][25]
    assert sum('"name": ' in line for line in text.splitlines()) == 28


shapes = st.lists(
    st.tuples(
        st.sampled_from(["map", "over", "product", "constant"]),
        st.integers(1, 14),
        st.sampled_from(["range", "list", "floats", "mutable"]),
    ),
    min_size=1,
    max_size=4,
)


def written(folder: Path, shape: list[tuple[str, int, str]], *, loops: bool) -> Pipeline:
    """One pipeline, written with loops or with families."""
    pipeline, f = build(folder, 0)
    last: list[Any] = [f("first")]
    for layer, (kind, size, of_values) in enumerate(shape):
        first = 100 * (layer + 1)
        values: Any = range(first, first + size)
        if of_values == "floats":
            values = [k / 4 for k in values]
        elif of_values == "mutable":
            values = [{"k": k} for k in values]
        elif of_values == "list":
            values = [*values]
        mark = f"layer {layer}"
        if kind == "map":
            last = [f(v) for v in values] if loops else f.map(values)
        elif kind == "over":
            last = [f(step, y=mark) for step in last] if loops else f.map(last, y=mark)
        elif kind == "product":
            pairs = ((v, y) for v in values for y in (mark, None))
            last = [f(v, y=y) for v, y in pairs] if loops else f.product(values, y=[mark, None])
        else:
            gathered = list(last)
            last = [f(v, y=gathered) for v in values] if loops else f.map(values, y=gathered)
    return pipeline


@settings(deadline=None, max_examples=8)
@given(shape=shapes, first=st.booleans())
def test_loops_and_families_are_the_same_pipeline(
    tmp_path_factory: pytest.TempPathFactory, shape: list[tuple[str, int, str]], first: bool
) -> None:
    folder = tmp_path_factory.mktemp("written") / "c"
    then = written(folder, shape, loops=first).execute()
    results = [ezpyp.open(folder)[row.name] for row in then.rows]
    now = written(folder, shape, loops=not first).execute()
    assert now.cached == now.done == then.done == len(then.rows)
    assert [
        (row.args, row.kwargs, row.phase, row.status) for row in now.rows if "TMP" not in row.args + row.kwargs
    ] == [(row.args, row.kwargs, row.phase, row.status) for row in then.rows if "TMP" not in row.args + row.kwargs]
    assert [ezpyp.open(folder)[row.name] for row in now.rows] == results


# ----- what changed


def refusal(run: Callable[[], Summary]) -> str:
    with pytest.raises(SchemaConflictError) as caught:
        run()
    return str(caught.value)


def test_a_family_that_grows_or_shrinks_is_told_by_what_joins_and_leaves(tmp_path: Path) -> None:
    build(tmp_path / "c")[0].execute()
    assert "5 new: f[20..24]. Let steps join" in refusal(build(tmp_path / "c", 25)[0].execute)
    grown = build(tmp_path / "c", 25, on_change="extend")[0].execute()
    assert (grown.done, grown.cached) == (25, 20)
    assert "12 gone: f[13..24]" in refusal(build(tmp_path / "c", 13)[0].execute)
    shrunk = build(tmp_path / "c", 13, on_change="extend")[0].execute()
    assert (shrunk.done, shrunk.cached) == (13, 13)


@pytest.mark.parametrize(("before", "after"), [(8, 20), (20, 8), (8, 9), (20, 20)])
def test_results_are_reused_wherever_the_border_of_a_large_family_lies(tmp_path: Path, before: int, after: int) -> None:
    build(tmp_path / "c", before)[0].execute()
    summary = build(tmp_path / "c", after, on_change="extend")[0].execute()
    assert (summary.done, summary.cached) == (after, min(before, after))


def test_a_change_of_code_is_told_once_for_the_family_and_can_be_accepted(tmp_path: Path) -> None:
    from ezpyp.folder import surveys
    from ezpyp.storage.filestore import FileStore
    from ezpyp.upkeep import acceptance

    build(tmp_path / "c")[0].execute()
    words = refusal(build(tmp_path / "c", 20, 1)[0].execute)
    assert words.startswith("20 of 20 steps changed since ")
    assert words.count("closure value offset 0 -> 1") == words.count("f[0..19]: ") == 1
    changed = build(tmp_path / "c", 20, 1)[0]
    changed.organize_steps()
    store = FileStore(tmp_path / "c")
    found = surveys.survey(changed._organised("looking"), str(tmp_path / "c"), store)
    chosen = acceptance.choose(found)
    assert list(chosen.accepted) == ["f[0..19]"]
    assert acceptance.accept(found, str(tmp_path / "c"), store, chosen) == 20
    assert build(tmp_path / "c", 20, 1)[0].execute().cached == 20
    again = build(tmp_path / "c", 20, 2, on_change="rerun")[0].execute()
    assert (again.done, again.cached) == (20, 0)


def test_a_failure_of_former_code_is_not_taken_for_one_of_now(tmp_path: Path) -> None:
    def failing(folder: Path, text: str) -> Pipeline:
        session._folders.clear()
        pipeline = Pipeline(folder, "folded", executor="inline")

        def g(x: int) -> int:
            raise ValueError(text)

        as_pickle_step(pipeline)(g).map(range(12))
        return pipeline

    failing(tmp_path / "c", "one").execute(raise_on_failure=False)
    failing(tmp_path / "c", "two").initialize_schema()
    assert ezpyp.open(tmp_path / "c").status.not_run == 12


def test_large_families_are_merged_step_by_step(tmp_path: Path) -> None:
    build(tmp_path / "a", 12)[0].execute()
    pipeline, f = build(tmp_path / "b", 0)
    f.map(range(12, 24))
    pipeline.execute()
    merged = merging.merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert (merged.steps, merged.done, merged.left_out) == (24, 24, ())
    summary = build(tmp_path / "c", 24, on_change="extend")[0].execute()
    assert (summary.done, summary.cached) == (24, 24)


def test_a_name_that_reads_as_many_is_refused(tmp_path: Path) -> None:
    _, f = build(tmp_path / "c", 0)
    with pytest.raises(ValueError, match="several steps are written so"):
        f(1, name="f[0..3]")


@given(st.lists(st.tuples(st.sampled_from(["a", "b[1]", "c d"]), st.integers(0, 5), st.integers(1, 30))))
def test_names_told_together_stand_for_each(given_spans: list[tuple[str, int, int]]) -> None:
    together = [folding.span(*each) for each in given_spans]
    names = [f"{label}[{first + k}]" for label, first, count in given_spans for k in range(count)]
    assert list(folding.named(together)) == names
    assert folding.count(together) == len(names)
    assert [folding.nth(together, k) for k in range(len(names))] == names
    with pytest.raises(IndexError):
        folding.nth(together, len(names))
