"""How two plans differ, told from their schemas."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ezpyp import fingerprint
from ezpyp.naming import some
from ezpyp.schema import entries

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """How a plan differs from a former one, by the names of steps. A step is the same if its fingerprint is, whatever
    its name.
    """

    new: tuple[str, ...]
    gone: tuple[str, ...]
    #: Changed steps by their names now, with what about them changed.
    changed: Mapping[str, tuple[str, ...]]
    #: What changed steps, and those that are the same under another name, were called.
    former: Mapping[str, str]

    def __bool__(self) -> bool:
        return bool(self.new or self.gone or self.changed)


NO_DIFFERENCES = Differences(new=(), gone=(), changed={}, former={})


def between(before: Mapping[str, Any], after: Mapping[str, Any]) -> Differences:
    """Compare two schemas. Only fingerprints decide; everything else explains.

    A step that is not in the other schema is taken for a changed one if there is one of the same function and arguments
    there, or else of the same name, that is not in this one.
    """
    old = {entry["name"]: entry for _, entry in entries(before)}
    now = {entry["name"]: entry for _, entry in entries(after)}
    prints = {entry["fingerprint"]: name for name, entry in old.items()}
    former = {name: prints[e["fingerprint"]] for name, e in now.items() if e["fingerprint"] in prints}
    known = {entry["fingerprint"] for entry in now.values()}
    lost = {name: entry for name, entry in old.items() if entry["fingerprint"] not in known}
    strange = {name: entry for name, entry in now.items() if name not in former}
    for alike in (_call, lambda entry: entry["name"]):
        places: dict[Any, list[str]] = {}
        for name, entry in lost.items():
            places.setdefault(alike(entry), []).append(name)
        for name, entry in list(strange.items()):
            if candidates := places.get(alike(entry)):
                former[name] = candidates.pop(0)
                del lost[former[name]], strange[name]
    edits: dict[tuple[str, str], list[str]] = {}
    changed = {
        name: tuple(
            _reasons(
                Pair(old=old[former[name]], now=entry, before=before, after=after),
                former,
                olds=old,
                nows=now,
                edits=edits,
            )
        )
        for name, entry in now.items()
        if name in former and old[former[name]]["fingerprint"] != entry["fingerprint"]
    }
    return Differences(new=tuple(strange), gone=tuple(lost), changed=changed, former=former)


def _call(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    return entry["function_name"], entry["arguments_digest"], entry["named"] and entry["name"], len(entry["upstream"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A step then and now, with the schemas that hold it."""

    old: Mapping[str, Any]
    now: Mapping[str, Any]
    before: Mapping[str, Any]
    after: Mapping[str, Any]


def _reasons(
    pair: Pair,
    former: Mapping[str, str],
    *,
    olds: Mapping[str, Any],
    nows: Mapping[str, Any],
    edits: dict[tuple[str, str], list[str]],
) -> Iterator[str]:
    """What changed about a step. `edits` keeps what was found out about code that many steps share."""
    old, now = pair.old, pair.now
    if old.get("version") != now.get("version"):
        yield f"version {old.get('version')} -> {now.get('version')}"
    elif now.get("version") is None and old["code"] != now["code"]:
        codes = old["code"], now["code"]
        if codes not in edits:
            edits[codes] = explain_code(pair) or ["code changed"]
        yield from edits[codes]
    yield from _package_reasons(old.get("packages", {}), now.get("packages", {}))
    if old["codec"] != now["codec"]:
        yield f"codec {old['codec']} -> {now['codec']}"
    if (old["named"] or now["named"]) and old["name"] != now["name"]:
        yield f"name {old['name']} -> {now['name']}"
    then = [former.get(name, name) for name in now["upstream"]]
    if sorted(old["upstream"]) != sorted(then):
        yield f"depends on {some(now['upstream'])}, before on {some(old['upstream'])}"
    elif moved := [u for u, t in zip(now["upstream"], then, strict=True) if _prints(olds, t) != _prints(nows, u)]:
        yield f"{_UPSTREAM}{some(moved)} changed"
    if old["arguments_digest"] != now["arguments_digest"]:
        yield from _argument_reasons(old["arguments"], now["arguments"])
    yield from _input_reasons(pair)


_UPSTREAM = "upstream "


def own_reasons(reasons: Iterable[str]) -> list[str]:
    """Of the reasons why a step changed those that are not with a step before it."""
    return [reason for reason in reasons if not reason.startswith(f"{_UPSTREAM}'")]


def _input_reasons(pair: Pair) -> Iterator[str]:
    then, now = pair.old.get("inputs", {}), pair.now["inputs"]
    for name in now:
        if name in then and then[name] != now[name]:
            members = (
                schema["ezpyp"].get("inputs", {}).get(digest)
                for schema, digest in ((pair.before, then[name]), (pair.after, now[name]))
            )
            yield f"input {name} changed{_member_reasons(*members)}"
    if pair.old["arguments_digest"] == pair.now["arguments_digest"]:
        return
    yield from (f"input {name} is new" for name in now if name not in then)
    yield from (f"input {name} is no longer read" for name in then if name not in now)


def _member_reasons(then: Mapping[str, str] | None, now: Mapping[str, str] | None) -> str:
    """Which files of several, and how: ` (b.nc changed, c.nc is new)`."""
    if then is None or now is None:
        return ""
    told = [f"{name} {'is new' if name not in then else 'changed'}" for name in now if then.get(name) != now[name]]
    told += [f"{name} is gone" for name in then if name not in now]
    return f" ({', '.join(told[:3])}{f' and {len(told) - 3} more' if len(told) > 3 else ''})"


def _package_reasons(old: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    """Versions that count and are others, or count only then or now."""
    for name in sorted({*old, *now}):
        if old.get(name) != now.get(name):
            yield f"{name} {old.get(name, '(its version did not count)')} -> {now.get(name, '(it does not count)')}"


def _prints(entries_by_name: Mapping[str, Any], name: str) -> str:
    return str(entries_by_name[name]["fingerprint"]) if name in entries_by_name else ""


def explain_code(pair: Pair) -> list[str]:
    """What changed in the code of a step, also where a version stands for it."""
    then, now = (
        schema["ezpyp"]["functions"].get(entry["code"], {}).get("parts", {})
        for schema, entry in ((pair.before, pair.old), (pair.after, pair.now))
    )
    return fingerprint.explain(then, now)


def _argument_reasons(old: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    visible = [k for k in {**old, **now} if old.get(k) != now.get(k)]
    for key in visible:
        yield f"argument {key}: {old.get(key, 'not given')!r} -> {now.get(key, 'not given')!r}"
    if not visible:
        yield "an argument has another content"
