"""What is kept of an error that a step raised: its text and the frames of the user, no longer than can travel."""

from __future__ import annotations

#: Characters of an error's text, and of a traceback, that are kept: they travel to rank 0 and stand in listings.
_MOST_NOTE = 2000
_MOST_TRACEBACK = 20_000


def one_line(error: BaseException, *, named: bool = True) -> str:
    """The text of an error, after the name of its class unless it is ours and says all."""
    try:
        text = str(error).strip()
    except Exception as another:
        text = f"(its text cannot be made: {type(another).__name__})"
    if named or not text:
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return _short(text, _MOST_NOTE)


def frames(error: BaseException, ours: int = 1) -> str:
    """The traceback as the user knows it: without so many of the outermost frames, which are `ours`."""
    inner = error.__traceback__
    for _ in range(ours):
        inner = inner.tb_next if inner is not None else None
    try:
        import traceback  # not even that is to be had where no file can be opened

        text = "".join(traceback.format_exception(type(error), error, inner)).rstrip()
    except Exception as another:
        return f"(its traceback cannot be made: {type(another).__name__})"
    return _short(text, _MOST_TRACEBACK)


def _short(text: str, most: int) -> str:
    """The beginning and the end of a text."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]} … ({len(text) - 2 * half:,} characters left out) … {text[-half:]}"
