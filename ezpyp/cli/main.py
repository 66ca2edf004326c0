"""The program `ezpyp`, and the verb `run`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NoReturn

import click

import ezpyp
from ezpyp.cli import changes, folders, following, jobs, results
from ezpyp.cli.console import (
    SHARE,
    TAKE_OVER,
    environment,
    output_option,
    part_options,
    say,
    say_json,
)
from ezpyp.errors import EzpypError
from ezpyp.model import shares
from ezpyp.model.settings import ON_CHANGE
from ezpyp.system import launch

if TYPE_CHECKING:
    from collections.abc import Sequence


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
@SHARE
@click.option("--all-output", is_flag=True, help="Show what the script prints on every rank, not only on rank 0.")
@TAKE_OVER
@click.argument("script", type=click.Path(exists=True, dir_okay=False))
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@part_options
def run(
    ranks: int | None,
    share: str | None,
    all_output: bool,
    take_over: bool,
    script: str,
    args: tuple[str, ...],
    **part: Any,
) -> int:
    """Run a script, alone or on MPI ranks.

    The mpirun is the one that belongs to the MPI that mpi4py uses.

    Options of ezpyp may also stand right after SCRIPT. All else, and all after --, is given to the script.

    \b
    ezpyp run study.py
    ezpyp run study.py -n 4 --fast     the script gets --fast
    ezpyp run -n 4 study.py -- -n 10   the script gets -n 10
    ezpyp run study.py --on-change rerun --only 'train*'
    ezpyp run study.py --share 3/5     of five jobs the third; the next run without --share takes in what they made

    Exit codes: 0 done, 1 a step failed, 3 refused before running, 4 aborted, 85 stopped (the same command goes on),
    130 stopped by the user.
    """
    later, rest = _leading_options(args)
    wishes = {key: later.get(key) or value for key, value in part.items()}
    if share := later.get("share", share):
        wishes["share"] = str(shares.parse(share))
    if take_over or "take_over" in later:
        wishes["take_over"] = "1"
    with environment(wishes):
        return launch.run(script, rest, ranks=later.get("ranks", ranks), all_output=all_output or "all_output" in later)


_FLAGS = {"--all-output": "all_output", "--take-over": "take_over"}
_VALUES = {
    "-n": "ranks",
    "--share": "share",
    "--on-change": "on_change",
    "--only": "only",
    "--until": "until",
    "--from": "from_",
}


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
    elif option == "--share":
        found["share"] = value
    else:
        found[_VALUES[option]] = (*found.get(_VALUES[option], ()), value)


def _rank_count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise click.UsageError(f"-n {text}: give the number of ranks, 1 or more (-- before options of the script).")
    return int(text)


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


for verb in (*changes.VERBS, *following.VERBS, *results.VERBS, *folders.VERBS, *jobs.VERBS):
    ezpyp_command.add_command(verb)
