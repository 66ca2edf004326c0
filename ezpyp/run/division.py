"""A share of a run: which steps it is to run, in a folder of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import compress

from ezpyp.errors import InitializationError
from ezpyp.folder import admission, shares
from ezpyp.folder import schema as schemas
from ezpyp.folder.surveys import Survey, survey
from ezpyp.model.plan import Plan
from ezpyp.model.settings import Choices
from ezpyp.model.shares import LEFT, Division, Share, divide
from ezpyp.run import resume
from ezpyp.run.standing import Standing
from ezpyp.scripts.loading import main_script
from ezpyp.storage.opening import Store, open_store


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What a share is. Small enough to be sent to every rank."""

    #: The folder that it is a share of, its own, and the kind of its store.
    main: str
    folder: str
    kind: str
    #: For each step 1 where this share runs it, else 0.
    mine: bytes
    #: For people: what it runs, and who runs the rest.
    told: str
    #: What to run first, where much more could be divided then; "" where that is not so.
    advice: str = ""

    @property
    def remarks(self) -> tuple[str, ...]:
        return tuple(f"{text}." for text in (self.told, self.advice) if text)

    def steps(self) -> frozenset[int]:
        return frozenset(compress(range(len(self.mine)), self.mine))


def survey_of(plan: Plan, main: str, choices: Choices) -> tuple[Survey, str]:
    """A plan held against the folder that shares are to add to, and the kind of its store. Changes nothing.

    Raises:
        SchemaConflictError, IdentityError, StoreError: a run there would be refused.
        InitializationError: results are kept in memory, which nobody shares.
    """
    kind = admission.kind_of(main, choices.store(), len(plan.steps))
    if kind == "memory":
        raise InitializationError("Shares leave their results in folders: choose another store. Nothing was run.")
    found = survey(plan, main, open_store(kind, main), kind=kind, script=main_script())
    if choices.of("strict"):
        resume.insist(plan, found.identity)
    admission.admit(found, main, choices.on_change())
    return found, kind


def settle_in(
    found: Survey, part: Part, store: Store, choices: Choices, keeps: Callable[[float], bool] | None
) -> Standing:
    """Settle into the folder of a share, which is held, with what it needs of the main folder's results.

    `keeps` says of a step that failed at some time whether this run is to leave it at that.

    Raises:
        SchemaConflictError: the plan changed since this share last ran. StoreError: a folder cannot be read or written.
    """
    own = part.steps()
    parents = found.plan.graph.parents
    return resume.settle_in(
        found.plan,
        part.folder,
        store,
        kind=part.kind,
        script=main_script(),
        on_change=choices.on_change(),
        keep_old=choices.of("keep_old"),
        reuse_from=(*((part.main,) if found.before is not None else ()), *(choices.of("reuse_from") or ())),
        keeps=keeps,
        identity=found.identity,
        borrowers=own | {p for k in own for p in parents[k]},
    )


def part_of(found: Survey, main: str, share: Share, *, kind: str) -> Part:
    """What a share is to run of what a survey of the main folder found to run.

    Steps that every run makes anew, and what comes after them, are left to the last: it makes them anew, too.
    """
    plan = found.plan
    done = found.decisions.runs.translate(_TURNED)
    apart = [k for b in plan.blocks if b.family.definition.options.always for k in range(b.start, b.stop)]
    division = divide(plan.graph, share.total, done, apart)
    counts = Counter(division.owners)
    mine = bytes(owner == share.number for owner in division.owners)
    total, left, ours = len(done) - done.count(1), counts[LEFT], counts[share.number]
    parts = [f"{ours:,} of {total:,} steps to run", f"{total - left - ours:,} are in other shares"]
    if left:
        parts.append(f"{left:,} left to the run that takes them in")
    folder = shares.folder_of(main, share)
    return Part(
        main=main,
        folder=folder,
        kind=admission.kind_of(folder, "auto", len(done)) if schemas.read(folder) is not None else kind,
        mine=mine,
        told=f"share {share}: {', '.join(parts)}",
        advice=_advice(plan, division, share.total, done, apart),
    )


#: What runs is not done, and the other way round.
_TURNED = bytes([1, 0]).ljust(256, b"\0")


def _advice(plan: Plan, division: Division, total: int, done: bytearray, apart: list[int]) -> str:
    """What to run first, where so many steps wait for it that they cannot be divided."""
    divided = sum(owner > 0 for owner in division.owners)
    if division.largest < 3 or division.largest * total < 2 * divided or total == 1:
        return ""
    before = bytearray(done)
    before[division.hub] = 1
    after = divide(plan.graph, total, before, apart)
    if 2 * after.largest > division.largest:
        return ""
    name = plan.steps[division.hub].name
    return (
        f"{division.largest:,} steps are in one share, for they wait for '{name}'. Run that before the array, and they "
        f"are divided, too: --only '{name}'"
    )
