"""The command line: one function a verb."""

from __future__ import annotations

import itertools
import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any, NoReturn

import click

import ezpyp
from ezpyp.cli import changes, folders, jobs
from ezpyp.cli.console import (
    FOLDER,
    STEP,
    TAKE_OVER,
    WHERE,
    environment,
    few,
    jsonable,
    load,
    output_option,
    part_options,
    say,
    say_json,
    size_text,
)
from ezpyp.cluster import submission
from ezpyp.errors import EzpypError, InitializationError, ResultUnavailable
from ezpyp.folder import lock, runs
from ezpyp.folder.summary import COLUMNS, duration, values
from ezpyp.inspection import drawing
from ezpyp.model.naming import SCHEMA_FILE
from ezpyp.model.settings import ON_CHANGE
from ezpyp.model.steps import Status
from ezpyp.system import launch
from ezpyp.system.files import write_whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ezpyp.folder.runs import Progress, Run
    from ezpyp.folder.summary import Row, Summary
    from ezpyp.inspection.drawing import Node


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The program `ezpyp`: errors of the user's are one line, not a traceback."""
    try:
        code = ezpyp_command.main(argv, prog_name="ezpyp", standalone_mode=False)
    except EzpypError as error:
        print(f"ezpyp: {error}", file=sys.stderr)
        code = error.exit_code
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("ezpyp: stopped", file=sys.stderr)
        code = 130
    sys.exit(code if isinstance(code, int) else 0)


@click.group(name="ezpyp", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def ezpyp_command() -> None:
    """Run pipelines of decorated Python functions, and look at what they left behind.

    FOLDER is the cache folder that the script gives to Pipeline(). STEP is a step's name; `train` also means
    train[0], train[1], …, and * and ? stand for any characters.

    \b
    ezpyp run study.py -n 4            on four MPI ranks
    ezpyp plan study.py                what a run would do, and why
    ezpyp status study_cache           what is done, what runs, what failed
    ezpyp why study_cache best         why it is as it is
    ezpyp result study_cache best
    ezpyp log study_cache 'train[3]'
    """


@ezpyp_command.command(context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True})
@click.option("-n", "ranks", type=click.IntRange(1), metavar="RANKS", help="MPI ranks. Without it no MPI is used.")
@click.option("--all-output", is_flag=True, help="Show what the script prints on every rank, not only on rank 0.")
@TAKE_OVER
@click.argument("script", type=click.Path(exists=True, dir_okay=False))
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@part_options
def run(ranks: int | None, all_output: bool, take_over: bool, script: str, args: tuple[str, ...], **part: Any) -> int:
    """Run a script, alone or on MPI ranks.

    The mpirun is the one that belongs to the MPI that mpi4py uses.

    Options of ezpyp may also stand right after SCRIPT. All else, and all after --, is given to the script.

    \b
    ezpyp run study.py
    ezpyp run study.py -n 4 --fast     the script gets --fast
    ezpyp run -n 4 study.py -- -n 10   the script gets -n 10
    ezpyp run study.py --on-change rerun --only 'train*'

    Exit codes: 0 done, 1 a step failed, 3 refused before running, 4 aborted, 85 stopped (the same command goes on),
    130 stopped by the user.
    """
    later, rest = _leading_options(args)
    wishes = {key: later.get(key) or value for key, value in part.items()}
    if take_over or "take_over" in later:
        wishes["take_over"] = "1"
    with environment(wishes):
        return launch.run(script, rest, ranks=later.get("ranks", ranks), all_output=all_output or "all_output" in later)


_FLAGS = {"--all-output": "all_output", "--take-over": "take_over"}
_VALUES = {"-n": "ranks", "--on-change": "on_change", "--only": "only", "--until": "until", "--from": "from_"}


