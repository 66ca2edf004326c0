"""The same scripts at 1, 2 and 4 ranks on each MPI: equal results, equal rows, and no rank left behind."""

from __future__ import annotations

import json
import os
import signal
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

import ezpyp
from ezpyp.folder.schema import read as read_schema
from tests.conftest import CHECKOUT, Launcher, interpreter

QUICK_START = CHECKOUT / "examples" / "simple" / "simple_pipeline.py"

SWEEP = """
import os, random, sys
import ezpyp
from ezpyp import Pipeline, as_pickle_step

pipeline = Pipeline("cache", "sweep")

@as_pickle_step(pipeline)
def draw(k):
    import numpy
    return k, random.random(), float(numpy.random.rand()), ezpyp.seed()

@as_pickle_step(pipeline)
def bad(x):
    raise ValueError(f"bad {x[0]}")

@as_pickle_step(pipeline)
def total(values, spoiled=None):
    return sum(v[1] for v in values)

draws = draw.map(range(30))
total(draws)
total(draws[:3], spoiled=bad(draws[5]))
summary = pipeline.execute(raise_on_failure=False)
line = "TOTAL %.12f %d %d %d\\n" % (pipeline.result("total"), summary.done, summary.failed, summary.skipped)
os.write(1, line.encode())  # in one piece: ranks share a pipe
"""


def rows(folder: Path) -> list[tuple[Any, ...]]:
    """Summary rows but for rank, host and times."""
    import ezpyp

    return [
        (r.name, r.args, r.kwargs, r.phase, r.status, r.attempts, r.note) for r in ezpyp.open(folder).summary().rows
    ]


def expected(folder: Path) -> tuple[str, list[tuple[Any, ...]]]:
    """What the interpreter alone gives."""
    folder.mkdir()
    done = interpreter(folder).run(0, SWEEP)
    assert done.returncode == 0, done.stderr
    return next(line for line in done.stdout.splitlines() if line.startswith("TOTAL")), rows(folder / "cache")


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_quick_start(mpirun: Launcher, ranks: int) -> None:
    done = mpirun.run(ranks, QUICK_START)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Pipeline result for gamma: 1.125") == ranks
    for name in ("alpha", "beta", "gamma"):
        assert done.stdout.count(f"  ╰─> [PASS] '{name}'\n") == 1


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_results_and_rows_do_not_depend_on_ranks(mpirun: Launcher, tmp_path: Path, ranks: int) -> None:
    line, alone = expected(tmp_path / "alone")
    done = mpirun.run(ranks, SWEEP)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(line) == ranks
    assert rows(tmp_path / "cache") == alone


def test_every_rank_computes(mpirun: Launcher, tmp_path: Path) -> None:
    import ezpyp

    done = mpirun.run(
        4,
        """
import time
from ezpyp import Pipeline, as_pickle_step
pipeline = Pipeline("cache", "busy")
@as_pickle_step(pipeline)
def busy(k):
    time.sleep(0.05)
busy.map(range(24))
pipeline.execute()
""",
    )
    assert done.returncode == 0, done.stderr
    assert {row.rank for row in ezpyp.open(tmp_path / "cache").summary().rows} == {0, 1, 2, 3}


@pytest.mark.parametrize(("schedule", "least", "most"), [("ready", 1.2, 1.7), ("phase", 1.8, 9.0)])
def test_phases_are_no_walls_unless_asked(mpirun: Launcher, schedule: str, least: float, most: float) -> None:
    """a takes 0.6 s and b after it 0.6 s; c takes 1.2 s beside them."""
    done = mpirun.run(
        2,
        f"""
import time
from ezpyp import Pipeline, as_pickle_step
pipeline = Pipeline("cache", "walls", schedule="{schedule}")
wait = as_pickle_step(pipeline)(lambda seconds, *after: time.sleep(seconds))
wait(0.6, wait(0.6, name="a"), name="b")
wait(1.2, name="c")
pipeline.initialize_schema()
began = time.monotonic()
pipeline.execute()
if pipeline.is_root:
    print("SECONDS", time.monotonic() - began, flush=True)
""",
    )
    assert done.returncode == 0, done.stderr
    seconds = float(next(line for line in done.stdout.splitlines() if line.startswith("SECONDS")).split()[1])
    assert least <= seconds < most


