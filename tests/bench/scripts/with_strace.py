"""Count the calls that name a file in all processes of a start: PROGRAM RANKS HELPERS FOLDER.

PROGRAM is "ezpyp", 32 no-op steps on ranks with so many helpers each, or "mpi", the floor: a script that starts MPI.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.bench.scripts import work

PROGRAM, RANKS, HELPERS, FOLDER = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4]
SCRIPTS = Path(__file__).parent
SCRIPT = {
    "ezpyp": ["with_ezpyp.py", "noop", "32", f"{FOLDER}/cache", "files"],
    "mpi": ["floors.py", "mpi", "1", FOLDER],
}
NAME, *ARGUMENTS = SCRIPT[PROGRAM]
counts = f"{FOLDER}/counts"
done = subprocess.run(
    [
        *("strace", "-f", "-qq", "--seccomp-bpf", "-c", "-U", "calls", "-e", "trace=%file", "-o", counts),
        *(f"{os.path.dirname(sys.executable)}/mpirun", "-n", RANKS, sys.executable, str(SCRIPTS / NAME), *ARGUMENTS),
    ],
    env={**os.environ, "EZPYP_HELPERS": HELPERS, "EZPYP_WORKERS": HELPERS},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
)
assert done.stdout.count('"answer": 496' if PROGRAM == "ezpyp" else '"answer": 0') == 1, done.stdout
with open(counts, encoding="utf-8") as file:
    calls = sum(int(line) for line in file.read().split() if line.isdigit())
# The last line is the sum of the others.
work.tell(calls / 2, 0)
