"""Names: of steps as file names, of steps as people write many of them, of the files of a run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import count

#: The plan of a folder, and the table that a run leaves behind.
SCHEMA_FILE = "pipeline.schema"
SUMMARY_FILE = "pipeline.summary"

_SAFE = r"[A-Za-z0-9_+=,][A-Za-z0-9_+=,.\[\]-]{,99}"
#: What ezpyp itself puts beside results, and what its file names end in.
_RESERVED = r"pipeline|journal|logs|store|report\.html|code|.*\.(step|status|partial|schema|summary)(\..*)?"


def stems(names: Sequence[str]) -> dict[str, str]:
    """File stems for step names: the name itself where it is safe, else a readable part, `~` and a digest of the name.

    Pure, and different without regard to case: of names that differ only in case, the later gets the digest too.
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in dict.fromkeys(names):
        stem = next(each for each in _candidates(name) if each.casefold() not in taken)
        taken.add(stem.casefold())
        found[name] = stem
    return found


def _candidates(name: str) -> Iterator[str]:
    if _is_safe(name):
        yield name
    # Two digests of 40 bits may meet in a million names.
    for salt in count():
        yield _digested(name, salt)


def _is_safe(name: str) -> bool:
    return (
        re.fullmatch(_SAFE, name) is not None
        and ".." not in name
        and not name.endswith(".")
        and re.fullmatch(_RESERVED, name.casefold()) is None
    )


def _digested(name: str, salt: int) -> str:
    readable = re.sub(r"[^A-Za-z0-9_]+", "-", name)[:60].strip("-") or "step"
    content = f"{name}\0{salt}" if salt else name
    return f"{readable}~{blake2b(content.encode('utf-8', 'surrogatepass'), digest_size=5).hexdigest()}"


def compact(names: Iterable[str]) -> str:
    """Names as people write them: `load, train[0..11]`."""
    runs: dict[str, list[int]] = {}
    order: list[str] = []
    for name in names:
        base, bracket, rest = name.partition("[")
        numbered = bool(bracket) and rest.endswith("]") and rest[:-1].isdecimal()
        key = base if numbered else name
        if key not in runs:
            runs[key] = []
            order.append(key)
        if numbered:
            runs[key].append(int(rest[:-1]))
    return ", ".join(_range(key, sorted(runs[key])) for key in order)


def _range(base: str, numbers: list[int]) -> str:
    if not numbers:
        return base
    spans: list[list[int]] = []
    for n in numbers:
        if spans and spans[-1][1] == n - 1:
            spans[-1][1] = n
        else:
            spans.append([n, n])
    return f"{base}[{','.join(str(a) if a == b else f'{a}..{b}' for a, b in spans)}]"


def some(names: Iterable[str], most: int = 5) -> str:
    listed = list(names)
    if not listed:
        return "nothing"
    return ", ".join(f"'{n}'" for n in listed[:most]) + (
        f" and {len(listed) - most} more" if len(listed) > most else ""
    )
