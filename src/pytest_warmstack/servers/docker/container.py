"""One server's container, created by testcontainers, which doesn't control its lifetime."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from ipaddress import ip_address
from typing import Any, Final

from docker.errors import APIError, DockerException, NotFound
from docker.models.containers import Container as EngineContainer
from testcontainers.core.container import DockerContainer

from pytest_warmstack import originals
from pytest_warmstack.options import RuntimeName
from pytest_warmstack.servers.docker.engine import Engine, explanation
from pytest_warmstack.servers.docker.errors import ContainerFailed
from pytest_warmstack.servers.docker.image import Image
from pytest_warmstack.servers.errors import AddressLost, ServerFailed
from pytest_warmstack.servers.identity import Label, random_password
from pytest_warmstack.servers.lifecycle import wait_ready
from pytest_warmstack.servers.model import ANSWER_TIMEOUT, Endpoint, ServerSpec

_LOG_LINES: Final = 30
_PASSWORD: Final = "WARMSTACK_PASSWORD"  # noqa: S105 - the name of a variable
"""The variable with a container's password: only the engine can read a container's environment."""


_PORT_TAKEN: Final = re.compile("already allocated|already in use|bind for|failed to listen")
"""Matches what engines write if a port can't be published: moby's portallocator, and Podman."""


class ServerContainer(DockerContainer):
    """One server's container, created by testcontainers, which doesn't control its lifetime.

    testcontainers' own `start` starts its reaper and labels the container for it. The reaper later
    removes every container with that label, even one that should be kept. So `create` sets no such
    label, and doesn't touch the reaper of the user's own containers.
    """

    def __init__(
        self,
        engine: Engine,
        spec: ServerSpec[Any],
        labels: Mapping[str, str],
        name: str,
        port: int | None = None,
    ) -> None:
        with engine.environment():
            super().__init__(spec.image, name=name)
        self._engine = engine
        self._spec = spec
        self._labels = labels
        self._port = port
        self._client: Any = self.get_docker_client().client

    def close(self) -> None:
        """Close the connection to the engine."""
        self._client.close()

    def find(self) -> bool:
        """Find the container with these labels; return whether there is one."""
        keys = (Label.PROJECT, Label.SERVICE, Label.RUN, Label.FINGERPRINT)
        wanted = [f"{key}={self._labels.get(key, '')}" for key in keys]
        self._container = None
        for each in self._client.api.containers(all=True, filters={"label": wanted}):
            # Another process may have removed it meanwhile.
            with suppress(NotFound):
                self._container = self._client.containers.get(each["Id"])
        return self._container is not None

    def create(self) -> bool:
        """Create and start the container; return False if another process was faster.

        The name decides that: the engine accepts a name for only one container.
        """
        *narrow, last = self._engine.route.binds or ("",)
        for address in narrow:
            # The address may not belong to the engine's machine.
            with suppress(APIError):
                return self._create(address, self._port)
        try:
            return self._create(last, self._port)
        except APIError as error:
            # Another container may have had the port while this one was stopped.
            if self._port is None or not _PORT_TAKEN.search(explanation(error)):
                raise
        return self._create(last, None)

    def _create(self, address: str, port: int | None) -> bool:
        """Do `create`, with the server's port published on *address*, at *port* if there is one."""
        reserved = self._spec.reserved
        password = reserved.password if reserved else random_password()
        plan = self._spec.container(password, self._labels[Label.FINGERPRINT])
        route = self._engine.route
        start = Image(self._client.images.get(self.image).attrs["Config"]).start(plan)
        start.environment[_PASSWORD] = password
        self._container = None
        try:
            self._container = self._client.containers.create(
                self.image,
                name=self._name,
                labels=self._labels,
                ports={f"{self._spec.port}/tcp": (address, port)} if route.binds else {},
                shm_size=plan.shm_size,
                # Podman stops a container before it removes it, but there is no data to save.
                stop_signal="SIGKILL",
                **({"network": route.network} if route.network else {}),
                **start._asdict(),
            )
            self._container.start()
        except APIError as error:
            if self._container is None and _is_conflict(error):
                return False
            self.remove()
            if reserved is not None and _PORT_TAKEN.search(explanation(error)):
                raise AddressLost.taken(
                    title=self._spec.title, place=reserved.place, cause=explanation(error)
                ) from error
            raise
        return True

    @property
    def has_ended(self) -> bool:
        """Whether the found container has run and has stopped: its data was in memory."""
        return bool(self._held.status == "exited")

    def wake(self) -> tuple[str, str]:
        """Start the found container again if necessary; return the origin and the reason."""
        container = self._held
        match container.status:
            case "running":
                return "reused", ""
            case "paused":
                container.unpause()
                return "reused", "it was paused"
            case "created":
                # Usually another process has just created it, and will start it.
                container.start()
                return "reused", ""
            case "exited":
                container.start()
                return "started again", "it had stopped"
        cause = f"its container is {container.status}"
        raise ContainerFailed.refused(title=self._spec.title, cause=cause)

    def wait_ready(self, seconds: float) -> Any:
        """Return the client of the server as soon as it answers.

        A server that this or another process has just started has *seconds*. A server that has run
        for longer must answer soon.
        """
        self.reload()
        up = originals.now() - epoch_seconds(self._held.attrs["State"]["StartedAt"])
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
                raise ContainerFailed.no_memory(
                    title=self._spec.title, place=self._data_place(), cause=failure.why, log=log
                ) from failure
            raise

    def endpoint(self) -> Endpoint:
        """Return the address at which this process reaches the server."""
        port = self._spec.port
        route = self._engine.route
        password = password_of(self._held)
        if not route.binds:
            host = self.get_docker_client().bridge_ip(self.get_container_id())
            return Endpoint(host=host, port=port, password=password)
        ports = self._held.attrs["NetworkSettings"]["Ports"]
        published = _published(ports.get(f"{port}/tcp") or [], route.binds[0] or route.host)
        return Endpoint(
            host=_reachable_host(route.host, published.get("HostIp", "")),
            port=int(published.get("HostPort", 0)),
            password=password,
        )

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

    def _data_place(self) -> str:
        """Return where the data is, and how much space the engine's machine has for it."""
        folders = ", ".join(self._held.attrs["HostConfig"]["Tmpfs"])
        # The kernel's default for a tmpfs (its documentation, tmpfs.rst, "size").
        size = self._client.info().get("MemTotal", 0) / 2 / 1e9
        return (
            f"{folders} in the container, a tmpfs with at most {size:.1f} GB: half the memory of "
            "the engine's machine, shared with everything that runs there"
        )

    def _log(self) -> str:
        """Return the last lines that the server wrote, without its password."""
        try:
            log = self._held.logs(tail=_LOG_LINES)
        except DockerException as error:
            return explanation(error)
        return without(password_of(self._held), log).strip()

    @property
    def _held(self) -> EngineContainer:
        return self.get_wrapped_container()


