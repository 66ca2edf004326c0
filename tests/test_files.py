"""Files: whole or not at all, whatever fails; the modes they get; lasting; what is swept; what is shared."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ezpyp.errors import StoreError
from ezpyp.system import files
from tests.faults import Calls, Died, watch


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o002)
    yield
    os.umask(before)


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if files.is_temporary(path.name)]


# Whole or not at all


def test_a_file_is_made_of_its_chunks(tmp_path: Path) -> None:
    chunks: list[files.Buffer] = [b"one", memoryview(b"two"), bytearray(b"three"), b""]
    files.write_whole(tmp_path / "a", iter(chunks))
    assert (tmp_path / "a").read_bytes() == b"onetwothree"
    assert leftovers(tmp_path) == []


def test_a_file_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files.write_whole("a", [b"one"], sync=True)
    assert (tmp_path / "a").read_bytes() == b"one"


def test_a_call_that_writes_less_than_it_was_given_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As write(2) does above 2 GiB."""
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, memoryview(data).cast("B")[:3]))
    plane = memoryview(bytes(range(24))).cast("B", (4, 6))
    files.write_whole(tmp_path / "a", [b"0123456789", plane])
    assert (tmp_path / "a").read_bytes() == b"0123456789" + bytes(range(24))


@pytest.mark.parametrize("refused", [0, errno.EOPNOTSUPP, errno.EPERM])
def test_a_large_file_is_written_whether_or_not_room_can_be_had_for_it_first(
    refused: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_LARGE", 8)
    monkeypatch.setattr(files, "_PIECE", 3)
    if refused:
        monkeypatch.setattr(files, "_libc", lambda: Refusing(refused))
    plane = memoryview(bytes(range(24))).cast("B", (4, 6))
    files.write_whole(tmp_path / "a", [b"01234", plane[:0], b"56789", plane])
    assert (tmp_path / "a").read_bytes() == b"0123456789" + bytes(range(24))


def test_the_disk_is_asked_to_begin_with_every_byte_of_a_large_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[range] = []

    class Willing(Refusing):
        def sync_file_range(self, *given: Any) -> int:
            descriptor, start, size, _ = given
            assert start.value + size.value <= os.fstat(descriptor).st_size
            begun.append(range(start.value, start.value + size.value))
            return 0

    monkeypatch.setattr(files, "_LARGE", 8)
    monkeypatch.setattr(files, "_PIECE", 4)
    monkeypatch.setattr(files, "_libc", lambda: Willing(errno.EOPNOTSUPP))
    files.write_whole(tmp_path / "a", [b"012345", b"678", b"9"])
    assert [place for piece in begun for place in piece] == [*range(10)]
    assert max(map(len, begun)) == 4


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_large_file_for_which_there_is_no_room_is_not_begun(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_LARGE", 8)
    monkeypatch.setattr(files, "_libc", lambda: Refusing(code))
    monkeypatch.setattr(os, "write", None)
    with pytest.raises(StoreError, match=re.escape(os.strerror(code))):
        files.write_whole(tmp_path / "a", [b"01234", b"56789"])
    assert list(tmp_path.iterdir()) == []


class Refusing:
    """A kernel that refuses."""

    def __init__(self, code: int) -> None:
        self._code = code

    def fallocate(self, *_: object) -> int:
        ctypes.set_errno(self._code)
        return -1

    sync_file_range = fallocate


@pytest.mark.parametrize("call", ["open", "write", "close", "replace"])
def test_what_fails_leaves_the_former_file_and_nothing_else(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write_whole(tmp_path / "a", [b"former"])
    watch(monkeypatch, files, Calls(fails={call: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))}))
    with pytest.raises(StoreError) as caught:
        files.write_whole(tmp_path / "a", [b"new"])
    assert str(caught.value).startswith(
        f"{tmp_path}/a could not be written (No space left on device). The disk is full: free space and run again."
    )
    assert (tmp_path / "a").read_bytes() == b"former"
    assert leftovers(tmp_path) == []


def test_a_writer_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"one"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.write_whole(tmp_path / "a", chunks())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.EDQUOT, "The quota is used up (bytes or files): free some and run again."),
        (errno.EACCES, "This user may not write in its folder: have it made writable, or use another cache folder."),
        (errno.EROFS, "The file system is mounted read-only: use another cache folder."),
        (errno.EIO, "Look at its folder, then run again."),
    ],
)
def test_the_remedy_fits_the_reason(code: int, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch(monkeypatch, files, Calls(fails={"open": OSError(code, os.strerror(code))}))
    with pytest.raises(StoreError) as caught:
        files.write_whole(tmp_path / "a", [b"new"])
    assert str(caught.value) == (
        f"{tmp_path}/a could not be written ({os.strerror(code)}). {remedy} Former content is untouched."
    )


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="Its folder is gone"):
        files.write_whole(tmp_path / "folder" / "a", [b"new"])


