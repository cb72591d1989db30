"""How to get a server: the kept one that the last run remembered, or one from a runtime.

Runtimes are imported when they are needed: a run that reuses its servers asks no engine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

from pytest_warmstack import originals
from pytest_warmstack.options import RuntimeName, Settings
from pytest_warmstack.servers.errors import RuntimeUnavailable
from pytest_warmstack.servers.identity import Label, Project, Service, fingerprint, write_private
from pytest_warmstack.servers.model import (
    C,
    NotOurs,
    NotReady,
    OwnRuntime,
    RunContext,
    Server,
    ServerInfo,
    ServerSpec,
)

CONNECT_TIMEOUT: Final = 1.0
"""Seconds that a remembered server may take to answer."""

WORK_INTERVAL: Final = 3600.0
"""Seconds between two runs that do the same occasional work, such as a clean-up."""

_ENGINE: Final = (
    *("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY"),
    *("TC_HOST", "TESTCONTAINERS_HOST_OVERRIDE", "TESTCONTAINERS_CONNECTION_MODE"),
    "TESTCONTAINERS_HUB_IMAGE_NAME_PREFIX",
)
"""The variables that decide which engine is used, how it is reached, and with which images."""

_OFFICIAL: Final = re.compile(
    r"((.+/)?library/|docker\.io/)?(postgres|redis)([:@].*)?"
    r"|(docker\.io/)?valkey/valkey([:@].*)?"
)
"""An official image, from Docker Hub or from a mirror that keeps its names."""

_REPOSITORIES: Final = {
    **dict.fromkeys(("postgres", "postgresql", "postgis", "pgvector"), Service.POSTGRES),
    **dict.fromkeys(("redis", "redis-stack", "redis-stack-server", "valkey"), Service.REDIS),
}
"""The service in images of these names."""


def asked(settings: Settings, environ: Mapping[str, str]) -> str:
    """Return a digest of everything that decides where servers run, and as what.

    Of a URL only its presence counts: the server of that service is not remembered. Whether an
    image is named counts too: embedded servers replace only the default one.
    """
    choices = (
        *(settings.runtime, settings.postgres_image, settings.redis_image),
        *(name for name in ("postgres_image", "redis_image") if name in settings.sources),
        *(settings.postgres_bin, settings.redis_bin),
        *("url" if url else "" for url in (settings.postgres_url, settings.redis_url)),
    )
    return fingerprint(*choices, *(environ.get(name, "") for name in _ENGINE))


class RememberedServers:
    """The kept servers of one project, each in a file in pytest's cache folder.

    Nothing is remembered without a *folder*, when pytest's cache is switched off. *asked* is what
    this run asks for: a server that was asked for otherwise is not found.
    """

    def __init__(self, folder: Path | None, asked: str = "") -> None:
        self._folder = folder
        self._asked = asked

    def connect(self, spec: ServerSpec[C], project: Project) -> tuple[Server[C] | None, str]:
        """Return the server for *spec* if it still answers, and why it is in its runtime."""
        found, why = self.read(spec.key)
        # The project is compared because who copies a checkout copies pytest's cache with it.
        if (
            found is None
            or spec.url
            or found.labels.get(Label.PROJECT) != project.id
            or found.fingerprint != spec.fingerprint(found.runtime)
        ):
            return None, ""
        try:
            client = spec.connect(found.endpoint, found.fingerprint, CONNECT_TIMEOUT)
        except (NotReady, NotOurs):
            return None, ""
        return found.ready(spec, client, "reused"), why

    def read(self, key: str) -> tuple[ServerInfo | None, str]:
        """Return what is remembered as *key*, such as `redis`; None if its file isn't valid."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            plain = json.loads(self._path(f"{key}.json").read_bytes())
            if plain["asked"] == self._asked:
                return ServerInfo.from_plain(plain["server"]), plain["why"]
        return None, ""

    def write(self, key: str, server: ServerInfo, why: str) -> None:
        """Remember *server* for the next run, unless the folder can't be written."""
        plain = {"asked": self._asked, "why": why, "server": server.to_plain()}
        with suppress(OSError):
            path, text = self._path(f"{key}.json"), json.dumps(plain)
            if not path.is_file() or path.read_bytes() != text.encode():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_private(path, text)

    def is_due(self, work: str) -> bool:
        """Return whether *work* was last done more than `WORK_INTERVAL` ago; note that it's due now.

        Returns False if that can't be noted: otherwise every run would do the work.
        """
        try:
            path = self._path(f"{work}.stamp")
            if path.exists() and originals.now() - path.stat().st_mtime < WORK_INTERVAL:
                return False
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        except OSError:
            return False
        return True

    def _path(self, name: str) -> Path:
        if self._folder is None:
            raise FileNotFoundError("pytest's cache is switched off")
        return self._folder / name


