"""Servers in Docker containers: finds them by label, and starts, reuses, replaces and removes them.

Only this package imports docker and testcontainers.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from docker.errors import APIError, ImageNotFound, NotFound

from pytest_warmstack import originals
from pytest_warmstack.options import RuntimeName
from pytest_warmstack.servers.docker import image
from pytest_warmstack.servers.docker.container import (
    ServerContainer,
    epoch_seconds,
    password_of,
    remove,
    without,
)
from pytest_warmstack.servers.docker.engine import Engine, explanation
from pytest_warmstack.servers.docker.errors import ContainerFailed
from pytest_warmstack.servers.errors import RuntimeUnavailable, ServerFailed
from pytest_warmstack.servers.identity import Label
from pytest_warmstack.servers.lifecycle import (
    POLL_INTERVAL,
    check_address,
    own_port,
    remove_outdated,
)
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

P = ParamSpec("P")
T = TypeVar("T")

_LABELLED = {"label": Label.PROJECT.value}
"""The engine's filter for everything that pytest-warmstack has created."""


def _translate_errors(method: Callable[P, T]) -> Callable[P, T]:
    """Make *method*, of the class `Docker`, raise only errors of this package."""

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

    @property
    def on_loopback(self) -> bool:
        """Whether this process reaches new servers at 127.0.0.1."""
        with self.engine.explained():
            return self.engine.route.binds == ("127.0.0.1",)

    @_translate_errors
    def check(self, specs: Sequence[ServerSpec[Any]], say: Callable[[str], None]) -> None:
        """Raise `RuntimeUnavailable` unless the engine has, or can pull, the images of *specs*."""
        for spec in specs:
            image.check(self.engine.client, spec, say)

    @_translate_errors
    def ensure(self, spec: ServerSpec[C]) -> Server[C]:
        """Return the server of *spec*; its run context has only one container for it."""
        run_context = self._run_context
        labels = run_context.labels(spec, self.name)
        name = run_context.name(spec, self.name)
        try:
            outdated, trouble = remove_outdated(self, run_context, spec)
            port = own_port(run_context, spec)
            with closing(ServerContainer(self.engine, spec, labels, name, port)) as container:
                client, origin, reason = self._find_or_create(container, spec, name, outdated)
                check_address(spec, client)
                origin = "shared" if origin == "reused" and not run_context.keep else origin
                return ServerInfo(
                    runtime=self.name,
                    id=container.get_container_id(),
                    name=name,
                    labels=labels,
                    endpoint=container.endpoint(),
                    what=f"image {spec.image}",
                    state="running",
                    since=epoch_seconds(container.get_wrapped_container().attrs["Created"]),
                ).ready(spec, client, origin, reason, trouble)
        except APIError as error:
            raise ContainerFailed.refused(title=spec.title, cause=explanation(error)) from error
        except NotOurs as error:
            raise ContainerFailed.by_contract(
                spec, image=image.name_of(spec), cause=str(error)
            ) from error

    def _find_or_create(
        self, container: ServerContainer, spec: ServerSpec[Any], name: str, outdated: str
    ) -> tuple[Any, str, str]:
        """Return the client of the server in *container*, the server's origin, and the reason."""
        seconds = self._run_context.start_timeout
        deadline = originals.monotonic() + seconds
        fresh = "replaced" if outdated else "started"
        while True:
            if (is_found := container.find()) and spec.reserved and container.has_ended:
                # The engine would start it on another port.
                container.remove()
                fresh, outdated = "started again", "it had stopped"
            elif is_found:
                try:
                    origin, reason = container.wake()
                    return container.wait_ready(seconds), origin, reason
                except (ServerFailed, NotOurs) as failure:
                    container.remove()
                    if not self._run_context.keep:
                        raise
                    outdated = f"the old one was broken: {failure}".splitlines()[0]
                    fresh = "replaced"
                    # Finding that out may have taken as long as a start.
                    deadline = originals.monotonic() + seconds
            elif container.create():
                try:
                    client = container.wait_ready(seconds)
                except BaseException:
                    container.remove()
                    raise
                return client, fresh, outdated
            # Another process is creating or removing it right now.
            if originals.monotonic() > deadline:
                raise ServerFailed.locked(
                    title=spec.title, seconds=seconds, place=f"container {name}"
                )
            originals.sleep(POLL_INTERVAL)

    @_translate_errors
    def list(self) -> list[ServerInfo]:
        """Return every container that pytest-warmstack has created in this engine."""
        containers = self.engine.client.api.containers(all=True, filters=_LABELLED)
        return [self._info(each) for each in containers]

    def _info(self, facts: dict[str, Any]) -> ServerInfo:
        found = ServerInfo(
            runtime=self.name,
            id=facts["Id"],
            name=facts["Names"][0].lstrip("/") if facts["Names"] else facts["Id"][:12],
            labels=facts["Labels"],
            state=facts["State"],
            since=float(facts["Created"]),
        )
        # Use the name in the settings: the engine shows a digest once another image has the name.
        return found.replace(what=f"image {found.config.get('image', facts['Image'])}")

    @_translate_errors
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

    @_translate_errors
    def connect(self, spec: ServerSpec[C], found: ServerInfo) -> C:
        """Return a client that only inspects the server, and doesn't count as a user."""
        with closing(ServerContainer(self.engine, spec, found.labels, found.name)) as container:
            try:
                if not container.find():
                    raise NotReady(f"the container {found.name} is gone, or has other labels")
                endpoint = container.endpoint().replace(looks=True)
                return spec.connect(endpoint, found.labels[Label.FINGERPRINT], ANSWER_TIMEOUT)
            except NotFound as error:
                raise NotReady(explanation(error)) from error

    def memory(self, found: ServerInfo) -> int:
        """Return the memory of a container in bytes, including its tmpfs, without file caches."""
        with suppress(RuntimeUnavailable), self.engine.explained():
            stats = self.engine.client.api.stats(found.id, stream=False, one_shot=True)
            # As `docker stats` computes it (docker/cli, calculateMemUsageUnixNoCache).
            memory = stats.get("memory_stats", {})
            detail = memory.get("stats", {})
            caches = detail.get("total_inactive_file", detail.get("inactive_file", 0))
            return max(int(memory.get("usage", 0)) - int(caches), 0)
        return 0

    def log(self, found: ServerInfo, lines: int, *, follow: bool = False) -> Iterator[str]:
        """Yield the last *lines* of a container's log; with *follow*, also new ones."""
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
        """Return the `docker` command that runs a client in the container, if it has one."""
        docker = shutil.which("docker")
        if docker is None:
            return None
        passed = ("--env", "PGPASSWORD", "--env", "REDISCLI_AUTH")
        terminal = ["--tty"] if sys.stdin.isatty() else []
        engine = self.engine.address.arguments
        command = [docker, *engine, "exec", "--interactive", *terminal, *passed, found.id, program]
        return command, Endpoint(host="127.0.0.1", port=spec.port, password="")

    @_translate_errors
    def leftovers(self) -> Sequence[ServerInfo]:
        """Return the volumes and networks with the labels of pytest-warmstack."""
        api = self.engine.client.api
        volumes = api.volumes(filters=_LABELLED)["Volumes"] or []
        networks = api.networks(filters=_LABELLED)
        return [
            ServerInfo(
                runtime=self.name,
                id=each.get("Id", each["Name"]),
                name=each["Name"],
                labels=each["Labels"],
                kind=kind,
            )
            for kind, found in (("volume", volumes), ("network", networks))
            for each in found
        ]

    @_translate_errors
    def has(self, spec: ServerSpec[Any]) -> bool:
        """Return whether the engine has the image of *spec*."""
        try:
            self.engine.client.images.get(image.name_of(spec))
        except ImageNotFound:
            return False
        return True

    def offer(self, spec: ServerSpec[Any]) -> RuntimeUnavailable | None:
        """Return the error if the image can't be pulled from its registry."""
        try:
            with self.engine.explained():
                self.engine.client.api.inspect_distribution(image.name_of(spec))
        except RuntimeUnavailable as error:
            return error
        return None

    @_translate_errors
    def facts(self) -> Sequence[tuple[str, str]]:
        """Return names and values that describe the engine, for `warmstack doctor`."""
        client, address, route = self.engine.client, self.engine.address, self.engine.route
        info = client.info()
        is_rootless = any("rootless" in each for each in info.get("SecurityOptions") or [])
        ports = ", or ".join(each or "all addresses" for each in route.binds)
        return [
            ("address", f"{address.url}  ({address.source})"),
            ("engine", f"{client.version()['Version']}, {info.get('OperatingSystem', '')}"),
            ("rootless", "yes" if is_rootless else "no"),
            ("ports are open on", ports or f"no address: servers join the network {route.network}"),
            ("reached at", route.host or "the container's own address"),
        ]
