"""Results over 2 GiB and over 4 GiB, where calls of the system and fields of formats come to their ends.

    python -m tests.bench.large [FOLDER]

Needs 12 GB of memory and 5 GB of disk, and takes minutes on a slow one. Each result is encoded, stored, read back and
compared in a process of its own, whose memory is said: no more than the value once where it is an array.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ezpyp.encoding import codecs
from ezpyp.model.outcomes import Outcome, Status
from ezpyp.storage.filestore import FileStore
from ezpyp.storage.opening import Record

GIB = 1 << 30
#: Beyond what one write(2) takes, and beyond what 32 bits count.
OVER_TWO, OVER_FOUR = int(2.1 * GIB), int(4.1 * GIB)


@dataclass(frozen=True)
class Case:
    codec: str
    make: Callable[[], Any]
    #: What tells a whole value from another: its size, and something at its end.
    ends: Callable[[Any], Any]


def zeros(size: int) -> Any:
    import numpy

    made = numpy.zeros(size // 8)
    made[-1] = 7
    return made


def frame() -> Any:
    import pandas

    return pandas.DataFrame({name: zeros(OVER_TWO // 3) for name in "abc"})


CASES = {
    "bytes": Case("pickle", lambda: bytes(OVER_TWO) + b"x", lambda v: (len(v), v[-1])),
    "array": Case("numpy", lambda: zeros(OVER_FOUR), lambda v: (v.size, v[-1])),
    "dict": Case("pickle", lambda: {"a": zeros(OVER_TWO), "b": "x"}, lambda v: (v["a"].size, v["a"][-1], v["b"])),
    "table": Case("pickle", frame, lambda v: (v.shape, v.iloc[-1, 2])),
    "list": Case(
        "cloudpickle",
        lambda: [bytes(OVER_TWO // 2), bytearray(OVER_TWO // 2), zeros(OVER_TWO)],
        lambda v: (len(v[0]), len(v[1]), v[2].size, v[2][-1]),
    ),
}


def trip(name: str, case: Case, folder: str) -> int:
    """There and back; 0 where the same came back."""
    store, value = FileStore(folder, shared=False), case.make()
    began = time.perf_counter()
    encoded = codecs.encode_result(case.codec, value, step=name)
    outcome = Outcome(step=0, status=Status.DONE, codec=encoded.codec)
    size = store.put(name, Record(name=name, fingerprint="00", outcome=outcome), encoded.chunks).bytes
    written = time.perf_counter()
    reader = FileStore(folder, shared=False)  # who wrote it would not verify it
    record = reader.read(name)
    assert record is not None
    found = codecs.decode_result(record.outcome.codec, reader.get(record), folder, ())
    read = time.perf_counter()
    same = case.ends(found) == case.ends(value)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{name:6} {encoded.codec:12} {size / GIB:.2f} GiB  written in {written - began:.1f} s, read in "
        f"{read - written:.1f} s, peak {peak:.1f} GiB  {'ok' if same else 'NOT THE SAME'}",
        flush=True,
    )
    store.drop(name)
    return 0 if same else 1


def main() -> int:
    failed = 0
    with tempfile.TemporaryDirectory(dir=sys.argv[1] if len(sys.argv) > 1 else None) as folder:
        for name, case in CASES.items():
            child = os.fork()
            if child == 0:
                try:
                    os._exit(trip(name, case, folder))
                finally:
                    os._exit(2)
            failed += os.waitpid(child, 0)[1] != 0
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
