"""What a runtime is: something that can find, start and remove the servers a spec describes."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar
from urllib.parse import quote

from pytest_warmstack import originals
from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.servers.errors import RuntimeUnavailable, ServerFailed, ServerFull
from pytest_warmstack.servers.identity import (
    KEPT,
    NAMESPACE,
    SERVER_FORMAT,
    Label,
    Project,
    Service,
    changes,
    digest,
    fingerprint,
)
from pytest_warmstack.servers.processes import Process
from pytest_warmstack.settings import MaskedUrl, RuntimeName

USER: Final = "postgres"
"""Who we are on a PostgreSQL of ours: its superuser."""

MAINTENANCE: Final = "postgres"
"""PostgreSQL's database that we connect to: advisory locks count within one database only.

So it is the same one for everybody, also where somebody else's URL names another.
"""

LOOKER: Final = "warmstack-look"
"""What the name of a connection begins with that only looks: it does not count as a user."""

POLL_INTERVAL: Final = 0.05
"""Seconds between two attempts to query a server that is starting."""

ANSWER_TIMEOUT: Final = 3.0
"""Seconds that a server which has been up for a while may take to answer, before it is broken."""


class NotReady(Exception):
    """The server does not answer yet; it may soon."""


class NotOurs(Exception):
    """Something answers, and it is not the server that was meant."""


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """Where a server answers, and as which user it is connected to.

    Without a *user* that is the server's own first one. *scheme* and *query* are what the URL of an
    external server adds, about TLS for example; a managed server has none. A process that only
    looks at the server sets *looks*: its connection does not count as a use of the server.
    """

    host: str
    port: int
    password: str = field(repr=False)
    user: str = ""
    scheme: str = ""
    query: str = field(default="", repr=False)
    looks: bool = False

    @property
    def place(self) -> str:
        """The address, as a URL has it: an IPv6 address stands in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def authority(self, user: str = "") -> str:
        """Return what stands between `//` and the path of a URL, with *user* if there is none."""
        user = self.user or user
        if not user and not self.password:
            return self.place
        password = f":{quote(self.password, safe='')}" if self.password else ""
        return f"{quote(user, safe='')}{password}@{self.place}"


class Client(Protocol):
    """The connection whose query told that a server is ready; work goes on over it."""

    endpoint: Endpoint
    """Where it is connected to, with what the first connection has shown."""

    version: str
    """The version that the server itself gives, such as `16.14`."""

    also: str
    """What else it calls itself, such as `Valkey 8.1.1`; mostly nothing."""

    def users(self) -> int:
        """Return how many other runs use the server; a process that only looks does not count."""

    def used(self) -> float:
        """Return when it was used last, in epoch seconds; 0 when it can't tell."""

    def close(self) -> None:
        """End the connection."""


C = TypeVar("C", bound=Client)
C_co = TypeVar("C_co", bound=Client, covariant=True)


@dataclass(frozen=True, kw_only=True)
class Container:
    """How a server runs in Docker: what its image's own entrypoint is given.

    *arguments* are the server's; *takers* are the names of programs and scripts that are known to
    take them, and *variable* is what others take them from, separated by spaces. *data* is where
    the data lies if the image names no place by a volume or by *data_variable*, *shm_size* is in
    bytes. *contract* tells the reader how an image can take the password and the settings.
    """

    environment: Mapping[str, str] = field(repr=False)
    arguments: Sequence[str]
    contract: str
    data: str
    shm_size: int
    takers: frozenset[str] = frozenset()
    variable: str = ""
    data_variable: str = ""


@dataclass(frozen=True, kw_only=True)
class Command:
    """How a server runs as a native process: its arguments and, if not ours, its user.

    *environment* is what it has beyond a path and a time zone, *note* what the user has to know
    about it.
    """

    arguments: Sequence[str]
    user: str | None = None
    environment: Mapping[str, str] = field(default_factory=lambda: {"LC_ALL": "C"}, repr=False)
    note: str = ""


