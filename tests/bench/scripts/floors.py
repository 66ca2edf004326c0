"""Floors: what the same work takes in plain loops: FLOOR N FOLDER. Two processes where a run has two."""

from __future__ import annotations

import os
import pickle
import struct
import sys
import time
import zlib
from collections.abc import Callable

from tests.bench.scripts import work


def beside(each: Callable[[int, range], None]) -> float:
    """Seconds that two processes take, each with every other step, from before they are forked."""
    began = time.perf_counter()
    children = []
    for process in range(2):
        child = os.fork()
        if child == 0:
            each(process, range(process, N, 2))
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    return time.perf_counter() - began


def records() -> None:
    """Append a record with length and checksum a step, 64 records a write; then read them all."""
    pack = struct.Struct("<QII").pack

    def each(process: int, steps: range) -> None:
        segment = os.open(f"{FOLDER}/{process}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        buffer = bytearray()
        for k in steps:
            payload = pickle.dumps(work.noop(k), 5)
            buffer += pack(k, len(payload), zlib.crc32(payload))
            buffer += payload
            if len(buffer) > 64 * 24:
                os.write(segment, buffer)
                buffer.clear()
        os.write(segment, buffer)

    seconds, total = beside(each), 0
    for process in range(2):
        with open(f"{FOLDER}/{process}", "rb") as file:
            content, place = file.read(), 0
        while place < len(content):
            _, size, _ = struct.unpack_from("<QII", content, place)
            total += pickle.loads(content[place + 16 : place + 16 + size])
            place += 16 + size
    work.tell(seconds, total)


#: As long as a status file.
STATUS = b'{"format": 1, "name": "noop[12345]", "fingerprint": "' + b"0" * 32 + b'", ' + b" " * 380 + b"}"


def pairs() -> None:
    """A result and a status file a step, each written under a temporary name and renamed; then read all results."""

    def each(process: int, steps: range) -> None:
        for k in steps:
            payload = pickle.dumps(work.noop(k), 5)
            for name, content in ((f"noop[{k}].step", payload), (f"noop[{k}].status", STATUS)):
                temporary = f"{FOLDER}/.draft-{process}-{name}"
                file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
                os.write(file, content)
                os.close(file)
                os.rename(temporary, f"{FOLDER}/{name}")

    seconds, total = beside(each), 0
    for k in range(N):
        with open(f"{FOLDER}/noop[{k}].step", "rb") as opened:
            total += pickle.load(opened)
    work.tell(seconds, total)


def array() -> None:
    """np.save in one process; then np.load and sum in two processes, twice each."""
    import numpy as np

    path, began = f"{FOLDER}/array.npy", time.perf_counter()
    child = os.fork()
    if child == 0:
        np.save(path, np.arange(work.LARGE, dtype=np.float64))
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    children = []
    for process in range(2):
        child = os.fork()
        if child == 0:
            for reader in range(process, work.READERS, 2):
                with open(f"{FOLDER}/{reader}", "wb") as file:
                    pickle.dump(float(np.load(path).sum()) + reader, file)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    seconds, sums = time.perf_counter() - began, []
    for reader in range(work.READERS):
        with open(f"{FOLDER}/{reader}", "rb") as opened:
            sums.append(pickle.load(opened))
    work.tell(seconds, sums)


def pickled() -> None:
    """Pickle the arguments of as many calls, each for itself."""
    began = time.perf_counter()
    total = sum(pickle.loads(pickle.dumps(((k,), {}), 5))[0][0] for k in range(N))
    work.tell(time.perf_counter() - began, total)


def added() -> None:
    """Add up an array, which reads it once."""
    import numpy as np

    array = np.ones(N // 8)
    began = time.perf_counter()
    total = array.sum()
    work.tell(time.perf_counter() - began, 0 if total == N // 8 else 1)


def spawn() -> None:
    """A program that does nothing, a step: no shell, no folder, no record."""

    def each(process: int, steps: range) -> None:
        for k in steps:
            _, status = os.waitpid(os.posix_spawn("/bin/true", ["true", str(k)], os.environ), 0)
            assert status == 0

    work.tell(beside(each), sum(range(N)))


def fork() -> None:
    """A process a step, forked by one that has loaded what a run loads."""
    import ezpyp.run.session

    assert ezpyp.run.session
    began = time.perf_counter()
    for k in range(N):
        child = os.fork()
        if child == 0:
            work.noop(k)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    work.tell(time.perf_counter() - began, sum(range(N)))


def subprocess() -> None:
    """The same by the standard library's own module."""
    from subprocess import run

    def each(process: int, steps: range) -> None:
        for k in steps:
            run(["/bin/true", str(k)], check=True)

    work.tell(beside(each), sum(range(N)))


def mpi() -> None:
    """A script that does nothing but start MPI."""
    from mpi4py import MPI

    if MPI.COMM_WORLD.Get_rank() == 0:
        work.tell(0.0, 0)


def bare() -> None:
    """The interpreter alone."""
    work.tell(0.0, 0)


FLOOR, N, FOLDER = sys.argv[1], int(sys.argv[2]), sys.argv[3]
globals()[FLOOR]()
