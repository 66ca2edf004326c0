"""jug, two `execute` processes on one jugdir: WORKLOAD N FOLDER. The clock holds start and end of both processes.

In `calls` it runs in this process, from before the jugfile is loaded until all tasks are there with their digests.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

from tests.bench.scripts import work

_HEAD = """
from jug import TaskGenerator
from tests.bench.scripts import work
noop, combine, rest = map(TaskGenerator, (work.noop, work.combine, work.rest))
"""
_FILES = {
    "noop": f"{_HEAD}\nends = [noop(k) for k in range(N)]\n",
    "layers": f"""{_HEAD}
ends = [noop(k) for k in range(work.WIDTH)]
for _ in range(1, work.LAYERS):
    ends = [combine(*(ends[p] for p in work.above(k))) for k in range(work.WIDTH)]
""",
    # Equal calls are one task in jug: a number tells them apart.
    "straggler": f"""{_HEAD}
ends = [rest(seconds + k * 1e-9) for k, seconds in enumerate(work.stragglers())]
""",
    "chains": f"""{_HEAD}
ends = []
for chain in work.chain_seconds():
    end = rest(chain[0])
    for seconds in chain[1:]:
        end = rest(seconds, end)
    ends.append(end)
""",
}
_FILES["resume"] = _FILES["calls"] = _FILES["noop"]

WORKLOAD, N, FOLDER = sys.argv[1], int(sys.argv[2]), sys.argv[3]
JUGFILE, JUGDIR = f"{FOLDER}/jugfile.py", f"{FOLDER}/jugdata"
with open(JUGFILE, "w", encoding="utf-8") as file:
    file.write(_FILES[WORKLOAD].replace("range(N)", f"range({N})"))


def execute() -> float:
    """Seconds of two processes, as its documentation runs them; waiting for locks is cut short."""
    command = [
        f"{os.path.dirname(sys.executable)}/jug",
        "execute",
        JUGFILE,
        f"--jugdir={JUGDIR}",
        "--nr-wait-cycles=2000",
    ]
    command += ["--wait-cycle-time=0.01"] if WORKLOAD in ("straggler", "chains", "layers") else ["--wait-cycle-time=1"]
    began = time.perf_counter()
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        both = [subprocess.Popen(command, stdout=nowhere) for _ in range(2)]
        assert [process.wait() for process in both] == [0, 0]
    return time.perf_counter() - began


if WORKLOAD == "calls":
    start = time.perf_counter()
    import jug

    _, space = jug.init(JUGFILE, JUGDIR)
    digests = {task.hash() for task in space["ends"]}
    work.tell(time.perf_counter() - start, sum(range(N)) if len(digests) == N else len(digests))
else:
    taken = execute()
    import jug

    _, space = jug.init(JUGFILE, JUGDIR)
    values = jug.value(space["ends"])
    answer = sum(values)
    if WORKLOAD in ("straggler", "chains"):
        answer = round(answer, 6)
    work.tell(taken, answer)
