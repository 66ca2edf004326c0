"""The README is a test: its scripts run, its commands work, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.conftest import CHECKOUT

if TYPE_CHECKING:
    from tests.conftest import Launcher

README = (CHECKOUT / "README.md").read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A fenced block. One that `continues` runs after the block before it, in the same folder."""

    language: str
    continues: bool
    text: str
    line: int


def blocks(language: str) -> list[Block]:
    found = re.finditer(r"^```(\w+)( continues)?\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [
        Block(language=f[1], continues=bool(f[2]), text=f[3], line=README.count("\n", 0, f.start()) + 1)
        for f in found
        if f[1] == language
    ]


SCRIPTS = blocks("python")
QUICK_START, SWEEP = SCRIPTS[:2]
COMMANDS = [
    line.removeprefix("$ ") for block in blocks("console") for line in block.text.splitlines() if line.startswith("$ ")
]


def run(launcher: Launcher, ranks: int, script: str) -> str:
    done = launcher.run(ranks, script)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_fence_is_a_block_with_a_language() -> None:
    known = [*SCRIPTS, *blocks("console")]
    assert len(SCRIPTS) >= 4
    assert len(re.findall(r"^```", README, re.MULTILINE)) == 2 * len(known)


def test_the_quick_start_is_the_simple_example() -> None:
    example = CHECKOUT / "examples" / "simple" / "simple_pipeline.py"
    assert QUICK_START.text == example.read_text(encoding="utf-8")


@pytest.mark.parametrize("place", range(len(SCRIPTS)), ids=[f"line_{block.line}" for block in SCRIPTS])
def test_script(python: Launcher, place: int) -> None:
    first = place
    while SCRIPTS[first].continues:
        first -= 1
    for block in SCRIPTS[first : place + 1]:
        run(python, 0, block.text)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_quick_start_on_ranks(mpirun: Launcher, ranks: int) -> None:
    assert run(mpirun, ranks, QUICK_START.text).count("Pipeline result for gamma: 1.125") == ranks


def test_the_sweep_writes_the_same_file_on_ranks(mpirun: Launcher) -> None:
    file = mpirun.folder / "walks.csv"
    run(mpirun, 0, SWEEP.text)
    alone = file.read_text(encoding="utf-8")
    subprocess.run(["rm", "-r", "walks_cache", "walks.csv"], cwd=mpirun.folder, check=True)
    run(mpirun, 2, SWEEP.text)
    assert alone.startswith("length,mean distance\n100,")
    assert file.read_text(encoding="utf-8") == alone


def test_commands_work_in_the_order_given(mpirun: Launcher) -> None:
    (mpirun.folder / "script.py").write_text(QUICK_START.text, encoding="utf-8")
    ezpyp = [str(mpirun.bin / "python"), "-c", "from ezpyp.cli.main import main; main()"]
    for command in COMMANDS:
        program, *arguments = shlex.split(command)
        done = subprocess.run(
            [*(ezpyp if program == "ezpyp" else [program]), *arguments],
            cwd=mpirun.folder,
            env=mpirun.environment(),
            capture_output=True,
            text=True,
            check=False,
            input="y\n",  # what `clean` asks
            timeout=60,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def test_links_lead_to_files() -> None:
    targets = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert targets
    assert [target for target in targets if not (CHECKOUT / target).exists()] == []
