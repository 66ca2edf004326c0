"""The workloads: who does them, how, and what ezpyp must reach."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tests.bench.measure import SCRIPTS, Contestant, Sample, median
from tests.bench.scripts import work

EZPYP, FLOOR, DURABLE, VOLATILE = "ezpyp", "floor", "durable", "volatile"
PEERS = ("mpi4py", "joblib", "jug", "dask", "parsl")

Medians = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A number that must not be above a limit, and where it should be."""

    what: str
    value: Callable[[Medians], float | None]
    must: float
    strive: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One table.

    Attributes:
        value: from a sample and the contestant's n to the number in the table.
        base: whose number is 1 in the column of ratios; who is missing is replaced by the first one that is there.
        rounds: at most so many.
    """

    key: str
    title: str
    unit: str
    value: Callable[[Sample, int], float]
    contestants: Sequence[Contestant]
    base: str
    goals: Sequence[Goal] = ()
    rounds: int = 99


def micro(sample: Sample, n: int) -> float:
    return sample.seconds / n * 1e6


def seconds(sample: Sample, n: int) -> float:
    return sample.seconds


def wall(sample: Sample, n: int) -> float:
    return sample.wall


def of(name: str) -> Callable[[Medians], float | None]:
    return lambda medians: medians.get(name)


def ratio(name: str, base: str) -> Callable[[Medians], float | None]:
    return lambda medians: medians[name] / medians[base] if name in medians and base in medians else None


def over_best(name: str, others: Sequence[Contestant]) -> Callable[[Medians], float | None]:
    """Over the least of the others that were measured."""

    def value(medians: Medians) -> float | None:
        there = [medians[each.name] for each in others if each.name in medians]
        return medians[name] / min(there) if there and name in medians else None

    return value


def ezpyp(workload: str, n: int, answer: Any, how: str, **more: Any) -> Contestant:
    store = more.pop("store", "packed")
    command = (str(SCRIPTS / "with_ezpyp.py"), workload, str(n), "{folder}/cache", store)
    return Contestant(
        **{"name": f"ezpyp {store}", "kind": EZPYP, "n": n, "ranks": 2, "command": command, **more},
        how=how,
        answer=answer,
    )


def floor(name: str, n: int, answer: Any, how: str, **more: Any) -> Contestant:
    command = (str(SCRIPTS / "floors.py"), name, str(n), "{folder}")
    return Contestant(
        **{"name": f"floor: {name}", "kind": FLOOR, "n": n, "command": command, **more}, how=how, answer=answer
    )


def peer(name: str, script: str, *arguments: str, n: int, answer: Any, kind: str, how: str, **more: Any) -> Contestant:
    command = (*more.pop("by", ()), str(SCRIPTS / f"with_{script}.py"), *arguments, str(n), "{folder}")
    needs = more.pop("needs", "")
    return Contestant(name=name, kind=kind, n=n, command=command, needs=needs, how=how, answer=answer, **more)


MANAGED: dict[str, Any] = {"by": ("-m", "mpi4py.futures"), "ranks": 2, "needs": "mpi4py"}


def all_workloads(*, quick: bool) -> list[Workload]:
    """In the order of the table; `quick` is for a look, with a twentieth of the steps."""
    size = 20 if quick else 1
    made = [noop(20_000 // size, 5_000 // size)]
    made += [layers(), straggler(), chains(), resume(100_000 // size, 20_000 // size)]
    made += [calls(100_000 // size), family(1_000_000 // size), million(1_000_000 // size)]
    made += [programs(1_000 // size), processes(200 // size)]
    return [*made, array(), digest(1_000_000_000 // size), one(), idle(), syscalls()]


def noop(n: int, fewer: int) -> Workload:
    total, less = work.expected("noop", n), work.expected("noop", fewer)
    durable = [
        peer(
            "processes, chunks",
            *("futures", "processes", "chunks"),
            n=n,
            answer=total,
            kind=DURABLE,
            how="ProcessPoolExecutor(2), chunksize=50, a file a task",
        ),
        peer(
            "mpi4py.futures, chunks",
            *("futures", "mpi", "chunks"),
            **{"n": n, "answer": total, "kind": DURABLE, **MANAGED},
            how="mpirun -n 2, one rank manages; chunksize=50, a file a task",
        ),
        peer(
            "joblib.Memory",
            *("joblib", "cached"),
            n=n,
            answer=total,
            kind=DURABLE,
            needs="joblib",
            how="Parallel(n_jobs=2) of Memory.cache, its own batches",
        ),
        peer(
            "jug",
            *("jug", "noop"),
            n=fewer,
            answer=less,
            kind=DURABLE,
            needs="jug",
            how=f"two `jug execute`, N={fewer:,}, starts included",
        ),
        peer(
            "parsl, checkpoints",
            *("parsl", "cached"),
            n=fewer,
            answer=less,
            kind=DURABLE,
            needs="parsl",
            how=f"HighThroughputExecutor, 2 workers, task_exit, N={fewer:,}",
        ),
    ]
    volatile = [
        peer(
            "processes",
            *("futures", "processes", "noop"),
            n=n,
            answer=total,
            kind=VOLATILE,
            how="ProcessPoolExecutor(2).map, chunksize=1",
        ),
        peer(
            "mpi4py.futures",
            *("futures", "mpi", "noop"),
            **{"n": n, "answer": total, "kind": VOLATILE, **MANAGED},
            how="mpirun -n 2, one rank manages; chunksize=1",
        ),
        peer(
            "joblib",
            *("joblib", "noop"),
            n=n,
            answer=total,
            kind=VOLATILE,
            needs="joblib",
            how="Parallel(n_jobs=2), its own batches",
        ),
        peer(
            "dask",
            *("dask", "noop"),
            n=fewer,
            answer=less,
            kind=VOLATILE,
            needs="dask",
            how=f"LocalCluster, 2 workers of 1 thread, map, N={fewer:,}",
        ),
        peer(
            "parsl",
            *("parsl", "noop"),
            n=fewer,
            answer=less,
            kind=VOLATILE,
            needs="parsl",
            how=f"HighThroughputExecutor, 2 workers, N={fewer:,}",
        ),
    ]
    return Workload(
        key="noop",
        title=f"durable no-op steps, N={n:,}",
        unit="µs a step",
        value=micro,
        base="ezpyp packed",
        contestants=[
            ezpyp("noop", n, total, "two ranks; all of execute()"),
            ezpyp("noop", n, total, "two ranks; one file pair a step", store="files"),
            floor("records", n, total, "two processes append records, 64 a write"),
            floor("pairs", n, total, "two processes, two files a step, each renamed"),
            *durable,
            *volatile,
        ],
        goals=[
            Goal(what="a step, packed (µs)", value=of("ezpyp packed"), must=5.0, strive=2.0),
            Goal(what="packed / best durable peer", value=over_best("ezpyp packed", durable), must=1 / 8),
            Goal(what="files / floor: pairs", value=ratio("ezpyp files", "floor: pairs"), must=1.3, strive=1.1),
        ],
    )


def layers() -> Workload:
    n, answer = work.LAYERS * work.WIDTH, work.layers()
    common: dict[str, Any] = {"n": n, "answer": answer}
    return Workload(
        key="layers",
        title=f"{work.LAYERS} layers of {work.WIDTH} steps, two parents each, values passed",
        unit="µs a step",
        value=micro,
        base="ezpyp packed",
        contestants=[
            ezpyp("layers", n, answer, "two ranks; all of execute()"),
            ezpyp("layers", n, answer, "two ranks; one file pair a step", store="files"),
            peer("jug", "jug", "layers", **common, kind=DURABLE, needs="jug", how="two `jug execute`, starts included"),
            peer("processes", "futures", "processes", "layers", **common, kind=VOLATILE, how="map, a layer at a time"),
            peer("mpi4py.futures", "futures", "mpi", "layers", **common, kind=VOLATILE, **MANAGED, how="map by layers"),
            peer("joblib", "joblib", "layers", **common, kind=VOLATILE, needs="joblib", how="Parallel, layer by layer"),
            peer("dask", "dask", "layers", **common, kind=VOLATILE, needs="dask", how="delayed, computed at once"),
            peer("parsl", "parsl", "layers", **common, kind=VOLATILE, needs="parsl", how="futures passed on"),
        ],
        goals=[Goal(what="a step, packed (µs)", value=of("ezpyp packed"), must=40.0, strive=15.0)],
    )


def scheduled(key: str, title: str, ideal: float, n: int, must: float, strive: float, peers: Sequence[str]) -> Workload:
    """A workload of resting steps, over an ideal schedule of two slots."""
    answer = work.expected(key, n)
    common: dict[str, Any] = {"n": n, "answer": answer}
    known = {
        "jug": peer("jug", "jug", key, **common, kind=DURABLE, needs="jug", how="two `jug execute`, starts included"),
        "processes": peer("processes", "futures", "processes", key, **common, kind=VOLATILE, how="two, as futures"),
        "mpi2": peer(
            "mpi4py.futures", "futures", "mpi", key, **common, kind=VOLATILE, **MANAGED, how="one of 2 ranks works"
        ),
        "joblib": peer("joblib", "joblib", key, **common, kind=VOLATILE, needs="joblib", how="Parallel(n_jobs=2)"),
        "dask": peer("dask", "dask", key, **common, kind=VOLATILE, needs="dask", how="2 workers of 1 thread"),
        "parsl": peer("parsl", "parsl", key, **common, kind=VOLATILE, needs="parsl", how="2 workers"),
    }
    return Workload(
        key=key,
        title=f"{title}; ideal {ideal:.3f} s",
        unit="× ideal",
        value=lambda sample, _: sample.seconds / ideal,
        base="ezpyp packed",
        contestants=[
            ezpyp(key, n, answer, "two ranks; all of execute()"),
            ezpyp(key, n, answer, "two ranks; one file pair a step", store="files"),
            *(known[each] for each in peers),
        ],
        goals=[Goal(what="over ideal", value=of("ezpyp packed"), must=must, strive=strive)],
    )


def straggler() -> Workload:
    durations = work.stragglers()
    return scheduled(
        "straggler",
        f"one straggler of {work.STRAGGLER:g} s, first among {work.SHORTS} of {work.SHORT * 1000:g} ms",
        work.greedy([[each] for each in durations], 2),
        len(durations),
        *(1.02, 1.01),
        ("jug", "processes", "mpi2", "joblib", "dask", "parsl"),
    )


def chains() -> Workload:
    chained = work.chain_seconds()
    return scheduled(
        "chains",
        f"{work.CHAINS} chains of {work.LINKS}, 20 to 80 ms a step",
        work.greedy(chained, 2),
        work.CHAINS * work.LINKS,
        *(1.03, 1.02),
        ("jug", "processes", "mpi2", "dask", "parsl"),
    )


def resume(n: int, fewer: int) -> Workload:
    total, less = work.expected("noop", n), work.expected("noop", fewer)

    common: dict[str, Any] = {"n": fewer, "answer": less, "kind": DURABLE}

    def again(made: Contestant, first: str = "noop") -> Contestant:
        script, *rest = made.command
        return replace(made, prepare=(script, first, *rest[1:]))

    return Workload(
        key="resume",
        title=f"resume of {n:,} steps that are done",
        unit="µs a step",
        value=micro,
        base="ezpyp packed",
        contestants=[
            again(ezpyp("resume", n, total, "python; initialize_schema() and execute()", ranks=0)),
            again(ezpyp("resume", fewer, less, f"the same, N={fewer:,}", ranks=0, store="files")),
            again(peer("jug", "jug", "resume", **common, needs="jug", how=f"N={fewer:,}, starts included")),
            again(peer("joblib.Memory", "joblib", "resume", **common, needs="joblib", how=f"N={fewer:,}"), "cached"),
            again(
                peer("parsl", "parsl", "resume", **common, needs="parsl", how=f"N={fewer:,}, after loading"), "cached"
            ),
        ],
        goals=[Goal(what="a step, packed (µs)", value=of("ezpyp packed"), must=2.0, strive=1.0)],
    )


def calls(n: int) -> Workload:
    total = work.expected("calls", n)
    common: dict[str, Any] = {"n": n, "answer": total}
    return Workload(
        key="calls",
        title=f"define, plan and fingerprint {n:,} single calls",
        unit="s",
        value=seconds,
        base="ezpyp packed",
        contestants=[
            ezpyp("calls", n, total, "calls and initialize_schema(), the schema written", ranks=0),
            floor("pickled", n, total, "pickle the same arguments and back"),
            peer("jug", "jug", "calls", **common, kind=DURABLE, needs="jug", how="load the jugfile, hash all tasks"),
            peer("dask", "dask", "calls", **common, kind=VOLATILE, needs="dask", how="delayed(pure=True), one graph"),
        ],
        goals=[Goal(what="seconds", value=of("ezpyp packed"), must=2.0, strive=1.0)],
    )


def family(n: int) -> Workload:
    made = ezpyp("family", n, work.expected("family", n), "map and initialize_schema(), the schema written", ranks=0)
    return Workload(
        key="family",
        title=f"a family of {n:,} over a range: define, plan, schema",
        unit="s",
        value=seconds,
        base="ezpyp packed",
        contestants=[made],
        goals=[
            Goal(what="seconds", value=of("ezpyp packed"), must=1.0, strive=0.1),
            Goal(what="bytes over the interpreter", value=of("ezpyp packed: memory"), must=100e6),
        ],
        rounds=3,
    )


def programs(n: int) -> Workload:
    total = work.expected("programs", n)
    return Workload(
        key="programs",
        title=f"{n:,} programs that do nothing (/bin/true), two at a time, a step",
        unit="ms",
        value=lambda sample, n: sample.seconds / n * 1e3,
        base="floor: spawn",
        contestants=[
            ezpyp("programs", n, total, "mpirun -n 2, as_command_step, each in a folder of its own"),
            floor("spawn", n, total, "posix_spawn and wait in two processes; no folder, no record"),
            floor("subprocess", n, total, "subprocess.run in two processes; no folder, no record"),
        ],
        goals=[
            Goal(what="a program (ms)", value=of("ezpyp packed"), must=2.5),
            Goal(what="over the floor (ms)", value=_over("ezpyp packed", "floor: spawn"), must=2.0, strive=1.0),
        ],
    )


def processes(n: int) -> Workload:
    total = work.expected("processes", n)
    return Workload(
        key="processes",
        title=f"{n:,} steps with gpus=1, each in a process that runs nothing else, one at a time",
        unit="ms",
        value=lambda sample, n: sample.seconds / n * 1e3,
        base="floor: fork",
        contestants=[
            ezpyp("processes", n, total, "python, one GPU", ranks=0, environment={"CUDA_VISIBLE_DEVICES": "0"}),
            floor("fork", n, total, "fork and wait in a process that has loaded as much; no record"),
        ],
        goals=[Goal(what="a step (ms)", value=of("ezpyp packed"), must=12.0, strive=4.0)],
    )


def _over(name: str, base: str) -> Callable[[Medians], float | None]:
    return lambda medians: medians[name] - medians[base] if name in medians and base in medians else None


def million(n: int) -> Workload:
    return Workload(
        key="million",
        title=f"run of {n:,} no-op steps",
        unit="s",
        value=seconds,
        base="ezpyp packed",
        contestants=[
            ezpyp("million", n, work.expected("noop", n), "two ranks; all of execute()"),
            floor("records", n, work.expected("noop", n), "two processes append records, 64 a write"),
        ],
        goals=[
            Goal(what="seconds", value=of("ezpyp packed"), must=15.0, strive=5.0),
            Goal(what="bytes of the largest process", value=of("ezpyp packed: peak"), must=500e6),
            Goal(what="files", value=of("ezpyp packed: files"), must=30),
        ],
        rounds=3,
    )


def array() -> Workload:
    answer = work.expected("array", 0)
    common: dict[str, Any] = {"n": 1, "answer": answer}
    return Workload(
        key="array",
        title=f"one array of {work.LARGE * 8 / 1e6:.0f} MB to {work.READERS} readers",
        unit="s",
        value=seconds,
        base="floor: array",
        contestants=[
            ezpyp("array", 1, answer, "two ranks; as_numpy_step; all of execute()"),
            floor("array", 1, answer, "np.save in one process, np.load in two"),
            peer("joblib", "joblib", "array", **common, kind=VOLATILE, needs="joblib", how="an argument that it maps"),
            peer("dask", "dask", "array", **common, kind=VOLATILE, needs="dask", how="a future passed to 4 tasks"),
        ],
        goals=[Goal(what="over np.save + np.load", value=ratio("ezpyp packed", "floor: array"), must=1.3, strive=1.1)],
    )


def one() -> Workload:
    return Workload(
        key="one",
        title="one step, the whole process from start to end",
        unit="s",
        value=wall,
        base="floor: bare",
        contestants=[
            ezpyp("one", 1, 0, "python script.py", ranks=0, name="ezpyp"),
            ezpyp("one", 1, 0, "mpirun -n 2", name="ezpyp, two ranks"),
            floor("bare", 1, 0, "the interpreter alone"),
            floor("mpi", 1, 0, "mpirun -n 2 of `from mpi4py import MPI`", ranks=2),
            peer("jug", "jug", "noop", n=1, answer=0, kind=DURABLE, needs="jug", how="two `jug execute`, and reading"),
        ],
        goals=[
            Goal(what="python script.py (s)", value=of("ezpyp"), must=0.2, strive=0.12),
            Goal(
                what="mpirun, over the floor (s)", value=_over("ezpyp, two ranks", "floor: mpi"), must=0.1, strive=0.05
            ),
        ],
    )


def idle() -> Workload:
    return Workload(
        key="idle",
        title="rank 0's agent while two steps of 2 s run",
        unit="% of a core",
        value=lambda sample, _: 100 * sample.seconds,
        base="ezpyp packed",
        contestants=[ezpyp("idle", 2, 1, "processor time during execute(), two ranks")],
    )


def syscalls() -> Workload:
    """Counts hardly vary: once is enough."""

    def counted(name: str, program: str, ranks: int, helpers: int, how: str) -> Contestant:
        command = (str(SCRIPTS / "with_strace.py"), program, str(ranks), str(helpers), "{folder}")
        kind = FLOOR if program == "mpi" else EZPYP
        return Contestant(name=name, kind=kind, how=how, command=command, answer=0, needs="strace")

    return Workload(
        key="syscalls",
        title="32 steps on 32 cores: system calls that name a file, over all processes",
        unit="calls",
        value=seconds,
        base="ezpyp, 32 helpers",
        contestants=[
            counted("ezpyp, 32 helpers", "ezpyp", 1, 32, "mpirun -n 1, workers=32"),
            counted("ezpyp, 32 ranks", "ezpyp", 32, 1, "mpirun -n 32"),
            counted("floor: 1 rank", "mpi", 1, 1, "mpirun -n 1 of `from mpi4py import MPI`"),
            counted("floor: 32 ranks", "mpi", 32, 1, "mpirun -n 32 of `from mpi4py import MPI`"),
        ],
        rounds=1,
    )


def digest(n: int) -> Workload:
    return Workload(
        key="digest",
        title=f"the identity of an array of {n / 1e9:g} GB that is an argument",
        unit="s",
        value=seconds,
        base="floor: added",
        contestants=[
            ezpyp("digest", n, 0, "one process, one thread", ranks=0, name="ezpyp"),
            floor("added", n, 0, "array.sum(), which reads it once"),
        ],
    )


def extras(contestant: Contestant, samples: Sequence[Sample]) -> dict[str, float]:
    """Other medians that goals may ask for."""
    found = {f"{contestant.name}: peak": median([each.peak for each in samples])}
    for key in samples[0].facts:
        found[f"{contestant.name}: {key}"] = median([each.facts[key] for each in samples])
    return found
