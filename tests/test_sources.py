"""Source files as lines, before anybody has loaded linecache."""

from __future__ import annotations

import builtins
import linecache
import os
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ezpyp.identity import sources

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if linecache was not loaded, nor anything read."""
    monkeypatch.delitem(sys.modules, "linecache")
    monkeypatch.setattr(sources, "_read", {})


TEXTS = [
    "",
    "x = 1",
    "x = 1\r\ny = '\x0c\x85\u2028'\rz = 2\n",
    "\ufeffx = 1\n",
    "# -*- coding: latin-1 -*-\nx = 'é'\n",
    "#!python\n# vim: set fileencoding=utf-8 :\nx = 'é'\n",
    "x = 1\n\n# coding: latin-1 says nothing here\ny = 'é'\n",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
@pytest.mark.usefixtures("early")
def test_lines_are_those_of_linecache(tmp_path: Path, text: str, encoding: str) -> None:
    path = tmp_path / "m.py"
    path.write_bytes(text.encode(encoding, "replace"))
    assert sources._lines(str(path), {}) == linecache.getlines(str(path))


@given(st.text(alphabet="a#\n\r\t\x0c\x1cé\u2028"))
def test_lines_are_split_as_linecache_splits_them(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    path = str(tmp_path_factory.mktemp("any") / "m.py")
    with open(path, "wb") as file:
        file.write(text.encode())
    assert sources._lines_of_file(path) in ([], linecache.getlines(path))


@pytest.mark.usefixtures("early")
def test_a_file_is_read_once_and_again_when_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.py"
    path.write_text("x = 1\n")
    assert sources._lines(str(path), {}) == ["x = 1\n"]
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "open", None)
        assert sources._lines(str(path), {}) == ["x = 1\n"]
    os.utime(path, ns=(0, 0))
    path.write_text("x = 2\n")
    assert sources._lines(str(path), {}) == ["x = 2\n"]
    assert "linecache" not in sys.modules


@pytest.mark.usefixtures("early")
def test_what_is_no_file_comes_from_linecache() -> None:
    linecache.cache["<prompt>"] = 5, None, ["x = 1\n"], "<prompt>"
    sys.modules["linecache"] = linecache
    try:
        assert sources._lines("<prompt>", {}) == ["x = 1\n"]
    finally:
        del linecache.cache["<prompt>"]
    assert sources._lines("<nothing>", {}) == []
