"""Connections to PostgreSQL and the locks on them: used in turns, renewed when they are lost.

asyncpg's errors end here: `explained` turns each into one of this package.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterator,
    Sequence,
)
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import wraps
from typing import Any, Final, ParamSpec, TypeVar

import asyncpg

# Not `asyncpg.connect`, which a test may replace.
from asyncpg.connection import connect as _connect

from pytest_warmstack import originals
from pytest_warmstack.background import sleep
from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.postgres import sql
from pytest_warmstack.postgres.errors import StatementRefused
from pytest_warmstack.servers.errors import ConnectionLost, ServerFull
from pytest_warmstack.servers.model import LOOKER, MAINTENANCE, USER, Endpoint

T = TypeVar("T")
P = ParamSpec("P")

TITLE: Final = "PostgreSQL"

APPLICATION: Final = "pytest-warmstack"
"""What the application_name of every connection of this package begins with, unless it looks."""

BUSY: Final = 10.0
"""Seconds for which a refusal because of somebody's connection is tried again."""

STATEMENT_TIMEOUT: Final = 60.0
"""Seconds that one statement may take."""

CLOSE_TIMEOUT: Final = 2.0
"""Seconds that a connection may take to end."""

_SETTINGS: Final = {
    "statement_timeout": "0",
    "lock_timeout": "0",
    "default_transaction_read_only": "off",
    "standard_conforming_strings": "on",
}
"""What these connections rely on, whatever the user has set for the server or a database.

Only what older servers know as well: the plugin refuses them in its own words, and has to connect
for that.
"""

IN_USE: Final = "55006"
"""SQLSTATE of a refusal since somebody is connected to a database (documentation, appendix A)."""

_VALUE: Final = re.compile(r"( TO |\bPASSWORD )'(?:[^']|'')*'")
"""The value of a setting or a password, in a statement."""

_SHOWN: Final = 300
"""Characters of a statement that an error shows: the comment of a template is long."""


NEUTRAL: Final[dict[str, Any]] = {
    "direct_tls": False,
    "target_session_attrs": "any",
    "krbsrvname": "postgres",
    "gsslib": "gssapi",
}
"""What asyncpg would else read in the environment, which a test may change."""


class TlsRefused(Exception):
    """The server speaks no TLS, and the URL demands it."""


REJECTED: Final = (
    asyncpg.InvalidPasswordError,
    asyncpg.InvalidAuthorizationSpecificationError,
    # The maintenance database is missing, or closed to this role.
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
    # What the URL says about TLS can't be done.
    asyncpg.ClientConfigurationError,
    ssl.SSLError,
    TlsRefused,
)
"""Causes of a `ConnectionLost` which will be the same at the next attempt."""

_LOST: Final = (
    OSError,  # TimeoutError is one.
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    # A statement on a connection that is just being told that it has ended.
    asyncpg.InternalClientError,
)
"""What asyncpg raises when a connection, or the server behind it, is gone."""


@contextmanager
def explained(statement: str, seconds: float = STATEMENT_TIMEOUT) -> Iterator[None]:
    """Turn every error of asyncpg into one of this package. No other code does.

    Raises `ConnectionLost` when the connection is gone or has not answered within *seconds*, and
    `StatementRefused` when PostgreSQL refuses *statement*.
    """
    try:
        yield
    except _LOST as error:
        cause = str(error) or f"no answer within {seconds:g} seconds"
        raise ConnectionLost.lost(title=TITLE, statement=masked(statement), cause=cause) from error
    except asyncpg.PostgresError as error:
        raise StatementRefused.by_server(
            title=TITLE, statement=masked(statement), cause=str(error), state=error.sqlstate or ""
        ) from error


def masked(statement: str) -> str:
    """Return *statement* for an error: without the values of settings, which may be secret.

    >>> masked("ALTER ROLE a SET app.key TO 'hunter2'")
    "ALTER ROLE a SET app.key TO '***'"
    """
    hidden = _VALUE.sub(r"\1'***'", statement)
    return f"{hidden[:_SHOWN]} ..." if len(hidden) > _SHOWN else hidden


