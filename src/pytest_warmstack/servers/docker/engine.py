"""The Docker engine that the user's `docker` command uses, and how to reach a server's port on it.

testcontainers knows the rules (contexts, sockets, Docker in Docker); this module closes the gaps.
"""

from __future__ import annotations

import os
import re
import socket
import ssl
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from functools import cached_property
from ipaddress import ip_network
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from docker.constants import DEFAULT_UNIX_SOCKET
from docker.context import Context, ContextAPI
from docker.context.config import get_current_context_name
from docker.errors import APIError, DockerException, TLSParameterError
from docker.utils.config import find_config_file
from testcontainers.core.config import ConnectionMode, testcontainers_config
from testcontainers.core.docker_client import DockerClient
from testcontainers.core.labels import LABEL_SESSION_ID, SESSION_ID
from urllib3.exceptions import HTTPError

from pytest_warmstack import originals
from pytest_warmstack.servers.docker import errors
from pytest_warmstack.servers.docker.errors import DockerUnavailable, EngineFault
from pytest_warmstack.servers.docker.ssh import NoSsh, Tunnel, host_of
from pytest_warmstack.servers.model import ANSWER_TIMEOUT

_ENVIRONMENT: Final = threading.Lock()
"""Held while DOCKER_HOST is changed, because both servers start at the same time."""


def of_testcontainers() -> Iterator[tuple[str, int]]:
    """Yield the addresses of the containers that testcontainers started in this process.

    There are none if the engine doesn't answer.
    """
    # A test may block sockets with an exception of its own.
    with suppress(DockerException, DockerUnavailable, HTTPError, OSError, RuntimeError):
        _probe(find_address().url)
        docker = DockerClient(timeout=ANSWER_TIMEOUT)
        with closing(docker.client):
            label = f"{LABEL_SESSION_ID}={SESSION_ID}"
            for each in docker.client.api.containers(filters={"label": label}):
                networks = each["NetworkSettings"]["Networks"].values()
                hosts = ["localhost", docker.host(), *(net["Gateway"] for net in networks)]
                for port in each["Ports"]:
                    if "PublicPort" in port:
                        yield from ((host, port["PublicPort"]) for host in hosts)
                    yield from ((net["IPAddress"], port["PrivatePort"]) for net in networks)


class Route(NamedTuple):
    """Where a server's port is published, and the host at which this process reaches it.

    *binds* are the addresses to publish it on, in the order in which to try them. It is empty if
    this process uses the container's own address in *network*.
    """

    binds: tuple[str, ...]
    host: str
    network: str = ""


class EngineAddress(NamedTuple):
    """An engine's address, such as `unix:///var/run/docker.sock`, and the setting that names it.

    *arguments* make the `docker` command use the same engine. *variables* lead docker-py to the
    certificates of this engine if the environment's belong to another one.
    """

    url: str
    source: str
    arguments: tuple[str, ...] = ()
    variables: Mapping[str, str] = MappingProxyType({})


