"""Append records to a segment: buffered, whole or not at all, by one process at a time."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Callable

from ezpyp.errors import StoreError
from ezpyp.storage import index, segment, series
from ezpyp.storage.protocol import Batch
from ezpyp.storage.segment import ATTEMPT, FIRST, GONE, HEAD, MAGIC, MARK, MOST_ATTEMPTS, OPENING, TURN, Segment
from ezpyp.storage.series import SEAL, TEXT
from ezpyp.system.files import refusal, sync_folder, write_all

#: What is buffered at most, in bytes.
_MOST = 1 << 22
_pack_head, _pack_seal, _pack_entry = HEAD.pack, SEAL.pack, index.ENTRY.pack


class Appender:
    """The end of one segment, which is continued where its last whole record ends.

    Who writes to it after another process of the same run must know that the other is gone; of another run, the lock of
    the folder sees to that. What is written is not torn by a kill or a full disk: what was flushed before stays, and
    nothing else does.
    """

    def __init__(self, path: str, *, host: str, turn: int, shared: bool, base: bool = False) -> None:
        """
        Args:
            turn: what is written counts as newer than all of lower turns.
            shared: other hosts read it: what is flushed survives this one.
            base: what is in other segments and of lower turns counts no more.

        Raises:
            StoreError: it cannot be written.
        """
        import xxhash

        self._path, self._shared = path, shared
        #: Whether the names of its file and folder would survive a power failure.
        self._is_named = True
        self._index = self._descriptor = -1
        self._digest = xxhash.xxh3_64_intdigest
        #: What is to be written, its length, and its entries.
        self._parts: list[bytes] = []
        self._size = 0
        self._entries: list[bytes] = []
        #: Entries that are not in the index yet.
        self._unlisted = bytearray()
        #: Where the whole records on disk end.
        self.end = FIRST
        self._synced = True
        #: Why nothing more can be written.
        self._broken_by: OSError | None = None
        #: What a flush that nobody asked for lost.
        self._lost: StoreError | None = None
        self._order = turn << TURN
        try:
            self._open()
            self._open_index()
        except OSError as error:
            self.close()
            raise refusal(path, error) from error
        except ValueError as error:
            self.close()
            raise StoreError(f"{path} cannot be continued: {error}. Put it elsewhere, then run again.") from error
        self._open_for(host, OPENING | GONE * base)

    def __del__(self) -> None:
        self.close()

    def _open(self) -> None:
        # Opened afresh: a network file system then asks the server how long it is.
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        start = os.pread(self._descriptor, FIRST, 0)
        if len(start) < FIRST and MAGIC.startswith(start[: len(MAGIC)]):  # new, or its maker was killed
            start = MAGIC + os.urandom(FIRST - len(MAGIC))
            _cut(self._descriptor, 0)
            write_all(self._descriptor, start)
            self._is_named = False
            if self._shared:
                os.fdatasync(self._descriptor)
                self._sync_names()
        self.salt = segment.salt_of(start)

    def _open_index(self) -> None:
        """Cut off what a kill left torn, and let the index list what is there."""
        found = index.tail(Segment(self._path))
        self.end = found.end
        _cut(self._descriptor, self.end)
        os.lseek(self._descriptor, self.end, os.SEEK_SET)
        self._index = os.open(index.index_of(self._path), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._listed = found.indexed
        _cut(self._index, self._listed)
        self._unlisted += found.missing if found.indexed else index.beginning(self.salt) + found.missing

    def open_for(self, host: str) -> None:
        """Let what follows be known as that host's."""
        self._open_for(host, OPENING)

    def _open_for(self, host: str, flags: int) -> None:
        self.opening = self.at
        words = json.dumps({"format": 1, "host": host}, ensure_ascii=False).encode(*TEXT)
        self.write(flags=flags, order=self._order, extras=words)

    @property
    def at(self) -> int:
        """Where the next record begins."""
        return self.end + self._size

    @property
    def waiting(self) -> bool:
        """Whether something is to be flushed, or to be told."""
        return bool(self._parts) or self._lost is not None

    def append(
        self,
        stem: bytes,
        name: bytes,
        codec: bytes,
        extras: bytes,
        flags: int,
        status: int,
        order: int,
        attempt: int,
        rank: int,
        when: float,
        seconds: float,
        fingerprint: bytes,
        checksum: int,
        size: int,
        result: bytes,
        /,
    ) -> int:
        """Add a record; where it begins. Lost if the next flush fails. By position only: this is the hot path.

        Args:
            size, result: the length of the result, wherever it lies, and the result, empty where it lies elsewhere.
        """
        offset, digest, parts = self.end + self._size, self._digest, self._parts
        head = (
            _pack_head(
                MARK, flags, status, len(stem), len(name), len(codec), len(extras), attempt, rank, self.opening, order,
                size, when, seconds, fingerprint, checksum,
            )
            + stem + name + codec + extras
        )  # fmt: skip
        parts.append(head)
        parts.append(_pack_seal(digest(head, self.salt ^ offset)))
        parts.append(result)
        length = len(head) + SEAL.size + len(result)
        self._size += length
        of_stem, number = index.key_of(stem) if stem else (0, 0)
        self._entries.append(_pack_entry(offset, length, flags, status, 0, order, of_stem, fingerprint, number))
        self._make_room()
        return offset

    def append_series(self, batch: Batch, checksums: array[int], rank: int) -> int:
        """Add records of members of a family as one; where it begins. As `append`."""
        offset, order, count = self.end + self._size, self.order(1), len(batch.results)
        head, size = series.packed(batch, checksums, rank=rank, opening=self.opening, order=order)
        self._parts += (head, _pack_seal(self._digest(head, self.salt ^ offset)), *batch.results)
        length = len(head) + SEAL.size + size
        self._size += length
        of_label = index.digest_of(batch.label.encode(*TEXT))
        of_all = series.digest_of(batch.first, batch.fingerprints)
        self._entries.append(_pack_entry(offset, length, 0, 0, count, order, of_label, of_all, batch.first))
        self._make_room()
        return offset

    def _make_room(self) -> None:
        if self._size > _MOST:
            try:
                self._write()
            except StoreError as error:
                self._lost = error
                raise

    def order(self, attempt: int) -> int:
        """The order of a record of an attempt."""
        return self._order + (attempt << ATTEMPT if attempt < MOST_ATTEMPTS else MOST_ATTEMPTS << ATTEMPT)

    def write(self, stem: bytes = b"", *, flags: int, order: int, attempt: int = 0, extras: bytes = b"") -> int:
        """Add a record of which there is little to say."""
        return self.append(stem, b"", b"", extras, flags, 0, order, attempt, 0, 0.0, 0.0, segment.NO_PRINT, 0, 0, b"")

    def flush(self) -> None:
        """Have what was added survive the end of any process, and where hosts share the folder of this host.

        Raises:
            StoreError: it cannot be written, and is lost; what was flushed before is untouched.
        """
        lost, self._lost = self._lost, None
        if lost is not None:
            raise lost
        if self._parts:
            self._write()

    def _write(self) -> None:
        parts, self._parts, self._size = self._parts, [], 0
        entries, self._entries = self._entries, []
        data = b"".join(parts)
        try:
            if os.fstat(self._descriptor).st_size != self.end:
                raise StoreError(
                    f"{self._path} was changed by another process while this one wrote to it. "
                    "Let only one run use the folder, then run again."
                )
            write_all(self._descriptor, data)
            if self._shared:
                os.fdatasync(self._descriptor)
        except OSError as error:
            reason = self._broken_by or error
            self._cut(reason)
            raise refusal(self._path, reason, " Former content is untouched.") from error
        self.end += len(data)
        self._synced = self._shared
        self._unlisted += b"".join(entries)
        self._write_index()

    def _cut(self, reason: OSError) -> None:
        """Take back what was not written whole. Where that fails too, the next opening does it."""
        try:
            os.ftruncate(self._descriptor, self.end)
            os.lseek(self._descriptor, self.end, os.SEEK_SET)
        except OSError:
            self._broken_by = reason
            self.close()

    def _write_index(self) -> None:
        """Never in the way: whoever reads finds in the segment what the index lacks."""
        try:
            written = os.pwrite(self._index, self._unlisted, self._listed)
        except OSError:
            return
        self._listed += written
        del self._unlisted[:written]

    def sync(self) -> None:
        """Flush, and have all survive a power failure.

        Raises:
            StoreError: the disk refused.
        """
        self.flush()
        if not self._synced:
            try:
                os.fdatasync(self._descriptor)
            except OSError as error:
                raise refusal(self._path, error) from error
            self._synced = True
        if not self._is_named:
            self._sync_names()

    def _sync_names(self) -> None:
        # Late: a file system may write all that others left unwritten before it has synced a folder.
        folder = os.path.dirname(self._path)
        sync_folder(folder)
        sync_folder(os.path.dirname(folder))
        self._is_named = True

    def close(self, close: Callable[[int], object] = os.close) -> None:
        """What waits to be flushed is lost. `close` outlives the names of this module when the interpreter ends."""
        for descriptor in (self._descriptor, self._index):
            if descriptor >= 0:
                close(descriptor)
        self._descriptor = self._index = -1


def _cut(descriptor: int, size: int) -> None:
    """Have a file end there. One that does is left alone: ext4 may wait for all that the disk is writing."""
    if os.fstat(descriptor).st_size != size:
        os.ftruncate(descriptor, size)
