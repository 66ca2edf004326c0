"""What the steps of a rank use of their GPUs, looked at by a process that does nothing else.

So neither a step nor the run waits for a driver that hangs, or dies with its library. Helpers and that process share
memory, and send each other nothing.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from time import monotonic
from typing import TYPE_CHECKING

from ezpyp.model.settings import MOST_HELPERS
from ezpyp.tuples import NamedTuple

if TYPE_CHECKING:
    from ezpyp.system.usage import Meter, Use

#: Seconds between two looks at a step, in its first second and after that.
EARLY, LATER, _YOUNG = 0.1, 0.5, 1.0
#: Words of eight bytes for each helper, of which it writes the first four: process, GPUs and those that it has
#: alone as bits, number of the step. Then number, memory, mean and peak, thousandths of a percent.
_WORDS = 8
_UNKNOWN = -1


class Watch(NamedTuple):
    """What that process is told when it starts: the GPUs of its rank, and how many helpers."""

    gpus: Sequence[str]
    helpers: int


class Gauges:
    """A place for each helper: what is to be looked at there, and what was seen."""

    __slots__ = ("_words",)
    #: In bytes.
    SIZE = 8 * _WORDS * MOST_HELPERS

    def __init__(self, memory: memoryview) -> None:
        """So many bytes of shared memory, all zero at first."""
        self._words = memory.cast("q")

    def begin(self, slot: int, pid: int, have: Sequence[str], granted: Sequence[tuple[str, float]]) -> None:
        """A process begins a step that was granted some of the GPUs that its rank has."""
        start, places = slot * _WORDS, [(have.index(name), share) for name, share in granted if name in have[:62]]
        self._words[start] = 0
        self._words[start + 1] = sum(1 << place for place, _ in places)
        self._words[start + 2] = sum(1 << place for place, share in places if share >= 1)
        self._words[start + 3] += 1
        self._words[start] = pid

    def end(self, slot: int) -> None:
        """There is nothing to look at."""
        self._words[slot * _WORDS] = 0

    def asked(self, slot: int) -> tuple[int, int, int, int]:
        """(process or 0, its GPUs, those that it has alone, number of the step)."""
        start = slot * _WORDS
        pid, devices, alone, number = self._words[start : start + 4]
        # Written in this order, the process last: what was read is of one step if it is still the same.
        same = self._words[start] == pid and self._words[start + 3] == number
        return (pid if same else 0), devices, alone, number

    def tell(self, slot: int, number: int, memory: int | None, mean: float | None, peak: float | None) -> None:
        """What was seen of a step until now."""
        start, thousand = slot * _WORDS + 4, [_UNKNOWN if each is None else round(1000 * each) for each in (mean, peak)]
        self._words[start] = _UNKNOWN
        self._words[start + 1] = _UNKNOWN if memory is None else memory
        self._words[start + 2], self._words[start + 3] = thousand
        self._words[start] = number

    def read(self, slot: int, gpus: tuple[str, ...]) -> Use:
        """What was seen of the step that this helper runs, or ran last."""
        from ezpyp.system.usage import Use

        start = slot * _WORDS
        number, memory, mean, peak = self._words[start + 4 : start + 8]
        if not number or number != self._words[start + 3]:
            return Use(gpus)
        seen = [None if each == _UNKNOWN else each / 1000 for each in (mean, peak)]
        return Use(gpus, None if memory == _UNKNOWN else memory, *seen)


class Gauge:
    """The place of one helper."""

    def __init__(self, gauges: Gauges, slot: int, have: Sequence[str]) -> None:
        """`have` are the GPUs of the rank, none where nobody looks."""
        self._gauges, self._slot, self._have = gauges, slot, have
        if have:  # a step may leave nothing to load it with
            import_module("ezpyp.system.usage")

    @contextmanager
    def at(self, granted: Sequence[tuple[str, float]]) -> Iterator[None]:
        """This process runs a step that was granted these, each with the share of it."""
        if not granted or not self._have:
            yield
            return
        self._gauges.begin(self._slot, os.getpid(), self._have, granted)
        try:
            yield
        finally:
            self._gauges.end(self._slot)

    def read(self, gpus: tuple[str, ...]) -> Use:
        """What was seen of it until now."""
        return self._gauges.read(self._slot, gpus)


class _Tally:
    """What was seen of one step."""

    def __init__(self, number: int, now: float) -> None:
        self.number, self.began, self.looked = number, now, now
        self.memory: int | None = None
        self.peak: float | None = None
        #: Busy seconds times hundred, and the seconds that they were seen in.
        self.busy = self.seconds = 0.0

    def is_due(self, now: float) -> bool:
        return now - self.looked >= (EARLY if now - self.began < _YOUNG else LATER) * 0.9

    def add(self, now: float, memory: int | None, busy: float | None) -> None:
        if memory is not None:
            self.memory = max(memory, self.memory or 0)
        if busy is not None:
            self.busy += busy * (now - self.looked)
            self.seconds += now - self.looked
            self.peak = max(busy, self.peak or 0.0)
        self.looked = now

    @property
    def mean(self) -> float | None:
        return self.busy / self.seconds if self.seconds else None


def serve(own: socket.socket, watch: Watch, gauges: Gauges) -> None:
    """Look until the agent, or the process that forks helpers, is gone."""
    from ezpyp.system.usage import Meter

    meter = Meter(watch.gpus)
    tallies: dict[int, _Tally] = {}
    while not select.select([own], [], [], EARLY)[0]:
        if meter:
            _look_at_all(meter, watch, gauges, tallies)


def _look_at_all(meter: Meter, watch: Watch, gauges: Gauges, tallies: dict[int, _Tally]) -> None:
    now = monotonic()
    due: dict[int, tuple[int, int, int, _Tally]] = {}
    for slot in range(watch.helpers):
        pid, devices, alone, number = gauges.asked(slot)
        tally = tallies.get(slot)
        if not pid:
            continue
        if tally is None or tally.number != number:
            tally = tallies[slot] = _Tally(number, now)
        elif tally.is_due(now):
            due[slot] = pid, devices, alone, tally
    seen: dict[int, list[tuple[int | None, float | None]]] = {slot: [] for slot in due}
    for place, name in enumerate(watch.gpus):
        on = {slot: pid for slot, (pid, devices, _, _) in due.items() if devices >> place & 1}
        if on:
            looks = meter.look(name, on.values(), [pid for pid, _, alone, _ in due.values() if alone >> place & 1])
            for slot, pid in on.items():
                if pid in looks:
                    seen[slot].append(looks[pid])
    for slot, looks_at in seen.items():
        tally = due[slot][3]
        memory = [each for each, _ in looks_at if each is not None]
        busy = [each for _, each in looks_at if each is not None]
        tally.add(now, sum(memory) if memory else None, sum(busy) / len(busy) if busy else None)
        gauges.tell(slot, tally.number, tally.memory, tally.mean, tally.peak)