@pytest.mark.parametrize("ranks", [2, 4])
def test_inline_under_mpirun(mpirun: Launcher, tmp_path: Path, ranks: int) -> None:
    line, alone = expected(tmp_path / "alone")
    done = mpirun.run(ranks, SWEEP, env={"EZPYP_EXECUTOR": "inline"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(line) == ranks
    assert "inline" in done.stdout.splitlines()[0]
    assert rows(tmp_path / "cache") == alone


def test_a_folder_is_continued_with_any_number_of_ranks(mpirun: Launcher, python: Launcher, tmp_path: Path) -> None:
    assert python.run(0, QUICK_START).returncode == 0
    done = mpirun.run(2, QUICK_START)
    assert done.returncode == 0, done.stderr
    assert "3 of 3 done, 0 to run" in done.stdout
    assert done.stdout.count("Pipeline result for gamma: 1.125") == 2


CRASH = """
import os
from ezpyp import Pipeline, as_pickle_step
pipeline = Pipeline("cache", "crash")

@as_pickle_step(pipeline)
def fine(k):
    return k

@as_pickle_step(pipeline)
def segfault():
    os.kill(os.getpid(), 11)

@as_pickle_step(pipeline)
def leave():
    os._exit(5)

@as_pickle_step(pipeline)
def speak_mpi():
    from mpi4py import MPI
    return MPI.COMM_WORLD.allreduce(1)

fine.map(range(20))
segfault(); leave(); speak_mpi()
fine.map(range(20, 40))
{first}
summary = pipeline.execute(raise_on_failure=False)
print("COUNTS", summary.done, summary.failed, flush=True)
"""


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_step_that_crashes_costs_only_itself(mpirun: Launcher, ranks: int) -> None:
    done = mpirun.run(ranks, CRASH.format(first=""))
    assert done.returncode == 0, done.stderr
    # In a helper that never saw MPI, a step that calls it is alone: size 1.
    assert done.stdout.count("COUNTS 41 2") == ranks


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_step_that_calls_mpi_costs_only_itself_where_the_script_started_mpi(mpirun: Launcher, ranks: int) -> None:
    done = mpirun.run(ranks, "from mpi4py import MPI\n" + CRASH.format(first="MPI.COMM_WORLD.allreduce(1)"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("COUNTS 40 3") == ranks


MISMATCH = """
from ezpyp import Pipeline, as_pickle_step
import os
rank = int(os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK", "0")))
pipeline = Pipeline("cache", "mismatch")
@as_pickle_step(pipeline)
def load(path):
    return path
load("a.nc" if rank == 0 else "b.nc")
pipeline.execute()
"""


def test_ranks_that_built_different_plans_are_refused(mpirun: Launcher, tmp_path: Path) -> None:
    done = mpirun.run(2, MISMATCH)
    assert done.returncode != 0
    assert "built another plan than rank 0: step 0 is load path=b.nc there, load path=a.nc here." in done.stderr
    assert done.stderr.count("Usual causes: a set, os.listdir or glob without sorted()") == 1
    assert not list((tmp_path / "cache").glob("*.step"))


MISMATCH_OF_FAMILIES = """
import os
from ezpyp import Pipeline, as_pickle_step
rank = int(os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK", "0")))
pipeline = Pipeline("cache", "mismatch")
@as_pickle_step(pipeline)
def first(x):
    return x
@as_pickle_step(pipeline)
def load(x, y):
    return x
first.map(range(3))
load.map([1, 2, 3], {there} if rank else {here})
pipeline.execute()
"""


@pytest.mark.parametrize(
    ("here", "there", "words"),
    [
        ("'abc'.split() * 3", "['abc', 'b', 'abc']", "step 4 is load[1] x=2 y=b there, load[1] x=2 y=abc here."),
        ("range(3)", "range(1, 4)", "step 3 is load[0] x=1 y=1 there, load[0] x=1 y=0 here."),
    ],
)
def test_of_families_that_differ_the_first_step_is_told(mpirun: Launcher, here: str, there: str, words: str) -> None:
    done = mpirun.run(2, MISMATCH_OF_FAMILIES.format(here=here, there=there))
    assert done.returncode != 0
    assert f"built another plan than rank 0: {words}" in done.stderr


LEAVE = """
import os, sys
from ezpyp import Pipeline, as_pickle_step
rank = int(os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK", "0")))
pipeline = Pipeline("cache", "leave")
@as_pickle_step(pipeline)
def one():
    return 1
one()
{act}
pipeline.execute()
print("DONE", flush=True)
{after}
"""


@pytest.mark.parametrize(
    ("act", "words"),
    [
        ("if rank == 1: raise ValueError('rank one is ill')", "ended with ValueError: rank one is ill"),
        ("if rank == 1: sys.exit(0)", "left its script"),
        ("if rank == 0: raise KeyError('root')", "ended with KeyError: 'root'"),
    ],
)
def test_a_rank_that_leaves_ends_the_job_with_its_name(mpirun: Launcher, act: str, words: str) -> None:
    began = time.monotonic()
    done = mpirun.run(3, LEAVE.format(act=act, after=""))
    assert time.monotonic() - began < 20
    assert done.returncode != 0
    assert words in done.stderr
    assert f"Rank {0 if 'rank == 0' in act else 1} (" in done.stderr
    assert "DONE" not in done.stdout


def test_a_rank_that_leaves_where_the_end_of_a_script_forks_no_more(mpirun: Launcher) -> None:
    """As in Python 3.12.1."""
    act = """
if rank == 1:
    def fork():
        raise RuntimeError("can't fork at interpreter shutdown")
    os.fork = fork
    sys.exit(0)
"""
    done = mpirun.run(3, LEAVE.format(act=act, after=""))
    assert done.returncode != 0
    assert "left its script" in done.stderr
    assert "can't fork" not in done.stderr


@pytest.mark.parametrize(
    ("act", "after"),
    [
        ("sys.exit(0)", ""),
        ("", "if rank == 1: sys.exit(0)"),
        ("", "sys.exit(0)"),
        ("del pipeline, one; sys.exit(0)", ""),
    ],
)
def test_leaving_together_or_after_the_last_execute_is_no_error(mpirun: Launcher, act: str, after: str) -> None:
    done = mpirun.run(2, LEAVE.format(act=act, after=after))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("DONE") == (0 if "exit" in act else 2)


def test_a_refused_plan_is_refused_on_every_rank(mpirun: Launcher, python: Launcher, tmp_path: Path) -> None:
    script = """
import ezpyp
from ezpyp import Pipeline, as_pickle_step
pipeline = Pipeline("cache", "refused")
@as_pickle_step(pipeline)
def f(x):
    return x + {k}
f(1)
try:
    pipeline.initialize_schema()
except ezpyp.SchemaConflictError as error:
    print("REFUSED", error, flush=True)
else:
    pipeline.execute()
"""
    assert python.run(0, script.format(k=1)).returncode == 0
    done = mpirun.run(2, script.format(k=2))
    texts = [line for line in done.stdout.splitlines() if line.startswith("REFUSED")]
    assert len(texts) == 2
    assert texts[0] == texts[1]
    assert "1 of 1 steps changed" in texts[0]
    assert done.returncode == 0, done.stderr


def test_a_failed_pipeline_ends_non_zero(mpirun: Launcher) -> None:
    code = """
from ezpyp import Pipeline, as_pickle_step
pipeline = Pipeline("cache", "failing")
@as_pickle_step(pipeline)
def bad():
    raise ValueError("no")
bad()
pipeline.execute({})
print("THE SCRIPT GOES ON", flush=True)
"""
    done = mpirun.run(2, code.format(""))
    assert done.returncode != 0
    assert done.stdout.count("THE SCRIPT GOES ON") == 2
    assert mpirun.run(2, code.format("raise_on_failure=False")).returncode == 0


def test_several_pipelines_of_a_script(mpirun: Launcher, tmp_path: Path) -> None:
    done = mpirun.run(2, CHECKOUT / "examples" / "stages" / "beam.py")
    assert done.returncode == 0, done.stderr


def test_gpus_are_bound_by_local_rank(mpirun: Launcher, tmp_path: Path) -> None:
    import ezpyp

    code = """
import os, time
from ezpyp import Pipeline, as_pickle_step
pipeline = Pipeline("cache", "gpus")
@as_pickle_step(pipeline)
def visible(k):
    time.sleep(0.05)
    return os.environ["CUDA_VISIBLE_DEVICES"]
visible.map(range(8))
pipeline.execute()
"""
    done = mpirun.run(2, code, env={"CUDA_VISIBLE_DEVICES": "2,5"})
    assert done.returncode == 0, done.stderr
    run = ezpyp.open(tmp_path / "cache")
    by_rank = {row.rank: run[row.name] for row in run.summary().rows}
    assert by_rank == {0: "2", 1: "5"}


KILLED = """
import os, sys, time
from ezpyp import Pipeline, as_pickle_step
pipeline = Pipeline("cache", "killed")
@as_pickle_step(pipeline)
def work(k, last=None):
    with open("executions", "a") as file:
        file.write(f"{k}\\n")
    time.sleep(0.01)
    return k
first = work.map(range(40))
second = [work(100 + k, step) for k, step in enumerate(first)]
pipeline.execute()
"""


@pytest.mark.parametrize("seconds", [0.1, 0.3, 0.5, 0.8])
def test_kill_9_of_mpirun_loses_nothing_that_was_reported(mpirun: Launcher, tmp_path: Path, seconds: float) -> None:
    job = mpirun.start(2, KILLED)
    journal = tmp_path / "cache" / "journal"
    deadline = time.monotonic() + 30
    while not (journal.is_dir() and any(journal.iterdir())) and time.monotonic() < deadline and job.poll() is None:
        time.sleep(0.01)
    time.sleep(seconds)
    reported = set(done_names(tmp_path / "cache"))
    os.kill(job.pid, signal.SIGKILL)
    job.communicate(timeout=30)
    wait_for_quiet(tmp_path / "executions")
    before = (tmp_path / "executions").read_text().split() if (tmp_path / "executions").exists() else []
    done = mpirun.run(2, KILLED)
    assert done.returncode == 0, done.stderr
    again = (tmp_path / "executions").read_text().split()[len(before) :]
    numbers = {entry["name"]: str(entry["arguments"]["k"]) for entry in schema_entries(tmp_path / "cache")}
    assert not {numbers[name] for name in reported} & set(again)
    assert len(done_names(tmp_path / "cache")) == 80


def done_names(folder: Path) -> list[str]:
    found = []
    for path in folder.glob("*.status"):
        content = json.loads(path.read_text())
        if content["status"] == 0:
            found.append(content["name"])
    return found


def schema_entries(folder: Path) -> list[dict[str, Any]]:
    content = read_schema(folder)
    assert content is not None
    return [entry for phase, entries in content.items() if phase != "ezpyp" for entry in entries]


def wait_for_quiet(path: Path) -> None:
    """Until no orphan writes any more: nothing new for half a second."""
    size, since = -1, time.monotonic()
    while time.monotonic() - since < 0.5:
        now = path.stat().st_size if path.exists() else 0
        if now != size:
            size, since = now, time.monotonic()
        time.sleep(0.05)


def test_a_wrong_launcher_is_refused(python: Launcher) -> None:
    """Four tasks that each see only themselves: what srun gives with the wrong --mpi."""
    env = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}
    done = python.run(0, QUICK_START, env=env)
    assert done.returncode == 3
    assert "The launcher started 4 tasks, but each MPI sees only itself: mpi4py uses" in done.stderr
    assert "Refused, or 4 copies would write one cache." in done.stderr


def test_a_rank_that_was_refused_does_not_take_the_others_with_it(mpirun: Launcher) -> None:
    """Neither in the middle of what they do last, nor in the exit code: each rank takes leave of its launcher."""
    script = """
        import atexit, time
        from mpi4py import MPI
        last = MPI.COMM_WORLD.Get_rank() == 0
        atexit.register(lambda: last and (time.sleep(0.3), print("last words", flush=True)))
        from ezpyp import Pipeline, as_pickle_step
        pipeline = Pipeline("cache", "study")
        @as_pickle_step(pipeline, cpus=1000)
        def wide():
            return 1
        wide()
        pipeline.execute()
    """
    done = mpirun.run(2, textwrap.dedent(script))
    if mpirun.name != "openmpi":  # whose launcher ends the others of a rank that ends with a code
        assert "last words" in done.stdout
    assert done.returncode == 3, done.stderr


def test_an_open_mpi_that_nobody_speaks_pmix_to_is_refused_before_it_starts(mpirun: Launcher) -> None:
    """What `srun --mpi=pmi2` gives it: it may end the process as it starts, and with it the reason."""
    if mpirun.name != "openmpi":
        pytest.skip("speaks PMI")
    script = """
        from ezpyp import LauncherError
        from ezpyp.ranks import mpi

        try:
            mpi.connect()
        except LauncherError as error:
            print(mpi.started(), error)
        """
    done = mpirun.run(0, textwrap.dedent(script), env={"PMI_SIZE": "4", "PMI_RANK": "0"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("False The launcher started 4 tasks"), done.stdout
    assert "Use: srun --mpi=pmix" in done.stdout


def test_slurm_ntasks_alone_is_no_launcher(python: Launcher) -> None:
    done = python.run(0, QUICK_START, env={"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"})
    assert done.returncode == 0, done.stderr


def test_five_thousand_steps_in_five_layers(mpirun: Launcher) -> None:
    code = """
import time
from ezpyp import Pipeline, as_pickle_step
began = time.perf_counter()
pipeline = Pipeline("cache", "layers")
@as_pickle_step(pipeline)
def f(k, a=None):
    return k
layer = f.map(range(1000))
for depth in range(1, 5):
    layer = f.map(range(1000 * depth, 1000 * depth + 1000), layer)
summary = pipeline.execute()
if pipeline.is_root:
    print("SECONDS", time.perf_counter() - began, summary.done, flush=True)
"""
    done = mpirun.run(2, code, timeout=100)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith("SECONDS"))
    assert line.split()[2] == "5000"


@pytest.mark.parametrize("number", [signal.SIGUSR1])
def test_a_stop_leaves_a_run_that_can_go_on(mpirun: Launcher, tmp_path: Path, number: int) -> None:
    job = mpirun.start(2, textwrap.dedent(KILLED).replace("0.01", "0.1"))
    deadline = time.monotonic() + 30
    while len(done_names(tmp_path / "cache")) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    job.send_signal(number)
    out, _ = job.communicate(timeout=30)
    finished = done_names(tmp_path / "cache")
    assert job.returncode not in (0, None), out
    assert 4 <= len(finished) < 80
    text = (tmp_path / "cache" / "pipeline.summary").read_text()
    assert text.startswith("Pipeline Stopped @ ")
    before = (tmp_path / "executions").read_text().split()
    assert len(before) == len(finished)  # running steps were let finish
    assert mpirun.run(2, KILLED.replace("0.01", "0.1"), timeout=90).returncode == 0
    assert len((tmp_path / "executions").read_text().split()) == 80


@pytest.mark.parametrize("helpers", [1, 2])
def test_of_many_ranks_the_first_has_a_helper_less(mpirun: Launcher, helpers: int) -> None:
    many = """
import os, time
from ezpyp import Pipeline, as_pickle_step
from ezpyp.run import engine

engine.MOST_EQUALS = 2
pipeline = Pipeline("cache", "many")

@as_pickle_step(pipeline)
def where(k):
    time.sleep(0.02)
    return os.getpid()

where.map(range(40))
pipeline.execute()
"""
    done = mpirun.run(3, many, env={"EZPYP_HELPERS": str(helpers)})
    assert done.returncode == 0, done.stdout + done.stderr
    run = ezpyp.open(mpirun.folder / "cache")
    at_work: dict[int, set[int]] = {rank: set() for rank in range(3)}
    for row in run.summary().rows:
        assert row.rank is not None
        at_work[row.rank].add(run[row.name])
    assert len(at_work[0]) == helpers - 1
    assert {len(at_work[1]), len(at_work[2])} == {helpers}


def test_who_is_woken_for_a_message_sees_it_at_the_first_look(mpirun: Launcher) -> None:
    talk = """
import os
from ezpyp.ranks import mpi

link = mpi.connect()
link.places  # where the bells are
seen = 0
for turn in range(50):
    if link.rank:
        link.send(turn, 0)
        while link.receive() is None:
            pass
    else:
        link.bell.wait(10)
        while (message := link.receive()) is None:
            seen -= 1
        seen += 1
        link.send("heard", 1)
if not link.rank:
    os.write(1, b"SEEN %d\\n" % seen)
"""
    done = mpirun.run(2, talk)
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[-1]) > 25, done.stdout  # one now and then is heard before it can be seen