class Connection:
    """A connection to PostgreSQL on the background loop, whose errors are those of `explained`.

    Every statement has *seconds* to end, or `STATEMENT_TIMEOUT` if nothing is said.
    """

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self.pid: int = raw.get_server_pid()
        # "16.14", or "16.14 (Debian 16.14-1)": the server's own words, known since it greeted us.
        self.version: str = raw.get_settings().server_version.split()[0]
        self.major: int = raw.get_server_version().major

    async def fetch(self, query: str, *values: Any, seconds: float = 0.0) -> Sequence[Any]:
        """Return the rows of *query*; one with *values* apart is parsed by the server once."""
        rows: Sequence[Any] = await self._run(query, seconds, self._raw.fetch, *values)
        return rows

    async def fetchrow(self, query: str, *values: Any, seconds: float = 0.0) -> Any:
        """Return the first row of *query*."""
        return await self._run(query, seconds, self._raw.fetchrow, *values)

    async def fetchval(self, query: str, *values: Any, seconds: float = 0.0) -> Any:
        """Return the first value of the first row of *query*."""
        return await self._run(query, seconds, self._raw.fetchval, *values)

    async def execute(self, statement: str, *, seconds: float = 0.0) -> None:
        """Execute *statement*, or several that are divided by `;` in one transaction."""
        await self._run(statement, seconds, self._raw.execute)

    async def _run(
        self, statement: str, seconds: float, do: Callable[..., Awaitable[Any]], *values: Any
    ) -> Any:
        seconds = seconds or STATEMENT_TIMEOUT
        # asyncpg has a deadline too, which it measures by a clock that a test may have frozen.
        with explained(statement, seconds):
            async with asyncio.timeout(seconds):
                return await do(statement, *values)

    def when_ended(self, listener: Callable[[], None]) -> None:
        """Have *listener* called when the connection has ended, whoever ended it."""
        self._raw.add_termination_listener(lambda _: listener())

    @property
    def is_closed(self) -> bool:
        """Whether it has ended."""
        return bool(self._raw.is_closed())

    def terminate(self) -> None:
        """End it without a word."""
        self._raw.terminate()

    async def close(self) -> None:
        """End it within `CLOSE_TIMEOUT`. Closing twice is fine."""
        try:
            with explained("close the connection", CLOSE_TIMEOUT):
                async with asyncio.timeout(CLOSE_TIMEOUT):
                    await self._raw.close()
        except (ConnectionLost, StatementRefused):
            self.terminate()


async def connect(
    endpoint: Endpoint, database: str = MAINTENANCE, seconds: float = BUSY
) -> Connection:
    """Return a connection to *database*, made within *seconds*; to a managed server it is plain.

    Its name tells which process is behind it, and on which machine. Raises `ConnectionLost` and
    `StatementRefused`, as when the server has no connection to spare.
    """
    options: dict[str, Any] = {
        "host": endpoint.host,
        "port": endpoint.port,
        "user": endpoint.user or USER,
        # Never None: asyncpg would look for it in the environment and in files.
        "password": endpoint.password,
        "database": database,
        "ssl": endpoint.query.removeprefix("sslmode=") or False,
        **NEUTRAL,
        # asyncpg would ask the event loop policy, and a deadline of the loop's is around it.
        "loop": asyncio.get_running_loop(),
        "timeout": None,
    }
    who = LOOKER if endpoint.looks else APPLICATION
    name = {"application_name": f"{who} {originals.getpid()}@{_host()}"}
    try:
        with explained(f"connect to {endpoint.place}", seconds):
            async with asyncio.timeout(seconds):
                try:
                    raw = await _connect(**options, server_settings={**_SETTINGS, **name})
                except asyncpg.ProtocolViolationError:
                    # A pooler takes few of them at the start of a connection.
                    raw = await _connect(**options, server_settings=name)
                    try:
                        await raw.execute(sql.settings(_SETTINGS))
                    except BaseException:
                        raw.terminate()
                        raise
    except ConnectionLost as error:
        # asyncpg has no class of its own for that.
        if isinstance(error.__cause__, ConnectionError) and "rejected SSL" in str(error.__cause__):
            error.__cause__ = TlsRefused(str(error.__cause__))
        raise
    return Connection(raw)


