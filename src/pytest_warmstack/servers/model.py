"""The model: the wanted server, what is known of a server, and what a runtime can do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, Protocol, Self, TypeVar
from urllib.parse import quote

from pytest_warmstack.options import MaskedUrl, RuntimeName
from pytest_warmstack.servers.identity import (
    KEPT,
    NAMESPACE,
    SERVER_FORMAT,
    Label,
    Process,
    Project,
    Service,
    digest,
    fingerprint,
)
from pytest_warmstack.structs import Struct

USER: Final = "postgres"
"""The superuser of a managed PostgreSQL."""

MAINTENANCE: Final = "postgres"
"""The PostgreSQL database to connect to, because advisory locks work within one database only.

All processes use this database, whichever one a URL names.
"""

LOOKER: Final = "warmstack-look"
"""The prefix of the name of a connection that only inspects and doesn't count as a user."""

REDIS_DATABASES: Final = 256
"""How many databases a managed Redis has."""

ANSWER_TIMEOUT: Final = 3.0
"""Seconds that a server may take to answer if it has run for a while."""


class NotReady(Exception):
    """The server doesn't answer yet; it may do so soon."""


class NotOurs(Exception):
    """Another server answers, or the server refuses the password."""


class Endpoint(Struct, frozen=True, kw_only=True):
    """The address of a server, and the user to connect as.

    An empty *user* means the server's default. *scheme* and *query* come from the URL of an
    external server, for TLS for example. With *looks*, the connection doesn't count as a use.
    """

    host: str
    port: int
    password: str
    user: str = ""
    scheme: str = ""
    query: str = ""
    looks: bool = False

    secret = frozenset({"password", "query"})

    @property
    def place(self) -> str:
        """The address as in a URL, with an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def authority(self, user: str = "") -> str:
        """Return the part of a URL between `//` and the path; *user* is the default user."""
        password = f":{quote(self.password, safe='')}" if self.password else ""
        login = f"{quote(self.user or user, safe='')}{password}"
        return f"{login}@{self.place}" if login else self.place


NOWHERE: Final = Endpoint(host="", port=0, password="")


class Client(Protocol):
    """The connection that has shown that a server is ready, and that is then used."""

    endpoint: Endpoint
    """The address, completed with what the server reports."""

    version: str
    """The version that the server reports, such as `16.14`."""

    also: str
    """The name and version of a compatible server, such as `Valkey 8.1.1`, or ""."""

    def users(self) -> int:
        """Return the number of other processes that use the server."""

    def used(self) -> float:
        """Return the time of the last use in seconds since the epoch, 0 if unknown."""

    def use(self, seconds: float) -> None:
        """Let a connection that only looks count as a use, if it answers within *seconds*.

        Raises `NotReady`, `NotOurs`, and errors of the package if it doesn't.
        """

    def abandon(self) -> None:
        """End the connection without waiting for the server."""

    def close(self) -> None:
        """Close the connection."""


C = TypeVar("C", bound=Client)
C_co = TypeVar("C_co", bound=Client, covariant=True)


class Container(Struct, frozen=True, kw_only=True):
    """The settings of a container, for the entrypoint of its image.

    *takers* are the programs and scripts that accept the server's *arguments*; others read them
    from *variable*, separated by spaces. *data* is the data folder if the image declares neither a
    volume nor *data_variable*. *shm_size* is in bytes. *contract* is shown in an error: how an
    image has to accept the password and the settings.
    """

    environment: Mapping[str, str]
    arguments: Sequence[str]
    contract: str
    data: str
    shm_size: int
    takers: frozenset[str] = frozenset()
    variable: str = ""
    data_variable: str = ""

    secret = frozenset({"environment"})


class Command(Struct, frozen=True, kw_only=True):
    """The command of a native server, and the *user* to run it as; *note* is shown to the user."""

    arguments: Sequence[str]
    user: str | None = None
    environment: Mapping[str, str] = {"LC_ALL": "C"}
    note: str = ""

    secret = frozenset({"environment"})


class Need(NamedTuple):
    """The space that an embedded server needs: *least* bytes, better *wanted*, and *files*.

    *user* runs the server, if it isn't the current user; *executes* is set if its program is copied
    there too.
    """

    least: int = 0
    wanted: int = 0
    files: int = 0
    user: str | None = None
    executes: bool = False


class Native(Protocol):
    """The programs of a server on this machine."""

    def prepare(self, folder: Path, password: str) -> Callable[[int], Command]:
        """Write the server's files into *folder*; return the function from a port to its command.

        Raises `RuntimeUnavailable` if there is no usable program.
        """

    def check(self) -> None:
        """Raise `RuntimeUnavailable` if there is no usable program."""

    def need(self) -> Need:
        """Return the space that the server needs."""

    def places(self) -> Iterator[tuple[str, str, bool]]:
        """Yield each place to search, what is there, and whether it is usable.

        Lines after the first line of what is there are details.
        """


class ServerSpec(Struct, Generic[C], frozen=True, kw_only=True):
    """The server that the settings ask for, whichever runtime runs it.

    *url* is the URL of an external server; then the other fields only describe how to connect.
    *image_source* is the setting that names the image, empty for the default. *major* is the wanted
    version, None for any; *native_major* replaces it for embedded servers. *programs* and *folder*
    are folders from the settings, for the server's programs and for its files. *number*
    distinguishes several servers of a service, from 1; 0 is the shared server. *reserved* is the
    address and the password that the server must have, if code has read them already.

    *container* takes a password and a fingerprint, *native* a fingerprint. *connect* takes an
    endpoint, the expected fingerprint (empty for an external server) and a timeout in seconds;
    it sends a real query and raises `NotReady` or `NotOurs`.
    """

    service: Service
    title: str
    image: str
    image_variable: str
    image_source: str = ""
    major: int | None
    programs: str
    options: Mapping[str, str]
    port: int
    container: Callable[[str, str], Container]
    native: Callable[[str], Native]
    connect: Callable[[Endpoint, str, float], C]
    environment: Mapping[str, str] = {}
    native_major: int | None = None
    folder: str = ""
    number: int = 0
    url: str = ""
    url_variable: str = ""
    reserved: Endpoint | None = None

    secret = frozenset({"environment", "url"})

    @property
    def key(self) -> str:
        """The server's name within a project: `redis` or `redis-2`."""
        return f"{self.service}-{self.number}" if self.number else str(self.service)

    def config(self, runtime: str) -> dict[str, str]:
        """Return everything that a running server must have in common with this spec, by name."""
        if runtime == RuntimeName.DOCKER:
            origin = {"image": self.image}
        else:
            origin = {"version": str(self.wanted_major(runtime) or "any")}
            origin |= {"programs": self.programs, "folder": self.folder}
        number = str(self.number) if self.number else ""
        named = {key: value for key, value in {**origin, "number": number}.items() if value}
        return {"format": SERVER_FORMAT, **named, **self.options, **digest(self.environment)}

    def fingerprint(self, runtime: str) -> str:
        """Return the fingerprint of `config`."""
        parts = [self.service, runtime, self.config(runtime)]
        return fingerprint(json.dumps(parts, sort_keys=True))

    def wanted_major(self, runtime: str) -> int | None:
        """Return the major version that is wanted from *runtime*, None for any."""
        native = self.native_major if runtime == RuntimeName.EMBEDDED else None
        return native or self.major


