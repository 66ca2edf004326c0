"""Jobs of a cache folder: prepared, submitted, and what became of them. What is kept of each is in `jobs/`.

jobs/STAMP.sbatch    the batch script, as it was submitted
jobs/JOB.json        the job: who, when, what
jobs/JOB.log         what the job printed, requeues one after the other
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ezpyp.cluster import slurm
from ezpyp.cluster.configuration import Value
from ezpyp.cluster.restarts import REQUEUE
from ezpyp.cluster.slurm import Batch, State
from ezpyp.errors import ConfigurationError, LauncherError, SubmissionError
from ezpyp.folder.durations import remembered
from ezpyp.scripts import frozen, snapshot
from ezpyp.system.files import write_whole
from ezpyp.system.launch import PROTOCOLS, TITLES

FOLDER = "jobs"
FORMAT = 1
#: Seconds before the time limit at which a run is told to stop: where nothing is known, and at least and at most.
_WARNING, _SHORTEST, _LONGEST = 300, 60, 600
#: The share of the time of a job that may come after the warning. Slurm sends it up to a minute early: a job of so few
#: seconds would be warned before it has begun, and knows its limit without.
_SHARE, _BRIEF = 0.25, 120


#: Run where the job will run, after its set-up: what a rank would find there.
_PROBE = """
import json, sys
from ezpyp import __version__
from ezpyp.ranks import rank
from ezpyp.system import launch
found = {"python": sys.executable, "version": __version__, "rank": rank.__file__}
found |= {"make": "", "mpirun": "", "problem": ""}
try:
    found["make"] = launch.mpi_library()
    found["mpirun"] = launch.find_mpirun(found["make"])
except launch.LauncherError as error:
    found["problem"] = str(error)
