"""What steps use of their GPUs: how it is seen, how it is told, and where it stands."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import ezpyp
from ezpyp import Pipeline, as_pickle_step
from ezpyp.cli.main import ezpyp_command
from ezpyp.model.outcomes import Outcome, Status
from ezpyp.storage.record import Record, extras_of, from_extras, from_json, to_json
from ezpyp.system import offspring
from ezpyp.system.usage import Look, Meter, Use
from ezpyp.work import gauges
from ezpyp.work.gauges import Gauges, Watch
from tests import nvml

GIB = 2**30


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nvml.build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def busy(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A node with two GPUs, and the folder where processes say what they use of one: UUID, now, at most, percent."""
    nvml.use(library, monkeypatch)
    folder = tmp_path / "use"
    folder.mkdir()
    monkeypatch.setattr("ezpyp.system.gpus._has_driver", lambda: True)
    monkeypatch.setenv("FAKE_NVML", "GPU-a GPU-b:MIG-1")
    monkeypatch.setenv("FAKE_NVML_USE", str(folder))
    return folder


@pytest.fixture
def child() -> Iterator[int]:
    """A process below this one, with one of its own."""
    with subprocess.Popen(
        ["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        offspring.end(process.pid)


# ----- seen


def test_a_process_is_below_those_that_led_to_it(child: int) -> None:
    assert offspring.is_below(child, os.getpid())
    assert offspring.is_below(os.getpid(), os.getpid())
    assert not offspring.is_below(os.getpid(), child)
    assert not offspring.is_below(2**22 + 1, os.getpid())


def test_what_a_process_and_those_below_it_use(busy: Path, child: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (busy / str(os.getpid())).write_text(f"GPU-a {GIB} {GIB} 30")
    (busy / str(child)).write_text(f"GPU-a {GIB} {5 * GIB} 90")
    (busy / "1").write_text(f"GPU-a {7 * GIB} {7 * GIB} 5")  # another user's
    meter = Meter(["GPU-a", "GPU-b", "MIG-1", "3"])
    me = os.getpid()
    # 100 at most: samples of processes are not of one moment.
    assert meter.look("GPU-a", [me, child]) == {me: Look(6 * GIB, 100.0), child: Look(5 * GIB, 90.0)}
    assert meter.look("GPU-b", [me]) == meter.look("MIG-1", [me]) == {me: Look(None, None)}
    assert meter.look("3", [me]) == {}
    monkeypatch.setenv("FAKE_NVML_LACKS", "accounts")
    assert Meter(["GPU-a"]).look("GPU-a", [me]) == {me: Look(2 * GIB, 100.0)}
    (busy / str(child)).write_text(f"GPU-a {GIB} {5 * GIB} 123456")  # as drivers tell at times
    assert Meter(["GPU-a"]).look("GPU-a", [me]) == {me: Look(2 * GIB, 30.0)}


def test_who_has_a_device_alone_is_as_busy_as_it_is(busy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    me = os.getpid()
    monkeypatch.setenv("FAKE_NVML_LACKS", "samples")
    meter = Meter(["GPU-a"])
    assert meter.look("GPU-a", [me], alone=[me]) == {me: Look(None, 40.0)}
    assert meter.look("GPU-a", [me]) == {me: Look(None, None)}
    monkeypatch.setenv("FAKE_NVML_LACKS", "samples rates")
    assert meter.look("GPU-a", [me], alone=[me]) == {me: Look(None, None)}


def test_without_nvml_there_is_nothing_to_look_at(busy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pynvml = pytest.importorskip("pynvml")
    assert Meter(["GPU-a"])
    assert not Meter(["GPU-c", "0"])

    def refuse() -> None:
        raise pynvml.NVMLError_LibraryNotFound

    monkeypatch.setattr(pynvml, "nvmlInit", refuse)
    assert not Meter(["GPU-a"])


def test_several_gpus_and_several_steps_at_once(busy: Path, child: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory adds up, busy is the mean; of a step that shares no more is told than NVML tells of processes."""
    monkeypatch.setenv("FAKE_NVML", "GPU-a GPU-b")
    monkeypatch.setenv("FAKE_NVML_LACKS", "accounts")
    (busy / str(os.getpid())).write_text(f"GPU-a {GIB} 0 30")
    (busy / str(child)).write_text(f"GPU-b {2 * GIB} 0 90")
    told, have = Gauges(memoryview(bytearray(Gauges.SIZE))), ["GPU-a", "GPU-b"]
    told.begin(0, os.getpid(), have, [("GPU-a", 1.0), ("GPU-b", 1.0)])
    told.begin(1, child, have, [("GPU-b", 0.5)])
    look(told, have, 0.0, 0.1, 0.2)
    assert told.read(0, ("GPU-a", "GPU-b")) == Use(("GPU-a", "GPU-b"), 3 * GIB, 60.0, 60.0)
    assert told.read(1, ("GPU-b",)) == Use(("GPU-b",), 2 * GIB, 90.0, 90.0)


def look(told: Gauges, have: list[str], *times: float) -> None:
    """Look at these times."""
    meter, tallies = Meter(have), dict[int, gauges._Tally]()
    with pytest.MonkeyPatch.context() as patch:
        for now in times:
            patch.setattr(gauges, "monotonic", lambda now=now: now)
            gauges._look_at_all(meter, Watch(have, 4), told, tallies)


def test_the_mean_is_over_time_and_looks_become_rare(busy: Path) -> None:
    told, meter, tallies = Gauges(memoryview(bytearray(Gauges.SIZE))), Meter(["GPU-a"]), dict[int, gauges._Tally]()
    told.begin(0, os.getpid(), ["GPU-a"], [("GPU-a", 1.0)])
    looks = 0
    with pytest.MonkeyPatch.context() as patch:
        for tick in range(31):
            patch.setattr(gauges, "monotonic", lambda tick=tick: tick / 10)
            (busy / str(os.getpid())).write_text(f"GPU-a {(40 - tick) * GIB} 0 {100 if tick < 11 else 50}")
            before = tallies[0].looked if tallies else 0.0
            gauges._look_at_all(meter, Watch(["GPU-a"], 1), told, tallies)
            looks += tallies[0].looked > before
    assert looks == 9 + 4  # in the first second every 0.1 s, then every 0.5 s
    use = told.read(0, ("GPU-a",))
    assert (use.memory, use.peak) == (39 * GIB, 100.0)
    assert use.mean is not None
    assert 64 < use.mean < 70


# ----- told


def test_of_another_step_nothing_is_told() -> None:
    told = Gauges(memoryview(bytearray(Gauges.SIZE)))
    told.begin(0, 7, ["GPU-a"], [("GPU-a", 1.0)])
    _, _, _, number = told.asked(0)
    told.tell(0, number, 5, 1.5, 2.5)
    assert told.read(0, ("GPU-a",)) == Use(("GPU-a",), 5, 1.5, 2.5)
    told.end(0)
    assert told.asked(0)[0] == 0
    assert told.read(0, ("GPU-a",)).memory == 5  # it may be asked for a moment later
    told.begin(0, 8, ["GPU-a"], [("GPU-a", 1.0)])
    assert told.read(0, ("GPU-a",)) == Use(("GPU-a",))
    told.tell(0, number, 6, None, None)  # late, of the step before
    assert told.read(0, ("GPU-a",)) == Use(("GPU-a",))


@given(st.lists(st.integers(0, 61), unique=True), st.integers(62, 80))
def test_gpus_are_bits_and_those_beyond_are_not_looked_at(places: list[int], beyond: int) -> None:
    have = [f"GPU-{k}" for k in range(90)]
    told = Gauges(memoryview(bytearray(Gauges.SIZE)))
    told.begin(3, 9, have, [*((f"GPU-{k}", 1.0 if k % 2 else 0.5) for k in places), (f"GPU-{beyond}", 1.0)])
    pid, devices, alone, _ = told.asked(3)
    assert pid == 9
    assert [k for k in range(64) if devices >> k & 1] == sorted(places)
    assert [k for k in range(64) if alone >> k & 1] == sorted(k for k in places if k % 2)


# ----- kept


def say(*words: str) -> str:
    """What the program `ezpyp` prints."""
    done = CliRunner().invoke(ezpyp_command, words)
    assert done.exit_code == 0, done.output
    return done.output


uses = st.none() | st.builds(
    Use,
    st.lists(st.text(), min_size=1).map(tuple),
    st.none() | st.integers(0, 2**50),
    st.none() | st.floats(0, 100),
    st.none() | st.floats(0, 100),
)


@given(uses)
def test_records_keep_it(use: Use | None) -> None:
    outcome = Outcome(step=-1, status=Status.DONE, gpu=use)
    record = Record(name="a", fingerprint="f", outcome=outcome)
    assert from_json(to_json(record, outcome), "a").outcome.gpu == use
    assert from_extras(extras_of(outcome, ""), "")[0]["gpu"] == use


@pytest.mark.parametrize("said", [[], [["GPU-a"], "1", 1, 1], "GPU", [["GPU-a"], 1, 1], {"gpus": 1}])
def test_what_ezpyp_did_not_write_is_refused(said: object) -> None:
    outcome = Outcome(step=-1, status=Status.DONE)
    content = json.loads(to_json(Record(name="a", fingerprint="f", outcome=outcome), outcome))
    with pytest.raises(ValueError, match="ezpyp did not write it"):
        from_json(json.dumps({**content, "gpu": said}).encode(), "a")


@pytest.mark.parametrize("store", ["files", "packed"])
def test_the_summary_tells_what_steps_used(busy: Path, tmp_path: Path, store: str) -> None:
    pipeline = Pipeline(tmp_path / "cache", "usage", store=store, workers=2)

    def work(uuid: str) -> None:
        (busy / str(os.getpid())).write_text(f"{uuid} {GIB} {GIB + GIB // 2} 70")
        time.sleep(0.4)
        if uuid == "GPU-x":
            os.kill(os.getpid(), 9)

    plain = as_pickle_step(pipeline, name="plain")(work)("GPU-a")
    step = as_pickle_step(pipeline, gpus=1, name="first")(work)("GPU-a")
    short = as_pickle_step(pipeline, gpus=1, depends_on=[step], name="short")(os.getpid)()
    lost = as_pickle_step(pipeline, gpus=1, allow_failure=True, depends_on=[short], name="lost")(work)("GPU-x")
    summary = pipeline.execute()
    rows = {row.name: row for row in summary.rows}
    told = rows["first"]
    assert (told.gpus, told.gpu_memory, told.gpu_mean, told.gpu_peak) == (("GPU-a",), GIB * 3 // 2, 70.0, 70.0)
    assert (rows["plain"].gpus, rows["plain"].gpu_memory) == ((), None)
    assert (rows["short"].gpus, rows["short"].gpu_memory) == (("GPU-a",), None)
    assert rows["lost"].gpus == ("GPU-a",)
    assert lost.get_status() == Status.FAILED
    assert plain.get_status() == Status.DONE
    lines = (tmp_path / "cache" / "pipeline.summary").read_text().splitlines()
    assert lines[2].split()[-4:] == ["gpus", "gpu_memory", "gpu_mean", "gpu_peak"]
    (line,) = (line for line in lines if line.startswith("first"))
    assert line.split()[-5:] == ["GPU-a", "1.50", "GiB", "70%", "70%"]
    assert '"gpus":{"' in next((tmp_path / "cache" / "journal").glob("*.jsonl")).read_text()
    again = ezpyp.open(tmp_path / "cache").summary()
    assert [row.gpus for row in again.rows] == [row.gpus for row in summary.rows]
    assert again.columns == summary.columns
    header, *listed = say("summary", str(tmp_path / "cache"), "--output", "csv").splitlines()
    assert header.endswith(",note,gpus,gpu_memory,gpu_mean,gpu_peak")
    assert next(line for line in listed if line.startswith("first")).endswith(f",GPU-a,{GIB * 3 // 2},70.0,70.0")
    assert '"gpu_peak": 70.0' in say("summary", str(tmp_path / "cache"), "--output", "json")
    assert f"GPUs        {os.uname().nodename}: GPU-a, MIG-1\n" in say("show", str(tmp_path / "cache"))
    assert list(summary.to_frame()["gpus"]) == ["", "GPU-a", "GPU-a", "GPU-a"]


@pytest.mark.parametrize("lacks", ["answer", "life"])
def test_a_driver_that_hangs_or_dies_costs_neither_a_step_nor_the_run(
    busy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacks: str
) -> None:
    monkeypatch.setenv("FAKE_NVML_LACKS", lacks)
    pipeline = Pipeline(tmp_path / "cache", "usage")
    step = as_pickle_step(pipeline, gpus=1)(time.sleep)(0.3)
    began = time.monotonic()
    summary = pipeline.execute()
    assert time.monotonic() - began < 5
    assert step.get_status() == Status.DONE
    assert [(row.gpus, row.gpu_memory) for row in summary.rows] == [(("GPU-a",), None)]


def test_where_no_step_asks_for_a_gpu_the_table_is_as_ever(busy: Path, tmp_path: Path) -> None:
    pipeline = Pipeline(tmp_path / "cache", "usage")
    as_pickle_step(pipeline)(os.getpid)()
    pipeline.execute()
    assert "gpu" not in (tmp_path / "cache" / "pipeline.summary").read_text()
