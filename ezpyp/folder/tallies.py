"""What came of all the steps of a folder, without a look at those of which there is nothing to say."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from itertools import compress
from operator import add
from typing import TYPE_CHECKING

from ezpyp.folder.entries import Entries
from ezpyp.folder.folding import fits
from ezpyp.model.outcomes import Outcome, Status
from ezpyp.storage.protocol import Records
from ezpyp.tuples import NamedTuple

if TYPE_CHECKING:
    from ezpyp.folder.events import History
    from ezpyp.folder.progress import Position

#: What stands for the functions of steps that left the plan, and of former results.
FORMER = "(former)"


class Kept(NamedTuple):
    """Records, the files that they are where each has its own, and the bytes of results."""

    records: int = 0
    files: int = 0
    bytes: int = 0

    def and_(self, other: Kept) -> Kept:
        return Kept(*map(add, self, other))


class Tally(NamedTuple):
    """What came of all the steps of a folder."""

    #: For each step its status, and how long it took.
    statuses: array[int]
    seconds: array[float]
    #: By place, the outcomes of which there is more to say.
    told: Mapping[int, Outcome]
    #: What is kept, by function; what is no step's is under FORMER.
    kept: Mapping[str, Kept]


class Progress(NamedTuple):
    """Where a folder stands now."""

    total: int
    done: int
    failed: int
    skipped: int
    not_run: int
    #: Failed steps with their reasons.
    failures: Mapping[str, str]
    #: The newest run.
    run: History
    #: Files that are torn or foreign.
    problems: tuple[str, ...]
    #: What is kept, by function; what no step of the plan has is under `FORMER`.
    kept: Mapping[str, Kept]
    #: How far running programs are that tell.
    positions: Mapping[str, Position]


def tally(entries: Entries, records: Records) -> Tally:
    """What came of all steps, by their records. Of a step under whose stem another's lies, nothing came."""
    stems = entries.stems
    plain = records.plain(stems)
    alone = dict(entries.alone())
    _leave_strangers(plain.found, alone, stems, records)
    statuses = array("b", bytes(len(stems)))
    told: dict[int, Outcome] = {}
    kept: dict[str, Kept] = {}
    known = 0
    for start, stop, function in entries.blocks():
        found = plain.found[start:stop]
        statuses[start:stop] = array("b", found.translate(_STATUSES))
        count = found.count(1)
        mine = Kept(count, 2 * count, sum(plain.sizes[start:stop]) if count else 0)
        for k in compress(range(start, stop), found.translate(_OTHER)):
            if (record := records.get(stems[k])) is not None:
                mine = mine.and_(kept_in(record.outcome))
                if fits(record, alone.get(k, "")):
                    told[k] = record.outcome
                    statuses[k], plain.seconds[k] = record.outcome.status, record.outcome.seconds
        if mine.records:
            kept[function] = kept.get(function, Kept()).and_(mine)
            known += mine.records
    if known < len(records):
        for stem in entries.strange(records):
            kept[FORMER] = kept.get(FORMER, Kept()).and_(kept_in(records[stem].outcome))
    return Tally(statuses=statuses, seconds=plain.seconds, told=told, kept=kept)


#: By whether a plain result was found: the status, and whether there is another record.
_STATUSES = bytes([Status.NOT_RUN & 0xFF, Status.DONE, Status.NOT_RUN & 0xFF]).ljust(256, b"\0")
_OTHER = bytes([0, 0, 1]).ljust(256, b"\0")


def _leave_strangers(found: bytearray, alone: Mapping[int, str], stems: Sequence[str], records: Records) -> None:
    """Take out what lies under the stem of a step and is another's."""
    asked = [k for k in alone if found[k] == 1]
    prints = b"".join(bytes.fromhex(alone[k]) for k in asked)
    for k, settled in zip(asked, records.settled(prints, [stems[k] for k in asked]), strict=True) if asked else ():
        found[k] = 1 if settled else 2


def kept_in(outcome: Outcome) -> Kept:
    """What a record keeps."""
    if outcome.status is not Status.DONE or outcome.dropped:
        return Kept(1, 1, 0)
    return Kept(1, 2 + len(outcome.files), outcome.bytes + sum(size for _, size, _ in outcome.files))