class Need(NamedTuple):
    """What an embedded server needs of the place for its files.

    That is *least* bytes, better *wanted* ones, and a number of *files*. *user* is who the server
    runs as, if not we; with *executes* its program is started from there.
    """

    least: int = 0
    wanted: int = 0
    files: int = 0
    user: str | None = None
    executes: bool = False


class Native(Protocol):
    """How to find a server's programs on this machine, and to prepare a folder for it."""

    def prepare(self, folder: Path, password: str) -> Callable[[int], Command]:
        """Make *folder* ready, and return what gives the command for a port.

        Raises `RuntimeUnavailable` when no usable program is found.
        """

    def check(self) -> None:
        """Raise `RuntimeUnavailable` when no usable program is found."""

    def need(self) -> Need:
        """Return what the server needs of the place for its files."""

    def places(self) -> Iterator[tuple[str, str, bool]]:
        """Yield each place that is looked at, what was found there, and whether it will do.

        Further lines of what was found are for a reader who wants to know all.
        """


@dataclass(frozen=True, kw_only=True)
class ServerSpec(Generic[C]):
    """What a server looks like, whatever runs it.

    *url* leads to one that somebody else runs; then the rest tells only how to connect.
    *image_source* is where the user named the image, nothing for the default. *major* is
    the version asked for (None when any will do), *native_major* that of an embedded server if it
    is to be another one, *programs* a folder named by the user, *folder* the one for the files of
    an embedded server, if one was named, *options* are the server's own settings, *environment* is
    what the user gave it as its own, *port* is where it listens in a container. *number* tells
    apart several servers of a service, from 1 on;
    0 is one that all share.

    *container* takes a password and a fingerprint, *native* a fingerprint. *connect* makes the
    client with a real query: it takes the endpoint, the fingerprint to expect (nothing, if the
    server is not one of ours) and a time in seconds, and raises `NotReady` or `NotOurs`.
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
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    native_major: int | None = None
    folder: str = ""
    number: int = 0
    url: str = field(default="", repr=False)
    url_variable: str = ""

    @property
    def key(self) -> str:
        """A word for it within a project: `redis`, or `redis-2`."""
        return f"{self.service}-{self.number}" if self.number else str(self.service)

    def config(self, runtime: str) -> dict[str, str]:
        """Return all that makes a running server the one asked for, by name."""
        if runtime == RuntimeName.DOCKER:
            origin = {"image": self.image}
        else:
            origin = {"version": str(self.wanted_major(runtime) or "any")}
            if self.programs:
                origin["programs"] = self.programs
            if self.folder:
                origin["folder"] = self.folder
        number = {"number": str(self.number)} if self.number else {}
        variables = digest(self.environment)
        return {"format": SERVER_FORMAT, **origin, **number, **self.options, **variables}

    def fingerprint(self, runtime: str) -> str:
        """Return the fingerprint of `config`."""
        return fingerprint(
            json.dumps([self.service, runtime, self.config(runtime)], sort_keys=True)
        )

    def wanted_major(self, runtime: str) -> int | None:
        """Return the version asked for where *runtime* runs the server; None when any will do."""
        native = self.native_major if runtime == RuntimeName.EMBEDDED else None
        return native or self.major

    def check_version(self, client: Client, runtime: str) -> None:
        """Raise `ServerFailed` when the server that answers is not of the version asked for."""
        versions = (client.version, client.also.rpartition(" ")[2])
        majors = {version.partition(".")[0] for version in versions}
        wanted = self.wanted_major(runtime)
        if wanted is not None and not self.url and str(wanted) not in majors:
            raise ServerFailed.wrong_version(
                title=self.title, found=called(client), wanted=f"version {wanted}"
            )


def called(client: Client) -> str:
    """Return the version of a server for its readers, such as `7.2.4 (Valkey 8.1.1)`."""
    return f"{client.version} ({client.also})" if client.also else client.version


@dataclass(frozen=True, kw_only=True)
class Server(Generic[C_co]):
    """A server that is ready, the client it answered, and how it came to be ready.

    *origin* is one of `reused`, `started`, `started again`, `replaced`, or `connected` to one that
    is not ours, which has no fingerprint; *reason* says why, where that is not obvious. *since* is
    when it was made, in seconds since the epoch.
    """

    service: Service
    title: str
    runtime: str
    id: str
    fingerprint: str
    endpoint: Endpoint
    client: C_co
    what: str
    origin: str
    reason: str = ""
    since: float

    @property
    def foreign(self) -> bool:
        """Whether somebody else runs it."""
        return not self.fingerprint

    def handle(self, database: int = 0) -> ServerHandle:
        """Return what a test gets of this server; a Redis URL of it leads to *database*."""
        return ServerHandle(
            endpoint=self.client.endpoint,
            id=self.id,
            runtime=self.runtime,
            version=self.client.version,
            service=self.service,
            database=database,
        )


@dataclass(frozen=True, kw_only=True)
class ServerHandle:
    """A server that is ready, whether it was started or found, in Docker or embedded.

    The methods are those that users of testcontainers know.
    """

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
        """The password that the server takes."""
        return self.endpoint.password

    def get_container_host_ip(self) -> str:
        """Return the host to connect to."""
        return self.host

    def get_exposed_port(self, port: int = 0) -> int:
        """Return the port to connect to, whatever *port* the server has in its container."""
        return self.port

    def get_connection_url(self, host: str | None = None, driver: str | None = "asyncpg") -> str:
        """Return a URL: of PostgreSQL's maintenance database, or of this process's own in Redis.

        *driver* is PostgreSQL's, as SQLAlchemy names it; None gives a plain URL.
        """
        endpoint = replace(self.endpoint, host=host or self.host)
        if self.service is Service.REDIS:
            return redis_url(endpoint, self.database)
        return postgres_url(endpoint, MAINTENANCE, driver)


class ServerInfo(NamedTuple):
    """A server of ours, as its labels describe it, whether it runs or not.

    *what* is its image or its program, *state* a word for what it does, *since* when it was made,
    in seconds since the epoch. Its *kind* is `server`, or that of a thing which belonged to one.
    """

    runtime: str
    id: str
    name: str
    running: bool
    labels: Mapping[str, str]
    what: str = ""
    state: str = ""
    since: float = 0.0
    kind: str = "server"

    @property
    def service(self) -> str:
        """The service that it is of; nothing when its label names none that we know."""
        label = self.labels.get(Label.SERVICE, "")
        return label if label in set(Service) else ""

    @property
    def config(self) -> dict[str, str]:
        """What it was made from; nothing when its label can't be understood."""
        try:
            plain = json.loads(self.labels.get(Label.CONFIG, ""))
        except ValueError:
            return {}
        return (
            {str(key): str(value) for key, value in plain.items()}
            if isinstance(plain, dict)
            else {}
        )

    @property
    def path(self) -> str:
        """The root of the project that it belongs to."""
        return self.labels.get(Label.PATH, "")

    @property
    def kept(self) -> bool:
        """Whether it is meant to survive its run."""
        return self.labels.get(Label.RUN) == KEPT

    @property
    def orphaned(self) -> bool:
        """Whether it belongs to a run that has certainly ended."""
        owner = Process.parse(self.labels.get(Label.OWNER, ""))
        return not self.kept and owner is not None and owner.is_gone()


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """For whom a runtime works: the project, the run, its owner, and whether servers are kept."""

    project: Project
    run: str
    owner: Process
    keep: bool
    start_timeout: float

    def labels(self, spec: ServerSpec[Any], runtime: str) -> dict[str, str]:
        """Return the labels of a server that is made for this run."""
        return {
            Label.PROJECT: self.project.id,
            Label.PATH: self.project.path,
            Label.SERVICE: spec.service,
            Label.NUMBER: str(spec.number),
            Label.FINGERPRINT: spec.fingerprint(runtime),
            Label.CONFIG: json.dumps(spec.config(runtime), sort_keys=True),
            Label.VERSION: version(NAMESPACE),
            Label.RUN: KEPT if self.keep else self.run,
            Label.OWNER: str(self.owner),
        }

    def owns(self, found: ServerInfo, spec: ServerSpec[Any]) -> bool:
        """Tell whether *found* is the server of this run for *spec*, outdated or not."""
        return (
            found.labels.get(Label.PROJECT) == self.project.id
            and found.labels.get(Label.SERVICE) == spec.service
            and found.labels.get(Label.NUMBER, "0") == str(spec.number)
            and found.labels.get(Label.RUN) == (KEPT if self.keep else self.run)
        )

    def name(self, spec: ServerSpec[Any], runtime: str) -> str:
        """Return the one name that such a server can have, so that no two are ever made."""
        run = KEPT if self.keep else self.run
        parts = ["warmstack", self.project.slug, self.project.id, run, spec.key]
        return "-".join([*filter(None, parts), spec.fingerprint(runtime)[:8]])


