"""Where the last run found its kept servers, so that the next one can knock there first.

A hint is never believed: whoever uses it asks the server itself. And it counts only for a run that
asks for the same: where servers run may be decided differently once a setting has changed. It holds
a password, so the file can be read by its owner only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

from pytest_warmstack import originals
from pytest_warmstack.servers.identity import fingerprint
from pytest_warmstack.settings import Settings

PAUSE: Final = 3600.0
"""Seconds between two times that something is done which need not be done in every run."""

_ENGINE: Final = (
    *("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY"),
    *("TC_HOST", "TESTCONTAINERS_HOST_OVERRIDE", "TESTCONTAINERS_CONNECTION_MODE"),
    "TESTCONTAINERS_HUB_IMAGE_NAME_PREFIX",
)
"""The variables that decide which engine is asked, for which images, and how it is reached."""


def asked(settings: Settings, environ: Mapping[str, str]) -> str:
    """Return a digest of all that decides where servers run, and as what.

    Of URLs only whether there is one: with it, no server of that service is remembered. Of an image
    also whether it was named: only the default one is replaced by embedded servers.
    """
    choices = (
        *(settings.runtime, settings.postgres_image, settings.redis_image),
        *(name for name in ("postgres_image", "redis_image") if name in settings.sources),
        *(settings.postgres_bin, settings.redis_bin),
        *("url" if url else "" for url in (settings.postgres_url, settings.redis_url)),
    )
    return fingerprint(*choices, *(environ.get(name, "") for name in _ENGINE))


@dataclass(frozen=True, kw_only=True)
class RememberedServer:
    """The address and the looks of a kept server; *asked* is what the run had asked for."""

    runtime: str
    fingerprint: str
    host: str
    port: int
    password: str = field(repr=False)
    id: str
    what: str
    since: float
    why: str = ""
    project: str = ""
    asked: str = ""


class RememberedServers:
    """The hints of one project, in a file in pytest's cache folder.

    Without a *folder* (pytest's cache is switched off) there are none, and none are written.
    *asked* is what this run asks for: a hint that was written for something else is none.
    """

    def __init__(self, folder: Path | None, asked: str = "") -> None:
        self._folder = folder
        self._asked = asked

    def read(self, server: str) -> RememberedServer | None:
        """Return the hint for *server*, such as `redis`; None also when its file is no hint."""
        if self._folder is None:
            return None
        try:
            hint = RememberedServer(**json.loads(self._path(self._folder, server).read_bytes()))
        except (OSError, ValueError, TypeError):
            return None
        return hint if hint.asked == self._asked else None

    def write(self, server: str, hint: RememberedServer) -> None:
        """Leave *hint* for the next run; a folder that can't be written to is no error."""
        hint = replace(hint, asked=self._asked)
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
