"""Identity: the same for the same thing on every rank, machine and day, and under every Python from 3.11 on.

The door to the modules below it: `atoms`, `arrays` and `identity` for values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ezpyp.atoms import combine, digest, text
from ezpyp.identity import encode, register_identity

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["combine", "digest_value", "register_identity"]


def digest_value(value: object, *, reference: Callable[[object], bytes | None] | None = None) -> bytes:
    """The identity of a value by type and content, 16 bytes.

    Args:
        reference: asked for every object that is neither a number, a text nor a builtin container; bytes
        that it returns
            take the place of the object's content.

    Raises:
        IdentityError: there is none. The text continues "Argument 'conn' of 'load' ".
    """
    return digest(encode(value, _code, reference))


def _code(value: Any) -> bytes:
    return text(f"{value.__module__}.{value.__qualname__}")
