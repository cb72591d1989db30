"""Servers in Docker containers: found by label, reused, replaced, started, removed.

testcontainers knows where the engine is and how its containers are reached (contexts, sockets,
remote hosts, Docker in Docker); this is the only room that speaks to it.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cached_property
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from docker.constants import DEFAULT_UNIX_SOCKET
from docker.context import ContextAPI
from docker.context.config import get_current_context_name
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.models.containers import Container as EngineContainer
from requests.adapters import BaseAdapter
from requests.exceptions import RequestException
from requests.exceptions import Timeout as RequestsTimeout
from testcontainers.core.config import ConnectionMode, testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.docker_client import DockerClient
from urllib3.exceptions import HTTPError

from pytest_warmstack.errors import RuntimeUnavailable, ServerFailed
from pytest_warmstack.identity import Label
from pytest_warmstack.runtime import ssh
from pytest_warmstack.runtime.base import (
    PATIENCE,
    POLL,
    C,
    Endpoint,
    Found,
    Household,
    NotOurs,
    NotReady,
    Server,
    ServerSpec,
    remove_outdated,
    wait_ready,
)
from pytest_warmstack.runtime.pull import Progress
from pytest_warmstack.settings import RuntimeName

STALL: Final = 60.0
"""Seconds for which a pull may bring nothing, not even another attempt, before it is given up."""

_LOCAL: Final = {"localhost", "127.0.0.1", "::1"}
_ENVIRONMENT: Final = threading.Lock()
"""Held while DOCKER_HOST is not the user's: both servers are started at once."""

_LOG_LINES: Final = 30
_PASSWORD: Final = "WARMSTACK_PASSWORD"  # noqa: S105 - the name of a variable
"""Where a container's password is kept: its environment, which only the engine can read."""


