"""What segments and the files beside them are called, and which of the files of a folder are such."""

from __future__ import annotations

import os
from functools import lru_cache

from ezpyp.model.naming import STORE_FOLDER
from ezpyp.system.files import is_temporary

#: Helpers of a rank, and the agent that has them.
_SLOTS = 2048
#: Segments that repacking made are numbered from here on.
BASE = 1 << 30


def number_of(rank: int, slot: int) -> int:
    """The segment of a helper, or of the agent of a rank (slot -1)."""
    return rank * _SLOTS + slot + 1


@lru_cache
def name_of(number: int) -> str:
    """What a segment is called: `0003.01.seg` of a helper, `0003.seg` of an agent, `base-1.seg` repacked."""
    if number >= BASE:
        return f"base-{number - BASE}.seg"
    rank, slot = divmod(number, _SLOTS)
    return f"{rank:04d}.{slot - 1:02d}.seg" if slot else f"{rank:04d}.seg"


def number_from(name: str) -> int:
    """The number of a segment of this name, -1 where it is none."""
    stem, dot, suffix = name.rpartition(".")
    if not dot or suffix != "seg":
        return -1
    try:
        if stem.startswith("base-"):
            found = BASE + int(stem.removeprefix("base-"))
        else:
            rank, _, slot = stem.partition(".")
            found = number_of(int(rank), int(slot) if slot else -1)
    except ValueError:
        return -1
    return found if name_of(found) == name else -1


def is_there(folder: str) -> bool:
    """Whether results of a folder are packed."""
    try:
        return any(number_from(name) >= 0 for name in os.listdir(f"{folder}/{STORE_FOLDER}"))
    except OSError:
        return False


def files_of(folder: str) -> list[str]:
    """Every file that packed results of a cache folder are kept in, or were to be."""
    try:
        names = os.listdir(f"{folder}/{STORE_FOLDER}")
    except OSError:
        return []
    return [f"{folder}/{STORE_FOLDER}/{name}" for name in sorted(names) if is_temporary(name) or _is_ours(name)]


def _is_ours(name: str) -> bool:
    beginning, at, rest = name.partition("@")
    if not at:
        beginning, _, rest = name.rpartition(".")
    known = number_from(f"{beginning}.seg") >= 0
    return known and (rest.partition(".")[2].startswith("step") if at else rest in ("seg", "idx"))
