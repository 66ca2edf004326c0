"""Whether hosts see one folder: what is looked at, for how long, and what is said."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

from ezpyp.folder import lock, sharing

if TYPE_CHECKING:
    from pathlib import Path


def test_the_folder_that_is_held_is_seen(tmp_path: Path) -> None:
    with lock.acquire(str(tmp_path)) as held:
        assert sharing.sees(str(tmp_path), held.token)
    assert not sharing.sees(str(tmp_path), held.token)


def test_one_that_another_run_left_at_that_path_is_not(tmp_path: Path) -> None:
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    with lock.acquire(str(tmp_path / "here")) as here, lock.acquire(str(tmp_path / "there")):
        assert not sharing.sees(str(tmp_path / "there"), here.token)
    assert not sharing.sees(str(tmp_path / "nowhere"), here.token)


def test_a_file_system_of_this_host_alone_is_not_waited_for(tmp_path: Path) -> None:
    began = time.monotonic()
    assert not sharing.sees(str(tmp_path), "0" * 16)
    assert time.monotonic() - began < sharing.PATIENCE / 10


def test_what_another_host_wrote_may_be_late(tmp_path: Path) -> None:
    late = threading.Timer(0.2, lambda: (tmp_path / lock.NAME).write_text("token"))
    late.start()
    assert sharing.sees(str(tmp_path), "token", patience=20)
    late.join()


def test_each_host_is_named_once_with_a_path_that_differs() -> None:
    ranks = [(4, "n1", "/scratch/c"), (8, "n2", "/home/c"), (9, "n2", "/home/c")]
    text = sharing.refusal(ranks, "n0", "/scratch/c")
    assert (
        "the cache folder /scratch/c of rank 0 (n0): rank 4 (n1); rank 8 (n2), where it would be /home/c cannot" in text
    )
    assert "rank 9" not in text
    many = sharing.refusal([(k, f"n{k}", "/c") for k in range(1, 9)], "n0", "/c")
    assert "rank 3 (n3) and 5 more hosts cannot" in many
