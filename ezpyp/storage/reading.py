"""Read the files that hold results: small ones as bytes, large ones as memory of the reader's own, verified once."""

from __future__ import annotations

import os

from ezpyp.storage.protocol import verified
from ezpyp.storage.record import Record
from ezpyp.system.files import Buffer
from ezpyp.system.maps import loaded, mapped

#: Results from this size on are mapped: below it, reading costs no more.
LARGE = 1 << 20
#: Bytes that the first read of a file asks for.
_AT_ONCE = 1 << 14
#: Of so many large files it is known that they are sound.
_MOST = 10_000


class Reader:
    """Reads results that have a file of their own. What was verified or written here, and is as it was, is not verified
    again.
    """

    def __init__(self, *, shared: bool) -> None:
        """With `shared`, other hosts may replace the files: a map would end this process then, so they are read."""
        self._shared = shared
        #: How files were when their content was verified.
        self._sound: dict[str, tuple[object, ...]] = {}

    def trust(self, path: str, facts: os.stat_result, checksum: str) -> None:
        """What is in the file has this checksum: this process wrote or verified it when the file was so."""
        if facts.st_size >= LARGE:
            if len(self._sound) >= _MOST:
                self._sound.clear()
            self._sound[path] = _state(facts, checksum)

    def read(self, path: str, record: Record) -> Buffer:
        """The content of the file.

        Raises:
            OSError: it cannot be read.
            StoreError: it is not what the record says.
        """
        if record.outcome.bytes < LARGE:
            return verified(read_small(path), record, path)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            facts = os.fstat(descriptor)
            data = (loaded if self._shared else mapped)(descriptor, facts.st_size)
        finally:
            os.close(descriptor)
        checksum = record.outcome.checksum
        if self._shared or self._sound.get(path) != _state(facts, checksum):
            verified(data, record, path)
            self.trust(path, facts, checksum)
        return data


def _state(facts: os.stat_result, checksum: str) -> tuple[object, ...]:
    return facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, checksum


def read_small(path: str) -> bytes:
    """All of a file, which is likely to be small.

    Raises:
        OSError: it cannot be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.read(descriptor, _AT_ONCE)
        if len(data) < _AT_ONCE:
            return data
        pieces = [data]
        while data := os.read(descriptor, LARGE):
            pieces.append(data)
        return b"".join(pieces)
    finally:
        os.close(descriptor)