class ServerInfo(Struct, frozen=True, kw_only=True):
    """What is known of a server: the same record in lists and in files.

    *id* is a container's id or a `Process`. *labels* contain the owner and the configuration (see
    `Label`), *what* is the image or program. *state* is `running` or the runtime's word for another
    state, *since* is in seconds since the epoch. *note* is shown to the user. A *kind* other than
    `server` is a leftover: a volume, a network, a folder.
    """

    runtime: str
    id: str
    name: str
    labels: Mapping[str, str]
    endpoint: Endpoint = NOWHERE
    what: str = ""
    state: str = ""
    since: float = 0.0
    note: str = ""
    kind: str = "server"

    @classmethod
    def from_plain(cls, plain: Any) -> Self:
        """Return the record from `to_plain`; raise TypeError or KeyError for anything else."""
        return cls(**{**plain, "endpoint": Endpoint(**plain["endpoint"])})

    def to_plain(self) -> dict[str, Any]:
        """Return this record for JSON. It contains the password."""
        plain = {name: getattr(self, name) for name in ServerInfo.field_names}
        return {**plain, "endpoint": self.endpoint.fields()}

    def ready(self, spec: ServerSpec[Any], client: C, origin: str, *reasons: str) -> Server[C]:
        """Return this server, which has answered *client*, as a `Server`."""
        reason = "; ".join(filter(None, reasons))
        return Server(
            **self.fields(), title=spec.title, client=client, origin=origin, reason=reason
        )

    @property
    def running(self) -> bool:
        """Whether the server runs."""
        return self.state == "running"

    @property
    def service(self) -> str:
        """The service, or "" if the label has no known service."""
        label = self.labels.get(Label.SERVICE, "")
        return label if label in set(Service) else ""

    @property
    def fingerprint(self) -> str:
        """The fingerprint of its configuration; an external server has none."""
        return self.labels.get(Label.FINGERPRINT, "")

    @property
    def config(self) -> dict[str, str]:
        """The configuration that it was made from; empty if the label is not readable."""
        try:
            plain = json.loads(self.labels.get(Label.CONFIG, ""))
            return {str(key): str(value) for key, value in plain.items()}
        except (ValueError, AttributeError):
            return {}

    @property
    def path(self) -> str:
        """The root of its project."""
        return self.labels.get(Label.PATH, "")

    @property
    def owner(self) -> Process | None:
        """The process that it was made for."""
        return Process.parse(self.labels.get(Label.OWNER, ""))

    @property
    def kept(self) -> bool:
        """Whether it outlives its run."""
        return self.labels.get(Label.RUN) == KEPT

    @property
    def orphaned(self) -> bool:
        """Whether its run has certainly ended."""
        return not self.kept and self.owner is not None and self.owner.is_gone()


