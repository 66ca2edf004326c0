"""What processes use of GPUs, where NVML tells: memory, and the share of time in which a kernel of theirs ran.

Any user may ask, as far as the driver lets users see processes at all; only to switch accounting on takes root. In a
container with process ids of its own NVML may name others: then nothing is told. See
https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceQueries.html
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ezpyp.system import offspring
from ezpyp.tuples import NamedTuple


class Use(NamedTuple):
    """What a step used of the GPUs that it was granted. What is not known is None."""

    #: By UUID, or as the scheduler names them.
    gpus: tuple[str, ...]
    #: Bytes at most, of its processes on all of these together.
    memory: int | None = None
    #: Percent of the time in which one of its kernels ran, the mean over these GPUs: on the whole, and at most.
    mean: float | None = None
    peak: float | None = None


class Look(NamedTuple):
    """What a process and those below it use of a device now; None where that is not told."""

    memory: int | None
    #: Percent, since the last look.
    busy: float | None


class Meter:
    """Looks at devices through NVML. Its calls may take milliseconds, or for ever where a driver is in trouble."""

    def __init__(self, devices: Sequence[str]) -> None:
        """Those of these names that NVML knows; none where there is no NVML."""
        self._nvml: Any = None
        self._handles: dict[str, Any] = {}
        self._counted: dict[str, bool] = {}
        #: The time, as the driver counts it, of the newest sample that was seen.
        self._seen: dict[str, int] = {}
        try:
            import pynvml

            pynvml.nvmlInit()
        except Exception:  # as in `gpus`: no library, no driver, or one that is just being replaced
            return
        self._nvml = pynvml
        for name in devices:
            with contextlib.suppress(pynvml.NVMLError):
                self._handles[name] = pynvml.nvmlDeviceGetHandleByUUID(name.encode())
                self._counted[name] = bool(self._ask(pynvml.nvmlDeviceGetAccountingMode, self._handles[name]))

    def __bool__(self) -> bool:
        """Whether there is anything to look at."""
        return bool(self._handles)

    def look(self, device: str, roots: Iterable[int], alone: Iterable[int] = ()) -> dict[int, Look]:
        """What each of these processes, with those below it, uses of a device.

        Of a process that has it `alone`, the device's own figure tells how busy it is where NVML does not say that of
        processes.
        """
        nvml, handle = self._nvml, self._handles.get(device)
        if handle is None:
            return {}
        running = self._ask(nvml.nvmlDeviceGetComputeRunningProcesses, handle) or []
        samples = self._samples(device)
        found = {}
        for root in roots:
            memory = [self._memory(device, each) for each in running if offspring.is_below(each.pid, root)]
            known = [each for each in memory if each is not None]
            busy = None
            if samples is not None and memory:
                busy = sum(value for pid, value in samples.items() if offspring.is_below(pid, root))
            elif root in alone:
                rates = self._ask(nvml.nvmlDeviceGetUtilizationRates, handle)
                busy = float(rates.gpu) if rates is not None else None
            found[root] = Look(sum(known) if known else None, busy if busy is None else min(100.0, busy))
        return found

    def _memory(self, device: str, process: Any) -> int | None:
        """What a process has now; where the driver keeps accounts, the most that it ever had."""
        known = [process.usedGpuMemory]
        if self._counted[device]:
            stats = self._ask(self._nvml.nvmlDeviceGetAccountingStats, self._handles[device], process.pid)
            known.append(stats.maxMemoryUsage if stats is not None else None)
        return max((int(each) for each in known if each is not None), default=None)

    def _samples(self, device: str) -> Mapping[int, float] | None:
        """How busy processes kept a device since the last look, those that did; None where NVML does not say."""
        nvml, found = self._nvml, dict[int, list[int]]()
        try:
            samples = nvml.nvmlDeviceGetProcessUtilization(self._handles[device], self._seen.get(device, 0))
        except nvml.NVMLError_NotFound:
            return {}
        except nvml.NVMLError:
            return None
        for each in samples:
            if each.smUtil > 100:  # some drivers leave parts of the list as they find the memory
                continue
            self._seen[device] = max(self._seen.get(device, 0), each.timeStamp)
            found.setdefault(each.pid, []).append(each.smUtil)
        return {pid: sum(values) / len(values) for pid, values in found.items()}

    def _ask(self, question: Callable[..., Any], *about: Any) -> Any:
        try:
            return question(*about)
        except self._nvml.NVMLError:  # not supported, no permission, a device that has fallen off the bus
            return None
