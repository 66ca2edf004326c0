"""The GPUs of this node: which this process may use, how ranks and helpers divide them, and how a process is bound.

GPUs are known by their UUIDs wherever NVML tells them: under a scheduler's control groups every task may see its own
GPU as number 0. What a scheduler set is never widened.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Hashable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any, TypeVar

from ezpyp.tuples import NamedTuple

T = TypeVar("T")
D = TypeVar("D", bound=Hashable)

#: What programs of NVIDIA, AMD and Intel look at. HIP counts among those that ROCR shows.
_CUDA, _HIP, _ROCR, _ZE = "CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"
#: What each takes for no GPU at all. Nothing is known for Intel's.
_NOTHING = {_CUDA: "", _HIP: "-1", _ROCR: "-1"}
#: Libraries that use GPUs, by the names of their modules.
_LIBRARIES = ("torch", "cupy", "jax", "tensorflow", "numba.cuda", "pycuda")
#: Files that stay open in a process whose CUDA or HSA has started. NVML opens others.
_STARTED = ("/dev/nvidia-uvm", "/dev/kfd")


class Device(NamedTuple):
    """A GPU as NVML lists it."""

    uuid: str
    model: str
    #: Its instances, where it is divided (MIG); None where it is not.
    instances: tuple[str, ...] | None

    @property
    def usable(self) -> tuple[str, ...]:
        """What a process can be bound to."""
        return (self.uuid,) if self.instances is None else self.instances


# ----- which there are


def left_alone(environ: Mapping[str, str] = os.environ) -> bool:
    """EZPYP_GPU_BIND=none: the user binds GPUs."""
    return environ.get("EZPYP_GPU_BIND", "").lower() == "none"


def variable(environ: Mapping[str, str] = os.environ) -> str:
    """The variable that says what this process sees, and that is set to bind it.

    Some schedulers set those of all vendors: then it is the one of the driver that is here. Only one is ever set: a
    second one would count among what the first one shows.
    """
    said = [name for name in (_CUDA, _HIP, _ROCR, _ZE) if name in environ]
    if len(said) < 2:
        return said[0] if said else _CUDA
    if not _has_driver():
        if os.path.exists("/dev/kfd"):
            return next((name for name in (_HIP, _ROCR) if name in said), said[0])
        if _ZE in said and os.path.exists("/sys/module/i915") | os.path.exists("/sys/module/xe"):
            return _ZE
    return said[0]


def devices(environ: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """The GPUs this process may use: what the variable names where it is set, else what NVML lists; by UUID if it can.

    Never more than the scheduler gave. Without a driver nothing is imported.
    """
    name = variable(environ)
    said = environ.get(name)
    tokens = _tokens(said) if said is not None else ()
    if said is not None and (name != _CUDA or not tokens):
        return tokens
    listed = _listed() if _has_driver() else ()
    if said is None:
        return tuple(uuid for device in listed for uuid in device.usable)
    # CUDA counts the fastest GPU first, NVML by place on the bus: numbers mean the same where all are alike.
    same = len({device.model for device in listed}) == 1 or environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID"
    return tuple(_named(token, listed, same) for token in tokens)


def _tokens(said: str) -> tuple[str, ...]:
    """CUDA sees what stands before the first invalid one; some schedulers write -1 or NoDevFiles for none."""
    tokens: list[str] = []
    for token in map(str.strip, said.split(",")):
        if token in ("", "NoDevFiles") or token.startswith("-"):
            break
        tokens.append(token)
    return tuple(tokens)


def _named(token: str, listed: Sequence[Device], same: bool) -> str:
    """The UUID of what a token stands for: a number, or the head of a UUID. Else the token."""
    if token.isdecimal() and same and int(token) < len(listed):
        return next(iter(listed[int(token)].usable), token)  # of a divided GPU, CUDA would use the first instance
    if token.startswith("GPU-"):
        found = [device for device in listed if device.uuid.startswith(token)]
        return next(iter(found[0].usable), token) if len(found) == 1 else token
    found_instances = [each for device in listed for each in device.instances or () if each.startswith(token)]
    return found_instances[0] if token.startswith("MIG-") and len(found_instances) == 1 else token


def bound_by_slurm(have: Sequence[str], environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this task sees just its own, under numbers that mean others to other tasks: `--gpus-per-task=[type:]n`,
    and n are visible. UUIDs tell by themselves.
    """
    numbered = bool(have) and all(token.isdecimal() for token in have)
    return numbered and environ.get("SLURM_GPUS_PER_TASK", "").rpartition(":")[2] == str(len(have))


def can_tell() -> bool:
    """Whether NVML may know what processes use of the GPUs that this process is to divide."""
    return _has_driver() and not left_alone()


def _has_driver() -> bool:
    """Whether asking NVML is worth its import, which ten thousand ranks would pay. /dev/dxg is how WSL has it."""
    return any(os.path.exists(path) for path in ("/dev/nvidiactl", "/proc/driver/nvidia", "/dev/dxg"))


