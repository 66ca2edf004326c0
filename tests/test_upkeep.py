"""Folders looked after from the command line: check, merge, pack, clean, show, and what takes the space."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import tarfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import ezpyp
from ezpyp.cli import main as cli
from ezpyp.folder import lock
from ezpyp.storage import transfer
from ezpyp.upkeep import merging
from tests.conftest import Launcher, interpreter

SCRIPT = """
    import sys
    import tempfile
    import numpy
    from pathlib import Path
    from ezpyp import File, Pipeline, as_numpy_step, as_pickle_step

    cache, first, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    pipeline = Pipeline(cache, "study", on_change="rerun")

    @as_pickle_step(pipeline)
    def train(lr):
        print("training with", lr)
        return {"loss": 1 / lr}

    @as_numpy_step(pipeline)
    def trace(n):
        return numpy.arange(float(n))

    @as_pickle_step(pipeline)
    def write(name):
        path = Path(tempfile.mkdtemp()) / f"{name}.tmp"
        path.write_text("written")
        return File(path)

    @as_pickle_step(pipeline)
    def best(all):
        return min(each["loss"] for each in all)

    best(train.map(range(first, last)))
    trace(1000)
    write("data")
    pipeline.execute()
"""


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A script with two caches: shares of a sweep."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.py").write_text(textwrap.dedent(SCRIPT), encoding="utf-8")
    for cache, first, last in (("a", 1, 4), ("b", 3, 7)):
        done = interpreter(folder).run(0, folder / "study.py", cache, str(first), str(last))
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def copy(study: Path, tmp_path: Path) -> Path:
    """A copy of the first cache to spoil."""
    return Path(shutil.copytree(study / "a", tmp_path / "cache"))


class Typed:
    """What a command printed and how it ended."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *argv: str | Path, code: int = 0) -> str:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(word) for word in argv])
        said = self._capsys.readouterr()
        self.err = said.err
        assert ended.value.code == code, said.out + said.err
        return said.out


@pytest.fixture
def typed(capsys: pytest.CaptureFixture[str]) -> Typed:
    return Typed(capsys)


def rerun(study: Path, cache: Path, first: int, last: int) -> str:
    """What a run of the script prints where it has nothing to do."""
    done = interpreter(study).run(0, study / "study.py", str(cache), str(first), str(last))
    assert done.returncode == 0, done.stderr
    return done.stdout


# check


def test_a_sound_folder(typed: Typed, copy: Path) -> None:
    assert "6 results" in typed("check", copy)
    told = json.loads(typed("check", copy, "--output", "json"))
    assert (told["sound"], told["results"], told["wrong"]) == (True, 6, [])
    assert told["bytes"] > 8000


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "spoil", "what"),
    [
        ("best.step", flip, "checksum differs"),
        ("trace.step.npy", flip, "checksum differs"),
        ("best.step", lambda path: path.write_bytes(b""), "torn: 0 bytes"),
        ("best.step", lambda path: path.write_bytes(path.read_bytes()[:-1]), "torn"),
        ("best.step", Path.unlink, "gone"),
        ("best.status", lambda path: path.write_text("{"), "torn"),
        ("best.status", lambda path: path.write_bytes(b""), "empty"),
        ("best.status", lambda path: shutil.copy(path.with_name("trace.status"), path), "another file"),
        ("files/write/data.tmp", flip, "checksum differs"),
        ("files/write/data.tmp", Path.unlink, "gone"),
        ("files/write/other.tmp", lambda path: path.write_text("x"), "orphaned"),
        ("lost.step", lambda path: path.write_text("x"), "orphaned"),
        ("old/lost@20200101T000000-00000000.step", lambda path: path.write_text("x"), "orphaned"),
        ("lost.partial", lambda path: path.write_text("x"), "orphaned"),
        ("notes.txt", lambda path: path.write_text("x"), "foreign"),
        (".ezpyp-tmp-1-00000000-elsewhere", lambda path: path.write_text("x"), "killed"),
        ("pipeline.summary", lambda path: path.write_bytes(b""), "emptied"),
        ("pipeline.summary", lambda path: path.write_text("x"), "foreign"),
        ("pipeline.schema", lambda path: path.write_bytes(b""), "not a schema"),
        ("pipeline.schema", lambda path: path.write_text("[]"), "not a schema"),
    ],
)
def test_every_file_that_is_wrong_is_named(
    typed: Typed, copy: Path, name: str, spoil: Callable[[Path], object], what: str
) -> None:
    path = copy / name
    path.parent.mkdir(exist_ok=True)
    spoil(path)
    (line,) = typed("check", copy, code=1).splitlines()[:-1]
    assert line.startswith(f"{path}: ")
    assert what in line
    (wrong,) = json.loads(typed("check", copy, "--output", "json", code=1))["wrong"]
    assert wrong["path"] == str(path)


