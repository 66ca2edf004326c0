"""What a step saves before it is done: a folder that survives its attempts and runs, and goes when it is done."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from ezpyp.errors import EzpypError
from ezpyp.model.plan import Plan
from ezpyp.system.running import inside_step

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = "checkpoints"


class Runner(Protocol):
    """Who runs steps in this process."""

    @property
    def plan(self) -> Plan: ...
    @property
    def fingerprints(self) -> Sequence[str]: ...
    @property
    def folder(self) -> str: ...


#: Who runs steps here, and the step that runs, or ran last.
current: tuple[Runner, int] | None = None
#: The step that asked for its folder last.
asked = -1


def checkpoint_dir() -> Path:
    """The folder in which the step that runs here finds what its earlier attempts saved, in this run or another.

    It lies in the cache folder, so every node sees it, and it is removed when the step is done. A step that changed
    begins with an empty one. As it may be killed at any moment, it writes under another name, then calls `os.replace`.

    Raises:
        EzpypError: no step runs here.
    """
    global asked
    if current is None or not inside_step():
        raise EzpypError("ezpyp.checkpoint_dir() is for steps: no step runs here. Call it in the function of a step.")
    from pathlib import Path

    worker, asked = current
    name = f"{worker.plan.stems[asked]}-{worker.fingerprints[asked][:16]}"
    path = Path(os.path.abspath(worker.folder), FOLDER, name)
    path.mkdir(parents=True, exist_ok=True)
    return path


def drop(folder: str, stem: str) -> None:
    """Remove what a step saved, also what it saved before it was changed. What cannot be removed does no harm."""
    root = os.path.join(folder, FOLDER)
    try:
        names = os.listdir(root)
    except OSError:
        return
    for name in names:
        if stem_of(name) == stem:
            import shutil

            shutil.rmtree(os.path.join(root, name), ignore_errors=True)


def stem_of(name: str) -> str:
    """The stem of the step whose folder this is, "" where it is none of ours."""
    found = re.fullmatch(r"(.+)-[0-9a-f]{16}", name)
    return found[1] if found else ""
