"""The lines that a person sees, letter for letter."""

from __future__ import annotations

import io
import select

import pytest

from ezpyp.folder.events import Bus, RunEnded, RunStarted, StepEnded, StepStarted
from ezpyp.model.outcomes import Outcome, Status
from ezpyp.run.report import COUNT_EVERY, DETAILED, SHOWN, Lines, kind_of, opening

STARTED = RunStarted(
    run="r1",
    when=10.0,
    pipeline_id="p",
    folder="/my cache",
    store="files",
    command=("python", "s.py"),
    python="3.11.9",
    mpi="",
    executor="processes",
    schedule="ready",
    ranks=1,
    hosts=("n017",),
    slots=1,
    total=3,
    done=0,
)
ENDED = RunEnded(
    run="r1",
    when=20.0,
    seconds=12.3,
    done=3,
    failed=0,
    skipped=0,
    not_run=0,
    allowed=0,
    cached=0,
    exit_code=0,
)
REASON = "ValueError: x is 0"


def ended(name: str = "alpha", status: Status = Status.DONE, **more: object) -> StepEnded:
    """The event of a step that ended; fields of the outcome and of the event may be given."""
    of_event = {k: more.pop(k) for k in ("label", "final", "allowed", "phase", "title") if k in more}
    outcome = Outcome(step=0, status=status, rank=0, host="n017", seconds=3.1)
    event = StepEnded(
        name=name,
        label=name,
        title="Pickle",
        phase=0,
        outcome=outcome._replace(**more),  # type: ignore[arg-type]
    )
    return event._replace(**of_event)  # type: ignore[arg-type]


def failed(name: str = "alpha", note: str = REASON, **more: object) -> StepEnded:
    return ended(name, Status.FAILED, note=note, cause="exception", rank=2, **more)


class Clock:
    """Stands still until it is set."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Screen(io.StringIO):
    """Counts writes, knows the longest, and has an encoding."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__()
        self.writes = self.longest = 0
        self._encoding = encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def write(self, text: str) -> int:
        self.writes, self.longest = self.writes + 1, max(self.longest, len(text.encode(self._encoding)))
        return super().write(text)


class Shown:
    """Lines on a screen, with a clock and a mode."""

    def __init__(self, mode: str = "", encoding: str = "utf-8") -> None:
        self.screen, self.clock = Screen(encoding), Clock()
        self.lines = Lines(self.screen, environ={"EZPYP_LINES": mode}, clock=self.clock)

    def text(self, *events: RunStarted | StepStarted | StepEnded | RunEnded) -> str:
        """What these events make appear."""
        before = len(self.screen.getvalue())
        for event in events:
            self.lines.hear(event)
            self.lines.close()
        return self.screen.getvalue()[before:]


def small(mode: str = "", total: int = 3, encoding: str = "utf-8") -> Shown:
    """A run that has begun."""
    shown = Shown(mode, encoding)
    shown.text(STARTED._replace(total=total))
    return shown


def test_the_two_lines_of_a_step_are_one_write() -> None:
    shown = small()
    writes = shown.screen.writes
    assert shown.text(ended()) == (
        "[MPI process 00] [Running component of phase 00] [Executing Pickle Step Object 'alpha']\n"
        "  ╰─> [PASS] 'alpha'\n"
    )
    assert shown.screen.writes == writes + 1


def test_steps_that_are_told_together_are_one_write_as_far_as_a_pipe_keeps_it_whole() -> None:
    shown = small(total=300)
    writes, before = shown.screen.writes, len(shown.screen.getvalue())
    for k in range(20):
        shown.lines.hear(ended(f"ä{k}"))
    assert shown.screen.writes == writes
    shown.lines.idle()
    shown.lines.idle()
    assert shown.screen.writes == writes + 1
    for k in range(20, 100):
        shown.lines.hear(ended(f"ä{k}"))
    shown.lines.hear(ended("beta", Status.FAILED))
    text = shown.screen.getvalue()[before:]
    assert [line.split("'")[1] for line in text.splitlines()[1::2]] == [*(f"ä{k}" for k in range(100)), "beta"]
    assert shown.screen.longest <= select.PIPE_BUF
    assert shown.screen.writes < writes + 10


def test_the_title_phase_and_rank_are_those_of_the_event() -> None:
    text = small().text(ended("beta", title="NumPy", phase=12, rank=7, note="stored with cloudpickle"))
    assert text == (
        "[MPI process 07] [Running component of phase 12] [Executing NumPy Step Object 'beta']\n"
        "  ╰─> [PASS] 'beta' (stored with cloudpickle)\n"
    )


def test_a_failure_says_why_where_and_after_how_long() -> None:
    lines = small().text(failed()).splitlines()
    assert lines[0].startswith("[MPI process 02]")
    assert lines[1:] == ["  ╰─> [FAIL] 'alpha' ValueError: x is 0 (rank 2 on n017, 3.1 s)"]