class Runtime(Protocol):
    """Something that has servers to give."""

    @property
    def name(self) -> str:
        """The word for it in the settings."""

    def ensure(self, spec: ServerSpec[C]) -> Server[C]:
        """Return the run's server of this *spec*, found or made.

        Raises `ServerFailed` when it does not become ready, and leaves no failed one behind.
        """


class OwnRuntime(Runtime, Protocol):
    """One that runs its servers itself: it finds, starts and removes them.

    Each method raises errors of this package only: `RuntimeUnavailable` when the engine or the
    operating system fails, `ServerFailed` when it refuses something about one server.
    """

    def check(self, specs: Sequence[ServerSpec[Any]], say: Callable[[str], None]) -> None:
        """Raise `RuntimeUnavailable` unless servers of all *specs* can be run here.

        What takes long, a pull, is told through *say*.
        """

    def list(self) -> list[ServerInfo]:
        """Return every server of ours that this runtime can see, of any project."""

    def connect(self, spec: ServerSpec[C], found: ServerInfo) -> C:
        """Return a client that looks at the server that was found, and does not count as its user.

        *spec* is one of its service; its labels tell the rest. Raises `NotReady` or `NotOurs`
        when it does not answer, or not as it should, and `ServerFull`.
        """

    def memory(self, found: ServerInfo) -> int:
        """Return how many bytes of memory a server takes, with its data; 0 when not known."""

    def log(self, found: ServerInfo, lines: int, *, follow: bool = False) -> Iterator[str]:
        """Yield the last *lines* that a server wrote, without its password.

        With *follow*, go on with what it writes, until it ends.
        """

    def client(
        self, spec: ServerSpec[Any], found: ServerInfo, program: str
    ) -> tuple[Sequence[str], Endpoint] | None:
        """Return how to call a client *program* that lies where the server does.

        That is the beginning of the command, and where the server is, seen from there; None when
        there is no such program. A container's gets what our environment has under the names
        `PGPASSWORD` and `REDISCLI_AUTH`.
        """

    def leftovers(self) -> Sequence[ServerInfo]:
        """Return what else is ours and no server: volumes, networks, folders without a record."""

    def remove(self, found: ServerInfo) -> None:
        """Remove a server with its data; one that is gone already is no error."""

    def close(self) -> None:
        """Let go of what the runtime holds itself, such as a connection to its engine."""


