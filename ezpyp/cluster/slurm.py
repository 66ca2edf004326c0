"""Slurm: the text of a batch script, and the few questions and orders that go to it.

A launcher, not an executor: once a job runs, nothing here is used. Questions are asked for all jobs at once.
"""

from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ezpyp.errors import ConfigurationError, SubmissionError

#: Seconds for an answer: a busy controller may take long.
_ANSWER = 60.0
#: Seconds from one question to the next, at first and at last.
SOONEST, LATEST = 15.0, 180.0

#: States, by squeue(1), of jobs that wait or run.
_ACTIVE = frozenset(
    (
        *("PENDING", "RUNNING", "SUSPENDED", "CONFIGURING", "COMPLETING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD"),
        *("RESIZING", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED", "RESV_DEL_HOLD"),
    )
)
#: Slurm knows nothing of the job any more: neither that it ended well nor that it failed.
VANISHED = "VANISHED"


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What Slurm says of a job."""

    #: As squeue(1) names it, or VANISHED.
    name: str
    #: Why it waits or ended; "" where there is nothing to say.
    reason: str = ""

    @property
    def active(self) -> bool:
        return self.name in _ACTIVE

    def __str__(self) -> str:
        return f"{self.name} ({self.reason})" if self.reason else self.name


# ----- the batch script

#: What a person says comes first; `NONE` is said of a job without a limit.
_TIME_LIMIT = (
    'export EZPYP_TIME_LIMIT="${EZPYP_TIME_LIMIT:-@$(SLURM_TIME_FORMAT=standard squeue -h -j "$SLURM_JOB_ID" -o %e)}"'
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """What a batch script asks for and does."""

    #: The command that made it, for whoever reads it.
    made_by: str
    name: str
    #: Where the script is to run, and the file for what the job prints.
    directory: str
    log: str
    #: Flags of sbatch, in order.
    flags: Sequence[str]
    setup: Sequence[str]
    exports: Sequence[tuple[str, str]]
    #: The last line, which becomes the launcher.
    command: str


def text_of(batch: Batch) -> str:
    """The batch script."""
    flags = [
        f"--job-name={batch.name}",
        f"--chdir={batch.directory}",
        f"--output={batch.log}",
        "--open-mode=append",
        *batch.flags,
    ]
    lines = [
        "#!/bin/bash",
        f"# Written by: {batch.made_by}",
        "",
        *(f"#SBATCH {_directive(flag)}" for flag in flags),
        "",
        "# The warning before the time limit would end this shell, and a Python that does not listen to it yet.",
        "trap '' USR1",
        "# When the job has to end, asked once for all ranks.",
        _TIME_LIMIT,
        "",
        *batch.setup,
        *(f"export {name}={value}" for name, value in batch.exports),
        "",
        "# The launcher takes the place of this shell, so that the warning before the time limit reaches it.",
        f"exec {batch.command}",
    ]
    return "\n".join(lines) + "\n"


def _directive(flag: str) -> str:
    """A flag as sbatch reads it from a line, where `#` begins a comment and a space another flag."""
    name, value = re.match(r"(--[\w-]+=|-\w ?|)(.*)", flag, re.DOTALL).groups()  # type: ignore[union-attr]  # matches all
    if re.fullmatch(r"[\w@%+:./,=~\[\]*-]*", value):
        return flag
    if '"' in value or "\n" in value:
        raise SubmissionError(f"{flag!r} cannot be said to sbatch: it holds a quotation mark or a line break.")
    return f'{name}"{value}"'


def duration(text: str, where: str = "--time") -> str:
    """`2h`, `90m`, `1d12h`, minutes, or a time as Slurm writes it: as Slurm writes it.

    Raises:
        ConfigurationError: it is none of these.
    """
    found = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?:in)?)?(?:(\d+)s)?", text.strip())
    if found and any(found.groups()):
        days, hours, minutes, seconds = (int(each or 0) for each in found.groups())
        total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
        return f"{total // 86400}-{total // 3600 % 24:02}:{total // 60 % 60:02}:{total % 60:02}"
    if re.fullmatch(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}|UNLIMITED|INFINITE", text.strip(), re.IGNORECASE):
        return text.strip()
    raise ConfigurationError(
        f"{where}: {text!r} is no time. Write 2h, 90m, 1d12h or what Slurm knows, such as 04:00:00."
    )


def seconds(text: str) -> float:
    """A time as sbatch reads it: minutes, MINUTES:SECONDS, HOURS:MINUTES:SECONDS, or DAYS-HOURS with what follows them.

    Infinite for UNLIMITED, and for what is no time.
    """
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if not found:
        return math.inf
    days, first, second, third = (int(each or 0) for each in found.groups())
    if found[1] is not None or found[4] is not None:
        return ((days * 24 + first) * 60 + second) * 60.0 + third
    return first * 60.0 + second


# ----- questions and orders


def check(text: str) -> str:
    """What sbatch thinks of a batch script, without submitting it: when the job would start.

    Raises:
        SubmissionError: it would be refused; the text is Slurm's.
    """
    code, out, err = _ask(["sbatch", "--test-only"], text)
    if code:
        raise SubmissionError(f"Slurm would refuse the job: {_said(err or out)}. Nothing was submitted.")
    return _said(err or out)


def submit(
    path: str, *args: str, flags: Sequence[str] = (), environ: Mapping[str, str] = os.environ
) -> tuple[str, str]:
    """Submit a batch script: the job's number and its cluster, "" where Slurm does not say. Flags come before those in
    the script.

    Raises:
        SubmissionError: Slurm refused; the text is its own.
    """
    code, out, err = _ask(["sbatch", "--parsable", *flags, path, *args], environ=environ)
    job, _, cluster = out.strip().partition(";")
    if code or not job.isdecimal():
        raise SubmissionError(f"Slurm refused the job: {_said(err or out)}.")
    return job, cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a job was submitted with, as far as Slurm tells."""

    flags: Sequence[str]
    #: The arguments of its script, as one text.
    args: str


#: What `scontrol show job` calls what flags of sbatch ask for.
_TOLD = {
    "JobName": "job-name",
    "WorkDir": "chdir",
    "TimeLimit": "time",
    "Partition": "partition",
    "Account": "account",
    "QOS": "qos",
    "NumNodes": "nodes",
    "NumTasks": "ntasks",
    "Features": "constraint",
    "Reservation": "reservation",
    "CPUs/Task": "cpus-per-task",
    "MinMemoryNode": "mem",
    "MinMemoryCPU": "mem-per-cpu",
    "TresPerNode": "gres",
}
#: What it says of those of which nothing was asked.
_NOT_ASKED = ("(null)", "CPUs/Task=1", "MinMemoryNode=0")


def described(job: str) -> Description:
    """Raises SubmissionError where Slurm does not tell of a job."""
    code, out, err = _ask(["scontrol", "-o", "show", "job", job])
    found = re.fullmatch(r"(.*) Command=\S+ ?(.*) (WorkDir=.*)", out.strip())
    if code or not found:
        raise SubmissionError(f"Slurm does not tell of job {job}: {_said(err or out)}.")
    flags = []
    for name, value in re.findall(r"(?<!\S)([\w/]+)=(\S+)", f"{found[1]} {found[3]}"):
        if name in _TOLD and not {value, f"{name}={value}"} & {*_NOT_ASKED}:
            flags.append(f"--{_TOLD[name]}={re.sub('gres[:/]', '', value)}")  # of `gres:gpu:1` sbatch reads `gpu:1`
    return Description(flags=flags, args=found[2])


def write_script(job: str, path: str) -> None:
    """Have the batch script of a job written.

    Raises:
        SubmissionError: Slurm does not have it.
    """
    code, out, err = _ask(["scontrol", "write", "batch_script", job, path])
    if code:
        raise SubmissionError(f"Slurm does not tell the script of job {job}: {_said(err or out)}.")


def requeue(job: str) -> str:
    """Have a job start again, which ends it now; why Slurm does not, "" where it does."""
    try:
        code, out, err = _ask(["scontrol", "requeue", job])
    except SubmissionError as error:
        return str(error).rstrip(".")
    return _said(err or out) if code else ""


def cancel(jobs: Sequence[str]) -> None:
    """Raises SubmissionError where Slurm cannot be asked."""
    code, out, err = _ask(["scancel", *jobs])
    if code:
        raise SubmissionError(f"Slurm did not cancel {', '.join(jobs)}: {_said(err or out)}.")


def states(jobs: Sequence[str]) -> dict[str, State]:
    """What Slurm says of jobs, in one question, or two where some are forgotten by squeue(1).

    Raises:
        SubmissionError: Slurm cannot be asked now.
    """
    if not jobs:
        return {}
    found = _in_queue(jobs)
    if forgotten := [job for job in jobs if job not in found]:
        found |= _in_accounts(forgotten)
    return {job: found.get(job, State(name=VANISHED)) for job in jobs}


def _in_queue(jobs: Sequence[str]) -> dict[str, State]:
    # Of one job that is unknown squeue makes an error, of one among several it says nothing.
    code, out, err = _ask(["squeue", "-h", "-t", "all", "-j", ",".join(jobs), "-o", "%A|%T|%r"])
    if code and "Invalid job id" not in err:
        raise SubmissionError(f"squeue cannot be asked: {_said(err)}.")
    found = {}
    for line in out.splitlines():
        job, _, rest = line.partition("|")
        name, _, reason = rest.partition("|")
        found[job] = State(name=name, reason="" if reason in ("None", name) else reason)
    return found


def _in_accounts(jobs: Sequence[str]) -> dict[str, State]:
    """What sacct(1) remembers; nothing where accounting is off."""
    try:
        code, out, _ = _ask(["sacct", "-n", "-X", "-P", "-j", ",".join(jobs), "-o", "JobID,State,ExitCode"])
    except SubmissionError:
        return {}
    lines = (line.split("|") for line in out.splitlines() if not code)
    # `CANCELLED by 1000`
    return {job: State(name=name.split()[0], reason=f"exit {exits}") for job, name, exits in lines if name}


def later(pause: float) -> float:
    """The pause after a pause: questions become rarer, as an answer changes less and less often."""
    return min(LATEST, pause * 1.5)


def mpi_types() -> set[str]:
    """The words that `srun --mpi` takes here; none where there is no srun."""
    try:
        _, out, err = _ask(["srun", "--mpi=list"])
    except SubmissionError:
        return set()
    return set(re.findall(r"\b(pmi2|pmix\w*|cray_shasta)\b", out + err))


def command(words: Iterable[str]) -> str:
    """Words as a shell reads them, but for variables of Slurm's, which it is to fill in."""
    return " ".join(f'"{word}"' if re.fullmatch(r"(--?[\w-]+=)?\$\w+", word) else shlex.quote(word) for word in words)


def _ask(argv: Sequence[str], told: str = "", environ: Mapping[str, str] = os.environ) -> tuple[int, str, str]:
    import subprocess

    try:
        done = subprocess.run(
            argv,
            input=told,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_ANSWER,
            env={**environ, "LC_ALL": "C"},
            check=False,
        )
    except FileNotFoundError:
        raise SubmissionError(
            f"There is no {argv[0]} here. Load the site's module for Slurm, or log in where it is."
        ) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SubmissionError(f"{argv[0]} did not answer: {error}.") from None
    return done.returncode, done.stdout, done.stderr


def _said(text: str) -> str:
    """The lines of a program as one, without its name."""
    lines = (re.sub(r"^\w+: (error: )?", "", line.strip()) for line in text.splitlines())
    return "; ".join(line.rstrip(".") for line in lines if line) or "it does not say why"
