"""Runs on several hosts: with one folder, or not; with clocks that differ; as on one host; and what if one is lost."""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

import ezpyp
from ezpyp.folder.lock import held_by
from ezpyp.folder.summary import Row
from ezpyp.model.outcomes import Status
from tests.lab.test_lab import FITTING, STUDY

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Launcher
    from tests.lab.conftest import Hosts, Slurm

#: Every total is of results of all hosts, of which some are large. Each host after the first is an hour later.
MANY = """
import os, pathlib, sys, time
from ezpyp import Pipeline, as_pickle_step

kind, count = sys.argv[1], int(sys.argv[2])
shift = {name: -3600 * k for k, name in enumerate(sys.argv[3:])}.get(os.uname().nodename, 0)
if shift:
    true_time = time.time
    time.time = lambda: true_time() + shift

pipeline = Pipeline("cache", "many", store=kind)

@as_pickle_step(pipeline)
def large(k):
    return bytes([k]) * 2_000_000

@as_pickle_step(pipeline)
def meet(k):
    pathlib.Path(f"here{k}").touch()
    until = time.monotonic() + 30
    while not all(os.path.exists(f"here{other}") for other in range(count)):
        if time.monotonic() > until:
            raise TimeoutError("the others did not come")
        time.sleep(0.01)
    return {"k": k}

@as_pickle_step(pipeline)
def total(n, met, texts):
    return n + sum(each["k"] for each in met) + sum(each[-1] for each in texts)

@as_pickle_step(pipeline)
def broken(n):
    raise ValueError(f"no {n}")

@as_pickle_step(pipeline)
def after(n):
    return n

met, texts = meet.map(range(count)), large.map(range(6))
totals = [total(n, met, texts) for n in range(12)]
after.map([broken(1), totals[0]])
pipeline.execute()
"""


@pytest.mark.parametrize("count", [2, 3])
def test_results_are_read_across_hosts(hosts: Hosts, mpirun: Launcher, count: int) -> None:
    (mpirun.folder / "study.py").write_text(STUDY)
    done = hosts.mpirun(mpirun, count, "study.py", str(count))
    assert done.returncode == 0, done.stdout + done.stderr
    assert ezpyp.open(mpirun.folder / "cache")["met"] == sorted(hosts.names[:count])
    assert "UCX" not in done.stdout + done.stderr  # signs of life are all taken


def rows(folder: Path) -> list[Row]:
    """Those of the summary, without what may differ: a packed result lies in a segment of the rank that made it."""
    found = ezpyp.open(folder).summary().rows
    return [row._replace(rank=0, host="", seconds=0.0, result=row.result.rpartition("#")[2]) for row in found]


@pytest.mark.parametrize("kind", ["files", "packed"])
def test_three_hosts_whose_clocks_differ_do_what_one_does(hosts: Hosts, mpirun: Launcher, kind: str) -> None:
    """And go on from each other: what was made last counts, whatever the clock said."""
    (mpirun.folder / "study.py").write_text(MANY)
    apart = hosts.mpirun(mpirun, 3, "study.py", kind, "3", *hosts.names)
    assert apart.returncode, apart.stdout + apart.stderr
    seen = ezpyp.open(mpirun.folder / "cache")
    outcomes = [seen.outcome(f"meet[{k}]") for k in range(3)]
    assert {outcome.host for outcome in outcomes if outcome} == {*hosts.names}
    assert seen["total[11]"] == 11 + 3 + 15
    found = rows(mpirun.folder / "cache")
    (mpirun.folder / "cache").rename(mpirun.folder / "apart")
    alone = {"EZPYP_WORKERS": "3", "EZPYP_ON_CHANGE": "rerun"}
    assert mpirun.run(0, mpirun.folder / "study.py", kind, "3", env=alone).returncode == 1
    assert rows(mpirun.folder / "cache") == found
    (mpirun.folder / "study.py").write_text(MANY.replace("return n + sum", "return 100 * n + sum"))
    late_now_early = (kind, "3", *hosts.names[::-1])
    edited = hosts.mpirun(mpirun, 3, "study.py", *late_now_early, wrap=("env", "EZPYP_ON_CHANGE=rerun"))
    assert "22 done (9 before), 1 failed, 1 skipped" in edited.stdout, edited.stdout + edited.stderr
    again = mpirun.run(0, mpirun.folder / "study.py", kind, "3", env=alone)
    assert "22 done (all before), 1 failed, 1 skipped" in again.stdout, again.stdout + again.stderr
    assert ezpyp.open(mpirun.folder / "cache")["total[11]"] == 1100 + 3 + 15


