"""One run at a time in a folder, however starts, ends and kills fall together."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ezpyp import CacheInUse, CacheTakenOver, StoreError
from ezpyp.folder import lock
from ezpyp.folder.holder import Holder, from_json, present, to_json

#: A process that is not there: this one's number, started at another time.
GONE: dict[str, Any] = {"started": 1}
#: A run of which nothing can be known here.
FAR: dict[str, Any] = {"host": "n017", "machine": "f00d", "boot": "another", "user": "u2041"}


def hold(folder: Path, name: str = lock.NAME, **changes: Any) -> Holder:
    """Make the lock of another run."""
    folder.mkdir(exist_ok=True)
    there = present({})._replace(**changes)
    (folder / name).write_bytes(to_json(there))
    return there


def holder_of(folder: Path) -> Holder:
    return from_json((folder / lock.NAME).read_bytes())


def locks(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.startswith(lock.NAME))


@contextmanager
def child(body: Callable[[], None]) -> Iterator[int]:
    """A forked process that does this and then waits for its end; gives its pid when it has done it."""
    readable, writable = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            body()
            os.write(writable, b"1")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writable)
    try:
        assert os.read(readable, 1) == b"1"
        yield pid
    finally:
        os.close(readable)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.fixture(autouse=True)
def nowhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of any job, with a Slurm that does not answer, and without an order to take over."""
    squeue = tmp_path_factory.mktemp("bin") / "squeue"
    squeue.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{squeue.parent}{os.pathsep}{os.environ['PATH']}")
    for name in ("SLURM_JOB_ID", "SLURM_CLUSTER_NAME", "SLURM_RESTART_COUNT", lock.TAKE_OVER):
        monkeypatch.delenv(name, raising=False)


# ----- one process


def test_a_folder_is_held_and_let_go(tmp_path: Path) -> None:
    held = lock.acquire(str(tmp_path))
    assert locks(tmp_path) == [".lock"]
    assert holder_of(tmp_path).pid == os.getpid()
    assert (tmp_path / ".lock").stat().st_mode & 0o600 == 0o600
    held.release()
    assert os.listdir(tmp_path) == []


