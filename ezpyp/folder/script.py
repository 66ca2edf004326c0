"""The script that made a folder: what it was started with, and its classes, which results may be made of."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ezpyp.errors import StoreError
from ezpyp.folder.events import last_run
from ezpyp.scripts import loading

if TYPE_CHECKING:
    from ezpyp.scripts.loading import Loaded


class Script:
    """Of one folder. It is loaded at most once, and only where a result needs it."""

    def __init__(self, folder: str, path: str) -> None:
        """`path` is "" where the folder does not say."""
        self._folder, self._path = folder, path

    def arguments(self) -> tuple[str, ...]:
        """What it was given on its command line when it last ran."""
        started = last_run(self._folder).started
        words = started.command if started else ()
        name = os.path.basename(self._path)
        place = next((k for k, word in enumerate(words) if os.path.basename(word) == name), len(words))
        return words[place + 1 :]

    def value(self, name: str, decode: Callable[[], Any]) -> Any:
        """What `decode` gives, the result of the step of that name; with the script loaded where it needs that.

        Raises:
            StoreError: the script cannot be run.
        """
        try:
            return decode()
        except Exception as error:
            if not self._has(error):
                raise
        try:
            module = self._loaded.module
        except Exception as error:
            raise StoreError(
                f"The result of '{name}' has a class of its script, {self._path}, and that cannot be run: "
                f"{type(error).__name__}: {error}. Mend the script, or read the result in it."
            ) from error
        with loading.standing_in(module):
            return decode()

    @cached_property
    def _loaded(self) -> Loaded:
        return loading.load(self._path, self.arguments())

    def _has(self, error: BaseException) -> bool:
        """Whether what is missing may be found by running the script: a class of its own or of a module beside it."""
        main = getattr(sys.modules.get("__main__"), "__file__", None)
        if not self._path or (main is not None and os.path.abspath(main) == self._path):
            return False
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ModuleNotFoundError) or (isinstance(cause, AttributeError) and "main__" in str(cause)):
                return True
            cause = cause.__cause__ or cause.__context__
        return False
