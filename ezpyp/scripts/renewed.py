"""What a script is told that runs once more, in a new interpreter, to become a helper at the execute() at work.

So it is with EZPYP_START=fresh. Nothing is written or run there but what the script itself does before that execute().
"""

from __future__ import annotations

import os
import sys

from ezpyp.errors import InitializationError
from ezpyp.scripts import loading
from ezpyp.tuples import NamedTuple

#: The process, and the descriptors of a Call: a process that this one starts is no helper, whatever it inherits.
VARIABLE = "EZPYP_RENEWED"


class Call(NamedTuple):
    """What the agent left for this process, by file descriptors."""

    socket: int
    #: What helpers and agent share.
    memory: int
    #: What it has to know.
    letter: int
    #: What standard output was, and becomes again.
    output: int


def _received() -> Call | None:
    pid, *descriptors = [int(word) for word in os.environ.pop(VARIABLE, "").split()] or [0]
    if pid != os.getpid():
        return None
    for each in descriptors:
        os.set_inheritable(each, False)
    return Call(*descriptors)


def _folder() -> str:
    try:
        return os.getcwd()
    except OSError:
        return ""


#: Where a script that runs once more is to become a helper; None in any other process.
call = _received()
#: Where this process was, near enough, when the script began.
_home = _folder()


class Command(NamedTuple):
    """How to have the script run once more."""

    words: tuple[str, ...]
    folder: str


def command(*, is_run: bool = True) -> Command:
    """The command by which this process was started, as far as the operating system is concerned.

    Args:
        is_run: whether a person ran a script, as far as the caller knows.

    Raises:
        InitializationError: there is no script that could be run again.
    """
    from ezpyp.scripts import frozen

    copy = os.environ.get(frozen.CODE, "")
    if copy and frozen.text_of(loading.main_script()) is not None:
        return Command((sys.executable, "-P", "-m", "ezpyp.cluster.submitted", copy, *sys.orig_argv[2:]), _home)
    if not is_run or os.path.basename(loading.main_script()) == "<stdin>":
        raise InitializationError(
            "EZPYP_START=fresh runs the script once more for each helper, and there is no script that could be run "
            "again: it came by standard input, or this is a prompt, a notebook or a test. Put it into a file, or "
            "leave EZPYP_START alone. Nothing was run."
        )
    return Command((sys.executable, *sys.orig_argv[1:]), _home)
