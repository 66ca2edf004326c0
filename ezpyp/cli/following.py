"""Verbs that tell how far a run is."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from ezpyp.cli.console import FOLDER, few, output_option, say, say_json, size_text
from ezpyp.cluster import restarts, submission
from ezpyp.folder import lock, runs, shares
from ezpyp.folder.summary import duration
from ezpyp.model.naming import SCHEMA_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ezpyp.cluster.restarts import Start
    from ezpyp.folder.runs import Run
    from ezpyp.folder.tallies import Kept, Progress
    from ezpyp.model.shares import Share


@click.command()
@FOLDER
@output_option("text", "json")
def status(folder: str, output: str) -> None:
    """What is done, what runs, what failed.

    Also while it runs, and from another machine: nothing is locked.

    \b
    ezpyp status study_cache
    watch ezpyp status study_cache
    ezpyp status study_cache --output json
    """
    folder = os.path.abspath(folder)
    parts = [_Part.of(share, path) for share, path in shares.found(folder)]
    # Where nothing but shares has run yet, only they can tell.
    run = runs.open(folder) if not parts or os.path.exists(os.path.join(folder, SCHEMA_FILE)) else None
    now = run and run.status
    if output == "json":
        values = _status_values(run, now) if run and now else {"folder": folder}
        say_json({**values, "shares": {each.share: each.values() for each in parts}})
    else:
        say(_status_lines(run, now, time.time()) if run and now else ())
        say(_share_lines(parts, folder, time.time()))


@click.command()
@FOLDER
@click.option("--every", type=click.FloatRange(0.1), default=10.0, show_default=True, help="Seconds between looks.")
def watch(folder: str, every: float) -> int:
    """Follow a run until it ends, and the job that it is part of.

    A line whenever something changed; nothing is locked, and each look reads the folder once. Slurm is asked from
    every 15 seconds to every 3 minutes, where the folder has a job.

    \b
    ezpyp watch study_cache
    ezpyp watch study_cache --every 60
    """
    folder, told, job = os.path.abspath(folder), set[str](), submission.Following(folder)
    held = False
    while True:
        line = job.look(time.monotonic())
        lines = [f"{line}\n"] if line else []
        # Before its first job has begun there is no run to look at.
        run = runs.open(folder) if not line or os.path.exists(os.path.join(folder, SCHEMA_FILE)) else None
        former, held = held, bool(run and lock.held_by(run.folder))
        if former and not held:
            job.hurry()
        if run is not None:
            now = run.status
            lines += [next(_status_lines(run, now, time.time())), *few("running", _positions(now))]
        say(line for line in lines if line not in told)
        told = set(lines)
        if not held and not job.active:
            break
        time.sleep(every)
    if run is None:
        print(f"ezpyp: the job ended before its run began. What it said: ezpyp logs {folder}", file=sys.stderr)
        return 1
    now = run.status
    say([*_run_lines(now, time.time()), *_next_lines(run, now)])
    return 0


@dataclass(frozen=True, slots=True)
class _Part:
    """How far a share is."""

    share: str
    now: Progress

    @classmethod
    def of(cls, share: Share, folder: str) -> _Part:
        return cls(str(share), runs.open(folder).status)

    @property
    def total(self) -> int:
        """What its newest run was to do."""
        started = self.now.run.started
        return (started.part or 0) if started else 0

    @property
    def done(self) -> int:
        """What of that is done. Beside it lie results that others made."""
        started = self.now.run.started
        return self.now.done - started.done if started else 0

    def values(self) -> dict[str, Any]:
        ended = self.now.run.ended
        return {
            "total": self.total,
            "done": self.done,
            "failed": self.now.failed,
            "exit_code": ended.exit_code if ended else None,
            "last_sign": self.now.run.last_sign or None,
            "failures": dict(self.now.failures),
        }

    def told(self, when: float) -> str:
        ended, failed = self.now.run.ended, self.now.failed
        state = f"last sign {duration(max(0.0, when - self.now.run.last_sign))} ago"
        if ended:
            state = f"exit code {ended.exit_code}"
        return f"{self.share}: {self.done:,} of {self.total:,} done{f', {failed:,} failed' * bool(failed)}, {state}"


def _share_lines(parts: Sequence[_Part], folder: str, when: float) -> Iterator[str]:
    """Shares that are not taken in yet; those that are not well first."""
    if not parts:
        return
    done, total = sum(each.done for each in parts), sum(each.total for each in parts)
    over = sum(each.now.run.ended is not None for each in parts)
    yield f"{len(parts):,} shares in {folder}/{shares.FOLDER}: {done:,} of {total:,} done, {over:,} ended\n"
    worst = sorted(parts, key=lambda each: each.now.run.ended is not None and not each.now.run.ended.exit_code)
    yield from few("share", (each.told(when) for each in worst))


def _status_values(run: Run, now: Progress) -> dict[str, Any]:
    started, ended = now.run.started, now.run.ended
    return {
        "folder": run.folder,
        "pipeline_id": run.pipeline_id,
        "total": now.total,
        "done": now.done,
        "failed": now.failed,
        "skipped": now.skipped,
        "not_run": now.not_run,
        "run": started.run if started else None,
        "started": started.when if started else None,
        "ranks": started.ranks if started else None,
        "hosts": started.hosts if started else None,
        "ended": ended.when if ended else None,
        "exit_code": ended.exit_code if ended else None,
        "next_job": start.next or None if (start := _last_start(run, now)) else None,
        "last_sign": now.run.last_sign or None,
        "running": {each.name: each.when for each in now.run.running},
        "progress": {name: {"done": each.done, "total": each.total} for name, each in now.positions.items()},
        "failures": dict(now.failures),
        "sizes": {name: _size_values(run, each) for name, each in now.kept.items()},
        "problems": now.problems,
    }


def _status_lines(run: Run, now: Progress, when: float) -> Iterator[str]:
    counts = [f"{now.done:,} of {now.total:,} done"]
    pairs = (now.failed, "failed"), (now.skipped, "skipped"), (now.not_run, "not run")
    counts += [f"{count:,} {what}" for count, what in pairs if count]
    yield f"Pipeline '{run.pipeline_id}' @ {run.folder}: {', '.join(counts)}\n"
    yield from _run_lines(now, when)
    yield from _next_lines(run, now)
    yield from few("failed", (f"{name}: {reason}" for name, reason in now.failures.items()))
    yield from few("wrong", now.problems)
    largest = sorted(now.kept.items(), key=lambda each: each[1].bytes, reverse=True)
    yield from few("kept", (f"{size_text(each.bytes)} in {_counted(run, each)} of {name}" for name, each in largest))


def _counted(run: Run, kept: Kept) -> str:
    return f"{kept.records:,} records" if run.store == "packed" else f"{kept.files:,} files"


def _size_values(run: Run, kept: Kept) -> dict[str, int]:
    count = {"records": kept.records} if run.store == "packed" else {"files": kept.files}
    return {**count, "bytes": kept.bytes}


def _run_lines(now: Progress, when: float) -> Iterator[str]:
    started, ended = now.run.started, now.run.ended
    if started is None:
        return
    begun = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(started.when))
    where = f"{started.ranks} rank{'s' * (started.ranks > 1)} on {_named(started.hosts)}"
    if ended is not None:
        why = f", {ended.reason}" if ended.reason else ""
        yield f"Last run: {begun}, {where}, {duration(ended.seconds)}, exit code {ended.exit_code}{why}\n"
        return
    yield f"Running since {begun}, {where}; last sign {duration(max(0.0, when - now.run.last_sign))} ago\n"
    running = (each for each in now.run.running if each.name not in now.positions)
    since = (f"{each.name} for {duration(max(0.0, when - each.when))}" for each in running)
    yield from few("running", (*_positions(now), *since))


def _last_start(run: Run, now: Progress) -> Start | None:
    """The start of a job that the last run was, where it has ended."""
    start = restarts.read(run.folder) if now.run.ended and now.run.started else None
    return start if start is not None and now.run.started and start.job == now.run.started.job else None


def _next_lines(run: Run, now: Progress) -> Iterator[str]:
    start = _last_start(run, now)
    if start is not None and (text := restarts.told(start)):
        yield f"{text}\n"


def _positions(now: Progress) -> Iterator[str]:
    return (f"{each.name} at {each}" for each in now.positions.values())


def _named(hosts: Sequence[str]) -> str:
    return ", ".join(hosts[:3]) + (f" and {len(hosts) - 3} more" if len(hosts) > 3 else "")


VERBS = (status, watch)
