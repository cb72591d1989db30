"""Connections to Redis: the plugin's own, and those of the clients in tests.

No other module imports redis-py.
"""

from __future__ import annotations

import asyncio
import functools
import re
import socket
import ssl
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any, Final, NamedTuple, Self

import redis
from redis import Redis as SyncRedis
from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.asyncio.connection import ConnectionPool
from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection, parse_url
from redis.exceptions import (
    AuthenticationError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
)
from redis.retry import Retry

from pytest_warmstack import originals
from pytest_warmstack.background import Begun, is_running_here, watch
from pytest_warmstack.drivers import REDIS_HANDSHAKE, end_redis
from pytest_warmstack.redis.kept import KeptSocket, Streams
from pytest_warmstack.servers.errors import ServerFailed, raise_if_out_of_resources
from pytest_warmstack.servers.model import (
    LOOKER,
    Endpoint,
    NotOurs,
    NotReady,
    redis_url,
)

TITLE: Final = "Redis"

OLDEST: Final = (6, 2)
"""The first version whose FLUSHDB has the option SYNC."""

SECRET_SETTINGS: Final = frozenset(
    {"requirepass", "masterauth", "primaryauth", "tls-key-file-pass"}
)
"""Settings that are neither stored nor restored; `masterauth` is `primaryauth` in Valkey."""

NAME: Final = "pytest-warmstack"
"""The beginning of the names of the plugin's connections that use a server."""

USED: Final = f"{NAME}:used"
"""The key with the time at which the last run ended, in seconds since the epoch."""

USER: Final = NAME
"""The plugin's own user on a managed server, so that a test may change the user `default`."""

BUSY: Final = "BUSY"
"""The error code of a server that a script blocks."""

COMMAND_TIMEOUT: Final = 30.0
"""Seconds that a server may take to answer one command."""

_MAX_DATABASES: Final = 1024
"""How many databases are counted at most, on a server that hides its settings."""

_SHOWN_LENGTH: Final = 60
"""How many characters of an argument an error shows; of the whole command, twice as many."""

_IGNORED_OPTIONS: Final = frozenset(
    {"db", "connection_class", "max_connections", "health_check_interval"}
)
"""Options of a URL that redis-py's clients use, but not its connections."""

_CODES: Final = {NoPermissionError: "NOPERM", OutOfMemoryError: "OOM", ReadOnlyError: "READONLY"}
"""The codes that redis-py removes from an answer, because the class shows them (`parse_error`)."""

_HINTS: Final = {
    "OOM": "give the server more memory: CONFIG SET maxmemory 0 removes the limit",
    "NOPERM": "give the user the permission: ACL SETUSER NAME ~* &* +@all",
    "READONLY": "stop the replication of another server: REPLICAOF NO ONE",
    "MISCONF": 'stop the attempts to write the data to disk, which fail: CONFIG SET save ""',
}
"""The cure, by the code at the beginning of an answer."""


class CommandRefused(ServerFailed):
    """Redis refused a *command* of the plugin; *answer* is the reason, *hints* are cures."""

    command = answer = ""
    hints: Sequence[str] = ()

    @classmethod
    def by_redis(cls, *, command: str, answer: str) -> CommandRefused:
        """Redis answered *answer* to *command*, in which passwords are masked."""
        hints = [hint for code, hint in _HINTS.items() if answer.partition(" ")[0] == code]
        check = "check whether a test changed the whole server (CONFIG SET, ACL)"
        error = cls(f"Redis refused the command {command}.", why=answer, todo=[*hints, check])
        error.command, error.answer, error.hints = command, answer, hints
        return error


class Client(NamedTuple):
    """A connection to the server, from CLIENT LIST."""

    id: int
    name: str
    address: str
    database: int
    command: str
    flags: str

    @property
    def is_waiting(self) -> bool:
        """Whether its flags say that it is blocked (BLPOP), subscribed, or a monitor."""
        return not {"b", "P", "O"}.isdisjoint(self.flags)