print(json.dumps(found))
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a job will find after its set-up."""

    python: str
    version: str
    #: The path of ezpyp's rank.py.
    rank: str
    #: The make of the MPI library that mpi4py loads, "" without one; and an mpirun of that make.
    make: str
    mpirun: str
    #: Why there is no MPI, or no mpirun for it.
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What a job is to do."""

    folder: str
    script: str
    args: tuple[str, ...]
    #: The copy to be run; "" for the script as it is when the job starts.
    code: str
    #: Variables for the run.
    exports: Mapping[str, str]
    #: Whether the job is started again where it needs more time, and where its node failed.
    requeue: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job that was submitted."""

    job: str
    cluster: str
    when: float
    user: str
    host: str
    script: str
    args: tuple[str, ...]
    #: The digest of the copy that it runs; "" where it runs the script as it is then.
    code: str
    #: A path within the folder.
    batch: str

    @property
    def log(self) -> str:
        """A path within the folder."""
        return os.path.join(FOLDER, f"{self.job}.log")


def surroundings(setup: Sequence[str], where: Mapping[str, Value]) -> Surroundings:
    """Carry out the set-up of a job here, and look.

    Raises:
        SubmissionError: the set-up fails, or there is no ezpyp after it.
    """
    import subprocess

    python = "python" if setup else sys.executable
    text = "\n".join(["set -e", *setup, f"exec {shlex.quote(python)} -c {shlex.quote(_PROBE)}"])
    done = subprocess.run(
        ["bash", "-c", text], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, errors="replace"
    )
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        said = (done.stderr.strip() or "it ended without a word").splitlines()[-1]
        place = where["setup"].where if "setup" in where else sys.executable
        raise SubmissionError(f"{place}: a job could not start so: {said} Nothing was submitted.")
    return Surroundings(**json.loads(lines[-1]))


# ----- the batch script


def batch_of(task: Task, settings: Mapping[str, Value], *, extra: Sequence[str], made_by: str) -> Batch:
    """What the batch script of a job says. `extra` are flags of sbatch, as they were typed.

    Raises:
        ConfigurationError: a setting that makes no sense. LauncherError: no launcher fits the MPI library.
        SubmissionError: the job could not start here.
    """

    def of(key: str, otherwise: Any = None) -> Any:
        return settings[key].value if key in settings else otherwise

    nodes, per_node, cpus = of("nodes", 1), of("ntasks_per_node", 1), of("cpus_per_task")
    flags = [f"--nodes={nodes}", f"--ntasks-per-node={per_node}"]
    # A rank has all cores of its node, or of its share of it, and gives them to its helpers.
    flags += [f"--cpus-per-task={cpus}"] if cpus else ["--exclusive"]
    flags += [f"--mem={of('mem', '0')}"] if of("mem") or not cpus else []
    flags += [f"--time={slurm.duration(of('time'), settings['time'].where)}"] if of("time") else []
    for key in ("gpus_per_node", "account", "partition", "qos", "constraint"):
        flags += [f"--{key.replace('_', '-')}={of(key)}"] if of(key) else []
    flags += ["--requeue" if task.requeue else "--no-requeue"]
    theirs = [*of("sbatch", ()), *_grouped(extra)]
    if early := warning(_time_of([*flags, *theirs]), remembered(task.folder, "p95")):
        flags.append(f"--signal=B:USR1@{early}")
    flags += theirs
    helpers = of("helpers", "auto")
    if helpers != "auto" and not helpers.isdecimal():
        raise ConfigurationError(f"{settings['helpers'].where}: helpers = {helpers!r} is no number, nor 'auto'.")
    many = nodes * per_node > 1
    variables = [("EZPYP_HELPERS", helpers)]
    # What a person says in the environment comes first.
    variables += [(REQUEUE, f'"${{{REQUEUE}:-1}}"')] if task.requeue else []
    # Not quoted away: `$TMPDIR` is to be that of the job.
    variables += [("EZPYP_SCRATCH", f'"{of("scratch")}"')] if of("scratch") else []
    variables += [(name, shlex.quote(text)) for name, text in sorted(task.exports.items())]
    found = surroundings(of("setup", ()), settings)
    python = [found.python]
    program = ["-P", "-m", "ezpyp.cluster.submitted", task.code] if task.code else [task.script]
    launcher: list[str] = []
    if many:
        names = (
            {name for name, _ in variables}
            | {"EZPYP_TIME_LIMIT"}
            | {name for name in os.environ if name.startswith("EZPYP_")}
        )
        launcher = _launcher(settings, found, per_node, sorted(names))
        # Only rank 0 shows what the script prints.
        python += ["-I", "-S", found.rank]
    return Batch(
        made_by=made_by,
        # Different for every folder: a job that takes the place of another begins when none of its name is left.
        name=f"{Path(task.script).stem}-{hashlib.blake2b(task.folder.encode(), digest_size=3).hexdigest()}",
        directory=os.getcwd(),
        log=os.path.join(task.folder.replace("%", "%%"), FOLDER, "%j.log"),
        flags=flags,
        setup=["set -e", *of("setup", ())],
        exports=variables,
        command=slurm.command([*launcher, *python, *program, *task.args]),
    )


def warning(time: float | None, durations: Mapping[str, float]) -> int:
    """Seconds before its time limit at which a job is warned: enough for nearly all steps to end. 0 for no warning.

    Args:
        time: seconds that the job has, None where the partition says.
        durations: seconds that nearly all steps of each function take, as far as is known.
    """
    if time is None:
        return _SHORTEST
    if time < _BRIEF:
        return 0
    wanted = max(_SHORTEST, min(_LONGEST, max(durations.values(), default=_WARNING)))
    return int(min(wanted, _SHARE * time))


def _time_of(flags: Sequence[str]) -> float | None:
    """The time that flags of sbatch ask for, in seconds; of several the last counts."""
    found = [match[1] for flag in flags if (match := re.match(r"(?:--time=|-t[ =]?)(.+)", flag))]
    return slurm.seconds(found[-1]) if found else None


def _grouped(extra: Sequence[str]) -> list[str]:
    """Words typed after `--` as flags: `-q long` is one."""
    flags: list[str] = []
    for word in extra:
        if word.startswith("-"):
            flags.append(word)
        elif not flags or "=" in flags[-1] or " " in flags[-1]:
            raise SubmissionError(
                f"{word}: after -- come flags of sbatch. What the script is given goes into --args '{word} …'."
            )
        else:
            flags[-1] = f"{flags[-1]}={word}" if flags[-1].startswith("--") else f"{flags[-1]} {word}"
    return flags


def _launcher(settings: Mapping[str, Value], found: Surroundings, per_node: int, names: Sequence[str]) -> list[str]:
    """The words that start a rank in each of Slurm's tasks, not bound to cores: helpers share them."""
    asked = settings["launcher"].value.split() if "launcher" in settings else []
    name = asked[0] if asked else "mpirun" if found.mpirun else "srun"
    if not found.make and not asked:
        raise LauncherError(found.problem)
    if name == "srun":
        given = any(word.startswith("--mpi") for word in asked)
        mpi = [] if given else [f"--mpi={_protocol(found)}"]
        cpus = ["--cpus-per-task=$SLURM_CPUS_PER_TASK"] if "cpus_per_task" in settings else []
        return ["srun", *mpi, "--cpu-bind=none", "--kill-on-bad-exit=1", *cpus, *asked[1:]]
    if name != "mpirun":
        return [*asked, "-n", "$SLURM_NTASKS"]
    if not found.mpirun:
        raise LauncherError(found.problem)
    if found.make == "openmpi":
        forwarded = [word for each in names for word in ("-x", each)]
        return [found.mpirun, "-n", "$SLURM_NTASKS", "--bind-to", "none", *forwarded, *asked[1:]]
    return [found.mpirun, "-n", "$SLURM_NTASKS", "-ppn", str(per_node), *asked[1:]]


