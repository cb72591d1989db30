"""Servers in Docker containers: found by label, reused, replaced, started, removed.

This is the only room that speaks to docker and testcontainers.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from docker.errors import APIError, ImageNotFound, NotFound
from testcontainers.core.config import testcontainers_config

from pytest_warmstack import originals
from pytest_warmstack.servers.docker.container import ServerContainer, password_of, remove, without
from pytest_warmstack.servers.docker.engine import Engine, explanation
from pytest_warmstack.servers.docker.image import Image
from pytest_warmstack.servers.docker.pull import NotPulled, fetch
from pytest_warmstack.servers.errors import RuntimeUnavailable, ServerFailed
from pytest_warmstack.servers.identity import Label
from pytest_warmstack.servers.lifecycle import POLL_INTERVAL, remove_outdated
from pytest_warmstack.servers.model import (
    ANSWER_TIMEOUT,
    C,
    Endpoint,
    NotOurs,
    NotReady,
    RunContext,
    Server,
    ServerInfo,
    ServerSpec,
)
from pytest_warmstack.settings import RuntimeName

P = ParamSpec("P")
T = TypeVar("T")


def _explained(method: Callable[P, T]) -> Callable[P, T]:
    """Have *method*, one of `Docker`, raise errors of this package only."""

    @wraps(method)
    def explained(*args: P.args, **kwargs: P.kwargs) -> T:
        docker: Any = args[0]
        with docker.engine.explained():
            return method(*args, **kwargs)

    return explained


class Docker:
    """The runtime `docker`."""

    name = RuntimeName.DOCKER

    def __init__(self, run_context: RunContext) -> None:
        self._run_context = run_context
        self.engine = Engine()

    @_explained
    def check(self, specs: Sequence[ServerSpec[Any]], say: Callable[[str], None]) -> None:
        """Raise `RuntimeUnavailable` unless the images of all *specs* are there or were pulled."""
        for spec in specs:
            name = _named_by(spec)
            images = self.engine.client.images
            try:
                try:
                    found = images.get(name)
                except ImageNotFound:
                    fetch(self.engine.client, name, say)
                    found = images.get(name)
            except (APIError, NotPulled) as error:
                raise RuntimeUnavailable.no_image(
                    image=name,
                    cause=explanation(error),
                    variable=spec.image_variable,
                    source=spec.image_source,
                ) from error
            service = Image(found.attrs["Config"]).service()
            if service not in {None, spec.service}:
                raise RuntimeUnavailable.another_service(
                    image=name,
                    found=str(service),
                    cause=f"the image declares the port or the variables of {service}",
                    title=spec.title,
                    variable=spec.image_variable,
                    source=spec.image_source,
                )

    @_explained
    def ensure(self, spec: ServerSpec[C]) -> Server[C]:
        """Return the server of *spec* in the run's one container for it."""
        run_context = self._run_context
        name = run_context.name(spec, self.name)
        labels = run_context.labels(spec, self.name)
        with _refusals(spec), self._container(spec, labels, name) as container:
            outdated, trouble = remove_outdated(self, run_context, spec)
            client, origin, reason = self._running(container, outdated)
            origin = "shared" if origin == "reused" and not run_context.keep else origin
            return ServerInfo(
                runtime=self.name,
                id=container.get_container_id(),
                name=name,
                labels=labels,
                endpoint=container.endpoint(),
                what=f"image {spec.image}",
                state="running",
                since=container.since(),
            ).ready(spec, client, origin, reason, trouble)

    def _running(self, container: ServerContainer, outdated: str) -> tuple[Any, str, str]:
        """Bring *container* to answer; return its client, and how and why it came to."""
        seconds = self._run_context.start_timeout
        deadline = originals.monotonic() + seconds
        while True:
            if container.find():
                try:
                    origin, reason = container.wake()
                    return container.ready(seconds), origin, reason
                except (ServerFailed, NotOurs) as failure:
                    container.remove()
                    if not self._run_context.keep:
                        raise
                    outdated = f"the old one was broken: {failure}".splitlines()[0]
                    # To find that out may have taken as long as a start does.
                    deadline = originals.monotonic() + seconds
            elif container.create():
                try:
                    client = container.ready(seconds)
                except BaseException:
                    container.remove()
                    raise
                return client, *(("replaced", outdated) if outdated else ("started", ""))
            # Another process of ours is creating or removing it at this moment.
            if originals.monotonic() > deadline:
                raise ServerFailed.locked(
                    title=container.title, seconds=seconds, place=f"container {container.name}"
                )
            originals.sleep(POLL_INTERVAL)

    @_explained
    def list(self) -> list[ServerInfo]:
        """Return every container of ours in the engine."""
        containers = self.engine.client.api.containers(
            all=True, filters={"label": Label.PROJECT.value}
        )
        return [self._found(each) for each in containers]

    def _found(self, each: dict[str, Any]) -> ServerInfo:
        found = ServerInfo(
            runtime=self.name,
            id=each["Id"],
            name=each["Names"][0].lstrip("/") if each["Names"] else each["Id"][:12],
            labels=each["Labels"],
            state=each["State"],
            since=float(each["Created"]),
        )
        # As it was asked for: the engine gives a number once its name is another's.
        return replace(found, what=f"image {found.config.get('image', each['Image'])}")

    @_explained
    def remove(self, found: ServerInfo) -> None:
        """Remove a container with its anonymous volumes, or a volume, or a network."""
        api = self.engine.client.api
        with suppress(NotFound):
            if found.kind == "volume":
                api.remove_volume(found.id, force=True)
            elif found.kind == "network":
                api.remove_network(found.id)
            else:
                remove(self.engine.client, found.id)

    def close(self) -> None:
        """Close the connection to the engine."""
        self.engine.close()

    def _container(self, spec: ServerSpec[Any], labels: Any, name: str) -> ServerContainer:
        """Return the container that *spec* has, or will have, under these labels and this name."""
        return ServerContainer(self.engine, spec, labels, name)

    @_explained
    def connect(self, spec: ServerSpec[C], found: ServerInfo) -> C:
        """Return a client that looks at the server that was found."""
        with self._container(spec, found.labels, found.name) as container:
            try:
                if not container.find():
                    raise NotReady(f"the container {found.name} is gone, or none of ours")
                client: C = container.look(ANSWER_TIMEOUT)
            except NotFound as error:
                raise NotReady(explanation(error)) from error
            return client

    def memory(self, found: ServerInfo) -> int:
        """Return how many bytes a container takes: tmpfs counts, caches of files don't."""
        with suppress(RuntimeUnavailable), self.engine.explained():
            stats = self.engine.client.api.stats(found.id, stream=False, one_shot=True)
            # As `docker stats` has it (docker/cli, calculateMemUsageUnixNoCache).
            memory = stats.get("memory_stats", {})
            detail = memory.get("stats", {})
            caches = detail.get("total_inactive_file", detail.get("inactive_file", 0))
            return max(int(memory.get("usage", 0)) - int(caches), 0)
        return 0

    def log(self, found: ServerInfo, lines: int, *, follow: bool = False) -> Iterator[str]:
        """Yield the last *lines* that a container wrote, and with *follow* what comes then."""
        try:
            with self.engine.explained():
                container = self.engine.client.containers.get(found.id)
                password = password_of(container)
                rest = b""
                for part in container.logs(stream=True, follow=follow, tail=lines):
                    *whole, rest = (rest + part).split(b"\n")
                    yield from (without(password, line) for line in whole)
                if rest:
                    yield without(password, rest)
        except RuntimeUnavailable as error:
            yield error.line

    def client(
        self, spec: ServerSpec[Any], found: ServerInfo, program: str
    ) -> tuple[Sequence[str], Endpoint] | None:
        """Return how to call a client in the container, by Docker's own command."""
        docker = shutil.which("docker")
        if docker is None:
            return None
        names = ("PGPASSWORD", "REDISCLI_AUTH")
        passed = [part for name in names for part in ("--env", name)]
        terminal = ["--tty"] if sys.stdin.isatty() else []
        engine = self.engine.named.arguments
        command = [docker, *engine, "exec", "--interactive", *terminal, *passed, found.id, program]
        return command, Endpoint(host="127.0.0.1", port=spec.port, password="")

    @_explained
    def leftovers(self) -> Sequence[ServerInfo]:
        """Return the volumes and networks with our labels."""
        api = self.engine.client.api
        filters = {"label": Label.PROJECT.value}
        volumes = api.volumes(filters=filters)["Volumes"] or []
        return [
            *(self._scrap("volume", each["Name"], each) for each in volumes),
            *(self._scrap("network", each["Id"], each) for each in api.networks(filters=filters)),
        ]

    def _scrap(self, kind: str, key: str, facts: dict[str, Any]) -> ServerInfo:
        return ServerInfo(
            runtime=self.name,
            id=key,
            name=facts["Name"],
            labels=facts["Labels"],
            kind=kind,
        )

    @_explained
    def has(self, spec: ServerSpec[Any]) -> bool:
        """Tell whether the image of *spec* is in the engine."""
        try:
            self.engine.client.images.get(_named_by(spec))
        except ImageNotFound:
            return False
        return True

    def offer(self, spec: ServerSpec[Any]) -> str:
        """Return why the image's registry does not offer it; nothing if it does."""
        try:
            with self.engine.explained():
                self.engine.client.api.inspect_distribution(_named_by(spec))
        except RuntimeUnavailable as error:
            return error.why
        return ""

    @_explained
    def facts(self) -> Sequence[tuple[str, str]]:
        """Return what there is to know of the engine, each thing with its name."""
        return [*self._facts()]

    def _facts(self) -> Iterator[tuple[str, str]]:
        client = self.engine.client
        named = self.engine.named
        yield "address", f"{named.address}  ({named.source})"
        told = client.info()
        yield "engine", f"{client.version()['Version']}, {told.get('OperatingSystem', '')}"
        options = told.get("SecurityOptions") or []
        yield "rootless", "yes" if any("rootless" in each for each in options) else "no"
        route = self.engine.route
        way = ", or ".join(each or "all addresses" for each in route.binds)
        yield "ports are open on", way or f"no address: the network {route.network} is joined"
        yield "reached at", route.host or "the container's own address"


@contextmanager
def _refusals(spec: ServerSpec[Any]) -> Iterator[None]:
    """Turn what the engine refuses, and a server that does not know us, into `ServerFailed`."""
    try:
        yield
    except APIError as error:
        raise ServerFailed.refused(title=spec.title, cause=explanation(error)) from error
    except NotOurs as error:
        raise ServerFailed.by_contract(
            title=spec.title,
            image=_named_by(spec),
            cause=str(error),
            wanted=spec.container("", "").contract,
            variable=spec.image_variable,
            url_variable=spec.url_variable,
            source=spec.image_source,
        ) from error


def _named_by(spec: ServerSpec[Any]) -> str:
    """Return the image as testcontainers names it, for whoever has a registry of their own."""
    return f"{testcontainers_config.hub_image_name_prefix}{spec.image}"
