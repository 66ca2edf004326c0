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

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from ezpyp.identity.fingerprint import digest_value

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


def _arrays() -> dict[str, object]:
    """Values that need libraries: what is on record must hold for every version of them."""
    structured = np.array([(1, 2.5), (3, 4.5)], dtype=np.dtype([("a", "i1"), ("b", "f8")], align=True))
    return {
        "integers": np.arange(6).reshape(2, 3),
        "scalar": np.float32(0.5),
        "objects": np.array([{"a": 1}, None], dtype=object),
        "structured": structured,
        "dates": np.array(["2026-01-01"], "M8[D]"),
        "text": np.array(["a", "bc"]),
        "large": np.arange(100_000, dtype="f8"),
        "large bytes": bytes(100_000),
        "large text": "ä" * 100_000,
        "table": pa.table({"a": [1, None], "b": ["x", None], "c": [True, False], "d": [[1], None]}),
        "series": pd.Series([1.5, 2.5], name="a"),
        "stamp": pd.Timestamp("2026-01-01T12:00:00", tz="UTC"),
    }


def test_digests_of_arrays_are_those_on_record() -> None:
    found = {name: digest_value(value).hex() for name, value in _arrays().items()}
    assert found == json.loads((GOLDEN / "arrays.json").read_text())
