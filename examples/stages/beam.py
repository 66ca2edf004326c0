"""The natural frequencies of a cantilever beam: two pipelines, the second built from what the first found.

A beam clamped at one end vibrates where cos(x) cosh(x) = -1; its frequencies grow with the squares of the
roots. How many there are below a limit is known only when the first pipeline has looked.

    python beam.py
    mpirun -n 2 python beam.py
"""

from itertools import pairwise
from math import cos, cosh

from ezpyp import Pipeline, as_json_step, as_pickle_step

LIMIT = 60.0
WINDOWS = 12


def height(x):
    """Zero at the roots. The equation is divided by cosh(x), which would otherwise drown the cosine."""
    return cos(x) + 1 / cosh(x)


# Stage one: look at windows of the axis, and collect the intervals in which the sign changes.

search = Pipeline("beam_cache/search", "beam-search")


@as_pickle_step(search)
def scan(low, high, points=200):
    xs = [low + (high - low) * k / points for k in range(points + 1)]
    return [(a, b) for a, b in pairwise(xs) if height(a) * height(b) < 0]


@as_pickle_step(search)
def brackets(found):
    return [bracket for window in found for bracket in window]


edges = [LIMIT * k / WINDOWS for k in range(WINDOWS + 1)]
found = brackets(scan.map(edges[:-1], edges[1:]))

search.initialize_schema()
search.execute()

# Stage two: a step for every interval that stage one found. Every rank reads the same result, so every rank
# builds the same pipeline.

refine = Pipeline("beam_cache/refine", "beam-refine")


@as_json_step(refine)
def bisect(bracket):
    low, high = bracket
    while (middle := (low + high) / 2) not in (low, high):
        low, high = (low, middle) if height(low) * height(middle) <= 0 else (middle, high)
    return low


@as_json_step(refine)
def table(roots):
    return [{"mode": k, "root": root, "ratio": (root / roots[0]) ** 2} for k, root in enumerate(roots, 1)]


frequencies = table(bisect.map(found.result()))

refine.initialize_schema()
refine.execute()

if refine.is_root:
    print(f"{len(frequencies.result())} frequencies below x = {LIMIT:g}")
    for row in frequencies.result()[:5]:
        print(f"mode {row['mode']}: x = {row['root']:.9f}, {row['ratio']:.3f} times the first")
