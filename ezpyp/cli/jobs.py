"""The verbs for clusters: submit a script as a job, and look after the jobs of a folder."""

from __future__ import annotations

import os
import shlex
import sys
import time
from typing import TYPE_CHECKING, Any

import click

from ezpyp.cli.console import FOLDER, TAKE_OVER, environment, load, output_option, part_options, say, say_json
from ezpyp.cluster import configuration, doctor, slurm, submission
from ezpyp.errors import ConfigurationError, InitializationError, SubmissionError
from ezpyp.inspection import explain
from ezpyp.scripts import snapshot
from ezpyp.system.files import write_whole

if TYPE_CHECKING:
    from ezpyp.scripts.loading import Loaded

#: Flags whose values are settings: they have the names of sbatch's own.
_SETTINGS = (
    click.option("--nodes", type=click.IntRange(1), help="Nodes. One if nobody says how many."),
    click.option("--ntasks-per-node", type=click.IntRange(1), help="Ranks on each node. One, with many helpers."),
    click.option("--cpus-per-task", type=click.IntRange(1), help="Cores of a rank. Without it, whole nodes."),
    click.option("--gpus-per-node", type=click.IntRange(1), help="GPUs on each node."),
    click.option("--mem", help="Memory of each node, such as 64G."),
    click.option("-t", "--time", help="2h, 90m, 1d12h, or as Slurm writes it."),
    click.option("-p", "--partition"),
    click.option("-A", "--account"),
    click.option("--qos"),
    click.option("-C", "--constraint"),
    click.option("--launcher", metavar="COMMAND", help="mpirun, srun, 'srun --mpi=pmix', or another. What fits MPI."),
    click.option("--helpers", metavar="N", help="Steps that a rank runs at once. As many as it has cores."),
    click.option("--scratch", metavar="FOLDER", help="Where steps get folders of their own, on the node."),
)


def _settings(verb: Any) -> Any:
    for option in reversed(_SETTINGS):
        verb = option(verb)
    return verb


@click.command()
@_settings
@part_options
@TAKE_OVER
@click.option("--args", default="", metavar="TEXT", help="What the script is given, as one text.")
@click.option("--profile", help="A profile of ezpyp.toml.")
@click.option("--live", is_flag=True, help="Run the script as it is when the job starts, not as it is now.")
@click.option(
    "--no-requeue", is_flag=True, help="Do not start the job again where its time was not enough, or its node failed."
)
@click.option("--dry-run", is_flag=True, help="Only show the batch script, and ask Slurm what it thinks of it.")
@click.option("--init", is_flag=True, help="Write an ezpyp.toml from what is loaded now, and submit nothing.")
@click.argument("script", required=False, type=click.Path(exists=True, dir_okay=False))
@click.argument("sbatch", metavar="[-- FLAG...]", nargs=-1, type=click.UNPROCESSED)
def submit(
    script: str | None,
    sbatch: tuple[str, ...],
    args: str,
    profile: str | None,
    live: bool,
    no_requeue: bool,
    dry_run: bool,
    init: bool,
    take_over: bool,
    **given: Any,
) -> None:
    """Submit a script to Slurm.

    The run is planned here first, and refused here if it would be refused there. The job, also when it is requeued,
    runs the script and your modules as they are now; you can go on editing. FLAG is any flag of sbatch.

    Settings also come from ezpyp.toml or [tool.ezpyp] in pyproject.toml, and from EZPYP_ variables.

    \b
    ezpyp submit study.py --nodes 2 --time 2h --partition standard
    ezpyp submit study.py --nodes 2 --gpus-per-node 4 --dry-run
    ezpyp submit study.py --profile gpu --args '--fast -k 3' -- --mail-type=END
    """
    part = {key: given.pop(key) for key in ("on_change", "only", "until", "from_")}
    if init:
        _init()
        return
    if script is None:
        raise click.UsageError("Missing argument 'SCRIPT'.")
    settings = configuration.settle(given, start=os.path.dirname(os.path.abspath(script)), profile=profile)
    with environment({**part, "take_over": "1" if take_over else ""}) as wishes:
        loaded, foreign = _loaded(script, shlex.split(args))
        found = loaded.pipelines[-1].prospect()
    if found.objection:
        raise SubmissionError(f"{found.objection} Nothing was submitted.")
    steps = found.count("run")
    if not steps:
        say([*explain.plan_lines(found), "There is nothing to do: nothing was submitted.\n"])
        return
    copied = {} if live else snapshot.gather(loaded, foreign)
    code = os.path.join(found.folder, snapshot.FOLDER, snapshot.digest(copied)) if copied else ""
    task = submission.Task(
        folder=found.folder,
        script=loaded.path,
        args=tuple(shlex.split(args)),
        code=code,
        exports=wishes,
        requeue=not no_requeue,
    )
    made_by = shlex.join(["ezpyp", *sys.argv[1:]])
    text = slurm.text_of(submission.batch_of(task, settings, extra=sbatch, made_by=made_by))
    if dry_run:
        say([text])
        print(f"ezpyp: {steps:,} steps would run. {slurm.check(text)}", file=sys.stderr)
        return
    _refuse_second(found.folder, text)
    if copied:
        snapshot.write(copied, found.folder)
    job = submission.submit(text, task)
    batch, short = os.path.join(found.folder, job.batch), _short(found.folder)
    say([f"Job {job.job} is to run {steps:,} steps: {batch}\n", f"Follow it: ezpyp watch {short}\n"])


