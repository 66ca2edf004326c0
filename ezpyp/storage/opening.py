"""Open the store of a folder: what keeps results, by the name of its kind."""

from __future__ import annotations

import os
from collections.abc import Callable

from ezpyp.errors import StoreError
from ezpyp.model.naming import stems
from ezpyp.model.outcomes import Place
from ezpyp.storage.protocol import SHELF, Problem, Scan, Store, Writer, on_shelf
from ezpyp.storage.record import Record
from ezpyp.system.files import write_whole

__all__ = [
    "SHELF",
    "Place",
    "Problem",
    "Record",
    "Scan",
    "Store",
    "Writer",
    "on_shelf",
    "open_store",
    "stems",
    "usual_kind",
    "write_whole",
]

#: Up to so many steps have a file pair each, if nobody chose.
_MOST_FILES = 1000


def _memory(folder: str, writer: Writer | None) -> Store:
    from ezpyp.storage.memory import of_folder

    return of_folder(folder, writer)


def _files(folder: str, writer: Writer | None) -> Store:
    from ezpyp.storage.filestore import FileStore

    return FileStore(folder, writer)


def _packed(folder: str, writer: Writer | None) -> Store:
    from ezpyp.storage.packed import PackedStore

    return PackedStore(folder, writer)


#: A run has one of them, and loads no other.
_KINDS: dict[str, Callable[[str, Writer | None], Store]] = {"files": _files, "memory": _memory, "packed": _packed}


def open_store(kind: str, folder: str | os.PathLike[str], writer: Writer | None = None) -> Store:
    """The store of that kind; who writes through it needs to say who that is only to `add`.

    Raises:
        StoreError: there is none; the text lists those that are known.
    """
    if kind not in _KINDS:
        raise StoreError(f"There is no store '{kind}'. Known: {', '.join(sorted(_KINDS))}.")
    return _KINDS[kind](os.fspath(folder), writer)


def usual_kind(asked: str, steps: int) -> str:
    """The kind of store that a new folder gets for so many steps; `asked` "auto" where nobody chose."""
    return asked if asked != "auto" else "packed" if steps > _MOST_FILES else "files"
