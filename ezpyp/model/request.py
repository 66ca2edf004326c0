"""What a step asks for of the node that runs it."""

from __future__ import annotations

from ezpyp.system.resources import Process
from ezpyp.tuples import NamedTuple


class Request(NamedTuple):
    """What a step needs while it runs. `gpus` may be a fraction; `memory` is in bytes, 0 for unsaid."""

    cpus: int = 1
    gpus: float = 0
    memory: int = 0
    #: Whether a process of its own runs it; None: if it asks for GPUs.
    fresh: bool | None = None
    #: It starts a program, which is such a process.
    program: bool = False

    @property
    def process(self) -> Process:
        """The process that runs it."""
        if self.program:
            return "any"
        if self.gpus > 0 if self.fresh is None else self.fresh:
            return "own"
        return "same" if self.gpus else "any"