def test_a_failure_shows_its_frames_and_its_last_words() -> None:
    text = small().text(failed(traceback="Traceback:\n  here", tail="one\ntwo\n"))
    assert text.splitlines()[2:] == [
        "      Traceback:",
        "        here",
        "      its output ends with:",
        "      one",
        "      two",
    ]


def test_a_member_of_a_family_is_named_with_its_arguments() -> None:
    text = small().text(failed("sim[17]", label="sim[17] x=0.3 seed=4"))
    assert "[FAIL] 'sim[17]' (x=0.3 seed=4) ValueError: x is 0 (rank 2" in text
    assert "[FAIL] 'alpha' ValueError" in small().text(failed("alpha", label="alpha x=0"))


def test_a_skip_names_whom_to_blame() -> None:
    text = small().text(ended("gamma", Status.SKIPPED, note="because 'alpha' failed", phase=1, host=""))
    assert text == (
        "[MPI process 00] [Running component of phase 01] [Skipping Pickle Step Object 'gamma']\n"
        "  ╰─> [SKIP] 'gamma' because 'alpha' failed\n"
    )


def test_a_retry_and_an_allowed_failure_say_so() -> None:
    assert (
        small()
        .text(failed(final=False))
        .endswith("[RETRY] 'alpha' ValueError: x is 0 (rank 2 on n017, 3.1 s, attempt 1)\n")
    )
    assert (
        small()
        .text(failed(allowed=True))
        .endswith("[FAIL] 'alpha' ValueError: x is 0 (rank 2 on n017, 3.1 s) (allowed)\n")
    )
    assert small().text(failed(attempt=2)).endswith("3.1 s, attempt 2)\n")


def test_a_step_that_was_stopped_is_no_failure() -> None:
    shown = small()
    text = shown.text(ended(status=Status.NOT_RUN, note="interrupted", cause="interrupted"))
    assert text.endswith("[STOP] 'alpha' interrupted\n")
    assert "×" not in shown.text(ENDED._replace(exit_code=130, not_run=1))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            {"total": 40000, "done": 31204, "slots": 2560, "hosts": tuple(f"n{k}" for k in range(20))},
            "Cache /my cache (files): 31,204 of 40,000 done, 8,796 to run, 2,560 slots on 20 nodes\n",
        ),
        ({}, "Cache /my cache (files): 0 of 3 done, 3 to run, 1 slot on 1 node\n"),
        (
            {"executor": "inline"},
            "Cache /my cache (files): 0 of 3 done, 3 to run, 1 slot on 1 node, in line\n",
        ),
        (
            {"executor": "inline", "ranks": 4, "slots": 3},
            (
                "Cache /my cache (files): 0 of 3 done, 3 to run, 3 slots on 1 node, "
                "in line: rank 0 schedules, the others run\n"
            ),
        ),
    ],
)
def test_the_first_line(change: dict[str, object], text: str) -> None:
    assert opening(STARTED._replace(**change)) == text  # type: ignore[arg-type]


def test_a_terminal_that_cannot_draw_gets_plain_letters() -> None:
    shown = small(encoding="ascii")
    text = shown.text(failed("größe", note="ValueError: ≠"))
    assert "  '-> [FAIL] 'gr\\xf6\\xdfe' ValueError: \\u2260 (rank" in text


def test_two_hundred_steps_are_shown_and_then_counts_and_failures() -> None:
    shown = small(total=1000)
    text = "".join(shown.text(ended(f"s{k}")) for k in range(SHOWN + 50))
    assert text.count("[PASS]") == SHOWN
    assert f"'s{SHOWN - 1}'" in text
    assert "[FAIL]" in shown.text(failed("late"))
    shown.clock.now = COUNT_EVERY
    assert shown.text(ended("more")) == "251 of 1,000 done, 1 failed, 748 to go\n"


def test_a_large_run_shows_counts_at_most_every_ten_seconds_and_every_failure() -> None:
    shown = small(total=1001)
    assert shown.text(*(ended(f"s{k}") for k in range(300))) == ""
    assert shown.text(failed()).count("[FAIL]") == 1
    shown.clock.now = COUNT_EVERY
    assert shown.text(ended("s300")) == "301 of 1,001 done, 1 failed, 699 to go\n"
    assert shown.text(*(ended(f"t{k}") for k in range(300))) == ""
    shown.clock.now = 2 * COUNT_EVERY - 0.1
    assert shown.text(ended("u1")) == ""
    shown.clock.now = 2 * COUNT_EVERY
    shown.lines.idle()
    assert shown.screen.getvalue().endswith("602 of 1,001 done, 1 failed, 398 to go\n")


