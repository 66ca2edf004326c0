"""Take a result of one folder over into another: verified first, by a hard link where that can be, else by a copy."""

from __future__ import annotations

import os
from collections.abc import Iterator

from ezpyp.encoding import codecs
from ezpyp.errors import StoreError
from ezpyp.identity.contents import content_of
from ezpyp.model import outputs
from ezpyp.model.outputs import Kept
from ezpyp.storage.filestore import FileStore
from ezpyp.storage.opening import Problem, Store
from ezpyp.storage.record import Record
from ezpyp.system.files import link_whole


def take(record: Record, source: Store, there: str, target: Store, here: str, stem: str, *, files: str = "") -> None:
    """Put a record with its result, if it has one, under a stem of another store.

    Args:
        there, here: the folders of the two stores.
        files: the stem that its returned files lie under, where it is another.

    Raises:
        StoreError: what is there is torn, foreign or gone, or here cannot be written; the text says which.
    """
    outcome = record.outcome
    if not outcome.location or outcome.dropped:
        target.put(stem, record._replace(place=None), None)
        return
    data = source.get(record)
    verify_files(record, there)
    record = record._replace(outcome=outcome._replace(files=_linked(outcome.files, there, here, files or stem)))
    if isinstance(target, FileStore):
        os.makedirs(os.path.dirname(f"{here}/{stem}"), exist_ok=True)
    if not (isinstance(source, FileStore) and isinstance(target, FileStore)):
        target.put(stem, record, [data])
        return
    name = f"{stem}.step{codecs.get(outcome.codec).suffix}"
    link_whole(f"{there}/{outcome.location}", f"{here}/{name}", void=f"{here}/{stem}.status")
    target.put(stem, record._replace(outcome=record.outcome._replace(location=name)), None)


def verify_files(record: Record, folder: str) -> None:
    """Read the files that a step returned.

    Raises:
        StoreError: one of them is not what the step returned.
    """
    for wrong in wrong_files(record, folder):
        raise StoreError(f"{wrong.path}: {wrong.what}.")


def wrong_files(record: Record, folder: str) -> Iterator[Problem]:
    """The files that a step returned and that are not what they were. Reads all of them."""
    for place, _, content in record.outcome.files:
        path = f"{folder}/{place}"
        try:
            if content_of(path) != content:
                yield Problem(path=path, what=f"not what '{record.name}' returned: its checksum differs")
        except OSError as error:
            yield Problem(path=path, what=f"'{record.name}' returned it, and it is gone ({error.strerror})")


def _linked(kept: tuple[Kept, ...], there: str, here: str, stem: str) -> tuple[Kept, ...]:
    """The same files in another folder, which stay together as they are: a folder that was left is still one."""
    found = []
    names = [place.split("/", 2)[2] for place, *_ in kept]
    room = outputs.room_for(names, here, stem)
    for name, (place, size, content) in zip(names, kept, strict=True):
        new = f"{room}/{name}"
        os.makedirs(os.path.dirname(f"{here}/{new}"), exist_ok=True)
        link_whole(f"{there}/{place}", f"{here}/{new}", void="")
        found.append((new, size, content))
    return tuple(found)
