"""Read a cache folder without its script: results, tables, summaries, logs; without locks, also while it runs."""

from __future__ import annotations

import builtins
import os
import time
from array import array
from functools import cached_property, lru_cache, partial
from typing import TYPE_CHECKING, Any, TypeGuard

from ezpyp.encoding import codecs
from ezpyp.errors import EzpypError, NotExecuted, ResultDropped, StepFailed, StepSkipped, StoreError, UnknownStep
from ezpyp.folder.events import last_run
from ezpyp.folder.summary import Columns, Row, Rows, Summary, Whole, columns_of, done_rows, made_by, row, rows_of
from ezpyp.identity.outline import field_names
from ezpyp.model.naming import SCHEMA_FILE
from ezpyp.model.outcomes import Outcome, Status
from ezpyp.model.selection import unknown
from ezpyp.storage.opening import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import pandas

    from ezpyp.folder.entries import Entries, Entry
    from ezpyp.folder.script import Script
    from ezpyp.folder.tallies import Progress, Tally
    from ezpyp.model.plan import Plan
    from ezpyp.run.engine import Finished
    from ezpyp.storage.opening import Record, Store
    from ezpyp.storage.protocol import Records


class Run:
    """A cache folder, read-only. Everything is read when it is asked for; nothing is kept but the plan."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = os.path.abspath(os.path.expanduser(folder))

    def __repr__(self) -> str:
        return f"<Run of {self.folder}>"

    @property
    def pipeline_id(self) -> str:
        return str(self._about["pipeline_id"])

    @property
    def packages(self) -> dict[str, str]:
        """Versions of the packages that the code of the plan uses."""
        functions = self._about.get("functions", {}).values()
        return dict(sorted({k: v for each in functions for k, v in each["packages"].items()}.items()))

    @property
    def store(self) -> str:
        """The kind of store: "files", "packed" or "memory"."""
        return str(self._about["store"])

    @property
    def script(self) -> str:
        """The script that made the folder; "" where it is not known."""
        return str(self._about.get("script", ""))

    @cached_property
    def entries(self) -> Entries:
        """The steps in the order of the plan; those of very large families are made when they are looked at."""
        from ezpyp.folder.entries import Entries

        return Entries(self._schema)

    @cached_property
    def index(self) -> Mapping[str, int]:
        """Names to places in the plan."""
        from ezpyp.folder.entries import Places

        return Places(self.entries)

    def names(self, pattern: str = "*", /, **arguments: Any) -> list[str]:
        """The steps that a pattern means, in the order of the plan, of which only those with these arguments.

        A name means that step and, without its number, all of its family: `train` is `train[0]`, `train[1]`, …;
        where there is no such name, the steps of the function called so. `*` and `?` stand for any characters;
        brackets stand for themselves. A text also fits a number that it spells.

        Raises:
            UnknownStep: no step is meant, or none of them has an argument of that name.
        """
        return [*self.entries.names(self._meant(pattern, arguments))]

    def count(self, pattern: str = "*", /, **arguments: Any) -> int:
        """How many steps `names` gives."""
        return len(self._meant(pattern, arguments))

    def __getitem__(self, name: str) -> Any:
        """The result of a step.

        Raises:
            UnknownStep, NotExecuted, StepFailed, StepSkipped: there is none; the text says since when and what to do.
            StoreError: there is one that cannot be read.
        """
        entry = self._known(name)
        record = self._record(entry)
        if not _done(record):
            raise self._unavailable(entry, record.outcome if record else None)
        return self._value(record)

    def select(self, pattern: str = "*", /, **arguments: Any) -> dict[str, Any]:
        """Names to results of the steps that `names` gives, of which only those that are done."""
        return dict(self.results(pattern, **arguments))

    def results(self, pattern: str = "*", /, **arguments: Any) -> Iterator[tuple[str, Any]]:
        """What `select` gives, one by one: each is read when it is asked for."""
        from ezpyp.folder import folding

        places = self._meant(pattern, arguments)
        # Of many, all records are looked through once.
        records = self._store.records().records if len(places) > folding.MOST else None
        for place in places:
            entry = self.entries[place]
            record = self._record(entry) if records is None else records.get(entry.stem)
            if _done(record) and folding.fits(record, entry.fingerprint):
                yield entry.name, self._value(record)

    def table(self, pattern: str = "*", /, **arguments: Any) -> pandas.DataFrame:
        """A row a step, a column an argument, a column a field of a dict or dataclass (else `result`), status, seconds.

        A field that is called like an argument becomes `result.NAME`.
        """
        import pandas

        rows = [self._table_row(self._known(name)) for name in self.names(pattern, **arguments)]
        columns = dict.fromkeys(key for part in range(3) for each in rows for key in each[part])
        merged = [{**a, **b, **c} for a, b, c in rows]
        # Whole numbers stay whole where some steps have none.
        whole = {
            key: "Int64"
            for key in columns
            if any(key not in each for each in merged) and all(type(each.get(key, 0)) is int for each in merged)
        }
        return pandas.DataFrame(merged, columns=list(columns)).astype(whole)

    def outcome(self, name: str) -> Outcome | None:
        """What came of a step; None where it has not run."""
        record = self._record(self._known(name))
        return record.outcome if record else None

    def fingerprint(self, name: str) -> str:
        """The fingerprint of a step; of a member of a very large family that of what came of it, "" without."""
        entry = self._known(name)
        record = self._record(entry) if not entry.fingerprint else None
        return record.fingerprint if record is not None else entry.fingerprint

    def log(self, name: str) -> str:
        """What a step printed when it last ran.

        Raises:
            UnknownStep, NotExecuted: there is no such step, or it has not run.
        """
        entry = self._known(name)
        record = self._record(entry)
        if record is None:
            raise self._unavailable(entry, None)
        return self._printed(record.outcome)

    @property
    def status(self) -> Progress:
        """Where the folder stands now."""
        from ezpyp.folder.progress import positions
        from ezpyp.folder.tallies import Progress

        scan = self._store.records()
        found, newest = self._tally(scan.records), last_run(self.folder)
        statuses, told = found.statuses, found.told
        failed = (k for k, outcome in told.items() if outcome.status is Status.FAILED)
        return Progress(
            total=len(statuses),
            done=statuses.count(Status.DONE),
            failed=statuses.count(Status.FAILED),
            skipped=statuses.count(Status.SKIPPED),
            not_run=statuses.count(Status.NOT_RUN),
            failures={self.entries[k].name: told[k].note for k in failed},
            run=newest,
            problems=tuple(f"{problem.path}: {problem.what}" for problem in scan.problems),
            kept=found.kept,
            positions=positions(self.folder, newest.started.run) if newest.started and not newest.ended else {},
        )

    def summary(self) -> Summary:
        """Every row and the totals, from what lies in the folder."""
        found = self._tally(self._store.records().records)
        statuses, seconds = found.statuses, found.seconds
        failed, skipped, not_run = (statuses.count(s) for s in (Status.FAILED, Status.SKIPPED, Status.NOT_RUN))
        run = last_run(self.folder)
        told = run.ended and (run.ended.failed, run.ended.skipped, run.ended.not_run)
        last = run.ended if told == (failed, skipped, not_run) else None
        return Summary(
            folder=self.folder,
            pipeline_id=self.pipeline_id,
            rows=Rows(
                statuses,
                partial(made_by, self._row_at),
                partial(self._wholes, lambda of: sum(seconds[of.start : of.stop])),
            ),
            done=statuses.count(Status.DONE),
            failed=failed,
            skipped=skipped,
            not_run=not_run,
            allowed=last.allowed if last else 0,
            cached=last.cached if last else 0,
            seconds=run.seconds,
            exit_code=last.exit_code if last else 85 if not_run else 1 if failed else 0,
            reason=last.reason if last else "",
            on_gpus=any(outcome.gpu for outcome in found.told.values()),
        )

    def summary_of(self, pipeline_id: str, statuses: Sequence[int]) -> Summary:
        """The summary where it is known what came of each step: a row is read when it is looked at."""

        return Summary(
            folder=self.folder,
            pipeline_id=pipeline_id,
            rows=Rows(statuses, partial(made_by, self._row_at)),
            done=statuses.count(Status.DONE),
            failed=statuses.count(Status.FAILED),
            skipped=statuses.count(Status.SKIPPED),
            not_run=statuses.count(Status.NOT_RUN),
            allowed=0,
            cached=statuses.count(Status.DONE),
            seconds=0.0,
            exit_code=0,
        )

    # ----- inside

    def _meant(self, pattern: str, arguments: Mapping[str, Any]) -> Sequence[int]:
        from ezpyp.folder.entries import choose

        return choose(self.entries, pattern, arguments)

    @cached_property
    def _schema(self) -> dict[str, Any]:
        from ezpyp.folder import schema as schemas

        content = schemas.read(self.folder)
        if content is None:
            raise not_a_cache(self.folder)
        return content

    @property
    def _about(self) -> Mapping[str, Any]:
        about: Mapping[str, Any] = self._schema["ezpyp"]
        return about

    @cached_property
    def _store(self) -> Store:
        return open_store(self.store, self.folder)

    @cached_property
    def _script(self) -> Script:
        from ezpyp.folder.script import Script

        return Script(self.folder, self.script)

    def _tally(self, records: Records) -> Tally:
        from ezpyp.folder.tallies import tally

        return tally(self.entries, records)

    def _known(self, name: str) -> Entry:
        place = self.index.get(name)
        if place is None:
            raise UnknownStep(unknown(name, self.index))
        return self.entries[place]

    def _record(self, entry: Entry) -> Record | None:
        """The record of a step; one of another fingerprint is of a former plan and counts as none."""
        record = self._store.read(entry.stem)
        from ezpyp.folder.folding import fits

        return record if record is not None and fits(record, entry.fingerprint) else None

    def _value(self, record: Record) -> Any:
        outcome = record.outcome
        decode = partial(codecs.decode_result, outcome.codec, self._store.get(record), self.folder, outcome.files)
        return self._script.value(record.name, decode)

    def _unavailable(self, entry: Entry, outcome: Outcome | None) -> EzpypError:
        again = f"run {os.path.basename(self.script) or 'its script'} again"
        if outcome is None:
            return NotExecuted(f"Step '{entry.name}' has not run in {self.folder}. To run it, {again}.")
        since = f"on {time.strftime('%Y-%m-%d at %H:%M', time.localtime(outcome.when))}"
        if outcome.dropped:
            return ResultDropped(
                f"The result of '{entry.name}' was dropped when all that needs it was done (keep=False). "
                f"To remake it, take keep=False from the step and {again}."
            )
        if outcome.status is Status.SKIPPED:
            return StepSkipped(f"Step '{entry.name}' was skipped {since} {outcome.note}. Mend that, and {again}.")
        if outcome.status is Status.FAILED:
            return StepFailed(
                f"Step '{entry.name}' failed {since} (rank {outcome.rank} on {outcome.host}): {outcome.note}. "
                f"See: ezpyp log {self.folder} '{entry.name}'. To try it anew, {again}."
            )
        return NotExecuted(f"Step '{entry.name}' was interrupted {since}. To run it, {again}.")

    def _table_row(self, entry: Entry) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        record = self._record(entry)
        outcome = record.outcome if record else None
        first = {"name": entry.name, **entry.arguments}
        last = {
            "status": int(outcome.status if outcome else Status.NOT_RUN),
            "seconds": outcome.seconds if outcome and outcome.attempt else None,
        }
        found = _fields(self._value(record)) if _done(record) else {}
        return first, {f"result.{k}" if k in first or k in last else k: v for k, v in found.items()}, last

    def _printed(self, outcome: Outcome) -> str:
        if outcome.log is None:
            return ""
        name, start, end = outcome.log
        path = os.path.join(self.folder, name)
        try:
            with builtins.open(path, "rb") as file:
                file.seek(start)
                return file.read(end - start).decode(errors="replace")
        except OSError as error:
            raise StoreError(f"The log {path} cannot be read: {error.strerror or error}.") from None

    def _row(self, entry: Entry, outcome: Outcome | None) -> Row:
        return row(
            name=entry.name,
            phase=entry.phase,
            folder=self.folder,
            outcome=outcome,
            args=entry.args,
            kwargs=entry.kwargs,
        )

    def _row_at(self, k: int) -> Row:
        entry = self.entries[k]
        record = self._record(entry)
        return self._row(entry, record.outcome if record is not None else None)

    def summary_of_run(self, finished: Finished, plan: Plan) -> Summary:
        """The summary after a run in this process, from what that brought.

        Reads nothing yet: the ranks of a large run all make one, and few look at it.
        """
        ended, first = finished.ended, plan.graph.parents.first

        def before(k: int) -> Outcome | None:
            record = self._record(self.entries[k])
            if record is None or not finished.cached[k]:
                return record.outcome if record is not None else None
            note = record.outcome.note
            return record.outcome._replace(note=f"cached; {note}" if note else "cached")

        def one(k: int) -> Row:
            step = plan.steps[k]
            outcome = finished.outcomes.get(k) or before(k)
            args, kwargs = ("", "") if outcome is not None and outcome.args else step.texts()
            phase = plan.graph.phases[k]
            return row(name=step.name, phase=phase, folder=self.folder, outcome=outcome, args=args, kwargs=kwargs)

        def columns(some: Sequence[int]) -> Columns:
            names, stems = plan.stems.named(some)
            alone = [first[k] == first[k + 1] for k in some]
            plain = finished.plain(some, stems, alone)
            if plain is None or not plain.at:
                return made_by(one, some)
            if are_few := len(plain.at) < len(some):
                names = [names[i] for i in plain.at]
            at = [some[i] for i in plain.at] if are_few else some
            called = [said or plan.steps[k].texts() for k, said in zip(at, plain.called, strict=True)]
            phases = [*map(plan.graph.phases.__getitem__, at)]
            found = done_rows(names, called, phases, self.folder, *plain[1:-1])
            if not are_few:
                return found
            known = dict(zip(at, rows_of(found), strict=True))
            return columns_of(known.get(k) or one(k) for k in some)

        def wholes() -> Sequence[Whole]:
            from ezpyp.folder import folding

            return self._wholes(finished.spent, finished.cached) if len(plan.steps) > folding.MOST else ()

        return Summary(
            folder=self.folder,
            pipeline_id=finished.started.pipeline_id,
            rows=Rows(array("b", finished.statuses), columns, wholes),
            done=ended.done,
            failed=ended.failed,
            skipped=ended.skipped,
            not_run=ended.not_run,
            allowed=ended.allowed,
            cached=ended.cached,
            seconds=ended.seconds,
            exit_code=ended.exit_code,
            reason=ended.reason,
            on_gpus=finished.on_gpus,
        )

    def _wholes(self, spent: Callable[[range], float], cached: bytes = b"") -> list[Whole]:
        return [
            Whole(
                start=start,
                stop=stop,
                name=content["name"],
                args=f"{content['args']} … {content['last']['args']}",
                kwargs=content["kwargs"],
                phase=phase,
                seconds=spent(range(start, stop)),
                cached=cached[start:stop].count(1),
            )
            for start, stop, phase, content in self.entries.wholes()
        ]


def open(folder: str | os.PathLike[str]) -> Run:  # noqa: A001 (as in `ezpyp.open`)
    """A cache folder to read from, also while it runs, by anyone who may read it.

    Raises:
        StoreError: it is no cache folder.
    """
    run = Run(folder)
    if not os.path.exists(os.path.join(run.folder, SCHEMA_FILE)):
        raise not_a_cache(run.folder)
    return run


def status_of(folder: str | os.PathLike[str], name: str) -> Status:
    """What a folder says of a step; NOT_RUN where it has no such step, or is no cache folder yet."""
    run = _known_run(os.fspath(folder))
    if run is None or name not in run.index:
        return Status.NOT_RUN
    outcome = run.outcome(name)
    return outcome.status if outcome is not None else Status.NOT_RUN


def result_of(folder: str | os.PathLike[str], name: str, status: Status = Status.DONE) -> Any:
    """The result of a step, as `Run[name]` gives it. The plan is read once for many results.

    Args:
        status: what the caller knows. NOT_RUN spares the look.
    """
    run = _known_run(os.fspath(folder)) if status is not Status.NOT_RUN else None
    if run is None:
        raise NotExecuted(f"Step '{name}' has not run in {folder}. Call execute() first.")
    return run[name]


def not_a_cache(folder: str) -> StoreError:
    """The error for a folder that ezpyp has not made."""
    from ezpyp.folder import shares

    if shares.found(folder):
        return StoreError(
            f"{folder} has only shares yet (ezpyp status). Run the script without --share to take them in."
        )
    what = f"has no {SCHEMA_FILE}" if os.path.isdir(folder) else "is not there"
    return StoreError(f"{folder} {what}, so it is no cache folder of ezpyp. Give the folder that the script names.")


def _known_run(folder: str) -> Run | None:
    """The Run of a folder, made anew when its schema is; None without a schema."""
    try:
        status = os.stat(os.path.join(folder, SCHEMA_FILE))
    except FileNotFoundError:
        return None
    return _run_of(folder, status.st_mtime_ns, status.st_ino)


@lru_cache(maxsize=4)  # each keeps files open
def _run_of(folder: str, when: int, inode: int) -> Run:
    """A folder as long as its schema is of that time and number."""
    return Run(folder)


def _done(record: Record | None) -> TypeGuard[Record]:
    """Whether there is a result."""
    return record is not None and record.outcome.status is Status.DONE and not record.outcome.dropped


def _fields(value: Any) -> dict[str, Any]:
    """The columns of a result."""
    if isinstance(value, dict) and value and all(isinstance(key, str) for key in value):
        return value
    names = field_names(value)
    return {"result": value} if names is None else {name: getattr(value, name) for name in names}