def postgres_url(endpoint: Endpoint, database: str, driver: str | None) -> MaskedUrl:
    """Return the SQLAlchemy URL of a database; without a driver it is what psql takes."""
    scheme = f"postgresql+{driver}" if driver else "postgresql"
    # asyncpg has another word for it, as SQLAlchemy passes it on.
    query = endpoint.query.replace("sslmode=", "ssl=") if driver == "asyncpg" else endpoint.query
    return MaskedUrl(f"{scheme}://{endpoint.authority(USER)}/{database}{query and f'?{query}'}")


def plain_url(url: str) -> MaskedUrl:
    """Return a SQLAlchemy URL of PostgreSQL as libpq, and whoever follows it, takes it.

    >>> str(plain_url("postgresql+asyncpg://ci@db/shop?ssl=require"))
    'postgresql://ci@db/shop?sslmode=require'
    """
    plain = re.sub(r"^postgres(ql)?(\+\w+)?://", "postgresql://", url)
    return MaskedUrl(re.sub(r"([?&])ssl=", r"\1sslmode=", plain))


def redis_url(endpoint: Endpoint, index: int) -> MaskedUrl:
    """Return the URL of a Redis database."""
    query = endpoint.query and f"?{endpoint.query}"
    return MaskedUrl(f"{endpoint.scheme or 'redis'}://{endpoint.authority()}/{index}{query}")


