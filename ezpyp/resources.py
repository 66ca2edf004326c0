"""Cores, memory and GPUs: what a step asks for, what this node and rank have, and how a helper is bound to its share."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a step needs while it runs. `gpus` may be a fraction; `memory` is in bytes, 0 for unsaid."""

    cpus: int = 1
    gpus: float = 0
    memory: int = 0
