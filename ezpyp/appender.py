"""Append records to a segment: buffered, whole or not at all, by one process at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence

from ezpyp import catalog, segment
from ezpyp.errors import StoreError
from ezpyp.files import Buffer, refusal, sync_folder, write_all
from ezpyp.segment import FIRST, HEAD, MAGIC, OPENING, Segment

#: What is buffered at most, in bytes.
_MOST = 1 << 22


class Appender:
    """The end of one segment, which is continued where its last whole record ends.

    Who writes to it after another process of the same run must know that the other is gone; of another run, the lock of
    the folder sees to that. What is written is not torn by a kill or a full disk: what was flushed before stays, and
    nothing else does.
    """

    def __init__(self, path: str, *, rank: int, host: str, turn: int, shared: bool) -> None:
        """
        Args:
            turn: what is written counts as newer than all of lower turns.
            shared: other hosts read it: what is flushed survives this one.

        Raises:
            StoreError: it cannot be written.
        """
        self._path, self._shared, self.rank = path, shared, rank
        self._index = self._descriptor = -1
        self._buffer, self._entries = bytearray(), bytearray()
        #: Where the whole records on disk end.
        self.end = FIRST
        self._synced = True
        #: What a flush that nobody asked for lost.
        self._lost: StoreError | None = None
        self._order = segment.order_of(turn, 0)
        try:
            self._open()
            self._open_index()
        except OSError as error:
            self.close()
            raise refusal(path, error) from error
        except ValueError as error:
            self.close()
            raise StoreError(f"{path} cannot be continued: {error}. Put it elsewhere, then run again.") from error
        self.opening = self.end
        words = json.dumps({"format": 1, "host": host}, ensure_ascii=False).encode(*segment.TEXT)
        self.append(b"", flags=OPENING, order=self._order, extras=words, opening=self.opening)

    def __del__(self) -> None:
        self.close()

    def _open(self) -> None:
        # Opened afresh: a network file system then asks the server how long it is.
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        start = os.pread(self._descriptor, FIRST, 0)
        if len(start) < FIRST and MAGIC.startswith(start[: len(MAGIC)]):  # new, or its maker was killed
            start = MAGIC + os.urandom(FIRST - len(MAGIC))
            os.ftruncate(self._descriptor, 0)
            write_all(self._descriptor, start)
            if self._shared:
                os.fdatasync(self._descriptor)
            sync_folder(os.path.dirname(self._path))
        self.salt = segment.salt_of(start)

    def _open_index(self) -> None:
        """Cut off what a kill left torn, and let the index list what is there."""
        found = catalog.tail(Segment(self._path))
        self.end = found.end
        os.ftruncate(self._descriptor, self.end)
        os.lseek(self._descriptor, self.end, os.SEEK_SET)
        self._index = os.open(catalog.index_of(self._path), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._listed = found.indexed
        os.ftruncate(self._index, self._listed)
        self._entries += found.entries if found.indexed else catalog.beginning(self.salt) + found.entries

    @property
    def at(self) -> int:
        """Where the next record begins."""
        return self.end + len(self._buffer)

    @property
    def waiting(self) -> bool:
        """Whether something is to be flushed, or to be told."""
        return bool(self._buffer) or self._lost is not None

    def append(
        self,
        stem: bytes,
        *,
        flags: int,
        order: int,
        status: int = 0,
        name: bytes = b"",
        codec: bytes = b"",
        extras: bytes = b"",
        attempt: int = 0,
        when: float = 0.0,
        seconds: float = 0.0,
        fingerprint: bytes = bytes(16),
        checksum: int = 0,
        size: int = 0,
        chunks: Sequence[Buffer] = (),
        opening: int | None = None,
        rank: int | None = None,
    ) -> int:
        """Add a record; where it begins. Lost if the next flush fails.

        Args:
            chunks: the result, unless it lies elsewhere.
            size: of the result, wherever it lies.
        """
        offset = self.end + len(self._buffer)
        head = HEAD.pack(
            segment.MARK,
            flags,
            status,
            len(stem),
            len(name),
            len(codec),
            len(extras),
            attempt,
            self.rank if rank is None else rank,
            self.opening if opening is None else opening,
            order,
            size,
            when,
            seconds,
            fingerprint,
            checksum,
        )
        self._buffer += segment.sealed(b"".join((head, stem, name, codec, extras)), self.salt, offset)
        for chunk in chunks:
            self._buffer += chunk
        length = self.end + len(self._buffer) - offset
        digest = 0 if flags & OPENING else catalog.digest_of(stem)
        self._entries += catalog.ENTRY.pack(offset, length, flags, status, digest, order, fingerprint)
        if len(self._buffer) > _MOST:
            try:
                self._write()
            except StoreError as error:
                self._lost = error
                raise
        return offset

    def order(self, attempt: int) -> int:
        """The order of a first record of an attempt."""
        return self._order + segment.order_of(0, attempt)

    def flush(self) -> None:
        """Have what was added survive the end of any process, and where hosts share the folder of this host.

        Raises:
            StoreError: it cannot be written, and is lost; what was flushed before is untouched.
        """
        lost, self._lost = self._lost, None
        if lost is not None:
            raise lost
        if self._buffer:
            self._write()

    def _write(self) -> None:
        buffer, self._buffer = self._buffer, bytearray()
        try:
            if os.fstat(self._descriptor).st_size != self.end:
                raise StoreError(
                    f"{self._path} was changed by another process while this one wrote to it. "
                    "Let only one run use the folder, then run again."
                )
            write_all(self._descriptor, buffer)
            if self._shared:
                os.fdatasync(self._descriptor)
        except OSError as error:
            self._entries.clear()
            self._cut()
            raise refusal(self._path, error, " Former content is untouched.") from error
        self.end += len(buffer)
        self._synced = self._shared
        self._write_index()

    def _cut(self) -> None:
        """Take back what was not written whole. Where that fails too, the next opening does it."""
        try:
            os.ftruncate(self._descriptor, self.end)
            os.lseek(self._descriptor, self.end, os.SEEK_SET)
        except OSError:
            self.close()

    def _write_index(self) -> None:
        """Never in the way: whoever reads finds in the segment what the index lacks."""
        try:
            written = os.pwrite(self._index, self._entries, self._listed)
        except OSError:
            return
        self._listed += written
        del self._entries[:written]

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

    def close(self) -> None:
        """What waits to be flushed is lost."""
        for descriptor in (self._descriptor, self._index):
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptor = self._index = -1
