"""Connections to PostgreSQL, and the advisory locks that belong to them.

No other module handles errors of asyncpg: `explained` turns them into errors of this package.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial, wraps
from typing import Any, Final, NamedTuple, ParamSpec, Self, TypeVar

import asyncpg

# Not `asyncpg.connect`, which a test may replace.
from asyncpg.connection import connect as _connect

from pytest_warmstack import originals
from pytest_warmstack.background import sleep
from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.postgres import sql
from pytest_warmstack.servers.errors import ConnectionLost, ServerFailed, ServerFull
from pytest_warmstack.servers.model import LOOKER, MAINTENANCE, USER, Endpoint, NotOurs

T = TypeVar("T")
P = ParamSpec("P")

TITLE: Final = "PostgreSQL"

APPLICATION: Final = "pytest-warmstack"
"""The beginning of the application_name of connections of this package that use a server."""

BUSY_TIMEOUT: Final = 10.0
"""Seconds to retry while another connection makes PostgreSQL refuse."""

STATEMENT_TIMEOUT: Final = 60.0
"""Seconds that one statement may take."""

CLOSE_TIMEOUT: Final = 2.0
"""Seconds that a connection may take to close."""

POOL_TIMEOUT: Final = 10.0
"""Seconds that a pooler may take to provide a second backend."""

OLDEST: Final = 14
"""The oldest supported version of PostgreSQL. It introduced `pg_stat_database.sessions`."""

DATABASE_IN_USE: Final = "55006"
_PREPARED_ELSEWHERE: Final = frozenset({"26000", "42P05"})
"""SQLSTATEs (PostgreSQL's documentation, appendix A).

The last two, "no such statement" and "duplicate statement", mean that one backend prepared a
statement and another one got the request to execute it.
"""

_POOL_CHECKS: Final = 6
"""How often two connections ask, in turn, which backend serves them."""

_SETTINGS: Final = {
    "statement_timeout": "0",
    "lock_timeout": "0",
    "default_transaction_read_only": "off",
    "standard_conforming_strings": "on",
}
"""Settings that these connections rely on, whatever the user has set for the server or a database.

All of them exist in unsupported versions too: to report such a version, the plugin must connect.
"""

_SENSITIVE: Final = r"( TO |\bPASSWORD )'(?:[^']|'')*'"

_SHOWN_LENGTH: Final = 300
"""How many characters of a statement an error shows: the comment of a template is long."""

NEUTRAL: Final[dict[str, Any]] = {
    "direct_tls": False,
    "target_session_attrs": "any",
    "krbsrvname": "postgres",
    "gsslib": "gssapi",
}
"""Options that asyncpg would otherwise read from variables, which a test may change."""


_REFUSAL_HINTS: Final = {
    "25006": "use the URL of a primary server: this one is read-only",
    "42501": "grant the missing privilege to the role in the URL, or use another role",
    "53100": "free disk space on the server",
    "53200": "give the server more memory",
    "55006": "close the connections to the database",
}
"""The cure for a refusal, by its SQLSTATE (PostgreSQL's documentation, appendix A)."""


class StatementRefused(WarmstackError):
    """PostgreSQL refused a statement of this package; `state` is the SQLSTATE."""

    state = ""

    @classmethod
    def by_server(cls, *, statement: str, cause: str, state: str) -> StatementRefused:
        """PostgreSQL answered *statement* with the error *cause*."""
        error = cls(
            "PostgreSQL refused a statement of pytest-warmstack.",
            why=cause,
            looked_at=[f"{statement}\n(SQLSTATE {state or 'unknown'})"],
            todo=[
                *([_REFUSAL_HINTS[state]] if state in _REFUSAL_HINTS else []),
                "check whether a setting, a missing privilege or a test on this server causes the "
                "answer above",
                "if pytest-warmstack manages the server, start a new one: warmstack clean",
            ],
        )
        error.state = state
        return error


class TlsRefused(Exception):
    """The server does not support TLS, and the URL requires it."""


_REJECTED: Final = (
    asyncpg.InvalidPasswordError,
    asyncpg.InvalidAuthorizationSpecificationError,
    # The maintenance database is missing, or closed to this role.
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
    # The server doesn't offer the TLS that the URL requires.
    asyncpg.ClientConfigurationError,
    ssl.SSLError,
    TlsRefused,
)
"""Causes for which another attempt to connect would fail too."""

_LOST: Final = (
    OSError,  # Includes TimeoutError.
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    # A statement was sent just when the connection ended.
    asyncpg.InternalClientError,
)
"""The errors of asyncpg for a lost connection or server."""


@contextmanager
def explained(statement: str, seconds: float = STATEMENT_TIMEOUT) -> Iterator[None]:
    """Turn errors of asyncpg into errors of this package.

    Raises `ConnectionLost` if the connection is gone or did not answer within *seconds*, and
    `StatementRefused` if PostgreSQL refuses *statement*.
    """
    try:
        yield
    except _LOST as error:
        cause = str(error) or f"no answer within {seconds:g} seconds"
        raise ConnectionLost.lost(title=TITLE, statement=masked(statement), cause=cause) from error
    except asyncpg.PostgresError as error:
        raise StatementRefused.by_server(
            statement=masked(statement), cause=str(error), state=error.sqlstate or ""
        ) from error


@asynccontextmanager
async def _time_limit(statement: str, seconds: float = 0.0) -> AsyncIterator[None]:
    """Do what `explained` does, and enforce a timeout of *seconds*, or `STATEMENT_TIMEOUT`.

    asyncpg's own timeout uses a clock that a test may have frozen.
    """
    seconds = seconds or STATEMENT_TIMEOUT
    with explained(statement, seconds):
        async with asyncio.timeout(seconds):
            yield


def masked(statement: str) -> str:
    """Return *statement* for an error, without the values of settings: they may be secret.

    >>> masked("ALTER ROLE a SET app.key TO 'hunter2'")
    "ALTER ROLE a SET app.key TO '***'"
    """
    hidden = re.sub(_SENSITIVE, r"\1'***'", statement)
    return f"{hidden[:_SHOWN_LENGTH]} ..." if len(hidden) > _SHOWN_LENGTH else hidden


def rejection(error: WarmstackError) -> str:
    """Return why the server rejects this client, or "" if another attempt may succeed."""
    cause = error.__cause__
    if isinstance(cause, asyncpg.InvalidPasswordError):
        return f"it does not accept the password: {cause}"
    return str(cause) if isinstance(cause, _REJECTED) else ""


async def retry(
    attempt: Callable[[], Awaitable[T]],
    may_pass: Callable[[WarmstackError], bool],
    *,
    pause: float,
    seconds: float,
) -> T:
    """Return the result of *attempt*; retry for up to *seconds* while its error *may_pass*."""
    deadline = originals.monotonic() + seconds
    while True:
        try:
            return await attempt()
        except WarmstackError as error:
            if not may_pass(error) or originals.monotonic() > deadline:
                raise
        await sleep(pause)


def persistent(
    function: Callable[P, Coroutine[Any, Any, T]],
) -> Callable[P, Coroutine[Any, Any, T]]:
    """Retry *function*, on new connections, for up to `BUSY_TIMEOUT` while it loses connections.

    One test may end all connections, and so may the next. A server that is gone refuses instead.
    """

    def may_pass(error: WarmstackError) -> bool:
        return (
            isinstance(error, ConnectionLost)
            and not error.timed_out
            and not isinstance(error.__cause__, ConnectionRefusedError)
            and not rejection(error)
        )

    @wraps(function)
    async def persisted(*args: P.args, **kwargs: P.kwargs) -> T:
        return await retry(
            lambda: function(*args, **kwargs), may_pass, pause=0.01, seconds=BUSY_TIMEOUT
        )

    return persisted


class Connection:
    """A connection to one database, on the background loop, that tasks use in turn.

    It opens when it is first needed, and reopens when it was lost: a test may end every connection.
    If it holds locks, it reopens at once and takes them again. All methods raise the errors of
    `explained`; methods that connect also raise `ServerFull`.
    """

    version = ""
    major = 0
    pid = 0

    def __init__(self, endpoint: Endpoint, database: str = MAINTENANCE) -> None:
        self.endpoint = endpoint
        self._database = database
        self._raw: Any = None
        self._turns = asyncio.Lock()
        self._user: asyncio.Task[Any] | None = None
        self._exclusive: set[int] = set()
        self._shared: set[int] = set()
        self._renewing: asyncio.Future[None] | None = None

    @property
    def is_connected(self) -> bool:
        """Whether the connection is open now."""
        return self._raw is not None and not self._raw.is_closed()

    @asynccontextmanager
    async def turn(self, seconds: float = BUSY_TIMEOUT) -> AsyncIterator[None]:
        """Reserve the connection for the calling task; connect within *seconds* if necessary."""
        task = asyncio.current_task()
        if self._user is task:
            yield
            return
        async with self._turns:
            self._user = task
            try:
                if not self.is_connected:
                    await self._renew(seconds)
                yield
            except ConnectionLost:
                # It may be lost without knowing it, or wait for an answer that never comes.
                self.terminate()
                raise
            finally:
                self._user = None

    @persistent
    async def open(self) -> None:
        """Connect now, if there is no connection."""
        async with self.turn():
            pass

    async def _renew(self, seconds: float) -> None:
        self._raw = await self._connect_patiently(seconds)
        # "16.14", or "16.14 (Debian 16.14-1)".
        self.version = self._raw.get_settings().server_version.split()[0]
        self.major = self._raw.get_server_version().major
        if self._exclusive or self._shared:
            try:
                # For the server, a connection that was cut looks like one that is silent.
                await self.fetch(sql.END_SESSION, self.pid)
                # If another process holds a lock now, it took the lock to drop the database.
                await self.fetch(sql.LOCK, sql.array(self._exclusive))
                await self.fetch(sql.LOCK_SHARED, sql.array(self._shared))
            except BaseException:
                self.terminate()
                raise
        self.pid = self._raw.get_server_pid()
        self._raw.add_termination_listener(self._renew_for_locks)

    async def _connect_patiently(self, seconds: float) -> Any:
        """Connect; wait while the server has no free connection, or recovers from a crash."""

        def may_pass(error: WarmstackError) -> bool:
            is_starting = isinstance(error.__cause__, asyncpg.CannotConnectNowError)
            return _is_full(error) or (is_starting and self.pid != 0)

        try:
            connect = partial(connect_raw, self.endpoint, self._database, seconds)
            return await retry(connect, may_pass, pause=0.05, seconds=BUSY_TIMEOUT)
        except StatementRefused as error:
            if not _is_full(error):
                raise
            raise ServerFull.connections(
                cause=error.why, seconds=BUSY_TIMEOUT, holders=()
            ) from error

    def _renew_for_locks(self, raw: Any) -> None:
        async def renew() -> None:
            # If this fails, the next user of the connection tries again, and raises.
            with suppress(WarmstackError):
                await self.open()

        if raw is self._raw and (self._exclusive or self._shared):
            self._renewing = asyncio.ensure_future(renew())

    async def fetch(self, query: str, *values: Any, seconds: float = 0.0) -> Sequence[Any]:
        """Return the rows of *query*. With separate *values*, the server parses it only once."""
        async with self.turn(), _time_limit(query, seconds):
            rows: Sequence[Any] = await self._raw.fetch(query, *values)
        return rows

    async def fetchval(self, query: str, *values: Any, seconds: float = 0.0) -> Any:
        """Return the first value of the first row of *query*, or None."""
        rows = await self.fetch(query, *values, seconds=seconds)
        return rows[0][0] if rows else None

    async def try_to_execute(self, statement: str, seconds: float = 0.0) -> None:
        """Execute *statement* once. Several, separated by `;`, run in one transaction."""
        async with self.turn(), _time_limit(statement, seconds):
            await self._raw.execute(statement)

    async def execute(self, *statements: str) -> None:
        """Execute *statements*; retry each while other connections to its database are ending."""

        def is_in_use(error: WarmstackError) -> bool:
            return isinstance(error, StatementRefused) and error.state == DATABASE_IN_USE

        async with self.turn():
            for statement in statements:
                await retry(
                    partial(self.try_to_execute, statement),
                    is_in_use,
                    pause=0.02,
                    seconds=BUSY_TIMEOUT,
                )

    async def post(self, statement: str) -> None:
        """Send *statement* and disconnect at once: PostgreSQL completes it.

        By default, a server checks its client only after the statement (PostgreSQL's documentation,
        "client_connection_check_interval").
        """
        async with self.turn():
            sending = asyncio.ensure_future(self._raw.execute(statement))
            await sleep(0)  # The transport writes as soon as the statement begins.
            self.terminate()
            with suppress(ConnectionLost, StatementRefused), explained(statement):
                await sending

    async def lock(self, key: int, *, shared: bool = False) -> bool:
        """Take an advisory lock, exclusive or *shared*, if it is free; return whether it was.

        This process holds it until `unlock`, or until the process ends.
        """
        query, held = (sql.LOCK_SHARED, self._shared) if shared else (sql.LOCK, self._exclusive)
        is_free = bool(await self.fetchval(query, sql.array([key])))
        if is_free:
            held.add(key)
        return is_free

    def holds(self, key: int) -> bool:
        """Return whether this connection holds an advisory lock, or takes it when it reopens."""
        return key in self._exclusive or key in self._shared

    async def lock_new(self, keys: Sequence[int]) -> None:
        """Take advisory locks with new random *keys*, which no other process can hold."""
        self._exclusive.update(keys)
        await self.fetch(sql.LOCK, sql.array(keys))

    async def unlock(self, *keys: int, shared: bool = False) -> None:
        """Release advisory locks."""
        held = self._shared if shared else self._exclusive
        held.difference_update(keys)
        await self.fetch(sql.UNLOCK_SHARED if shared else sql.UNLOCK, sql.array(keys))

    def terminate(self) -> None:
        """End the connection at once, without telling the server."""
        if self._raw is not None:
            self._raw.terminate()

    def end(self) -> None:
        """Close the connection, which releases its locks, without waiting for the server."""
        self._exclusive.clear()
        self._shared.clear()
        self.terminate()

    async def close(self) -> None:
        """Close the connection and wait until the server has. Closing twice is fine."""
        self._exclusive.clear()
        self._shared.clear()
        if self.is_connected:
            try:
                async with _time_limit("close the connection", CLOSE_TIMEOUT):
                    await self._raw.close()
            except (ConnectionLost, StatementRefused):
                self.terminate()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


async def connect_raw(endpoint: Endpoint, database: str, seconds: float) -> Any:
    """Return a connection of asyncpg, opened within *seconds*; to a managed server without TLS.

    Its application_name contains the process and the machine.
    """
    options: dict[str, Any] = {
        "host": endpoint.host,
        "port": endpoint.port,
        "user": endpoint.user or USER,
        # Never None: asyncpg would then search the environment and files.
        "password": endpoint.password,
        "database": database,
        "ssl": endpoint.query.removeprefix("sslmode=") or False,
        **NEUTRAL,
        # asyncpg would ask the event loop policy; `_time_limit` enforces the timeout.
        "loop": asyncio.get_running_loop(),
        "timeout": None,
    }
    name = name_of(endpoint)
    try:
        async with _time_limit(f"connect to {endpoint.place}", seconds):
            try:
                return await _connect(**options, server_settings={**_SETTINGS, **name})
            except asyncpg.ProtocolViolationError:
                # A pooler accepts few settings in the startup message.
                raw = await _connect(**options, server_settings=name)
                try:
                    await raw.execute(sql.settings(_SETTINGS))
                except BaseException:
                    raw.terminate()
                    raise
                return raw
    except ConnectionLost as error:
        # asyncpg has no class for that.
        if isinstance(error.__cause__, ConnectionError) and "rejected SSL" in str(error.__cause__):
            error.__cause__ = TlsRefused(str(error.__cause__))
        raise


def name_of(endpoint: Endpoint) -> dict[str, str]:
    """Return the setting that names this process to the server, which counts its users by it."""
    # PostgreSQL cuts names off at 63 bytes.
    who = LOOKER if endpoint.looks else APPLICATION
    return {"application_name": f"{who} {originals.getpid()}@{socket.gethostname()[:32]}"}


def _is_full(error: WarmstackError) -> bool:
    return isinstance(error.__cause__, asyncpg.TooManyConnectionsError)


class ServerFacts(NamedTuple):
    """What the first connection shows about a server.

    *role* is the role of this client, and *super* whether it is a superuser; *now* is the server's
    time in seconds since the epoch. A *durable* server waits for the disk. A *pooled* server is
    behind a pooler, which keeps connections open after their users have closed them.
    """

    role: str
    durable: bool
    now: float
    super: bool = True
    pooled: bool = False


async def greet(connection: Connection, fingerprint: str, seconds: float) -> ServerFacts:
    """Return facts about the server; an external server has no *fingerprint*.

    Raises `NotOurs` for a server with another fingerprint. Raises `ServerFailed` if the server is
    too old; or if it is external, and a standby, doesn't let the role create databases, or is
    behind a pooler that shares connections or has too few.
    """
    if connection.major < OLDEST:
        raise ServerFailed.unsupported(
            title=TITLE,
            found=connection.version,
            wanted=f"PostgreSQL {OLDEST} or newer, which counts the connections to a database",
        )
    if not fingerprint:
        return await _greet_external(connection, seconds)
    (row,) = await connection.fetch(sql.MANAGED_FACTS, seconds=seconds)
    if row["name"] != f"warmstack-{fingerprint}":
        raise NotOurs(f"it calls itself {row['name']!r}")
    return ServerFacts(USER, row["fsync"] == "on", row["now"])


async def _greet_external(connection: Connection, seconds: float) -> ServerFacts:
    place = connection.endpoint.place
    try:
        (row,) = await connection.fetch(sql.EXTERNAL_FACTS, seconds=seconds)
    except StatementRefused as error:
        if error.state not in _PREPARED_ELSEWHERE:
            raise
        raise ServerFailed.pooled(place=place, cause=error.why) from error
    # PostgreSQL sends each client the process id of its backend (documentation, "BackendKeyData");
    # a pooler sends an invented one.
    pooled = row["pid"] != connection.pid
    if pooled:
        await _check_that_backends_stay(connection)
    if row["standby"]:
        raise ServerFailed.read_only(place=place)
    if not row["creates"]:
        raise ServerFailed.no_right(place=place, role=row["role"])
    if not row["tls"] and not pooled:
        # Asking for TLS costs a round trip each time. Behind a pooler, the server only knows
        # how the pooler is connected.
        connection.endpoint = connection.endpoint.replace(query="")
    return ServerFacts(row["role"], row["fsync"] == "on", row["now"], row["super"], pooled)


async def _check_that_backends_stay(connection: Connection) -> None:
    """Raise `ServerFailed` unless two connections keep their backends, as in session mode."""
    place = connection.endpoint.place
    backends: list[tuple[int, int]] = []
    other = Connection(connection.endpoint)
    try:
        async with other.turn(POOL_TIMEOUT):
            for _ in range(_POOL_CHECKS):
                first = await connection.fetchval(sql.BACKEND, seconds=POOL_TIMEOUT)
                backends.append((first, await other.fetchval(sql.BACKEND, seconds=POOL_TIMEOUT)))
    except ConnectionLost as error:
        if not error.timed_out:
            raise
        raise ServerFailed.pool_too_small(place=place, seconds=POOL_TIMEOUT) from error
    finally:
        other.terminate()
    if len(set(backends)) > 1 or backends[0][0] == backends[0][1]:
        numbers = ", ".join(map(str, sorted({pid for pair in backends for pid in pair})))
        cause = f"two connections were answered by the same backends in turn ({numbers})"
        raise ServerFailed.pooled(place=place, cause=cause)
