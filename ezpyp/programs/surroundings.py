"""What lines such as `module load cdo` do to the environment: found out in a login shell, once a node."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Iterator, Mapping

from ezpyp.errors import InitializationError
from ezpyp.identity.contents import printable
from ezpyp.model.scratch import node_local
from ezpyp.system.digests import blake2b
from ezpyp.system.resources import scrubbed
from ezpyp.tuples import NamedTuple
from ezpyp.work import helper

#: Variables of the shell itself.
_OF_THE_SHELL = frozenset({"_", "SHLVL", "PWD", "OLDPWD"})
#: Seconds after which what is left of earlier runs is removed.
_OLD = 7 * 86400

#: What Environment Modules 3 says of a module that it cannot load, and ends with 0.
_REFUSED = re.compile(r"^(?:\w+\.c\(\d+\):)?ERROR:\d+: ", re.MULTILINE)

#: What this process found out.
_known: dict[tuple[str, ...], Difference] = {}


class Difference(NamedTuple):
    """What was done to an environment."""

    #: Variables that have another value now.
    changed: Mapping[str, str] = {}
    #: What was put before and after a value, as modules do with PATH.
    around: Mapping[str, tuple[str, str]] = {}
    gone: tuple[str, ...] = ()

    @classmethod
    def between(cls, before: Mapping[str, str], after: Mapping[str, str]) -> Difference:
        changed: dict[str, str] = {}
        around: dict[str, tuple[str, str]] = {}
        for name, now in after.items():
            then = before.get(name, "")
            if before.get(name) == now or name in _OF_THE_SHELL:
                continue
            place = f":{now}:".find(f":{then}:") if then else -1
            if place >= 0:
                around[name] = now[:place], now[place + len(then) :]
            else:
                changed[name] = now
        gone = tuple(name for name in before if name not in after and name not in _OF_THE_SHELL)
        return cls(changed=changed, around=around, gone=gone)

    def applied(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The environment after the same was done to it."""
        found = {name: value for name, value in environ.items() if name not in self.gone}
        found.update(self.changed)
        for name, (front, back) in self.around.items():
            value = found.get(name, "")
            found[name] = f"{front}{value}{back}" if value else f"{front.rstrip(':')}{back}".strip(":")
        return found


def difference(setup: tuple[str, ...]) -> Difference:
    """What these lines do to the environment of a login shell. Runs one, unless this node knows already.

    Raises:
        InitializationError: a line failed; the text says what it said.
    """
    if not setup:
        return Difference()
    if setup not in _known:
        run = os.environ.get(helper.RUN, "")
        _known[setup] = _shared(setup, run) if run else _found_out(setup)
    return _known[setup]


def publish(run: str) -> None:
    """Let the other processes of a run on this node have what this one knows."""
    for setup, found in _known.items():
        with _note(setup, run) as note:
            if note is not None:
                _write(note, found)


def _shared(setup: tuple[str, ...], run: str) -> Difference:
    with _note(setup, run) as note:
        if note is None:
            return _found_out(setup)
        try:
            content = json.loads(_read(note))
            around = {name: (front, back) for name, (front, back) in content["around"].items()}
            return Difference(changed=content["changed"], around=around, gone=tuple(content["gone"]))
        except (ValueError, KeyError, TypeError):  # the first one here, or one was killed while it wrote
            found = _found_out(setup)
            _write(note, found)
            return found


@contextlib.contextmanager
def _note(setup: tuple[str, ...], run: str) -> Iterator[int | None]:
    """The file in which a node notes what it found out, held by this process; None where there can be none."""
    folder = node_local()
    start = f"ezpyp.setup.{os.geteuid()}."
    key = blake2b("\0".join((run, os.uname().nodename, *setup)).encode(), digest_size=16).hexdigest()
    try:
        note = os.open(f"{folder}/{start}{key}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError:
        yield None
        return
    try:
        # Anybody may write to /tmp.
        if os.fstat(note).st_uid != os.geteuid():
            yield None
            return
        fcntl.flock(note, fcntl.LOCK_EX)
        _remove_old(folder, start)
        yield note
    finally:
        os.close(note)


def _remove_old(folder: str, start: str) -> None:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(start) and time.time() - entry.stat().st_mtime > _OLD:
                os.unlink(entry.path)


def _read(note: int) -> bytes:
    return os.pread(note, os.fstat(note).st_size, 0)


def _write(note: int, found: Difference) -> None:
    os.ftruncate(note, 0)
    os.pwrite(note, json.dumps(found._asdict()).encode(), 0)


def _found_out(setup: tuple[str, ...]) -> Difference:
    """Ask a login shell. Its own start-up files, and what the lines print but errors of modules, do not count."""
    import subprocess
    import tempfile

    with tempfile.TemporaryFile() as before, tempfile.TemporaryFile() as after, tempfile.TemporaryFile() as printed:
        lines = "".join(f"{{ {line}\n}} || exit\n" for line in setup)
        start = f"env -0 >&{before.fileno()}\nexec >&{printed.fileno()} 2>&1\n"
        done = subprocess.run(
            ["bash", "-l", "-c", f"{start}{lines}env -0 >&{after.fileno()}\n"],
            env=scrubbed(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=(before.fileno(), after.fileno(), printed.fileno()),
            check=False,
        )
        for file in (before, after, printed):
            file.seek(0)
        told, said = after.read(), printed.read().decode(errors="replace")
        is_refused = _REFUSED.search(said) is not None
        if done.returncode or not told or is_refused:
            words = (said or done.stderr.decode(errors="replace")).strip().splitlines()[-20:]
            how = "an error that its exit code hides" if is_refused and told else f"exit code {done.returncode}"
            raise InitializationError(
                f"setup={printable(' ; '.join(setup))} failed on {os.uname().nodename} with {how}: "
                f"{printable(' / '.join(words)) or 'it said nothing'}"
            )
        return Difference.between(_environment(before.read()), _environment(told))


def _environment(told: bytes) -> dict[str, str]:
    pairs = (os.fsdecode(each).partition("=") for each in told.split(b"\0") if each)
    return {name: value for name, _, value in pairs}
