"""Runs whose results are packed: which kind a folder gets, and that the same comes out."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

import ezpyp
from ezpyp import InitializationError, Pipeline, SchemaConflictError, as_pickle_step
from ezpyp.run import session
from ezpyp.storage import appender
from ezpyp.storage.packed import PackedStore
from ezpyp.system import files, offspring
from ezpyp.upkeep.checking import check
from ezpyp.upkeep.merging import merge
from tests.conftest import Launcher

SCRIPT = """
import sys
from ezpyp import Pipeline, Status, as_json_step, as_pickle_step
pipeline = Pipeline("cache", "kinds", workers=2, {options})
@as_pickle_step(pipeline)
def alpha(x):
    return [x] * x
@as_json_step(pipeline)
def beta(x):
    print("beta", len(x))
    return len(x)
@as_pickle_step(pipeline, allow_failure=1)
def gamma(x):
    return 1 / (x - 3)
@as_pickle_step(pipeline)
def total(values, others):
    return sum(values), sum(bool(each) for each in others)
betas = beta.map(alpha.map(range(20)))
last = total(betas, gamma.map(betas))
summary = pipeline.execute()
print(last.result(), summary.done, summary.cached, summary.failed)
"""


def pipeline_of(folder: Path, count: int = 3, **options: str) -> Pipeline:
    pipeline = Pipeline(folder, "kinds", **options)  # type: ignore[arg-type]

    @as_pickle_step(pipeline)
    def alpha(x: int) -> int:
        return x

    alpha.map(range(count))
    return pipeline


@pytest.fixture(autouse=True)
def one_script_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one process, only one pipeline may use a folder."""
    monkeypatch.setattr(session, "_folders", {})


def kind_of(folder: Path) -> str:
    return str(ezpyp.open(folder)._about["store"])


