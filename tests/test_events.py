"""The bus tells every listener; the journal keeps what happened, whatever happens to the journal."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ezpyp.errors import StoreError
from ezpyp.folder import events
from ezpyp.folder.events import (
    Bus,
    Event,
    Journal,
    RunEnded,
    RunStarted,
    StepEnded,
    StepStarted,
    beginning_of_run,
    journals,
    replay,
)
from ezpyp.model.outcomes import Outcome, Status

STARTED = RunStarted(
    run="r1",
    when=10.0,
    pipeline_id="p",
    folder="/cache",
    store="files",
    command=("python", "s.py"),
    python="3.11.9",
    mpi="",
    executor="processes",
    schedule="ready",
    ranks=1,
    hosts=("n017", "n018"),
    slots=2,
    total=3,
    done=0,
)
ENDED = RunEnded(
    run="r1",
    when=20.0,
    seconds=10.0,
    done=1,
    failed=1,
    skipped=1,
    not_run=0,
    allowed=0,
    cached=0,
    exit_code=1,
)
FAILED = StepEnded(
    name="größe",
    label="größe x=1",
    title="Pickle",
    phase=2,
    outcome=Outcome(
        step=1,
        status=Status.FAILED,
        when=12.0,
        cause="exception",
        note="ValueError: x",
        log=("logs/a.log", 3, 9),
    ),
    final=False,
)
ALL: list[Event] = [STARTED, StepStarted(when=11.0, name="größe"), FAILED, ENDED]


class Memory:
    """Keeps what it hears."""

    def __init__(self) -> None:
        self.heard: list[Event | str] = []

    def hear(self, event: Event, /) -> None:
        self.heard.append(event)

    def idle(self) -> None:
        self.heard.append("idle")

    def close(self) -> None:
        self.heard.append("close")


class Grumpy(Memory):
    """Raises at the second event."""

    def hear(self, event: Event, /) -> None:
        super().hear(event)
        if len(self.heard) == 2:
            raise RuntimeError("no more")


class Clock:
    """Stands still until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def write(folder: Path, run: str = "r1") -> Path:
    journal = Journal(folder, run)
    for event in ALL:
        journal.hear(event)
    journal.close()
    return Path(journal.path)


def test_everyone_hears_everything_in_order() -> None:
    first, second = Memory(), Memory()
    bus = Bus([first, second])
    bus.tell(STARTED)
    bus.idle()
    bus.close()
    bus.tell(ENDED)
    assert first.heard == second.heard == [STARTED, "idle", "close"]


def test_what_is_told_before_the_beginning_is_heard_after_it() -> None:
    told = Memory()
    bus = Bus([told])
    bus.hold()
    bus.tell(FAILED)
    assert not told.heard
    bus.begin(STARTED)
    bus.tell(ENDED)
    assert told.heard == [STARTED, FAILED, ENDED]


def test_a_listener_that_raises_is_closed_and_the_others_hear_on(capsys: pytest.CaptureFixture[str]) -> None:
    grumpy, other = Grumpy(), Memory()
    bus = Bus([grumpy, other])
    for event in ALL:
        bus.tell(event)
    assert other.heard == ALL
    assert grumpy.heard == [*ALL[:2], "close"]
    said = capsys.readouterr().err
    assert said == "ezpyp: Grumpy stopped: RuntimeError: no more. The run goes on without it.\n"


@pytest.mark.parametrize(
    ("there", "name"),
    [
        ([], "19700101T001640"),
        (["19700101T001639-12", "archive"], "19700101T001640"),
        (["19700101T001640-9"], "19700101T001641"),
        (["19700101T001640-9", "20261121T235959-77-1of5"], "20261122T000000"),
        (["51951006T034435-9", "zzz"], "19700101T001640"),
    ],
)
def test_a_run_is_newer_than_all_before_it_whatever_the_clock_says(tmp_path: Path, there: list[str], name: str) -> None:
    (tmp_path / "journal").mkdir()
    for each in there:
        (tmp_path / f"journal/{each}.jsonl").touch()
    assert beginning_of_run(str(tmp_path), 1000.0) == name


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    assert list(replay(write(tmp_path))) == ALL


def test_the_first_line_says_which_format(tmp_path: Path) -> None:
    lines = write(tmp_path).read_text(encoding="utf-8").splitlines()
    assert lines[0] == '{"event":"Journal","format":1,"run":"r1"}'
    assert all(line.startswith('{"event":"') for line in lines)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_text('{"event":"Journal","format":9,"run":"r"}\n')
    with pytest.raises(StoreError, match=r"has format 9; this ezpyp reads up to 1\. Upgrade ezpyp"):
        list(replay(path))