class Admin:
    """The plugin's connection to a server. It never reconnects, because the lease depends on it.

    So it is a bare `Connection` of redis-py, whose clients would reconnect.
    """

    def __init__(self, endpoint: Endpoint, connection: Any) -> None:
        self.endpoint = endpoint
        self.version = ""
        self.also = ""
        self.id = 0
        self._connection = connection
        self._cause = ""
        self._unread = 0

    @classmethod
    def connect(
        cls,
        endpoint: Endpoint,
        fingerprint: str,
        timeout: float,
        *,
        answer: float = COMMAND_TIMEOUT,
    ) -> Self:
        """Connect to the server with this *fingerprint*, within *timeout* seconds.

        It may take *answer* seconds for each command. An external server has no fingerprint.
        Raises `NotReady` if nothing answers yet, `NotOurs` if another server answers or refuses the
        login, and `ServerFailed` if the server can't be used.
        """
        _probe(endpoint, timeout)
        admin = cls(endpoint, _new_connection(endpoint, timeout, answer))
        try:
            admin._check(admin._log_in(fingerprint))
        except BaseException:
            admin.close()
            raise
        return admin

    def _log_in(self, fingerprint: str) -> str:
        """Log in, check the fingerprint, and return the server's answer to INFO."""
        # A managed service often refuses CONFIG.
        ident = [("CONFIG", "GET", "syslog-ident")] if fingerprint else []
        try:
            _connect_as(USER if fingerprint else "", self._connection)
            # A server that is still loading its data refuses PING.
            _, info, self.id, *idents = self.commands(
                ("PING",), ("INFO", "server"), ("CLIENT", "ID"), *ident
            )
        except AuthenticationError as error:
            raise NotOurs(f"it does not accept the password: {error}") from error
        except (CommandRefused, ResponseError, ValueError) as error:
            answer = error.answer if isinstance(error, CommandRefused) else _full_text(error)
            if answer.startswith(BUSY):
                raise NotReady(f"{self.endpoint.place}: {answer}") from error
            if is_forbidden(answer) and not fingerprint:
                raise self.forbidden(answer) from error
            raise NotOurs(f"it refused the first commands: {answer}") from error
        except (RedisError, ServerFailed, OSError) as error:
            if _is_tls_refusal(error):
                raise NotOurs(str(error)) from error
            raise_if_out_of_resources(error)
            words = error.why if isinstance(error, ServerFailed) else error
            raise NotReady(f"{self.endpoint.place}: {words}") from error
        for _, name in idents:
            if name != f"warmstack-{fingerprint}":
                raise NotOurs(f"it calls itself {name!r}")
        return str(info)

    def _check(self, info: str) -> None:
        """Read the version from *info*; raise if the server is too old, or isn't Redis."""
        facts = dict(line.partition(":")[::2] for line in info.splitlines())
        self.version = facts.get("redis_version", "")
        if not re.match(r"\d+\.\d+", self.version):
            raise NotOurs(f"its INFO has no version of Redis: {info[:60]!r}")
        if "cluster" in {facts.get("redis_mode"), facts.get("server_mode")}:  # Redis, Valkey.
            raise ServerFailed.cluster(place=self.endpoint.place)
        if "valkey_version" in facts:
            self.also = f"Valkey {facts['valkey_version']}"
        if tuple(map(int, self.version.split(".")[:2])) < OLDEST:
            raise ServerFailed.unsupported(
                title=TITLE,
                found=self.version,
                wanted="Redis 6.2 or newer, whose FLUSHDB has the option SYNC",
            )

    def command(self, *words: str | int) -> Any:
        """Return the answer to one command.

        Raises `CommandRefused`, and `ServerFailed` if the connection is lost.
        """
        (answer,) = self.stream(words)
        return answer

    def commands(self, *commands: Sequence[str | int]) -> list[Any]:
        """Return the answers to several commands, in one round trip. Raises like `command`."""
        return list(self.stream(*commands))

    def stream(self, *commands: Sequence[str | int]) -> Iterator[Any]:
        """Send several commands at once, and yield each answer as it comes.

        Read all answers before you send the next command. Raises like `command`; if one command is
        refused, the answers to later ones are dropped.
        """
        refusal = None
        for answer in self._receive(commands):
            if isinstance(answer, CommandRefused):
                refusal = refusal or answer
            elif refusal is None:
                yield answer
        if refusal is not None:
            raise refusal

    def attempt(self, *commands: Sequence[str | int]) -> list[Any]:
        """Return the answers to several commands; None for each refused one."""
        answers = self._receive(commands)
        return [None if isinstance(each, CommandRefused) else each for each in answers]

    def _receive(self, commands: Sequence[Sequence[str | int]]) -> Iterator[Any]:
        """Send *commands* and yield each answer, or a `CommandRefused` in its place.

        This is where errors of redis-py become errors of this package.
        """
        connection = self._connection
        if self._unread:
            self._lose(RuntimeError("an interrupted command left unread answers"))
        if self._cause:  # redis-py would reconnect and lose the lease.
            raise ServerFailed.lost(title=TITLE, cause=self._cause)
        self._unread = len(commands)
        try:
            connection.send_packed_command(connection.pack_commands(commands))
            for words in commands:
                try:
                    answer = connection.read_response()
                except ResponseError as error:
                    answer = CommandRefused.by_redis(
                        command=command_text(words), answer=_full_text(error)
                    )
                self._unread -= 1
                yield answer
        except (RedisError, OSError) as error:
            raise self._lose(error) from error

    def _lose(self, error: Exception) -> ServerFailed:
        self._cause, self._unread = str(error), 0
        self.close()
        return ServerFailed.lost(title=TITLE, cause=self._cause)

    def forbidden(self, answer: str) -> ServerFailed:
        """Return the error for an *answer* that `is_forbidden`."""
        return ServerFailed.forbidden(
            place=self.endpoint.place, user=self.endpoint.user, cause=answer
        )

    def clients(self) -> list[Client]:
        """Return all connections to the server."""
        return parse_clients(self.command("CLIENT", "LIST"))

    def databases(self) -> int:
        """Return the number of databases; count them if the server hides its settings."""
        with suppress(CommandRefused, IndexError):
            return int(self.command("CONFIG", "GET", "databases")[1])
        number = 1
        with suppress(CommandRefused):
            while number < _MAX_DATABASES and self.command("SELECT", number):
                number += 1
        self.command("SELECT", 0)
        return number

    def filled(self) -> dict[int, int]:
        """Return the number of keys in each non-empty database."""
        keyspace = self.command("INFO", "keyspace")
        return {int(db): int(keys) for db, keys in re.findall(r"db(\d+):keys=(\d+)", keyspace)}

    def users(self) -> int:
        """Return the number of other processes that use this server."""
        return sum(each.name.startswith(NAME) and each.id != self.id for each in self.clients())

    def used(self) -> float:
        """Return when the last run ended, in seconds since the epoch; 0 if no run has ended."""
        times = [0.0]
        for home in sorted({0, self.databases() - 1}):
            _, stored = self.commands(("SELECT", home), ("GET", USED))
            with suppress(TypeError, ValueError):
                times.append(float(stored))
        return max(times)

    def use(self, seconds: float) -> None:
        """Let a connection that only looks count as a use, if the server answers within *seconds*.

        Raises `NotReady` and `NotOurs` if it doesn't, and `ServerFailed` if the connection is lost.
        """
        _probe(self.endpoint, seconds)
        self.command("CLIENT", "SETNAME", NAME)
        self.endpoint = self.endpoint.replace(looks=False)

    def abandon(self) -> None:
        """End the connection without waiting for the server."""
        self.close()

    def close(self) -> None:
        """Close the connection, which ends the lease."""
        self._connection.disconnect()


