"""What `ezpyp doctor` starts on ranks: each says what it is and what it sees, and rank 0 tells.

mpirun -n RANKS python rollcall.py TOKEN
"""

from __future__ import annotations

import json
import sys


def main() -> int:
    from importlib.metadata import version

    from ezpyp.cluster import doctor
    from ezpyp.errors import EzpypError
    from ezpyp.ranks import mpi

    try:
        link = mpi.connect()
        ours = doctor.here(sys.argv[1], version)
        if link is not None:
            link.meet(mpi.Mark.BARRIER, b"", lambda: "is at the roll call")
    except EzpypError as error:
        print(f"ezpyp: {type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    found = [ours] if link is None else link.gather(ours)
    if link is None or link.rank == 0:
        print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