_OWN_FAULTS: Final = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}


def see_that_it_is_the_server(error: BaseException | None) -> None:
    """Raise `RuntimeUnavailable` if *error* says nothing of a server: this process lacks something.

    A server is not broken, and not unused, because no file was left to connect with.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _OWN_FAULTS:
            raise RuntimeUnavailable.by_system(cause=str(error), number=error.errno) from error
        error = error.__cause__


def in_use(runtime: OwnRuntime, spec: ServerSpec[Any], found: ServerInfo) -> bool:
    """Tell whether a process of ours is connected to the server that was found."""
    if not found.running:
        return False
    try:
        client = runtime.connect(spec, found)
    except ServerFull:
        return True
    except (NotReady, NotOurs, ServerFailed):
        return False
    try:
        return bool(client.users())
    finally:
        client.close()


def remove_outdated(
    runtime: OwnRuntime, run_context: RunContext, spec: ServerSpec[Any]
) -> tuple[str, str]:
    """Remove the servers that an earlier configuration left.

    Returns what differs, and what could not be removed: that is no reason to fail. One that a
    living run still uses is left to it.
    """
    reason = trouble = ""
    current = run_context.name(spec, runtime.name)
    for found in runtime.list():
        if found.name == current or not run_context.owns(found, spec):
            continue
        try:
            if in_use(runtime, spec, found):
                continue
            runtime.remove(found)
        except WarmstackError as error:
            trouble = f"could not remove {found.name}: {error.line}"
        else:
            reason = ", ".join(changes(found.config, spec.config(runtime.name)))
    return reason, trouble


def wait_ready(
    spec: ServerSpec[C],
    endpoint: Endpoint,
    fingerprint: str,
    *,
    runtime: str,
    seconds: float,
    death: Callable[[], str | None],
    log: Callable[[], str],
) -> C:
    """Return the client of a server as soon as it answers a query.

    *death* tells how the server ended, or None while it runs; *log* gives its last lines. Raises
    `ServerFailed` when it ended, and when it has not answered within *seconds*.
    """
    deadline = originals.monotonic() + seconds
    while True:
        try:
            client = spec.connect(
                endpoint, fingerprint, max(deadline - originals.monotonic(), POLL_INTERVAL)
            )
        except NotReady as refusal:
            cause = refusal
        else:
            try:
                spec.check_version(client, runtime)
            except ServerFailed:
                client.close()
                raise
            return client
        if (how := death()) is not None:
            raise ServerFailed.died(title=spec.title, how=how, log=log()) from cause
        if originals.monotonic() >= deadline:
            raise ServerFailed.too_slow(
                title=spec.title, seconds=seconds, cause=str(cause), log=log()
            ) from cause
        originals.sleep(POLL_INTERVAL)


def major_of(image: str) -> int | None:
    """Return the major version that an image's tag names, or None when it names none.

    >>> major_of("postgres:16-alpine")
    16
    """
    match = re.match(r"(\d+)", image.rpartition(":")[2]) if ":" in image else None
    return int(match[1]) if match else None