def _published(entries: list[dict[str, str]], address: str) -> dict[str, str]:
    """Return the entry with the port to connect to at *address*.

    A port that is open on all addresses may have different numbers for IPv4 and IPv6
    (moby/moby#42442).
    """
    for entry in entries:
        if (":" in entry.get("HostIp", "")) is (":" in address):
            return entry
    return entries[0] if entries else {}


def _reachable_host(host: str, bound: str) -> str:
    """Return the host for a port that is published on the address *bound*.

    It is *bound* itself. But if that is a wildcard, or the loopback of another machine, it is
    *host*, which leads to the engine.
    """
    if not bound or ip_address(bound).is_unspecified or ip_address(bound).is_loopback:
        return host
    return bound


def remove(client: Any, container_id: str) -> None:
    """Remove a container and its anonymous volumes, unless another process removes it."""
    try:
        client.api.remove_container(container_id, force=True, v=True)
    except APIError as error:
        if error.status_code not in {404, 409}:
            raise


def password_of(container: EngineContainer) -> str:
    """Return the password that a container was made with."""
    entries: list[str] = container.attrs["Config"]["Env"]
    return dict(entry.split("=", 1) for entry in entries).get(_PASSWORD, "")


def without(password: str, log: bytes) -> str:
    """Return a server's log as text, without its password."""
    text = log.decode(errors="replace")
    return text.replace(password, "***") if password else text


def _is_conflict(error: APIError) -> bool:
    """Return whether the engine refuses a name because another container has it.

    Podman has no special status for that.
    """
    return error.status_code == 409 or "already in use" in explanation(error)


def epoch_seconds(text: str) -> float:
    """Return an engine's time, such as `2026-11-22T10:00:00.123456789Z`, as epoch seconds."""
    return datetime.fromisoformat(text).timestamp()
