"""Rows and totals: what came of every step, as values, as a table, and as the file `pipeline.summary`."""

from __future__ import annotations

import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import chain, compress
from typing import TYPE_CHECKING, Any, Protocol, overload

from ezpyp.model.naming import SUMMARY_FILE
from ezpyp.model.outcomes import Outcome, Status
from ezpyp.storage.opening import write_whole
from ezpyp.tuples import NamedTuple

if TYPE_CHECKING:
    import pandas

#: So many rows are laid out at once: the columns are as wide as the first of these need.
LAID_OUT = 1000


class Row(NamedTuple):
    """One step. What never ran has rank -1, no host and 0 attempts."""

    name: str
    args: str
    kwargs: str
    phase: int
    status: Status
    #: The file that holds the result; "" where there is none.
    result: str
    seconds: float
    rank: int
    host: str
    attempts: int
    note: str
    #: Where it was granted GPUs: their UUIDs; bytes at most; percent of the time in which it kept them busy, on the
    #: whole and at most. None where NVML did not say.
    gpus: tuple[str, ...] = ()
    gpu_memory: int | None = None
    gpu_mean: float | None = None
    gpu_peak: float | None = None


#: What rows tell, by columns, in the order of the fields of a Row.
Columns = Sequence[Sequence[Any]]

_ALL = tuple(Row.__annotations__)
#: Without those on GPUs, which stand only where a step was granted some.
COLUMNS = tuple(column for column in _ALL if not column.startswith("gpu"))
_WORDS = {Status.DONE: "done", Status.FAILED: "failed", Status.SKIPPED: "skipped", Status.NOT_RUN: "not run"}
#: By the byte of a status: 1 where a step of a large family has a row of its own.
_ODD = bytes(each in (Status.FAILED, Status.SKIPPED) for each in range(256))
_NUMBERS = frozenset({"phase", "status", "seconds", "rank", "attempts", "gpu_memory", "gpu_mean", "gpu_peak"})


def row(*, name: str, phase: int, folder: str, outcome: Outcome | None, args: str = "[]", kwargs: str = "{}") -> Row:
    """The row of a step; its arguments as planned (`args`, `kwargs`) are shown where its outcome does not say."""
    if outcome is None:
        outcome = Outcome(step=-1, status=Status.NOT_RUN, attempt=0, args=args, kwargs=kwargs)
    ran = outcome.attempt > 0
    found = Row(
        name=name,
        args=outcome.args or args,
        kwargs=outcome.kwargs or kwargs,
        phase=phase,
        status=outcome.status,
        result=_within(folder) + outcome.location if outcome.status is Status.DONE and not outcome.dropped else "",
        seconds=outcome.seconds,
        rank=outcome.rank if ran else -1,
        host=outcome.host if ran else "",
        attempts=outcome.attempt,
        note="; ".join(filter(None, (outcome.note, "dropped"))) if outcome.dropped else outcome.note,
    )
    use = outcome.gpu
    if use is None:
        return found
    return found._replace(gpus=use.gpus, gpu_memory=use.memory, gpu_mean=use.mean, gpu_peak=use.peak)


def done_rows(
    names: Sequence[str],
    called: Sequence[tuple[str, str]],
    phases: Sequence[int],
    folder: str,
    seconds: Sequence[float],
    ranks: Sequence[int],
    hosts: Sequence[str],
    attempts: Sequence[int],
    locations: Sequence[str],
) -> Columns:
    """The columns of steps that are done and of which there is nothing to note; `called` are args and kwargs."""
    args, kwargs = zip(*called, strict=True)
    count = len(names)
    status, note, no_gpus, unknown = [Status.DONE] * count, [""] * count, [()] * count, [None] * count
    results = [*map(_within(folder).__add__, locations)]
    first = names, args, kwargs, phases, status, results, seconds, ranks, hosts, attempts
    return *first, note, no_gpus, unknown, unknown, unknown


