"""The time limit of a job, on a real Slurm: nobody says it but Slurm."""

from __future__ import annotations

from tests.conftest import Launcher
from tests.lab.conftest import Slurm
from tests.lab.test_submit import command, submitted

STUDY = """
import ezpyp
from ezpyp import Pipeline, as_json_step

pipeline = Pipeline("cache", "study")

@as_json_step(pipeline)
def left():
    return ezpyp.time_left()

step = left()
pipeline.execute()
print("left", step.result())
"""


def test_rank_0_asks_how_long_its_job_has(slurm: Slurm, mpirun: Launcher) -> None:
    (mpirun.folder / "study.py").write_text(STUDY)
    job = submitted(slurm, mpirun, "study.py", "--nodes", "2", "--time", "2m")
    assert slurm.ended(job) == "COMPLETED"
    log = command(slurm, mpirun, "logs", "cache").stdout
    (left,) = (float(line.split()[1]) for line in log.splitlines() if line.startswith("left "))
    assert 60 < left < 120, log
