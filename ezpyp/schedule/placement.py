"""Where steps run: what the nodes have, what of it is free, and what a step is granted. Pure.

A *node* has units (its cores, or the helpers on it where those are more), numbered cores, GPUs and memory. A *seat*
is a rank on it, with slots. A lot of ordinary steps takes one unit for as long as it lasts. A step that asks for more
is granted what it asks of one node, and an idle slot with nothing queued behind it. Nothing is ever granted twice.

No call looks at all nodes or all seats: those that may have room stand in queues, and leave them when they had none.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Sequence
from math import ceil

from ezpyp.model.request import Request
from ezpyp.system import gpus
from ezpyp.system.resources import Grant, Stock
from ezpyp.tuples import NamedTuple

#: The whole of a device, in the parts that are counted: sums of floats would grant a little too much or too little.
_WHOLE = 1_000_000
_ORDINARY = Request()
#: A GPU: the rank that alone has it, or -1, and its name.
_Device = tuple[int, str]


class Place(NamedTuple):
    """A rank as a place for steps: its slots, and what of its node it may use."""

    rank: int
    host: str
    slots: int
    stock: Stock


class _Node:
    """A node: what it has, and what of it is free."""

    __slots__ = (
        "cores",
        "devices",
        "free",
        "free_memory",
        "hopes",
        "host",
        "memory",
        "numbers",
        "seats",
        "starved",
        "units",
    )

    def __init__(self, places: Sequence[Place]) -> None:
        self.host = places[0].host
        self.cores = max(place.stock.cores for place in places)
        self.free = self.units = max(self.cores, sum(place.slots for place in places))
        self.numbers = sorted({number for place in places for number in place.stock.numbers})
        self.free_memory = self.memory = max(place.stock.memory for place in places) or sys.maxsize
        #: What is free of each device.
        self.devices = {device: _WHOLE for place in places for device in _devices(place)}
        same: dict[tuple[_Device, ...], tuple[_Device, ...]] = {}  # one tuple for all ranks that have the same
        self.seats = [_Seat(place, self, same) for place in places if place.slots]
        #: Seats that had an idle slot when the node had no unit for it.
        self.starved: dict[_Seat, None] = {}
        #: A bit for each request that may find room here.
        self.hopes = 0

    def can_hold(self, request: Request) -> bool:
        """Whether a step of this request could run here if nothing else did."""
        devices = ceil(request.gpus)
        return (
            request.cpus <= self.units
            and request.memory <= self.memory
            and any(devices <= seat.most_devices for seat in self.seats)
        )


class _Seat:
    """A rank with slots, and how many of them have a lot."""

    __slots__ = ("devices", "is_listed", "lots", "most_devices", "node", "rank", "reach", "slots")

    def __init__(self, place: Place, node: _Node, same: dict[tuple[_Device, ...], tuple[_Device, ...]]) -> None:
        self.rank, self.slots, self.reach, self.node = place.rank, place.slots, place.stock.reach, node
        self.devices = same.setdefault(_devices(place), _devices(place))
        # A process of CUDA uses one instance of a divided GPU, whatever it sees.
        divided = any(token.startswith("MIG-") for token in place.stock.gpus)
        self.most_devices = min(1, len(self.devices)) if divided else len(self.devices)
        self.lots = 0
        #: Whether it stands in the queue of those that may have an idle slot.
        self.is_listed = False


class _Held(NamedTuple):
    """What a step with a grant holds."""

    seat: _Seat
    request: Request
    numbers: tuple[int, ...]
    devices: tuple[tuple[_Device, int], ...]


class _Lot:
    """A lot of ordinary steps: where it is, and how many have not ended."""

    def __init__(self, seat: _Seat, left: int) -> None:
        self.seat, self.left = seat, left


class Placement:
    """Who has what, from moment to moment."""

    def __init__(self, places: Iterable[Place], requests: Sequence[Request]) -> None:
        """All is free. `requests` are those that steps make; each is known by its number, 0 for the ordinary one."""
        self._requests = tuple(requests)
        self._nodes = _nodes(places)
        self._seats = {seat.rank: seat for node in self._nodes for seat in node.seats}
        self._all = (1 << len(self._requests)) - 2  # a bit for each but the ordinary one
        #: For each request the nodes that may have room for it.
        self._hopeful: list[list[_Node]] = [[] for _ in self._requests]
        for node in reversed(self._nodes):
            self._hope(node)
        #: Seats that may have an idle slot.
        self._idle: deque[_Seat] = deque()
        for seat in self._seats.values():
            self._offer(seat)
        self._lots: dict[int, _Lot] = {}
        self._held: dict[int, _Held] = {}
        #: A request, and the node that is kept free for it.
        self._kept: tuple[int, _Node] | None = None

    # ----- ordinary lots

    def seat(self) -> int | None:
        """A rank with an idle slot and a unit for an ordinary lot. Slots hold one lot at a time: a second one would
        keep a step waiting that asked for more.
        """
        while self._idle:
            seat = self._idle[0]
            if seat.lots < seat.slots and seat.node.free and self._leaves_room(seat, _ORDINARY):
                return seat.rank
            self._idle.popleft()
            seat.is_listed = False
            if seat.lots < seat.slots:
                seat.node.starved[seat] = None
        return None

    def lend(self, rank: int, steps: Sequence[int]) -> None:
        """An ordinary lot goes to a rank, which `seat` named."""
        seat = self._seats[rank]
        seat.lots += 1
        seat.node.free -= 1
        self._lots.update(dict.fromkeys(steps, _Lot(seat, len(steps))))
        self._idle.rotate(-1)  # so that all ranks fill evenly

    # ----- steps with a grant

    def give(self, kind: int, step: int) -> tuple[int, Grant] | None:
        """Grant a step what it asks for: the rank that runs it, and what it has there; None where nothing is free."""
        given = self._give(self._kept[1], kind, step) if self._kept is not None and self._kept[0] == kind else None
        hopeful = self._hopeful[kind]
        while hopeful and given is None:
            given = self._give(hopeful[-1], kind, step)
            if given is None:
                hopeful.pop().hopes &= ~(1 << kind)
        if given is not None and self._kept is not None and self._kept[0] == kind:
            self._keep_no_more()
        return given

    def keep(self, kind: int) -> None:
        """Keep a node free for a step of this request until one found room. Of those that can hold it, the one that has
        most of what it asks for free. One node is kept at a time.
        """
        if self._kept is not None:
            return
        request = self._requests[kind]

        def free(node: _Node) -> tuple[int, int, int]:
            devices = sum(node.devices.values())
            return min(request.cpus, node.free), min(request.memory, node.free_memory), devices if request.gpus else 0

        self._kept = kind, max((node for node in self._nodes if node.can_hold(request)), key=free)

    # ----- both

    def end(self, steps: Iterable[int]) -> None:
        """Steps have ended, or were given back: what they had is free."""
        for step in steps:
            lot = self._lots.pop(step, None)
            if lot is None:
                self._release(self._held.pop(step))
                continue
            lot.left -= 1
            if not lot.left:
                self._freed(lot.seat, 1)

    def wants_gpus(self, kind: int) -> bool:
        """Whether a request is for GPUs."""
        return self._requests[kind].gpus > 0

    # ----- parts

    def _give(self, node: _Node, kind: int, step: int) -> tuple[int, Grant] | None:
        request = self._requests[kind]
        if request.cpus > node.free or request.memory > node.free_memory:
            return None
        is_next = self._kept is not None and self._kept[0] == kind
        tried = devices = None
        for seat in node.seats:
            if seat.lots >= seat.slots or not (is_next or self._leaves_room(seat, request)):
                continue
            if seat.devices is not tried:
                tried, devices = seat.devices, _choose(node, seat, request.gpus)
            if devices is not None:
                break
        else:
            return None
        assert devices is not None
        numbers = _adjacent(node.numbers, request.cpus) if request.cpus > 1 else ()
        node.numbers = [number for number in node.numbers if number not in numbers]
        node.free -= request.cpus
        node.free_memory -= request.memory
        for device, parts in devices:
            node.devices[device] -= parts
        seat.lots += 1
        self._held[step] = _Held(seat, request, numbers, devices)
        gpus = tuple((token, parts / _WHOLE) for (_, token), parts in devices)
        return seat.rank, Grant(cores=numbers, gpus=gpus, memory=request.memory, process=request.process)

    def _release(self, held: _Held) -> None:
        seat, request, numbers, devices = held
        node = seat.node
        node.numbers = sorted((*node.numbers, *numbers))
        node.free_memory += request.memory
        for device, parts in devices:
            node.devices[device] += parts
        self._freed(seat, request.cpus)

    def _freed(self, seat: _Seat, units: int) -> None:
        """A lot of this rank ended, and gave so many units back."""
        node = seat.node
        seat.lots -= 1
        node.free += units
        self._hope(node)
        self._offer(seat)
        if not self._is_kept(node):
            while units > 0 and node.starved:
                self._offer(node.starved.popitem()[0])
                units -= 1

    def _hope(self, node: _Node) -> None:
        """Each request may find room there again."""
        hopeless = self._all & ~node.hopes
        node.hopes = self._all
        while hopeless:
            bit = hopeless & -hopeless
            self._hopeful[bit.bit_length() - 1].append(node)
            hopeless ^= bit

    def _offer(self, seat: _Seat) -> None:
        """A seat may have an idle slot."""
        if not seat.is_listed:
            seat.is_listed = True
            self._idle.append(seat)

    def _leaves_room(self, seat: _Seat, request: Request) -> bool:
        """Whether a lot or step may start there with regard to the step that the node is kept for.

        It may not take the GPUs or the memory that the other waits for. Once these are there, it has to leave cores and
        an idle slot too; before, the other could not use them.
        """
        if not self._is_kept(seat.node):
            return True
        assert self._kept is not None
        node, first = seat.node, self._requests[self._kept[0]]
        if request.gpus and first.gpus:
            return False
        if request.memory and first.memory and node.free_memory - request.memory < first.memory:
            return False
        if first.memory > node.free_memory or all(_choose(node, each, first.gpus) is None for each in node.seats):
            return True
        others = [each for each in node.seats if each is not seat and each.devices == seat.devices]
        idle = seat.slots - seat.lots - 1 + sum(each.slots - each.lots for each in others)
        return node.free - request.cpus >= first.cpus and idle > 0

    def _is_kept(self, node: _Node) -> bool:
        return self._kept is not None and self._kept[1] is node

    def _keep_no_more(self) -> None:
        assert self._kept is not None
        node, self._kept = self._kept[1], None
        self._hope(node)
        node.starved.clear()
        for seat in node.seats:
            self._offer(seat)


def describe(request: Request) -> str:
    """What a request is for, in words."""
    parts = [f"{request.cpus} cores"] if request.cpus > 1 else []
    if request.gpus:
        parts.append("a GPU" if request.gpus == 1 else f"{request.gpus:g} {'of a GPU' if request.gpus < 1 else 'GPUs'}")
    if request.memory:
        parts.append(f"{request.memory / 2**30:.3g} GiB of memory")
    return " and ".join(filter(None, [", ".join(parts[:-1]), *parts[-1:]]))


def cannot_hold(places: Iterable[Place], request: Request) -> str:
    """Where no node could hold a step of this request: what the largest of them has, in words; else ""."""
    nodes = _nodes(places)
    if any(node.can_hold(request) for node in nodes):
        return ""
    largest = max(nodes, key=lambda node: (bool(request.gpus) and len(node.devices), node.units, node.memory))
    gpus = len(largest.devices)
    parts = [
        f"{largest.units} core{'s' * (largest.units != 1)}",
        "no GPU that this job may use" if not gpus else f"{gpus} GPU{'s' * (gpus != 1)}",
    ]
    if request.memory and largest.memory < sys.maxsize:
        parts.append(f"{largest.memory / 2**30:.1f} GiB")
    return f"{largest.host} has {', '.join(parts[:-1])} and {parts[-1]}"


def underused(places: Iterable[Place], ready: int, remedy: str) -> list[str]:
    """A warning for each node that would use under half of its cores although that many steps are ready (message 9)."""
    found = []
    for node in (node for node in _nodes(places) if node.seats):
        used = sum(min(seat.slots, seat.reach) for seat in node.seats)
        if 2 * used < node.cores <= 2 * ready:
            bound = any(seat.reach < node.cores // len(node.seats) for seat in node.seats)
            unbind = " and mpirun --bind-to none" if bound else ""
            found.append(f"{node.host}: {node.cores} cores allotted, {used} used. Set {remedy}{unbind}.")
    return found


def idle_gpus(places: Iterable[Place], each: float, wanted: float, word: str) -> list[str]:
    """A warning for each node that runs too few steps at a time for its GPUs, although there are enough of them.

    Args:
        each: the most GPUs that one step asks for. wanted: what all ask for together.
        word: the setting that says how many steps a rank runs at a time.
    """
    found = []
    for node in (node for node in _nodes(places) if node.seats):
        count = len({device for seat in node.seats for device in seat.devices})
        slots = sum(seat.slots for seat in node.seats)
        used = ceil(slots * each)
        if used < count <= wanted:
            steps = "1 step runs" if slots == 1 else f"{slots} steps run"
            found.append(
                f"{node.host}: {count} GPUs, at most {used} used, because {steps} at a time there. Set "
                f"{word}={ceil(count / each / len(node.seats))}."
            )
    return found


def shares(places: Iterable[Place]) -> dict[int, tuple[str, ...]]:
    """The GPUs that steps of each rank use where no step asks for any."""
    found: dict[int, tuple[str, ...]] = {}
    for node in _by_host(place for place in places if place.slots):
        divided, _ = gpus.divide([_devices(place) for place in node])
        found |= {place.rank: tuple(name for _, name in own) for place, own in zip(node, divided, strict=True)}
    return found


def crowded(places: Iterable[Place]) -> list[str]:
    """A warning for each node where processes share GPUs without being told to, or where ranks see some in common."""
    said = []
    for node in _by_host(place for place in places if place.slots):
        shared, overlap = gpus.divide([_devices(place) for place in node])
        devices = {device for own in shared for device in own}
        slots = [(place.slots, len(own)) for place, own in zip(node, shared, strict=True) if own]
        if overlap:
            said.append(
                f"{node[0].host}: ranks see some GPUs in common and others not. Left as it is. Let the scheduler bind "
                "all ranks (--gpus-per-task), or none."
            )
        elif sum(own for _, own in slots) > len(devices) or any(helpers > own for helpers, own in slots):
            said.append(
                f"{node[0].host}: {sum(helpers for helpers, _ in slots)} processes share {len(devices)} "
                f"GPU{'s' * (len(devices) > 1)}. Say gpus=1 at the steps that use one, or start fewer, or run NVIDIA "
                "MPS. EZPYP_GPU_BIND=none leaves GPUs alone."
            )
    return said


def _nodes(places: Iterable[Place]) -> list[_Node]:
    return [_Node(each) for each in _by_host(places)]


def _by_host(places: Iterable[Place]) -> list[list[Place]]:
    by_host: dict[str, list[Place]] = {}
    for place in places:
        by_host.setdefault(place.host, []).append(place)
    return list(by_host.values())


def _devices(place: Place) -> tuple[_Device, ...]:
    """The GPUs of a rank, told apart from others that go by the same name."""
    return tuple((place.rank if place.stock.own_gpus else -1, token) for token in place.stock.gpus)


def _choose(node: _Node, seat: _Seat, gpus: float) -> tuple[tuple[_Device, int], ...] | None:
    """Whole devices that nobody uses, and for a fraction the fullest that has room for it."""
    whole = int(gpus)
    part = int((gpus - whole) * _WHOLE + 1e-3)
    unused = [device for device in seat.devices if node.devices[device] == _WHOLE][:whole]
    if len(unused) < whole:
        return None
    found = [(device, _WHOLE) for device in unused]
    if part:
        able = [device for device in seat.devices if device not in unused and node.devices[device] >= part]
        if not able:
            return None
        found.append((min(able, key=node.devices.__getitem__), part))
    return tuple(found)


def _adjacent(numbers: Sequence[int], count: int) -> tuple[int, ...]:
    """So many of these sorted numbers, next to each other if they can be; none where they are too few."""
    if len(numbers) < count:
        return ()
    for k in range(len(numbers) - count + 1):
        if numbers[k + count - 1] - numbers[k] == count - 1:
            return tuple(numbers[k : k + count])
    return tuple(numbers[:count])