def make(name: str, run_context: RunContext) -> OwnRuntime:
    """Return the runtime called *name*, and import it.

    Raises `RuntimeUnavailable` if it can't be reached.
    """
    if name == RuntimeName.DOCKER:
        try:
            from pytest_warmstack.servers.docker import Docker
        except ImportError as error:
            raise RuntimeUnavailable.no_package(cause=str(error)) from error
        return Docker(run_context)
    from pytest_warmstack.servers.embedded import Embedded

    return Embedded(run_context)


def choose(
    name: RuntimeName,
    run_context: RunContext,
    specs: Sequence[ServerSpec[Any]],
    say: Callable[[str], None],
) -> tuple[OwnRuntime, str]:
    """Return the runtime for *specs*, which have no URL, and why the preferred one is not used.

    `auto` uses Docker if its engine answers and has the images or can pull them, else native
    processes. A runtime or an image that the user names is never replaced; but without an engine,
    an embedded server of the same version replaces an official image.

    Raises `RuntimeUnavailable`.
    """
    if name is RuntimeName.EXTERNAL:
        raise RuntimeUnavailable.no_url(title=specs[0].title, variable=specs[0].url_variable)
    for spec in specs:
        _check_image_name(spec)
    names = (RuntimeName.DOCKER, RuntimeName.EMBEDDED) if name is RuntimeName.AUTO else (name,)
    refusals: list[RuntimeUnavailable] = []
    for candidate in names:
        try:
            with ExitStack() as stack:
                runtime = make(candidate, run_context)
                stack.callback(runtime.close)
                runtime.check(specs, say)
                stack.pop_all()
        except RuntimeUnavailable as refusal:
            if name is not RuntimeName.AUTO:
                raise
            _check_images_replaceable(specs, refusal)
            refusals.append(refusal)
        else:
            return runtime, "; ".join(refusal.brief_reason for refusal in refusals)
    raise RuntimeUnavailable.nothing(refusals)


def _check_image_name(spec: ServerSpec[Any]) -> None:
    """Raise `RuntimeUnavailable` if the image is named for the other service."""
    service = _REPOSITORIES.get(re.split("[:@]", spec.image.rpartition("/")[2])[0])
    if service not in {None, spec.service}:
        raise RuntimeUnavailable.another_service(
            image=spec.image,
            found=str(service),
            cause="its name says so",
            title=spec.title,
            variable=spec.image_variable,
            source=spec.image_source,
        )


def _check_images_replaceable(
    specs: Sequence[ServerSpec[Any]], refusal: RuntimeUnavailable
) -> None:
    """Raise `RuntimeUnavailable` if the user names images that embedded servers don't replace."""
    named = [spec for spec in specs if spec.image_source]
    if refusal.image and named:
        raise refusal
    for spec in named:
        if not _OFFICIAL.fullmatch(spec.image):
            raise RuntimeUnavailable.no_embedded_image(
                image=spec.image, source=spec.image_source, refusal=refusal
            ) from refusal