@lru_cache
def _within(folder: str) -> str:
    """What comes before the names of files in a folder."""
    return os.path.join(folder, "")


class Whole(NamedTuple):
    """A family of very many steps, which the table tells in one row."""

    start: int
    stop: int
    name: str
    args: str
    kwargs: str
    phase: int
    #: What its steps took together, as far as is known.
    seconds: float
    #: How many were done in earlier runs.
    cached: int


class Rows(Sequence[Row]):
    """Rows that are made when they are looked at: a million of them need not be in memory."""

    __slots__ = ("_columns", "_wholes", "statuses")

    def __init__(
        self,
        statuses: Sequence[int],
        columns: Callable[[Sequence[int]], Columns],
        wholes: Callable[[], Sequence[Whole]] = tuple,
    ) -> None:
        """
        Args:
            columns: what the rows of these steps tell; quickest where they are a range.
            wholes: gives the very large families, in order.
        """
        self.statuses = statuses
        self._columns, self._wholes = columns, wholes

    def __len__(self) -> int:
        return len(self.statuses)

    @overload
    def __getitem__(self, place: int) -> Row: ...
    @overload
    def __getitem__(self, place: slice) -> list[Row]: ...
    def __getitem__(self, place: int | slice) -> Row | list[Row]:
        places = range(len(self))[place]
        if isinstance(places, int):
            return next(rows_of(self._columns((places,))))
        return [*self._rows(places)]

    def __iter__(self) -> Iterator[Row]:
        return self._rows(range(len(self)))

    def _pieces(self, steps: Sequence[int]) -> Iterator[Columns]:
        """The columns of these steps, so many at a time."""
        return (self._columns(steps[k : k + LAID_OUT]) for k in range(0, len(steps), LAID_OUT))

    def _rows(self, steps: Sequence[int]) -> Iterator[Row]:
        return chain.from_iterable(map(rows_of, self._pieces(steps)))

    def folded(self) -> Iterator[Columns]:
        """The columns of a table, in pieces: of very large families one row, and those of members that failed or were
        skipped.
        """
        place = 0
        for whole in self._wholes():
            yield from self._pieces(range(place, whole.start))
            yield columns_of([self._of_whole(whole)])
            odd = self._bytes(whole).translate(_ODD)
            yield from self._pieces([*compress(range(whole.start, whole.stop), odd)])
            place = whole.stop
        yield from self._pieces(range(place, len(self)))

    def _of_whole(self, whole: Whole) -> Row:
        found = self._bytes(whole)
        order = (Status.FAILED, Status.NOT_RUN, Status.SKIPPED, Status.DONE)
        counts = {status: found.count(status & 0xFF) for status in order}
        before = f" ({whole.cached:,} before)" if whole.cached else ""
        words = [f"{n:,} {_WORDS[status]}{before * (status is Status.DONE)}" for status, n in counts.items() if n]
        return Row(
            name=whole.name,
            args=whole.args,
            kwargs=whole.kwargs,
            phase=whole.phase,
            status=next(status for status, n in counts.items() if n),
            result="",
            seconds=whole.seconds,
            rank=-1,
            host="",
            attempts=int(counts[Status.NOT_RUN] < len(found)),
            note=", ".join(reversed(words)),
        )

    def _bytes(self, whole: Whole) -> bytes:
        """The statuses of a family, a byte each."""
        return array("b", self.statuses[whole.start : whole.stop]).tobytes()

    def with_status(self, *wanted: Status) -> Iterator[Row]:
        """The rows of these statuses; no other is made."""
        return self._rows([k for k, status in enumerate(self.statuses) if status in wanted])


def columns_of(rows: Iterable[Row]) -> Columns:
    """What these rows tell, by columns."""
    return [*zip(*rows, strict=True)] or [()] * len(_ALL)


def made_by(make: Callable[[int], Row], steps: Iterable[int]) -> Columns:
    """The columns of steps whose rows are made one by one."""
    return columns_of(map(make, steps))


