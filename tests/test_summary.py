"""Rows, totals, and the table that people read."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ezpyp.folder import summary as summaries
from ezpyp.folder.summary import Row, Rows, Summary, duration, row, tally
from ezpyp.model.outcomes import Outcome, Status

if TYPE_CHECKING:
    from pathlib import Path

DONE = Outcome(
    step=0,
    status=Status.DONE,
    seconds=0.0014,
    rank=3,
    host="n017",
    args="[3]",
    location="alpha.step",
    note="",
)


def made(names: int = 3, status: Status = Status.DONE) -> Rows:
    """Rows named s0, s1, …"""

    def make(k: int) -> Row:
        return row(name=f"s{k}", phase=k % 2, folder="/cache", outcome=DONE, args="[]")

    return Rows([status] * names, partial(summaries.made_by, make))


def summary_of(rows: Rows | list[Row], **given: object) -> Summary:
    counts = {"done": len(rows), "failed": 0, "skipped": 0, "not_run": 0, "allowed": 0, "cached": 0}
    totals = {"folder": "/cache", "pipeline_id": "p", "seconds": 1.0, "exit_code": 0, "rows": rows}
    return Summary(**{**counts, **totals, **given})  # type: ignore[arg-type]


def test_the_table_is_laid_out_as_people_know_it() -> None:
    gamma = row(name="gamma", phase=1, folder="FOLDER", outcome=DONE)
    alpha = row(name="alpha", phase=0, folder="FOLDER", outcome=DONE)
    lines = "".join(summary_of([alpha, gamma], folder="FOLDER").text()).splitlines()
    assert lines[:2] == ["Pipeline Completed @ FOLDER", ""]
    left = [
        "name    args    kwargs      phase    status  result  ",
        "alpha   [3]     {}              0         0  ",
    ]
    assert [line[: len(start)] for line, start in zip(lines[2:], left, strict=False)] == left
    right = [
        "             seconds    rank  host      attempts  note",
        "FOLDER/alpha.step      0.001       3  n017             1",
    ]
    assert [line.endswith(end) for line, end in zip(lines[2:], right, strict=False)] == [True, True]
    assert lines[4].startswith("gamma   [3]     {}              1         0  FOLDER/alpha.step")


def test_texts_that_look_like_numbers_stay_what_they_are() -> None:
    odd = Outcome(step=0, status=Status.DONE, args="1e5", kwargs="007", note="1.50", location="x", host="0x1f")
    lines = "".join(summary_of([row(name="1e3", phase=0, folder="/c", outcome=odd)]).text()).splitlines()
    cells = lines[3].split()
    assert cells == ["1e3", "1e5", "007", "0", "0", "/c/x", "0.000", "0", "0x1f", "1", "1.50"]


def test_a_step_that_never_ran_shows_its_planned_arguments_and_nothing_else() -> None:
    waiting = row(name="beta", phase=1, folder="/c", outcome=None, args="[TMP for alpha]", kwargs="{'k': 1}")
    assert (waiting.status, waiting.rank, waiting.host, waiting.attempts) == (-1, -1, "", 0)
    lines = "".join(summary_of([waiting]).text()).splitlines()
    assert lines[3].split("  ")[0] == "beta"
    assert lines[3].split()[1:] == ["[TMP", "for", "alpha]", "{'k':", "1}", "1", "-1", "0"]


def test_a_failure_has_no_result_and_a_note_of_one_line() -> None:
    failed = Outcome(step=0, status=Status.FAILED, note="ValueError: two\nlines", location="old.step")
    shown = row(name="a", phase=0, folder="/c", outcome=failed)
    assert shown.result == ""
    assert "".join(summary_of([shown]).text()).splitlines()[3].endswith("ValueError: two lines")


def test_a_run_that_was_stopped_says_so() -> None:
    text = summary_of(made(60), not_run=12, reason="stopped by SIGTERM").headline()
    assert text == "Pipeline Stopped @ /cache (12 of 60 not run: stopped by SIGTERM)"
    assert summary_of(made(60), not_run=1).headline() == "Pipeline Stopped @ /cache (1 of 60 not run)"


def test_failures_give_their_reasons_and_make_no_other_row() -> None:
    asked: list[int] = []

    def make(k: int) -> Row:
        asked.append(k)
        outcome = Outcome(step=k, status=Status.FAILED, note=f"ValueError: {k}")
        return row(name=f"s{k}", phase=0, folder="/c", outcome=outcome)

    rows = Rows([Status.DONE, Status.FAILED, Status.SKIPPED, Status.FAILED], partial(summaries.made_by, make))
    assert summary_of(rows).failures == {"s1": "ValueError: 1", "s3": "ValueError: 3"}
    assert asked == [1, 3]
    assert summary_of([make(1)]).failures == {"s1": "ValueError: 1"}


def test_rows_are_a_sequence() -> None:
    rows = made(5)
    assert len(rows) == 5
    assert rows[-1].name == "s4"
    assert [each.name for each in rows[1:3]] == ["s1", "s2"]
    assert [each.name for each in rows][-1] == "s4"
    with pytest.raises(IndexError):
        rows[5]


def test_many_rows_are_streamed_in_columns_of_one_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "LAID_OUT", 10)
    pieces = list(summary_of(made(25)).text())
    assert len(pieces) == 1 + 1 + 3  # the headline; the header; 25 lines in tens
    lines = "".join(pieces).splitlines()[2:]
    assert len(lines) == 26
    assert {line.index("/cache") for line in lines[1:]} == {lines[0].index("result")}
    assert lines[0].split() == list(summaries.COLUMNS)


@given(st.lists(st.text(alphabet=" |a\t\n\u00a0\u3000\udce9é", max_size=6), min_size=1, max_size=8))
def test_each_row_is_one_line_and_words_stand_one_blank_apart(notes: list[str]) -> None:
    outcomes = [DONE._replace(note=note) for note in notes]
    rows = [row(name=f"s{k}", phase=0, folder="/c", outcome=each) for k, each in enumerate(outcomes)]
    lines = "".join(summary_of(rows).text()).split("\n")[3:-1]
    place = lines[0].index("/c/alpha.step") + len("/c/alpha.step      0.001       3  n017             1")
    assert [line[place:].removeprefix("  ") for line in lines] == [" ".join(note.split()) for note in notes]


def test_it_is_written_whole_and_prints_as_its_table(tmp_path: Path) -> None:
    made_here = summary_of(made(), folder=str(tmp_path))
    path = made_here.write()
    text = (tmp_path / "pipeline.summary").read_text(encoding="utf-8")
    assert path == str(tmp_path / "pipeline.summary")
    assert text == f"{made_here}\n"
    assert text.startswith(f"Pipeline Completed @ {tmp_path}\n\nname ")
    assert [each.name for each in tmp_path.iterdir()] == ["pipeline.summary"]


def test_a_large_summary_prints_as_its_totals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "LAID_OUT", 10)
    assert str(summary_of(made(11))) == "Pipeline Completed @ /cache\n\n11 done in 1.0 s"


def test_the_frame_has_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summaries, "LAID_OUT", 10)
    frame = summary_of(made(25)).to_frame()
    assert list(frame.columns) == list(summaries.COLUMNS)
    assert list(frame["name"]) == [f"s{k}" for k in range(25)]
    assert frame["status"].dtype.kind == "i"
    assert frame["seconds"].iloc[0] == 0.0014


def test_ok_is_the_exit_code() -> None:
    assert summary_of(made()).ok
    assert not summary_of(made(), exit_code=85).ok


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ({"done": 39993, "failed": 7, "allowed": 7}, "39,993 done, 7 failed (allowed)"),
        ({"done": 1, "failed": 9, "allowed": 7}, "1 done, 9 failed (7 allowed)"),
        ({"done": 3, "failed": 1, "skipped": 2, "not_run": 4}, "3 done, 1 failed, 2 skipped, 4 not run"),
        ({"done": 3, "cached": 3}, "3 done (all before)"),
        ({"done": 3, "cached": 2}, "3 done (2 before)"),
        ({"done": 0}, "0 done"),
    ],
)
def test_totals_in_one_line(counts: dict[str, int], text: str) -> None:
    assert tally(summary_of(made(), **counts)) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.004, "0.0 s"),
        (3.14, "3.1 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (725.0, "12 min 5 s"),
        (3599.6, "1 h 0 min"),
        (12000.0, "3 h 20 min"),
    ],
)
def test_durations_as_people_say_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text
