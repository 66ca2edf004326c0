"""Results of other folders: a step with equal fingerprint and sound checksum there is taken, not run."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping

from ezpyp.errors import SchemaConflictError, StoreError
from ezpyp.folder import schema as schemas
from ezpyp.model.naming import SCHEMA_FILE
from ezpyp.model.outcomes import Status
from ezpyp.storage import transfer
from ezpyp.storage.opening import Problem, Store, on_shelf, open_store
from ezpyp.storage.record import Record


def borrow(
    wanted: Mapping[str, str], folders: Iterable[str], store: Store, folder: str, *, pipeline_id: str
) -> Iterator[Problem]:
    """Put results of other folders on the shelf of this one; what is wrong with any of them.

    Args:
        wanted: fingerprints to the stems of their steps. The first folder that has a result gives it.

    Raises:
        SchemaConflictError, StoreError: a folder is no cache of this pipeline, or cannot be read.
    """
    left = dict(wanted)
    for other, source, record in _offered(left, folders, folder, pipeline_id):
        stem = left[record.fingerprint]
        try:
            place = on_shelf(stem, record)
            transfer.take(_noted(record, other), source, other, store, folder, place, files=stem)
            del left[record.fingerprint]
        except StoreError as error:
            yield Problem(path=other, what=f"a result was not taken. {error}")


def offers(wanted: Mapping[str, str], folders: Iterable[str], folder: str, *, pipeline_id: str) -> dict[str, Record]:
    """What `borrow` would take, by fingerprint, as long as it is sound; nothing is written.

    Raises:
        As `borrow`.
    """
    left = dict(wanted)
    found = {}
    for other, _, record in _offered(left, folders, folder, pipeline_id):
        found[record.fingerprint] = _noted(record, other)
        del left[record.fingerprint]
    return found


def _offered(
    left: Mapping[str, str], folders: Iterable[str], folder: str, pipeline_id: str
) -> Iterator[tuple[str, Store, Record]]:
    """Results of other folders for what is left; the caller takes from it what it got."""
    for other in folders:
        if os.path.realpath(other) == os.path.realpath(folder):
            continue
        source = _open(other, pipeline_id)
        for record in source.records().records.values():
            if record.fingerprint in left and record.outcome.status is Status.DONE and not record.outcome.dropped:
                yield other, source, record


def _noted(record: Record, folder: str) -> Record:
    """As it is to be here: what it printed stays there."""
    note = "; ".join(filter(None, (record.outcome.note, f"from {folder}")))
    return record._replace(outcome=record.outcome._replace(note=note, log=None))


def _open(folder: str, pipeline_id: str) -> Store:
    schema = schemas.read(folder)
    if schema is None:
        error = StoreError(
            f"reuse_from: {folder} has no {SCHEMA_FILE}, so it is no cache folder of ezpyp. Nothing was run."
        )
        error.exit_code = 3
        raise error
    about = schema["ezpyp"]
    if about["pipeline_id"] != pipeline_id:
        raise SchemaConflictError(
            f"reuse_from: {folder} belongs to pipeline '{about['pipeline_id']}', not to '{pipeline_id}', whose random "
            "draws are others. Nothing was run."
        )
    return open_store(about["store"], folder)
