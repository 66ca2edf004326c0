"""A made-up NVML: nodes with GPUs for machines that have none."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path

import pytest

#: What a script begins with that is to find the made-up driver.
DRIVER = """
from ezpyp.system import gpus
gpus._has_driver = lambda: True
"""


def use(library: Path, patch: pytest.MonkeyPatch) -> None:
    """Have this process find the library. `nvmlLib` is a private global of pynvml: if it is renamed, tests say so."""
    pynvml = pytest.importorskip("pynvml")
    patch.setattr(pynvml, "nvmlLib", ctypes.CDLL(str(library)))
    # It keeps the functions that it looked up, and counts who initialised it.
    patch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
    patch.setattr(pynvml, "_nvmlLib_refcount", 0)


def build(folder: Path) -> Path:
    """Compile the library into a folder, and return it. LD_LIBRARY_PATH has programs find it there."""
    library = folder / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("fake_nvml.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return library
