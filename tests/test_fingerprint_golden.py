"""The same digests under every Python that can be found.

Besides the one that runs the tests these are python3.11 to python3.14 on PATH, and those that EZPYP_TEST_PYTHONS names,
separated by colons. They need nothing installed.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

GOLDEN = Path(__file__).parent / "golden"


def _version(python: str) -> str | None:
    """What a Python calls its version, None where it does not run or is too old."""
    script = "import sys; print('%d.%d' % sys.version_info[:2]); sys.exit(sys.version_info < (3, 11))"
    try:
        done = subprocess.run([python, "-c", script], capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _pythons() -> dict[str, str]:
    """One interpreter for each version at hand."""
    named = os.environ.get("EZPYP_TEST_PYTHONS", "").split(os.pathsep)
    on_path = [shutil.which(f"python3.{minor}") for minor in (11, 12, 13, 14)]
    found = [(python, _version(python)) for python in (*on_path, *named, sys.executable) if python]
    return {version: python for python, version in found if version}


PYTHONS = _pythons()


@pytest.mark.parametrize("version", sorted(PYTHONS))
def test_digests_are_those_on_record(version: str) -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "random", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [PYTHONS[version], str(GOLDEN / "digests.py")],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert found == json.loads((GOLDEN / "digests.json").read_text())


def test_every_golden_digest_is_its_own() -> None:
    recorded: dict[str, dict[str, str]] = json.loads((GOLDEN / "digests.json").read_text())
    for digests in recorded.values():
        assert len(set(digests.values())) == len(digests)
