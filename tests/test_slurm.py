"""What is said to Slurm, and what its answers mean."""

from __future__ import annotations

import math
import shlex
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ezpyp.cluster import slurm, submission
from ezpyp.cluster.slurm import Batch, State
from ezpyp.errors import ConfigurationError, SubmissionError
from tests.test_launch import program


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The first folder on PATH, for programs that stand in for Slurm's."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    return tmp_path / "bin"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("2h", "0-02:00:00"),
        ("90m", "0-01:30:00"),
        ("1d12h", "1-12:00:00"),
        ("45s", "0-00:00:45"),
        ("30", "30"),
        ("04:00:00", "04:00:00"),
        ("2-12", "2-12"),
    ],
)
def test_times(text: str, says: str) -> None:
    assert slurm.duration(text) == says


@pytest.mark.parametrize("text", ["", "soon", "2 hours", "h", "1:2:3:4", "-3"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match=r"--time: .* is no time. Write 2h, 90m"):
        slurm.duration(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("90", 5400), ("5:30", 330), ("04:00:00", 14400), ("2-12", 216000), ("1-02:30", 95400)),
        *(("0-00:00:45", 45), ("UNLIMITED", math.inf), ("INFINITE", math.inf)),
    ],
)
def test_times_of_slurm_in_seconds(text: str, seconds: float) -> None:
    assert slurm.seconds(text) == seconds


@given(st.integers(1, 10**6))
def test_what_people_write_lasts_as_long_for_slurm(whole: int) -> None:
    assert slurm.seconds(slurm.duration(f"{whole}s")) == whole


@pytest.mark.parametrize(
    ("time", "durations", "says"),
    [
        (7200.0, {}, 300),
        (7200.0, {"a": 3.0}, 60),
        (7200.0, {"a": 3.0, "b": 400.4}, 400),
        (1e6, {"b": 4000.0}, 600),
        (300.0, {"b": 4000.0}, 75),
        (120.0, {}, 30),
        (60.0, {}, 0),
        (math.inf, {}, 300),
        (None, {"b": 4000.0}, 60),
    ],
)
def test_steps_are_warned_in_time_and_no_job_at_its_start(
    time: float | None, durations: dict[str, float], says: int
) -> None:
    assert submission.warning(time, durations) == says


def batch(**changes: object) -> Batch:
    values = {
        "made_by": "ezpyp submit x.py",
        "name": "x",
        "directory": "/home/eve",
        "log": "/home/eve/cache/jobs/%j.log",
        "flags": ["--nodes=2"],
        "setup": ["module load x"],
        "exports": [("EZPYP_HELPERS", "4")],
        "command": "mpirun python x.py",
    }
    return Batch(**{**values, **changes})  # type: ignore[arg-type]  # as given


def test_flags_stand_before_the_first_command_and_the_launcher_is_last() -> None:
    """sbatch reads no flag after a command; what follows `exec` is never reached."""
    lines = slurm.text_of(batch()).splitlines()
    directives = [k for k, line in enumerate(lines) if line.startswith("#SBATCH")]
    commands = [k for k, line in enumerate(lines) if line and not line.startswith("#")]
    assert max(directives) < min(commands)
    assert lines[-1] == "exec mpirun python x.py"


@given(
    st.text(st.characters(blacklist_characters='"\n\r\0', blacklist_categories=("Cs", "Zl", "Zp", "Cc")), min_size=1)
)
def test_any_value_reaches_sbatch_as_one_word(value: str) -> None:
    text = slurm.text_of(batch(flags=[f"--comment={value}"]))
    (line,) = (each for each in text.split("\n") if each.startswith("#SBATCH --comment"))
    quoted = line.removeprefix("#SBATCH --comment=")
    assert quoted.strip('"') == value.strip('"')
    assert quoted == value or (quoted[0] == quoted[-1] == '"')
    assert quoted[0] == '"' or not set(quoted) & set(" #'\\\t")


def test_a_quotation_mark_cannot_be_said() -> None:
    with pytest.raises(SubmissionError, match="it holds a quotation mark"):
        slurm.text_of(batch(flags=['--comment=a"b c']))


@given(st.lists(st.text(st.characters(blacklist_characters="\0", categories=("L", "N", "P", "S", "Z", "Cc")))))
def test_words_of_a_command_stay_words(words: list[str]) -> None:
    plain = [word for word in words if not word.partition("=")[2].startswith("$") and not word.startswith("$")]
    assert shlex.split(slurm.command(plain)) == plain


def test_what_slurm_fills_in_is_not_quoted_away() -> None:
    assert slurm.command(["mpirun", "-n", "$SLURM_NTASKS", "--c=$SLURM_X", "$a b"]) == (
        'mpirun -n "$SLURM_NTASKS" "--c=$SLURM_X" \'$a b\''
    )


