"""Who holds a cache folder, and whether that run is provably gone.

The proof is never a matter of time: a run that is suspended, or cut off from the file system, comes back.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from ezpyp.system.proc import look, told
from ezpyp.tuples import NamedTuple

FORMAT = 1

#: The first namespace of process ids on any Linux (PROC_PID_INIT_INO): a process there is in no container of its own.
_WHOLE_MACHINE = "pid:[4026531836]"

#: States of squeue(1) in which none of a job's processes is left. COMPLETING is not one: some may still be ending.
#: NODE_FAIL is: ranks on a node that is cut off end themselves (EZPYP_LOST_AFTER) before Slurm gives it up.
_OVER = frozenset(
    (
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PENDING"),
        *("PREEMPTED", "REQUEUE_HOLD", "RESV_DEL_HOLD", "REVOKED", "SPECIAL_EXIT", "TIMEOUT"),
    )
)

#: Seconds for the one question to Slurm.
_ANSWER = 2.0


class Holder(NamedTuple):
    """A process, told so that other processes on other hosts can judge whether it still is."""

    #: Different for every hold.
    token: str
    #: Seconds since 1970 by the holder's clock: for people.
    since: float
    user: str
    host: str
    #: /etc/machine-id, "" where there is none.
    machine: str
    #: The kernel's name for the time since it was started.
    boot: str
    #: Within which the pid counts.
    namespace: str
    pid: int
    #: Clock ticks from boot to the start of the process: a later one with the same pid has another.
    started: int
    #: The Slurm job, its cluster, and how often Slurm has restarted it; "" without Slurm.
    job: str = ""
    cluster: str = ""
    restart: int = 0

    @property
    def name(self) -> str:
        return f"job {self.job}" if self.job else f"process {self.pid}"


def present(environ: Mapping[str, str] = os.environ) -> Holder:
    """This process, with a new token."""
    return Holder(
        token=os.urandom(8).hex(),
        since=time.time(),
        user=user_name(os.getuid()),
        host=os.uname().nodename,
        machine=told("/etc/machine-id").strip(),
        boot=told("/proc/sys/kernel/random/boot_id").strip(),
        namespace=_namespace(),
        pid=os.getpid(),
        started=us.ticks if (us := look()) is not None else 0,
        job=environ.get("SLURM_JOB_ID", ""),
        cluster=environ.get("SLURM_CLUSTER_NAME", ""),
        restart=_number(environ.get("SLURM_RESTART_COUNT", "")),
    )


def user_name(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


# ----- in a file


def to_json(holder: Holder) -> bytes:
    when = datetime.fromtimestamp(holder.since, UTC).isoformat(timespec="seconds")
    return json.dumps({"format": FORMAT, **holder._asdict(), "since": when}, ensure_ascii=False, indent=1).encode()


def from_json(text: bytes) -> Holder:
    """Raises ValueError for what no ezpyp up to this version wrote."""
    try:
        content: dict[str, Any] = json.loads(text)
        if content.pop("format") > FORMAT:
            raise ValueError("a newer format")
        holder = Holder(**{**content, "since": datetime.fromisoformat(content["since"]).timestamp()})
        sound = re.fullmatch(r"[0-9a-f]{16}", holder.token) and holder.pid > 0
    except (TypeError, KeyError, AttributeError, OverflowError) as error:
        raise ValueError(str(error)) from error
    if not sound:
        raise ValueError("not a holder that ezpyp wrote")
    return holder


# ----- gone?


def is_gone(holder: Holder, us: Holder) -> bool:
    """True on proof alone. Asks Slurm once where nothing else can tell; blocks for 2 s at most."""
    if holder.boot and (holder.boot, holder.namespace) == (us.boot, us.namespace):
        return not _lives(holder)
    if _rebooted(holder, us):
        return True
    if not holder.job or (holder.cluster and us.cluster and holder.cluster != us.cluster):
        return False
    if holder.job == us.job:
        return us.restart > holder.restart
    return _job_is_over(holder, us)


def _lives(holder: Holder) -> bool:
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    process = look(holder.pid)
    # Where /proc hides the processes of others (hidepid=2) nothing is proved.
    return process is None or (process.ticks == holder.started and process.is_alive)


def _rebooted(holder: Holder, us: Holder) -> bool:
    """The same machine, started again. Only where the name of the host surely means one machine: those of containers
    and of machines that nobody named do not.
    """
    named = bool(us.host and us.machine and us.boot and holder.boot) and not us.host.startswith("localhost")
    same = (holder.host, holder.machine) == (us.host, us.machine) and holder.boot != us.boot
    return named and same and holder.namespace == us.namespace == _WHOLE_MACHINE


def _job_is_over(holder: Holder, us: Holder) -> bool:
    """Ask squeue(1). A job that it does not know is over, if it is one of ours: those of others may be hidden."""
    import shutil
    import subprocess

    program = shutil.which("squeue")
    if program is None or not holder.job.isdecimal():
        return False
    # Outside a job it is not said which cluster squeue means: name the holder's.
    elsewhere = {"SLURM_CLUSTERS": holder.cluster} if holder.cluster and not us.cluster else {}
    try:
        told = subprocess.run(
            [program, "-h", "-j", holder.job, "-o", "%T"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_ANSWER,
            env={**os.environ, **elsewhere},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    states = told.stdout.split()
    if states:
        return told.returncode == 0 and _OVER.issuperset(states)
    unknown = told.returncode == 0 or "Invalid job id" in told.stderr
    return unknown and holder.user == us.user


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0
