"""What a process that a step starts by multiprocessing ("spawn", "forkserver") runs in place of the script.

Such a process is a fresh interpreter that imports the main script for its functions and classes. A script that
calls execute() without `if __name__ == "__main__"` would run its pipeline there once more; so a helper has the main
module's spec name this module, which runs the script up to its first unfinished execute().
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec

from ezpyp.scripts import loading
from ezpyp.system import running

_SCRIPT = "EZPYP_MAIN_SCRIPT"


def stand_in() -> None:
    """From now on processes that this one spawns import the script by way of this module."""
    main = sys.modules["__main__"]
    path = loading.main_script()
    former = getattr(main, "__spec__", None)
    if not os.path.isfile(path) or (former is not None and former.name.endswith(".__main__")):
        return  # nothing that multiprocessing would import
    os.environ[_SCRIPT] = path
    main.__spec__ = ModuleSpec("ezpyp.scripts.spawned", None)


def _as_copied() -> None:
    """Where the script was run from a copy, let this process have the texts of the copy too."""
    from ezpyp.scripts import frozen

    folder = os.environ.get(frozen.CODE)
    modules = frozen.read(folder) if folder else {}
    if modules and modules[frozen.SCRIPT].origin == os.environ[_SCRIPT]:
        frozen.install(modules)


if __name__ == "__mp_main__":
    _as_copied()
    globals().update(loading.load(os.environ[_SCRIPT], sys.argv[1:], name=__name__).namespace)
    running.stay()  # what it is given to do is part of a step: decorated functions are plain