def _loaded(script: str, args: list[str]) -> tuple[Loaded, set[str]]:
    """A script as it comes to the pipeline that is to run, and the modules that were there before it.

    Raises:
        InitializationError: it comes to none.
    """
    foreign = set(sys.modules)
    loaded = load(script, args)
    if not loaded.pipelines:
        raise InitializationError(
            f"{script} came to its end without execute(). Give the script that runs the pipeline."
        )
    return loaded, foreign


def _refuse_second(folder: str, text: str) -> None:
    """A folder is used by one run at a time; a job that waits for another says so to Slurm."""
    if "--dependency" in text or "#SBATCH -d" in text:
        return
    for job, state in submission.active(folder).items():
        raise SubmissionError(
            f"Job {job} of this folder is {state}, and one run at a time uses it. Wait (ezpyp watch {_short(folder)}), "
            f"end it (ezpyp cancel {_short(folder)}), or come after it: -- --dependency=afterany:{job}. "
            "Nothing was submitted."
        )


def _init() -> None:
    """Write a file of settings for this project."""
    path = os.path.abspath(configuration.NAME)
    if os.path.exists(path):
        raise ConfigurationError(f"{path} is there already. Edit it, or remove it first.")
    write_whole(path, [configuration.initial(os.environ).encode()])
    print(path)


@click.command()
@FOLDER
def cancel(folder: str) -> None:
    """End the jobs of a folder.

    Those that wait or run. What is done is kept; submit again to go on.

    \b
    ezpyp cancel study_cache
    """
    found = submission.active(os.path.abspath(folder))
    if found:
        slurm.cancel([*found])
    say(f"Job {job} was {state.name.lower()}, and is cancelled.\n" for job, state in found.items())
    if not found:
        say(["No job of this folder waits or runs.\n"])