def test_a_folder_that_hosts_do_not_share_is_refused_at_the_start(hosts: Hosts, mpirun: Launcher) -> None:
    """One host has a file system of its own at that path, in the namespace of its rank alone."""
    (mpirun.folder / "study.py").write_text(STUDY)
    (mpirun.folder / "cache").mkdir()
    other = mpirun.folder / "other"
    other.write_text(f'#!/bin/sh\n[ "$(hostname)" != {hosts.names[1]} ] || mount -t tmpfs none cache\nexec "$@"\n')
    other.chmod(0o755)
    done = hosts.mpirun(mpirun, 3, "study.py", "3", wrap=(str(other),), timeout=20)
    assert done.returncode == 3, done.stdout + done.stderr
    first, second, _ = hosts.names
    where = (
        f"The hosts do not share the cache folder {mpirun.folder}/cache of rank 0 ({first}): rank 1 ({second}) cannot"
    )
    assert done.stderr.count(where) == 1, done.stderr
    assert "Give Pipeline() a folder on a file system that all hosts mount" in done.stderr
    assert not [*mpirun.folder.glob("here*")]
    again = hosts.mpirun(mpirun, 3, "study.py", "3")
    assert again.returncode == 0, again.stdout + again.stderr


def test_memory_of_the_nodes_is_no_cache_for_two(slurm: Slurm, mpirun: Launcher) -> None:
    """Every node has a /dev/shm of its own."""
    (mpirun.folder / "study.py").write_text(STUDY.replace('"cache"', '"/dev/shm/ezpyp-test-cache"'))
    done = slurm.run(
        *("srun", "--nodes=2", "--ntasks=4", f"--mpi={FITTING[mpirun.name]}", "python", "study.py", "4"),
        env=mpirun.environment(),
        cwd=mpirun.folder,
        timeout=20,
    )
    assert done.returncode == 3, done.stderr
    assert "The hosts do not share the cache folder /dev/shm/ezpyp-test-cache" in done.stderr
    assert slurm.nodes[1] in done.stderr
    assert not [*mpirun.folder.glob("here*")]


#: One step on each host waits until it is let go.
WAIT = """
import os, pathlib, time
from ezpyp import Pipeline, as_json_step

pipeline = Pipeline("cache", "wait")

@as_json_step(pipeline)
def quick(k):
    return k

@as_json_step(pipeline)
def wait(k):
    pathlib.Path(f"at-{os.uname().nodename}").touch()
    until = time.monotonic() + 60
    while not os.path.exists("go") and time.monotonic() < until:
        time.sleep(0.05)
    return k

quick.map(range(20))
wait.map(range(3))
pipeline.execute()
"""


def all_wait(names: tuple[str, ...], folder: Path) -> bool:
    return all((folder / f"at-{name}").exists() for name in names)


@pytest.mark.parametrize(("count", "cut"), [(2, 0), (2, 1), (3, 0), (3, 2)])
def test_a_host_that_is_cut_from_the_network_ends_the_run(hosts: Hosts, mpirun: Launcher, count: int, cut: int) -> None:
    """Neither MPI notices. On each side all ranks end, and rank 0 writes what it knows; so does the launcher, which it
    does not reach. Once the network is there again, the next run goes on.
    """
    names, folder = hosts.names[:count], mpirun.folder
    (folder / "study.py").write_text(WAIT)
    command = hosts.command(mpirun, count, "study.py", wrap=("env", "EZPYP_LOST_AFTER=1s"))
    with hosts.running(mpirun, *command, until=partial(all_wait, names, folder)) as run:
        hosts.strike("cut", names[cut])
        try:
            assert run.wait(20)
            seen = ezpyp.open(folder / "cache")
            until = time.monotonic() + 20
            while (ended := seen.status.run.ended) is None or held_by(str(folder / "cache")) or hosts.at_work(names):
                assert time.monotonic() < until, f"{ended} {held_by(str(folder / 'cache'))} {hosts.at_work(names)}"
                time.sleep(0.05)
        finally:
            hosts.strike("heal", names[cut])
            hosts.strike("crash", names[cut])  # Open MPI's daemon there holds the output open
        text, _ = run.communicate(timeout=10)
    if cut:
        assert f"Nothing was heard of rank {cut} ({names[cut]}) for 1 s" in text, text
        others = f"lost rank {cut} ({names[cut]})"
    else:  # it cannot tell those outside
        assert f"Nothing was heard of rank 0 ({names[0]}) for 1 s" in text, text
        others = "lost rank "
    assert (ended.exit_code, ended.done, ended.not_run) == (4, 20, 3)
    assert ended.reason.startswith(others)
    assert [row.status for row in seen.summary().rows].count(Status.NOT_RUN) == 3
    (folder / "go").touch()
    again = hosts.mpirun(mpirun, count, "study.py")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "23 done (20 before)" in again.stdout


