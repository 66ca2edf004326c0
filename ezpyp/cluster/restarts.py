"""The starts of a Slurm job, one after the other: which goes on from which, and whether they get on.

A job that stopped before its time limit is started again, requeued or as another job in its place. What such a start
has to know of those before it is in `jobs/starts.json` of the folder, written at the beginning and at the end of each.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ezpyp.system import allocation
from ezpyp.system.files import write_whole
from ezpyp.work import checkpoints

NAME = "jobs/starts.json"
FORMAT = 1
#: Unless it is 1, no run starts its job again.
REQUEUE = "EZPYP_REQUEUE"
#: So many starts in a row that got nothing done are the last.
MOST_IDLE = 2
#: Of larger files that steps saved the time counts, of smaller ones the content: some save the same again.
_SMALL = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """A start of a job, as far as it has come."""

    job: str
    #: How often Slurm had restarted the job.
    restart: int
    #: Which start this is, from 1.
    number: int = 1
    #: When the first start began, and this one, in seconds since 1970.
    first: float
    began: float
    #: What failed since the first start and before this is not tried again; 0 for no end.
    failed_before: float
    #: Steps that had no outcome, and a digest of what steps had saved.
    left: int = 0
    saved: str = ""
    #: How many starts up to here, in a row, got nothing done.
    idle: int = 0
    #: The job that is to go on: the same where it is requeued, "" where none is.
    next: str = ""

    def keeps(self, when: float) -> bool:
        """Whether a step that failed at that time is left at that: only a run that a person starts tries it again.

        What failed in a start that Slurm lost, perhaps with its node, is tried again.
        """
        return self.number > 1 and self.first <= when and (not self.failed_before or when < self.failed_before)

    @property
    def is_last(self) -> bool:
        """Whether too many starts got nothing done."""
        return self.idle >= MOST_IDLE


def begun(former: Start | None, *, job: str, restart: int, now: float) -> Start:
    """This start, seen from the one before it in the folder. One that a person asked for goes on from none."""
    if former is not None and former.next == job:
        follows = replace(former, failed_before=0.0)
    elif former is not None and former.job == job and restart > former.restart:
        follows = replace(former, failed_before=former.began)
    else:
        return Start(job=job, restart=restart, first=now, began=now, failed_before=0.0)
    return replace(follows, job=job, restart=restart, number=former.number + 1, began=now, next="")


def ended(start: Start, *, left: int, saved: str) -> Start:
    """The start at its end: whether it got on."""
    gets_on = left < start.left or saved != start.saved
    return replace(start, idle=0 if gets_on else start.idle + 1)


def asked(environ: Mapping[str, str]) -> tuple[str, int] | None:
    """The job that this run is to start again where it needs more time, and how often it was; None for none."""
    job = allocation.job_of(environ)
    if not job or environ.get(REQUEUE, "") != "1":
        return None
    count = environ.get("SLURM_RESTART_COUNT", "")
    return job, int(count) if count.isdecimal() else 0


def told(start: Start) -> str:
    """For people, what comes after it; "" where nothing is to be said."""
    if start.next:
        how = "is requeued, and" if start.next == start.job else f"takes the place of job {start.job}, and"
        return f"Job {start.next} {how} goes on from here (start {start.number + 1})."
    if start.is_last:
        return (
            f"Job {start.job} is not started again: two starts in a row got nothing done. Ask more by --time, or save "
            "in ezpyp.checkpoint_dir(); then submit it again."
        )
    return ""


# ----- in the folder


def read(folder: str) -> Start | None:
    """The last start of a job of the folder; None where there is none that can be read."""
    try:
        content = json.loads(Path(folder, NAME).read_text(encoding="utf-8"))
        return Start(**content) if content.pop("format") <= FORMAT else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def write(folder: str, start: Start) -> None:
    """Raises StoreError where the folder cannot be written."""
    path = os.path.join(folder, NAME)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    content = {"format": FORMAT, **asdict(start)}
    write_whole(path, [json.dumps(content, ensure_ascii=False, indent=1).encode()], sync=True)


def saved_in(folder: str) -> str:
    """A digest of what steps saved and have not done with; "" where that is nothing."""
    found, root = hashlib.sha256(), os.path.join(folder, checkpoints.FOLDER)
    count = 0
    for where, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(where, name)
            try:
                state = os.stat(path)
                content = Path(path).read_bytes() if state.st_size <= _SMALL else str(state.st_mtime_ns).encode()
            except OSError:
                continue
            count += 1
            found.update(json.dumps([os.path.relpath(path, root), state.st_size]).encode())
            found.update(hashlib.sha256(content).digest())
    return found.hexdigest()[:32] if count else ""
