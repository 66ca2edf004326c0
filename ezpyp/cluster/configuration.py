"""Settings of sites, users and projects: `ezpyp.toml`, or `[tool.ezpyp]` in pyproject.toml.

    account = "physics"
    profile = "cpu"                       # the one that counts where none is named

    [profiles.cpu]
    partition = "standard"
    setup = ["module load openmpi", "source ~/study-env/bin/activate"]

What is said more particularly counts: a flag, an EZPYP_ variable, the project's file (the nearest above the script),
the user's (~/.config/ezpyp.toml), the site's (/etc/ezpyp.toml, or what EZPYP_SITE names). In a file a profile counts
before what stands outside of profiles.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ezpyp.errors import ConfigurationError

NAME = "ezpyp.toml"
SITE = "/etc/ezpyp.toml"

#: What can be said, and of which kind it is.
KEYS: Mapping[str, type] = {
    "account": str,
    "partition": str,
    "qos": str,
    "constraint": str,
    "nodes": int,
    "ntasks_per_node": int,
    "cpus_per_task": int,
    "gpus_per_node": int,
    "mem": str,
    "time": str,
    "launcher": str,
    "helpers": str,
    "scratch": str,
    "setup": list,
    "sbatch": list,
}
_KINDS = {str: "a text", int: "a number, 1 or more", list: "a list of texts"}
#: Beside them, on the outermost level of a file.
_ABOUT = ("profile", "profiles")


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """What was said, and where: `--time`, `EZPYP_TIME` or `/home/eve/ezpyp.toml:12`."""

    value: Any
    where: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A file of settings."""

    path: str
    profile: Value | None
    #: By the profile they are of; "" for those outside of profiles.
    values: Mapping[str, Mapping[str, Value]]


def settle(
    flags: Mapping[str, Any], *, start: str, profile: str | None = None, environ: Mapping[str, str] = os.environ
) -> dict[str, Value]:
    """What counts, of everything that was said anywhere; keys of which nothing was said are not in it.

    Args:
        flags: what the command line says; None for what it does not. start: the folder above which the project is.

    Raises:
        ConfigurationError: a key, kind or profile that is not known, with file and line; or a file that is not TOML.
    """
    sources = list(_sources(start, environ))
    chosen = profile or environ.get("EZPYP_PROFILE") or next((s.profile.value for s in sources if s.profile), "")
    if chosen and not any(chosen in source.values for source in sources):
        raise ConfigurationError(_no_profile(chosen, profile, environ, sources))
    found: dict[str, Value] = {}
    for source in reversed(sources):
        found |= source.values.get("", {})
        found |= source.values.get(chosen, {})
    for key, kind in KEYS.items():
        name = f"EZPYP_{key.upper()}"
        if text := environ.get(name):
            found[key] = Value(value=_read(text, kind, name), where=name)
    found |= {
        key: Value(value=value, where=f"--{key.replace('_', '-')}")
        for key, value in flags.items()
        if value is not None and value != ()
    }
    return found


def project_file(start: str) -> str | None:
    """The nearest ezpyp.toml, or pyproject.toml with [tool.ezpyp], in a folder or above it."""
    folder = os.path.abspath(start)
    while True:
        path = os.path.join(folder, NAME)
        if os.path.isfile(path):
            return path
        path = os.path.join(folder, "pyproject.toml")
        if os.path.isfile(path) and "ezpyp" in _load(path).get("tool", {}):
            return path
        if folder == os.path.dirname(folder):
            return None
        folder = os.path.dirname(folder)


def read(path: str) -> Source:
    """One file, checked.

    Raises:
        ConfigurationError: it says something that is not known, or not of its kind.
    """
    content, table = _load(path), ""
    if os.path.basename(path) == "pyproject.toml":
        content, table = content.get("tool", {}).get("ezpyp", {}), "tool.ezpyp"
    text = _text(path)
    profiles = content.get("profiles", {})
    if not isinstance(profiles, dict):
        raise ConfigurationError(f"{_place(text, path, table, 'profiles')}: write [profiles.NAME].")
    values = {"": _values(content, text, path, table, (*KEYS, *_ABOUT))}
    for name, each in profiles.items():
        within = f"{table}.profiles.{name}".lstrip(".")
        if not isinstance(each, dict):
            raise ConfigurationError(f"{_place(text, path, within, name)}: write [profiles.{name}].")
        values[name] = _values(each, text, path, within, (*KEYS,))
    chosen = content.get("profile")
    where = _place(text, path, table, "profile")
    if chosen is not None and not isinstance(chosen, str):
        raise ConfigurationError(f"{where}: profile = {chosen!r} is not a text.")
    return Source(path=path, profile=Value(value=chosen, where=where) if chosen else None, values=values)