def parse_clients(listing: str) -> list[Client]:
    """Return the connections in an answer to CLIENT LIST."""
    clients = []
    for line in listing.splitlines():
        of = defaultdict[str, str](str, re.findall(r"(\S+?)=(\S*)", line))
        place = of["name"], of["addr"], int(of["db"] or 0)
        clients.append(Client(int(of["id"]), *place, of["cmd"], of["flags"]))
    return clients


def parse_counts(info: str) -> dict[str, int]:
    """Return the number of calls of each command, from an answer to INFO commandstats."""
    return {name: int(calls) for name, calls in re.findall(r"cmdstat_(.+?):calls=(\d+)", info)}


def is_forbidden(answer: str) -> bool:
    """Return whether the server refuses a command to this user, or has disabled or renamed it."""
    return answer.startswith(("NOPERM", "unknown command"))


def command_text(words: Sequence[str | int]) -> str:
    """Return a command for an error: on one line, shortened, with passwords masked."""
    name, *rest = (" ".join(str(word).split()) for word in words)
    if name == "AUTH":
        rest = ["***"]
    elif name == "CONFIG" and SECRET_SETTINGS.intersection(rest):
        rest[-1] = "***"
    elif name == "ACL":
        # ACL SETUSER adds a password with >text or #digest, and removes it with < or !.
        rest = [re.sub(r"^([<>#!]).*", r"\1***", word) for word in rest]
    text = " ".join(_cut(word, _SHOWN_LENGTH) for word in (name, *rest))
    return _cut(text, 2 * _SHOWN_LENGTH)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length].rstrip('. ')}..."


