"""The verbs about what changed: what a run would do, why, and what to do about it."""

from __future__ import annotations

import os
import shlex
import sys
from typing import TYPE_CHECKING, Any

import click

from ezpyp.cli.console import ALL, FOLDER, SHARE, STEP, environment, load, output_option, part_options, say, say_json
from ezpyp.errors import EzpypError, InitializationError, UnknownStep
from ezpyp.folder import folding, lock, runs
from ezpyp.folder.script import Script
from ezpyp.inspection import explain
from ezpyp.inspection import why as reasons
from ezpyp.model.naming import compact
from ezpyp.model.selection import meant, parts, unknown
from ezpyp.run import prospect
from ezpyp.scripts import loading
from ezpyp.storage.opening import open_store
from ezpyp.upkeep import acceptance

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ezpyp.folder.runs import Run
    from ezpyp.run.prospect import Prospect

_SCRIPT = click.argument("script", type=click.Path(exists=True, dir_okay=False))
_ARGS = click.argument("args", nargs=-1, type=click.UNPROCESSED)
_DRY_RUN = click.option("--dry-run", is_flag=True, help="Only say what would be done.")
#: Options that are not ours are the script's.
_OPEN = {"ignore_unknown_options": True}
#: Steps that are explained at a time.
_MOST = 10


@click.command(context_settings=_OPEN)
@_SCRIPT
@_ARGS
@part_options
@SHARE
@ALL
@output_option("text", "json")
def plan(script: str, args: tuple[str, ...], every: bool, output: str, **part: Any) -> int:
    """What a run would do, and why.

    The script is run up to its first execute() that is not finished; no step runs, and nothing is written into the
    cache. ARGS are given to it. Exit code 3 where the run would be refused. As JSON, members of very large families
    are told together, unless --all is given.

    \b
    ezpyp plan study.py
    ezpyp plan study.py --on-change rerun
    ezpyp plan study.py --only 'train*' --output json
    ezpyp plan study.py --share 3/5
    """
    with environment(part):
        found = _prospects(script, args)[-1]
    if output == "json":
        say_json(explain.plan_values(found, every=every))
    else:
        say(explain.plan_lines(found))
    if found.objection:
        print(f"ezpyp: {found.objection}", file=sys.stderr)
    return 3 if found.objection else 0


@click.command(context_settings=_OPEN)
@click.argument("source", metavar="FOLDER|SCRIPT", type=click.Path(exists=True))
@STEP
@_ARGS
@output_option("text", "json")
def why(source: str, step: str, args: tuple[str, ...], output: str) -> None:
    """Why a step runs, is refused, failed, was skipped or is cached.

    Follows the reasons to where they begin. Of a FOLDER, its script is looked at too, where it still is. ARGS are given
    to the script.

    \b
    ezpyp why study.py best
    ezpyp why study_cache 'train[3]'
    """
    run, found, unknown = _of_folder(source, args) if os.path.isdir(source) else _of_script(source, step, args)
    names, count = _names(step, run, found)
    accounts = [reasons.account(name, run, found) for name in names]
    folder = run.folder if run is not None else found.folder if found is not None else source
    if output == "json":
        values = [reasons.account_values(each) for each in accounts]
        say_json(values[0] if count == 1 else values)
        return
    for k, each in enumerate(accounts):
        say(["\n"] if k else [])
        say(reasons.account_lines(each, folder, unknown))
    if count > _MOST:
        print(f"ezpyp: and {count - _MOST:,} more steps that '{step}' means", file=sys.stderr)


@click.command(context_settings=_OPEN)
@FOLDER
@_SCRIPT
@_ARGS
@output_option("text", "json")
def diff(folder: str, script: str, args: tuple[str, ...], output: str) -> None:
    """What of a script is new, gone, changed or moved.

    The folder need not be the one that the script names. ARGS are given to the script.

    \b
    ezpyp diff study_cache study.py
    """
    run = runs.open(folder)
    found = prospect.against(_belonging(_prospects(script, args), run), run.folder).survey
    acceptance.comparable(found, run.folder)
    if output == "json":
        say_json(explain.difference_values(found, run.folder))
    else:
        say(explain.difference_lines(found, run.folder))


@click.command()
@_SCRIPT
@click.argument("steps", metavar="[STEP]...", nargs=-1)
@click.option("--function", "functions", multiple=True, metavar="NAME", help="All steps of this function.")
@click.option("--args", default="", metavar="TEXT", help="What the script is given, as one text.")
@_DRY_RUN
def accept(script: str, steps: tuple[str, ...], functions: tuple[str, ...], args: str, dry_run: bool) -> int:
    """Keep results although their steps changed.

    For a change that does not matter. What these steps made before is what they make now; who said so and when is in
    the summary. Steps that only follow them come along. Without STEP, all changed steps.

    \b
    ezpyp accept study.py --dry-run
    ezpyp accept study.py 'train*'
    ezpyp accept study.py --function train
    """
    found = _prospects(script, shlex.split(args))[-1]
    asked = _asked(found, steps, functions)
    acceptance.comparable(found.survey, found.folder)
    if dry_run:
        chosen = acceptance.choose(found.survey, asked)
    else:
        with lock.acquire(found.folder):
            now = prospect.against(found, found.folder).survey
            chosen = acceptance.choose(now, asked)
            if chosen.names:
                store = open_store(now.wanted["ezpyp"]["store"], found.folder)
                acceptance.accept(now, found.folder, store, chosen)
    say(_acceptance_lines(chosen, "Would accept" if dry_run else "Accepted"))
    return 3 if chosen.left and not chosen.names else 0


