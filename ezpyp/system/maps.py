"""Large files as memory of the reader's own, that costs no copy until it is written to.

The pages are those of the page cache: four readers on a node have the disk read once and share the memory. A page that
a reader writes to becomes a copy of its own (MAP_PRIVATE, mmap(2)), so no reader sees another's changes, nor the file.
What is mapped has to stay as it is: its file may be renamed, replaced and removed, but not written to or cut. ezpyp
never does that; where other hosts might (a file that another NFS client removes is gone while mapped), read instead.
"""

from __future__ import annotations

import errno
import mmap
import os
import resource
import sys
import weakref
from typing import Any

from ezpyp.system.files import Buffer

#: The strictest alignment that any number of numpy needs.
_ALIGNED = 16
#: Up to Python 3.12 a map holds a descriptor for as long as it lives, and steps need some of their own.
_HOLDS_DESCRIPTOR = sys.version_info < (3, 13)
_alive: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()


def mapped(descriptor: int, size: int, offset: int = 0) -> memoryview:
    """Part of a file as memory of the caller's own. Read into memory where too many maps hold descriptors.

    Raises:
        OSError: it cannot be mapped; ESTALE where the file is shorter.
    """
    if os.fstat(descriptor).st_size < offset + size:
        raise OSError(errno.ESTALE, f"The file ends before byte {offset + size}")
    if not size:
        return memoryview(bytearray())
    if _HOLDS_DESCRIPTOR and len(_alive) >= resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4:
        return loaded(descriptor, size, offset)
    first = offset - offset % mmap.ALLOCATIONGRANULARITY
    more: dict[str, Any] = {} if _HOLDS_DESCRIPTOR else {"trackfd": False}
    whole = mmap.mmap(descriptor, offset + size - first, access=mmap.ACCESS_COPY, offset=first, **more)
    _alive.add(whole)
    return memoryview(whole)[offset - first :]


def loaded(descriptor: int, size: int, offset: int = 0) -> memoryview:
    """Part of a file, read into memory of the caller's own; what there is of it where the file is shorter.

    Raises:
        OSError: it cannot be read.
    """
    # Huge pages: a bytearray would be filled with zeros first, page by page.
    memory = mmap.mmap(-1, max(size, 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    view, done = memoryview(memory)[:size], 0
    while done < size and (got := os.preadv(descriptor, [view[done:]], offset + done)):  # 2 GiB at most
        done += got
    return view[:done]


def is_own(data: Buffer) -> bool:
    """Whether the bytes are the receiver's own, and lie so that numbers may be used where they are."""
    if type(data) is bytes or not isinstance(data, memoryview) or data.readonly or not data.nbytes:
        return False
    import ctypes

    return ctypes.addressof(ctypes.c_char.from_buffer(data)) % _ALIGNED == 0
