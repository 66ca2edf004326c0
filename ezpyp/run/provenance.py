"""Where a run comes from: what its journal says besides what happened. Nothing here may fail a run."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import time
from collections.abc import Iterator, Mapping
from typing import Any

from ezpyp.system.allocation import job_of

#: Seconds that git may take.
_ANSWER = 2.0
#: Variables that change what a run does or where it runs.
_RELEVANT = re.compile(r"EZPYP_(?!OUTCOME$).*|CUDA_VISIBLE_DEVICES|OMP_NUM_THREADS|SLURM_JOB_.*")


class Origin:
    """Asked for when it is made, told when it is needed: git takes milliseconds, in which a run can begin."""

    def __init__(self, script: str, environ: Mapping[str, str] = os.environ) -> None:
        try:
            directory = os.getcwd()
        except OSError:  # removed since
            directory = ""
        self._known = {
            "script": script,
            "directory": directory,
            "job": job_of(environ),
            "environment": {k: environ[k] for k in sorted(environ) if _RELEVANT.fullmatch(k)},
        }
        self._state: tuple[str, bool | None] = "", None
        self._asked = _ask(os.path.dirname(script) or directory)

    def tell(self) -> dict[str, Any]:
        """Fields of a RunStarted. Waits for git, until 2 s after it was asked."""
        asked, self._asked = self._asked, None
        if asked is not None:
            self._state = _understood(asked.answer())
        commit, dirty = self._state
        return {**self._known, "commit": commit, "dirty": dirty}

    def forget(self) -> None:
        """Nobody wants to know any more."""
        asked, self._asked = self._asked, None
        if asked is not None:
            asked.answer(patience=0.0)


class _Question:
    """A program that was asked something."""

    def __init__(self, command: list[str], environ: Mapping[str, str]) -> None:
        """
        Raises:
            OSError: there is no such program, or no room for it.
        """
        self._began = time.monotonic()
        self._output, theirs = os.pipe()
        try:
            # Not by subprocess: to import that takes as long as git does.
            actions: list[tuple[int, int, str, int, int] | tuple[int, int, int]] = [
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDWR, 0),
                (os.POSIX_SPAWN_DUP2, theirs, 1),
                (os.POSIX_SPAWN_DUP2, 0, 2),
            ]
            self._pid = os.posix_spawnp(command[0], command, environ, file_actions=actions)
        except BaseException:
            os.close(self._output)
            raise
        finally:
            os.close(theirs)

    def answer(self, *, patience: float = _ANSWER) -> str | None:
        """What it wrote; None where it failed, or took longer since it was asked, and was ended."""
        poll, pieces, failed = select.poll(), [b""], 0
        poll.register(self._output)
        try:
            while poll.poll(max(0.0, 1000 * (self._began + patience - time.monotonic()))):
                piece = os.read(self._output, 1 << 16)
                if not piece:
                    break
                pieces.append(piece)
            else:
                os.kill(self._pid, signal.SIGKILL)
        finally:
            os.close(self._output)
            with contextlib.suppress(ChildProcessError):  # where the script ignores SIGCHLD
                failed = os.waitpid(self._pid, 0)[1]
        return None if failed else b"".join(pieces).decode(errors="replace")


def _ask(folder: str) -> _Question | None:
    """Ask git about the repository of a folder, if there is one."""
    if not folder or not any(os.path.lexists(f"{each}/.git") for each in _upwards(folder)):
        return None
    command = [
        *("git", "-c", "core.fsmonitor=false", "-C", folder),
        *("status", "--porcelain=v2", "--branch", "--untracked-files=no"),
    ]
    try:
        return _Question(command, {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"})
    except OSError:
        return None


def _upwards(folder: str) -> Iterator[str]:
    """A folder and those above it."""
    yield folder
    while (above := os.path.dirname(folder)) != folder:
        folder = above
        yield folder


def _understood(answer: str | None) -> tuple[str, bool | None]:
    """The commit, and whether tracked files differ from it; ("", None) where git did not say."""
    lines = (answer or "").splitlines()
    commit = next((line.split()[-1] for line in lines if line.startswith("# branch.oid ")), "")
    if not re.fullmatch("[0-9a-f]{40,64}", commit):
        return "", None
    return commit, any(not line.startswith("#") for line in lines)
