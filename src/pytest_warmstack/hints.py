"""Where the last run found its kept servers, so that the next one can knock there first.

A hint is never believed: whoever uses it asks the server itself. It holds a password, so the
file can be read by its owner only.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from pytest_warmstack import originals

PAUSE: Final = 3600.0
"""Seconds between two times that something is done which need not be done in every run."""


@dataclass(frozen=True, kw_only=True)
class Hint:
    """The address and the looks of a kept server."""

    runtime: str
    fingerprint: str
    host: str
    port: int
    password: str
    id: str
    what: str
    since: float
    why: str = ""
    project: str = ""


class Hints:
    """The hints of one project, in a file in pytest's cache folder.

    Without a *folder* (pytest's cache is switched off) there are none, and none are written.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def read(self, server: str) -> Hint | None:
        """Return the hint for *server*, such as `redis`; None also when its file is no hint."""
        if self._folder is None:
            return None
        try:
            return Hint(**json.loads(self._path(self._folder, server).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, server: str, hint: Hint) -> None:
        """Leave *hint* for the next run; a folder that can't be written to is no error."""
        if self._folder is None or self.read(server) == hint:
            return
        path = self._path(self._folder, server)
        # Moved into place when complete: a reader sees the old hint or the new one.
        draft = path.with_suffix(f".{os.getpid()}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with os.fdopen(
                os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w"
            ) as file:
                json.dump(asdict(hint), file)
            draft.replace(path)
        except OSError:
            with suppress(OSError):
                draft.unlink()

    def is_due(self, what: str) -> bool:
        """Tell whether *what* was not done in this project for `PAUSE`, and note that it is now.

        Never, where nothing can be noted.
        """
        if self._folder is None:
            return False
        path = self._folder / f"{what}.stamp"
        try:
            with suppress(FileNotFoundError):
                if originals.now() - path.stat().st_mtime < PAUSE:
                    return False
            self._folder.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError:
            return False
        return True

    @staticmethod
    def _path(folder: Path, server: str) -> Path:
        return folder / f"{server}.json"
