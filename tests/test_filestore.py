"""Results as files: what lies where, what is noticed, and what a kill, a full disk or a slow file system may not do."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import xxhash

from ezpyp.encoding import codecs
from ezpyp.errors import StoreError
from ezpyp.model.outcomes import Outcome, Status
from ezpyp.storage import patience, protocol, reading
from ezpyp.storage.filestore import FileStore
from ezpyp.storage.opening import Record
from ezpyp.storage.protocol import checksum
from ezpyp.system import files
from tests.conftest import CHECKOUT
from tests.faults import Calls, Died, watch


def record(name: str = "alpha", *, codec: str = "pickle", host: str = "", status: Status = Status.DONE) -> Record:
    outcome = Outcome(step=7, status=status, codec=codec, host=host, when=1763649120.25)
    return Record(name=name, fingerprint="f1", outcome=outcome)


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def problems(folder: Path) -> dict[str, str]:
    scan = FileStore(folder).records()
    assert scan.records.keys() <= {"beta"}
    return {Path(each.path).name: each.what for each in scan.problems}


def read(store: FileStore, stem: str = "alpha") -> Record:
    found = store.read(stem)
    assert found is not None
    return found


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path)


# What lies where


@pytest.mark.parametrize("codec", ["pickle", "cloudpickle", "numpy", "json", "parquet"])
def test_a_result_lies_under_its_codecs_suffix(codec: str, store: FileStore, tmp_path: Path) -> None:
    outcome = store.put("alpha", record(codec=codec), [b"one", b"two"])
    name = f"alpha.step{codecs.get(codec).suffix}"
    assert listing(tmp_path) == ["alpha.status", name]
    assert (tmp_path / name).read_bytes() == b"onetwo"
    assert outcome.location == name
    assert json.loads((tmp_path / "alpha.status").read_text())["location"] == name


def test_an_outcome_without_a_result_is_one_file(store: FileStore, tmp_path: Path) -> None:
    store.put("alpha", record(status=Status.FAILED), None)
    assert listing(tmp_path) == ["alpha.status"]


def test_the_checksum_is_xxh3_of_the_content() -> None:
    assert checksum([b""]) == "xxh3:2d06800538d394c2"  # of nothing, as the specification has it
    wanted = f"xxh3:{xxhash.xxh3_64(b'onetwo').hexdigest()}"
    assert checksum([b"onetwo"]) == checksum([b"one", memoryview(b"two")]) == checksum([b"", b"onetwo"]) == wanted


@pytest.fixture
def maps_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treats every result as a large one."""
    monkeypatch.setattr(reading, "LARGE", 1)


@pytest.mark.usefixtures("maps_all")
@pytest.mark.parametrize("shared", [False, True])
def test_a_large_result_is_memory_of_the_readers_own(tmp_path: Path, shared: bool) -> None:
    store = FileStore(tmp_path, shared=shared)
    store.put("alpha", record(), [b"large"])
    one, other = store.get(read(store)), store.get(read(store))
    assert isinstance(one, memoryview)
    one[0] = ord("b")
    assert (bytes(one), bytes(other)) == (b"barge", b"large")
    assert (tmp_path / "alpha.step").read_bytes() == b"large"


@pytest.mark.usefixtures("maps_all")
@pytest.mark.parametrize("shared", [False, True])
def test_a_large_result_in_hand_outlives_its_replacement_and_its_removal(tmp_path: Path, shared: bool) -> None:
    store = FileStore(tmp_path, shared=shared)
    store.put("alpha", record(), [b"former"])
    former = store.get(read(store))
    store.put("alpha", record(), [b"latter"])
    latter = store.get(read(store))
    store.drop("alpha")
    assert (bytes(former), bytes(latter)) == (b"former", b"latter")


@pytest.mark.usefixtures("maps_all")
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(
    ("content", "what"), [(b"", "torn: 0 bytes"), (b"lar", "torn: 3 bytes"), (b"Large", "checksum")]
)
def test_a_large_result_that_was_sound_is_looked_at_again_when_its_file_changes(
    tmp_path: Path, shared: bool, content: bytes, what: str
) -> None:
    store = FileStore(tmp_path, shared=shared, patience=0)
    store.put("alpha", record(), [b"large"])
    found = read(store)
    store.get(found)
    (tmp_path / "alpha.step").write_bytes(content)
    os.utime(tmp_path / "alpha.step", (1, 1))  # two writes within a tick of the clock have one time
    with pytest.raises(StoreError, match=what):
        store.get(found)


