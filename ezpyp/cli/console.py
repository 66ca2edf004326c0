"""What verbs of the command line share: arguments, and how answers are written."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ezpyp.errors import EzpypError
from ezpyp.identity.outline import field_names
from ezpyp.model.outcomes import Status
from ezpyp.model.settings import ON_CHANGE
from ezpyp.scripts import loading

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

_Verb = TypeVar("_Verb", bound="Callable[..., Any]")

FOLDER = click.argument("folder", type=click.Path(exists=True, file_okay=False))
STEP = click.argument("step")
WHERE = click.option(
    "--where", multiple=True, metavar="ARGUMENT=VALUE", help="Only steps with this argument; may be repeated."
)
ALL = click.option("--all", "every", is_flag=True, help="Each step by itself, also of very large families.")
TAKE_OVER = click.option(
    "--take-over", is_flag=True, help="Even if another run holds the cache; that one stops when it notices."
)
SHARE = click.option(
    "--share", metavar="I/N", help="Only the I-th of N shares, in a folder of its own: for arrays of jobs."
)


def output_option(*formats: str) -> Callable[[_Verb], _Verb]:
    return click.option(
        "--output", type=click.Choice(formats), default=formats[0], show_default=True, help="How it is written."
    )


def part_options(verb: _Verb) -> _Verb:
    """What to do where the plan changed, and which part of it is asked for."""
    changed = (
        "What to do where the plan changed: refuse (default), extend: steps may join and leave, rerun what changed."
    )
    for option in (
        click.option("--from", "from_", multiple=True, metavar="STEP", help="Only this step and what comes after it."),
        click.option("--until", multiple=True, metavar="STEP", help="Only this step and what comes before it."),
        click.option("--only", multiple=True, metavar="STEP", help="Only this step; may be repeated."),
        click.option("--on-change", type=click.Choice(ON_CHANGE), help=changed),
    ):
        verb = option(verb)
    return verb


@contextmanager
def environment(wishes: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Tell pipelines of scripts what is wished, in EZPYP_ variables, which it gives; what is empty is left as it is."""
    texts = {key: value if isinstance(value, str) else " ".join(value or ()) for key, value in wishes.items()}
    former = dict(os.environ)
    variables = {f"EZPYP_{key.strip('_').upper()}": text for key, text in texts.items() if text}
    os.environ.update(variables)
    try:
        yield variables
    finally:
        os.environ.clear()
        os.environ.update(former)


def load(path: str, args: Sequence[str]) -> loading.Loaded:
    """Look at a script; its errors are shown as Python would show them."""
    try:
        return loading.load(path, args)
    except EzpypError:
        raise
    except Exception as error:
        print(loading.traceback_of(error, os.path.abspath(path)), end="", file=sys.stderr)
        sys.exit(1)


def size_text(size: int) -> str:
    """`12 bytes`, `3.4 kB`, `1.2 GB`."""
    for unit, power in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= power:
            return f"{size / power:,.1f} {unit}"
    return f"{size} bytes"


def say(pieces: Iterable[str]) -> None:
    """Write to standard output whatever it can encode. A reader that leaves early (`| head`) ends the command."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        for piece in pieces:
            sys.stdout.write(piece.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer has no reader either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(0)


def say_json(value: Any) -> None:
    say([json.dumps(jsonable(value), ensure_ascii=False, indent=2), "\n"])


def jsonable(value: Any) -> Any:
    """The value as JSON can hold it: arrays and tables as lists, what has named fields as objects, files as paths, the
    unknown as its repr.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return int(value) if isinstance(value, Status) else value
    if isinstance(value, Mapping):
        return {str(key): jsonable(each) for key, each in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return jsonable(value._asdict())
    if (names := field_names(value)) is not None:
        return {name: jsonable(getattr(value, name)) for name in names}
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        return [jsonable(each) for each in value]
    if type(value).__name__ == "DataFrame" and hasattr(value, "to_json"):
        return json.loads(value.to_json(orient="records", default_handler=str))
    if hasattr(value, "tolist"):
        return jsonable(value.tolist())
    return repr(value)


def few(what: str, texts: Iterable[str], most: int = 10) -> Iterator[str]:
    listed = list(texts)
    yield from (f"  {what}: {text}\n" for text in listed[:most])
    if len(listed) > most:
        yield f"  and {len(listed) - most:,} more {what}\n"
