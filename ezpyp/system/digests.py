"""blake2b, as hashlib has it, but without OpenSSL, which hashlib loads as well: 2 ms of the start of each rank."""

from __future__ import annotations

try:
    from _blake2 import blake2b
except ImportError:  # a Python that keeps it elsewhere
    from hashlib import blake2b

__all__ = ["blake2b"]
