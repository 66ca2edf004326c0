"""What is left of the journals of old runs: one line a run in `journal/archive.jsonl`, and no logs that nobody needs.

The first line is that of a journal. Then, the oldest run first, {"event": "RunArchived", "run": RUN, "started": …,
"ended": …, "last_sign": …}, with the events as journals have them; null for one that is not known.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterable
from typing import Any

from ezpyp.errors import StoreError
from ezpyp.folder import events
from ezpyp.folder.events import ARCHIVE, FOLDER, FORMAT, History, RunEnded, RunStarted
from ezpyp.system.files import link_whole, write_whole

#: Runs whose journals stay.
RECENT = 20


def runs_of(folder: str | os.PathLike[str]) -> list[tuple[str, History]]:
    """Every run of a cache folder by its name, the newest first, also those of which one line is left."""
    found = {run: _history(line) for run, line in _archived(folder).items()}
    found |= {run: events.history_of(path) for run, path in events.journals(folder).items()}
    return sorted(found.items(), reverse=True)


def compact(folder: str | os.PathLike[str], *, current: str, logged: Collection[str], recent: int = RECENT) -> int:
    """Archive all journals but the recent ones; how many that were. The folder is held by the run `current`.

    A kill leaves a journal beside its line, and the line is written anew. With the journals go the logs of runs that
    have no journal any more and are not in `logged`, the runs that records refer to.

    Raises:
        OSError, StoreError: the folder cannot be read or written, or the archive is of a newer format.
    """
    journals = [(run, path) for run, path in events.journals(folder).items() if run != current]
    kept, old = journals[: recent - 1], journals[recent - 1 :]
    if not old:
        return 0
    lines = _archived(folder)
    for run, path in old:
        history = events.history_of(path)
        lines[run] = {
            "event": "RunArchived",
            "run": run,
            "started": events.encode(history.started) if history.started else None,
            "ended": events.encode(history.ended) if history.ended else None,
            "last_sign": history.last_sign,
        }
    head = {"event": "Journal", "format": FORMAT, "run": "archive"}
    content = "".join(events.to_line(each) for each in [head, *(lines[run] for run in sorted(lines))])
    write_whole(os.path.join(folder, FOLDER, ARCHIVE), [content.encode()], sync=True)
    for _, path in old:
        _remove(path)
    _remove_logs(folder, {current, *logged, *(run for run, _ in kept)})
    return len(old)


def link(there: str, here: str, logs: Iterable[str]) -> None:
    """Give a folder the journals of another, and these of its logs. What is here already stays: names of runs differ.

    Raises:
        StoreError: the folder cannot be written.
    """
    journals = (os.path.relpath(path, there) for path in events.journals(there).values())
    for name in (*journals, *logs):
        path, copy = os.path.join(there, name), os.path.join(here, name)
        if os.path.exists(path) and not os.path.exists(copy):
            os.makedirs(os.path.dirname(copy), exist_ok=True)
            link_whole(path, copy, void="")


def _remove_logs(folder: str | os.PathLike[str], needed: Collection[str]) -> None:
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(os.path.join(folder, "logs")):
            if name.endswith((".log", ".progress")) and events.run_of_log(name) not in needed:
                _remove(os.path.join(folder, "logs", name))


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _archived(folder: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """The lines of the archive by run."""
    found: dict[str, dict[str, Any]] = {}
    try:
        with open(os.path.join(folder, FOLDER, ARCHIVE), encoding="utf-8", errors="replace") as file:
            for text in file:
                content = events.parse(text)
                if content.get("event") == "Journal" and content.get("format", FORMAT) > FORMAT:
                    raise StoreError(
                        f"{file.name} has format {content['format']}: this ezpyp cannot read it. Upgrade ezpyp."
                    )
                if content.get("event") == "RunArchived" and isinstance(content.get("run"), str):
                    found[content["run"]] = content
    except FileNotFoundError:
        pass
    return found


def _history(content: dict[str, Any]) -> History:
    started, ended = (events.decode(content[key]) if content.get(key) else None for key in ("started", "ended"))
    return History(
        started=started if isinstance(started, RunStarted) else None,
        ended=ended if isinstance(ended, RunEnded) else None,
        seconds=ended.seconds if isinstance(ended, RunEnded) else 0.0,
        last_sign=float(content.get("last_sign") or 0.0),
    )
