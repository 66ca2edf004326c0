"""What a run does about the next start of its Slurm job: decides before it ends, and orders it when all is written.

Rank 0 does it, not the batch script: it knows why the run ended, where a launcher's exit code cannot be trusted, and
the script stays one that `exec`s the launcher, which the warning then reaches. As `scontrol requeue` ends the job, it
is the last that the script does.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ezpyp.cluster import restarts, slurm, submission
from ezpyp.cluster.restarts import Start
from ezpyp.errors import StoreError, SubmissionError
from ezpyp.system.resources import scrubbed

#: Seconds between tries while the controller is too busy to answer.
_PATIENCE = (2.0, 5.0, 10.0)
_BUSY = ("timed out", "Unable to contact", "try again", "did not answer")
#: Set by Slurm for one job; another has its own.
_OF_A_JOB = (
    *("SLURM_", "SLURMD_", "CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"),
    *("GPU_DEVICE_ORDINAL", "ZE_AFFINITY_MASK"),
)
#: Set by a person for all jobs.
_OF_A_SITE = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT")


class NextStart:
    """The next start of the job that this run is part of."""

    def __init__(self, folder: str, start: Start) -> None:
        self._folder, self.start = folder, start

    @classmethod
    def of(cls, folder: str, environ: Mapping[str, str]) -> NextStart | None:
        """None where no next start was asked for: there is no job, or EZPYP_REQUEUE is not 1."""
        found = restarts.asked(environ)
        if found is None:
            return None
        job, restart = found
        return cls(folder, restarts.begun(restarts.read(folder), job=job, restart=restart, now=time.time()))

    def begin(self, left: int) -> None:
        """The run begins with so many steps that have no outcome."""
        self.start = replace(self.start, left=left, saved=restarts.saved_in(self._folder))
        try:
            restarts.write(self._folder, self.start)
        except StoreError as error:
            print(f"ezpyp: {error}", file=sys.stderr)

    def end(self, left: int, *, for_time: bool) -> str:
        """The run ends with so many: the job that is to go on, "" for none. `for_time` says that it needs more time."""
        start = self.start
        if for_time and left:
            start = restarts.ended(start, left=left, saved=restarts.saved_in(self._folder))
            start = start if start.is_last else replace(start, next=start.job)
        try:
            restarts.write(self._folder, start)
        except StoreError as error:  # the next start could not know whose it is
            print(f"ezpyp: job {start.job} is not started again: {error}", file=sys.stderr)
            return ""
        self.start = start
        if start.is_last:
            print(f"ezpyp: {restarts.told(start)}", file=sys.stderr)
        return start.next

    def order(self) -> None:
        """Have Slurm start the job again, or another in its place. Where that succeeds, this process is soon ended."""
        start = self.start
        refused = _requeue(start.job)
        if not refused:
            return
        try:
            number = _follow_up(self._folder, start.job)
        except (SubmissionError, StoreError) as error:
            number = ""
            end = f"is not started again ({refused}): {error} To go on: submit it again"
        else:
            end = f"may not be requeued ({refused}): job {number} takes its place"
        print(f"ezpyp: job {start.job} {end}.", file=sys.stderr, flush=True)
        restarts.write(self._folder, replace(start, next=number))


def _requeue(job: str) -> str:
    """Why Slurm does not requeue a job; "" where it does."""
    for pause in (*_PATIENCE, 0.0):
        refused = slurm.requeue(job)
        if not any(word in refused for word in _BUSY):
            return refused
        time.sleep(pause)
    return refused


def _follow_up(folder: str, job: str) -> str:
    """Submit a job anew, to begin when this one has ended; its number. Of jobs that `ezpyp submit` did not submit, it
    asks for what Slurm tells of them.

    Raises:
        SubmissionError: Slurm refuses, or does not tell enough.
    """
    mine, environ = next((each for each in submission.jobs(folder) if each.job == job), None), surroundings(os.environ)
    if mine is not None:
        script = os.path.join(folder, mine.batch)
        number, cluster = slurm.submit(script, flags=["--dependency=singleton"], environ=environ)
        with contextlib.suppress(StoreError):  # it goes on all the same, though `ezpyp watch` cannot say so
            submission.note(folder, replace(mine, job=number, cluster=cluster, when=time.time()))
        return number
    if "SLURM_ARRAY_TASK_ID" in os.environ:
        raise SubmissionError("it is a task of an array, and no other job would be that task.")
    about, script = slurm.described(job), os.path.join(folder, f"jobs/{job}.sbatch")
    args = _words(about.args, sys.orig_argv)
    slurm.write_script(job, script)
    try:
        # Of such a name there may be other jobs.
        flags = [*about.flags, f"--dependency=afterany:{job}"]
        return slurm.submit(script, *args, flags=flags, environ=environ)[0]
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(script)


def _words(text: str, argv: Sequence[str]) -> list[str]:
    """The arguments of a batch script, which Slurm tells as one text: they are those of the Python that it started."""
    for k in range(len(argv) + 1):
        if " ".join(argv[k:]) == text:
            return [*argv[k:]]
    raise SubmissionError(f"the arguments of its script, {text!r}, cannot be told apart.")


def surroundings(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for another job: without what launchers and Slurm said of this one, and of when it ends."""
    found = scrubbed(environ)
    for name in [*found]:
        is_time = name == "EZPYP_TIME_LIMIT" and found[name].startswith("@")
        if is_time or (name.startswith(_OF_A_JOB) and name not in _OF_A_SITE):
            del found[name]
    return found