class Server(ServerInfo, Generic[C_co], frozen=True, kw_only=True):
    """A server that is ready, with the *client* that it answered.

    *origin* is `reused`, `shared` (another process of this run started it), `started`,
    `started again`, `replaced`, or `connected` to an external server; *reason* explains it where
    it isn't obvious.
    """

    title: str
    client: C_co
    origin: str
    reason: str = ""

    @property
    def external(self) -> bool:
        """Whether it is an external server."""
        return self.runtime == RuntimeName.EXTERNAL

    def facts(self, why: str) -> dict[str, str]:
        """Return what the run's header reports; *why* explains the choice of the runtime."""
        own = {name: getattr(self, name) for name in ("runtime", "what", "origin", "reason")}
        title = f"{self.title} {version_of(self.client)}"
        since = str(self.since) if self.since else ""
        return {**own, "title": title, "place": self.endpoint.place, "why": why, "since": since}

    def handle(self, database: int = 0) -> ServerHandle:
        """Return the handle for tests; the URL of a Redis server leads to *database*."""
        return ServerHandle(
            endpoint=self.client.endpoint,
            id=self.id,
            runtime=self.runtime,
            version=self.client.version,
            service=Service(self.service),
            database=database,
        )


class ServerHandle(Struct, frozen=True, kw_only=True):
    """A running server, in Docker or not, with the methods of testcontainers' containers."""

    endpoint: Endpoint
    id: str
    runtime: str
    version: str
    service: Service
    database: int = 0

    @property
    def host(self) -> str:
        """The host to connect to."""
        return self.endpoint.host

    @property
    def port(self) -> int:
        """The port to connect to."""
        return self.endpoint.port

    @property
    def password(self) -> str:
        """The password of the server."""
        return self.endpoint.password

    def get_container_host_ip(self) -> str:
        """Return the host to connect to."""
        return self.host

    def get_exposed_port(self, port: int = 0) -> int:
        """Return the port to connect to, whatever *port* the server has in its container."""
        return self.port

    def get_connection_url(self, host: str | None = None, driver: str | None = "asyncpg") -> str:
        """Return the URL of PostgreSQL's maintenance database, or of this process's Redis database.

        *driver* is SQLAlchemy's name of a PostgreSQL driver; None gives a plain URL.
        """
        endpoint = self.endpoint.replace(host=host or self.host)
        if self.service is Service.REDIS:
            return redis_url(endpoint, self.database)
        return postgres_url(endpoint, MAINTENANCE, driver)


class RunContext(Struct, frozen=True, kw_only=True):
    """The context of a runtime: a project, a run, and the process that owns the run.

    With *keep*, servers outlive the run. *start_timeout* is in seconds.
    """

    project: Project
    run: str
    owner: Process
    keep: bool
    start_timeout: float

    @property
    def label(self) -> str:
        """The value of `Label.RUN`."""
        return KEPT if self.keep else self.run

    def labels(self, spec: ServerSpec[Any], runtime: str) -> dict[str, str]:
        """Return the labels of this run's server for *spec*."""
        return {
            Label.PROJECT: self.project.id,
            Label.PATH: self.project.path,
            Label.SERVICE: spec.service,
            Label.NUMBER: str(spec.number),
            Label.FINGERPRINT: spec.fingerprint(runtime),
            Label.CONFIG: json.dumps(spec.config(runtime), sort_keys=True),
            Label.VERSION: version(NAMESPACE),
            Label.RUN: self.label,
            Label.OWNER: str(self.owner),
        }

    def owns(self, found: ServerInfo, spec: ServerSpec[Any]) -> bool:
        """Return whether *found* is this run's server for *spec*, even if it is outdated."""
        own = self.labels(spec, found.runtime)
        keys = (Label.PROJECT, Label.SERVICE, Label.NUMBER, Label.RUN)
        return all(found.labels.get(key) == own[key] for key in keys)

    def name(self, spec: ServerSpec[Any], runtime: str) -> str:
        """Return the server's name; it is unique, so two processes can't make two servers."""
        parts = ["warmstack", self.project.slug, self.project.id, self.label, spec.key]
        return "-".join([*filter(None, parts), spec.fingerprint(runtime)[:8]])