def test_the_same_process_may_hold_it_several_times(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    first = lock.acquire(str(tmp_path))
    second = lock.acquire(str(tmp_path / "link"))
    first.release()
    assert locks(tmp_path) == [".lock"]
    second.sign()
    second.release()
    assert locks(tmp_path) == []
    second.release()
    with lock.acquire(str(tmp_path)):
        assert locks(tmp_path) == [".lock"]


def test_a_fork_holds_nothing(tmp_path: Path) -> None:
    def fork() -> None:
        held.release()
        with pytest.raises(CacheInUse):
            lock.acquire(str(tmp_path))

    with lock.acquire(str(tmp_path)) as held:
        with child(fork):
            assert locks(tmp_path) == [".lock"]
        held.sign()


def test_a_sign_is_the_time_of_the_file(tmp_path: Path) -> None:
    with lock.acquire(str(tmp_path)) as held:
        os.utime(tmp_path / ".lock", (1e9, 1e9))
        held.sign()
        (tmp_path / "now").touch()
        assert 0 <= (tmp_path / "now").stat().st_mtime - (tmp_path / ".lock").stat().st_mtime < 60


def test_a_file_system_that_does_not_answer_proves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(*args: Any) -> None:
        raise OSError(116, "Stale file handle")

    with lock.acquire(str(tmp_path)) as held:
        with monkeypatch.context() as patch:
            patch.setattr(os, "utime", stale)
            held.sign()
        held.sign()


# ----- refused


def marks(folder: Path) -> dict[str, tuple[int, ...]]:
    """What would show that a lock was touched."""
    found = {name: (folder / name).stat() for name in locks(folder)}
    return {name: (stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in found.items()}


def refused(folder: Path) -> str:
    before = marks(folder)
    with pytest.raises(CacheInUse) as error:
        lock.acquire(str(folder))
    assert marks(folder) == before, "refusing changes nothing"
    assert error.value.exit_code == 3
    return str(error.value)


def signed(folder: Path, seconds: float) -> None:
    """The last sign is so old by the clock of the file system."""
    (folder / "now").touch()
    sign = (folder / "now").stat().st_mtime - seconds
    os.utime(folder / ".lock", (sign, sign))


def test_message_8(tmp_path: Path) -> None:
    hold(tmp_path, **FAR, job="4711", since=datetime.now().replace(hour=14, minute=2).timestamp())
    signed(tmp_path, 8)
    assert re.fullmatch(
        r"The cache is in use by job 4711 \(user u2041, n017, since 14:02, last sign [89] s ago\)\. "
        rf"Watch it: ezpyp watch {tmp_path}\. If it is surely gone: --take-over\.",
        refused(tmp_path),
    )


def test_without_a_job_it_is_a_process(tmp_path: Path) -> None:
    since = datetime.now() - timedelta(days=2)
    hold(tmp_path, **FAR, pid=1234, since=since.timestamp())
    signed(tmp_path, 2.2 * 3600)
    text = refused(tmp_path)
    assert f"by process 1234 (user u2041, n017, since {since:%Y-%m-%d %H:%M}, last sign 2 h ago)" in text


def test_clocks_of_hosts_may_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(tmp_path, **FAR)
    signed(tmp_path, 30)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 7200)
    assert re.search(r"last sign 3\d s ago", refused(tmp_path))
    signed(tmp_path, -3600)
    assert "last sign 0 s ago" in refused(tmp_path)


def test_a_process_that_lives_is_refused_and_followed_after_a_kill(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with child(lambda: void(lock.acquire(str(tmp_path)))) as pid:
        assert f"in use by process {pid} (user " in refused(tmp_path)
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        with lock.acquire(str(tmp_path)):
            assert locks(tmp_path) == [".lock"]
            assert holder_of(tmp_path).pid == os.getpid()
    assert capfd.readouterr() == ("", "")


def void(value: object) -> None:
    """Take no notice of a value."""


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 99}', os.urandom(64)])
def test_what_cannot_be_read_is_somebodys(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".lock").write_bytes(content)
    assert "in use by a process that cannot be told (user " in refused(tmp_path)
    assert (tmp_path / ".lock").read_bytes() == content
    with lock.acquire(str(tmp_path), take_over=True):
        assert locks(tmp_path) == [".lock"]
        assert holder_of(tmp_path).pid == os.getpid()


def test_a_name_that_leads_nowhere_is_told(tmp_path: Path) -> None:
    (tmp_path / ".lock").symlink_to("nowhere")
    with pytest.raises(StoreError, match=r"\.lock can be neither made nor read\. Look at it"):
        lock.acquire(str(tmp_path))


def test_a_file_system_that_does_not_tell_is_told(tmp_path: Path) -> None:
    """As one that is gone: here by a link that leads to itself."""
    (tmp_path / ".lock").symlink_to(".lock")
    with pytest.raises(StoreError, match=r"\.lock cannot be looked at \(Too many levels .*\)\. Is its file"):
        lock.acquire(str(tmp_path))


def test_a_folder_that_cannot_be_written_is_told() -> None:
    """As an ordinary user: root may write anywhere."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        os.chmod(folder, 0o555)
        found = multiprocessing.get_context("fork").SimpleQueue()

        def ask() -> None:
            if os.geteuid() == 0:
                os.setuid(65534)
            try:
                lock.acquire(folder)
            except StoreError as error:
                found.put((str(error), error.exit_code))

        with child(ask):
            text, code = found.get()
    assert folder in text
    assert "Permission denied" in text
    assert "another cache folder" in text
    assert code == 3


# ----- followed


def test_one_with_the_same_pid_is_another(tmp_path: Path) -> None:
    former = hold(tmp_path, **GONE)
    with lock.acquire(str(tmp_path)):
        assert holder_of(tmp_path).token != former.token
    assert locks(tmp_path) == []


def test_slurm_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    squeue = tmp_path / "squeue"
    squeue.write_text(f"#!/bin/sh\necho asked >> {tmp_path}/asked\necho $STATE\n", encoding="utf-8")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "5000")
    hold(tmp_path, **FAR, job="4711")
    monkeypatch.setenv("STATE", "RUNNING")
    assert "by job 4711 (user u2041" in refused(tmp_path)
    monkeypatch.setenv("STATE", "TIMEOUT")
    with lock.acquire(str(tmp_path)):
        assert holder_of(tmp_path).job == "5000"
    assert (tmp_path / "asked").read_text() == "asked\n" * 2


def test_a_restarted_job_follows_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(tmp_path, **FAR, job="4711")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    refused(tmp_path)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    with lock.acquire(str(tmp_path)):
        assert holder_of(tmp_path).restart == 1


def test_take_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    hold(tmp_path, **FAR, job="4711")
    refused(tmp_path)
    monkeypatch.setenv(lock.TAKE_OVER, "0")
    refused(tmp_path)
    monkeypatch.setenv(lock.TAKE_OVER, "1")
    with lock.acquire(str(tmp_path)):
        assert locks(tmp_path) == [".lock"]
    assert capsys.readouterr().err.startswith("ezpyp: the cache was taken over from job 4711 (user u2041, n017, since ")
    hold(tmp_path, **FAR)
    assert "n017" in refused(tmp_path), "a process that had it does not take it back"


def test_one_that_was_killed_while_it_took_over_is_followed(tmp_path: Path) -> None:
    first = hold(tmp_path, **GONE)
    second = hold(tmp_path, f".lock.{first.token}", token="a" * 16, **GONE)
    hold(tmp_path, f".lock.{second.token}", token="b" * 16, **GONE)
    with lock.acquire(str(tmp_path)):
        assert locks(tmp_path) == [".lock"]
        assert holder_of(tmp_path).pid == os.getpid()
    assert locks(tmp_path) == []


@pytest.mark.parametrize("since", [[], ["c" * 16]], ids=["", "by one that was killed, too"])
def test_one_that_was_killed_while_it_let_go_is_followed(tmp_path: Path, since: list[str]) -> None:
    first = hold(tmp_path, **GONE)
    os.link(tmp_path / ".lock", tmp_path / f".lock.{first.token}")
    for token in since:
        hold(tmp_path, f".lock.{first.token}+", token=token, **GONE)
    with lock.acquire(str(tmp_path)):
        assert locks(tmp_path) == [".lock"]
        assert holder_of(tmp_path).pid == os.getpid()
    assert locks(tmp_path) == []


def test_one_that_is_letting_go_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / ".lock"
    claim = tmp_path / f".lock.{hold(tmp_path, **FAR).token}"
    os.link(path, claim)

    def let_go(_: float) -> None:
        path.unlink()
        claim.unlink()

    monkeypatch.setattr(time, "sleep", let_go)
    with lock.acquire(str(tmp_path)):
        assert holder_of(tmp_path).pid == os.getpid()


def test_one_that_never_gets_to_letting_go_holds_until_it_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was killed where nothing is known of it."""
    first = hold(tmp_path, **FAR)
    os.link(tmp_path / ".lock", tmp_path / f".lock.{first.token}")
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    assert "(user u2041, n017," in refused(tmp_path)
    assert 0.2 < sum(slept) < 1
    with lock.acquire(str(tmp_path), take_over=True) as held:
        assert locks(tmp_path) == [".lock"]
        held.sign()


def test_one_that_is_taking_over_is_refused(tmp_path: Path) -> None:
    first = hold(tmp_path, **GONE)
    hold(tmp_path, f".lock.{first.token}", token="a" * 16, **FAR)
    assert "(user u2041, n017," in refused(tmp_path)


def test_a_holder_whom_one_failed_to_follow_still_holds(tmp_path: Path) -> None:
    first = hold(tmp_path, **FAR)
    hold(tmp_path, f".lock.{first.token}", token="a" * 16, **GONE)
    assert "(user u2041, n017," in refused(tmp_path)


def test_what_a_slow_one_left_is_in_nobodys_way(tmp_path: Path) -> None:
    hold(tmp_path, ".lock.0123456789abcdef", token="a" * 16, **FAR)
    with lock.acquire(str(tmp_path)) as held:
        held.sign()


# ----- file systems


def test_a_full_disk_does_not_keep_one_from_letting_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise StoreError("the disk is full")

    held = lock.acquire(str(tmp_path))
    monkeypatch.setattr(lock, "write_whole", refuse)
    with pytest.raises(StoreError):
        lock.acquire(str(tmp_path / "other"))
    held.release()
    assert locks(tmp_path) == []


def test_without_hard_links_names_are_made_exclusively(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: str) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    hold(tmp_path, **GONE)
    with lock.acquire(str(tmp_path)) as held:
        held.sign()
        assert holder_of(tmp_path).pid == os.getpid()
        with child(lambda: void(refused(tmp_path))):
            pass
    assert locks(tmp_path) == []


def test_other_errors_of_links_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: str) -> None:
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StoreError, match=r"\.lock cannot be made: Disk quota exceeded"):
        lock.acquire(str(tmp_path))
    assert locks(tmp_path) == []


