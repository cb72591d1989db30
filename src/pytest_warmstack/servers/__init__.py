"""How to get a server: the kept one that the last run used, or one from a runtime.

Runtimes are imported when they are needed: a run that reuses its servers sends no request to an
engine.
"""

from __future__ import annotations

import json
import os
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
    Endpoint,
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
"""Seconds between two runs that do the same occasional work, such as the clean-up."""

ENGINE: Final = (
    *("DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_CONFIG", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY"),
    *("TC_HOST", "TESTCONTAINERS_HOST_OVERRIDE", "TESTCONTAINERS_CONNECTION_MODE"),
    "TESTCONTAINERS_HUB_IMAGE_NAME_PREFIX",
)
"""The variables that decide which engine is used, how to connect to it, and which images."""

_OFFICIAL: Final = (
    r"((.+/)?library/|docker\.io/)?(postgres|redis)([:@].*)?"
    r"|(docker\.io/)?valkey/valkey([:@].*)?"
)
"""Matches an official image, from Docker Hub or from a mirror with the same names."""

_REPOSITORIES: Final = {
    **dict.fromkeys(("postgres", "postgresql", "postgis", "pgvector"), Service.POSTGRES),
    **dict.fromkeys(("redis", "redis-stack", "redis-stack-server", "valkey"), Service.REDIS),
}
"""The service of images with these names."""


def asked(settings: Settings, environ: Mapping[str, str]) -> str:
    """Return a digest of everything that decides where and how servers run.

    Of a URL only its presence counts, since external servers are not remembered. It also counts
    whether the user names an image: embedded servers replace only the default image.
    """
    choices = (
        *(settings.runtime, settings.postgres_image, settings.redis_image),
        *(name for name in ("postgres_image", "redis_image") if name in settings.sources),
        *(settings.postgres_bin, settings.redis_bin),
        *("url" if url else "" for url in (settings.postgres_url, settings.redis_url)),
    )
    return fingerprint(*choices, *(environ.get(name, "") for name in ENGINE))


class RememberedServers:
    """The kept servers of one project, each in a file in pytest's cache folder.

    Without a *folder*, because pytest's cache is switched off, nothing is remembered. *asked* is
    the digest of this run's settings: servers of runs with another digest are not found.
    """

    def __init__(self, folder: Path | None, asked: str = "") -> None:
        self._folder = folder
        self._asked = asked

    def connect(
        self, spec: ServerSpec[C], project: Project, *, looks: bool = False
    ) -> tuple[Server[C] | None, str]:
        """Return the server for *spec* if it still answers, and why its runtime was chosen.

        With *looks*, the connection doesn't count as a use until its method `use` is called.
        """
        found, why = self.read(spec.key)
        # Compare the project too: a copied checkout contains a copy of pytest's cache.
        if (
            found is None
            or spec.url
            or found.labels.get(Label.PROJECT) != project.id
            or found.fingerprint != spec.fingerprint(found.runtime)
        ):
            return None, ""
        try:
            endpoint = found.endpoint.replace(looks=looks)
            client = spec.connect(endpoint, found.fingerprint, CONNECT_TIMEOUT)
        except (NotReady, NotOurs):
            return None, ""
        return found.ready(spec, client, "reused"), why

    def read(self, key: str) -> tuple[ServerInfo | None, str]:
        """Return the server remembered as *key*, such as `redis`; None if its file isn't valid."""
        with suppress(OSError, ValueError, TypeError, KeyError):
            plain = json.loads(self._path(f"{key}.json").read_bytes())
            if plain["asked"] == self._asked:
                return ServerInfo.from_plain(plain["server"]), plain["why"]
        return None, ""

    def write(self, key: str, server: ServerInfo, why: str) -> None:
        """Remember *server* for the next run, if the folder is writable."""
        with suppress(OSError):
            path, text = self._path(f"{key}.json"), json.dumps(self._plain(server, why))
            if not path.is_file() or path.read_bytes() != text.encode():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_private(path, text)

    def reserve(self, service: Service, endpoint: Endpoint, project: Project) -> Endpoint:
        """Remember *endpoint* for a server that hasn't started; return it.

        If another run has just reserved one, return that.
        """
        labels = {Label.PROJECT.value: project.id}
        info = ServerInfo(runtime="", id="", name="", labels=labels, endpoint=endpoint)
        with suppress(OSError):
            path = self._path(f"{service}.json")
            # A link is made by one run only.
            draft = path.with_name(f"{path.name}.{originals.getpid()}")
            write_private(draft, json.dumps(self._plain(info, "")))
            try:
                os.link(draft, path)
            except FileExistsError:
                found, _ = self.read(service)
                if found is not None and found.labels.get(Label.PROJECT) == project.id:
                    return found.endpoint
                draft.replace(path)
            finally:
                draft.unlink(missing_ok=True)
        return endpoint

    def forget(self, key: str) -> None:
        """Forget the server remembered as *key*."""
        with suppress(OSError):
            self._path(f"{key}.json").unlink(missing_ok=True)

    def is_due(self, work: str) -> bool:
        """Return whether *work* was last done over `WORK_INTERVAL` ago; if so, note it as done.

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

    def _plain(self, server: ServerInfo, why: str) -> dict[str, Any]:
        return {"asked": self._asked, "why": why, "server": server.to_plain()}

    def _path(self, name: str) -> Path:
        if self._folder is None:
            raise FileNotFoundError("pytest's cache is switched off")
        return self._folder / name


def make(name: str, run_context: RunContext) -> OwnRuntime:
    """Import the runtime called *name* and return it.

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

    `auto` uses Docker if its engine answers and has the images or can pull them, and otherwise
    native processes. A runtime or an image that the user names is never replaced, with one
    exception: without an engine, an embedded server of the same version replaces an official image.

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
    """Raise `RuntimeUnavailable` if the name of the image is that of the other service."""
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
    """Raise `RuntimeUnavailable` if the user names images that embedded servers can't replace."""
    named = [spec for spec in specs if spec.image_source]
    if refusal.image and named:
        raise refusal
    for spec in named:
        if not re.fullmatch(_OFFICIAL, spec.image):
            raise RuntimeUnavailable.no_embedded_image(
                image=spec.image, source=spec.image_source, refusal=refusal
            ) from refusal