@pytest.mark.parametrize("lost", [1, 2, 40])
def test_a_torn_tail_costs_only_itself(tmp_path: Path, lost: int) -> None:
    path = write(tmp_path)
    path.write_bytes(path.read_bytes()[:-lost])
    read = list(replay(path))
    assert read == (ALL if lost == 1 else ALL[:-1])


def test_what_is_not_known_is_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path)
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[2] = lines[2].replace('"rank":3', '"rank":3,"mood":"good"')
    strange = [
        '{"event":"Eclipse"}',
        "[1]",
        "}{",
        '{"event":"StepStarted","when":1.0}',
        '{"event":"StepEnded"}',
    ]
    path.write_text("\n".join([*lines[:3], *strange, *lines[3:]]) + "\n", encoding="utf-8")
    assert list(replay(path)) == ALL


def test_it_is_written_now_and_then_and_at_the_end(tmp_path: Path) -> None:
    clock = Clock()
    journal = Journal(tmp_path, "r1", every=0.5, clock=clock)
    journal.hear(STARTED)
    assert list(replay(journal.path)) == [STARTED]
    clock.now = 0.4
    journal.hear(FAILED)
    journal.idle()
    assert list(replay(journal.path)) == [STARTED]
    clock.now = 0.5
    journal.idle()
    assert list(replay(journal.path)) == [STARTED, FAILED]
    journal.hear(ENDED)
    journal.close()
    assert list(replay(journal.path)) == [STARTED, FAILED, ENDED]


def test_a_run_without_events_leaves_no_file(tmp_path: Path) -> None:
    Journal(tmp_path, "r1").close()
    assert list(tmp_path.iterdir()) == []


def test_a_journal_that_cannot_be_written_is_dropped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / events.FOLDER).write_text("in the way")
    other = Memory()
    bus = Bus([Journal(tmp_path, "r1"), other])
    for event in ALL:
        bus.tell(event)
    bus.close()
    assert other.heard == [*ALL, "close"]
    said = capsys.readouterr().err
    assert said.startswith("ezpyp: Journal stopped: ")
    assert said.count("\n") == 1


def test_a_full_disk_drops_the_journal_and_leaves_what_was_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    journal = Journal(tmp_path, "r1", clock=clock)
    bus = Bus([journal])
    bus.tell(STARTED)

    def full(file: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    clock.now = 1.0
    bus.tell(FAILED)
    bus.close()
    monkeypatch.undo()
    assert "No space left on device" in capsys.readouterr().err
    assert list(replay(journal.path)) == [STARTED]


def test_the_newest_journal_comes_first(tmp_path: Path) -> None:
    for run in ("20261120T140000-9", "20261120T150000-1", "20261119T235959-5"):
        write(tmp_path, run)
    assert [*journals(tmp_path)] == [
        "20261120T150000-1",
        "20261120T140000-9",
        "20261119T235959-5",
    ]
    assert journals(tmp_path / "nowhere") == {}


def test_texts_that_are_no_unicode_survive(tmp_path: Path) -> None:
    """Half of a surrogate pair: what Python makes of file names that are no UTF-8."""
    journal = Journal(tmp_path, "run")
    event = StepStarted(when=1.0, name="caf\udce9.nc")
    journal.hear(event)
    journal.close()
    assert list(replay(journal.path)) == [event]


names, moments = st.text(max_size=9), st.floats(0, 1e12)


@given(
    names=st.tuples(names, names, names, names),
    phase=st.integers(0, 10**6),
    moments=st.tuples(moments, moments),
    rank=st.integers(0, 10**6),
    more=st.sampled_from([{}, {}, {"attempt": 2}, {"note": "ü"}, {"args": "[1]"}, {"status": Status.FAILED}]),
    final=st.booleans(),
)
def test_what_most_steps_say_is_read_again_as_what_any_says(
    names: tuple[str, ...],
    phase: int,
    moments: tuple[float, float],
    rank: int,
    more: dict[str, Any],
    final: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    name, label, title, host = names
    outcome = Outcome(7, Status.DONE, *moments, rank, host)._replace(**more)
    event = StepEnded(name, label, title, phase, outcome, final)
    journal = Journal(tmp_path_factory.mktemp("cache"), "r1")
    journal.hear(event)
    journal.close()
    lines = Path(journal.path).read_text(encoding="utf-8").split("\n")[1:-1]
    heard = [found for line in lines if (found := events.decode(events.parse(line))) is not None]
    assert heard == [event]