#: As Slurm 22.05 told of a job, with less of what is not asked for.
SHOWN = (
    "JobId=7 JobName=nm UserId=root(0) Account=(null) QOS=(null) JobState=RUNNING Requeue=0 TimeLimit=00:07:00 "
    "Partition=debug ReqNodeList=(null) NodeList=rq[1-2] NumNodes=2 NumCPUs=16 NumTasks=4 CPUs/Task=3 "
    "ReqB:S:C:T=0:0:*:* TRES=cpu=16,node=2,billing=16 MinMemoryNode=100M Features= Command=/x/b.sh study.py a b K=3 "
    "WorkDir=/x StdErr=/x/7.log StdOut=/x/7.log Power= TresPerNode=gres:gpu:1 "
)


def test_a_job_is_described_by_the_flags_that_ask_for_it(bin_folder: Path) -> None:
    program(bin_folder, "scontrol", f"echo '{SHOWN}'")
    found = slurm.described("7")
    assert found.args == "study.py a b K=3"
    assert sorted(found.flags) == [
        *("--chdir=/x", "--cpus-per-task=3", "--gres=gpu:1", "--job-name=nm", "--mem=100M", "--nodes=2"),
        *("--ntasks=4", "--partition=debug", "--time=00:07:00"),
    ]
    less = SHOWN.replace("CPUs/Task=3", "CPUs/Task=1").replace("MinMemoryNode=100M", "MinMemoryNode=0")
    program(bin_folder, "scontrol", f"echo '{less}'")
    assert not [flag for flag in slurm.described("7").flags if flag.startswith(("--cpus", "--mem"))]


def test_a_job_that_slurm_does_not_know_is_not_described(bin_folder: Path) -> None:
    program(bin_folder, "scontrol", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    with pytest.raises(SubmissionError, match=r"Slurm does not tell of job 7: .*Invalid job id"):
        slurm.described("7")


def test_many_jobs_are_one_question(bin_folder: Path, tmp_path: Path) -> None:
    program(bin_folder, "squeue", f"echo asked >> {tmp_path}/asked; echo '1|PENDING|Priority'; echo '2|RUNNING|None'")
    found = slurm.states(["1", "2"])
    assert found == {"1": State(name="PENDING", reason="Priority"), "2": State(name="RUNNING")}
    assert [each.active for each in found.values()] == [True, True]
    assert (tmp_path / "asked").read_text() == "asked\n"


def test_the_accounts_are_asked_for_what_the_queue_forgot(bin_folder: Path) -> None:
    program(bin_folder, "squeue", "echo '1|RUNNING|None'")
    program(bin_folder, "sacct", "echo '2|FAILED|1:0'; echo '3|CANCELLED by 1000|0:0'")
    found = slurm.states(["1", "2", "3"])
    assert [str(each) for each in found.values()] == ["RUNNING", "FAILED (exit 1:0)", "CANCELLED (exit 0:0)"]
    assert [each.active for each in found.values()] == [True, False, False]


@pytest.mark.parametrize("sacct", ["echo 'Slurm accounting storage is disabled' >&2; exit 1", "exit 0", None])
def test_a_job_that_nobody_remembers_has_vanished_and_not_failed(bin_folder: Path, sacct: str | None) -> None:
    program(bin_folder, "squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    if sacct is not None:
        program(bin_folder, "sacct", sacct)
    assert slurm.states(["7"]) == {"7": State(name=slurm.VANISHED)}


def test_a_controller_that_is_down_proves_nothing(bin_folder: Path) -> None:
    program(bin_folder, "squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(SubmissionError, match="Unable to contact slurm controller"):
        slurm.states(["7"])


def test_without_slurm_the_remedy_is_named(bin_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(bin_folder))
    with pytest.raises(SubmissionError, match=r"There is no sbatch here\. Load the site's module for Slurm"):
        slurm.submit("x.sbatch")


def test_questions_become_rare(bin_folder: Path, tmp_path: Path) -> None:
    """A watcher that looks every second for an hour asks at 0, 15, 37 s, …, at last every 3 minutes."""
    program(bin_folder, "squeue", f"echo >> {tmp_path}/asked; echo '5|PENDING|Priority'")
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    (jobs / "5.json").write_text(
        '{"format": 1, "job": "5", "cluster": "", "when": 1.0, "user": "eve", "host": "login", "script": "x.py",'
        ' "args": [], "code": "", "batch": "jobs/x.sbatch"}'
    )
    following, asked, times = submission.Following(str(tmp_path)), 0, []
    for second in range(3600):
        assert following.look(float(second)) == "Job 5: PENDING (Priority)"
        count = (tmp_path / "asked").read_text().count("\n")
        times += [second] * (count - asked)
        asked = count
    pauses = [b - a for a, b in pairwise(times)]
    assert pauses[0] == 15
    assert pauses == sorted(pauses)
    assert pauses[-1] == 180
    assert following.active


def test_a_folder_without_jobs_is_not_asked_about(bin_folder: Path, tmp_path: Path) -> None:
    program(bin_folder, "squeue", "exit 1")
    following = submission.Following(str(tmp_path))
    assert following.look(0.0) == ""
    assert not following.active
    assert submission.active(str(tmp_path)) == {}
