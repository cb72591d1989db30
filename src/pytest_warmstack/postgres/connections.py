"""Connections of ours to PostgreSQL and the locks on them: used in turns, made anew when lost."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from functools import wraps
from typing import Any, Final, ParamSpec, TypeVar

import asyncpg

from pytest_warmstack import originals
from pytest_warmstack.background import sleep
from pytest_warmstack.errors import ServerFailed, ServerFull
from pytest_warmstack.postgres import sql
from pytest_warmstack.runtime.base import MAINTENANCE, USER, Endpoint

T = TypeVar("T")
P = ParamSpec("P")

TITLE: Final = "PostgreSQL"

APPLICATION: Final = "pytest-warmstack"
"""What the application_name of every connection of ours begins with."""

BUSY: Final = 10.0
"""Seconds for which a refusal because of somebody's connection is tried again."""

_STATEMENT: Final = 60.0
"""Seconds that one statement of ours may take."""

_LEAVE: Final = 2.0
"""Seconds that a connection may take to end."""

_SETTINGS: Final = {
    "statement_timeout": "0",
    "lock_timeout": "0",
    "default_transaction_read_only": "off",
    "standard_conforming_strings": "on",
}
"""What a connection of ours relies on, whatever the user has set for the server or a database.

Only what older servers know as well: they are to be refused in our words, which takes a connection.
"""


class TlsRefused(Exception):
    """The server speaks no TLS, and the URL demands it."""


Refusal = asyncpg.PostgresError
"""PostgreSQL's answer, when it is a no."""

REJECTED: Final = (
    asyncpg.InvalidPasswordError,
    asyncpg.InvalidAuthorizationSpecificationError,
    # The maintenance database is not there, or not for us.
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientPrivilegeError,
    # What the URL says about TLS can't be done.
    asyncpg.ClientConfigurationError,
    ssl.SSLError,
    TlsRefused,
)
"""What is raised when the server does not let us in, and will not when it is asked again."""

LOST: Final = (
    OSError,
    asyncpg.InterfaceError,
    asyncpg.PostgresConnectionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
    # A statement on a connection that is just being told that it has ended.
    asyncpg.InternalClientError,
)
"""What is raised when a connection, or the server behind it, is gone."""


async def connect(endpoint: Endpoint, database: str = MAINTENANCE, seconds: float = BUSY) -> Any:
    """Return a connection; its statements have a deadline, and on a server of ours it is plain.

    Its name tells which process is behind it, and on which machine.
    """
    options: dict[str, Any] = {
        "host": endpoint.host,
        "port": endpoint.port,
        "user": endpoint.user or USER,
        # Never None: then it would be looked for in the user's own variables and files.
        "password": endpoint.password,
        "database": database,
        "ssl": endpoint.query.removeprefix("sslmode=") or False,
        "timeout": seconds,
        "command_timeout": _STATEMENT,
    }
    name = {"application_name": f"{APPLICATION} {os.getpid()}@{_host()}"}
    try:
        try:
            return await asyncpg.connect(**options, server_settings={**_SETTINGS, **name})
        except asyncpg.ProtocolViolationError:
            # A pooler takes few of them at the start of a connection.
            connection = await asyncpg.connect(**options, server_settings=name)
            try:
                await connection.execute(sql.settings(_SETTINGS), timeout=seconds)
            except BaseException:
                connection.terminate()
                raise
            return connection
    except ConnectionError as error:
        # asyncpg has no class of its own for that.
        if "rejected SSL" in str(error):
            raise TlsRefused(str(error)) from error
        raise


async def connect_patiently(
    endpoint: Endpoint, seconds: float = BUSY, *, recovering: bool = False
) -> Any:
    """Return a connection to the maintenance database, as soon as the server has one to spare.

    With *recovering*, also as soon as it has recovered from the crash of one of its processes.
    Raises `ServerFull` when it has none within `BUSY` seconds; *seconds* are for one attempt.
    """
    deadline = originals.monotonic() + BUSY
    while True:
        try:
            return await connect(endpoint, seconds=seconds)
        except asyncpg.TooManyConnectionsError as error:
            if originals.monotonic() > deadline:
                raise ServerFull.connections(cause=str(error), seconds=BUSY, holders=()) from error
        except asyncpg.CannotConnectNowError:
            if not recovering or originals.monotonic() > deadline:
                raise
        await sleep(0.05)