def _listed() -> tuple[Device, ...]:
    """All GPUs of this node, in NVML's order."""
    try:
        import pynvml as nvml

        nvml.nvmlInit()
    except Exception:  # no library, no driver, or one that is just being replaced: no GPU can be used
        return ()
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(k) for k in range(nvml.nvmlDeviceGetCount())]
        return tuple(
            Device(_uuid(nvml, handle), _text(nvml.nvmlDeviceGetName(handle)), _instances(nvml, handle))
            for handle in handles
        )
    except nvml.NVMLError:
        return ()
    finally:
        nvml.nvmlShutdown()


def _instances(nvml: Any, handle: Any) -> tuple[str, ...] | None:
    """The UUIDs of the instances that exist on a GPU in MIG mode."""
    try:
        divided, _ = nvml.nvmlDeviceGetMigMode(handle)
    except nvml.NVMLError:
        divided = 0
    if not divided:
        return None
    found = []
    for k in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
        with contextlib.suppress(nvml.NVMLError):
            found.append(_uuid(nvml, nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, k)))
    return tuple(found)


def _uuid(nvml: Any, handle: Any) -> str:
    return _text(nvml.nvmlDeviceGetUUID(handle))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


# ----- who gets which


def divide(masks: Sequence[Sequence[D]]) -> tuple[tuple[tuple[D, ...], ...], bool]:
    """The share of each rank of a node, given what each sees; and whether what they see overlaps in part.

    Ranks that see the same divide it: one each, contiguous blocks, or several ranks on one. What is seen by nobody else
    is kept. Where sets overlap in part, the scheduler meant something: all is left as it is.
    """
    groups: dict[frozenset[D], list[int]] = {}
    for rank, mask in enumerate(masks):
        groups.setdefault(frozenset(mask), []).append(rank)
    if sum(map(len, groups)) != len(frozenset().union(*groups)):
        return tuple(map(tuple, masks)), True
    shares: list[tuple[D, ...]] = [()] * len(masks)
    for ranks in groups.values():
        whole = masks[ranks[0]]
        for place, rank in enumerate(ranks):
            shares[rank] = share_of(whole, place, len(ranks))
    return tuple(shares), False


def share_of(have: Sequence[T], place: int, places: int) -> tuple[T, ...]:
    """The part of one place: a contiguous block, the remainder to the first places; or one thing that others share."""
    if not have:
        return ()
    if places >= len(have):
        return (have[place * len(have) // places],)
    size, extra = divmod(len(have), places)
    begin = place * size + min(place, extra)
    return tuple(have[begin : begin + size + (place < extra)])


def one_instance(have: Sequence[str]) -> tuple[str, ...]:
    """A process of CUDA uses one instance of a divided GPU, whatever it sees."""
    return tuple(have[:1] if have and have[0].startswith("MIG-") else have)


def uses_gpus(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether somebody seems to care: the scheduler granted GPUs, or the script loaded a library for them."""
    return variable(environ) in environ or any(name in sys.modules for name in _LIBRARIES)


# ----- binding


def binding(own: Sequence[str], have: Sequence[str], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What binds a process that sees `have` to some of it. Nothing to set where that is all, or where there is none."""
    own = one_instance(own)
    return {variable(environ): ",".join(own)} if own and list(own) != list(have) else {}


def hiding(have: Sequence[str], environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """What hides all GPUs from a process. Nothing where there are none: such a node is not touched."""
    name = variable(environ)
    return {name: _NOTHING[name]} if have and name in _NOTHING else {}


@contextlib.contextmanager
def granted(gpus: Sequence[tuple[str, float]], environ: MutableMapping[str, str] = os.environ) -> Iterator[None]:
    """Run something with these alone, each given with the share of it that is granted. None leaves all as it is."""
    if not gpus or left_alone(environ):
        yield
        return
    name = variable(environ)
    before = environ.get(name)
    environ[name] = ",".join(token for token, _ in gpus)
    try:
        yield
    finally:
        if before is not None:
            environ[name] = before
        else:
            environ.pop(name, None)


# ----- what a fork cannot take along


def started(descriptors: str | os.PathLike[str] = "/proc/self/fd") -> str | None:
    """The library by which this process has started CUDA, "" where that is not known; None where it has not.

    What is forked after that cannot use it. The script's own `torch.cuda` is asked; beyond that, the files tell that
    such a process holds.
    """
    torch: Any = sys.modules.get("torch")
    asked = getattr(getattr(torch, "cuda", None), "is_initialized", None)
    if asked is not None and asked():
        return "torch"
    for each in os.listdir(descriptors):
        with contextlib.suppress(OSError):
            if os.readlink(os.path.join(descriptors, each)).startswith(_STARTED):
                return next((name.partition(".")[0] for name in _LIBRARIES if name in sys.modules), "")
    return None
