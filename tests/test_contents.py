"""What is remembered of files: when a digest is trusted, when a file is read again, and what a broken memory costs."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from ezpyp.errors import InitializationError
from ezpyp.identity import contents
from ezpyp.identity.contents import Contents, content_of

SECOND = 1_000_000_000


def later(seconds: float = 10.0) -> Any:
    """A clock that is ahead, so that files made just now were made long ago."""
    return lambda: time.time_ns() + int(seconds * SECOND)


class Reads:
    """Counts what is read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths: list[str] = []

        def counted(path: str) -> str:
            self.paths.append(os.path.basename(path))
            return content_of(path)

        monkeypatch.setattr(contents, "content_of", counted)

    def take(self) -> list[str]:
        taken, self.paths = self.paths, []
        return taken


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "obs.nc"
    path.write_bytes(b"one")
    return path


def look(folder: Path, file: Path, **options: Any) -> str:
    """One run's look at a file."""
    clock = options.pop("clock", later())
    seen = Contents(str(folder), clock=clock)
    found = seen.digest(str(file), **options)
    seen.save()
    return found


def test_a_settled_file_is_read_once(tmp_path: Path, file: Path, reads: Reads) -> None:
    first = look(tmp_path, file)
    assert reads.take() == ["obs.nc"]
    assert look(tmp_path, file) == first
    assert reads.take() == []


def test_a_file_is_read_once_in_a_run(file: Path, reads: Reads) -> None:
    seen = Contents(clock=time.time_ns)
    assert seen.digest(str(file)) == seen.digest(str(file), verify="always") == seen.digest(str(file))
    assert reads.take() == ["obs.nc"]


def test_a_file_that_was_read_within_two_seconds_of_its_change_is_read_again(
    tmp_path: Path, file: Path, reads: Reads
) -> None:
    """Within one tick of the file system's clock a second change leaves all that stat tells as it was."""
    former = look(tmp_path, file, clock=later(1.9))
    file.write_bytes(b"two")
    pretend_unchanged(tmp_path, file)
    assert look(tmp_path, file) != former
    assert reads.take() == ["obs.nc", "obs.nc"]


def test_what_is_trusted_is_not_looked_into(tmp_path: Path, file: Path, reads: Reads) -> None:
    former = look(tmp_path, file, clock=later(2.1))
    file.write_bytes(b"two")
    pretend_unchanged(tmp_path, file)
    assert look(tmp_path, file) == former
    assert look(tmp_path, file, verify="always") == content_of(str(file)) != former
    assert reads.take() == ["obs.nc", "obs.nc"]


def pretend_unchanged(folder: Path, file: Path) -> None:
    """Let the memory say what stat says now."""
    path = folder / contents.MEMORY_FILE
    memory = json.loads(path.read_text())
    now = file.stat()
    memory["files"][str(file)][:4] = [now.st_size, now.st_mtime_ns, now.st_ctime_ns, now.st_ino]
    path.write_text(json.dumps(memory))


def test_an_equal_size_and_a_restored_time_do_not_hide_a_change(tmp_path: Path, file: Path) -> None:
    former, status = look(tmp_path, file), file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert look(tmp_path, file) != former


@pytest.mark.parametrize("change", ["touch", "replace", "mode"])
def test_equal_content_is_equal_whatever_happened_to_the_file(
    tmp_path: Path, file: Path, reads: Reads, change: str
) -> None:
    former = look(tmp_path, file)
    if change == "touch":
        os.utime(file)
    elif change == "replace":
        (tmp_path / "new").write_bytes(b"one")
        (tmp_path / "new").replace(file)
    else:
        file.chmod(0o600)
    assert look(tmp_path, file) == former
    assert reads.take() == ["obs.nc", "obs.nc"]
    assert look(tmp_path, file) == former
    assert reads.take() == []


def test_the_memory_is_written_only_when_it_changes(tmp_path: Path, file: Path) -> None:
    look(tmp_path, file)
    before = (tmp_path / contents.MEMORY_FILE).stat().st_mtime_ns
    look(tmp_path, file)
    assert (tmp_path / contents.MEMORY_FILE).stat().st_mtime_ns == before
    os.utime(file, ns=(1, 1))
    look(tmp_path, file)
    assert (tmp_path / contents.MEMORY_FILE).stat().st_mtime_ns > before


def test_files_that_nobody_reads_any_more_are_forgotten(tmp_path: Path, file: Path) -> None:
    look(tmp_path, file)
    (tmp_path / "other").write_bytes(b"1")
    look(tmp_path, tmp_path / "other")
    assert list(json.loads((tmp_path / contents.MEMORY_FILE).read_text())["files"]) == [str(tmp_path / "other")]


BROKEN = {
    "empty": b"",
    "torn": b'{"format": 1, "files": {"/a": [1, 2',
    "foreign": b"\x00\xff",
    "list": b"[]",
    "newer": b'{"format": 2, "files": {}}',
    "short note": b'{"format": 1, "files": {"PATH": [3]}}',
    "strange note": b'{"format": 1, "files": {"PATH": ["3", 1, 1, 1, 1, "xxh3-128:0"]}}',
    "no files": b'{"format": 1}',
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_memory_is_made_anew(tmp_path: Path, file: Path, reads: Reads, kind: str) -> None:
    former = look(tmp_path, file)
    (tmp_path / contents.MEMORY_FILE).write_bytes(BROKEN[kind].replace(b"PATH", os.fsencode(file)))
    assert look(tmp_path, file) == former
    assert look(tmp_path, file) == former
    assert reads.take() == ["obs.nc", "obs.nc"]


def test_names_that_are_no_text_are_remembered(tmp_path: Path, reads: Reads) -> None:
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))
    file.write_bytes(b"1")
    look(tmp_path, file)
    reads.take()
    look(tmp_path, file)
    assert reads.take() == []


def test_a_memory_that_cannot_be_written_is_no_error(tmp_path: Path, file: Path) -> None:
    (tmp_path / contents.MEMORY_FILE).mkdir()
    assert look(tmp_path, file) == content_of(str(file))


def test_large_files_are_read_in_pieces(tmp_path: Path) -> None:
    import xxhash

    data = os.urandom((1 << 20) + 17)
    (tmp_path / "large").write_bytes(data)
    assert content_of(str(tmp_path / "large")) == f"xxh3-128:{xxhash.xxh3_128_hexdigest(data)}"


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, text in {
        "gone": "gone is not there. Make it before the run; where a step makes it, let that step return File(path)",
        "": "is a folder. Give it as Tree",
        "pipe": "pipe is neither file nor folder",
    }.items():
        with pytest.raises(InitializationError, match=text.replace("(", r"\(").replace(")", r"\)")):
            Contents().digest(str(tmp_path / name))