def rows_of(columns: Columns) -> Iterator[Row]:
    """The rows of which these are the columns."""
    return map(Row._make, zip(*columns, strict=True))


class Counts(Protocol):
    """What a Summary and the last event of a run have in common."""

    @property
    def done(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def skipped(self) -> int: ...
    @property
    def not_run(self) -> int: ...
    @property
    def allowed(self) -> int: ...
    @property
    def cached(self) -> int: ...


class Summary:
    """What came of a pipeline: one row a step, in the order of the plan, and the totals. Never changed.

    `allowed` failures are counted in `failed` too, `cached` results (of earlier runs) in `done`.

    Attributes:
        seconds: of the last run, by the wall clock.
        exit_code: 0 done, 1 a step failed, 85 stopped before the end, 130 stopped by the user.
        reason: "" or why the run ended early.
        on_gpus: whether a step was granted GPUs.
    """

    def __init__(
        self,
        *,
        folder: str,
        pipeline_id: str,
        rows: Sequence[Row],
        done: int,
        failed: int,
        skipped: int,
        not_run: int,
        allowed: int,
        cached: int,
        seconds: float,
        exit_code: int,
        reason: str = "",
        on_gpus: bool = False,
    ) -> None:
        self.folder, self.pipeline_id, self.rows = folder, pipeline_id, rows
        self.done, self.failed, self.skipped, self.not_run = done, failed, skipped, not_run
        self.allowed, self.cached, self.seconds = allowed, cached, seconds
        self.exit_code, self.reason, self.on_gpus = exit_code, reason, on_gpus

    def __repr__(self) -> str:
        return f"<Summary of {self.folder}: {tally(self)}>"

    @property
    def columns(self) -> tuple[str, ...]:
        """What stands in the table."""
        return _ALL if self.on_gpus else COLUMNS

    @property
    def ok(self) -> bool:
        """Everything ran, and no failure was more than allowed."""
        return self.exit_code == 0

    @cached_property
    def failures(self) -> dict[str, str]:
        """Each failed step, allowed or not, with its reason."""
        rows = self.rows
        failed = rows.with_status(Status.FAILED) if isinstance(rows, Rows) else iter(rows)
        return {each.name: each.note for each in failed if each.status is Status.FAILED}

    def __str__(self) -> str:
        if len(self.rows) > LAID_OUT:
            return f"{self.headline()}\n\n{tally(self)} in {duration(self.seconds)}"
        return "".join(self.text()).rstrip("\n")

    def headline(self) -> str:
        """The first line of `pipeline.summary`: whether the run came to its end."""
        if not self.not_run:
            return f"Pipeline Completed @ {self.folder}"
        why = f": {self.reason}" if self.reason else ""
        return f"Pipeline Stopped @ {self.folder} ({self.not_run:,} of {len(self.rows):,} not run{why})"

    def text(self) -> Iterator[str]:
        """The headline and the table, in pieces: beyond `LAID_OUT` rows it is never in memory as a whole.

        A family of very many steps is one row, with those of its steps that failed or were skipped.
        """
        yield f"{self.headline()}\n\n"
        rows = self.rows
        yield from table(rows.folded() if isinstance(rows, Rows) else [columns_of(rows)], self.columns)

    def write(self) -> str:
        """Write `pipeline.summary`, whole, and return its path."""
        path = os.path.join(self.folder, SUMMARY_FILE)
        write_whole(path, (piece.encode("utf-8", "backslashreplace") for piece in self.text()))
        return path

    def to_frame(self) -> pandas.DataFrame:
        """Every row, whatever their number."""
        import pandas

        rows = [[*self.values(each)] for each in self.rows]
        return pandas.DataFrame(rows, columns=list(self.columns))

    def values(self, each: Row) -> Iterator[Any]:
        """The cells of a row, as they are."""
        return (_plain(getattr(each, column)) for column in self.columns)


def tally(counts: Counts) -> str:
    """`39,993 done, 7 failed (allowed)`."""
    before = ""
    if counts.cached:
        before = " (all before)" if counts.cached == counts.done else f" ({counts.cached:,} before)"
    parts = [f"{counts.done:,} done{before}"]
    if counts.failed:
        allowed = f" ({counts.allowed:,} allowed)" if counts.allowed else ""
        parts.append(f"{counts.failed:,} failed{' (allowed)' if counts.allowed == counts.failed else allowed}")
    parts += [f"{n:,} {what}" for n, what in ((counts.skipped, "skipped"), (counts.not_run, "not run")) if n]
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """`3.1 s`, `12 min 5 s`, `3 h 20 min`: two units at most."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def table(pieces: Iterable[Columns], columns: Sequence[str] = COLUMNS) -> Iterator[str]:
    """All rows under one header. A column is as wide as the first rows need; a longer cell moves what follows."""
    stream = _joined(pieces)
    cells = _cells(next(stream, columns_of(())), columns)
    widths = [max(len(column) + 2, *map(len, each)) for column, each in zip(columns, cells, strict=True)]
    layout = "  ".join(f"%{'' if c in _NUMBERS else '-'}{width}s" for c, width in zip(columns, widths, strict=True))
    yield f"{(layout % (*columns,)).rstrip()}\n"
    while cells[0]:
        yield "\n".join((*map(str.rstrip, map(layout.__mod__, zip(*cells, strict=True))), ""))
        cells = _cells(next(stream, columns_of(())), columns)


def _joined(pieces: Iterable[Columns]) -> Iterator[Columns]:
    """Pieces of so many rows as are laid out at once, or more; what is short is joined with what follows."""
    short: list[Columns] = []
    for piece in pieces:
        short.append(piece)
        if sum(len(each[0]) for each in short) >= LAID_OUT:
            yield _end_to_end(short)
            short = []
    if short:
        yield _end_to_end(short)


def _end_to_end(pieces: Sequence[Columns]) -> Columns:
    return pieces[0] if len(pieces) == 1 else [[*chain(*column)] for column in zip(*pieces, strict=True)]


def _cells(told: Columns, columns: Sequence[str]) -> list[Sequence[str]]:
    """The cells of rows as text, by columns, each one line; what never ran has no duration and no rank."""
    names, args, kwargs, phases, statuses, results, seconds, ranks, hosts, attempts, notes, *of_gpus = told
    usual: list[Sequence[str]] = [
        *map(_one_line, (names, args, kwargs)),
        [*map(str, phases)],
        [*map(str, map(int, statuses))],
        _one_line(results),
        [f"{spent:.3f}" if tries > 0 else "" for spent, tries in zip(seconds, attempts, strict=True)],
        [str(rank) if rank >= 0 else "" for rank in ranks],
        _one_line(hosts),
        [*map(str, attempts)],
        _one_line(notes),
    ]
    if len(columns) == len(usual):
        return usual
    cells = [*zip(*map(_gpu_cells, *of_gpus), strict=True)] or [()] * len(of_gpus)
    return [*usual, *cells]


def _gpu_cells(gpus: Sequence[str], memory: int | None, *shares: float | None) -> tuple[str, ...]:
    used = f"{memory / 2**30:.2f} GiB" if memory is not None else ""
    return ",".join(gpus), used, *(f"{x:.0f}%" if x is not None else "" for x in shares)


def _one_line(texts: Sequence[str]) -> Sequence[str]:
    """Texts with nothing but single blanks between words. Nearly all are so, which is seen at once."""
    joined = f"|{'|'.join(texts)}|"
    if joined.isprintable() and not any(each in joined for each in ("  ", "| ", " |")):
        return texts
    return [" ".join(text.split()) for text in texts]


def _plain(value: Any) -> Any:
    return int(value) if isinstance(value, Status) else ",".join(value) if isinstance(value, tuple) else value
