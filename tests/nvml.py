"""A made-up NVML: nodes with GPUs for machines that have none."""

from __future__ import annotations

import subprocess
from pathlib import Path

#: What a script begins with that is to find the made-up driver.
DRIVER = """
from ezpyp.system import gpus
gpus._has_driver = lambda: True
"""


def build(folder: Path) -> Path:
    """Compile the library into a folder, and return it. LD_LIBRARY_PATH has programs find it there."""
    library = folder / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("fake_nvml.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
    return library
