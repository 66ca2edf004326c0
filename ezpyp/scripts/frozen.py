"""Modules whose texts come from a copy, while everything else about them is that of the files that were copied.

`__file__`, tracebacks, sources and fingerprints name the files, so that what lies beside them is found, and results are
those of the files as they were.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import decode_source, spec_from_file_location
from types import CodeType
from typing import Any

from ezpyp.errors import StoreError
from ezpyp.tuples import NamedTuple

FORMAT = 1
#: Written last into a copy: without it there is none.
MANIFEST = "manifest.json"
#: Names the copy to processes that this one starts.
CODE = "EZPYP_CODE"
#: The name of the script in a manifest, as Python calls it.
SCRIPT = "__main__"


class Source(NamedTuple):
    """The text of a module at the time it was copied."""

    #: Where it was read, and is still said to be.
    origin: str
    text: bytes
    #: Whether it is a package's `__init__`.
    package: bool = False


def read(folder: str) -> dict[str, Source]:
    """The modules of a copy by name.

    Raises:
        StoreError: it is gone, torn, or of a newer ezpyp.
    """
    try:
        with open(os.path.join(folder, MANIFEST), encoding="utf-8") as file:
            content = json.load(file)
        if content["format"] > FORMAT:
            raise ValueError("it is of a newer ezpyp")
        found = {}
        for name, each in content["modules"].items():
            with open(os.path.join(folder, each["file"]), "rb") as file:
                text = file.read()
            if len(text) != each["bytes"]:
                raise ValueError(f"{each['file']} is torn")
            found[name] = Source(origin=each["origin"], text=text, package=each["package"])
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(f"The copy of the code in {folder} cannot be used: {error}. Submit again.") from None


#: What `install` was given: texts by path.
_texts: dict[str, bytes] = {}


def text_of(path: str) -> bytes | None:
    """The text that stands for a file in this process; None where it is the file's own."""
    return _texts.get(path)


def install(modules: Mapping[str, Source]) -> None:
    """From now on these modules, and whoever reads their sources, get the texts of the copy."""
    import linecache

    for source in modules.values():
        _texts[source.origin] = source.text
        # Without a time, linecache keeps it whatever becomes of the file.
        lines = decode_source(source.text).splitlines(keepends=True)
        linecache.cache[source.origin] = len(source.text), None, lines, source.origin
    sys.meta_path.insert(0, _Finder(modules))


class _Finder:
    def __init__(self, modules: Mapping[str, Source]) -> None:
        self._modules = modules

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        source = self._modules.get(name)
        if source is None or name == SCRIPT:
            return None
        folders = [os.path.dirname(source.origin)] if source.package else None
        loader = _Loader(name, source.origin)
        return spec_from_file_location(name, source.origin, loader=loader, submodule_search_locations=folders)


class _Loader(SourceFileLoader):
    """Loads the text of the copy, and no bytecode, which would be that of the file."""

    def get_data(self, path: str) -> bytes:
        return _texts[path] if path in _texts else super().get_data(path)

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = self.source_to_code(_texts[self.path], self.path)
        return code