@pytest.mark.usefixtures("maps_all")
def test_a_large_result_that_nobody_touched_is_verified_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verified: list[str] = []
    genuine = protocol.verified

    def counted(data: files.Buffer, found: Record, where: str) -> files.Buffer:
        verified.append(where)
        return genuine(data, found, where)

    monkeypatch.setattr(reading, "verified", counted)
    maker, other = FileStore(tmp_path, shared=False), FileStore(tmp_path, shared=False)
    for size in (5, 6):
        maker.put("alpha", record(), [b"large!"[:size]])
        for store in (maker, other, maker, other):
            assert bytes(store.get(read(store))) == b"large!"[:size]
        assert len(verified) == size - 4, "by the one that did not write it, once"


# What is noticed


@pytest.fixture
def written(store: FileStore, tmp_path: Path) -> Path:
    store.put("alpha", record(), [b"content"])
    store.put("beta", record("beta"), [b"content"])
    (tmp_path / "notes.txt").write_text("mine")
    return tmp_path


def test_a_sound_folder_has_no_problems(written: Path) -> None:
    scan = FileStore(written).records()
    assert set(scan.records) == {"alpha", "beta"}
    assert scan.problems == ()


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "it is empty"),
        (b'{"format": 1, "name": "al', "it is torn, or ezpyp did not write it"),
        (b"0", "it is torn, or ezpyp did not write it"),
        (bytes(4096), "it is torn, or ezpyp did not write it"),
    ],
)
def test_a_status_that_is_torn_emptied_or_foreign(content: bytes, what: str, written: Path) -> None:
    (written / "alpha.status").write_bytes(content)
    assert problems(written) == {"alpha.status": what}
    assert FileStore(written).read("alpha") is None
    assert read(FileStore(written), "beta").name == "beta"


def test_a_status_under_another_name(written: Path) -> None:
    (written / "alpha.status").write_bytes((written / "beta.status").read_bytes())
    assert problems(written) == {"alpha.status": "it is the status of another file (beta.step)"}


def test_a_status_that_is_a_folder(written: Path) -> None:
    (written / "alpha.status").unlink()
    (written / "alpha.status").mkdir()
    assert problems(written) == {"alpha.status": "Is a directory"}


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (None, "the result of 'alpha' is gone (No such file or directory)"),
        (b"", "torn: 0 bytes where 'alpha' wrote 7"),
        (b"cont", "torn: 4 bytes where 'alpha' wrote 7"),
        (b"content and more", "torn: 16 bytes where 'alpha' wrote 7"),
    ],
)
def test_a_result_that_is_gone_or_torn(content: bytes | None, what: str, written: Path) -> None:
    (written / "alpha.step").unlink()
    if content is not None:
        (written / "alpha.step").write_bytes(content)
    assert problems(written) == {"alpha.step": what}
    store = FileStore(written)
    with pytest.raises(StoreError) as caught:
        store.get(read(store))
    assert str(caught.value) == (
        f"{written}/alpha.step, which 'alpha' wrote on another host, is missing. Run again to remake it."
        if content is None
        else f"{written}/alpha.step is {what}. Remove it, and the next run makes it again."
    )


def test_a_flipped_bit_is_noticed_before_anyone_decodes(written: Path) -> None:
    (written / "alpha.step").write_bytes(b"cOntent")
    store = FileStore(written)
    with pytest.raises(StoreError) as caught:
        store.get(read(store))
    assert str(caught.value) == (
        f"{written}/alpha.step is not what 'alpha' wrote: its checksum differs. "
        "Remove it, and the next run makes it again."
    )


def test_temporaries_are_nobodys_records(written: Path) -> None:
    (written / ".ezpyp-tmp-1-00-host.status").write_bytes(b"half")
    scan = FileStore(written).records()
    assert set(scan.records) == {"alpha", "beta"}
    assert scan.problems == ()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"cache folder .*gone cannot be read \(No such file or directory\)"):
        FileStore(tmp_path / "gone")
    store = FileStore(tmp_path / "gone", shared=False)
    with pytest.raises(StoreError, match="cannot be read"):
        store.records()