class Engine:
    """The engine that the user's `docker` command uses.

    All methods raise `RuntimeUnavailable` if the engine fails.
    """

    def __init__(self) -> None:
        self.address = find_address()
        self._tunnel: Tunnel | None = None
        try:
            self._reached_at = self._open()
            with self.environment():
                self._docker = DockerClient()
        except (DockerException, OSError) as error:
            failure = self._explain(error, errors.NOT_RUNNING)
            self._close_tunnel()
            raise failure from error

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn the errors of docker-py and of the connection into errors of this package."""
        try:
            _probe(self.address.url)
            yield
        except (DockerException, HTTPError, OSError) as error:
            raise self._explain(error, errors.LOST) from error

    def _explain(self, error: Exception, otherwise: EngineFault) -> DockerUnavailable:
        said = self._tunnel.words() if self._tunnel else ""
        return DockerUnavailable.by_engine(
            fault=_fault(error, said) or otherwise,
            cause=said or explanation(error) + _bundle_hint(error),
            address=self.address.url,
            source=self.address.source,
        )

    @property
    def client(self) -> Any:
        """The client of docker-py."""
        return self._docker.client

    def _open(self) -> str:
        """Return the address at which docker-py reaches the engine; raise OSError if none does."""
        if self.address.url.startswith("ssh://"):
            self._tunnel = Tunnel(self.address.url)
            return self._tunnel.address
        _probe(self.address.url)
        return self.address.url

    @contextmanager
    def environment(self) -> Iterator[None]:
        """Make testcontainers use this engine: set DOCKER_HOST and the variables that go with it.

        testcontainers sets DOCKER_HOST too. The project's code may read these variables, so they
        are restored afterwards.
        """
        wanted = {**self.address.variables, "DOCKER_HOST": self._reached_at}
        with _ENVIRONMENT:
            before = {name: os.environ[name] for name in wanted if name in os.environ}
            os.environ.update(wanted)
            try:
                yield
            finally:
                os.environ.update(before)
                for name in wanted.keys() - before.keys():
                    os.environ.pop(name, None)

    @cached_property
    def route(self) -> Route:
        """The way to a server's port, by testcontainers' rules.

        This method closes two gaps in them. They treat a machine with the marker file of a
        container as a container, even if it runs the engine itself. And for an engine behind ssh,
        they use the name that the user gave, which may be an alias, instead of the host.
        """
        with self.environment():
            mode = self._docker.get_connection_mode()
            host = self._docker.host()
            network = self._docker.find_host_network() or ""
        if self._tunnel:
            mode = testcontainers_config.connection_mode_override or ConnectionMode.docker_host
            host = testcontainers_config.tc_host_override or host_of(self.address.url)
        if mode is ConnectionMode.docker_host:
            address = "127.0.0.1" if host in {"localhost", "127.0.0.1", "::1"} else _resolve(host)
            return _route(mode, host, address, shared=_is_own_address(address))
        gateway = _gateway(self.client.networks.get("bridge").attrs["IPAM"]["Config"][0])
        shared = _is_own_address(gateway) or _is_beside(self._reached_at)
        if mode is ConnectionMode.bridge_ip and network.startswith("container:"):
            # This process shares another container's network, which can't be joined by name.
            mode = ConnectionMode.gateway_ip
        return _route(mode, gateway, gateway, shared=shared, network=network)

    def close(self) -> None:
        """Close the connection to the engine."""
        self.client.close()
        self._close_tunnel()

    def _close_tunnel(self) -> None:
        if self._tunnel:
            self._tunnel.close()


def find_address() -> EngineAddress:
    """Return the engine to use, in testcontainers' order, but also respect DOCKER_CONTEXT.

    Raises `RuntimeUnavailable` if the context can't be used.
    """
    if address := testcontainers_config.tc_properties_get_tc_host():
        source = "tc.host in ~/.testcontainers.properties"
        return EngineAddress(address, source, ("--host", address))
    if address := os.environ.get("DOCKER_HOST"):
        return EngineAddress(address, "DOCKER_HOST")
    name = os.environ.get("DOCKER_CONTEXT") or get_current_context_name()
    try:
        context = ContextAPI.get_context(name)
    except Exception as error:  # docker-py raises many kinds for a file that it can't read
        raise DockerUnavailable.no_context(name=name, cause=f"can't read it: {error}") from error
    if context is None:
        # docker-py finds contexts only next to that file; the `docker` command doesn't need it.
        where = (
            "" if find_config_file() else "; docker-py finds contexts only next to a config.json"
        )
        raise DockerUnavailable.no_context(name=name, cause=f"context not found{where}")
    if context.Host and context.Name != "default":
        source = f"the Docker context {context.Name}"
        return EngineAddress(context.Host, source, variables=_certificates(context))
    return EngineAddress(DEFAULT_UNIX_SOCKET.removeprefix("http+"), "the default")


def _certificates(context: Context) -> Mapping[str, str]:
    """Return the variables that lead docker-py to the certificates of *context*, if it has any.

    A context keeps them under the same three names as the folder in DOCKER_CERT_PATH. For a
    context, the `docker` command ignores the environment's certificates, and so does this.
    """
    if context.TLSConfig is None:
        return {"DOCKER_CERT_PATH": "", "DOCKER_TLS_VERIFY": ""}
    return {
        "DOCKER_CERT_PATH": str(Path(context.TLSConfig.ca_cert).parent),
        "DOCKER_TLS_VERIFY": "1" if context.TLSConfig.verify else "",
    }


def _route(
    mode: ConnectionMode, host: str, address: str, *, shared: bool, network: str = ""
) -> Route:
    """Return the way to a published port that opens as few of the machine's addresses as possible.

    *host* leads to the engine's machine, and *address* is what it resolves to, or empty. With
    *shared*, the engine and this process have the same loopback. Otherwise the address at which
    this process reaches the engine most likely belongs to the engine's machine, and the port is
    published there alone. Behind address translation or a proxy, that fails; then the port is
    published on all addresses of the machine.
    """
    if shared:
        return Route(("127.0.0.1",), "127.0.0.1")
    if mode is ConnectionMode.bridge_ip:
        return Route((), "", network)
    return Route((address, "") if address else ("",), host)


def _probe(address: str) -> None:
    """Raise OSError if *address* is that of a socket file, and nothing listens on it.

    docker-py would notice that too, but it leaves a socket open, which fails runs that turn
    warnings into errors.
    """
    if address.startswith("unix://"):
        _listening_process(address)


def _listening_process(address: str) -> int:
    """Return the id of the process that listens on a `unix://` address; 0 if it is not visible.

    Raises OSError if no process listens.
    """
    with originals.Socket(socket.AF_UNIX) as probe:
        probe.settimeout(ANSWER_TIMEOUT)
        probe.connect(address.removeprefix("unix://"))
        if not hasattr(socket, "SO_PEERCRED"):
            return 0
        size = struct.calcsize("3i")
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        return int(struct.unpack("3i", credentials)[0])


def _gateway(pool: dict[str, str]) -> str:
    """Return the bridge's address on the engine's machine.

    An engine that chose the network itself does not always report the gateway. Then it is the
    first address of the network.
    """
    return pool.get("Gateway") or str(next(ip_network(pool["Subnet"]).hosts()))


def _is_own_address(address: str) -> bool:
    """Return whether this machine has *address*: only then can a socket be bound to it."""
    if not address:
        return False
    try:
        with originals.Socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True


def _is_beside(address: str) -> bool:
    """Return whether the engine at *address* is a process in this machine's network.

    In a container, this process sees the engine's socket, but not the machine's processes; with
    `--pid=host` it sees them, but has another network.
    """
    if not address.startswith("unix://") or not _listening_process(address):
        return False
    try:
        return Path("/proc/1/ns/net").readlink() == Path("/proc/self/ns/net").readlink()
    except OSError:
        # Only root may read it; a container with `--pid=host` most likely runs as root.
        return True


def _resolve(host: str) -> str:
    """Return the address of *host*, or "" if it has none."""
    try:
        return str(originals.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0])
    except OSError:
        return ""


def _fault(error: Exception, said: str) -> EngineFault | None:
    """Return the failure that *error* and the text that ssh *said* stand for; None if unknown."""
    if re.search("docker (daemon|api)", said.lower()):
        # `docker` on the other machine wrote this.
        return errors.NO_PERMISSION if "permission denied" in said.lower() else errors.NOT_RUNNING
    if said or isinstance(error, NoSsh):
        return errors.NO_SSH
    if isinstance(error, PermissionError):
        return errors.NO_PERMISSION
    if isinstance(error, APIError) or isinstance(error.__cause__, APIError):
        return errors.REFUSED
    each: BaseException | None = error
    while each is not None:
        if isinstance(each, (ssl.SSLError, TLSParameterError)):
            return errors.NO_TLS
        each = each.__cause__ or each.__context__
    return None


def _bundle_hint(error: Exception) -> str:
    """Return the reason why a certificate is not trusted, if a variable is the reason.

    requests prefers these variables to docker-py's arguments (psf/requests#3829).
    """
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if os.environ.get(name) and "CERTIFICATE_VERIFY_FAILED" in str(error):
            return f"; {name} is set, and replaces the engine's own certificate authority"
    return ""


def explanation(error: Exception) -> str:
    """Return the engine's own words, or the operating system's, without the number."""
    return re.sub(r"^\[Errno -?\d+\] ", "", str(getattr(error, "explanation", None) or error))
