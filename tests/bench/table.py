"""What was measured, as tables for a person and as JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

from tests.bench.measure import Contestant, Sample, median, spread
from tests.bench.workloads import Goal, Workload, extras

HEADS = ("", "median", "least", "most", "ratio", "cpu", "peak", "files", "how")
KINDS = {"ezpyp": "", "floor": "", "durable": " (durable)", "volatile": " (results in memory)"}


class Result:
    """A workload with its samples."""

    def __init__(self, workload: Workload, samples: Mapping[str, Sequence[Sample]], failed: Mapping[str, str]) -> None:
        self.workload, self.samples, self.failed = workload, samples, failed
        self.there = [each for each in workload.contestants if each.name in samples]
        self.values = {
            each.name: [workload.value(sample, each.n) for sample in samples[each.name]] for each in self.there
        }
        self.medians = {name: median(values) for name, values in self.values.items()}
        for each in self.there:
            self.medians |= extras(each, samples[each.name])

    @property
    def base(self) -> str | None:
        names = [each.name for each in self.there]
        return self.workload.base if self.workload.base in names else next(iter(names), None)

    def text(self) -> str:
        rows = [HEADS, *(self._row(each) for each in self.there)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEADS))]
        lines = [f"{self.workload.key}: {self.workload.title} [{self.workload.unit}]"]
        for row in rows:
            cells = [
                row[0].ljust(widths[0]),
                *(cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)),
            ]
            lines.append(f"  {'  '.join(cells)}  {row[-1]}".rstrip())
        lines += [f"  {_verdict(goal, self.medians)}" for goal in self.workload.goals]
        lines += [f"  {name} failed: {why.strip().splitlines()[-1]}" for name, why in self.failed.items()]
        return "\n".join(lines)

    def _row(self, each: Contestant) -> tuple[str, ...]:
        samples, values = self.samples[each.name], self.values[each.name]
        least, most = spread(values)
        files = self.medians.get(f"{each.name}: files")
        assert self.base is not None
        return (
            f"{each.name}{KINDS[each.kind]}",
            number(median(values)),
            number(least),
            number(most),
            f"{median(values) / (self.medians[self.base] or 1):.2f}",
            f"{number(median([sample.busy for sample in samples]))} s",
            f"{median([sample.peak for sample in samples]) / 1e6:.0f} MB",
            "" if files is None else f"{files:.0f}",
            each.how,
        )

    def json(self) -> dict[str, Any]:
        return {
            "workload": self.workload.key,
            "title": self.workload.title,
            "unit": self.workload.unit,
            "base": self.base,
            "failed": dict(self.failed),
            "contestants": [
                {
                    "name": each.name,
                    "kind": each.kind,
                    "how": each.how,
                    "n": each.n,
                    "median": self.medians[each.name],
                    "values": self.values[each.name],
                    "seconds": [sample.seconds for sample in self.samples[each.name]],
                    "wall": [sample.wall for sample in self.samples[each.name]],
                    "busy": [sample.busy for sample in self.samples[each.name]],
                    "peak": [sample.peak for sample in self.samples[each.name]],
                    "facts": [sample.facts for sample in self.samples[each.name]],
                }
                for each in self.there
            ],
            "goals": [
                {"what": goal.what, "value": goal.value(self.medians), "must": goal.must, "strive": goal.strive}
                for goal in self.workload.goals
            ],
        }


def number(value: float) -> str:
    """Three digits that count."""
    for limit, digits in ((0.1, 4), (10, 2), (1000, 1)):
        if abs(value) < limit:
            return f"{value:.{digits}f}"
    return f"{value:,.0f}"


def _verdict(goal: Goal, medians: Mapping[str, float]) -> str:
    value = goal.value(medians)
    if value is None:
        return f"-  {goal.what}: not measured"
    mark = "ok" if value <= goal.must else "MISSED"
    more = f", strive {number(goal.strive)}" if goal.strive is not None else ""
    return f"{mark}  {goal.what}: {number(value)} (at most {number(goal.must)}{more})"


def machine() -> dict[str, Any]:
    """What all of it was measured on."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "load": os.getloadavg()[0],
    }