class Runtime(Protocol):
    """A source of servers."""

    @property
    def name(self) -> str:
        """The name of the runtime in the settings."""

    def ensure(self, spec: ServerSpec[C]) -> Server[C]:
        """Return the run's server for *spec*; start it if necessary.

        If it doesn't become ready, remove it and raise `ServerFailed`.
        """


class OwnRuntime(Runtime, Protocol):
    """A runtime that finds, starts and removes its servers itself.

    All methods raise `RuntimeUnavailable` if the engine or the operating system fails, and
    `ServerFailed` if a single server does.
    """

    @property
    def on_loopback(self) -> bool:
        """Whether this process reaches new servers at 127.0.0.1."""

    def check(self, specs: Sequence[ServerSpec[Any]], say: Callable[[str], None]) -> None:
        """Raise `RuntimeUnavailable` unless servers of all *specs* can run here.

        *say* reports slow work, such as a pull.
        """

    def list(self) -> list[ServerInfo]:
        """Return all managed servers in this runtime, for all projects."""

    def connect(self, spec: ServerSpec[C], found: ServerInfo) -> C:
        """Return a client of *found* that doesn't count as a user; *spec* is one of its service.

        Raises `NotReady`, `NotOurs` and `ServerFull`.
        """

    def memory(self, found: ServerInfo) -> int:
        """Return the bytes of memory that a server uses, including its data; 0 if unknown."""

    def log(self, found: ServerInfo, lines: int, *, follow: bool = False) -> Iterator[str]:
        """Yield the last *lines* of a server's log, without its password.

        With *follow*, also yield new lines until the server ends.
        """

    def client(
        self, spec: ServerSpec[Any], found: ServerInfo, program: str
    ) -> tuple[Sequence[str], Endpoint] | None:
        """Return a command that runs *program* next to the server, and the server's address.

        Returns None if there is no such program. Arguments can follow the command. In a container,
        the program gets `PGPASSWORD` and `REDISCLI_AUTH` from this process's environment.
        """

    def leftovers(self) -> Sequence[ServerInfo]:
        """Return leftovers: labelled volumes and networks, and folders without a record."""

    def remove(self, found: ServerInfo) -> None:
        """Remove a server with its data, if it still exists."""

    def close(self) -> None:
        """Close the connection to the engine."""


def postgres_url(endpoint: Endpoint, database: str, driver: str | None) -> MaskedUrl:
    """Return the SQLAlchemy URL of a database; without a driver, the URL for psql."""
    scheme = f"postgresql+{driver}" if driver else "postgresql"
    # SQLAlchemy passes the query to asyncpg, where the option is called ssl.
    query = endpoint.query.replace("sslmode=", "ssl=") if driver == "asyncpg" else endpoint.query
    return MaskedUrl(f"{scheme}://{endpoint.authority(USER)}/{database}{query and f'?{query}'}")


def plain_url(url: str) -> MaskedUrl:
    """Return a SQLAlchemy URL of PostgreSQL in the form that libpq accepts.

    >>> str(plain_url("postgresql+asyncpg://ci@db/shop?ssl=require"))
    'postgresql://ci@db/shop?sslmode=require'
    """
    plain = re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql://", url)
    return MaskedUrl(re.sub(r"([?&])ssl=", r"\1sslmode=", plain))


def redis_url(endpoint: Endpoint, index: int) -> MaskedUrl:
    """Return the URL of a Redis database."""
    query = endpoint.query and f"?{endpoint.query}"
    return MaskedUrl(f"{endpoint.scheme or 'redis'}://{endpoint.authority()}/{index}{query}")


def version_of(client: Client) -> str:
    """Return the version of a server for the user, such as `7.2.4 (Valkey 8.1.1)`."""
    return f"{client.version} ({client.also})" if client.also else client.version


def major_of(image: str) -> int | None:
    """Return the major version in the tag of an image, or None.

    >>> major_of("postgres:16-alpine")
    16
    """
    match = re.match(r"(\d+)", image.rpartition(":")[2]) if ":" in image else None
    return int(match[1]) if match else None