def test_an_answer_that_was_lost_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS repeats a request, and then is told that the name is taken: by itself."""
    link = os.link

    def twice(source: str, target: str) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", twice)
    hold(tmp_path, **GONE)
    for _ in range(2):
        with lock.acquire(str(tmp_path)) as held:
            held.sign()
        assert locks(tmp_path) == []


# ----- lost


def test_one_that_was_taken_over_notices_and_leaves_it(tmp_path: Path) -> None:
    held = lock.acquire(str(tmp_path))
    (tmp_path / ".lock").unlink()
    hold(tmp_path, **FAR, job="4712")
    told = rf"^{tmp_path} was taken over from this run by job 4712 \(user u2041"
    with pytest.raises(CacheTakenOver, match=told) as error:
        held.sign()
    assert error.value.exit_code == 4
    assert "by job 4712" in refused(tmp_path)
    held.release()
    assert holder_of(tmp_path).job == "4712"


def test_one_whose_lock_was_removed_does_not_go_on(tmp_path: Path) -> None:
    held = lock.acquire(str(tmp_path))
    (tmp_path / ".lock").unlink()
    with pytest.raises(CacheTakenOver, match="its lock was removed, or another run took it and has ended"):
        held.sign()
    with lock.acquire(str(tmp_path)) as again:
        held.release()
        again.sign()


# ----- everything at once


class Killed(BaseException):
    """The end of a process, as a thread plays it."""


@dataclass(slots=True, kw_only=True)
class Actor:
    """A thread that plays a process which becomes the holder, works, and lets go. It waits before each step."""

    number: int
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    waits: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    killed: bool = False
    ended: bool = False
    error: BaseException | None = None


class Play:
    """Processes that look at and change one folder in an order drawn from a seed; some are killed on the way."""

    def __init__(
        self, folder: Path, patch: pytest.MonkeyPatch, seed: int, actors: int = 3, kills: float = 0.02
    ) -> None:
        self._folder, self._draw, self._kills = str(folder), random.Random(seed), kills
        #: The one that takes over by force and stays.
        self.forced = -1
        self._actors = [Actor(number=k) for k in range(actors)]
        self._here = threading.local()
        self.inside: set[int] = set()
        self.won = 0
        self.overlaps = 0
        for owner, name in (
            (lock, "_look"),
            (lock, "_link"),
            (lock, "_draft"),
            (lock, "_remove"),
            (os, "rename"),
        ):
            patch.setattr(owner, name, self._in_turn(getattr(owner, name)))
        patch.setattr(lock, "present", lambda: present({})._replace(pid=1000 + self._here.actor.number))
        patch.setattr(lock, "is_gone", lambda holder, us: holder.pid == 999 or self._is_gone(holder.pid - 1000))

    def run(self) -> None:
        threads = [threading.Thread(target=self._play, args=(actor,)) for actor in self._actors]
        for thread in threads:
            thread.start()
        for actor in self._actors:
            actor.waits.acquire()
        while left := [actor for actor in self._actors if not actor.ended]:
            actor = self._draw.choice(left)
            actor.killed = actor.killed or self._draw.random() < self._kills
            actor.go.release()
            actor.waits.acquire()
        for thread in threads:
            thread.join()
        for actor in self._actors:
            assert actor.error is None or isinstance(actor.error, (CacheInUse, Killed)), actor.error

    def _is_gone(self, number: int) -> bool:
        return self._actors[number].ended and number != self.forced

    def _in_turn(self, act: Callable[..., Any]) -> Callable[..., Any]:
        def acted(*args: Any) -> Any:
            if getattr(self._here, "actor", None) is not None:
                self._turn()
            return act(*args)

        return acted

    def _turn(self) -> None:
        actor: Actor = self._here.actor
        actor.waits.release()
        actor.go.acquire()
        if actor.killed:
            raise Killed

    def _play(self, actor: Actor) -> None:
        self._here.actor = actor
        try:
            self._turn()
            token = lock._win(self._folder, actor.number == self.forced)
            self._work(actor)
            if actor.number != self.forced:
                lock._let_go(self._folder, token)
        except BaseException as error:
            actor.error = error
        self.inside.discard(actor.number)
        actor.ended = True
        actor.waits.release()

    def _work(self, actor: Actor) -> None:
        self.won += 1
        self.overlaps += bool(self.inside)
        self.inside.add(actor.number)
        self._turn()
        self.inside.remove(actor.number)


@pytest.mark.parametrize("before", ["nobody", "one that is gone", "one killed while it took over", "… while it let go"])
def test_never_two_holders_in_whatever_order(tmp_path: Path, before: str) -> None:
    won, contested = 0, 0
    for seed in range(300):
        folder = tmp_path / str(seed)
        folder.mkdir()
        if before != "nobody":
            first = hold(folder, pid=999)
            if before == "… while it let go":
                os.link(folder / ".lock", folder / f".lock.{first.token}")
            elif before != "one that is gone":
                hold(folder, f".lock.{first.token}", token="a" * 16, pid=999)
        with pytest.MonkeyPatch.context() as patch:
            play = Play(folder, patch, seed)
            play.run()
        assert not play.overlaps, f"seed {seed}"
        won += play.won
        contested += play.won > 1
        if all(not isinstance(actor.error, Killed) for actor in play._actors):
            assert play.won, f"seed {seed}: nobody became the holder"
            assert locks(folder) == [], f"seed {seed}"
    assert won > 250
    assert contested > 5, "some came one after the other"


def test_letting_go_never_removes_the_lock_of_one_that_took_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = 0
    for seed in range(340, 600):  # in two of these it could happen
        folder = tmp_path / str(seed)
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            play = Play(folder, patch, seed, actors=2, kills=0)
            play.forced = 1
            play.run()
        assert locks(folder) == [".lock"], f"seed {seed}"
        assert holder_of(folder).pid == 1001, f"seed {seed}"
        taken += "taken over from process 1000" in capsys.readouterr().err
    assert taken > 20


def start(folder: Path, number: int, barrier: Any, said: Any) -> None:
    for k in range(number):
        place = folder / str(k)
        barrier.wait(60)
        try:
            with lock.acquire(str(place)):
                os.close(os.open(place / "written", os.O_CREAT | os.O_EXCL))
                os.unlink(place / "written")
                said.put("held")
        except CacheInUse:
            said.put("refused")
        except BaseException as error:
            said.put(repr(error))


@pytest.mark.parametrize("stale", [False, True], ids=["fresh", "after a kill"])
def test_two_that_start_at_the_same_instant_never_both_write(tmp_path: Path, stale: bool) -> None:
    for k in range(200):
        (tmp_path / str(k)).mkdir()
        if stale:
            hold(tmp_path / str(k), **GONE)
    context = multiprocessing.get_context("fork")
    barrier, said = context.Barrier(2), context.SimpleQueue()
    both = [context.Process(target=start, args=(tmp_path, 200, barrier, said)) for _ in range(2)]
    for process in both:
        process.start()
    found = Counter(said.get() for _ in range(400))
    for process in both:
        process.join(60)
    assert set(found) <= {"held", "refused"}, found
    assert found["held"] >= 200
    assert found["refused"] > 20, "they hardly met"
    assert [k for k in range(200) if locks(tmp_path / str(k))] == []