@click.command()
@FOLDER
@click.option("--job", help="This job, not the newest.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job is over.")
def logs(folder: str, job: str | None, follow: bool) -> None:
    """What a job of a folder printed.

    What steps printed is asked for with `ezpyp log FOLDER STEP`.

    \b
    ezpyp logs study_cache
    ezpyp logs study_cache -f
    """
    folder = os.path.abspath(folder)
    known = submission.jobs(folder)
    chosen = next((each for each in reversed(known) if job in (None, each.job)), None)
    if chosen is None:
        there = ", ".join(each.job for each in known)
        raise SubmissionError(f"{folder} has no job{f' {job}' if job else ''}. There are: {there or 'none'}.")
    path, place, following = os.path.join(folder, chosen.log), 0, submission.Following(folder)
    while True:
        over = not follow or (bool(following.look(time.monotonic())) and not following.active)
        place += _say_from(path, place)
        if over:
            break
        time.sleep(1.0)
    if not place:
        print(f"ezpyp: job {chosen.job} has not printed anything yet (ezpyp watch {_short(folder)})", file=sys.stderr)


_MARKS = {"good": "ok", "doubtful": "??", "bad": "NO"}


@click.command("doctor")
@click.argument("folder", default=".", type=click.Path(file_okay=False))
@click.option("-n", "ranks", type=click.IntRange(2), metavar="RANKS", help="Start so many ranks, and ask each.")
@click.option("--launcher", metavar="COMMAND", help="What starts them, such as 'srun --mpi=pmix'. The fitting mpirun.")
@output_option("text", "json")
def examine(folder: str, ranks: int | None, launcher: str | None, output: str) -> int:
    """Whether MPI, Slurm, file system and hosts fit.

    FOLDER is where a cache is to be. Each finding that is not good comes with its remedy. With -n, also inside a
    job, ranks are started: they must see each other, the folder, and the same packages. Exit code 1 if anything is
    bad.

    \b
    ezpyp doctor study_cache
    ezpyp doctor study_cache -n 4
    salloc --nodes 2 ezpyp doctor study_cache -n 2 --launcher 'srun --mpi=pmi2'
    """
    if launcher and not ranks:
        raise click.UsageError("--launcher needs -n RANKS.")
    found = list(doctor.examine(os.path.abspath(folder), ranks, shlex.split(launcher or "")))
    if output == "json":
        say_json(found)
    else:
        say(
            f"{_MARKS[each.level]}  {each.what}\n{f'    {each.remedy}' + chr(10) if each.remedy else ''}"
            for each in found
        )
    return int(any(each.level == "bad" for each in found))


@click.command("gpus")
@click.option("-n", "ranks", type=click.IntRange(1), default=1, show_default=True, help="So many ranks on this node.")
@click.option("--helpers", type=click.IntRange(1), default=1, show_default=True, help="So many steps at once a rank.")
@output_option("text", "json")
def show_gpus(ranks: int, helpers: int, output: str) -> None:
    """The GPUs of this node, and who would get which.

    As a job sees them that runs here: never more than the scheduler gave. Steps that say `gpus=` are granted theirs
    one by one instead, and then the others see none.

    \b
    ezpyp gpus
    ezpyp gpus -n 4 --helpers 2
    """
    found = doctor.gpu_bindings(ranks, helpers)
    if output == "json":
        say_json(found)
        return
    host, name = os.uname().nodename, found["variable"]
    if not found["gpus"]:
        say([f"{host}: no GPU that may be used\n"])
        return
    say([f"{host}: {each}\n" for each in found["gpus"]])
    if found["left_alone"]:
        say(["EZPYP_GPU_BIND=none: nothing is set\n"])
    for rank, each in enumerate(found["ranks"]):
        for slot, value in enumerate(each):
            what = f"{name}={value}" if value is not None else "all that it sees"
            say([f"rank {rank}{f' helper {slot}' if helpers > 1 else ''}: {what}\n"])
    say(f"{text}\n" for text in found["warnings"])


def _say_from(path: str, place: int) -> int:
    """Print what stands in a file after a place; how much that was."""
    try:
        with open(path, "rb") as file:
            file.seek(place)
            content = file.read()
    except FileNotFoundError:
        return 0
    say([content.decode(errors="replace")] if content else [])
    return len(content)


def _short(folder: str) -> str:
    return shlex.quote(min(folder, os.path.relpath(folder), key=len))


VERBS = (submit, cancel, logs, examine, show_gpus)
