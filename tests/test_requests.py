"""Steps that ask for cores, GPUs and memory, run for real."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

import ezpyp
from ezpyp import Pipeline, as_pickle_step


@pytest.fixture
def pipeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.setattr("ezpyp.system.resources.allotted_cores", lambda: 4)
    return Pipeline(tmp_path / "cache", "requests")


def interval(k: int) -> tuple[float, float, str | None, int]:
    begun = time.monotonic()
    time.sleep(0.03)
    return begun, time.monotonic(), os.environ.get("CUDA_VISIBLE_DEVICES"), len(os.sched_getaffinity(0))


def overlap(one: tuple[float, float, str | None, int], other: tuple[float, float, str | None, int]) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def test_no_two_steps_have_the_same_gpu_at_once(pipeline: Pipeline) -> None:
    steps = as_pickle_step(pipeline, gpus=1)(interval).map(range(6))
    assert pipeline.execute(workers=3).ok
    found = [step.result() for step in steps]
    assert {each[2] for each in found} == {"4", "7"}
    for k, one in enumerate(found):
        assert not any(overlap(one, other) for other in found[:k] if one[2] == other[2])


def test_halves_share_a_gpu(pipeline: Pipeline) -> None:
    steps = as_pickle_step(pipeline, gpus=0.5)(interval).map(range(2))
    assert pipeline.execute(workers=2).ok
    assert [step.result()[2] for step in steps] == ["4", "4"]


def test_wide_steps_wait_for_each_other_and_others_run_beside_them(pipeline: Pipeline) -> None:
    wide = as_pickle_step(pipeline, cpus=3, name="wide")(interval).map(range(3))
    narrow = as_pickle_step(pipeline, name="narrow")(interval).map(range(20))
    assert pipeline.execute(workers=4).ok
    found = [step.result() for step in wide]
    others = [step.result() for step in narrow]
    for k, one in enumerate(found):
        assert not any(overlap(one, other) for other in found[:k])
        assert sum(each[0] < one[0] < each[1] for each in others) <= 1


def test_a_step_is_pinned_to_its_cores_and_the_next_is_not(tmp_path: Path) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core cannot tell")
    pipeline = Pipeline(tmp_path / "cache", "pinned")
    wide = as_pickle_step(pipeline, cpus=2, name="wide")(interval)(0)
    after = as_pickle_step(pipeline, name="after", depends_on=[wide])(interval)(1)
    assert pipeline.execute().ok
    assert wide.result()[3] == 2
    assert after.result()[3] == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"cpus": 5}, "Step 'interval' asks for 5 cores, and no node has that: .* has 4 cores and 2 GPUs. Ask"),
        ({"gpus": 3}, "Step 'interval' asks for 3 GPUs, and no node"),
        ({"memory": "900TB"}, "Step 'interval' asks for .* GiB of memory, and no node"),
    ],
)
def test_what_no_node_has_is_refused_before_anything_runs(
    pipeline: Pipeline, asked: dict[str, float | str], said: str
) -> None:
    first = as_pickle_step(pipeline, name="first")(interval)(0)
    as_pickle_step(pipeline, **asked)(interval)(1)
    with pytest.raises(ezpyp.ResourceError, match=said):
        pipeline.execute()
    assert first.get_status() == ezpyp.Status.NOT_RUN


def test_what_a_dead_step_had_is_free_again(pipeline: Pipeline) -> None:
    def dies(k: int) -> None:
        os.kill(os.getpid(), 9)

    lost = as_pickle_step(pipeline, gpus=2, retry=1)(dies)(0)
    last = as_pickle_step(pipeline, gpus=2, name="last")(interval)(1)
    summary = pipeline.execute(raise_on_failure=False)
    assert (summary.done, summary.failed) == (1, 1)
    assert last.result()[2] == "4,7"
    assert lost.get_status() == ezpyp.Status.FAILED


def test_in_line_a_step_sees_its_gpus_alone(pipeline: Pipeline) -> None:
    step = as_pickle_step(pipeline, gpus=1)(interval)(0)
    assert pipeline.execute(executor="inline").ok
    assert step.result()[2] == "4"
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,7"


def test_the_longest_function_of_a_phase_comes_first_in_the_next_run(tmp_path: Path) -> None:
    def build() -> Pipeline:
        return Pipeline(tmp_path / "cache", "order", on_change="rerun")

    def quick(k: int) -> float:
        return time.monotonic()

    def slow(k: int) -> float:
        time.sleep(0.1)
        return time.monotonic()

    for longest_first in (False, True):
        pipeline = build()
        first = as_pickle_step(pipeline, always=True)(quick)(0)
        second = as_pickle_step(pipeline, always=True)(slow)(0)
        assert pipeline.execute().ok
        assert (second.result() < first.result()) == longest_first


def test_a_journal_that_is_torn_or_tells_nothing_is_passed_over(tmp_path: Path) -> None:
    from ezpyp.folder.durations import remembered

    folder = tmp_path / "journal"
    folder.mkdir()
    ended = '{"event":"RunEnded","run":"r","when":1.0,"durations":%s}\n'
    (folder / "20260101T000000-1.jsonl").write_text(ended % '{"old":{"mean":3},"both":{"mean":4}}')
    (folder / "20260102T000000-1.jsonl").write_text(ended % '{"both":{"mean":5},"odd":{"mean":"?"},"odder":7}')
    (folder / "20260103T000000-1.jsonl").write_text('{"event":"StepStarted","name":"RunEnded"}\n{"event":"RunEnd')
    (folder / "20260104T000000-1.jsonl").write_text("")
    assert remembered(tmp_path) == {"old": 3.0, "both": 5.0}
    assert remembered(tmp_path / "nowhere") == {}


def process(k: int) -> int:
    return os.getpid()


@pytest.mark.parametrize("store", ["files", "packed"])
def test_a_gpu_step_runs_in_a_process_that_runs_nothing_else(pipeline: Pipeline, tmp_path: Path, store: str) -> None:
    pipeline = Pipeline(tmp_path / store, "fresh", store=store, workers=2)
    before = as_pickle_step(pipeline, name="plain")(process).map(range(6))
    steps = as_pickle_step(pipeline, gpus=1, name="gpu")(process).map(range(6))
    apart = as_pickle_step(pipeline, fresh=True, name="apart")(process).map(range(3))
    after = as_pickle_step(pipeline, name="after", depends_on=[steps])(process).map(range(6))
    assert pipeline.execute().ok
    alone = [step.result() for step in (*steps, *apart)]
    assert len(set(alone)) == 9
    assert not set(alone) & {step.result() for step in (*before, *after)}


def test_a_process_is_kept_for_the_gpu_that_it_knows(pipeline: Pipeline) -> None:
    def work(k: int) -> tuple[int, str]:
        time.sleep(0.01)
        return os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"]

    steps = as_pickle_step(pipeline, gpus=1, fresh=False)(work).map(range(8))
    assert pipeline.execute(workers=3).ok
    found = {step.result() for step in steps}
    assert {gpu for _, gpu in found} == {"4", "7"}
    assert len({pid for pid, _ in found}) == len(found) == 2


def test_a_program_is_a_process_of_its_own_and_needs_no_other(pipeline: Pipeline) -> None:
    line = "echo $PPID $CUDA_VISIBLE_DEVICES > out.txt"
    steps = [
        pipeline.command("program", ["sh", "-c", line, str(k)], outputs="out.txt", gpus=1, track=False)
        for k in range(6)
    ]
    plain = as_pickle_step(pipeline, depends_on=steps)(process)(0)
    assert pipeline.execute(workers=1).ok
    said = [Path(step.result()["out.txt"]).read_text().split() for step in steps]
    assert said == [[str(plain.result()), "4"]] * 6


def test_the_gpu_of_a_step_is_free_only_when_its_process_has_ended(pipeline: Pipeline) -> None:
    def work(k: int, before: int) -> int:
        assert not before or not os.path.exists(f"/proc/{before}")
        return os.getpid()

    step = as_pickle_step(pipeline, gpus=2)(work)
    last = step(3, step(2, step(1, 0)))
    assert pipeline.execute(workers=2).ok
    assert last.result()


def test_a_crash_in_one_of_ten_gpu_steps_fails_one(pipeline: Pipeline) -> None:
    def work(k: int) -> int:
        if k == 3:
            os.kill(os.getpid(), 11)
        return k

    as_pickle_step(pipeline, gpus=1)(work).map(range(10))
    summary = pipeline.execute(workers=2, raise_on_failure=False)
    assert (summary.done, summary.failed) == (9, 1)
    assert [*summary.failures] == ["work[3]"]
