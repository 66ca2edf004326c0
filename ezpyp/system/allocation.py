"""The time that this run was given: by the user, or by Slurm to the job that it is part of."""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Mapping

from ezpyp.errors import InitializationError
from ezpyp.system.proc import look

#: Seconds that rank 0 waits for Slurm's answer. Without one there is no limit; the warning comes all the same.
_ANSWER = 20.0
_UNITS = (("d", 86400), ("h", 3600), ("m(?:in)?", 60), ("s", 1))


def seconds_left(environ: Mapping[str, str], now: float) -> float:
    """The seconds until this run has to have ended; infinite where nobody says. May ask Slurm, once.

    Args:
        now: the time as seconds since 1970.

    Raises:
        InitializationError: EZPYP_TIME_LIMIT makes no sense.
    """
    if text := environ.get("EZPYP_TIME_LIMIT", "").strip():
        end, limit = _end_of(text[1:]) if text.startswith("@") else None, seconds_of(text)
        if end is not None:
            return end - now
        if limit is None:
            raise InitializationError(
                f"EZPYP_TIME_LIMIT={text!r}: give seconds from the start, as in 90s, 2h, 1d12h or 02:00:00, or "
                "the end as @SECONDS since 1970 or @2026-11-21T18:00:00."
            )
        return limit - (process.age if (process := look()) is not None else 0.0)
    job = job_of(environ)
    return _left_of_job(job) if job else math.inf


def job_of(environ: Mapping[str, str]) -> str:
    """What Slurm calls the job that this process is part of, "" without one.

    A task of an array is called 12_3: the number of one of them is that of the whole array.
    """
    array, task = environ.get("SLURM_ARRAY_JOB_ID"), environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else environ.get("SLURM_JOB_ID", "")


def seconds_of(text: str) -> float | None:
    """A duration: `90`, `90s`, `2h`, `1d12h`, or days, hours, minutes and seconds as Slurm writes them: `1-12:00:00`,
    `2:30:00`, `30:00`, `UNLIMITED`. None where it is none.
    """
    text = text.strip()
    if text == "UNLIMITED":
        return math.inf
    with contextlib.suppress(ValueError):
        seconds = float(text)
        return seconds if 0 <= seconds < math.inf else None
    found = re.fullmatch("".join(rf"(?:(\d+){unit})?" for unit, _ in _UNITS), text)
    if found and text:
        return float(sum(int(each or 0) * size for each, (_, size) in zip(found.groups(), _UNITS, strict=True)))
    found = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):)?(\d+):(\d+)", text)
    if found:
        return float(sum(int(each or 0) * size for each, (_, size) in zip(found.groups(), _UNITS, strict=True)))
    return None


def _end_of(text: str) -> float | None:
    """A time as seconds since 1970, or as `squeue -o %e` writes the end of a job: by the clock here, or a word where
    there is no end, or nothing where Slurm did not answer. None where it is none of these.
    """
    if re.fullmatch(r"\d+(\.\d*)?", text):
        return float(text)
    if text in ("", "NONE", "N/A", "Unknown"):
        return math.inf
    from datetime import datetime

    with contextlib.suppress(ValueError, OverflowError):
        return datetime.fromisoformat(text).timestamp()
    return None


def spoken(seconds: float) -> str:
    """A duration as people say it: `5 h 10 min`, `2 min 5 s`, `5.2 s`."""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes % 60 else f"{minutes // 60} h"


def _left_of_job(job: str) -> float:
    """What Slurm says, which has no variable for it before version 23."""
    import subprocess

    try:
        told = subprocess.run(
            ["squeue", "-h", "-j", job, "-o", "%L"],
            capture_output=True,
            text=True,
            timeout=_ANSWER,
            env={**os.environ, "LC_ALL": "C"},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return math.inf
    left = None if told.returncode else seconds_of(told.stdout)  # INVALID
    return math.inf if left is None else left
