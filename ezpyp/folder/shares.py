"""The folders of shares: each has its own within the folder of the pipeline, so that none writes where another does.

CACHE/shares/3-of-5/ is a cache folder like any other, of the whole plan, with the results of the third of five shares
and of what it needed. The next run in CACHE that is no share takes in what is there, and removes it.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from ezpyp.model.naming import SCHEMA_FILE

if TYPE_CHECKING:
    from ezpyp.model.shares import Share

FOLDER = "shares"
_NAME = r"(\d+)-of-(\d+)"


def folder_of(main: str, share: Share) -> str:
    """Where a share of a pipeline that has the folder `main` writes."""
    return f"{main}/{FOLDER}/{share.number}-of-{share.total}"


def main_of(folder: str) -> str | None:
    """The folder of the pipeline of which this is the folder of a share; None where it is none."""
    parent, name = os.path.split(folder)
    main, above = os.path.split(parent)
    return main if above == FOLDER and re.fullmatch(_NAME, name) else None


def found(main: str) -> list[tuple[Share, str]]:
    """The shares of a pipeline that have begun, with their folders, in order."""
    try:
        names = os.listdir(f"{main}/{FOLDER}")
    except (FileNotFoundError, NotADirectoryError):
        return []
    from ezpyp.model.shares import Share

    known = [Share(int(name[1]), int(name[2])) for name in (re.fullmatch(_NAME, name) for name in names) if name]
    folders = ((share, folder_of(main, share)) for share in sorted(known, key=lambda each: (each.total, each.number)))
    return [(share, folder) for share, folder in folders if os.path.exists(f"{folder}/{SCHEMA_FILE}")]