def test_history_is_checked_too(typed: Typed, copy: Path) -> None:
    (journal,) = (copy / "journal").iterdir()
    log = next(path for path in (copy / "logs").iterdir() if path.stat().st_size)
    with journal.open("a") as file:
        file.write('{"event": "StepE')  # a torn tail is what a kill leaves
    typed("check", copy)
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([*lines[:2], "torn\n", *lines[2:]]))
    assert f"{journal}: torn: line 3" in typed("check", copy, code=1)
    journal.write_bytes(b"")
    log.write_bytes(b"")
    said = typed("check", copy, code=1)
    assert f"{journal}: emptied" in said
    assert f"{log}: torn: 0 bytes" in said
    log.unlink()
    assert f"{log}: what steps printed is gone" in typed("check", copy, code=1)


def test_a_folder_in_use_may_hold_what_is_being_written(typed: Typed, copy: Path) -> None:
    (copy / ".ezpyp-tmp-1-00000000-elsewhere").write_text("x")
    with lock.acquire(str(copy)):
        typed("check", copy)
    typed("check", copy, code=1)


def test_what_is_no_cache_is_refused(typed: Typed, tmp_path: Path) -> None:
    typed("check", tmp_path, code=1)
    assert "no cache folder" in typed.err


# merge


def test_shares_become_one(typed: Typed, study: Path, tmp_path: Path) -> None:
    into = tmp_path / "c"
    told = typed("merge", study / "a", study / "b", "--into", into)
    assert told == f"{into}: 10 of 10 steps done\n"  # train 1 to 6, two of best, trace, write
    typed("check", into)
    run = ezpyp.open(into)
    losses = {entry.arguments["lr"]: run[entry.name]["loss"] for entry in run.entries if entry.function_name == "train"}
    assert losses == {lr: 1 / lr for lr in range(1, 7)}
    bests = {name: run[name] for name in run.names("best")}
    assert bests == {"best": 1 / 3, "best[1]": 1 / 6}
    assert run.log(next(e.name for e in run.entries if e.arguments.get("lr") == 6)) == "training with 6\n"
    entry = run.entries[run.index["best[1]"]]
    assert [run[name]["loss"] for name in entry.upstream] == [1 / lr for lr in range(3, 7)]
    assert entry.args == f"[[{', '.join(f'TMP for {name}' for name in entry.upstream[:3])}, …]]"
    assert (into / "pipeline.summary").read_text().startswith("Pipeline Completed")


def test_the_plan_that_they_are_shares_of_finds_everything(typed: Typed, study: Path, tmp_path: Path) -> None:
    into = tmp_path / "c"
    typed("merge", study / "a", study / "b", "--into", into)
    out = rerun(study, into, 1, 7)
    assert "8 of 9 done, 1 to run" in out  # `best` of all six
    assert ezpyp.open(into)["best"] == 1 / 6