def initial(environ: Mapping[str, str]) -> str:
    """A file of settings for what is loaded now, for people to go on from."""
    setup = []
    if modules := [each for each in environ.get("LOADEDMODULES", "").split(":") if each]:
        setup.append(f"module load {' '.join(modules)}")
    if environ.get("VIRTUAL_ENV"):
        setup.append(f"source {environ['VIRTUAL_ENV']}/bin/activate")
    elif environ.get("CONDA_PREFIX"):
        hook = 'eval "$(conda shell.bash hook)"'
        setup += [hook, f"conda activate {environ['CONDA_PREFIX']}"]
    lines = [
        "# Settings for `ezpyp submit` of scripts here or below. A flag or an EZPYP_ variable counts before them.",
        "",
        "# What a job does before it starts Python. Without it, it uses the interpreter that runs `ezpyp submit`.",
        f"setup = {_toml(setup)}" if setup else '# setup = ["module load …", "source …/bin/activate"]',
        "",
        *(
            f"{key} = {_toml(environ[name])}" if environ.get(name) else f"# {key} = {_toml('…')}"
            for key, name in (("account", "SBATCH_ACCOUNT"), ("partition", "SBATCH_PARTITION"))
        ),
        '# time = "4h"',
        "",
        "# [profiles.gpu]                 used with --profile gpu",
        "# gpus_per_node = 4",
    ]
    return "\n".join(lines) + "\n"


def _toml(value: str | list[str]) -> str:
    """A text, or a list of texts, as TOML: JSON's strings are basic strings."""
    import json

    return json.dumps(value, ensure_ascii=False)


def _values(content: Mapping[str, Any], text: str, path: str, table: str, known: tuple[str, ...]) -> dict[str, Value]:
    found = {}
    for key, value in content.items():
        where = _place(text, path, table, key)
        if key not in known:
            raise ConfigurationError(f"{where}: {key} is not known. {_nearest(key, known)}")
        if key not in KEYS:
            continue
        if not _fits(value, KEYS[key]):
            raise ConfigurationError(f"{where}: {key} = {value!r} is not {_KINDS[KEYS[key]]}.")
        found[key] = Value(value=value, where=where)
    return found


def _fits(value: Any, kind: type) -> bool:
    if kind is list:
        return isinstance(value, list) and all(isinstance(each, str) for each in value)
    return type(value) is kind and (type(value) is not int or value >= 1)


def _read(text: str, kind: type, name: str) -> Any:
    """The value of a variable: of lists, the words of the text."""
    if kind is int and not (text.isdecimal() and int(text) >= 1):
        raise ConfigurationError(f"{name}={text}: give {_KINDS[int]}.")
    return int(text) if kind is int else text.split("\n") if kind is list else text


def _sources(start: str, environ: Mapping[str, str]) -> Iterator[Source]:
    """The most particular first."""
    home = environ.get("XDG_CONFIG_HOME") or os.path.join(environ.get("HOME", ""), ".config")
    for path in dict.fromkeys((project_file(start), os.path.join(home, NAME), environ.get("EZPYP_SITE", SITE))):
        if path and os.path.isfile(path):
            yield read(path)


def _load(path: str) -> dict[str, Any]:
    import tomllib

    try:
        return tomllib.loads(_text(path))
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        raise ConfigurationError(f"{path}{':' + line[1] if line else ''}: this is not TOML: {error}.") from None


def _text(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.") from None


def _place(text: str, path: str, table: str, key: str) -> str:
    """`FILE:LINE` of a key, for people: where its name stands at the beginning of a line of its table."""
    inside = not table
    for number, line in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*\[+\s*([^\]]*?)\s*\]", line)
        if header:
            name = header[1].replace('"', "").replace(" ", "")
            inside = name == table
            if name == f"{table}.{key}".lstrip("."):
                return f"{path}:{number}"
        elif inside and re.match(rf"""\s*["']?{re.escape(key)}["']?\s*[=.]""", line):
            return f"{path}:{number}"
    return path


def _nearest(word: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(word.replace("-", "_"), known, n=1)
    return f"Did you mean {near[0]}?" if near else f"There are: {', '.join(known)}."


def _no_profile(chosen: str, flag: str | None, environ: Mapping[str, str], sources: list[Source]) -> str:
    named = next((source.profile.where for source in sources if source.profile), "")
    where = f"--profile {chosen}" if flag else "EZPYP_PROFILE" if environ.get("EZPYP_PROFILE") else named
    known = tuple(dict.fromkeys(name for source in sources for name in source.values if name))
    if not known:
        return f"{where}: there is no profile '{chosen}', nor any other. Write [profiles.{chosen}] into {NAME}."
    return f"{where}: there is no profile '{chosen}'. {_nearest(chosen, known)}"