def test_ezpyp_run_says_4_where_a_host_was_cut(hosts: Hosts, mpirun: Launcher) -> None:
    """Whatever the launcher makes of it."""
    if mpirun.name == "openmpi":
        pytest.skip("told of a list of hosts by a variable, it fills the first of them")
    (mpirun.folder / "study.py").write_text(WAIT)
    command = ["env", "EZPYP_LOST_AFTER=1s", str(mpirun.bin / "python"), "-m", "ezpyp", "run", "-n", "3", "study.py"]
    with hosts.running(mpirun, *command, until=partial(all_wait, hosts.names, mpirun.folder)) as run:
        hosts.strike("cut", hosts.names[1])
        try:
            assert run.wait(20) == 4
        finally:
            hosts.strike("heal", hosts.names[1])
            hosts.strike("crash", hosts.names[1])
        text, _ = run.communicate(timeout=10)
    assert f"Nothing was heard of rank 1 ({hosts.names[1]}) for 1 s" in text
    assert "the run was lost" not in text


def test_a_job_that_was_suspended_goes_on(hosts: Hosts, mpirun: Launcher) -> None:
    """As `scontrol suspend` does it, for far longer than it takes to be given up."""
    (mpirun.folder / "study.py").write_text(WAIT)
    command = hosts.command(mpirun, 3, "study.py", wrap=("env", "EZPYP_LOST_AFTER=1s"))
    with hosts.running(mpirun, *command, until=partial(all_wait, hosts.names, mpirun.folder)) as run:
        ranks = hosts.at_work(hosts.names)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for rank in ranks:
                os.kill(rank, number)
            time.sleep(3)  # and then for as long, for somebody might be missed
        (mpirun.folder / "go").touch()
        text, _ = run.communicate(timeout=30)
    assert run.returncode == 0, text
    assert "23 done" in text


def test_a_host_that_is_lost_ends_the_run_and_the_next_goes_on(hosts: Hosts, mpirun: Launcher) -> None:
    """Meanwhile any host that sees the folder can say how far the run is."""
    (mpirun.folder / "study.py").write_text(WAIT)
    command = [str(mpirun.bin / "python"), "-m", "ezpyp", "run", "-n", "3", "study.py"]
    if mpirun.name == "openmpi":  # told of a list of hosts by a variable, it fills the first of them
        command = hosts.command(mpirun, 3, "study.py")
    with hosts.running(mpirun, *command, until=partial(all_wait, hosts.names, mpirun.folder)) as run:
        status = ezpyp.open(mpirun.folder / "cache").status
        assert status.run.started is not None
        assert (status.run.started.hosts, status.run.ended) == (hosts.names, None)
        assert status.not_run >= 3
        hosts.strike("crash", hosts.names[2])
        text, _ = run.communicate(timeout=30)
    if mpirun.name == "openmpi":
        # It notices that the connection is gone, and names the host; or that nobody answers on it, and does not.
        assert f"on node {hosts.names[2]}" in text or "failed to report back" in text or "iptables" in text
    else:  # its launcher does not say who
        assert run.returncode not in (0, 1), text
        assert "ezpyp: the run was lost" in text
    until = time.monotonic() + 20
    while held_by(str(mpirun.folder / "cache")):
        assert time.monotonic() < until, "rank 0 lives"
        time.sleep(0.05)
    (mpirun.folder / "go").touch()
    again = hosts.mpirun(mpirun, 3, "study.py")
    assert again.returncode == 0, again.stdout + again.stderr
    assert "23 done (2" in again.stdout
