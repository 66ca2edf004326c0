"""Kill runs with packed results at random moments: no reported result may be lost or torn, nothing done may run again.

    python -m tests.bench.kills --kills 100 --ranks 2 --bin /path/to/an/mpi/bin

A listener on rank 0 writes down each report as it comes; each step writes down that it runs. Killed are, in turn, the
whole session at once, the launcher, a rank, a process that forks helpers, and helpers. After each kill everything that
was reported is read back, and everything that ran since was not done before.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from ezpyp.encoding import codecs
from ezpyp.model.outcomes import Status
from ezpyp.storage.packed import PackedStore
from tests.conftest import CHECKOUT
from tests.surroundings import OPEN_MPI

SCRIPT = """
import os, sys, time
from pathlib import Path
from ezpyp import Pipeline, as_pickle_step
from ezpyp.folder.events import StepEnded
from ezpyp.run import report
from ezpyp.storage import packed

packed.LARGE = 30_000
here = os.path.dirname(os.path.abspath(__file__))
ran = os.open(f"{here}/ran", os.O_WRONLY | os.O_APPEND | os.O_CREAT)

class Told:
    def __init__(self):
        self.file = os.open(f"{here}/told", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    def hear(self, event):
        if isinstance(event, StepEnded) and event.final:
            os.write(self.file, f"{event.name} {int(event.outcome.status)}\\n".encode())
    def idle(self): ...
    def close(self): ...

report.Lines = Told

def note(name):
    os.write(ran, f"{name}\\n".encode())

pipeline = Pipeline("cache", "killed", store="packed", workers=2)

@as_pickle_step(pipeline)
def quick(x):
    return x * x                      # confined: it can do nothing but compute

@as_pickle_step(pipeline)
def alpha(x):
    note(f"alpha[{x}]")
    return x, bytes(x % 900)

@as_pickle_step(pipeline, keep=False)
def beta(a, q, x):
    note(f"beta[{x}]")
    assert a[0] == x and q == x * x
    return a[0] + 1

@as_pickle_step(pipeline)
def gamma(b, x):
    note(f"gamma[{x}]")
    assert b == x + 1
    time.sleep(0.0002 * (x % 7))
    return b

@as_pickle_step(pipeline)
def large(x):
    note(f"large[{x}]")
    return bytes([x]) * (20_000 + 1_000 * x)

@as_pickle_step(pipeline, allow_failure=True)
def wrong(x):
    if x % 3 == 0:
        raise ValueError(x)
    note(f"wrong[{x}]")
    return x

@as_pickle_step(pipeline, retry=2)
def again(x):
    first = Path(here, f"first-{x}")
    if not first.exists():
        first.touch()
        raise ValueError("not yet")
    note(f"again[{x}]")
    return x

@as_pickle_step(pipeline, cpus=2)
def wide(x):
    note(f"wide[{x}]")
    return sorted(os.sched_getaffinity(0)) and x

@as_pickle_step(pipeline)
def slow(x):
    note(f"slow[{x}]")
    time.sleep(0.15)
    return x

@as_pickle_step(pipeline)
def total(values, sizes, rest):
    note("total")
    return sum(values), sum(map(len, sizes)), [bool(each) for each in rest]

N = 1200
gammas = gamma.map(beta.map(alpha.map(range(N)), quick.map(range(N)), range(N)), range(N))
larges = large.map(range(30))
wrongs = wrong.map(range(30))
agains = again.map(range(20))
if os.environ.get("WIDE"):
    wide.map(range(10))
slows = slow.map(range(4))
for k in range(8):
    pipeline.command(f"sim{k}", ["sh", "-c", f"echo sim{k} >> {here}/ran"], track=False)
last = total(gammas, larges, [wrongs, agains])
summary = pipeline.execute(raise_on_failure=False)
if os.environ.get("PMI_RANK", os.environ.get("OMPI_COMM_WORLD_RANK", "0")) == "0":
    print("END", summary.done, summary.cached, summary.failed, last.result()[0] if summary.done > 0 else "", flush=True)
"""


#: How many steps there are, and characters of a line that tells of one.
_STEPS, _LINE = 4900, 13


def processes(session: int) -> dict[str, list[int]]:
    """The processes of a session by what they are: launcher, rank, nursery, helper, other."""
    found: dict[str, list[int]] = {"launcher": [], "rank": [], "nursery": [], "helper": []}
    parents, pythons = {}, set()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) != session and not _is_ours(path, session):
                continue
            pid = int(path.name)
            parents[pid] = int(fields[1])
            if b"script.py" in (path / "cmdline").read_bytes().split(b"\0")[1]:
                pythons.add(pid)
        except (OSError, IndexError):
            continue
    for pid in parents:
        depth, at = 0, pid
        while at in pythons:
            depth, at = depth + 1, parents.get(at, 0)
        kind = ("launcher", "rank", "nursery", "helper")[min(depth, 3)]
        found[kind].append(pid)
    return found


def _is_ours(path: Path, session: int) -> bool:
    """Open MPI puts ranks into sessions of their own."""
    return f"KILLS_SESSION={os.environ['KILLS_SESSION']}".encode() in (path / "environ").read_bytes().split(b"\0")


def kill(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def wait_for_end(session: int) -> None:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        found = processes(session)
        if not any(found[kind] for kind in ("rank", "nursery", "helper")):
            return
        time.sleep(0.01)
    raise SystemExit(f"still there after 60 s: {processes(session)}")


class Campaign:
    """Folders filled by runs that are killed, until enough were."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder, self.options = folder, options
        self.chance = random.Random(options.seed)
        self.kinds: Counter[str] = Counter()
        self.lost = self.torn = self.twice = self.checked = 0

    def command(self) -> list[str]:
        launch = [str(Path(self.options.bin) / "mpirun"), "-n", str(self.options.ranks)] if self.options.ranks else []
        return [*launch, str(Path(self.options.bin) / "python"), "script.py"]

    def run(self, kill_at: int | None, kind: str) -> str:
        """One run; what it printed."""
        env = {**os.environ, **OPEN_MPI, "PYTHONPATH": str(CHECKOUT), "EZPYP_LINES": "all"}
        if self.options.helpers:
            env["EZPYP_HELPERS"] = str(self.options.helpers)
        if self.options.wide:
            env["WIDE"] = "1"
        env["KILLS_SESSION"] = os.environ["KILLS_SESSION"]
        told = self.folder / "told"
        with (self.folder / "printed").open("w+") as printed:
            run = subprocess.Popen(
                self.command(), cwd=self.folder, env=env, start_new_session=True, stdout=printed, stderr=printed
            )
            if kill_at is not None:
                while run.poll() is None and (not told.exists() or told.stat().st_size < kill_at):
                    time.sleep(0.0005)
                time.sleep(self.chance.random() * 0.02)
                if run.poll() is None:
                    self.kinds[kind] += 1
                    there = processes(run.pid)
                    if kind == "session":
                        kill([pid for each in there.values() for pid in each])
                        kill([pid for each in processes(run.pid).values() for pid in each])
                    elif there[kind]:
                        kill([self.chance.choice(there[kind])])
            try:
                run.wait(90)
            except subprocess.TimeoutExpired:
                raise SystemExit(f"hangs after the kill of a {kind}: {processes(run.pid)}, {self.folder}") from None
            wait_for_end(run.pid)
            printed.seek(0)
            return printed.read()

    def check(self, before: set[str], kind: str) -> set[str]:
        """Hold what was told and what ran since against what is stored; what is done now."""
        told, ran = self.folder / "told", self.folder / "ran"
        store = PackedStore(self.folder / "cache")
        scan = store.records() if (self.folder / "cache/store").exists() else None
        records = {r.name: r for r in scan.records.values()} if scan else {}
        if scan and scan.problems:
            print("PROBLEMS", kind, scan.problems)
            self.torn += len(scan.problems)
        lines = told.read_text().split("\n")[:-1] if told.exists() else []
        for line in lines:
            name, status = line.rsplit(" ", 1)
            record = records.get(name)
            self.checked += 1
            if int(status) == Status.DONE and (record is None or record.outcome.status is not Status.DONE):
                self.lost += 1
                print("LOST", kind, name, record)
        for record in records.values():
            if record.outcome.status is Status.DONE and record.outcome.location and not record.outcome.dropped:
                try:
                    codecs.get(record.outcome.codec).decode(store.get(record))
                except Exception as error:
                    self.torn += 1
                    print("TORN", kind, record.name, error)
        began = Counter(ran.read_text().split()) if ran.exists() else Counter()
        for name, count in began.items():
            if name in before:
                self.twice += 1
                print("AGAIN", kind, name, count)
            elif count > 1 and kind != "helper":
                print("TWICE in one run", kind, name, count)
                self.twice += 1
            elif count > 1:
                reported = [line for line in lines if line.startswith(f"{name} ")]
                if len(reported) > 1:
                    print("REPORTED TWICE", name, reported)
                    self.twice += 1
        for path in (told, ran):
            path.unlink(missing_ok=True)
        return {name for name, r in records.items() if r.outcome.status is Status.DONE}

    def all(self) -> None:
        (self.folder / "script.py").write_text(SCRIPT)
        kinds = ["session", "helper", "nursery", "rank", *(["launcher"] if self.options.ranks else [])]
        kills, reference = 0, ""
        while kills < self.options.kills:
            for each in self.folder.iterdir():
                if each.name != "script.py":
                    shutil.rmtree(each) if each.is_dir() else each.unlink()
            done: set[str] = set()
            for _ in range(self.chance.randrange(1, 6)):
                kind = kinds[kills % len(kinds)]
                left = _LINE * (_STEPS - len(done))
                self.run(self.chance.randrange(left) // self.chance.choice((1, 1, 4, 16)), kind)
                done = self.check(done, kind)
                kills = sum(self.kinds.values())
            printed = self.run(None, "")
            words = next((line for line in printed.splitlines() if line.startswith("END")), printed[-2000:]).split()
            if words[2] != str(len(done)):
                self.twice += 1
                print(f"CACHED {words[2]}, but {len(done)} were done")
            self.check(done, "end")
            end = " ".join([words[1], *words[3:]])
            reference = reference or end
            if end != reference:
                self.torn += 1
                print("DIFFERS", end, reference)
            print(f"{kills} kills, {self.checked} reports: {end}", flush=True)


def main() -> None:
    """Read the arguments and go."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=0)
    parser.add_argument("--helpers", type=int, default=0)
    parser.add_argument("--wide", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--bin", default=str(Path(sys.executable).parent))
    options = parser.parse_args()
    os.environ["KILLS_SESSION"] = f"{os.getpid()}"
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(Path(folder), options)
        campaign.all()
        print(
            "in all:",
            campaign.kinds,
            f"{campaign.checked} reports, {campaign.lost} lost, {campaign.torn} torn, {campaign.twice} ran again",
        )
        if campaign.lost or campaign.torn or campaign.twice:
            raise SystemExit(1)


if __name__ == "__main__":
    main()
