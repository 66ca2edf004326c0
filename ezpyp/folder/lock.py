"""One run at a time in a cache folder: the file that names its holder, and how one holder follows another.

Nobody removes or replaces `.lock` at sight, for it may be another's since it was read. Whoever wants to follow the
holder with token T first makes `.lock.T`, which only one can do (link(2) is atomic, on NFS too: see open(2), O_EXCL),
and looks whether T still stands. Then nobody else may end T's hold, and `.lock.T` is renamed to `.lock`. One that is
killed in between leaves a chain, `.lock` with T and `.lock.T` with U; to follow them, one makes `.lock.U`. Who lets go
follows himself, and removes what came of it: `.lock` itself becomes `.lock.T` too, which takes no room on a full disk.
To follow one that was killed then, one makes `.lock.T+`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from itertools import pairwise
from types import TracebackType

from ezpyp.errors import CacheInUse, CacheTakenOver, StoreError
from ezpyp.folder.holder import Holder, from_json, is_gone, present, to_json, user_name
from ezpyp.system.files import write_whole
from ezpyp.tuples import NamedTuple

NAME = ".lock"
#: Set to anything but 0, it takes the place of `--take-over`.
TAKE_OVER = "EZPYP_TAKE_OVER"
#: Seconds between two signs of life.
EVERY = 10.0

#: Holders may come and go while one tries; so often is a file system that contradicts itself.
_TRIES = 100
#: So often one looks again, after a moment (seconds), at a holder that is letting go.
_PATIENCE, _MOMENT = 50, 0.01
#: What link(2) says on file systems without hard links.
_NO_LINKS = frozenset((errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP, errno.EMLINK))


class Lock:
    """This process's hold on a folder. Got by `acquire`, perhaps several times; let go when all have released it.

    A process that was forked from the holder holds nothing.
    """

    def __init__(self, folder: str, token: str) -> None:
        self.folder = folder
        #: Different for every hold; it is in the file.
        self.token = token
        self._holds = 1
        self._owner = os.getpid()

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def sign(self) -> None:
        """Give a sign of life, and see that the folder is still ours. One file is opened: not for every step.

        Raises:
            CacheTakenOver: it is another's, or nobody's.
        """
        if not self.stands():
            raise CacheTakenOver(_loss(self.folder))

    def stands(self) -> bool:
        """Sign, and say whether there was still a place to."""
        try:
            with open(f"{self.folder}/{NAME}", "rb") as file:
                ours = self.token.encode() in file.read()
                if ours:
                    os.utime(file.fileno())  # by the clock of the file system
                return ours
        except FileNotFoundError:
            return False
        except OSError:
            return True  # a file system that does not answer proves nothing; the next sign will tell

    def again(self) -> Lock | None:
        """Hold it once more, if this process does."""
        if os.getpid() != self._owner or not self._holds or not self.stands():
            return None
        self._holds += 1
        return self

    def release(self) -> None:
        """Let go, when called as often as it was acquired. Never raises."""
        if os.getpid() != self._owner or not self._holds:
            return
        self._holds -= 1
        if not self._holds:
            with contextlib.suppress(OSError, StoreError):
                _let_go(self.folder, self.token)


#: By real path.
_locks: dict[str, Lock] = {}


def acquire(folder: str, *, take_over: bool = False) -> Lock:
    """Hold a folder until `release`; at once where this process does already. A holder that is gone is followed.

    `take_over` (or EZPYP_TAKE_OVER) follows any holder, but once a process: one that has lost a folder does not take
    it back.

    Raises:
        CacheInUse: another run holds it (message 8).
        StoreError: the folder cannot be written.
    """
    key = os.path.realpath(folder)
    former = _locks.get(key)
    lock = former.again() if former is not None else None
    if lock is None:
        forced = former is None and (take_over or os.environ.get(TAKE_OVER, "0") not in ("", "0"))
        lock = _locks[key] = Lock(key, _win(key, forced))
    return lock


def held_by(folder: str) -> str:
    """Who holds a folder, for people; "" where nobody does that is not provably gone. Writes nothing."""
    us = present()
    for seen in reversed(_chain(folder)):
        if seen.holder is None or not is_gone(seen.holder, us):
            return seen.told(time.time())
    return ""


# ----- what is in the folder


class _Seen(NamedTuple):
    """A lock file: its holder, None where it cannot be read."""

    path: str
    token: str
    holder: Holder | None
    user: str
    #: When the holder last gave a sign, by the clock of the file system.
    sign: float

    def told(self, now: float) -> str:
        """Who it is, for people."""
        return f"{self.name} ({self.place}, last sign {_span(now - self.sign)} ago)"

    @property
    def name(self) -> str:
        return self.holder.name if self.holder else "a process that cannot be told"

    @property
    def place(self) -> str:
        who = self.holder
        return f"user {self.user}" + (f", {who.host}, since {_time_of(who.since)}" if who else "")


def _look(path: str) -> _Seen | None:
    """What is at a path, None if nothing is.

    Raises:
        StoreError: the file system does not tell.
    """
    try:
        state = os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path} cannot be looked at ({error.strerror}). Is its file system there?") from error
    try:
        with open(path, "rb") as file:
            state = os.fstat(file.fileno())
            holder = from_json(file.read())
        return _Seen(path=path, token=holder.token, holder=holder, user=holder.user, sign=state.st_mtime)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno == errno.ESTALE:
            return None  # replaced as it was read: the caller looks again
    # Another user's with mode 0600, a newer format, or torn: still somebody's.
    token = f"unreadable-{state.st_ino:x}"
    return _Seen(path=path, token=token, holder=None, user=user_name(state.st_uid), sign=state.st_mtime)


def _chain(folder: str) -> list[_Seen]:
    """The holder, and those who began to follow: the last is the one in whose name the folder is held."""
    found: list[_Seen] = []
    path = f"{folder}/{NAME}"
    while len(found) < _TRIES and (seen := _look(path)) is not None:
        found.append(seen)
        path = _claim(folder, seen)
    return found


def _claim(folder: str, last: _Seen) -> str:
    """What whoever follows makes first."""
    path = f"{folder}/{NAME}.{last.token}"
    return path if last.path != path else f"{path}+"


def _lets_go(chain: list[_Seen]) -> bool:
    """Whether the holder has begun to let go, and nobody follows him."""
    return len(chain) > 1 and chain[-1].token == chain[-2].token


# ----- becoming the holder


def _win(folder: str, forced: bool) -> str:
    """Become the holder; the token of the hold."""
    us = present()
    draft = _draft(folder, us)
    gone: dict[str, bool] = {}  # Slurm is asked once
    try:
        now = os.stat(draft).st_mtime
        for k in range(_TRIES):
            if _name(draft, f"{folder}/{NAME}", us.token):
                return us.token
            chain = _chain(folder)
            for seen in chain:
                if seen.token not in gone:
                    gone[seen.token] = seen.holder is not None and is_gone(seen.holder, us)
            if k < _PATIENCE and _lets_go(chain) and not gone[chain[-1].token]:
                time.sleep(_MOMENT)  # not even by force, or it might remove what was ours by then
                continue
            there = [seen for seen in chain if not gone[seen.token]]
            if there and not forced:
                raise CacheInUse(_refusal(folder, there[-1], now))
            if chain and _follow(folder, chain, draft, us.token):
                if there:
                    print(f"ezpyp: the cache was taken over from {there[-1].told(now)}.", file=sys.stderr)
                return us.token
        raise StoreError(f"{folder}/{NAME} can be neither made nor read. Look at it, remove it, and run again.")
    finally:
        _remove(draft)


def _draft(folder: str, holder: Holder) -> str:
    """The holder in a file of its own, whole before it gets a name that others read."""
    path = f"{folder}/{NAME}.{holder.token}.draft"
    try:
        write_whole(path, [to_json(holder)])
    except StoreError as error:
        error.exit_code = 3
        raise
    return path


def _name(draft: str, path: str, token: str) -> bool:
    """Give the draft a name that nothing has: True for one process only, however many try.

    Raises:
        StoreError: the folder cannot be written.
    """
    try:
        _link(draft, path)
        return True
    except FileExistsError:
        # NFS may repeat a request whose answer was lost, and then meets its own work.
        seen = _look(path)
        return seen is not None and seen.token == token
    except OSError as error:
        raise StoreError(f"{path} cannot be made: {error.strerror}. Have its folder made writable.") from error


def _link(draft: str, path: str) -> None:
    try:
        os.link(draft, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # For a moment it is not whole: others then find its holder unknown, and leave it alone.
        with open(draft, "rb") as file, open(path, "xb") as copy:
            copy.write(file.read())


def _follow(folder: str, chain: list[_Seen], draft: str, token: str) -> bool:
    """Take the place of the last of a chain; False where another was quicker."""
    claim = _claim(folder, chain[-1])
    if not _name(draft, claim, token):
        return False
    now = _chain(folder)
    if not now or now[-1].token != token:
        if token not in (seen.token for seen in now):
            _remove(claim)
        return False
    try:
        # From the end, so that at every moment the chain leads to us.
        for earlier, later in reversed(list(pairwise(now))):
            with contextlib.suppress(FileNotFoundError):
                os.rename(later.path, earlier.path)
    except OSError as error:
        _remove(claim)
        raise StoreError(f"{folder}/{NAME} cannot be replaced: {error.strerror}. Have its owner remove it.") from error
    seen = _look(f"{folder}/{NAME}")
    return seen is not None and seen.token == token


def _let_go(folder: str, token: str) -> None:
    path = f"{folder}/{NAME}"
    claim = f"{path}.{token}"
    if [seen.token for seen in _chain(folder)] != [token] or not _name(path, claim, token):
        return
    chain = _chain(folder)
    if [seen.token for seen in chain] == [token, token]:
        _remove(path)
        _remove(claim)
    elif claim not in (seen.path for seen in chain):  # `.lock` was another's already when it became the claim
        _remove(claim)


def _remove(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


# ----- what is said


def _refusal(folder: str, seen: _Seen, now: float) -> str:
    return (
        f"The cache is in use by {seen.told(now)}. Watch it: ezpyp watch {folder}. If it is surely gone: --take-over."
    )


def _loss(folder: str) -> str:
    seen = _look(f"{folder}/{NAME}")
    if seen is None:
        how = f"{folder} is no longer held by this run: its lock was removed, or another run took it and has ended."
    else:
        how = f"{folder} was taken over from this run by {seen.name} ({seen.place})."
    return f"{how} This run stops, so that two do not write one cache; what is done is kept. Run again to go on."


def _time_of(when: float) -> str:
    day, today = time.localtime(when), time.localtime()
    return time.strftime("%H:%M" if day[:3] == today[:3] else "%Y-%m-%d %H:%M", day)


def _span(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
