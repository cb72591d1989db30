"""One server's container, as testcontainers makes them, but for its life."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from ipaddress import ip_address
from typing import Any, Final, Self

from docker.errors import APIError, DockerException, NotFound
from docker.models.containers import Container as EngineContainer
from testcontainers.core.container import DockerContainer

from pytest_warmstack import originals
from pytest_warmstack.servers.docker.engine import Engine, explanation
from pytest_warmstack.servers.docker.image import Image
from pytest_warmstack.servers.errors import ServerFailed
from pytest_warmstack.servers.identity import Label
from pytest_warmstack.servers.lifecycle import wait_ready
from pytest_warmstack.servers.model import ANSWER_TIMEOUT, Endpoint, ServerSpec
from pytest_warmstack.settings import RuntimeName

_LOG_LINES: Final = 30
_PASSWORD: Final = "WARMSTACK_PASSWORD"  # noqa: S105 - the name of a variable
"""Where a container's password is kept: its environment, which only the engine can read."""


class ServerContainer(DockerContainer):
    """One server's container, as testcontainers makes them, but for its life.

    testcontainers' own `start` brings up its reaper and marks the container for it; the reaper
    then removes whatever carries the mark, also what should survive. So ours are created without
    the mark, and the reaper of the user's own containers is left alone.
    """

    def __init__(self, engine: Engine, spec: ServerSpec[Any], labels: Any, name: str) -> None:
        with engine.found():
            super().__init__(spec.image)
        self._engine = engine
        self.title = spec.title
        self.name = name
        self._spec = spec
        self._labels = labels
        self.with_name(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.get_docker_client().client.close()

    def find(self) -> bool:
        """Take hold of the container with these labels, if there is one."""
        keys = (Label.PROJECT, Label.SERVICE, Label.RUN, Label.FINGERPRINT)
        wanted = [f"{key}={self._labels.get(key, '')}" for key in keys]
        self._container = None
        for each in self._client.api.containers(all=True, filters={"label": wanted}):
            # It may have been removed since it was listed.
            with suppress(NotFound):
                self._container = self._client.containers.get(each["Id"])
        return self._container is not None

    def create(self) -> bool:
        """Create the container and start it; False when another process was faster.

        The name is the arbiter: the engine gives it to one container only.
        """
        *narrower, last = self._engine.route.binds or ("",)
        for bind in narrower:
            # An address that was only likely to be the engine's machine's may not be one.
            with suppress(APIError):
                return self._create(bind)
        return self._create(last)

    def _create(self, bind: str) -> bool:
        """Do `create` with the port published on the address *bind*."""
        spec = self._spec
        password = originals.urandom(16).hex()
        plan = spec.container(password, self._labels[Label.FINGERPRINT])
        route = self._engine.route
        start = Image(self._client.images.get(self.image).attrs["Config"]).start(plan)
        self._container = None
        try:
            self._container = self._client.containers.create(
                self.image,
                name=self._name,
                entrypoint=start.entrypoint,
                command=list(start.command),
                environment={**start.environment, _PASSWORD: password},
                labels=self._labels,
                ports={f"{spec.port}/tcp": (bind, None)} if route.binds else {},
                tmpfs=dict(start.tmpfs),
                shm_size=plan.shm_size,
                # Podman removes a container by stopping it first; there is nothing to save.
                stop_signal="SIGKILL",
                **({"network": route.network} if route.network else {}),
            )
            self._container.start()
        except APIError as error:
            if self._container is None and _is_conflict(error):
                return False
            self.remove()
            raise
        return True

    def wake(self) -> tuple[str, str]:
        """Bring a container that was found back to running; return origin and reason."""
        container = self._held
        status = container.status
        if status == "running":
            return "reused", ""
        if status == "paused":
            container.unpause()
            return "reused", "it was paused"
        if status in {"created", "exited"}:
            container.start()
            if status == "exited":
                return "started again", "it had stopped"
            # As a rule another process has just created it, and is about to start it too.
            return "reused", ""
        raise ServerFailed.refused(title=self.title, cause=f"its container is {status}")

    def ready(self, seconds: float) -> Any:
        """Return the client of the server as soon as it answers.

        A server that has been up for longer than a start may take has only a little patience
        coming; one that another process has just started has as long as our own.
        """
        self.reload()
        up = originals.now() - _timestamp(self._held.attrs["State"]["StartedAt"])
        try:
            return wait_ready(
                self._spec,
                self.endpoint(),
                self._labels[Label.FINGERPRINT],
                runtime=RuntimeName.DOCKER,
                seconds=seconds if up < seconds else ANSWER_TIMEOUT,
                death=self._death,
                log=self._log,
            )
        except ServerFailed as failure:
            log = self._log()
            if self._held.attrs["State"].get("OOMKilled") or os.strerror(errno.ENOSPC) in log:
                raise ServerFailed.no_memory(
                    title=self.title, place=self._room(), cause=failure.why, log=log
                ) from failure
            raise

    def look(self, seconds: float) -> Any:
        """Return a client that looks at the server that these labels describe, at the first try."""
        endpoint = replace(self.endpoint(), looks=True)
        return self._spec.connect(endpoint, self._labels[Label.FINGERPRINT], seconds)

    def endpoint(self) -> Endpoint:
        """Return where the server answers, seen from this process."""
        port = self._spec.port
        route = self._engine.route
        if not route.binds:
            host = self.get_docker_client().bridge_ip(self.get_container_id())
            return Endpoint(host=host, port=port, password=self._password())
        ports = self._held.attrs["NetworkSettings"]["Ports"]
        published = _published(ports.get(f"{port}/tcp") or [], route.binds[0] or route.host)
        return Endpoint(
            host=_reached(route.host, published.get("HostIp", "")),
            port=int(published.get("HostPort", 0)),
            password=self._password(),
        )

    def since(self) -> float:
        """Return when the container was created, in seconds since the epoch."""
        return _timestamp(self._held.attrs["Created"])

    def remove(self) -> None:
        """Remove the container with its data."""
        if self._container is not None:
            remove(self._client, self.get_container_id())

    def _death(self) -> str | None:
        """Return how the container ended, or None while it runs."""
        try:
            self.reload()
        except NotFound:
            return "its container was removed"
        state = self._held.attrs["State"]
        if state["Running"] and not state.get("Restarting"):
            return None
        killed = ", the engine killed it for lack of memory" if state.get("OOMKilled") else ""
        return f"its container is {state['Status']}, exit status {state['ExitCode']}{killed}"

    def _room(self) -> str:
        """Return where the data lies, and how much room the engine's machine has for it."""
        folders = ", ".join(self._held.attrs["HostConfig"]["Tmpfs"])
        # The kernel's default for a tmpfs (its documentation, tmpfs.rst, "size").
        size = self._client.info().get("MemTotal", 0) / 2 / 1e9
        return (
            f"{folders} in the container, a tmpfs: it has {size:.1f} GB at most, half the memory "
            "of the engine's machine, which it shares with everything there"
        )

    def _log(self) -> str:
        """Return the last lines that the server wrote, without its password."""
        try:
            return without(self._password(), self._held.logs(tail=_LOG_LINES)).strip()
        except DockerException as error:
            return explanation(error)

    def _password(self) -> str:
        return password_of(self._held)

    @property
    def _client(self) -> Any:
        return self.get_docker_client().client

    @property
    def _held(self) -> EngineContainer:
        return self.get_wrapped_container()


def _published(entries: list[dict[str, str]], address: str) -> dict[str, str]:
    """Return where a port is published, of several *entries*, for whoever comes to *address*.

    A port that is open on all addresses may have one number over IPv4 and another over IPv6
    (moby/moby#42442).
    """
    for entry in entries:
        if (":" in entry.get("HostIp", "")) is (":" in address):
            return entry
    return entries[0] if entries else {}


def _reached(host: str, bound: str) -> str:
    """Return where a port is reached that is published on the address *bound*.

    As a rule there. But a wildcard is no address, and a loopback that is not ours is nowhere, so
    then it is *host*, which leads to the engine.
    """
    if not bound or ip_address(bound).is_unspecified or ip_address(bound).is_loopback:
        return host
    return bound


def remove(client: Any, container_id: str) -> None:
    """Remove a container with its anonymous volumes; one that is going or gone is no error."""
    try:
        client.api.remove_container(container_id, force=True, v=True)
    except APIError as error:
        if error.status_code not in {404, 409}:
            raise


def password_of(container: EngineContainer) -> str:
    """Return the password that a container was made with."""
    entries: list[str] = container.attrs["Config"]["Env"]
    return dict(entry.split("=", 1) for entry in entries).get(_PASSWORD, "")


def without(password: str, written: bytes) -> str:
    """Return what a server wrote, as a text without its password."""
    text = written.decode(errors="replace")
    return text.replace(password, "***") if password else text


def _is_conflict(error: APIError) -> bool:
    """Tell whether the engine refuses a name because a container has it.

    Podman says so with the status of a fault of its own.
    """
    return error.status_code == 409 or "already in use" in explanation(error)


def _timestamp(text: str) -> float:
    """Return a time of the engine's, such as `2026-11-22T10:00:00.123456789Z`, as epoch seconds."""
    return datetime.fromisoformat(text).timestamp()
