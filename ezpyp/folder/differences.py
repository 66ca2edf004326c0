"""How two plans differ, told from their schemas."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise, takewhile
from typing import Any

from ezpyp.folder import folding
from ezpyp.folder import schema as schemas
from ezpyp.folder.schema import entries
from ezpyp.identity import fingerprint
from ezpyp.model.fingerprints import Fingerprints
from ezpyp.model.naming import some
from ezpyp.tuples import NamedTuple


class Differences(NamedTuple):
    """How a plan differs from a former one, by the names of steps. A step is the same if its fingerprint is, whatever
    its name. Of a folded family the steps are told together, under names such as `train[0..9999]`.
    """

    new: tuple[str, ...]
    gone: tuple[str, ...]
    #: Changed steps by their names now, with what about them changed.
    changed: Mapping[str, tuple[str, ...]]
    #: What changed steps, and those that are the same under another name, were called.
    former: Mapping[str, str]
    #: Names under which steps of this plan are told together, by label.
    together: Mapping[str, Sequence[str]] = {}

    def __bool__(self) -> bool:
        return bool(self.new or self.gone or self.changed)

    def of(self, name: str) -> str:
        """The name under which a step of this plan is told."""
        if self.together:
            label, _, number = name.rpartition("[")
            for span in self.together.get(label, ()) if number[:-1].isdecimal() else ():
                _, first, count = folding.parsed(span)
                if first <= int(number[:-1]) < first + count:
                    return span
        return name

    def was(self, name: str) -> str:
        """What a step of this plan was called."""
        told = self.of(name)
        former = self.former.get(told, told)
        if told == name:
            return former
        label, first, _ = folding.parsed(former)
        return f"{label}[{first + int(name.rpartition('[')[2][:-1]) - folding.parsed(told)[1]}]"


NO_DIFFERENCES = Differences(new=(), gone=(), changed={}, former={})

#: The fingerprint of steps of the plan together, by label, number of the first, and count; "" where they do not follow
#: each other in it.
DigestOf = Callable[[str, int, int], str]


def between(before: Mapping[str, Any], after: Mapping[str, Any], digest_of: DigestOf) -> Differences:
    """Compare two schemas. Only fingerprints decide; everything else explains.

    A step that is not in the other schema is taken for a changed one if there is one of the same function and arguments
    there, or else of the same name, that is not in this one.
    """
    if schemas.alike(before, after):
        names = [name for name, _ in schemas.known(before)]
        same = {name: name for name in names}
        return Differences(new=(), gone=(), changed={}, former=same, together=_together(names))
    old = {entry["name"]: entry for _, entry in entries(before)}
    now = {entry["name"]: entry for _, entry in entries(after)}
    now = _cut_like(now, old, digest_of)
    old, now = _folded_like(old, now), _folded_like(now, old)
    prints = {entry["fingerprint"]: name for name, entry in old.items()}
    former = {name: prints[e["fingerprint"]] for name, e in now.items() if e["fingerprint"] in prints}
    known = {entry["fingerprint"] for entry in now.values()}
    lost = {name: entry for name, entry in old.items() if entry["fingerprint"] not in known}
    strange = {name: entry for name, entry in now.items() if name not in former}
    for alike in (_call, _place):
        places: dict[Any, list[str]] = {}
        for name, entry in lost.items():
            places.setdefault(alike(entry), []).append(name)
        for name, entry in list(strange.items()):
            if candidates := places.get(alike(entry)):
                former[name] = candidates.pop(0)
                del lost[former[name]], strange[name]
    pairs = {name: (old[was], now[name]) for name, was in former.items()}
    grown = {name: _rest(then, today) for name, (then, today) in pairs.items() if _has_grown(then, today, digest_of)}
    shrunk = [_rest(today, then) for then, today in pairs.values() if 0 < today.get("count", 0) < then.get("count", 0)]
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
        if name in former and name not in grown and old[former[name]]["fingerprint"] != entry["fingerprint"]
    }
    new, gone = (*strange, *grown.values()), (*lost, *shrunk)
    return Differences(new=new, gone=gone, changed=changed, former=former, together=_together(now))


def _together(names: Iterable[str]) -> dict[str, list[str]]:
    """The names that stand for several steps, by label."""
    found: dict[str, list[str]] = {}
    for name in names:
        label, first, _ = folding.parsed(name)
        if first >= 0:
            found.setdefault(label, []).append(name)
    return found


def _call(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    named = entry["named"] and entry["name"]
    return entry["function_name"], entry["arguments_digest"], named, len(entry["upstream"]), entry.get("count")


def _place(entry: Mapping[str, Any]) -> Any:
    return (entry["label"], entry["first"]) if "count" in entry else entry["name"]


def _folded_like(entries: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """The entries, and as one those that are members of a family which is folded among the others."""
    found = dict(entries)
    for other in others.values():
        if "count" not in other or any(_place(each) == _place(other) for each in entries.values()):
            continue
        names = [f"{other['label']}[{other['first'] + k}]" for k in range(other["count"])]
        mine = list(takewhile(lambda name: name in entries, names))
        if mine:
            prints = Fingerprints(b"".join(bytes.fromhex(found.pop(name)["fingerprint"]) for name in mine))
            name = folding.span(other["label"], other["first"], len(mine))
            found[name] = {
                **entries[mine[0]],
                **{key: other[key] for key in ("label", "first", "positional")},
                "name": name,
                "count": len(mine),
                "fingerprint": folding.digest(prints, 0, len(mine)),
                "upstream": list(dict.fromkeys(each for one in mine for each in entries[one]["upstream"])),
            }
    return found


def _cut_like(now: Mapping[str, Any], old: Mapping[str, Any], digest_of: DigestOf) -> dict[str, Any]:
    """The entries of this plan, folded families cut and joined where those of the former one begin and end: by one call
    or by several, the steps are the same.
    """
    found = dict(now)
    for other in old.values():
        if "count" not in other or found.get(other["name"], {}).get("count") == other["count"]:
            continue
        label, first, end = other["label"], other["first"], other["first"] + other["count"]
        # From where to where each entry of the label goes that has some of the same numbers.
        mine = {name: numbers for name in found if (numbers := _numbers(found[name], label)) and numbers[0] < end}
        mine = {name: numbers for name, numbers in mine.items() if numbers[-1] >= first}
        if not mine or not any("count" in found[name] for name in mine):
            continue
        low, high = min(each[0] for each in mine.values()), max(each[-1] for each in mine.values()) + 1
        cuts = sorted({low, max(low, first), min(high, end), high})
        pieces = [(begin, stop - begin) for begin, stop in pairwise(cuts)]
        prints = [digest_of(label, begin, count) for begin, count in pieces]
        if all(prints) and sum(map(len, mine.values())) == high - low:
            like = next(found[name] for name in mine if "count" in found[name])
            for name in mine:
                del found[name]
            for (begin, count), fingerprint_ in zip(pieces, prints, strict=True):
                name = folding.span(label, begin, count)
                own = {"name": name, "first": begin, "count": count, "arguments_digest": name}
                found[name] = {**like, **own, "fingerprint": fingerprint_}
    return found


def _numbers(entry: Mapping[str, Any], label: str) -> range:
    """The numbers of an entry, of one step or a folded family, where it has this label."""
    if "count" in entry:
        return range(entry["first"], entry["first"] + entry["count"]) if entry["label"] == label else range(0)
    base, _, number = entry["name"].rpartition("[")
    known = base == label and number[:-1].isdecimal() and not entry["named"]
    return range(int(number[:-1]), int(number[:-1]) + 1) if known else range(0)


def _rest(fewer: Mapping[str, Any], more: Mapping[str, Any]) -> str:
    """The name of what a family has beyond another of the same beginning."""
    return folding.span(more["label"], more["first"] + fewer["count"], more["count"] - fewer["count"])


def _has_grown(old: Mapping[str, Any], now: Mapping[str, Any], digest_of: DigestOf) -> bool:
    """Whether a family is the former one with more at its end."""
    count = old.get("count", 0)
    if not 0 < count < now.get("count", 0):
        return False
    return bool(digest_of(now["label"], now["first"], count) == old["fingerprint"])


class Pair(NamedTuple):
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
    if old.get("outputs") != now.get("outputs"):
        yield f"outputs {some(old.get('outputs', ()))} -> {some(now.get('outputs', ()))}"
    if (old["named"] or now["named"]) and old["name"] != now["name"]:
        yield f"name {old['name']} -> {now['name']}"
    then = [former.get(name, name) for name in now["upstream"]]
    if sorted(old["upstream"]) != sorted(then):
        yield f"depends on {some(now['upstream'])}, before on {some(old['upstream'])}"
    elif moved := [u for u, t in zip(now["upstream"], then, strict=True) if _prints(olds, t) != _prints(nows, u)]:
        yield f"{_UPSTREAM}{some(moved)} changed"
    if old.get("count") != now.get("count"):
        yield f"{old.get('count', 1):,} steps -> {now.get('count', 1):,}"
    elif old["arguments_digest"] != now["arguments_digest"]:
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
        then, today = (_shown(each.get(key, "not given")) for each in (old, now))
        yield f"argument {key}: {then} -> {today}"
    if not visible:
        yield "an argument has another content"


def _shown(value: Any) -> str:
    """An argument as JSON holds it, or a column of them."""
    return folding.told(value) if isinstance(value, dict) else repr(value)
