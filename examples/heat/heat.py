"""How fast does a hot plate cool down? A C program, compiled by a step, run over a grid of parameters.

Each run is a step in an empty folder of its own; the two files that it leaves are moved into the cache. Steps in Python
read them, and the last one draws them all.

    python heat.py
    mpirun -n 2 python heat.py

Results are kept in heat_cache/, and the figure goes to heat.png. Edit heat.c, and `ezpyp run --on-change rerun heat.py`
compiles it again and runs all that follows; touch it, and nothing runs.
"""

import shutil

import numpy as np
from matplotlib.figure import Figure

from ezpyp import File, Pipeline, as_command_step, as_numpy_step, as_pickle_step

SIZE, STEPS = 64, 3000

pipeline = Pipeline("heat_cache", "heat")

program = pipeline.command("compile", ["cc", "-O2", "-o", "heat", File("heat.c")], outputs="heat")


@as_command_step(pipeline, outputs=["field.bin", "mean.bin"], progress=r"step (\d+) of (\d+)")
def simulate(conductivity, spot):
    return [program, conductivity, spot, SIZE, STEPS]


@as_numpy_step(pipeline)
def half_life(run):
    """The number of steps until half of the heat has left the plate."""
    mean = np.fromfile(run["mean.bin"])
    below = np.flatnonzero(mean < mean[0] / 2)
    return below[0] if len(below) else STEPS


@as_pickle_step(pipeline, workdir=True)
def draw(runs, half_lives, conductivities, spots):
    figure = Figure(figsize=(2 * len(spots), 2 * len(conductivities)))
    panels = figure.subplots(len(conductivities), len(spots), squeeze=False)
    for panel, run, steps in zip(panels.flat, runs, half_lives, strict=True):
        panel.imshow(np.fromfile(run["field.bin"]).reshape(SIZE, SIZE), cmap="inferno", vmin=0, vmax=0.3)
        panel.set_title(f"half of it after {steps}" if steps < STEPS else "more than half of it left", fontsize=7)
        panel.set_xticks([])
        panel.set_yticks([])
    for panel, conductivity in zip(panels[:, 0], conductivities, strict=True):
        panel.set_ylabel(f"conductivity {conductivity}", fontsize=7)
    for panel, spot in zip(panels[-1], spots, strict=True):
        panel.set_xlabel(f"spot {spot}", fontsize=7)
    figure.savefig("heat.png", dpi=120, metadata={"Software": None})
    return File("heat.png")


conductivities, spots = [0.05, 0.1, 0.2], [0.2, 0.4, 0.6, 0.8]
runs = simulate.product(conductivity=conductivities, spot=spots)
half_lives = half_life.map(runs)
figure = draw(runs, half_lives, conductivities, spots)

pipeline.initialize_schema()
pipeline.execute()

if pipeline.is_root:
    shutil.copyfile(figure.result(), "heat.png")
    fastest = min(zip(half_lives, runs, strict=True), key=lambda pair: pair[0].result())
    print(f"Half of the heat is gone after {fastest[0].result()} steps in {fastest[1].label}.")