async def connect_patiently(
    endpoint: Endpoint, seconds: float = BUSY, *, recovering: bool = False
) -> Connection:
    """Return a connection to the maintenance database, as soon as the server has one to spare.

    With *recovering*, also as soon as it has recovered from the crash of one of its processes.
    Raises `ServerFull` when it has none within `BUSY` seconds; *seconds* are for one attempt.
    """
    deadline = originals.monotonic() + BUSY
    while True:
        try:
            return await connect(endpoint, seconds=seconds)
        except StatementRefused as error:
            if not isinstance(error.__cause__, asyncpg.TooManyConnectionsError):
                raise
            if originals.monotonic() > deadline:
                raise ServerFull.connections(cause=error.why, seconds=BUSY, holders=()) from error
        except ConnectionLost as error:
            starting = isinstance(error.__cause__, asyncpg.CannotConnectNowError)
            if not (starting and recovering) or originals.monotonic() > deadline:
                raise
        await sleep(0.05)


def _host() -> str:
    # PostgreSQL cuts names off at 63 bytes, and everything but ASCII is replaced.
    return socket.gethostname()[:32]


def rejection(error: WarmstackError) -> str:
    """Return why the server does not let us in; nothing when it may at the next attempt."""
    cause = error.__cause__
    if isinstance(cause, asyncpg.InvalidPasswordError):
        return f"it does not take the password: {cause}"
    return str(cause) if isinstance(cause, REJECTED) else ""


def persistent(
    function: Callable[P, Coroutine[Any, Any, T]],
) -> Callable[P, Coroutine[Any, Any, T]]:
    """Repeat *function* for `BUSY` seconds when it loses a connection; the next one is new.

    A test may end all connections, and the next test again. A server that is gone refuses.
    """

    @wraps(function)
    async def done(*args: P.args, **kwargs: P.kwargs) -> T:
        deadline = originals.monotonic() + BUSY
        while True:
            try:
                return await function(*args, **kwargs)
            except ConnectionLost as error:
                is_final = error.timed_out or isinstance(error.__cause__, ConnectionRefusedError)
                if is_final or rejection(error) or originals.monotonic() > deadline:
                    raise
            await sleep(0.01)

    return done


