"""Files as memory: whose it is, how far it reaches, and what it takes from the process."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ezpyp.system import maps

PAGE = 4096


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 64)
    descriptor = os.open(path, os.O_RDWR)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize("read", [maps.mapped, maps.loaded])
@pytest.mark.parametrize(("offset", "size"), [(0, 16384), (0, 1), (1, 255), (PAGE, PAGE), (PAGE + 3, 5000), (0, 0)])
def test_any_part_of_a_file_is_had(read: Any, file: int, offset: int, size: int) -> None:
    assert bytes(read(file, size, offset)) == os.pread(file, size, offset)


@pytest.mark.parametrize("read", [maps.mapped, maps.loaded])
def test_what_a_reader_writes_is_seen_by_nobody_else(read: Any, file: int) -> None:
    one, other = read(file, 100), read(file, 100)
    one[0] = 77
    assert other[0] == os.pread(file, 1, 0)[0] == 0


def test_a_file_that_ends_before_is_not_mapped(file: int) -> None:
    """A map of what is not there ends the process when it is read."""
    with pytest.raises(OSError, match="ends before byte 16385"):
        maps.mapped(file, 16385)
    assert len(maps.loaded(file, 16385)) == 16384


def test_many_maps_leave_descriptors_for_the_step(file: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
    try:
        kept = [maps.mapped(file, 100) for _ in range(1000)]
        assert all(bytes(each[:3]) == b"\0\1\2" for each in kept)
        assert len(os.listdir("/proc/self/fd")) < 120
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_child_has_the_map_for_itself(file: int) -> None:
    view = maps.mapped(file, 100)
    child = os.fork()
    if child == 0:
        view[0] = 9
        os._exit(view[0])
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert view[0] == 0


@pytest.mark.parametrize("most", [1, 7, 4096])
def test_reads_may_come_in_any_portions(file: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """preadv(2) takes 2 GiB at most."""
    genuine = os.preadv
    monkeypatch.setattr(os, "preadv", lambda descriptor, views, at: genuine(descriptor, [views[0][:most]], at))
    assert bytes(maps.loaded(file, 5000, 11)) == os.pread(file, 5000, 11)


def test_a_read_error_is_told(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    with pytest.raises(OSError, match="Input/output"):
        maps.loaded(file, 10)


def test_only_memory_that_may_be_written_to_and_is_aligned_is_own() -> None:
    memory = memoryview(bytearray(64))
    assert maps.is_own(memory)
    assert not maps.is_own(memory[1:])
    assert not maps.is_own(memory.toreadonly())
    assert not maps.is_own(bytes(64))
    assert not maps.is_own(memory[:0])
