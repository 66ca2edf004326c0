"""Verbs that look after folders: check, merge, pack, clean, and show where they come from."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import click

from ezpyp.cli.console import FOLDER, TAKE_OVER, few, output_option, say, say_json, size_text
from ezpyp.cluster import submission
from ezpyp.folder import archive, lock, runs
from ezpyp.folder.summary import duration
from ezpyp.model import scratch
from ezpyp.upkeep import checking, cleaning, merging, packing, repacking

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from ezpyp.folder.events import History, RunStarted
    from ezpyp.folder.runs import Run


@click.command()
@FOLDER
@output_option("text", "json")
def check(folder: str, output: str) -> int:
    """Verify every checksum.

    Reads all results and accounts for every file: what is torn, emptied, foreign or orphaned is named. Exit code 0
    if all is sound, else 1.

    \b
    ezpyp check study_cache
    """
    found = checking.check(folder)
    if output == "json":
        say_json(
            {"sound": found.sound, **{k: getattr(found, k) for k in ("folder", "results", "bytes", "dead", "wrong")}}
        )
        return int(not found.sound)
    say(f"{problem.path}: {problem.what}\n" for problem in found.wrong)
    count = f"{len(found.wrong):,} files are wrong" if found.wrong else "every file is sound"
    dead = f"; {size_text(found.dead)} no longer count (ezpyp repack takes them back)" if found.dead else ""
    say([f"{found.folder}: {found.results:,} results ({size_text(found.bytes)}) verified; {count}{dead}\n"])
    return int(not found.sound)


@click.command()
@click.argument("folders", metavar="FOLDER...", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False))
@click.option("--into", required=True, type=click.Path(file_okay=False), help="A new folder, or one of the pipeline's.")
def merge(folders: tuple[str, ...], into: str) -> int:
    """Bring the results of folders together.

    Of one pipeline, or of shares of it: a result is found by its fingerprint, and verified before it is taken. Exit
    code 1 if some were torn, and are missing therefore.

    \b
    ezpyp merge study_a study_b --into study_cache
    """
    found = merging.merge(folders, into)
    say(merging.told(found))
    return int(bool(found.wrong))


@click.command()
@FOLDER
@click.option("--store", type=click.Choice(["files", "packed"]), help="Let it keep results so from now on.")
def repack(folder: str, store: str | None) -> int:
    """Write all results of a folder anew.

    Takes back the room of what no longer counts, and converts between a file pair a step and packed results. Every
    result is verified; at every moment the folder is whole. Refused while a run holds the folder. Exit code 1 if
    results were torn, and are gone therefore.

    \b
    ezpyp repack study_cache
    ezpyp repack study_cache --store packed
    """
    found = repacking.repack(folder, store)
    say(f"  not taken: {problem.path}: {problem.what}\n" for problem in found.wrong)
    sizes = f"{size_text(found.before)} before, {size_text(found.after)} now"
    say([f"{found.folder} ({found.kind}): {found.records:,} records, {sizes}\n"])
    return int(bool(found.wrong))


@click.command()
@FOLDER
@click.argument("target", metavar="FILE.tar", type=click.Path(dir_okay=False))
def pack(folder: str, target: str) -> None:
    """Write a cache folder into one file.

    Everything but the lock; refused while a run holds the folder. FILE may end in .tar, .tar.gz, .tar.bz2 or .tar.xz.
    Unpacked anywhere, a run goes on from there.

    \b
    ezpyp pack study_cache study.tar
    """
    count = packing.pack(folder, target)
    print(f"{count:,} files ({size_text(os.path.getsize(target))}): {target}")


@click.command()
@FOLDER
@click.argument("steps", metavar="[STEP]...", nargs=-1)
@click.option("--old", is_flag=True, help="Only former versions of results.")
@click.option("--failed", is_flag=True, help="Only what is left of steps that failed or were skipped.")
@click.option("--dry-run", is_flag=True, help="Only say which files.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@TAKE_OVER
def clean(
    folder: str, steps: tuple[str, ...], old: bool, failed: bool, dry_run: bool, yes: bool, take_over: bool
) -> None:
    """Remove a cache folder, or part of it.

    Everything that ezpyp wrote into it: results, logs, history; and the folders that steps which failed or were killed
    left on the scratch of this machine. With STEP, --old or --failed only that; steps that are removed run again. Other
    files are left, and the folder with them. A folder that is no cache, or in use, is refused.

    \b
    ezpyp clean study_cache
    ezpyp clean study_cache 'train*' --failed
    ezpyp clean study_cache --old --dry-run
    """
    run = runs.open(folder)
    ours = _chosen(run, steps, old, failed)
    size = cleaning.size_of(run, ours)
    whole = not (steps or old or failed)
    rooms = scratch.abandoned(run.folder) if whole else []
    if dry_run:
        end = f"{len(ours):,} files ({size_text(size)}). Nothing was removed.\n"
        say([*(f"{path}\n" for path in ours), *(f"{path}/\n" for path in rooms), end])
        return
    with lock.acquire(run.folder, take_over=take_over):
        if not yes and ours:
            click.confirm(f"Remove {len(ours):,} files ({size_text(size)}) of '{run.pipeline_id}'?", abort=True)
        cleaning.remove(run.folder, [*ours, *([os.path.join(run.folder, lock.NAME)] if whole else [])])
        for room in rooms:
            scratch.remove(room)
    left = f" Other files are left in {run.folder}." if whole and os.path.exists(run.folder) else ""
    print(f"Removed {len(ours):,} files.{left}")


def _chosen(run: Run, steps: tuple[str, ...], old: bool, failed: bool) -> list[str]:
    if not (steps or old or failed):
        return cleaning.files(run)
    found = cleaning.of_shelf(run) if old else []
    if steps or failed:
        names = dict.fromkeys(name for pattern in steps or ("*",) for name in run.names(pattern))
        found += cleaning.of_steps(run, names, failed=failed)
    return found


@click.command()
@FOLDER
@click.option("--code", is_flag=True, help="The copies of the code that jobs run, and where they lie.")
@output_option("text", "json")
def show(folder: str, code: bool, output: str) -> None:
    """Where a folder comes from.

    The command, the commit, the packages, the machine and the environment of the newest run, and the runs before it.

    \b
    ezpyp show study_cache
    ezpyp show study_cache --code
    ezpyp show study_cache --output json
    """
    if code:
        copies = submission.copies(os.path.abspath(folder))
        say_json(copies) if output == "json" else say(_code_lines(copies))
        return
    run = runs.open(folder)
    history = archive.runs_of(run.folder)
    if output == "json":
        say_json(_origin(run, history))
    else:
        say(_origin_lines(run, history))


def _code_lines(copies: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    if not copies:
        yield "No job of this folder has a copy of its code (ezpyp submit makes one).\n"
    for path, each in copies.items():
        yield f"{path}: {', '.join(f'job {job}' for job in each['jobs']) or 'no job'}\n"
        yield from (f"  {file}  was {origin}\n" for file, origin in each["files"].items())


def _origin(run: Run, history: list[tuple[str, History]]) -> dict[str, Any]:
    started = history[0][1].started if history else None
    return {
        "folder": run.folder,
        "pipeline_id": run.pipeline_id,
        "script": run.script,
        "packages": run.packages,
        "newest": started,
        "runs": [
            {"run": name, "started": each.started, "ended": each.ended, "last_sign": each.last_sign}
            for name, each in history
        ],
    }


def _origin_lines(run: Run, history: list[tuple[str, History]]) -> Iterator[str]:
    yield f"Pipeline '{run.pipeline_id}' @ {run.folder}\n"
    started = history[0][1].started if history else None
    named = {"script": run.script, **(_named(started) if started else {})}
    named["packages"] = ", ".join(f"{name} {version}" for name, version in run.packages.items())
    yield from (f"  {name:<11} {text}\n" for name, text in named.items() if text)
    for name, value in (started.environment if started else {}).items():
        yield f"  {'environment':<11} {name}={value}\n"
    yield from few("run", (_run_line(name, each) for name, each in history), most=30)


def _named(started: RunStarted) -> dict[str, str]:
    dirty = {True: " and changes that are not committed", False: "", None: ""}[started.dirty]
    return {
        "command": " ".join(started.command),
        "directory": started.directory,
        "git": f"{started.commit}{dirty}" if started.commit else "",
        "Python": started.python,
        "MPI": f"{started.mpi}, {started.ranks} ranks" if started.mpi else "",
        "hosts": ", ".join(started.hosts),
        "GPUs": "; ".join(f"{host}: {', '.join(gpus)}" for host, gpus in started.gpus.items()),
        "Slurm job": started.job,
    }


def _run_line(name: str, history: History) -> str:
    started, ended = history.started, history.ended
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(started.when)) if started else "?"
    if ended is None:
        return f"{name}: {when}, did not end by itself"
    done = ended.done - ended.cached
    return f"{name}: {when}, {duration(ended.seconds)}, {done:,} steps done, exit code {ended.exit_code}"


VERBS = (check, clean, merge, pack, repack, show)
