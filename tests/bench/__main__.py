"""What ezpyp costs, beside floors and peers, all measured in one run.

    python -m tests.bench [--only noop,resume] [--quick] [--rounds 5] [--json build/bench.json]

Every contestant is a process of its own that says what it computed; one that computed something else is
left out by name. They take turns. A figure is the median; beside it the least and the most, its ratio, the
processor time of the whole process tree, the memory of its largest process, and the files of a run. See NOTES.md for
what was learned.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from shutil import which

from tests.bench import table, workloads
from tests.bench.measure import Contestant, in_turn, installed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="What ezpyp costs, beside its peers.")
    parser.add_argument("--only", default="", help="workloads by name, separated by commas")
    parser.add_argument("--without", default="", help="contestants to leave out, by the beginnings of their names")
    parser.add_argument("--quick", action="store_true", help="a twentieth of the steps, once")
    parser.add_argument("--rounds", type=int, default=0, help="how often everything is measured (5)")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"), help="where the numbers go")
    chosen = parser.parse_args()
    known = workloads.all_workloads(quick=chosen.quick)
    names = [name for name in chosen.only.split(",") if name] or [each.key for each in known]
    if strange := set(names) - {each.key for each in known}:
        parser.error(f"no workload {', '.join(sorted(strange))}; there are {', '.join(each.key for each in known)}")
    versions = dict(installed(workloads.PEERS))
    machine = table.machine()
    print(", ".join(f"{key} {value}" for key, value in machine.items()))
    print(", ".join(f"{name} {version or 'not installed: left out'}" for name, version in versions.items()), flush=True)
    out = tuple(name for name in chosen.without.split(",") if name)
    results = []
    for workload in known:
        if workload.key not in names:
            continue
        there = [each for each in workload.contestants if _is_there(each, versions) and not each.name.startswith(out)]
        rounds = min(workload.rounds, chosen.rounds or (1 if chosen.quick else 5))
        samples, failed = in_turn(there, rounds, partial(_progress, workload.key))
        _progress(workload.key, "")
        result = table.Result(workload, samples, failed)
        results.append(result)
        print(f"\n{result.text()}", flush=True)
        for why in failed.values():
            print(why, file=sys.stderr)
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    content = {"machine": machine, "versions": versions, "results": [each.json() for each in results]}
    chosen.json.write_text(json.dumps(content, indent=1), encoding="utf-8")
    print(f"\n{chosen.json}")
    return 1 if any(each.failed for each in results) else 0


def _is_there(contestant: Contestant, versions: Mapping[str, str]) -> bool:
    needs = contestant.needs
    return not needs or bool(versions[needs] if needs in versions else which(needs))


def _progress(workload: str, text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{workload}: {text}" if text else "\r\x1b[K", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