class Docker:
    """The runtime `docker`."""

    name = RuntimeName.DOCKER

    def __init__(self, household: Household) -> None:
        self._household = household
        self._engine = _Engine()

    def check(self, specs: Sequence[ServerSpec[Any]], say: Callable[[str], None]) -> None:
        """Raise `RuntimeUnavailable` unless the images of all *specs* are there or were pulled."""
        for spec in specs:
            image = _named_by(spec)
            try:
                self._engine.client.images.get(image)
            except ImageNotFound:
                self._pull(image, spec, say)
            except (DockerException, RequestException) as error:
                raise RuntimeUnavailable.no_image(
                    image=image, cause=_explanation(error), variable=spec.image_variable
                ) from error

    def ensure(self, spec: ServerSpec[C]) -> Server[C]:
        """Return the server of *spec* in the household's one container for it."""
        household = self._household
        name = household.name(spec, self.name)
        labels = household.labels(spec, self.name)
        with _explained(spec.title), self._container(spec, labels, name) as container:
            client, origin, reason = self._running(
                container, remove_outdated(self, household, spec)
            )
            return Server(
                service=spec.service,
                title=spec.title,
                runtime=self.name,
                id=container.get_container_id(),
                fingerprint=spec.fingerprint(self.name),
                endpoint=container.endpoint(),
                client=client,
                what=f"image {spec.image}",
                origin="shared" if origin == "reused" and not household.keep else origin,
                reason=reason,
                since=container.since(),
            )

    def _running(self, container: _Container, outdated: str) -> tuple[Any, str, str]:
        """Bring *container* to answer; return its client, and how and why it came to."""
        seconds = self._household.start_timeout
        deadline = time.monotonic() + seconds
        while True:
            if container.find():
                try:
                    origin, reason = container.wake()
                    return container.ready(seconds), origin, reason
                except (ServerFailed, NotOurs) as failure:
                    container.remove()
                    if not self._household.keep:
                        raise
                    outdated = f"the old one was broken: {failure}".splitlines()[0]
                    # To find that out may have taken as long as a start does.
                    deadline = time.monotonic() + seconds
            elif container.create():
                try:
                    client = container.ready(seconds)
                except BaseException:
                    container.remove()
                    raise
                return client, *(("replaced", outdated) if outdated else ("started", ""))
            # Another process of ours is creating or removing it at this moment.
            if time.monotonic() > deadline:
                raise ServerFailed.locked(
                    title=container.title, seconds=seconds, place=f"container {container.name}"
                )
            time.sleep(POLL)

    def list(self) -> list[Found]:
        """Return every container of ours in the engine."""
        containers = self._engine.client.api.containers(
            all=True, filters={"label": Label.PROJECT.value}
        )
        return [
            Found(
                runtime=self.name,
                id=each["Id"],
                name=each["Names"][0].lstrip("/") if each["Names"] else each["Id"][:12],
                running=each["State"] == "running",
                labels=each["Labels"],
                # As it was asked for: the engine gives a number once its name is another's.
                what=f"image {_config(each['Labels']).get('image', each['Image'])}",
                state=each["State"],
                since=float(each["Created"]),
            )
            for each in containers
        ]

    def remove(self, found: Found) -> None:
        """Remove a container with its anonymous volumes, or a volume, or a network."""
        api = self._engine.client.api
        with suppress(NotFound):
            if found.kind == "volume":
                api.remove_volume(found.id, force=True)
            elif found.kind == "network":
                api.remove_network(found.id)
            else:
                _remove(self._engine.client, found.id)

    def close(self) -> None:
        """Close the connection to the engine."""
        self._engine.close()

    def _container(self, spec: ServerSpec[Any], labels: Any, name: str) -> _Container:
        """Return the container that *spec* has, or will have, under these labels and this name."""
        return _Container(self._engine, spec, labels, name)

    def connect(self, spec: ServerSpec[C], found: Found) -> C:
        """Return a client of the server that was found."""
        with self._container(spec, found.labels, found.name) as container:
            try:
                if not container.find():
                    raise NotReady(f"the container {found.name} is gone")
                client: C = container.connect(PATIENCE)
            except (DockerException, RequestException) as error:
                raise NotReady(_explanation(error)) from error
            return client

    def memory(self, found: Found) -> int:
        """Return how many bytes a container takes: tmpfs counts, caches of files don't."""
        with suppress(DockerException, RequestException):
            stats = self._engine.client.api.stats(found.id, stream=False, one_shot=True)
            # As `docker stats` has it (docker/cli, calculateMemUsageUnixNoCache).
            memory = stats.get("memory_stats", {})
            detail = memory.get("stats", {})
            caches = detail.get("total_inactive_file", detail.get("inactive_file", 0))
            return max(int(memory.get("usage", 0)) - int(caches), 0)
        return 0

    def log(self, found: Found, lines: int, *, follow: bool = False) -> Iterator[str]:
        """Yield the last *lines* that a container wrote, and with *follow* what comes then."""
        try:
            container = self._engine.client.containers.get(found.id)
            password = _password(container)
            rest = b""
            for part in container.logs(stream=True, follow=follow, tail=lines):
                *whole, rest = (rest + part).split(b"\n")
                yield from (_without(password, line) for line in whole)
            if rest:
                yield _without(password, rest)
        except (DockerException, RequestException) as error:
            yield _explanation(error)

    def client(
        self, spec: ServerSpec[Any], found: Found, program: str
    ) -> tuple[Sequence[str], Endpoint] | None:
        """Return how to call a client in the container, by Docker's own command."""
        docker = shutil.which("docker")
        if docker is None:
            return None
        names = ("PGPASSWORD", "REDISCLI_AUTH")
        passed = [part for name in names for part in ("--env", name)]
        terminal = ["--tty"] if sys.stdin.isatty() else []
        command = [docker, "exec", "--interactive", *terminal, *passed, found.id, program]
        return command, Endpoint(host="127.0.0.1", port=spec.port, password="")

    def scraps(self) -> Sequence[Found]:
        """Return the volumes and networks with our labels."""
        api = self._engine.client.api
        filters = {"label": Label.PROJECT.value}
        volumes = api.volumes(filters=filters)["Volumes"] or []
        return [
            *(self._scrap("volume", each["Name"], each) for each in volumes),
            *(self._scrap("network", each["Id"], each) for each in api.networks(filters=filters)),
        ]

    def _scrap(self, kind: str, key: str, facts: dict[str, Any]) -> Found:
        return Found(
            runtime=self.name,
            id=key,
            name=facts["Name"],
            running=False,
            labels=facts["Labels"],
            kind=kind,
        )

    def has(self, spec: ServerSpec[Any]) -> bool:
        """Tell whether the image of *spec* is in the engine."""
        try:
            self._engine.client.images.get(_named_by(spec))
        except ImageNotFound:
            return False
        return True

    def offer(self, spec: ServerSpec[Any]) -> str:
        """Return why the image's registry does not offer it; nothing if it does."""
        try:
            self._engine.client.api.inspect_distribution(_named_by(spec))
        except (DockerException, RequestException) as error:
            return _explanation(error)
        return ""

    def facts(self) -> Iterator[tuple[str, str]]:
        """Yield what there is to know of the engine, each thing with its name."""
        client = self._engine.client
        told = client.info()
        yield "engine", f"{client.version()['Version']}, {told['OperatingSystem']}"
        options = told.get("SecurityOptions") or []
        yield "rootless", "yes" if any("rootless" in each for each in options) else "no"
        yield "reached", str(self._engine.get_connection_mode().value)
        yield "host", self._engine.host()

    def _pull(self, image: str, spec: ServerSpec[Any], say: Callable[[str], None]) -> None:
        """Pull *image*, telling how far it has come.

        Raises `RuntimeUnavailable` with the registry's answer, or when there is none for `STALL`
        seconds.
        """
        say(f"pulling {image} ...")
        api = self._engine.client.api
        # docker-py waits for ever for a pull.
        api.mount(api.base_url, _Deadline(api.get_adapter(api.base_url), STALL))
        progress = Progress(image, time.monotonic())
        cause: Exception | None = None
        try:
            for line in api.pull(_tagged(image), stream=True, decode=True):
                if "error" in line:
                    words = line["error"]
                    break
                if text := progress.note(line, time.monotonic()):
                    say(text)
            else:
                say(progress.end(time.monotonic()))
                return
        except (RequestsTimeout, HTTPError) as error:
            cause, words = error, f"nothing has come for {STALL:g} seconds"
        except (DockerException, RequestException, OSError) as error:
            cause, words = error, _explanation(error)
        raise RuntimeUnavailable.no_image(
            image=image, cause=words, variable=spec.image_variable
        ) from cause


