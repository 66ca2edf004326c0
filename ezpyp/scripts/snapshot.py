"""A copy of a script with the modules of the user's that it imports: `code/DIGEST` in the cache folder.

Imports inside functions, which have not happened yet, are found in the sources. Data is not copied.
"""

from __future__ import annotations

import ast
import json
import os
import sys
from collections.abc import Collection, Iterator, Mapping

from ezpyp.errors import InitializationError
from ezpyp.identity.modules import UserModules, source_path
from ezpyp.scripts import frozen
from ezpyp.scripts.frozen import SCRIPT, Source
from ezpyp.scripts.loading import Loaded, standing_in
from ezpyp.system.digests import blake2b
from ezpyp.system.files import write_whole

FOLDER = "code"
_OWN = UserModules()


def gather(loaded: Loaded, foreign: Collection[str]) -> dict[str, Source]:
    """The script that was loaded and the modules of the user's, by name; what they import follows.

    Args:
        foreign: names of modules that were there before the script was.
    """
    found = {SCRIPT: Source(origin=loaded.path, text=_bytes(loaded.path))}
    waiting = [name for name in sys.modules if name not in foreign]
    with standing_in(loaded.module):
        waiting += _imports(found[SCRIPT], SCRIPT)
        seen = {SCRIPT, "__mp_main__"}
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            path = _path_of(name)
            if path is not None:
                package = os.path.basename(path) == "__init__.py"
                found[name] = Source(origin=path, text=_bytes(path), package=package)
                waiting += _imports(found[name], name)
    return dict(sorted(found.items()))


def write(modules: Mapping[str, Source], folder: str) -> str:
    """Write a copy into a cache folder, unless it is there; gives its path.

    Raises:
        StoreError: the folder cannot be written.
    """
    target = os.path.join(folder, FOLDER, digest(modules))
    files = {name: _place(name, source) for name, source in modules.items()}
    entries = {
        name: {"file": files[name], "origin": each.origin, "package": each.package, "bytes": len(each.text)}
        for name, each in modules.items()
    }
    if os.path.exists(os.path.join(target, frozen.MANIFEST)):
        return target
    for name, each in modules.items():
        path = os.path.join(target, files[name])
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_whole(path, [each.text], sync=True)
    manifest = json.dumps({"format": frozen.FORMAT, "modules": entries}, ensure_ascii=False, indent=1)
    write_whole(os.path.join(target, frozen.MANIFEST), [manifest.encode()], sync=True)
    return target


def digest(modules: Mapping[str, Source]) -> str:
    """Names a copy: by the texts, and by where they were."""
    made = blake2b(digest_size=8)
    for name, each in sorted(modules.items()):
        for part in (name.encode(), os.fsencode(each.origin), each.text):
            made.update(len(part).to_bytes(8, "big"))
            made.update(part)
    return made.hexdigest()


def _place(name: str, source: Source) -> str:
    """Where a module lies in a copy: modules as Python looks for them, the script in a folder of its own."""
    if name == SCRIPT:
        return f"script/{os.path.basename(source.origin)}"
    parts = "modules/" + name.replace(".", "/")
    return f"{parts}/__init__.py" if source.package else f"{parts}.py"


def _path_of(name: str) -> str | None:
    """The source file of a module of the user's; None where it has none, or is another's."""
    try:
        if not _OWN.holds(name):
            return None
        module = sys.modules.get(name)
        path = source_path(name) if module is None else getattr(module, "__file__", None)
    except (ImportError, ValueError, AttributeError):
        return None
    return os.path.abspath(path) if path and path.endswith(".py") and os.path.isfile(path) else None


def _imports(source: Source, name: str) -> Iterator[str]:
    """The names of all modules that a source may import, wherever in it; some may be no modules."""
    try:
        tree = ast.parse(source.text)
    except (SyntaxError, ValueError):
        return
    around = name if source.package else name.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (part for alias in node.names for part in _prefixes(alias.name))
        elif isinstance(node, ast.ImportFrom):
            levels = around.split(".")[: len(around.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*filter(None, levels), *filter(None, [node.module])])
            yield from _prefixes(base)
            yield from (f"{base}.{alias.name}" for alias in node.names if base)


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: k + 1]) for k in range(len(parts))] if name else []


def _bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise InitializationError(f"{path} cannot be copied: {error.strerror or error}.") from None
