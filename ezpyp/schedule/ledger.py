"""What has happened and what may happen next: which steps are ready, skipped, tried again, done. Pure.

The ledger does no I/O and reads no clock: outcomes and times go in, indices come out. Final statuses, blame
and missing inputs do not depend on the order of outcomes. It is made for a million steps: one byte a step is
its state, edges are flat arrays, and no object is kept for an ordinary step.

    waiting ──> ready ──> running ──> done | failed | interrupted
     │  held ──^   ^         │
     └──> skipped  └ delayed <┘

*held* is a step that was done in an earlier run without all of its inputs. Whether that result still holds is
known when its parents have settled.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_right
from collections import Counter
from heapq import heappop, heappush
from itertools import compress
from operator import add, not_, or_, sub
from typing import TYPE_CHECKING

from ezpyp.model.outcomes import Status
from ezpyp.schedule.ready import Ready
from ezpyp.tuples import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ezpyp.model.plan import Graph
    from ezpyp.schedule.allowances import Allowances
    from ezpyp.schedule.placement import Placement

_WAITING, _HELD, _READY, _RUNNING, _DELAYED, _INTERRUPTED, _DONE, _FAILED, _SKIPPED = range(9)
#: What users call each state.
_STATUS = (*[Status.NOT_RUN] * 6, Status.DONE, Status.FAILED, Status.SKIPPED)
_STATUS_BYTES = bytes(status & 0xFF for status in _STATUS).ljust(256, b"\xff")
#: The states that steps begin in: they wait for parents, or for none, or are done.
_BEGINNING = bytes([_WAITING, _READY, _DONE]).ljust(256, b"\xff")
_ARE_READY = bytes(state == _READY for state in range(256))
#: What is, or will be, on its way.
_ACTIVE = re.compile(bytes([0x5B, _READY, _RUNNING, _DELAYED, 0x5D]))


class Settled(NamedTuple):
    """What one outcome led to.

    Attributes:
        retry: the step will be tried again.
        changes: in index order, steps skipped because of it, and held steps that turned out to be done.
        reblamed: steps skipped before whose blame moved to a failure of smaller index.
    """

    retry: bool = False
    changes: tuple[tuple[int, Status], ...] = ()
    reblamed: tuple[int, ...] = ()


_QUIET = Settled()
_AGAIN = Settled(retry=True)


class Ledger:
    """The state of one run.

    Attributes:
        running, done, failed, skipped: how many steps are so now.
        cached: how many of `done` were done in earlier runs.
        allowed: how many of `failed` are within the allowance of their group.
        failures: for each step that failed, how many of its runs did: the attempt that runs, or comes, is one more.
        blame: for each skipped step the failed step to blame: of all that condemn it, the smallest index.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        schedule: str = "ready",
        order: Sequence[int] | None = None,
        kinds: Sequence[int] | None = None,
        placement: Placement | None = None,
    ) -> None:
        """Nothing has happened yet.

        Args:
            schedule: "ready", or "phase": no step starts while one of a phase before its own can run.
            order: the steps by priority, one phase after the other; without it they go by their index.
            kinds: for each step the number of its request, 0 for an ordinary one. Without it all are.
            placement: where steps of other requests run; it is told when a step ended or was given back.
        """
        assert schedule in ("ready", "phase"), schedule
        total = len(graph.parents)
        self._graph = graph
        self._placement = placement
        self._phased = schedule == "phase"
        parents = graph.parents
        children = parents.turned() if parents.flat else parents
        self._first, self._children = children.first, children.flat
        #: Parents that have not settled.
        self._pending = (
            array("i", map(sub, parents.first[1:], parents.first)) if parents.flat else array("i", bytes(4 * total))
        )
        roots = bytearray(map(not_, self._pending)) if parents.flat else bytearray([1]) * total
        self._state = roots.translate(_BEGINNING)
        self._ready = Ready(total, order, kinds)
        self._ready.fill(roots)
        self.failures: Counter[int] = Counter()
        self.blame: dict[int, int] = {}
        self.running = self.done = self.failed = self.skipped = self.cached = self.allowed = 0
        self._stopped = False
        self._interrupted = False
        #: None where a step that is done can only make others ready: nothing may fail, and no step is held.
        self._allowances = self._allow() if any(graph.allowed) else None
        #: In phases: nothing below this index is on its way.
        self._border = 0
        self._delayed: list[tuple[float, int]] = []
        # The consequences of the outcome at hand; empty between calls. Children of `_heard` must be told.
        self._heard: list[int] = []
        self._changed: list[int] = []
        self._reblamed: set[int] = set()

    @property
    def total(self) -> int:
        """The number of steps."""
        return len(self._state)

    @property
    def ready(self) -> int:
        """Steps that may start now."""
        return self._ready.count

    @property
    def not_run(self) -> int:
        """Steps without an outcome."""
        return len(self._state) - self.done - self.failed - self.skipped

    @property
    def delayed(self) -> int:
        """Steps that wait for the time of their next attempt."""
        return len(self._delayed)

    @property
    def finished(self) -> bool:
        """Nothing runs, and nothing more will."""
        return not self.running and (self._stopped or not (self.ready or self._delayed))

    def status(self, index: int) -> Status:
        """What came of a step. One that is held counts as not run."""
        return _STATUS[self._state[index]]

    def statuses(self) -> array[int]:
        """The statuses of all steps, as numbers."""
        return array("b", self._state.translate(_STATUS_BYTES))

    @property
    def troubled(self) -> bool:
        """Whether any step failed, or runs without some value."""
        return bool(self.failures or (self._allowances is not None and self._allowances.absent))

    def is_allowed(self, index: int) -> bool:
        """Whether it failed, or was skipped, within its group's allowance; False until the group settled."""
        return self._allowances is not None and self._allowances.verdicts.get(index, False)

    def missing(self, index: int) -> tuple[int, ...]:
        """The parents whose values a step that may run does not get: they arrive as Failed."""
        return self._allowances.missing(index) if self._allowances is not None else ()

    def absent(self, index: int) -> tuple[int, ...]:
        """All steps upstream whose values do not enter this one's: missing parents, and what the others lack.

        With the fingerprint, this is what a result depends on: record it, and give it to `resume`.
        """
        return self._allowances.absent.get(index, ()) if self._allowances is not None else ()

    def resume(self, statuses: Sequence[int], absent: Mapping[int, tuple[int, ...]]) -> None:
        """Start from the results of earlier runs: once, before anything is taken.

        A result made with all values upstream stays. One made without some (and any below such a step) is
        held, and stays only if exactly the same are absent again; else it is made anew.

        Args:
            statuses: one a step; those that are DONE have a result.
            absent: what `absent` was when a result was made, where that was something.
        """
        assert not self.running, "resume() comes before take()"
        is_done = bytearray(map(Status.DONE.__eq__, statuses))
        held: set[int] = set()
        if any(absent.values()):
            self._allowances = self._allowances or self._allow()
            held = self._allowances.hold(is_done, absent)
        for index in held:
            is_done[index] = 0
        self.done = self.cached = is_done.count(1)
        if self._allowances is not None:
            self._allowances.leave_out(compress(range(self.total), is_done))
        self._start_anew(is_done, held)

    def leave_out(self, indices: Iterable[int]) -> None:
        """Steps that this run is not asked for: they stay not run. Before anything is taken; what needs them must be
        among them. Whether failures of their group are allowed is decided without them.
        """
        for index in indices:
            self._state[index] = _INTERRUPTED
            self._interrupted = True
            if self._allowances is not None:
                self._allowances.leave_out((index,))
        self._ready.fill(self._state.translate(_ARE_READY))

    def keep_failed(self, indices: Iterable[int]) -> Settled:
        """Steps that failed in an earlier run stay so, and what depends on them is skipped. Before anything is taken.

        One that cannot start now is left as it is: what it failed on is made anew.
        """
        kept = [index for index in indices if self._state[index] == _READY]
        for index in kept:
            self._state[index] = _FAILED
            self.failures[index] = 1
        self._ready.fill(self._state.translate(_ARE_READY))
        for index in kept:
            self._land(index, _FAILED)
        self._spread()
        return self._report()

    def stop(self) -> None:
        """Hand out nothing more and try nothing again. Outcomes of what is running are still taken."""
        self._stopped = True

    def next_wake(self) -> float | None:
        """When the next delayed step is due."""
        return self._delayed[0][0] if self._delayed and not self._stopped else None

    def first(self, now: float = 0.0) -> int | None:
        """Where the step that would be taken next stands in the order."""
        self._wake(now)
        return None if self._stopped else self._ready.first(self._wall())

    def index(self, place: int) -> int:
        """The step that stands there in the order."""
        return self._ready.index(place)

    def heads(self, now: float = 0.0) -> list[tuple[int, int]]:
        """Of each kind of request but the ordinary the first step that is ready: its place in the order, the kind."""
        self._wake(now)
        return [] if self._stopped or not self._ready.apart else self._ready.heads(self._wall())

    def take_head(self, kind: int) -> int:
        """The first step of a kind that `heads` named, now running."""
        index = self._ready.take_apart(kind)
        self._state[index] = _RUNNING
        self.running += 1
        return index

    def take(self, count: int, now: float = 0.0) -> list[int]:
        """Up to `count` ready steps of ordinary requests, now running. The first in the order first."""
        if self._stopped:
            return []
        self._wake(now)
        taken = self._ready.take(count, self._wall())
        state = self._state
        for index in taken:
            state[index] = _RUNNING
        self.running += len(taken)
        return taken

    def give_back(self, indices: Iterable[int]) -> None:
        """Steps that were handed out and not started are ready again."""
        back = list(indices)
        self.put_back(back)
        if self._placement is not None:
            self._placement.end(back)

    def put_back(self, indices: Sequence[int]) -> None:
        """Steps that were taken and not handed out are ready again."""
        for index in indices:
            assert self._state[index] == _RUNNING, f"step {index} is put back and not running"
            self._state[index] = _READY
        self._ready.put_back(indices)
        self.running -= len(indices)

    def put_off(self, index: int) -> None:
        """A step that was taken does not start in this run."""
        self.running -= 1
        self._state[index], self._interrupted = _INTERRUPTED, True

    def settle(self, index: int, status: Status | int, cause: str = "", now: float = 0.0) -> Settled:
        """Record the outcome of a running step.

        NOT_RUN says that it was interrupted: it is not tried again in this run; its descendants do not run.
        """
        if not status:
            return self.settle_done((index,))
        assert self._state[index] == _RUNNING, f"an outcome for step {index}, which is not running"
        self._ended((index,))
        if status < 0:
            self._state[index] = _INTERRUPTED
            self._interrupted = True
            return _QUIET
        assert status == Status.FAILED, "only the ledger skips"
        self.failures[index] += 1
        if self._try_again(index, cause, now):
            return _AGAIN
        self._land(index, _FAILED)
        self._spread()
        return self._report()

    def settle_done(self, indices: Sequence[int]) -> Settled:
        """Record that running steps are done, each named once. What is contiguous costs least as a `range`."""
        state = self._state
        self._ended(indices)
        if self._allowances is not None:
            for index in indices:
                assert state[index] == _RUNNING, f"an outcome for step {index}, which is not running"
                self._land(index, _DONE)
            self._spread()
            return self._report()
        # The path of nearly every outcome: the general one takes twice the time.
        self.done += len(indices)
        if isinstance(indices, range) and indices.step == 1:
            begin, end = indices.start, indices.stop
            assert state.count(_RUNNING, begin, end) == len(indices), f"not all of {indices} are running"
            state[begin:end] = bytes([_DONE]) * len(indices)
            self._make_children_ready(self._children[self._first[begin] : self._first[end]])
            return _QUIET
        first, children = self._first, array("i")
        for index in indices:
            assert state[index] == _RUNNING, f"an outcome for step {index}, which is not running"
            state[index] = _DONE
            children += self._children[first[index] : first[index + 1]]
        self._make_children_ready(children)
        return _QUIET

    # ----- handing out

    def _wake(self, now: float) -> None:
        """Steps whose time has come are ready."""
        while self._delayed and self._delayed[0][0] <= now and not self._stopped:
            self._make_ready(heappop(self._delayed)[1])

    def _ended(self, indices: Sequence[int]) -> None:
        """They do not run any more."""
        self.running -= len(indices)
        if self._placement is not None:
            self._placement.end(indices)

    def _make_ready(self, index: int) -> None:
        self._state[index] = _READY
        self._ready.add(index)
        if self._phased:
            self._border = min(self._border, index)

    def _wall(self) -> int | None:
        """In phases, the end of the first that has anything ready, running or delayed."""
        if not self._phased:
            return None
        found = _ACTIVE.search(self._state, self._border)
        if found is None:
            return None
        self._border = found.start()
        return bisect_right(self._graph.phases, self._graph.phases[self._border])

    def _try_again(self, index: int, cause: str, now: float) -> bool:
        retry = self._graph.retries.get(index)
        due = retry.after(cause, self.failures[index], now) if retry and not self._stopped else None
        if due is None:
            return False
        if due <= now:
            self._make_ready(index)
        else:
            self._state[index] = _DELAYED
            heappush(self._delayed, (due, index))
        return True

    # ----- what follows from an outcome

    def _land(self, index: int, code: int) -> None:
        """Put a step into its final state, and let its children hear of it once its group allows."""
        self._state[index] = code
        if code == _DONE:
            self.done += 1
        elif code == _FAILED:
            self.failed += 1
        else:
            self.skipped += 1
        allowances = self._allowances
        if allowances is None or not allowances.concern(index):
            self._heard.append(index)
            return
        if code == _DONE:
            self._heard.append(index)
        self._hear(allowances.settle(index, done=code == _DONE))

    def _hear(self, decided: Sequence[int]) -> None:
        """These failed and skipped members of a group were decided on."""
        self.allowed += sum(self._state[index] == _FAILED for index in decided if self.is_allowed(index))
        self._heard += decided

    def _spread(self) -> None:
        """Tell children what came of their parents until nothing follows."""
        while True:
            for index in self._heard:
                if self._state[index] == _DONE or self.is_allowed(index):
                    self._release(index, index + 1)
                else:
                    self._condemn(index)
            self._heard.clear()
            if self._allowances is None or not self._allowances.undecided or not self._is_tangled():
                return
            self._hear(self._allowances.decide_first())

    def _is_tangled(self) -> bool:
        """Whether all that is left waits for groups that wait for it: one is then decided as it stands.

        Where something was interrupted, a group may lack just that outcome, and the next run will tell.
        """
        return not (self.ready or self.running or self._delayed or self._interrupted or self._stopped)

    def _make_children_ready(self, children: Sequence[int]) -> None:
        """As `_release`, where what waits for nothing more can only become ready. A child is here once for each parent
        that was done.
        """
        pending, state, found = self._pending, self._state, []
        for child in children:
            left = pending[child] = pending[child] - 1
            if not left and not state[child]:
                state[child] = _READY
                found.append(child)
        self._ready.add_all(found)
        if self._phased and found:
            self._border = min(self._border, *found)

    def _release(self, begin: int, end: int) -> None:
        """The children of these steps have one parent less to wait for."""
        pending, state = self._pending, self._state
        for child in self._children[self._first[begin] : self._first[end]]:
            left = pending[child] = pending[child] - 1
            if not left and state[child] <= _HELD:
                self._open(child)

    def _open(self, index: int) -> None:
        """All parents have settled: the step may run, unless it is held and its result is good."""
        if self._allowances is not None and self._allowances.admit(index):
            self.cached += 1
            self._changed.append(index)
            self._land(index, _DONE)
        else:
            self._make_ready(index)

    def _condemn(self, index: int) -> None:
        """Skip the children of a failed or skipped step, and keep the smallest index to blame."""
        blame, state = self.blame, self._state
        culprit = index if state[index] == _FAILED else blame[index]
        for child in self._children[self._first[index] : self._first[index + 1]]:
            if state[child] <= _HELD:
                blame[child] = culprit
                self._changed.append(child)
                self._land(child, _SKIPPED)
            elif state[child] == _SKIPPED and culprit < blame[child]:
                blame[child] = culprit
                self._reblamed.add(child)
                if self._allowances is None or self._allowances.condemn(child):
                    self._heard.append(child)

    def _report(self) -> Settled:
        if not self._changed and not self._reblamed:
            return _QUIET
        changes = tuple((index, self.status(index)) for index in sorted(self._changed))
        reblamed = tuple(sorted(self._reblamed.difference(self._changed)))
        self._changed.clear()
        self._reblamed.clear()
        return Settled(changes=changes, reblamed=reblamed)

    # ----- what earlier runs left

    def _allow(self) -> Allowances:
        from ezpyp.schedule.allowances import Allowances

        return Allowances(self._graph)

    def _start_anew(self, is_done: bytearray, held: set[int]) -> None:
        """Find out what is ready when some steps are done from the start."""
        pending, first = self._pending, self._first
        begin = is_done.find(1)
        while begin >= 0:
            end = is_done.find(0, begin)
            end = self.total if end < 0 else end
            for child in self._children[first[begin] : first[end]]:
                pending[child] -= 1
            begin = is_done.find(1, end)
        # A held one may be ready too: something was absent from it, and nothing is now.
        roots = bytearray(map(not_, map(or_, pending, is_done)))
        # A byte is 0, 1 for a root, or 2 for one that is done: they exclude each other.
        self._state = bytearray(map(add, roots, map(add, is_done, is_done))).translate(_BEGINNING)
        for index in held:
            self._state[index] = _READY if roots[index] else _HELD
        self._ready.fill(roots)
