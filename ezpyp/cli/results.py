"""Verbs that show what steps made, said and are joined by."""

from __future__ import annotations

import itertools
import json
import os
import sys
from typing import TYPE_CHECKING, Any

import click

from ezpyp.cli.console import (
    ALL,
    FOLDER,
    STEP,
    WHERE,
    jsonable,
    load,
    output_option,
    say,
    say_json,
)
from ezpyp.errors import InitializationError, ResultUnavailable
from ezpyp.folder import folding, runs
from ezpyp.folder.entries import Entries
from ezpyp.folder.summary import Rows
from ezpyp.inspection import drawing
from ezpyp.model.outcomes import Status
from ezpyp.system.files import write_whole

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from ezpyp.folder.runs import Run
    from ezpyp.folder.summary import Summary


#: Of how many steps of a very large family something is told.
_FEW = 10


@click.command()
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
        say(_csv_lines(found))
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
    rows = [dict(zip(found.columns, map(jsonable, found.values(row)), strict=True)) for row in found.rows]
    return {**{key: getattr(found, key) for key in totals}, "rows": rows}


@click.command()
@FOLDER
@STEP
@WHERE
@ALL
@output_option("text", "json")
def result(folder: str, step: str, where: tuple[str, ...], every: bool, output: str) -> None:
    """Print the results of steps.

    The result of the step that STEP names, or names and results of all steps that STEP and --where mean; of more than
    1,000 only the first ten as text, unless --all is given.

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
    count, told = run.count(step, **_wanted(where)), 0
    few = output == "text" and count > folding.MOST and not every

    def found() -> Iterator[tuple[str, Any]]:
        nonlocal told
        for each in itertools.islice(run.results(step, **_wanted(where)), _FEW if few else None):
            told += 1
            yield each

    say(_json_pieces(found()) if output == "json" else (f"{name}: {value}\n" for name, value in found()))
    if few and told == _FEW:
        print(f"ezpyp: of {count:,} steps the first {_FEW} with a result. All of them: --all", file=sys.stderr)
    elif missing := count - told:
        print(f"ezpyp: {missing:,} of {count:,} steps have no result (ezpyp status {folder})", file=sys.stderr)
    if not told:
        raise ResultUnavailable(f"None of the {count:,} steps that '{step}' means has a result.")


def _json_pieces(found: Iterable[tuple[str, Any]]) -> Iterator[str]:
    """An object of names and results, which is never in memory as a whole."""
    before = "{\n  "
    for name, value in found:
        text = json.dumps(jsonable(value), ensure_ascii=False, indent=2).replace("\n", "\n  ")
        yield f"{before}{json.dumps(name, ensure_ascii=False)}: {text}"
        before = ",\n  "
    yield "{}\n" if before.startswith("{") else "\n}\n"


@click.command()
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


@click.command()
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


@click.command()
@click.argument("source", metavar="FOLDER|SCRIPT", type=click.Path(exists=True))
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@ALL
@output_option(*drawing.FORMATS)
def graph(source: str, args: tuple[str, ...], every: bool, output: str) -> None:
    """The graph, for Mermaid or Graphviz.

    Of a folder, with what came of its steps; or of a script, which is run only up to its first execute() that is not
    finished, without running steps. ARGS are given to it. A family of more than 1,000 steps is one node, unless --all
    is given.

    \b
    ezpyp graph study_cache > graph.mmd
    ezpyp graph study.py --output dot | dot -Tsvg > graph.svg
    """
    if os.path.isdir(source):
        run = runs.open(source)
        rows = run.summary().rows
        entries, statuses = run.entries, rows.statuses if isinstance(rows, Rows) else [row.status for row in rows]
    else:
        entries, statuses = _planned(source, args), None
    nodes = drawing.steps_of(entries, statuses) if every else drawing.nodes_of(entries, statuses)
    say(drawing.FORMATS[output](nodes))


def _planned(path: str, args: Sequence[str]) -> Entries:
    """The steps of a script."""
    pipeline = load(path, args).pipeline
    if pipeline is None:
        raise InitializationError(f"{path} came to its end without execute(). Give the script that runs the pipeline.")
    pipeline.organize_steps()
    return Entries(pipeline.get_schema())


def _wanted(where: tuple[str, ...]) -> dict[str, str]:
    """`--where x=0.3 --where model=a` as arguments."""
    pairs = [each.partition("=") for each in where]
    if bad := next((f"{key}{sign}{value}" for key, sign, value in pairs if not sign or not key), None):
        raise click.UsageError(f"--where {bad}: write ARGUMENT=VALUE, such as --where x=0.3.")
    return {key: value for key, _, value in pairs}


def _csv_lines(found: Summary) -> Iterator[str]:
    import csv
    import io

    for cells in itertools.chain([found.columns], map(found.values, found.rows)):
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow(map(jsonable, cells))
        yield line.getvalue()


VERBS = (summary, result, log, export, graph)