def _host() -> str:
    # PostgreSQL cuts names off at 63 bytes, and everything but ASCII is replaced.
    return socket.gethostname()[:32]


def told_why(error: Exception) -> str:
    """Return why the server does not let us in, from one of `REJECTED`."""
    if isinstance(error, asyncpg.InvalidPasswordError):
        return f"it does not take the password: {error}"
    return str(error)


def lost(error: Exception) -> ServerFailed:
    """Return the error that tells of one of `LOST`."""
    cause = str(error) or f"a statement had no answer within {_STATEMENT:g} seconds"
    return ServerFailed.lost(title=TITLE, cause=cause)


def persistent(
    function: Callable[P, Coroutine[Any, Any, T]],
) -> Callable[P, Coroutine[Any, Any, T]]:
    """Have *function* done again when it lost a connection, for `BUSY` seconds: others are made.

    A test may end all that there are, and the next test again. A server that is gone refuses.
    """

    @wraps(function)
    async def done(*args: P.args, **kwargs: P.kwargs) -> T:
        deadline = originals.monotonic() + BUSY
        while True:
            try:
                return await function(*args, **kwargs)
            except (TimeoutError, ConnectionRefusedError):
                raise
            except LOST:
                if originals.monotonic() > deadline:
                    raise
            await sleep(0.01)

    return done


class Maintenance:
    """One connection to the maintenance database; those who use it wait for their turn.

    It is made when it is first needed, and made again when it was lost: a test may end every
    connection that there is. If locks hung on it, that is done at once, and they are taken again.
    """

    def __init__(self, endpoint: Endpoint, connection: Any = None) -> None:
        self._endpoint = endpoint
        self._connection: Any = None
        self._pid = 0
        self._turn = asyncio.Lock()
        self._alone: set[int] = set()
        self._shared: set[int] = set()
        self._renewing: asyncio.Future[None] | None = None
        if connection is not None:
            self._adopt(connection)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Any]:
        """Give the connection to one user at a time."""
        async with self._turn:
            if self._connection is None or self._connection.is_closed():
                await self._connect()
            try:
                yield self._connection
            except LOST:
                # It may not know yet that it is lost; or it waits for an answer that never comes.
                self._connection.terminate()
                raise

    async def _connect(self) -> None:
        connection = await connect_patiently(self._endpoint, recovering=self._pid != 0)
        try:
            if self._alone or self._shared:
                await self._lock_again(connection)
        except BaseException:
            connection.terminate()
            raise
        self._adopt(connection)

    async def _lock_again(self, connection: Any) -> None:
        # A server can't tell a connection that was cut from one that is silent.
        await connection.fetch(sql.END, self._pid)
        # What another process holds by now, it took to drop what it stands for.
        await connection.fetch(sql.LOCK, sql.numbers(self._alone))
        await connection.fetch(sql.LOCK_SHARED, sql.numbers(self._shared))

    def _adopt(self, connection: Any) -> None:
        self._connection, self._pid = connection, connection.get_server_pid()
        connection.add_termination_listener(self._ended)

    def _ended(self, connection: Any) -> None:
        if connection is self._connection and (self._alone or self._shared):
            self._renewing = asyncio.ensure_future(self._renew())

    async def _renew(self) -> None:
        # What can't be done now, the next one to need the connection will try, and tell.
        with suppress(ServerFull, Refusal, *LOST):
            await self._connected()

    @persistent
    async def _connected(self) -> None:
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
            rows: Sequence[Any] = await connection.fetch(query, *values)
        return rows

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
            with suppress(Refusal, *LOST):
                await sending

    async def close(self) -> None:
        """End the connection, and with it the locks that hang on it. Closing twice is fine."""
        connection, self._connection = self._connection, None
        if connection is not None and not connection.is_closed():
            try:
                async with asyncio.timeout(_LEAVE):
                    await connection.close()
            except (TimeoutError, Refusal, *LOST):
                connection.terminate()


async def retried(connection: Any, statement: str) -> None:
    """Execute *statement*, again while somebody is still leaving the database it is about."""
    deadline = originals.monotonic() + BUSY
    while True:
        try:
            await connection.execute(statement)
        except asyncpg.ObjectInUseError:
            if originals.monotonic() > deadline:
                raise
            await sleep(0.02)
        else:
            return