def test_a_real_limit_on_the_size_of_files(tmp_path: Path) -> None:
    files.write_whole(tmp_path / "a", [b"former"])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(StoreError, match="ulimit -f"):
            files.write_whole(tmp_path / "a", [bytes(1000)] * 10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, former)
    assert (tmp_path / "a").read_bytes() == b"former"
    assert leftovers(tmp_path) == []


# A file and its witness


def pair(folder: Path) -> tuple[bytes | None, bytes | None]:
    return tuple((folder / name).read_bytes() if (folder / name).exists() else None for name in ("a", "w"))  # type: ignore[return-value]


def write_pair(folder: Path, content: bytes) -> None:
    files.write_vouched(f"{folder}/a", [content], f"{folder}/w", b"for " + content)


def test_a_witness_never_vouches_for_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer dies at each of its system calls in turn."""
    calls = watch(monkeypatch, files, Calls())
    write_pair(tmp_path, b"old")
    steps = len(calls.made)
    seen = set()
    for k in range(steps + 1):
        monkeypatch.undo()
        write_pair(tmp_path, b"old")
        watch(monkeypatch, files, Calls(dies_at=k))
        try:
            write_pair(tmp_path, b"new")
        except Died:
            assert k < steps
        content, witness = pair(tmp_path)
        assert witness is None or witness == b"for " + (content or b"")
        seen.add((content, witness))
    assert steps >= 9
    assert seen == {(b"old", b"for old"), (b"old", None), (b"new", None), (b"new", b"for new")}


@pytest.mark.parametrize("failing", range(1, 7))
def test_a_full_disk_costs_neither(failing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the file fits and its witness does not."""
    write_pair(tmp_path, b"old")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    calls = Calls()
    watch(monkeypatch, files, calls)
    made = iter(range(1, 100))

    def check(name: str, *args: object) -> object:
        if name in ("open", "write", "close") and next(made) == failing:
            raise full
        return getattr(os, name)(*args)

    for name in ("open", "write", "close"):
        monkeypatch.setattr(calls, name, lambda *args, name=name: check(name, *args), raising=False)
    with pytest.raises(StoreError, match="The disk is full"):
        write_pair(tmp_path, b"new")
    assert pair(tmp_path) == (b"old", b"for old")
    assert leftovers(tmp_path) == []


def test_a_second_name_or_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "w").write_bytes(b"for b")
    files.link_whole(f"{tmp_path}/a", f"{tmp_path}/b", void=f"{tmp_path}/w")
    assert (tmp_path / "b").samefile(tmp_path / "a")
    assert not (tmp_path / "w").exists()
    watch(monkeypatch, files, Calls(fails={"link": OSError(errno.EPERM, "no links here")}))
    files.link_whole(f"{tmp_path}/a", f"{tmp_path}/c", void=f"{tmp_path}/w")
    assert (tmp_path / "c").read_bytes() == b"one"
    assert not (tmp_path / "c").samefile(tmp_path / "a")
    with pytest.raises(StoreError, match="could not be written"):
        files.link_whole(f"{tmp_path}/gone", f"{tmp_path}/c", void=f"{tmp_path}/w")
    assert (tmp_path / "c").read_bytes() == b"one"
    assert leftovers(tmp_path) == []


def test_a_copy_that_fails_does_not_cost_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"one")
    no = OSError(errno.EPERM, "no")
    watch(monkeypatch, files, Calls(fails={"link": no, "replace": no}))
    with pytest.raises(StoreError):
        files.link_whole(f"{tmp_path}/a", f"{tmp_path}/b", void=f"{tmp_path}/w")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_removing_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").touch()
    files.remove(f"{tmp_path}/a")
    files.remove(f"{tmp_path}/a")
    assert list(tmp_path.iterdir()) == []
    watch(monkeypatch, files, Calls(fails={"unlink": OSError(errno.EROFS, "no")}))
    with pytest.raises(StoreError, match="mounted read-only"):
        files.remove(f"{tmp_path}/a")


# Modes


@pytest.mark.usefixtures("umask")
def test_a_group_shares_what_its_members_write(tmp_path: Path) -> None:
    groups = [gid for gid in os.getgroups() if gid != tmp_path.stat().st_gid]
    group = 12345 if os.geteuid() == 0 else (groups or [os.getgid()])[0]
    os.chown(tmp_path, -1, group)
    tmp_path.chmod(0o2775)
    write_pair(tmp_path, b"one")
    for name in "aw":
        about = (tmp_path / name).stat()
        assert stat.S_IMODE(about.st_mode) == 0o664
        assert about.st_gid == group


# Lasting