def _acceptance_lines(chosen: acceptance.Acceptance, verb: str) -> Sequence[str]:
    if not chosen.names and not chosen.left:
        return ["Nothing changed that could be accepted.\n"]
    lines = [f"{verb} {folding.count(chosen.names):,} steps.\n"] if chosen.names else []
    lines += [f"  {names}: {text}\n" for names, text in explain.grouped(chosen.accepted)]
    lines += [f"  with them {compact(chosen.along)}\n"] if chosen.along else []
    left = {name: (f"'{before}' before it is new or stays changed",) for name, before in chosen.left.items()}
    return [*lines, *(f"not accepted: {names}: {text}\n" for names, text in explain.grouped(left))]


def _asked(found: Prospect, steps: Sequence[str], functions: Sequence[str]) -> Callable[[str], bool]:
    """Which steps are meant: all where none are named.

    Raises:
        UnknownStep: a pattern or function that no step fits.
    """
    if not steps and not functions:
        return lambda name: True
    steps_of, listed = found.plan.steps, [*parts(found.plan)]
    places = bytearray(len(steps_of))
    for pattern in steps:
        some = meant(pattern, listed)
        if not some:
            raise UnknownStep(unknown(pattern, found.plan.index))
        for place in some:
            places[place] = 1
    for function in functions:
        if not any(part.function == function for part in listed):
            known = ", ".join(dict.fromkeys(part.function for part in listed))
            raise UnknownStep(f"No step is of a function '{function}'. There are: {known}.")
        start = 0
        for part in listed:
            if part.function == function:
                places[start : start + part.size] = b"\1" * part.size
            start += part.size
    index = found.plan.index
    return lambda name: name in index and bool(places[index[name]])


@click.command()
@FOLDER
@STEP
@click.option("--descendants", is_flag=True, help="And all steps after them.")
@_DRY_RUN
def invalidate(folder: str, step: str, descendants: bool, dry_run: bool) -> None:
    """Have results made anew by the next run.

    They are not used any more, and lie in old/ until others take their place.

    \b
    ezpyp invalidate study_cache 'train[3]'
    ezpyp invalidate study_cache load --descendants
    """
    run = runs.open(folder)
    named = run.names(step)
    later = acceptance.after(run.folder, named)
    names = later if descendants else named
    if dry_run:
        results = acceptance.results_of(run.folder, names)
    else:
        with lock.acquire(run.folder):
            results = acceptance.results_of(run.folder, names)
            acceptance.invalidate(run.folder, results)
    if results:
        say([f"{'Would invalidate' if dry_run else 'Invalidated'} {len(results):,} results: {compact([*results])}\n"])
    else:
        say([f"None of the {len(names):,} steps has a result: a run makes them anyway.\n"])
    asked = {*names}
    if keep := acceptance.results_of(run.folder, [name for name in later if name not in asked]):
        kept = compact([*keep])
        print(f"ezpyp: steps after them keep their results: {kept}. For them too: --descendants.", file=sys.stderr)


# ----- scripts and folders


def _prospects(path: str, args: Sequence[str]) -> list[Prospect]:
    """What a run of a script would do: of each of its pipelines up to the first unfinished one.

    Raises:
        InitializationError: the script runs none; or whatever keeps the last from being planned.
    """
    found = list(dict.fromkeys(load(path, args).pipelines))
    if not found:
        raise InitializationError(f"{path} came to its end without execute(). Give the script that runs the pipeline.")
    return [pipeline.prospect() for pipeline in found]


def _belonging(found: Sequence[Prospect], run: Run) -> Prospect:
    """The pipeline that a folder is of, else the last one."""
    return next((each for each in found if each.plan.pipeline_id == run.pipeline_id), found[-1])


def _of_folder(folder: str, args: Sequence[str]) -> tuple[Run, Prospect | None, str]:
    """A folder, with what a run of its script would do in it, or why that is not known."""
    run = runs.open(folder)
    if not run.script:
        return run, None, f"{folder} does not say which script made it."
    try:
        loaded = loading.load(run.script, args or Script(run.folder, run.script).arguments())
        found = [pipeline.prospect() for pipeline in dict.fromkeys(loaded.pipelines)]
        own = _belonging(found, run) if found else None
        if own is None or own.plan.pipeline_id != run.pipeline_id:
            return run, None, f"{run.script} runs no pipeline '{run.pipeline_id}'."
        return run, own if own.folder == run.folder else prospect.against(own, run.folder), ""
    except EzpypError as error:
        return run, None, str(error)
    except Exception as error:  # of the script
        return run, None, f"{run.script} cannot be looked at: {type(error).__name__}: {error}."


def _of_script(script: str, step: str, args: Sequence[str]) -> tuple[Run | None, Prospect | None, str]:
    """The pipeline of a script that has the step, and its folder if there is one yet."""
    every = _prospects(script, args)
    found = next((each for each in every if _places_in(each, step)), every[-1])
    return runs.open(found.folder) if found.survey.before is not None else None, found, ""


def _names(step: str, run: Run | None, found: Prospect | None) -> tuple[list[str], int]:
    """The first of the steps that are meant, and how many are: of the script, and else of the folder, which may have
    some that are gone.

    Raises:
        UnknownStep: there are none.
    """
    if found is not None and (places := _places_in(found, step)):
        return [found.plan.steps[k].name for k in places[:_MOST]], len(places)
    if run is not None:
        names = [step] if step in run.index else run.names(step)
        return names[:_MOST], len(names)
    raise UnknownStep(unknown(step, found.plan.index if found is not None else ()))


def _places_in(found: Prospect, step: str) -> Sequence[int]:
    place = found.plan.index.get(step)
    return meant(step, parts(found.plan)) if place is None else [place]


VERBS = (plan, why, diff, accept, invalidate)
