"""Runs whose hosts share a folder by a network file system, each by a client of its own: what one has not sent, no
other sees, and a crash loses it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import ezpyp
from ezpyp.upkeep.checking import check
from tests.lab.test_hosts import MANY, rows

if TYPE_CHECKING:
    from ezpyp.folder.summary import Row
    from tests.conftest import Launcher
    from tests.lab.conftest import Disk, Hosts


@pytest.mark.parametrize("kind", ["files", "packed"])
def test_hosts_read_from_each_other_what_one_host_would(hosts: Hosts, disk: Disk, mpirun: Launcher, kind: str) -> None:
    """Also where results are large, and are read at once."""
    cache = f"{mpirun.name}-{kind}"
    (mpirun.folder / "study.py").write_text(MANY.replace('"cache"', f'"{disk.root}/{cache}"'))
    apart = hosts.mpirun(mpirun, 3, "study.py", kind, "3", wrap=disk.wrap)
    assert "22 done, 1 failed, 1 skipped" in apart.stdout, apart.stdout + apart.stderr
    found = [named(disk.seen_by(name) / cache) for name in hosts.names]
    assert found[0] == found[1] == found[2]
    assert {row.host for row in ezpyp.open(disk.seen_by(hosts.names[0]) / cache).summary().rows} >= {*hosts.names}
    (mpirun.folder / "study.py").write_text(MANY)
    assert mpirun.run(0, mpirun.folder / "study.py", kind, "3", env={"EZPYP_WORKERS": "3"}).returncode == 1
    assert named(mpirun.folder / "cache") == found[0]


def named(cache: Path) -> list[Row]:
    """The summary, with the names of files alone."""
    return [row._replace(result=row.result.rpartition("/")[2]) for row in rows(cache)]


#: Short steps, and sums over those of all hosts. Who ran which, and how often, is counted on this machine's own disk.
SHORT = """
import os, pathlib, sys, time
from ezpyp import Pipeline, as_pickle_step

pipeline = Pipeline(sys.argv[1], "short", store=sys.argv[2])

@as_pickle_step(pipeline)
def short(k):
    time.sleep(0.002)
    with open("ran", "a") as file:
        file.write(f"{k}\\n")
    return k * "x"

@as_pickle_step(pipeline)
def both(a, b):
    return len(a) + len(b)

@as_pickle_step(pipeline)
def total(values):
    return sum(values)

found = [short(k) for k in range(300)]
total([both(found[k], found[(7 * k + 1) % 300]) for k in range(300)])
pipeline.execute()
"""
TOTAL = sum(k + (7 * k + 1) % 300 for k in range(300))


@pytest.mark.parametrize(("kind", "lost"), [("files", 1), ("packed", 1), ("packed", 0)])
def test_a_host_that_crashes_with_what_it_had_not_sent_costs_nothing_else(
    hosts: Hosts, disk: Disk, mpirun: Launcher, kind: str, lost: int
) -> None:
    """What is left is whole, and the next run does the rest."""
    name = f"{mpirun.name}-{kind}-{lost}"
    (mpirun.folder / "study.py").write_text(SHORT)
    ran = mpirun.folder / "ran"
    told = hosts.command(mpirun, 2, "study.py", str(disk.root / name), kind, wrap=disk.wrap)
    with hosts.running(mpirun, *told, until=lambda: ran.exists() and len(ran.read_text().split()) > 100) as run:
        disk.strike("crash", hosts.names[lost])
        hosts.strike("crash", hosts.names[lost])
        try:
            text, _ = run.communicate(timeout=60)
        finally:
            disk.strike("mend", hosts.names[lost])
    assert "Traceback" not in text
    cache = disk.seen_by(hosts.names[lost]) / name
    kept = len(known := done(cache))
    again = hosts.mpirun(mpirun, 2, "study.py", str(disk.root / name), kind, wrap=disk.wrap)
    assert again.returncode == 0, again.stdout + again.stderr
    assert f"601 done ({kept:,} before)" in again.stdout
    assert ezpyp.open(cache)["total"] == TOTAL
    # Drafts are left, and of the run that was cut short there may be no history.
    wrong = [found for found in check(cache).wrong if "left by a process that was killed" not in found.what]
    assert {Path(found.path).parent.name for found in wrong} <= {"journal"}
    times = ran.read_text().split()
    assert all(times.count(str(k)) == 1 for k in range(300) if f"short[{k}]" in known), (
        "nothing that was kept ran again"
    )


def done(cache: Path) -> set[str]:
    """The steps with results, all of which are whole."""
    found = ezpyp.open(cache)
    names = {row.name for row in found.summary().rows if row.status == 0}
    assert all(found[name] is not None for name in names)
    return names