def _protocol(found: Surroundings) -> str:
    """The word for `srun --mpi=` that the library understands, and Slurm has."""
    wanted = PROTOCOLS.get(found.make)
    known = slurm.mpi_types()
    if wanted is None or (known and wanted not in known):
        title = TITLES.get(found.make, "an MPI that ezpyp does not know")
        raise LauncherError(
            f"mpi4py uses {title}, for which srun has no fitting --mpi here ({', '.join(sorted(known)) or 'none'}). "
            f"Use --launcher mpirun, or say it yourself: --launcher 'srun --mpi=…'. {found.problem}".rstrip()
        )
    return wanted


# ----- a folder's jobs


def submit(text: str, task: Task) -> Job:
    """Write the batch script, have Slurm check it, submit it, and note the job.

    Raises:
        SubmissionError: Slurm refuses. StoreError: the folder cannot be written.
    """
    where = os.path.join(task.folder, FOLDER)
    os.makedirs(where, exist_ok=True)
    batch = os.path.join(where, f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}-{os.getpid()}.sbatch")
    write_whole(batch, [text.encode()], sync=True)
    try:
        slurm.check(text)
        number, cluster = slurm.submit(batch)
    except SubmissionError:
        os.unlink(batch)
        raise
    job = Job(
        job=number,
        cluster=cluster,
        when=time.time(),
        user=getpass.getuser(),
        host=os.uname().nodename,
        script=task.script,
        args=task.args,
        code=os.path.basename(task.code),
        batch=os.path.relpath(batch, task.folder),
    )
    note(task.folder, job)
    return job


def note(folder: str, job: Job) -> None:
    """Keep what is known of a job with its folder.

    Raises:
        StoreError: the folder cannot be written.
    """
    content = json.dumps({"format": FORMAT, **asdict(job)}, ensure_ascii=False, indent=1)
    write_whole(os.path.join(folder, FOLDER, f"{job.job}.json"), [content.encode()], sync=True)


def jobs(folder: str) -> list[Job]:
    """The jobs that were submitted for a folder, the newest last. What cannot be read is passed over."""
    found = []
    for path in Path(folder, FOLDER).glob("*.json"):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("format") <= FORMAT:
                found.append(Job(**{**content, "args": tuple(content["args"])}))
        except (OSError, ValueError, TypeError, KeyError):
            continue
    return sorted(found, key=lambda job: (job.when, job.job))


def copies(folder: str) -> dict[str, dict[str, Any]]:
    """The copies of code in a folder by their paths: the jobs that run each, and its files with where they were."""
    found: dict[str, dict[str, Any]] = {}
    for manifest in sorted(Path(folder, snapshot.FOLDER).glob(f"*/{frozen.MANIFEST}")):
        modules = json.loads(manifest.read_text(encoding="utf-8"))["modules"].values()
        users = [job.job for job in jobs(folder) if job.code == manifest.parent.name]
        files = {each["file"]: each["origin"] for each in modules}
        found[str(manifest.parent)] = {"jobs": users, "files": files}
    return found


def active(folder: str) -> dict[str, State]:
    """The jobs of a folder that wait or run, with one question to Slurm, none where there are no jobs.

    Raises:
        SubmissionError: Slurm cannot be asked.
    """
    return {job: state for job, state in slurm.states([each.job for each in jobs(folder)]).items() if state.active}


class Following:
    """What becomes of the newest job of a folder. Slurm is asked from every 15 s to every 3 minutes, not more."""

    def __init__(self, folder: str) -> None:
        self._folder, self._pause, self._next = folder, slurm.SOONEST, 0.0
        self._job: Job | None = None
        #: None while nothing is known.
        self.state: State | None = None

    def look(self, now: float) -> str:
        """A line about the job, "" where there is none, or no Slurm here. Asks where it is time to."""
        job = next(reversed(jobs(self._folder)), None) if shutil.which("squeue") else None
        if job is None:
            return ""
        if job != self._job:
            self._job, self._pause, self._next = job, slurm.SOONEST, now
        if now >= self._next:
            self._ask(job, now)
        return f"Job {job.job}: {self.state}" if self.state else f"Job {job.job}: Slurm does not answer"

    @property
    def active(self) -> bool:
        """Whether there is still something to wait for."""
        return self._job is not None and (self.state is None or self.state.active)

    def hurry(self) -> None:
        """The run has ended: the job will, too, so that the next look asks."""
        self._pause, self._next = slurm.SOONEST, 0.0

    def _ask(self, job: Job, now: float) -> None:
        former = self.state
        try:
            self.state = slurm.states([job.job])[job.job]
        except SubmissionError:
            self.state = None
        self._pause = slurm.SOONEST if self.state != former else slurm.later(self._pause)
        self._next = now + self._pause