def test_each_file_is_looked_at_once(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stats: list[str] = []
    real = os.stat

    def counted(path: str) -> os.stat_result:
        stats.append(os.path.basename(path))
        return real(path)

    monkeypatch.setattr(os, "stat", counted)
    store = FileStore(written, shared=False)
    store.records()
    assert sorted(stats) == ["alpha.step", "beta.step"]


# Kills


def test_a_kill_at_any_system_call_leaves_the_old_the_new_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of equal length, so that only the order of the calls keeps an old status from naming a new result."""
    store = FileStore(tmp_path, shared=True)
    calls = watch(monkeypatch, files, Calls())
    store.put("alpha", record(), [b"new"])
    steps, ends = len(calls.made), []
    for k in range(steps):
        monkeypatch.undo()
        store.put("alpha", record(), [b"old"])
        watch(monkeypatch, files, Calls(dies_at=k))
        with pytest.raises(Died):
            store.put("alpha", record(), [b"new"])
        scan = FileStore(tmp_path).records()
        assert scan.problems == ()
        ends.append(bytes(store.get(scan.records["alpha"])) if scan.records else b"")
    assert ends == sorted(ends, key=[b"old", b"", b"new"].index)
    assert set(ends) == {b"old", b"", b"new"}


def test_a_move_that_is_killed_at_any_system_call_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileStore(tmp_path, shared=False)
    for k in range(100):
        store.put("alpha", record(), [b"one"])
        store.put("beta", record("beta"), [b"two"])
        watch(monkeypatch, files, Calls(dies_at=k))
        try:
            store.move("alpha", "beta")
        except Died:
            monkeypatch.undo()
        else:
            break
        held = [each for each in FileStore(tmp_path).records().records.values() if each.name == "alpha"]
        assert held
        assert {bytes(store.get(each)) for each in held} == {b"one"}
    assert k > 5


WRITER = """
    import os, random, sys
    from ezpyp.model.outcomes import Outcome, Status
    from ezpyp.storage.filestore import FileStore
    from ezpyp.storage.opening import Record

    folder, seed = sys.argv[1:]
    store, chance = FileStore(folder, shared=False), random.Random(int(seed))
    for k in range(100_000):
        stem = f"s{k}" if k % 2 else f"again{k % 5}"
        content = chance.randbytes(chance.choice([10, 10, 3000, 200_000]))
        outcome = Outcome(step=k, status=Status.DONE, codec="pickle", attempt=k)
        store.put(stem, Record(name=stem, fingerprint="f", outcome=outcome), [content])
        os.write(1, f"{stem} {k}\\n".encode())
"""


@pytest.mark.parametrize("seed", range(8))
def test_what_a_killed_process_reported_is_whole(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path), str(seed)]
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as writer:
        assert writer.stdout is not None
        reports = [writer.stdout.readline() for _ in range(chance.randrange(1, 60))]
        writer.send_signal(signal.SIGKILL)
        reports += writer.stdout.readlines()
    assert writer.returncode == -signal.SIGKILL
    reported = dict(report.split() for report in reports if report.endswith(b"\n"))
    store = FileStore(tmp_path)
    scan = store.records()
    assert scan.problems == ()
    for each in scan.records.values():
        assert len(store.get(each)) == each.outcome.bytes
    for stem, attempt in reported.items():
        found = scan.records.get(stem.decode())
        # What is written again may have been struck while it was replaced.
        assert found is not None or stem.startswith(b"again")
        assert found is None or found.outcome.attempt >= int(attempt)
    assert sum(stem.decode() not in scan.records for stem in reported) <= 1
    files.sweep(tmp_path)
    assert not [name for name in listing(tmp_path) if files.is_temporary(name)]


# Disks


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB, where this user may make one."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting takes rights that this user lacks")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("large", [1, 1 << 24])
def test_a_disk_that_is_really_full(large: int, small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_LARGE", large)
    store = FileStore(small_disk)
    store.put("alpha", record(), [b"former"])
    with pytest.raises(StoreError) as caught:
        store.put("alpha", record(), [bytes(100_000)] * 5)
    assert str(caught.value) == (
        f"{small_disk}/alpha.step could not be written (No space left on device). "
        "The disk is full: free space and run again. Former content is untouched."
    )
    assert listing(small_disk) == ["alpha.status", "alpha.step"]
    assert bytes(store.get(read(store))) == b"former"


@pytest.mark.parametrize("error", [errno.EIO, errno.EFBIG])
def test_room_that_was_reserved_is_given_back_when_writing_fails(
    error: int, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*given: object) -> None:
        assert os.statvfs(small_disk).f_bfree < free - 10, "the room was reserved"
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(files, "_LARGE", 1)
    monkeypatch.setattr(files, "write_all", refuse)
    free = os.statvfs(small_disk).f_bfree
    with pytest.raises(StoreError, match=re.escape(os.strerror(error))):
        FileStore(small_disk).put("alpha", record(), [bytes(100_000)])
    assert os.statvfs(small_disk).f_bfree == free
    assert listing(small_disk) == []


def test_a_read_only_disk_can_be_read(small_disk: Path) -> None:
    FileStore(small_disk).put("alpha", record(), [b"one"])
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    store = FileStore(small_disk)
    assert bytes(store.get(read(store))) == b"one"
    assert set(store.records().records) == {"alpha"}
    store.sync()
    with pytest.raises(StoreError, match="mounted read-only: use another cache folder"):
        store.put("beta", record("beta"), [b"two"])


def test_a_folder_that_may_only_be_read(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write everywhere: for root the system's answer is played."""
    before = {path.name: hashlib.sha256(path.read_bytes()).digest() for path in written.iterdir()}
    written.chmod(0o555)
    if os.geteuid() == 0:
        refusals: dict[str, OSError] = dict.fromkeys(
            ("write", "replace", "unlink"), PermissionError(errno.EACCES, "Permission denied")
        )
        watch(monkeypatch, files, Calls(fails={**refusals, "open": refusals["write"]}))
    store = FileStore(written, shared=False)
    assert bytes(store.get(read(store))) == b"content"
    assert set(store.records().records) == {"alpha", "beta"}
    with pytest.raises(StoreError) as caught:
        store.put("alpha", record(), [b"new"])
    assert str(caught.value) == (
        f"{written}/alpha.step could not be written (Permission denied). This user may not write in its folder: "
        "have it made writable, or use another cache folder. Former content is untouched."
    )
    monkeypatch.undo()
    written.chmod(0o755)
    assert {path.name: hashlib.sha256(path.read_bytes()).digest() for path in written.iterdir()} == before


def test_sync_covers_what_was_put_since(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FileStore(tmp_path, shared=False)
    calls = watch(monkeypatch, files, Calls())
    store.put("alpha", record(), [b"one"])
    store.put("beta", record("beta", status=Status.FAILED), None)
    assert calls.names("fdatasync") == []
    store.sync()
    assert sorted(calls.names("fdatasync")) == ["alpha.status", "alpha.step", "beta.status"]
    assert calls.names("fsync") == [tmp_path.name]
    store.sync()
    assert len(calls.names("fdatasync")) == 3


# Slow file systems


class Clock:
    """Time that passes only by sleeping; what another host does meanwhile."""

    def __init__(self) -> None:
        self.now = 0.0
        self.slept = 0
        self.then: dict[int, Callable[[], object]] = {}

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds
        self.slept += 1
        self.then.pop(self.slept, lambda: None)()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(patience, "time", found)
    return found


@pytest.fixture
def far(tmp_path: Path) -> FileStore:
    """A store on a file system that hosts share, with a result of another host in it."""
    store = FileStore(tmp_path, shared=True)
    store.put("alpha", record(host="n017"), [b"content"])
    return store


def test_what_another_host_wrote_is_waited_for(far: FileStore, clock: Clock, tmp_path: Path) -> None:
    found = read(far)
    (tmp_path / "alpha.step").rename(tmp_path / "hidden")
    clock.then[5] = lambda: (tmp_path / "hidden").rename(tmp_path / "alpha.step")
    assert far.get(found) == b"content"
    assert clock.slept == 5


@pytest.mark.parametrize("early", [b"", b"cont", b"CONTENT"])
def test_what_is_late_or_old_is_read_afresh(early: bytes, far: FileStore, clock: Clock, tmp_path: Path) -> None:
    (tmp_path / "alpha.step").write_bytes(early)
    clock.then[3] = lambda: (tmp_path / "alpha.step").write_bytes(b"content")
    assert far.get(read(far)) == b"content"
    assert clock.slept == 3


def test_a_stale_handle_is_opened_anew(far: FileStore, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    found, real = read(far), reading.read_small

    def stale(path: str) -> bytes:
        if clock.slept < 4:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return real(path)

    monkeypatch.setattr(reading, "read_small", stale)
    assert far.get(found) == b"content"
    assert clock.slept == 4


def test_patience_ends_with_path_and_host(far: FileStore, clock: Clock, tmp_path: Path) -> None:
    found = read(far)
    (tmp_path / "alpha.step").unlink()
    with pytest.raises(StoreError) as caught:
        far.get(found)
    here = os.uname().nodename
    assert str(caught.value) == (
        f"{tmp_path}/alpha.step does not show on {here} after 60 s, though 'alpha' wrote it on n017. "
        "Let both hosts see the same folder, or run again to remake it."
    )
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    assert clock.now == pytest.approx(60)
    assert clock.slept < 80


def test_what_stays_torn_is_called_torn(far: FileStore, clock: Clock, tmp_path: Path) -> None:
    (tmp_path / "alpha.step").write_bytes(b"cont")
    with pytest.raises(StoreError, match="torn: 4 bytes where 'alpha' wrote 7"):
        far.get(read(far))
    assert clock.now == pytest.approx(60)


def test_only_what_may_be_late_is_waited_for(
    far: FileStore, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = read(far)

    def refused(*_: object) -> files.Buffer:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(reading, "read_small", refused)
        with pytest.raises(StoreError, match=r"cannot be read \(Permission denied\)"):
            far.get(found)
    (tmp_path / "alpha.step").unlink()
    own = found._replace(outcome=found.outcome._replace(host=os.uname().nodename))
    with pytest.raises(StoreError, match="is missing"):
        far.get(own)
    with pytest.raises(StoreError, match="is missing"):
        FileStore(tmp_path, shared=False).get(found)
    assert clock.slept == 0


def test_a_record_that_must_be_there_is_waited_for(far: FileStore, clock: Clock, tmp_path: Path) -> None:
    (tmp_path / "alpha.status").rename(tmp_path / "hidden")
    clock.then[3] = lambda: (tmp_path / "hidden").rename(tmp_path / "alpha.status")
    assert far.read("alpha") is None
    found = far.read("alpha", wanted=lambda found: found.fingerprint == "f1")
    assert found is not None
    assert clock.slept == 3


def test_a_record_that_must_be_another_is_waited_for(far: FileStore, clock: Clock) -> None:
    newer = record(host="n017")._replace(fingerprint="f2")
    clock.then[3] = lambda: far.put("alpha", newer, [b"newer"])
    found = far.read("alpha", wanted=lambda found: found.fingerprint == "f2")
    assert found is not None
    assert found.fingerprint == "f2"
    assert clock.slept == 3


def test_a_record_is_waited_for_only_where_another_host_may_write(
    store: FileStore, clock: Clock, tmp_path: Path
) -> None:
    assert FileStore(tmp_path, shared=False).read("alpha", wanted=lambda _: True) is None
    assert clock.slept == 0
    assert FileStore(tmp_path, shared=True, patience=2).read("alpha", wanted=lambda _: True) is None
    assert clock.now == pytest.approx(2)


def test_on_a_shared_file_system_a_put_lasts_when_it_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = watch(monkeypatch, files, Calls())
    store = FileStore(tmp_path, shared=True)
    store.put("alpha", record(), [b"one"])
    assert len(calls.names("fdatasync")) == 2
    store.put("beta", record("beta", status=Status.FAILED), None)
    assert len(calls.names("fdatasync")) == 3
    assert len(calls.names("fsync")) == 2
    store.sync()
    assert len(calls.names("fdatasync")) == 3
