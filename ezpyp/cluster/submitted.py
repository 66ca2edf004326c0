"""What a job starts: a copy of a script, run as if it were the script.

python -P -m ezpyp.cluster.submitted COPY [arguments]
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType, TracebackType

from ezpyp.errors import StoreError
from ezpyp.scripts.frozen import CODE, SCRIPT, Source, install, read


def become(modules: Mapping[str, Source], folder: str, args: Sequence[str]) -> None:
    """Run the script of a copy in this process, as Python would have run the script."""
    script = modules[SCRIPT]
    install(modules)
    os.environ[CODE] = folder
    sys.argv = [script.origin, *args]
    sys.orig_argv = [sys.orig_argv[0], *sys.argv]
    sys.path.insert(0, os.path.dirname(script.origin))
    sys.excepthook = _show
    main = ModuleType(SCRIPT)
    vars(main).update(__file__=script.origin, __builtins__=__builtins__)
    sys.modules[SCRIPT] = main
    exec(compile(script.text, script.origin, "exec", dont_inherit=True), vars(main))


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """As Python does, from the script's first line on."""
    import traceback

    while trace is not None and trace.tb_frame.f_code.co_filename in (__file__, "<frozen runpy>"):
        trace = trace.tb_next
    traceback.print_exception(kind, error, trace)


def main() -> None:
    folder = os.path.abspath(sys.argv[1])
    try:
        modules = read(folder)
    except StoreError as error:
        print(f"ezpyp: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    become(modules, folder, sys.argv[2:])


if __name__ == "__main__":
    main()
