"""Which line of a script starts CUDA."""

from __future__ import annotations

from pathlib import Path

import pytest

from ezpyp.scripts.cuda import starts_cuda


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("import torch\nx = torch.ones(3).cuda()", 2),
        ("import torch\nok = torch.cuda.is_available()\nx = torch.ones(3, device='cuda:0')", 3),
        ("import torch\nd = torch.device('cuda')\nm = net.to(d)", 3),
        ("m = net.to(d)\ntorch.cuda.init()", 2),
        ("def f():\n    return x.cuda()\nclass C:\n    x = y.to('cuda')", 4),
        ("if True:\n    with a:\n        cupy.cuda.Device(0).use()", 3),
        ("def f():\n    return x.cuda()\n", None),
        ("import torch\ntorch.cuda.device_count()", None),
        ("x = (", None),
    ],
)
def test_the_line(tmp_path: Path, text: str, line: int | None) -> None:
    script = tmp_path / "study.py"
    script.write_text(text)
    assert starts_cuda(str(script)) == (f"study.py:{line}" if line else "")


def test_no_script_no_line(tmp_path: Path) -> None:
    assert starts_cuda("") == starts_cuda(str(tmp_path / "gone.py")) == ""
