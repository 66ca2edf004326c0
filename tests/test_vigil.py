"""Signs of life: who is taken for lost, and how a rank is sure to end."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ezpyp.errors import InitializationError
from ezpyp.ranks.silence import Silence
from ezpyp.ranks.vigil import limit_of
from ezpyp.system import offspring
from tests.conftest import CHECKOUT

if TYPE_CHECKING:
    from pathlib import Path


limits = st.floats(0.5, 600)
#: For each look the seconds since the last one, in periods, and who was heard in between.
looks = st.lists(st.tuples(st.floats(0, 100), st.sets(st.integers(1, 4))), max_size=60)


@given(limits, looks)
def test_who_signs_at_every_look_is_never_lost(limit: float, looks: list[tuple[float, set[int]]]) -> None:
    """However the clock jumps: a job that was suspended goes on."""
    silence, now = Silence([1, 2, 3], limit, 0.0), 0.0
    for periods, heard in looks:
        now += periods * silence.period
        assert 1 not in silence.look(now, {1} | heard)


@given(limits, st.lists(st.floats(0.5, 1000), min_size=60, max_size=60), st.integers(0, 20))
def test_who_is_silent_is_lost_after_the_limit_and_not_before(limit: float, gaps: list[float], last: int) -> None:
    """A look counts for the time since the last, or two periods, as if nobody had listened for the rest."""
    silence, now, listened = Silence([1, 2], limit, 0.0), 0.0, 0.0
    for number, gap in enumerate(gaps):
        now += gap * silence.period
        lost = silence.look(now, [2, 1] if number <= last else [2])
        listened = 0.0 if number <= last else listened + min(gap, 2) * silence.period
        if abs(listened - limit) > 1e-6 * limit:
            assert lost == ([1] if listened > limit else [])


def test_all_that_were_suspended_for_an_hour_find_each_other_again() -> None:
    silence = Silence([1], 60, 0.0)
    assert silence.look(3600, []) == []
    assert silence.look(3605, []) == []
    assert silence.look(3610, [1]) == []


def test_a_rank_nobody_waits_for_may_sign() -> None:
    assert Silence([1], 60, 0.0).look(5, [2]) == []


@pytest.mark.parametrize(("text", "seconds"), [(None, 60), ("", 60), ("0", 0), ("90s", 90), ("5m", 300)])
def test_the_limit_is_chosen_by_a_variable(text: str | None, seconds: float) -> None:
    assert limit_of({} if text is None else {"EZPYP_LOST_AFTER": text}) == seconds


def test_a_limit_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(InitializationError, match=r"EZPYP_LOST_AFTER='soon': give seconds, as in 90s"):
        limit_of({"EZPYP_LOST_AFTER": "soon"})


#: A process that has children and is deaf to all but SIGKILL, under a program with the name of a launcher.
DEAF = """
import os, signal, subprocess, sys, time
from ezpyp.ranks import vigil

vigil._LAUNCHER = 0.3
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
open("pids", "w").write(f"{os.getpid()} {child.pid} {os.getppid()}")
vigil._end_surely(0.3)
os.close(1)
time.sleep(60)
"""


def test_a_rank_that_hangs_is_killed_with_all_it_started_and_its_launcher(tmp_path: Path) -> None:
    """Here the launcher waits for ever, too, for another host."""
    (tmp_path / "rank.py").write_text(DEAF)
    (tmp_path / "mpirun").write_text(
        f"#!{sys.executable}\n"
        + textwrap.dedent("""
        import subprocess, sys, time
        subprocess.run([sys.executable, "rank.py"])
        time.sleep(60)
        """)
    )
    (tmp_path / "mpirun").chmod(0o755)
    began = time.monotonic()
    done = subprocess.run(
        [tmp_path / "mpirun"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode in (-15, -9)
    assert "a rank that was to end did not, and is killed" in done.stderr
    assert time.monotonic() - began < 15
    for pid in (tmp_path / "pids").read_text().split():
        assert not offspring.is_alive(int(pid)), pid