def _full_text(error: Exception) -> str:
    """Return a server's answer, with the code that redis-py removed."""
    codes = (code for kind, code in _CODES.items() if isinstance(error, kind))
    return " ".join([*codes, str(error)])


class _Plain(Connection):
    """A connection over a socket that tests can't block, replace or find."""

    warmstack_own = True  # See `drivers.OWN`.

    def _connect(self) -> originals.Socket:
        seconds: Any = self.socket_connect_timeout
        connected = originals.create_connection(self.host, int(self.port), seconds)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.settimeout(self.socket_timeout)
        return connected


class _OverTls(SSLConnection, _Plain):
    """A `_Plain` with TLS, which redis-py wraps around the socket."""


def _new_connection(endpoint: Endpoint, timeout: float, answer: float) -> Connection:
    kind: Any = _OverTls if endpoint.scheme == "rediss" else _Plain
    try:
        options: Any = parse_url(redis_url(endpoint, 0))  # type: ignore[no-untyped-call]
        options |= {
            "client_name": LOOKER if endpoint.looks else NAME,
            "decode_responses": True,
            # What a test writes may not be text, and must be sent back unchanged.
            "encoding_errors": "surrogateescape",
            "protocol": 2,
            "retry": Retry(NoBackoff(), 0),
            "socket_connect_timeout": timeout,
            "socket_timeout": answer,
        }
        known = {key: each for key, each in options.items() if key not in _IGNORED_OPTIONS}
        connection: Connection = kind(**known)
        # redis-py would tell the server its own name and version, in two more round trips. Its
        # newer versions have only the first of these attributes.
        vars(connection).update(driver_info=None, lib_name=None, lib_version=None)
    except (ValueError, TypeError, RedisError) as error:
        raise NotOurs(f"redis-py rejects the options of the URL: {error}") from error
    return connection


def _connect_as(user: str, connection: Connection) -> None:
    """Connect as *user*, or as the user in the URL if *user* is empty or a test removed it."""
    if user:
        with suppress(AuthenticationError):
            connection.username = user
            connection.connect()  # type: ignore[no-untyped-call]
            return
        connection.username = None
    connection.connect()  # type: ignore[no-untyped-call]


def _is_tls_refusal(error: BaseException | None) -> bool:
    """Return whether *error* is a failure of TLS that another attempt won't cure."""
    while error is not None:
        # A server that closes the connection during the handshake may be starting.
        if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _probe(endpoint: Endpoint, timeout: float) -> None:
    """Raise `NotReady` if nothing answers within *timeout* seconds, `NotOurs` if it isn't Redis.

    A connection of redis-py has a single timeout, which must be long enough for all commands.
    """
    try:
        with closing(originals.create_connection(endpoint.host, endpoint.port, timeout)) as probe:
            if endpoint.scheme == "rediss":
                # Only the handshake: the real connection verifies the certificate.
                context = ssl.create_default_context()
                context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
                context.wrap_socket(probe).close()
                return
            probe.sendall(b"PING\r\n")
            answer = probe.recv(64)
    except OSError as error:
        raise_if_out_of_resources(error)
        refusal = NotOurs if _is_tls_refusal(error) else NotReady
        raise refusal(f"{endpoint.place}: {error}") from error
    if not answer:
        raise NotReady(f"{endpoint.place}: it hung up")
    if not answer.startswith((b"+", b"-")):
        raise NotOurs(f"its first answer is not in the protocol of Redis: {answer!r}")


def open_client(
    url: str, begun: Begun, kept: KeptSocket, *, lasts: bool = False
) -> tuple[Redis, Callable[[], Coroutine[Any, Any, None]]]:
    """Return a client for a test, and a function that closes it, with its connections in all loops.

    *begun* collects the coroutines that the client makes. *kept* has the socket of the last test's
    connection, and gets that of this one. *lasts* says whether the test's loop outlives it.
    """
    pool: _Pool = _Pool.from_url(url, **_client_options())
    base: Any = pool.connection_class  # For mypy, a class has no hash.
    pool.connection_class = _loop_bound(base)
    pool.warmstack_socket = _Socket(url, kept, dict(pool.connection_kwargs))
    client = _Client.from_pool(pool)

    async def close() -> None:
        try:
            await pool.warmstack_socket.leave(pool, lasts=lasts)
        finally:
            await client.aclose()

    return watch(client, "redis_client", begun), close


