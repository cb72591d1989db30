"""The engine that the user's `docker` command talks to, and the way to a server's port on it.

testcontainers knows the rules (contexts, sockets, Docker in Docker); what it leaves open is closed
here.
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from ipaddress import ip_network
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from docker.constants import DEFAULT_UNIX_SOCKET
from docker.context import Context, ContextAPI
from docker.context.config import get_current_context_name
from docker.errors import APIError, DockerException
from docker.utils.config import find_config_file
from requests.exceptions import RequestException
from testcontainers.core.config import ConnectionMode, testcontainers_config
from testcontainers.core.docker_client import DockerClient
from urllib3.exceptions import HTTPError

from pytest_warmstack.servers.docker import ssh
from pytest_warmstack.servers.errors import RuntimeUnavailable
from pytest_warmstack.servers.model import ANSWER_TIMEOUT

_LOCAL: Final = {"localhost", "127.0.0.1", "::1"}
_ENVIRONMENT: Final = threading.Lock()
"""Held while DOCKER_HOST is not the user's: both servers are started at once."""


class Route(NamedTuple):
    """Where a server's port is published, and how it is reached from here.

    *binds* are the addresses to publish it on, to be tried in order; none when the container's
    own address is used, in *network*.
    """

    binds: tuple[str, ...]
    host: str
    network: str = ""


class Named(NamedTuple):
    """An engine's address, and what gave it that name.

    *arguments* tell the `docker` command to take the same one, and *variables* docker-py which
    certificates to show and to trust there, where that is not for the environment to say.
    """

    address: str
    source: str
    arguments: tuple[str, ...] = ()
    variables: Mapping[str, str] = MappingProxyType({})


class Engine:
    """The engine that the user's `docker` command talks to, and the way to its containers."""

    def __init__(self) -> None:
        self._tunnel: ssh.Tunnel | None = None
        self.named = Named("", "")
        try:
            self.named = _named()
            self._door = self._open()
            with self.found():
                self._docker = DockerClient()
        except (DockerException, RequestException, OSError) as error:
            words = self._tunnel.words() if self._tunnel else ""
            self._shut()
            raise RuntimeUnavailable.no_docker(
                cause=words or explanation(error) + _bundle(error),
                address=self.named.address,
                source=self.named.source,
            ) from error

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn every error of docker-py, and of the way to the engine, into one of this package."""
        try:
            self._see_that_it_listens()
            yield
        except APIError as error:
            raise RuntimeUnavailable.engine_refused(cause=explanation(error)) from error
        except (DockerException, RequestException, HTTPError, OSError) as error:
            words = self._tunnel.words() if self._tunnel else ""
            raise RuntimeUnavailable.engine_lost(
                cause=words or explanation(error),
                address=self.named.address,
                source=self.named.source,
            ) from error

    @property
    def client(self) -> Any:
        """The client of docker-py."""
        return self._docker.client

    def _open(self) -> str:
        """Return the address where docker-py can reach the engine; raise OSError if none can."""
        address = self.named.address
        if address.startswith("ssh://"):
            if shutil.which("ssh") is None:
                raise FileNotFoundError("there is no program `ssh` here, such as OpenSSH's client")
            self._tunnel = ssh.Tunnel(address)
            return self._tunnel.address
        self._see_that_it_listens()
        return address

    def _see_that_it_listens(self) -> None:
        """Raise OSError if nothing listens on the engine's socket, as far as that is one.

        docker-py would find out as well, but leave a socket unclosed, which fails runs that turn
        warnings into errors.
        """
        if self.named.address.startswith("unix://"):
            _peer(self.named.address)

    @contextmanager
    def found(self) -> Iterator[None]:
        """Let testcontainers find this engine, by DOCKER_HOST and what goes with it.

        It writes that variable itself, too. The user's own code reads it, so all is put back.
        """
        wanted = {**self.named.variables, "DOCKER_HOST": self._door}
        with _ENVIRONMENT:
            before = {name: os.environ.get(name) for name in wanted}
            os.environ.update(wanted)
            try:
                yield
            finally:
                for name, value in before.items():
                    if value is None:
                        os.environ.pop(name, None)
                    else:
                        os.environ[name] = value

    @cached_property
    def route(self) -> Route:
        """The way to a server's port, by testcontainers' rules.

        They have two gaps. They take a machine with the marker file of a container for one, also
        when it runs the engine itself. And of ssh they know the name that the user gave, not the
        host that ssh makes of it.
        """
        with self.found():
            mode = self._docker.get_connection_mode()
            host = self._docker.host()
            network = self._docker.find_host_network() or ""
        if self._tunnel:
            mode = testcontainers_config.connection_mode_override or ConnectionMode.docker_host
            host = testcontainers_config.tc_host_override or ssh.host(self.named.address)
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


def _named() -> Named:
    """Return how the engine is named here.

    The order is testcontainers', with DOCKER_CONTEXT, which the `docker` command knows.
    """
    if address := testcontainers_config.tc_properties_get_tc_host():
        source = "tc.host in ~/.testcontainers.properties"
        return Named(address, source, ("--host", address))
    if address := os.environ.get("DOCKER_HOST"):
        return Named(address, "DOCKER_HOST")
    name = os.environ.get("DOCKER_CONTEXT") or get_current_context_name()
    try:
        context = ContextAPI.get_context(name)
    except Exception as error:  # docker-py has no narrower one for a file that it can't read
        raise DockerException(f"the docker context {name!r} can't be read: {error}") from error
    if context is None:
        # docker-py looks for contexts beside that file only; the `docker` command can do without.
        where = "" if find_config_file() else ", as far as docker-py looks without a config.json"
        raise DockerException(f"there is no docker context {name!r}{where}")
    if context.Host and context.Name != "default":
        source = f"the docker context {context.Name}"
        return Named(context.Host, source, variables=_certificates(context))
    return Named(DEFAULT_UNIX_SOCKET.removeprefix("http+"), "the default")


def _certificates(context: Context) -> Mapping[str, str]:
    """Return the variables that lead docker-py to the certificates of *context*, if it has any.

    A context keeps them by the same three names as the folder of DOCKER_CERT_PATH. Those of the
    environment are not meant for it; the `docker` command does not show them there either.
    """
    if context.TLSConfig is None:
        return {"DOCKER_CERT_PATH": "", "DOCKER_TLS_VERIFY": ""}
    return {
        "DOCKER_CERT_PATH": str(Path(context.TLSConfig.ca_cert).parent),
        "DOCKER_TLS_VERIFY": "1" if context.TLSConfig.verify else "",
    }


def _peer(address: str) -> int:
    """Return the process that listens on a `unix://` address, 0 when we can't see it.

    Raises OSError when nobody listens.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(ANSWER_TIMEOUT)
        probe.connect(address.removeprefix("unix://"))
        if not hasattr(socket, "SO_PEERCRED"):
            return 0
        size = struct.calcsize("3i")
        credentials = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        return int(struct.unpack("3i", credentials)[0])


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


def _bundle(error: Exception) -> str:
    """Return what to know of a certificate that is not trusted, to be added to *error*'s words.

    requests lets these variables win over what docker-py tells it (psf/requests#3829).
    """
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        if os.environ.get(name) and "CERTIFICATE_VERIFY_FAILED" in str(error):
            return f"; {name} is set, and stands in the place of the engine's own authority"
    return ""


def explanation(error: Exception) -> str:
    """Return the engine's own words."""
    return str(getattr(error, "explanation", None) or error)