class _Deadline(BaseAdapter):
    """A way to the engine that waits for *seconds* at most, where docker-py would for ever."""

    def __init__(self, way: BaseAdapter, seconds: float) -> None:
        super().__init__()
        self._way = way
        self._seconds = seconds

    def send(self, request: Any, *args: Any, **options: Any) -> Any:
        """Send *request*; between two pieces of its answer no more than that time may pass."""
        options["timeout"] = options.get("timeout") or self._seconds
        return self._way.send(request, *args, **options)

    def close(self) -> None:
        """Close the way itself."""
        self._way.close()


class _Container(DockerContainer):
    """One server's container, as testcontainers makes them, but for its life.

    testcontainers' own `start` brings up its reaper and marks the container for it; the reaper
    then removes whatever carries the mark, also what should survive. So ours are created without
    the mark, and the reaper of the user's own containers is left alone.
    """

    def __init__(self, engine: _Engine, spec: ServerSpec[Any], labels: Any, name: str) -> None:
        with engine.named():
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
        wanted = [f"{key}={self._labels[key]}" for key in keys]
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
        password = os.urandom(16).hex()
        plan = spec.container(password, self._labels[Label.FINGERPRINT])
        route = self._engine.route
        image = self._client.images.get(self.image).attrs["Config"]
        # tmpfs on every folder that the image declares as a volume: then the data lies in memory
        # wherever this image puts it, and no anonymous volume is made.
        data = list(image.get("Volumes") or []) or [plan.data]
        self._container = None
        try:
            self._container = self._client.containers.create(
                self.image,
                name=self._name,
                command=list(plan.command),
                environment={**plan.environment, _PASSWORD: password},
                labels=self._labels,
                ports={f"{spec.port}/tcp": (bind, None)} if route.binds else {},
                tmpfs=dict.fromkeys(data, ""),
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
        raise NotOurs(f"it is {status}")

    def ready(self, seconds: float) -> Any:
        """Return the client of the server as soon as it answers.

        A server that has been up for longer than a start may take has only a little patience
        coming; one that another process has just started has as long as our own.
        """
        self.reload()
        up = time.time() - _timestamp(self._held.attrs["State"]["StartedAt"])
        return wait_ready(
            self._spec,
            self.endpoint(),
            self._labels[Label.FINGERPRINT],
            seconds=seconds if up < seconds else PATIENCE,
            death=self._death,
            log=self._log,
        )

    def connect(self, seconds: float) -> Any:
        """Return the client of the server that these labels describe, at the first try."""
        return self._spec.connect(self.endpoint(), self._labels[Label.FINGERPRINT], seconds)

    def endpoint(self) -> Endpoint:
        """Return where the server answers, seen from this process."""
        port = self._spec.port
        route = self._engine.route
        if not route.binds:
            host = self.get_docker_client().bridge_ip(self.get_container_id())
            return Endpoint(host=host, port=port, password=self._password())
        ports = self._held.attrs["NetworkSettings"]["Ports"]
        published = (ports.get(f"{port}/tcp") or [{}])[0]
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
            _remove(self._client, self.get_container_id())

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

    def _log(self) -> str:
        """Return the last lines that the server wrote, without its password."""
        try:
            return _without(self._password(), self._held.logs(tail=_LOG_LINES)).strip()
        except DockerException as error:
            return _explanation(error)

    def _password(self) -> str:
        return _password(self._held)

    @property
    def _client(self) -> Any:
        return self.get_docker_client().client

    @property
    def _held(self) -> EngineContainer:
        return self.get_wrapped_container()


def _named_by(spec: ServerSpec[Any]) -> str:
    """Return the image as testcontainers names it, for whoever has a registry of their own."""
    return f"{testcontainers_config.hub_image_name_prefix}{spec.image}"


def _tagged(image: str) -> str:
    """Return *image* with a tag, as `docker pull` has it: without one, all there are would come."""
    return image if ":" in image.rpartition("/")[2] or "@" in image else f"{image}:latest"


class Route(NamedTuple):
    """Where a server's port is published, and how it is reached from here.

    *binds* are the addresses to publish it on, to be tried in order; none when the container's
    own address is used, in *network*.
    """

    binds: tuple[str, ...]
    host: str
    network: str = ""


class _Engine:
    """The engine that the user's `docker` command talks to, and the way to its containers."""

    def __init__(self) -> None:
        self._tunnel: ssh.Tunnel | None = None
        self._address, source = "", ""
        try:
            self._address, source = _named()
            self._door = self._open()
            with self.named():
                self._docker = DockerClient()
        except (DockerException, RequestException, OSError) as error:
            words = self._tunnel.words() if self._tunnel else ""
            self._shut()
            raise RuntimeUnavailable.no_docker(
                cause=words or _explanation(error), address=self._address, source=source
            ) from error

    @property
    def client(self) -> Any:
        """The client of docker-py."""
        return self._docker.client

    def _open(self) -> str:
        """Return the address where docker-py can reach the engine; raise OSError if none can."""
        if self._address.startswith("ssh://"):
            if shutil.which("ssh") is None:
                raise FileNotFoundError("there is no program `ssh` here, such as OpenSSH's client")
            self._tunnel = ssh.Tunnel(self._address)
            return self._tunnel.address
        if self._address.startswith("unix://"):
            # docker-py would find out as well, but leave a socket unclosed, which fails runs that
            # turn warnings into errors.
            _peer(self._address)
        return self._address

    @contextmanager
    def named(self) -> Iterator[None]:
        """Let testcontainers find this engine, by DOCKER_HOST.

        It writes that variable itself, too. The user's own code reads it, so it is put back.
        """
        with _ENVIRONMENT:
            before = os.environ.get("DOCKER_HOST")
            os.environ["DOCKER_HOST"] = self._door
            try:
                yield
            finally:
                if before is None:
                    del os.environ["DOCKER_HOST"]
                else:
                    os.environ["DOCKER_HOST"] = before

    @cached_property
    def route(self) -> Route:
        """The way to a server's port, by testcontainers' rules.

        They have two gaps. They take a machine with the marker file of a container for one, also
        when it runs the engine itself. And of ssh they know the name that the user gave, not the
        host that ssh makes of it.
        """
        with self.named():
            mode = self._docker.get_connection_mode()
            host = self._docker.host()
            network = self._docker.find_host_network() or ""
        if self._tunnel:
            mode = testcontainers_config.connection_mode_override or ConnectionMode.docker_host
            host = testcontainers_config.tc_host_override or ssh.host(self._address)
        if mode is ConnectionMode.docker_host:
            address = "127.0.0.1" if host in _LOCAL else _resolved(host)
            return _route(mode, host, address, shared=_is_ours(address))
        gateway = _gateway(self.client.networks.get("bridge").attrs["IPAM"]["Config"][0])
        shared = _is_ours(gateway) or _is_here(self._door)
        if mode is ConnectionMode.bridge_ip and network.startswith("container:"):
            # Ours is another container's network, which nobody can join twice by that name.
            mode = ConnectionMode.gateway_ip
        return _route(mode, gateway, gateway, shared=shared, network=network)

    def close(self) -> None:
        """Close the connection to the engine."""
        self.client.close()
        self._shut()

    def _shut(self) -> None:
        """End what ssh still carries."""
        if self._tunnel:
            self._tunnel.close()


def _route(
    mode: ConnectionMode, host: str, address: str, *, shared: bool, network: str = ""
) -> Route:
    """Return the narrowest way to a port that an engine publishes.

    *host* leads to the engine's machine, and *address* is what it stands for, or empty; *shared*
    tells whether the engine's loopback is ours. If it isn't, the address that the engine is
    reached at is most likely one of its machine, and nothing else need be opened. Where it is
    not, behind a translation of addresses or a proxy, all of the machine's are left.
    """
    if shared:
        return Route(("127.0.0.1",), "127.0.0.1")
    if mode is ConnectionMode.bridge_ip:
        return Route((), "", network)
    return Route((address, "") if address else ("",), host)


def _reached(host: str, bound: str) -> str:
    """Return where a port is reached that is published on the address *bound*.

    As a rule there. But a wildcard is no address, and a loopback that is not ours is nowhere, so
    then it is *host*, which leads to the engine.
    """
    if not bound or ip_address(bound).is_unspecified or ip_address(bound).is_loopback:
        return host
    return bound


def _named() -> tuple[str, str]:
    """Return the engine's address, and what gave it that name.

    The order is testcontainers', with DOCKER_CONTEXT, which the `docker` command knows.
    """
    if address := testcontainers_config.tc_properties_get_tc_host():
        return address, "tc.host in ~/.testcontainers.properties"
    if address := os.environ.get("DOCKER_HOST"):
        return address, "DOCKER_HOST"
    name = os.environ.get("DOCKER_CONTEXT") or get_current_context_name()
    try:
        context = ContextAPI.get_context(name)
    except Exception as error:  # docker-py has no narrower one for a file that it can't read
        raise DockerException(f"the docker context {name!r} can't be read: {error}") from error
    if context is None:
        raise DockerException(f"there is no docker context {name!r}")
    if context.Host and context.Name != "default":
        return context.Host, f"the docker context {context.Name}"
    return DEFAULT_UNIX_SOCKET.removeprefix("http+"), "the default"


def _peer(address: str) -> int:
    """Return the process that listens on a `unix://` address, 0 when we can't see it.

    Raises OSError when nobody listens.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(PATIENCE)
        probe.connect(address.removeprefix("unix://"))
        if not hasattr(socket, "SO_PEERCRED"):
            return 0
        size = struct.calcsize("3i")
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        return int(struct.unpack("3i", credentials)[0])


@contextmanager
def _explained(title: str) -> Iterator[None]:
    """Turn what the engine refuses, and what can't be what it seemed, into `ServerFailed`."""
    try:
        yield
    except (DockerException, RequestException, NotOurs) as error:
        raise ServerFailed.refused(title=title, cause=_explanation(error)) from error


def _remove(client: Any, container_id: str) -> None:
    """Remove a container with its anonymous volumes; one that is going or gone is no error."""
    try:
        client.api.remove_container(container_id, force=True, v=True)
    except APIError as error:
        if error.status_code not in {404, 409}:
            raise


def _password(container: EngineContainer) -> str:
    """Return the password that a container was made with."""
    entries: list[str] = container.attrs["Config"]["Env"]
    return dict(entry.split("=", 1) for entry in entries).get(_PASSWORD, "")


def _config(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the configuration that a container was made from."""
    config: dict[str, str] = json.loads(labels.get(Label.CONFIG, "{}"))
    return config


def _without(password: str, written: bytes) -> str:
    """Return what a server wrote, as a text without its password."""
    text = written.decode(errors="replace")
    return text.replace(password, "***") if password else text


def _gateway(pool: dict[str, str]) -> str:
    """Return the bridge's address on the engine's machine.

    An engine that chose the network itself does not always tell the gateway; it is the network's
    first address then.
    """
    return pool.get("Gateway") or str(next(ip_network(pool["Subnet"]).hosts()))


def _is_ours(address: str) -> bool:
    """Tell whether *address* is one of this machine: only then can a socket be bound to it."""
    if not address:
        return False
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
        return True


def _is_here(address: str) -> bool:
    """Tell whether the engine at *address* is a process beside us, in the machine's own network.

    A container sees the engine's socket, but no process of the machine; and where it does see
    them (`--pid=host`), its network is another one.
    """
    if not address.startswith("unix://") or not _peer(address):
        return False
    try:
        return Path("/proc/1/ns/net").readlink() == Path("/proc/self/ns/net").readlink()
    except OSError:
        # Only root may look. Who is not root is hardly in such a container.
        return True


def _resolved(host: str) -> str:
    """Return the address that *host* stands for; empty when nobody knows it."""
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return ""


def _is_conflict(error: APIError) -> bool:
    """Tell whether the engine refuses a name because a container has it.

    Podman says so with the status of a fault of its own.
    """
    return error.status_code == 409 or "already in use" in _explanation(error)


def _timestamp(text: str) -> float:
    """Return a time of the engine's, such as `2026-11-22T10:00:00.123456789Z`, as epoch seconds."""
    return datetime.fromisoformat(text).timestamp()


def _explanation(error: Exception) -> str:
    """Return the engine's own words."""
    return str(getattr(error, "explanation", None) or error)