@contextmanager
def sync_client(url: str) -> Iterator[SyncRedis]:
    """Yield a synchronous client for a test; then close it, with all its connections."""
    client = SyncRedis.from_url(url, **_client_options())
    yield client
    client.close()


@functools.cache
def _client_options() -> dict[str, Any]:
    """Return the version of redis-py, which it would read from a file for each connection."""
    driver_info: Any = getattr(redis, "DriverInfo", None)  # Newer than the oldest redis-py here.
    return {"driver_info": driver_info()} if driver_info is not None else {}


class _Client(Redis):
    """A client whose pipelines are watched too."""

    def pipeline(self, *args: Any, **kwargs: Any) -> Pipeline:
        _, begun = vars(self)["_warmstack_begun"]
        return watch(super().pipeline(*args, **kwargs), "redis_client.pipeline()", begun)


class _Pool(ConnectionPool):
    """A pool whose connections know what they have to do with the kept socket."""

    warmstack_socket: _Socket

    def make_connection(self) -> Any:
        connection = super().make_connection()  # type: ignore[no-untyped-call]
        connection.warmstack_socket = self.warmstack_socket
        return connection


class _Socket:
    """What the connections of one client to *url* have to do with the kept socket.

    *options* are those that the client has given its connections; a test may change them.
    """

    def __init__(self, url: str, kept: KeptSocket, options: Mapping[str, Any]) -> None:
        self._url = url
        self._kept: KeptSocket | None = kept
        self._options = options
        self._opened: list[Any] = []

    async def open(self, options: Mapping[str, Any]) -> tuple[Streams, type[Any]] | None:
        """Return streams of the kept socket for a connection with *options*."""
        if self._kept is None or options != self._options:
            return None
        return await self._kept.open(self._url)

    def opened(self, connection: Any) -> None:
        """Note that *connection* is open, perhaps again."""
        if connection not in self._opened:
            self._opened.append(connection)

    async def leave(self, pool: Any, *, lasts: bool) -> None:
        """Keep the socket of the only connection, if it is idle in *pool*."""
        kept, self._kept = self._kept, None
        if kept is None:
            return
        (connection, *others) = [each for each in self._opened if each.is_connected] or [None]
        self._opened.clear()
        if (
            connection is not None
            and not others
            and connection.warmstack_options == self._options
            and connection.is_here
            # It makes another one, which connects later, if this one is in use.
            and pool.get_available_connection() is connection
        ):
            await kept.keep(self._url, connection, lasts=lasts)


@functools.cache
def _loop_bound(base: Any) -> Any:
    """Return a subclass of *base* whose connections work in every event loop.

    A connection of another loop is closed without that loop, and reopened when it is needed. The
    first one to open takes the kept socket, and needs no handshake then.
    """

    class LoopBound(base):  # type: ignore[misc]
        warmstack_socket: _Socket | None = None
        _warmstack_loop: asyncio.AbstractEventLoop | None = None
        _warmstack_parser: type[Any] | None = None

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            self.warmstack_options = options

        @property
        def is_here(self) -> bool:
            return is_running_here(self._warmstack_loop)

        async def connect(self) -> None:
            self._leave_other_loop()
            await super().connect()
            self._warmstack_loop = asyncio.get_running_loop()
            if self.warmstack_socket is not None:
                self.warmstack_socket.opened(self)

        async def disconnect(self, *args: Any, **kwargs: Any) -> None:
            self._leave_other_loop()
            await super().disconnect(*args, **kwargs)

        async def _connect(self) -> None:
            socket = self.warmstack_socket
            found = await socket.open(self.warmstack_options) if socket is not None else None
            if found is None:
                self._warmstack_parser = None
                await super()._connect()
            else:
                (self._reader, self._writer), self._warmstack_parser = found

        async def _handshake(self, original: Any, *args: Any, **kwargs: Any) -> None:
            if self._warmstack_parser is None:
                await original(self, *args, **kwargs)
                return
            if type(self._parser) is not self._warmstack_parser:
                self.set_parser(self._warmstack_parser)
            self._parser.on_connect(self)

        def _leave_other_loop(self) -> None:
            if not self.is_here:
                end_redis(self, self._warmstack_loop)

    # In redis-py 5.2, `connect` calls `on_connect`; newer ones have a function that both call.
    name = next(each for each in REDIS_HANDSHAKE.split("|") if hasattr(base, each))
    original = getattr(base, name)
    setattr(LoopBound, name, lambda self, *args, **kw: self._handshake(original, *args, **kw))
    return LoopBound