def test_content_lasts_before_its_name_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = watch(monkeypatch, files, Calls())
    files.write_vouched(f"{tmp_path}/a", [b"one"], f"{tmp_path}/w", b"two", sync=True)
    order = [name for name, _ in calls.made if name in ("fdatasync", "fsync", "unlink", "replace")]
    assert order == ["fdatasync", "fdatasync", "unlink", "replace", "replace", "fsync"]
    assert calls.names("fsync") == [tmp_path.name]


def test_without_sync_nothing_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = watch(monkeypatch, files, Calls())
    write_pair(tmp_path, b"one")
    files.write_whole(tmp_path / "b", [b"one"])
    assert calls.names("fdatasync") == calls.names("fsync") == []


def test_few_files_are_synced_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / name for name in "abc"]
    for path in paths[:2]:
        path.touch()
    calls = watch(monkeypatch, files, Calls())
    files.sync_files(map(str, paths), str(tmp_path))
    assert calls.names("fdatasync") == ["a", "b"]
    assert calls.names("fsync") == [tmp_path.name]


def test_many_files_are_synced_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = watch(monkeypatch, files, Calls())
    files.sync_files([f"{tmp_path}/{k}" for k in range(100)], str(tmp_path))
    assert calls.names("fdatasync") == []
    assert calls.names("open") == [tmp_path.name]


def test_a_disk_that_refuses_is_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").touch()
    watch(monkeypatch, files, Calls(fails={"fdatasync": OSError(errno.EIO, "Input/output error")}))
    with pytest.raises(StoreError, match=r"could not be synced \(Input/output error\)"):
        files.sync_files([f"{tmp_path}/a"], str(tmp_path))
    with pytest.raises(StoreError, match="could not be synced"):
        files.sync_files([f"{tmp_path}/gone/{k}" for k in range(100)], f"{tmp_path}/gone")


# What killed writers leave


@pytest.fixture
def gone() -> int:
    """The id of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


def test_what_killed_writers_left_is_swept(gone: int, tmp_path: Path) -> None:
    host = os.uname().nodename
    stale = f".ezpyp-tmp-{gone}-0a1b2c3d-{host}"
    others = [
        f".ezpyp-tmp-{os.getpid()}-0a1b2c3d-{host}",
        f".ezpyp-tmp-1-0a1b2c3d-{host}",
        f".ezpyp-tmp-{gone}-0a1b2c3d-{host}-2",
        f".ezpyp-tmp-{gone}-0a1b2c3d-elsewhere",
        f".ezpyp-tmp-{gone}",
        "alpha.step",
    ]
    for name in (stale, *others):
        (tmp_path / name).touch()
    assert files.sweep(tmp_path) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


def test_what_a_killed_writer_leaves_can_be_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch(monkeypatch, files, Calls(dies_at=2))
    with pytest.raises(Died):
        files.write_whole(tmp_path / "a", [b"one"])
    monkeypatch.undo()
    assert len(leftovers(tmp_path)) == 1
    assert files.sweep(tmp_path) == 0
    monkeypatch.setattr(files, "_lives", lambda pid: pid != os.getpid())
    assert files.sweep(tmp_path) == 1


# File systems

TABLE = r"""
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
30 22 0:45 / /home rw,nosuid - nfs4 server:/home rw,vers=4.2
31 22 0:46 / /scratch rw - lustre 10.0.0.1@tcp:/scratch rw
32 22 0:47 / /data\040of\040ours rw - fuse.sshfs host:/data rw
33 22 0:48 /sub /pool rw - btrfs /dev/vdb rw
34 30 0:49 / /home/me/local rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("folder", "device", "kind"),
    [
        ("/var/tmp", "254:0", "ext4"),
        ("/home/me/cache", "0:45", "nfs4"),
        ("/home/me/local/cache", "0:49", "tmpfs"),
        ("/scratch", "0:99", "lustre"),
        ("/data of ours/cache", "0:98", "fuse.sshfs"),
        ("/pool/cache", "0:97", "btrfs"),
        ("/pools/cache", "0:96", "ext4"),
        ("/home/me/local/cache", "0:95", "tmpfs"),
    ],
)
def test_the_file_system_of_a_folder(folder: str, device: str, kind: str) -> None:
    lines = TABLE.strip().splitlines()
    assert files._kind(folder, device, lines) == files._kind(folder, device, lines[::-1]) == kind


@pytest.mark.parametrize(
    ("kind", "shared"),
    [("nfs4", True), ("lustre", True), ("beegfs", True), ("fuse.sshfs", True), ("ext4", False), ("", False)],
)
def test_which_file_systems_hosts_share(
    kind: str, shared: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "_kind", lambda *_: kind)
    assert files.is_shared(str(tmp_path)) is shared


def test_this_machines_own_table_is_understood(tmp_path: Path) -> None:
    assert files.is_shared(str(tmp_path)) in (True, False)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        assert files._kind("/", "no such device", table) != ""
    with pytest.raises(FileNotFoundError):
        files.is_shared(f"{tmp_path}/gone")