def test_counts_are_not_repeated_when_nothing_came() -> None:
    shown = small(total=5000)
    shown.text(ended())
    shown.clock.now = COUNT_EVERY
    shown.lines.idle()
    before = shown.screen.writes
    shown.clock.now = 5 * COUNT_EVERY
    shown.lines.idle()
    assert shown.screen.writes == before


def test_counts_include_what_was_done_before() -> None:
    shown = Shown()
    shown.text(STARTED._replace(total=2000, done=1500))
    shown.clock.now = COUNT_EVERY
    assert shown.text(ended()) == "1,501 of 2,000 done, 499 to go\n"


def test_retries_do_not_count_as_settled() -> None:
    shown = small(total=2000)
    shown.text(failed(final=False), failed(final=False), failed())
    shown.clock.now = COUNT_EVERY
    assert shown.text(ended()) == "1 of 2,000 done, 1 failed, 1,998 to go\n"


def test_all_shows_every_step_of_any_run() -> None:
    shown = small("all", total=5000)
    text = "".join(shown.text(ended(f"s{k}")) for k in range(300))
    assert text.count("[PASS]") == 300


def test_failures_shows_only_those() -> None:
    shown = small("failures")
    assert shown.text(ended()) == ""
    assert "[FAIL]" in shown.text(failed())


def test_off_is_silent_unless_something_is_wrong() -> None:
    shown = Shown("off")
    assert shown.text(STARTED, ended(), failed()) == ""
    assert shown.text(ENDED) == ""
    assert shown.text(ENDED._replace(exit_code=1, failed=1)).startswith("3 done, 1 failed in 12.3 s\n")


def test_an_unknown_mode_is_the_usual_one() -> None:
    assert "[PASS]" in small("verbose").text(ended())


def test_details_are_shown_of_the_first_failures_of_each_kind() -> None:
    shown = small(total=5000)
    text = shown.text(*(failed(f"s{k}", note=f"ValueError: {k} at 0x7f{k:04x}", traceback="frames") for k in range(60)))
    assert text.count("[FAIL]") == 60
    assert text.count("frames") == DETAILED
    assert "frames" in shown.text(failed("other", note="KeyError: 'a'", traceback="frames"))


def test_the_same_reason_with_other_numbers_is_the_same_kind() -> None:
    def kind(note: str, cause: str = "exception") -> str:
        return kind_of(Outcome(step=0, status=Status.FAILED, note=note, cause=cause))

    assert kind("ValueError: 3 of 0x1f") == kind("ValueError: 17 of 0xdead01")
    assert kind("ValueError: a") != kind("KeyError: a")
    assert kind("died", "signal") != kind("died", "oom")


def test_the_last_lines_of_a_good_run() -> None:
    assert small().text(ENDED) == "3 done in 12.3 s\nAll of it: ezpyp summary '/my cache'\n"


def test_the_last_lines_name_one_failure_of_each_kind_and_the_next_command() -> None:
    shown = small()
    shown.text(failed("a", "KeyError: 'k'"), failed("b", "ValueError: 1"), failed("c", "ValueError: 2"))
    text = shown.text(ENDED._replace(failed=3, skipped=4, exit_code=1))
    assert text.splitlines() == [
        "3 done, 3 failed, 4 skipped in 12.3 s",
        "  2 × 'b' ValueError: 1 (rank 2 on n017)",
        "  1 × 'a' KeyError: 'k' (rank 2 on n017)",
        "Its output: ezpyp log '/my cache' b",
        "To run what failed: the same command again.",
    ]


def test_failures_that_were_allowed_are_no_call_to_act() -> None:
    shown = small()
    shown.text(failed("a", allowed=True))
    text = shown.text(ENDED._replace(done=39993, failed=7, allowed=7))
    assert text.startswith("39,993 done, 7 failed (allowed) in 12.3 s\n")
    assert "again" not in text


def test_a_stopped_run_says_how_to_go_on() -> None:
    text = small().text(ENDED._replace(not_run=2, exit_code=85, reason="stopped by SIGTERM"))
    assert text.splitlines() == [
        "3 done, 2 not run in 12.3 s, stopped by SIGTERM",
        "To go on: the same command again; what is done is not run again.",
    ]


def test_many_kinds_of_failure_are_cut_short() -> None:
    shown = small()
    shown.text(*(failed(f"s{k}", note=f"{'abcdefghijkl'[k] * 3}Error") for k in range(12)))
    text = shown.text(ENDED._replace(failed=12, exit_code=1))
    assert text.count("×") == 10
    assert "and 2 other kinds of failure" in text


def test_a_closed_screen_does_not_stop_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    shown = Shown()
    shown.screen.close()
    bus = Bus([shown.lines])
    bus.tell(STARTED)
    bus.tell(ENDED)
    assert capsys.readouterr().err.count("Lines stopped") == 1
