"""Connections of ours to PostgreSQL: made when first needed, used in turns, with deadlines."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import asyncpg

from pytest_warmstack.errors import ServerFull
from pytest_warmstack.postgres.sql import USER
from pytest_warmstack.runtime.base import Endpoint

TITLE: Final = "PostgreSQL"

APPLICATION: Final = "pytest-warmstack"
"""What the application_name of every connection of ours begins with."""

MAINTENANCE: Final = "postgres"
"""The database that we connect to: advisory locks count within one database only."""

BUSY: Final = 10.0
"""Seconds for which a refusal because of somebody's connection is tried again."""

_STATEMENT: Final = 60.0
"""Seconds that one statement of ours may take."""

_LEAVE: Final = 2.0
"""Seconds that a connection may take to end."""

Refusal = asyncpg.PostgresError
"""PostgreSQL's answer, when it is a no."""

LOST: Final = (OSError, asyncpg.InterfaceError, asyncpg.PostgresConnectionError)
"""What is raised when a connection, or the server behind it, is gone."""


async def connect(endpoint: Endpoint, database: str = MAINTENANCE, seconds: float = BUSY) -> Any:
    """Return a connection; its statements have a deadline, and Nagle and TLS are left out.

    Its name tells which process is behind it, and on which machine.
    """
    return await asyncpg.connect(
        host=endpoint.host,
        port=endpoint.port,
        user=USER,
        password=endpoint.password,
        database=database,
        ssl=False,
        timeout=seconds,
        command_timeout=_STATEMENT,
        server_settings={"application_name": f"{APPLICATION} {os.getpid()}@{_host()}"},
    )


async def connect_patiently(endpoint: Endpoint, seconds: float = BUSY) -> Any:
    """Return a connection to the maintenance database, as soon as the server has one to spare.

    Raises `ServerFull` when it has none within `BUSY` seconds; *seconds* are for one attempt.
    """
    deadline = time.monotonic() + BUSY
    while True:
        try:
            return await connect(endpoint, seconds=seconds)
        except asyncpg.TooManyConnectionsError as error:
            if time.monotonic() > deadline:
                raise ServerFull.connections(cause=str(error), seconds=BUSY, holders=()) from error
        await asyncio.sleep(0.05)


def _host() -> str:
    # PostgreSQL cuts names off at 63 bytes, and everything but ASCII is replaced.
    return socket.gethostname()[:32]


class Maintenance:
    """One connection to the maintenance database; those who use it wait for their turn.

    It is made when it is first needed, and made again when it was lost; one that was handed in
    is not, since locks hang on it.
    """

    def __init__(self, endpoint: Endpoint, connection: Any = None) -> None:
        self._endpoint = endpoint
        self._connection = connection
        self._renewable = connection is None
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Any]:
        """Give the connection to one user at a time."""
        async with self._lock:
            if self._renewable and (self._connection is None or self._connection.is_closed()):
                self._connection = await connect_patiently(self._endpoint)
            yield self._connection

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
            await asyncio.sleep(0)  # The transport writes as soon as the statement is begun.
            connection.terminate()
            with suppress(Refusal, *LOST):
                await sending

    async def close(self) -> None:
        """End the connection, and with it the locks that hang on it. Closing twice is fine."""
        connection = self._connection
        if connection is not None and not connection.is_closed():
            try:
                async with asyncio.timeout(_LEAVE):
                    await connection.close()
            except (TimeoutError, Refusal, *LOST):
                connection.terminate()


async def retried(connection: Any, statement: str) -> None:
    """Execute *statement*, again while somebody is still leaving the database it is about."""
    deadline = time.monotonic() + BUSY
    while True:
        try:
            await connection.execute(statement)
        except asyncpg.ObjectInUseError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.02)
        else:
            return