def test_merging_into_a_cache_adds_to_it(typed: Typed, study: Path, copy: Path) -> None:
    before = {path.name: path.stat().st_ino for path in copy.glob("*.step*")}
    typed("merge", study / "b", "--into", copy)
    assert "10 of 10 steps done" in typed("merge", study / "a", study / "b", copy, "--into", copy)
    typed("check", copy)
    assert {name: (copy / name).stat().st_ino for name in before} == before
    assert len(ezpyp.open(copy).names("train")) == 6


def test_a_merged_folder_stands_alone(typed: Typed, study: Path, tmp_path: Path) -> None:
    a = shutil.copytree(study / "a", tmp_path / "a")
    typed("merge", a, "--into", tmp_path / "c")
    shutil.rmtree(a)
    typed("check", tmp_path / "c")
    assert "6 of 6 done, 0 to run" in rerun(study, tmp_path / "c", 1, 4)


@pytest.mark.parametrize("survived", [0, 1, 5])
def test_a_merge_that_was_killed_goes_on(
    typed: Typed, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    class Killed(BaseException):
        pass

    taken = itertools.count()

    def take(*args: Any, **kwargs: Any) -> None:
        if next(taken) >= survived:
            raise Killed
        original(*args, **kwargs)

    original = transfer.take
    with monkeypatch.context() as patch:
        patch.setattr(transfer, "take", take)
        with pytest.raises(Killed):
            merging.merge([study / "a", study / "b"], tmp_path / "c")
    assert "10 of 10 steps done" in typed("merge", study / "a", study / "b", "--into", tmp_path / "c")
    typed("check", tmp_path / "c")


def test_a_folder_with_dropped_results_is_sound(typed: Typed, tmp_path: Path) -> None:
    script = """
import ezpyp
p = ezpyp.Pipeline("cache", "p")
@p.step(keep=False)
def f(x):
    return x
@p.step()
def g(x):
    return x
g(f(1))
p.execute()
"""
    assert interpreter(tmp_path).run(0, script).returncode == 0
    assert "1 results" in typed("check", tmp_path / "cache")
    typed("merge", tmp_path / "cache", "--into", tmp_path / "c")
    typed("check", tmp_path / "c")
    assert ezpyp.open(tmp_path / "c").status.done == 2
    (tmp_path / "cache" / "f.step").write_text("left by a kill")
    assert "was to be dropped" in typed("check", tmp_path / "cache", code=1)
    script = (tmp_path / "script.py").read_text()
    assert interpreter(tmp_path).run(0, script).returncode == 0
    typed("check", tmp_path / "cache")


def test_torn_results_are_not_taken(typed: Typed, study: Path, copy: Path, tmp_path: Path) -> None:
    flip(copy / "trace.step.npy")
    flip(copy / "train[0].step")
    said = typed("merge", copy, study / "b", "--into", tmp_path / "c", code=1)
    assert f"{copy}/train[0].step: " in said
    assert "9 of 10 steps done" in said  # trace is in the other folder too
    typed("check", tmp_path / "c")


def test_another_pipeline_is_refused(typed: Typed, study: Path, tmp_path: Path) -> None:
    script = "import ezpyp\np = ezpyp.Pipeline('cache', 'p')\n@p.step()\ndef f(x):\n    return x\nf('a')\np.execute()"
    assert interpreter(tmp_path).run(0, script).returncode == 0
    typed("merge", study / "a", tmp_path / "cache", "--into", tmp_path / "c", code=3)
    assert "belongs to pipeline 'p'" in typed.err
    assert not (tmp_path / "c").exists()


def test_other_code_is_refused_and_named(typed: Typed, study: Path, tmp_path: Path) -> None:
    text = (study / "study.py").read_text().replace("1 / lr", "2 / lr")
    (tmp_path / "study.py").write_text(text)
    assert interpreter(tmp_path).run(0, tmp_path / "study.py", "d", "1", "4").returncode == 0
    typed("merge", study / "a", tmp_path / "d", "--into", tmp_path / "c", code=3)
    assert "constant 1 -> 2" in typed.err
    assert "Nothing was merged" in typed.err
    assert not (tmp_path / "c").exists()


def test_a_folder_of_other_things_is_refused(typed: Typed, study: Path, tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "notes.txt").write_text("mine")
    typed("merge", study / "a", "--into", tmp_path / "c", code=1)
    assert os.listdir(tmp_path / "c") == ["notes.txt"]


# pack


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.xz"])
def test_unpacked_elsewhere_a_run_has_nothing_to_do(
    typed: Typed, study: Path, copy: Path, tmp_path: Path, suffix: str
) -> None:
    (copy / ".ezpyp-tmp-1-00000000-elsewhere").write_text("x")
    target = tmp_path / f"out{suffix}"
    assert " files (" in typed("pack", copy, target)
    shutil.rmtree(copy)
    with tarfile.open(target) as tar:
        names = tar.getnames()
        tar.extractall(tmp_path / "there", filter="data")
    assert not [name for name in names if ".lock" in name or "tmp-" in name]
    folder = tmp_path / "there" / "cache"
    typed("check", folder)
    assert "6 of 6 done, 0 to run" in rerun(study, folder, 1, 4)
    assert Path(ezpyp.open(folder)["write"]).read_text() == "written"


def test_a_folder_that_is_held_is_not_packed(typed: Typed, copy: Path, tmp_path: Path, python: Launcher) -> None:
    code = f"""
import sys
from ezpyp.folder import lock
held = lock.acquire({str(copy)!r})
print("held", flush=True)
sys.stdin.read()
"""
    holder = subprocess.Popen(
        python.command(0, code),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=python.environment(),
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        typed("pack", copy, tmp_path / "out.tar", code=3)
        assert "in use by" in typed.err
        assert not (tmp_path / "out.tar").exists()
    finally:
        holder.communicate()


def test_a_name_that_is_no_tar_is_refused(typed: Typed, copy: Path, tmp_path: Path) -> None:
    typed("pack", copy, tmp_path / "out.zip", code=1)
    assert "no name for a tar file" in typed.err
    assert not (tmp_path / "out.zip").exists()


# clean


def test_a_dry_run_removes_nothing(typed: Typed, copy: Path) -> None:
    before = sorted(copy.rglob("*"))
    said = typed("clean", copy, "train", "--dry-run")
    assert {Path(line).name for line in said.splitlines()[:-1]} == {
        f"train[{k}].{what}" for k in range(3) for what in ("status", "step")
    }
    assert "6 files" in said
    assert sorted(copy.rglob("*")) == before
    assert len(typed("clean", copy, "--dry-run").splitlines()) > 10


def test_steps_that_are_removed_run_again(typed: Typed, study: Path, copy: Path) -> None:
    assert "Removed 5 files" in typed("clean", copy, "write", "trace", "--yes")
    assert not list(copy.glob("write*"))
    assert not list(copy.glob("trace*"))
    assert not (copy / "files").exists()
    typed("check", copy)
    assert "4 of 6 done, 2 to run" in rerun(study, copy, 1, 4)


def test_only_former_results(typed: Typed, study: Path, copy: Path) -> None:
    text = (study / "study.py").read_text().replace("1000", "2000")
    (copy.parent / "study.py").write_text(text)
    rerun(copy.parent, copy, 1, 4)
    typed("check", copy)
    old = [*(copy / "old").iterdir()]
    assert len(old) == 2
    assert "2 files" in typed("clean", copy, "--old", "--yes")
    assert not (copy / "old").exists()
    assert ezpyp.open(copy).status.done == 6


def test_only_what_failed(typed: Typed, tmp_path: Path) -> None:
    script = """
import ezpyp
p = ezpyp.Pipeline("cache", "p")
@p.step()
def f(x):
    return 1 / x
@p.step()
def g(x):
    return x
g(f(0))
f(1)
p.execute()
"""
    assert interpreter(tmp_path).run(0, script).returncode == 1
    cache = tmp_path / "cache"
    assert "1 files" in typed("clean", cache, "f", "--failed", "--yes")
    assert "1 files" in typed("clean", cache, "--failed", "--yes")
    assert sorted(path.name for path in cache.glob("*.st*")) == ["f[1].status", "f[1].step"]


def test_an_unknown_step_is_refused(typed: Typed, copy: Path) -> None:
    typed("clean", copy, "tran", "--yes", code=1)
    assert "No step is called 'tran'" in typed.err


# show


def git(folder: Path, *words: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(folder), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_where_a_folder_comes_from(typed: Typed, study: Path, tmp_path: Path) -> None:
    script = tmp_path / "study.py"
    shutil.copy(study / "study.py", script)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "study.py")
    git(tmp_path, "commit", "-qm", "study")
    commit = git(tmp_path, "rev-parse", "HEAD")
    environ = {
        "OMP_NUM_THREADS": "1",
        "EZPYP_WORKERS": "2",
        "SLURM_JOB_ID": "4711",
        "SLURM_JOB_NAME": "n",
        "OTHER": "x",
    }
    done = interpreter(tmp_path).run(0, script, "cache", "1", "4", env=environ)
    assert done.returncode == 0, done.stderr
    cache = tmp_path / "cache"
    said = typed("show", cache)
    for text in (commit, "study.py cache 1 4", "numpy ", str(tmp_path), "OMP_NUM_THREADS=1", "EZPYP_WORKERS=2", "4711"):
        assert text in said, text
    assert "not committed" not in said  # the cache itself does not count
    assert "OTHER" not in said
    with script.open("a") as file:
        file.write("# a remark\n")
    assert interpreter(tmp_path).run(0, script, "cache", "1", "5", env=environ).returncode == 0
    told = json.loads(typed("show", cache, "--output", "json"))
    assert (told["newest"]["commit"], told["newest"]["dirty"]) == (commit, True)
    assert told["newest"]["environment"] == {k: v for k, v in environ.items() if k != "OTHER"}
    assert "numpy" in told["packages"]
    assert told["newest"]["packages"] == told["packages"]
    assert [each["started"]["dirty"] for each in told["runs"]] == [True, False]
    assert "not committed" in typed("show", cache)


def test_without_git_or_history(typed: Typed, copy: Path) -> None:
    assert json.loads(typed("show", copy, "--output", "json"))["newest"]["commit"] == ""
    shutil.rmtree(copy / "journal")
    assert json.loads(typed("show", copy, "--output", "json"))["newest"] is None
    assert "numpy" in typed("show", copy)


@pytest.mark.parametrize("behaviour", ["sleep 30", "exit 1", "echo '# branch.oid (initial)'", "kill -9 $$"])
def test_git_never_fails_a_run(behaviour: str, study: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / ".git").mkdir()
    tool = tmp_path / "bin" / "git"
    tool.write_text(f'#!/bin/sh\necho asked >> {tmp_path}/asked\nexec /bin/sh -c "{behaviour}"\n')
    tool.chmod(0o755)
    shutil.copy(study / "study.py", tmp_path / "study.py")
    path = f"{tmp_path}/bin:{os.environ['PATH']}"
    python = interpreter(tmp_path)
    done = subprocess.run(
        python.command(0, tmp_path / "study.py", "cache", "1", "3"),
        cwd=tmp_path,
        env={**python.environment(), "PATH": path},
        capture_output=True,
        text=True,
        timeout=15,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "asked").read_text() == "asked\n"
    (journal,) = (tmp_path / "cache" / "journal").iterdir()
    assert '"commit"' not in journal.read_text()


# status


def test_the_status_says_what_takes_the_space(typed: Typed, copy: Path) -> None:
    sizes = json.loads(typed("status", copy, "--output", "json"))["sizes"]
    assert sizes["trace"] == {"files": 2, "bytes": (copy / "trace.step.npy").stat().st_size}
    assert sizes["train"]["files"] == 6
    assert sizes["train"]["bytes"] == sum(path.stat().st_size for path in copy.glob("train*.step"))
    assert sizes["write"]["files"] == 3
    assert "in 2 files of trace" in typed("status", copy)