def _leading_options(args: tuple[str, ...]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Our options at the head of what follows the script's name, and the script's own words."""
    found: dict[str, Any] = {}
    rest = list(args)
    while rest:
        word = rest.pop(0)
        option, sign, value = word.partition("=")
        if word.startswith("-n") and word[2:].isdecimal():
            option, sign, value = "-n", "=", word[2:]
        if word in _FLAGS:
            found[_FLAGS[word]] = True
        elif option in _VALUES and (sign or rest):
            _note(found, option, value if sign else rest.pop(0))
        else:
            return found, tuple(rest if word == "--" else [word, *rest])
    return found, ()


def _note(found: dict[str, Any], option: str, value: str) -> None:
    if option == "-n":
        found["ranks"] = _rank_count(value)
    elif option == "--on-change":
        if value not in ON_CHANGE:
            raise click.UsageError(f"--on-change {value}: choose one of {', '.join(ON_CHANGE)}.")
        found["on_change"] = value
    else:
        found[_VALUES[option]] = (*found.get(_VALUES[option], ()), value)


def _rank_count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise click.UsageError(f"-n {text}: give the number of ranks, 1 or more (-- before options of the script).")
    return int(text)


@ezpyp_command.command()
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
    run = runs.open(folder)
    now = run.status
    if output == "json":
        say_json(_status_values(run, now))
    else:
        say(_status_lines(run, now, time.time()))


@ezpyp_command.command()
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
    say(_run_lines(run.status, time.time()))
    return 0


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
        "last_sign": now.run.last_sign or None,
        "running": {each.name: each.when for each in now.run.running},
        "progress": {name: {"done": each.done, "total": each.total} for name, each in now.positions.items()},
        "failures": dict(now.failures),
        "sizes": {name: {"files": files, "bytes": size} for name, (files, size) in now.sizes.items()},
        "problems": now.problems,
    }


def _status_lines(run: Run, now: Progress, when: float) -> Iterator[str]:
    counts = [f"{now.done:,} of {now.total:,} done"]
    pairs = (now.failed, "failed"), (now.skipped, "skipped"), (now.not_run, "not run")
    counts += [f"{count:,} {what}" for count, what in pairs if count]
    yield f"Pipeline '{run.pipeline_id}' @ {run.folder}: {', '.join(counts)}\n"
    yield from _run_lines(now, when)
    yield from few("failed", (f"{name}: {reason}" for name, reason in now.failures.items()))
    yield from few("wrong", now.problems)
    largest = sorted(now.sizes.items(), key=lambda each: each[1][1], reverse=True)
    yield from few("kept", (f"{size_text(size)} in {files:,} files of {name}" for name, (files, size) in largest))


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


def _positions(now: Progress) -> Iterator[str]:
    return (f"{each.name} at {each}" for each in now.positions.values())


def _named(hosts: Sequence[str]) -> str:
    return ", ".join(hosts[:3]) + (f" and {len(hosts) - 3} more" if len(hosts) > 3 else "")


@ezpyp_command.command()
@FOLDER
@output_option("table", "csv", "json")
def summary(folder: str, output: str) -> None:
    """The table of all steps.

    As it stands now, also while it runs.

    \b
    ezpyp summary study_cache
    ezpyp summary study_cache --output csv > steps.csv
    """
    found = runs.open(folder).summary()
    if output == "csv":
        say(_csv_lines(found.rows))
    elif output == "json":
        say_json(_summary_values(found))
    else:
        say(found.text())


def _summary_values(found: Summary) -> dict[str, Any]:
    totals = (
        "folder",
        "pipeline_id",
        "done",
        "failed",
        "skipped",
        "not_run",
        "allowed",
        "cached",
        "seconds",
        "exit_code",
    )
    rows = [dict(zip(COLUMNS, _values(row), strict=True)) for row in found.rows]
    return {**{key: getattr(found, key) for key in totals}, "rows": rows}


@ezpyp_command.command()
@FOLDER
@STEP
@WHERE
@output_option("text", "json")
def result(folder: str, step: str, where: tuple[str, ...], output: str) -> None:
    """Print the results of steps.

    The result of the step that STEP names, or names and results of all steps that STEP and --where mean.

    \b
    ezpyp result study_cache best
    ezpyp result study_cache 'train*' --where lr=0.1
    ezpyp result study_cache train --output json
    """
    run = runs.open(folder)
    if step in run.index and not where:
        value = run[step]
        say_json(value) if output == "json" else say([f"{value}\n"])
        return
    names = run.names(step, **_wanted(where))
    found = run.select(step, **_wanted(where))
    say_json(found) if output == "json" else say(f"{name}: {value}\n" for name, value in found.items())
    if missing := len(names) - len(found):
        print(f"ezpyp: {missing:,} of {len(names):,} steps have no result (ezpyp status {folder})", file=sys.stderr)
    if not found:
        raise ResultUnavailable(f"None of the {len(names):,} steps that '{step}' means has a result.")


@ezpyp_command.command()
@FOLDER
@STEP
@WHERE
def log(folder: str, step: str, where: tuple[str, ...]) -> None:
    """What steps printed, and how they failed.

    \b
    ezpyp log study_cache 'train[3]'
    ezpyp log study_cache train --where lr=0.1
    """
    run = runs.open(folder)
    names = [step] if step in run.index and not where else run.names(step, **_wanted(where))
    for name in names:
        if len(names) > 1:
            say([f"==> {name} <==\n"])
        say(_log_lines(run, name, alone=len(names) == 1))


def _log_lines(run: Run, name: str, *, alone: bool) -> Iterator[str]:
    outcome = run.outcome(name)
    if outcome is None and not alone:
        yield "(has not run)\n"
        return
    text = run.log(name)
    yield text if text.endswith("\n") or not text else f"{text}\n"
    if outcome is not None and outcome.status in (Status.FAILED, Status.SKIPPED):
        yield f"{outcome.traceback}\n" if outcome.traceback else f"{outcome.note}\n"


@ezpyp_command.command()
@FOLDER
@STEP
@WHERE
@click.option("-o", "--out", required=True, type=click.Path(dir_okay=False), help="A file .csv, .json or .parquet.")
def export(folder: str, step: str, where: tuple[str, ...], out: str) -> None:
    """Write results as a table.

    A row a step; columns for arguments, the fields of results, status and seconds.

    \b
    ezpyp export study_cache train -o train.csv
    ezpyp export study_cache 'train*' --where lr=0.1 -o train.parquet
    """
    suffix = os.path.splitext(out)[1].lower()
    if suffix not in _WRITERS:
        raise click.UsageError(f"-o {out}: give a file that ends in {', '.join(_WRITERS)}.")
    frame = runs.open(folder).table(step, **_wanted(where))
    write_whole(out, [_WRITERS[suffix](frame)])
    print(f"{len(frame):,} rows, {len(frame.columns)} columns: {out}", file=sys.stderr)


def _csv(frame: Any) -> bytes:
    return bytes(frame.to_csv(index=False).encode())


def _json(frame: Any) -> bytes:
    return (json.dumps(json.loads(frame.to_json(orient="records", default_handler=str)), indent=1) + "\n").encode()


def _parquet(frame: Any) -> bytes:
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise InitializationError("A .parquet file needs pyarrow: pip install 'ezpyp[parquet]'.") from None
    return bytes(frame.to_parquet(None, index=False))


_WRITERS = {".csv": _csv, ".json": _json, ".parquet": _parquet}


@ezpyp_command.command()
@click.argument("source", metavar="FOLDER|SCRIPT", type=click.Path(exists=True))
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@output_option(*drawing.FORMATS)
def graph(source: str, args: tuple[str, ...], output: str) -> None:
    """The graph, for Mermaid or Graphviz.

    Of a folder, with what came of its steps; or of a script, which is run only up to its first execute() that is not
    finished, without running steps. ARGS are given to it.

    \b
    ezpyp graph study_cache > graph.mmd
    ezpyp graph study.py --output dot | dot -Tsvg > graph.svg
    """
    nodes = _nodes_of_folder(source) if os.path.isdir(source) else _nodes_of_script(source, args)
    say([drawing.FORMATS[output](nodes)])


def _nodes_of_folder(folder: str) -> list[Node]:
    run = runs.open(folder)
    statuses = (row.status for row in run.summary().rows)
    return [
        drawing.Node(name=entry.name, phase=entry.phase, upstream=entry.upstream, status=status)
        for entry, status in zip(run.entries, statuses, strict=True)
    ]


def _nodes_of_script(path: str, args: Sequence[str]) -> list[Node]:
    pipeline = load(path, args).pipeline
    if pipeline is None:
        raise InitializationError(f"{path} came to its end without execute(). Give the script that runs the pipeline.")
    pipeline.organize_steps()
    return [
        drawing.Node(name=step.name, phase=phase, upstream=tuple(getattr(s, "name", s) for s in step.depends_on))
        for phase, steps in enumerate(pipeline.phases)
        for step in steps
    ]


@ezpyp_command.command()
@output_option("text", "json")
def version(output: str) -> None:
    """What is installed, for bug reports."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    found = {"ezpyp": ezpyp.__version__, "python": sys.version.split()[0]}
    for package in ("mpi4py", "cloudpickle", "numpy", "pandas"):
        try:
            found[package] = installed(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    if output == "json":
        say_json(found)
    else:
        say(f"{name} {number}\n" for name, number in found.items())


def _wanted(where: tuple[str, ...]) -> dict[str, str]:
    """`--where x=0.3 --where model=a` as arguments."""
    pairs = [each.partition("=") for each in where]
    if bad := next((f"{key}{sign}{value}" for key, sign, value in pairs if not sign or not key), None):
        raise click.UsageError(f"--where {bad}: write ARGUMENT=VALUE, such as --where x=0.3.")
    return {key: value for key, _, value in pairs}


def _csv_lines(rows: Iterable[Row]) -> Iterator[str]:
    import csv
    import io

    for cells in itertools.chain([COLUMNS], map(_values, rows)):
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(cells)
        yield line.getvalue()


def _values(row: Row) -> list[Any]:
    return [jsonable(value) for value in values(row)]


for verb in (
    changes.plan,
    changes.why,
    changes.diff,
    changes.accept,
    changes.invalidate,
    *folders.VERBS,
    *jobs.VERBS,
):
    ezpyp_command.add_command(verb)