class Maintenance:
    """One connection to the maintenance database; those who use it wait for their turn.

    It is made when it is first needed, and made again when it was lost: a test may end every
    connection that there is. If locks hung on it, that is done at once, and they are taken again.
    """

    def __init__(self, endpoint: Endpoint, connection: Connection | None = None) -> None:
        self._endpoint = endpoint
        self._connection: Connection | None = None
        self._pid = 0
        self._turn = asyncio.Lock()
        self._alone: set[int] = set()
        self._shared: set[int] = set()
        self._renewing: asyncio.Future[None] | None = None
        if connection is not None:
            self._adopt(connection)

    @property
    def is_connected(self) -> bool:
        """Whether the connection is there now."""
        return self._connection is not None and not self._connection.is_closed

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Connection]:
        """Give the connection to one user at a time."""
        async with self._turn:
            connection = self._connection
            if connection is None or connection.is_closed:
                connection = await self._renewed()
            try:
                yield connection
            except ConnectionLost:
                # It may not know yet that it is lost; or it waits for an answer that never comes.
                connection.terminate()
                raise

    async def _renewed(self) -> Connection:
        connection = await connect_patiently(self._endpoint, recovering=self._pid != 0)
        try:
            if self._alone or self._shared:
                await self._lock_again(connection)
        except BaseException:
            connection.terminate()
            raise
        self._adopt(connection)
        return connection

    async def _lock_again(self, connection: Connection) -> None:
        # A server can't tell a connection that was cut from one that is silent.
        await connection.fetch(sql.END, self._pid)
        # What another process holds by now, it took to drop what it stands for.
        await connection.fetch(sql.LOCK, sql.numbers(self._alone))
        await connection.fetch(sql.LOCK_SHARED, sql.numbers(self._shared))

    def _adopt(self, connection: Connection) -> None:
        self._connection, self._pid = connection, connection.pid
        connection.when_ended(lambda: self._ended(connection))

    def _ended(self, connection: Connection) -> None:
        if connection is self._connection and (self._alone or self._shared):
            self._renewing = asyncio.ensure_future(self._renew())

    async def _renew(self) -> None:
        # If this fails, the next one who needs the connection tries again, and raises.
        with suppress(WarmstackError):
            await self.connected()

    @persistent
    async def connected(self) -> None:
        """Make the connection now, if there is none."""
        async with self.turn():
            pass

    async def lock(self, key: int, *, shared: bool = False) -> bool:
        """Take an advisory lock if it is free, alone or *shared*; tell whether it was.

        It is held until `unlock`, or as long as the process lives.
        """
        query, held = (sql.LOCK_SHARED, self._shared) if shared else (sql.LOCK, self._alone)
        taken = bool(await self.fetchval(query, sql.numbers([key])))
        if taken:
            held.add(key)
        return taken

    async def lock_new(self, keys: Collection[int]) -> None:
        """Take advisory locks that nobody else can want, since their keys were just made up."""
        self._alone.update(keys)
        await self.fetch(sql.LOCK, sql.numbers(keys))

    async def unlock(self, *keys: int, shared: bool = False) -> None:
        """Let go of advisory locks."""
        query, held = (sql.UNLOCK_SHARED, self._shared) if shared else (sql.UNLOCK, self._alone)
        held.difference_update(keys)
        await self.fetch(query, sql.numbers(keys))

    async def fetch(self, query: str, *values: Any) -> Sequence[Any]:
        """Return the rows of *query*; one with *values* apart is parsed by the server once."""
        async with self.turn() as connection:
            return await connection.fetch(query, *values)

    async def fetchval(self, query: str, *values: Any) -> Any:
        """Return the first value of the first row of *query*."""
        async with self.turn() as connection:
            return await connection.fetchval(query, *values)

    async def execute(self, *statements: str) -> None:
        """Execute *statements* one by one."""
        async with self.turn() as connection:
            for statement in statements:
                await retried(connection, statement)

    async def post(self, statement: str) -> None:
        """Send *statement* and leave: PostgreSQL completes it, and nobody hears its answer.

        A server looks at its client again only when the statement is done (PostgreSQL's
        documentation, "client_connection_check_interval", which is 0).
        """
        async with self.turn() as connection:
            sending = asyncio.ensure_future(connection.execute(statement))
            await sleep(0)  # The transport writes as soon as the statement is begun.
            connection.terminate()
            with suppress(ConnectionLost, StatementRefused):
                await sending

    async def close(self) -> None:
        """End the connection, and with it the locks that hang on it. Closing twice is fine."""
        connection, self._connection = self._connection, None
        if connection is not None and not connection.is_closed:
            await connection.close()


async def retried(connection: Connection, statement: str) -> None:
    """Execute *statement*, and again while somebody is still leaving the database it is about."""
    deadline = originals.monotonic() + BUSY
    while True:
        try:
            await connection.execute(statement)
        except StatementRefused as error:
            if error.state != IN_USE or originals.monotonic() > deadline:
                raise
            await sleep(0.02)
        else:
            return
