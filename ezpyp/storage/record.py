"""What is kept of a step: a record, the status file that says it, and what of it a header cannot say.

The file is JSON: what a person looks for first, then the rest of the outcome. By length and checksum it vouches for
the result that it names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from types import NoneType
from typing import TYPE_CHECKING, Any

from ezpyp.model.outcomes import Outcome, Place, Status
from ezpyp.system.files import Buffer
from ezpyp.tuples import NamedTuple

if TYPE_CHECKING:
    from ezpyp.system.usage import Use

FORMAT = 1


class Record(NamedTuple):
    """What the store knows of a step: its outcome, under the identity that it had."""

    name: str
    fingerprint: str
    outcome: Outcome
    #: Where its result lies, as the store that it was read from knows it.
    place: Place | None = None


def print_of(fingerprint: str) -> bytes | None:
    """A fingerprint as its 16 bytes; None where it is another text."""
    try:
        found = bytes.fromhex(fingerprint)
    except ValueError:
        return None
    return found if len(found) == 16 and found.hex() == fingerprint else None


#: What of an Outcome outlives its run, and what it may be. The index in the plan does not: plans change.
_LASTING: dict[str, tuple[type, ...]] = {
    "status": (int,),
    **dict.fromkeys(("codec", "checksum", "location", "host", "args", "kwargs", "note", "cause", "traceback"), (str,)),
    **dict.fromkeys(("bytes", "rank", "attempt"), (int,)),
    "seconds": (int, float),
    "log": (list, NoneType),
    "missing": (list,),
}
#: Files of the step: few steps have any.
_FILES: dict[str, tuple[type, ...]] = {"files": (str, int, str), "outputs": (str, str, int, int, int, str)}

#: What a step used of GPUs, by the fields of a `Use`.
_USE: tuple[tuple[type, ...], ...] = ((list,), (int, NoneType), (int, float, NoneType), (int, float, NoneType))

#: What of it few steps have to say, and what the others mean.
_SELDOM: dict[str, Any] = {
    **dict.fromkeys(("host", "args", "kwargs", "note", "cause", "traceback"), ""),
    **dict.fromkeys(("missing", *_FILES), ()),
    "log": None,
    "gpu": None,
    "dropped": False,
}

_encode = json.JSONEncoder(ensure_ascii=False).encode
_decode = json.JSONDecoder().decode
_quote = json.encoder.encode_basestring


def to_json(record: Record, outcome: Outcome) -> bytes:
    """A status file's content: a record with this outcome in place of its own."""
    content: dict[str, Any] = {
        "format": FORMAT,
        "name": record.name,
        "fingerprint": record.fingerprint,
        "when": datetime.fromtimestamp(outcome.when, UTC).isoformat(timespec="microseconds"),
    }
    for key in _LASTING:
        content[key] = getattr(outcome, key)
    if outcome.dropped:
        content["dropped"] = True
    for key in (*_FILES, "gpu"):
        if each := getattr(outcome, key):
            content[key] = each
    # File names that are no UTF-8 turn up in messages; json.loads takes them back.
    return _encode(content).encode("utf-8", "surrogatepass")


def extras_of(outcome: Outcome, host: str, **more: Any) -> bytes:
    """What of an outcome is not as with most steps, as JSON; nothing where nothing is. `host` need not be said."""
    said = {key: value for key, usual in _SELDOM.items() if (value := getattr(outcome, key)) != usual}
    if said.get("host") == host:
        del said["host"]
    elif not outcome.host and host:
        said["host"] = ""
    said |= more
    return _encode(said).encode("utf-8", "surrogatepass") if said else b""


def extras_of_call(args: str, kwargs: str) -> bytes:
    """The same, where an outcome has nothing else to say than its arguments; quicker."""
    said = f'"args": {_quote(args)}' * bool(args), f'"kwargs": {_quote(kwargs)}' * bool(kwargs)
    return f"{{{', '.join(filter(None, said))}}}".encode("utf-8", "surrogatepass")


def call_of(text: bytes) -> tuple[str, str] | None:
    """What `extras_of_call` was given; None where there is more to say.

    Raises:
        ValueError: ezpyp did not write it.
    """
    content = _decode(text.decode("utf-8", "surrogatepass")) if text else {}
    call = content.pop("args", ""), content.pop("kwargs", "")
    return None if content else call


def from_extras(text: Buffer, host: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What an outcome is to be made with, and what else was said.

    Raises:
        ValueError: ezpyp did not write it.
    """
    said = {**_SELDOM, "host": host}
    if not text:
        return said, {}
    try:
        content = json.loads(bytes(text))
        said |= {key: value for key, value in content.items() if key in _SELDOM}
        more = {key: value for key, value in content.items() if key not in _SELDOM}
        for key in _FILES:
            said[key] = _files(content, key)
        said["gpu"] = _use(said["gpu"])
        said["log"] = tuple(said["log"]) if said["log"] else None
        said["missing"] = tuple(said["missing"])
    except Exception as error:
        raise ValueError(f"ezpyp did not write it ({type(error).__name__}: {error})") from error
    return said, more


def from_json(text: Buffer, stem: str) -> Record:
    """The record in the status file of that stem.

    Raises:
        ValueError: there is none, and the text says why.
    """
    if not text:
        raise ValueError("it is empty")
    try:
        content = json.loads(bytes(text))
        version = content["format"]
    except Exception as error:  # anything may be in a file
        raise ValueError("it is torn, or ezpyp did not write it") from error
    if version != FORMAT:
        raise ValueError(f"it has format {version!r}, and this ezpyp reads {FORMAT}: use the ezpyp that wrote it")
    try:
        record = _record(content)
    except Exception as error:
        raise ValueError(f"ezpyp did not write it ({type(error).__name__}: {error})") from error
    location = record.outcome.location
    if location and ("/" in location[len(stem) :] or not location.startswith(f"{stem}.step")):
        raise ValueError(f"it is the status of another file ({location})")
    return record


def _record(content: Mapping[str, Any]) -> Record:
    lasting = {}
    for key, kinds in _LASTING.items():
        lasting[key] = value = content[key]
        if type(value) not in kinds:
            raise TypeError(f"{key} is {value!r}")
    for key in _FILES:
        lasting[key] = _files(content, key)
    lasting["status"] = Status(lasting["status"])
    lasting["dropped"] = content.get("dropped") is True
    lasting["gpu"] = _use(content.get("gpu"))
    lasting["log"] = tuple(lasting["log"]) if lasting["log"] else None
    lasting["missing"] = tuple(lasting["missing"])
    when = datetime.fromisoformat(content["when"]).timestamp()
    outcome = Outcome(step=-1, when=when, **lasting)
    return Record(name=str(content["name"]), fingerprint=str(content["fingerprint"]), outcome=outcome)


def _use(said: Any) -> Use | None:
    if said is None:
        return None
    if [type(each) in kinds for each, kinds in zip(said, _USE, strict=True)] != [True] * len(_USE):
        raise TypeError(f"gpu is {said!r}")
    from ezpyp.system.usage import Use  # few steps have any

    gpus, *amounts = said
    return Use(tuple(map(str, gpus)), *amounts)


def _files(content: Mapping[str, Any], key: str) -> tuple[Any, ...]:
    found = tuple(map(tuple, content.get(key, ())))
    if any(tuple(map(type, each)) != _FILES[key] for each in found):
        raise TypeError(f"{key} is {content[key]!r}")
    if key == "files" and any(not place.startswith("files/") or ".." in place.split("/") for place, *_ in found):
        raise ValueError("it names files elsewhere")
    return found
