"""Servers in Docker containers: found by label, reused, replaced, started, removed.

testcontainers knows where the engine is and how its containers are reached (contexts, sockets,
ssh hosts, Docker in Docker); this is the only room that speaks to it.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from ipaddress import ip_network
from typing import Any, Final, Self

from docker.constants import DEFAULT_UNIX_SOCKET
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.models.containers import Container as EngineContainer
from requests.adapters import BaseAdapter
from requests.exceptions import RequestException
from requests.exceptions import Timeout as RequestsTimeout
from testcontainers.core.config import ConnectionMode
from testcontainers.core.container import DockerContainer
from testcontainers.core.docker_client import DockerClient, get_docker_host
from urllib3.exceptions import HTTPError

from pytest_warmstack.errors import RuntimeUnavailable, ServerFailed
from pytest_warmstack.identity import Label
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
_LOG_LINES: Final = 30
_PASSWORD: Final = "WARMSTACK_PASSWORD"  # noqa: S105 - the name of a variable
"""Where a container's password is kept: its environment, which only the engine can read."""


class Docker:
    """The runtime `docker`."""

    name = RuntimeName.DOCKER

    def __init__(self, household: Household) -> None:
        self._household = household
        self._engine = _engine()

    def check(self, specs: Sequence[ServerSpec[Any]], say: Callable[[str], None]) -> None:
        """Raise `RuntimeUnavailable` unless the images of all *specs* are there or were pulled."""
        for spec in specs:
            image = DockerContainer(spec.image).image
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
        with _explained(spec.title), _Container(spec, labels, name) as container:
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
                _remove(self._engine, found.id)

    def close(self) -> None:
        """Close the connection to the engine."""
        self._engine.client.close()

    def connect(self, spec: ServerSpec[C], found: Found) -> C:
        """Return a client of the server that was found."""
        with _Container(spec, found.labels, found.name) as container:
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
            self._engine.client.images.get(DockerContainer(spec.image).image)
        except ImageNotFound:
            return False
        return True

    def offer(self, spec: ServerSpec[Any]) -> str:
        """Return why the image's registry does not offer it; nothing if it does."""
        try:
            self._engine.client.api.inspect_distribution(DockerContainer(spec.image).image)
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

    def __init__(self, spec: ServerSpec[Any], labels: Any, name: str) -> None:
        with _unchanged_environment():
            super().__init__(spec.image)
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
        spec = self._spec
        password = os.urandom(16).hex()
        plan = spec.container(password, self._labels[Label.FINGERPRINT])
        bind, _ = self._route()
        image = self._client.images.get(self.image).attrs["Config"]
        # tmpfs on every folder that the image declares as a volume: then the data lies in memory
        # wherever this image puts it, and no anonymous volume is made.
        data = list(image.get("Volumes") or []) or [plan.data]
        network = None if get_docker_host() else self.get_docker_client().find_host_network()
        try:
            self._container = self._client.containers.create(
                self.image,
                name=self._name,
                command=list(plan.command),
                environment={**plan.environment, _PASSWORD: password},
                labels=self._labels,
                ports={} if bind is None else {f"{spec.port}/tcp": (bind, None)},
                tmpfs=dict.fromkeys(data, ""),
                shm_size=plan.shm_size,
                **({"network": network} if network else {}),
            )
            self._container.start()
        except APIError as error:
            if error.status_code == 409 and self._container is None:
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
        container = self._held
        port = self._spec.port
        bind, host = self._route()
        if bind is None:
            return Endpoint(
                host=self.get_docker_client().bridge_ip(self.get_container_id()),
                port=port,
                password=self._password(),
            )
        published = container.attrs["NetworkSettings"]["Ports"].get(f"{port}/tcp") or [{}]
        return Endpoint(
            host=host, port=int(published[0].get("HostPort", 0)), password=self._password()
        )

    def since(self) -> float:
        """Return when the container was created, in seconds since the epoch."""
        return _timestamp(self._held.attrs["Created"])

    def remove(self) -> None:
        """Remove the container with its data."""
        if self._container is not None:
            _remove(self.get_docker_client(), self.get_container_id())

    def _route(self) -> tuple[str | None, str]:
        """Return the address to publish the port on, and the one to connect to.

        Loopback wherever it leads to the engine's machine. testcontainers takes the bridge's
        gateway when the marker file of a container exists; that file is there on machines that
        run an engine of their own too. What counts is whether the gateway's address is an
        address of this machine: then loopback is shared with the engine.
        """
        client = self.get_docker_client()
        mode = client.get_connection_mode()
        if mode is ConnectionMode.bridge_ip:
            return None, ""
        if mode is ConnectionMode.docker_host:
            host = client.host()
            return ("127.0.0.1", "127.0.0.1") if host in _LOCAL else ("", host)
        gateway = _gateway(self._client.networks.get("bridge").attrs["IPAM"]["Config"][0])
        return ("127.0.0.1", "127.0.0.1") if _is_ours(gateway) else (gateway, gateway)

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


def _tagged(image: str) -> str:
    """Return *image* with a tag, as `docker pull` has it: without one, all there are would come."""
    return image if ":" in image.rpartition("/")[2] or "@" in image else f"{image}:latest"


def _engine() -> DockerClient:
    """Return testcontainers' client of the engine, or raise `RuntimeUnavailable`."""
    host = get_docker_host() or DEFAULT_UNIX_SOCKET.replace("http+unix", "unix")
    try:
        _knock(host)
        with _unchanged_environment():
            return DockerClient()
    except (DockerException, RequestException, OSError) as error:
        source = "DOCKER_HOST, the docker context and ~/.testcontainers.properties name"
        raise RuntimeUnavailable.no_docker(
            cause=_explanation(error), tried=[f"{host} (as {source} it)"]
        ) from error


def _knock(host: str) -> None:
    """Raise OSError when nobody listens on the engine's socket.

    docker-py would find out as well, but leave a socket unclosed, which fails runs that turn
    warnings into errors.
    """
    if host.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(PATIENCE)
            probe.connect(host.removeprefix("unix://"))


@contextmanager
def _explained(title: str) -> Iterator[None]:
    """Turn what the engine refuses, and what can't be what it seemed, into `ServerFailed`."""
    try:
        yield
    except (DockerException, RequestException, NotOurs) as error:
        raise ServerFailed.refused(title=title, cause=_explanation(error)) from error


@contextmanager
def _unchanged_environment() -> Iterator[None]:
    """Undo what testcontainers' client writes into the environment: the user's code reads it."""
    before = os.environ.get("DOCKER_HOST")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("DOCKER_HOST", None)
        else:
            os.environ["DOCKER_HOST"] = before


def _remove(engine: DockerClient, container_id: str) -> None:
    """Remove a container with its anonymous volumes; one that is going or gone is no error."""
    try:
        engine.client.api.remove_container(container_id, force=True, v=True)
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
    with socket.socket() as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
        return True


def _timestamp(text: str) -> float:
    """Return a time of the engine's, such as `2026-11-22T10:00:00.123456789Z`, as epoch seconds."""
    return datetime.fromisoformat(text).timestamp()


def _explanation(error: Exception) -> str:
    """Return the engine's own words."""
    return str(getattr(error, "explanation", None) or error)