@pytest.mark.parametrize(("count", "kind"), [(1000, "files"), (1001, "packed")])
def test_the_kind_is_decided_when_the_folder_is_made(
    count: int, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipeline_of(tmp_path / "cache", count).execute(executor="inline")
    assert kind_of(tmp_path / "cache") == kind
    assert capsys.readouterr().out.startswith(f"Cache {tmp_path}/cache ({kind}): 0 of {count:,} done")
    session._folders.clear()
    pipeline_of(tmp_path / "cache", 3).execute(executor="inline", on_change="extend")
    assert kind_of(tmp_path / "cache") == kind


def test_another_kind_is_refused_with_the_remedy(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    pipeline_of(folder, store="packed").execute(executor="inline")
    pipeline_of(folder, store="packed").execute(executor="inline")
    with pytest.raises(SchemaConflictError) as caught:
        pipeline_of(folder, store="files").initialize_schema()
    assert str(caught.value) == (
        f"{folder} has store='packed', and store='files' was asked for. "
        f"Convert it: ezpyp repack {folder} --store files. Nothing was run."
    )
    with pytest.raises(SchemaConflictError, match=r"Use another cache folder\. Nothing was run"):
        pipeline_of(folder, store="memory").initialize_schema()


def test_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InitializationError, match="store='cloud': choose one of 'auto', 'files', 'packed', 'memory'"):
        pipeline_of(tmp_path / "cache", store="cloud").initialize_schema()


def test_without_its_schema_a_packed_folder_is_known_by_its_segments(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    pipeline_of(folder, store="packed").execute(executor="inline")
    (folder / "pipeline.schema").unlink()
    assert pipeline_of(folder).execute(executor="inline").cached == 3
    assert kind_of(folder) == "packed"


def test_memory_keeps_nothing_but_the_history(tmp_path: Path) -> None:
    pipeline = pipeline_of(tmp_path / "cache", store="memory")
    assert pipeline.execute(executor="inline").done == 3
    assert [step.result() for step in pipeline.steps] == [0, 1, 2]
    assert not [*(tmp_path / "cache").rglob("*.step")]
    with pytest.raises(InitializationError, match="give executor='inline'"):
        pipeline.execute()


def test_what_changed_code_made_anew_is_there(python: Launcher) -> None:
    options = 'store="packed", on_change="rerun"'
    for text, cached in (("sum(values)", 0), ("-sum(values)", 59), ("-sum(values)", 60)):
        done = python.run(0, SCRIPT.format(options=options).replace("return sum(values)", f"return {text}"))
        assert done.stdout.splitlines()[-1].split(" ", 2)[0] == f"({text.replace('sum(values)', '190')},"
        assert done.stdout.splitlines()[-1].endswith(f") 60 {cached} 1"), done.stdout + done.stderr


@pytest.mark.parametrize("ranks", [0, 2])
def test_packed_or_not_the_same_comes_out(ranks: int, mpirun: Launcher) -> None:
    told: dict[str, list[str]] = {}
    for kind in ("files", "packed"):
        folder = mpirun.folder / kind
        folder.mkdir()
        for _ in range(2):
            done = mpirun.run(ranks, SCRIPT.format(options=f"store={kind!r}"), cwd=folder)
            assert done.returncode == 0, done.stderr
            told.setdefault(kind, []).append(done.stdout.splitlines()[-1])
        rows = ezpyp.open(folder / "cache").summary().rows
        facts = [(row.name, row.args, row.phase, row.status, row.attempts, row.note) for row in rows]
        told[kind].append(repr(facts))
        assert ezpyp.open(folder / "cache").log("beta[7]") == "beta 7\n"
    assert told["files"] == told["packed"]
    assert told["packed"][0].startswith("(190, 19) 60 0 1")
    assert not [*(mpirun.folder / "packed" / "cache").rglob("*.status")]


def test_a_disk_that_is_full_for_a_while_costs_what_it_did_not_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, real = [0], files.write_all

    def write_all(descriptor: int, data: bytes) -> None:
        calls[0] += 1
        if calls[0] in (4, 7):
            real(descriptor, data[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor, data)

    def build() -> Pipeline:
        pipeline = Pipeline(tmp_path / "cache", "full", store="packed")
        as_pickle_step(pipeline)(nap).map(range(60))
        return pipeline

    with monkeypatch.context() as patch:
        patch.setattr(appender, "write_all", write_all)  # in the helper too, which is forked
        first = build().execute(raise_on_failure=False)
    assert first.failed > 0
    assert first.done + first.failed == 60
    (note,) = {row.note for row in first.rows if row.status == 1}
    assert note == (
        f"{tmp_path}/cache/store/0000.00.seg could not be written (No space left on device). "
        "The disk is full: free space and run again. Former content is untouched."
    )
    session._folders.clear()
    second = build().execute()
    assert (second.done, second.cached) == (60, first.done)


def test_a_segment_that_cannot_be_written_to_fails_the_steps_that_come_to_it(tmp_path: Path) -> None:
    pipeline = pipeline_of(tmp_path / "cache", store="packed")
    pipeline.initialize_schema()
    foreign = tmp_path / "cache" / "store" / "0000.00.seg"
    foreign.parent.mkdir()
    foreign.write_bytes(b"somebody else's")
    summary = pipeline.execute(raise_on_failure=False)
    note = f"{foreign} cannot be continued: it is torn. Put it elsewhere, then run again."
    assert {row.note for row in summary.rows} == {note}
    session._folders.clear()
    foreign.rename(tmp_path / "elsewhere")
    assert pipeline_of(tmp_path / "cache", store="packed").execute().done == 3


def nap(k: int) -> int:
    time.sleep(0.003)
    return k


KILLED = """
import os
from ezpyp import Pipeline, as_pickle_step
pipeline = Pipeline("cache", "killed", workers=2, store="packed")
book = os.open("book", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
@as_pickle_step(pipeline)
def alpha(x):
    os.write(book, b"a\\n")
    return bytes(x % 3000)
@as_pickle_step(pipeline)
def beta(a, x):
    os.write(book, b"b\\n")
    return len(a)
beta.map(alpha.map(range(3000)), range(3000))
summary = pipeline.execute()
print(summary.done, summary.cached)
"""


def kill_all(pid: int) -> None:
    """A process and all below it, as a job that is cancelled for good. Returns when none of them runs any more: one
    that was forked while the others were killed would go on writing.
    """
    known = {pid}
    while any(map(offspring.is_alive, known)):
        known.update(each for root in [*known] for each in offspring.descendants(root))
        for each in filter(offspring.is_alive, known):
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)


def test_after_any_kill_the_next_run_does_exactly_the_rest(python: Launcher) -> None:
    folder, chance, left = python.folder, random.Random(7), 6000
    book, script = folder / "book", folder / "script.py"
    script.write_text(KILLED)
    for _ in range(3):
        book.write_text("")
        wanted = chance.randrange(0, max(1, left // 2))
        command = [str(python.bin / "python"), str(script)]
        with subprocess.Popen(command, cwd=folder, env=python.environment()) as run:
            while run.poll() is None and book.stat().st_size < 2 * wanted:
                time.sleep(0.001)
            kill_all(run.pid)
        store = PackedStore(folder / "cache")
        scan = store.records()
        assert scan.problems == ()
        for each in scan.records.values():
            assert len(store.get(each)) == each.outcome.bytes
        left = 6000 - len(scan.records)
    book.write_text("")
    done = python.run(0, script)
    assert done.stdout.splitlines()[-1] == f"6000 {6000 - left}"
    assert book.stat().st_size == 2 * left


@pytest.mark.parametrize(("there", "here"), [("packed", "files"), ("files", "packed"), ("packed", "packed")])
def test_results_are_borrowed_and_merged_from_either_kind(there: str, here: str, tmp_path: Path) -> None:
    pipeline_of(tmp_path / "a", store=there).execute(executor="inline")
    again = pipeline_of(tmp_path / "b", store=here, reuse_from=str(tmp_path / "a"))
    assert again.execute(executor="inline").cached == 3
    assert [step.result() for step in again.steps] == [0, 1, 2]
    merged = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "c")
    assert (merged.done, merged.wrong) == (3, ())
    for folder in "abc":
        assert check(tmp_path / folder).wrong == ()
