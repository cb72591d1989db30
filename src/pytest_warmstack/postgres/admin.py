"""The SQL of the maintenance database, and the only room where names are quoted into SQL.

Locks and clones of a process hang on the connection that is made here: they end with it, however
the process ends.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, Final, NamedTuple, ParamSpec, Self, TypeVar

import asyncpg

from pytest_warmstack.errors import CloneFailed, ServerFailed, TemplateFailed
from pytest_warmstack.identity import DatabaseName, State
from pytest_warmstack.portal import Portal
from pytest_warmstack.runtime.base import Endpoint, NotOurs, NotReady

T = TypeVar("T")
P = ParamSpec("P")

TITLE: Final = "PostgreSQL"
USER: Final = "postgres"
_MAINTENANCE: Final = "postgres"
"""The database that we connect to: advisory locks count within one database only."""

_APPLICATION: Final = "pytest-warmstack"
_DATABASES: Final = (
    "SELECT datname, datistemplate AND NOT datallowconn AS sealed,"
    " coalesce(shobj_description(oid, 'pg_database'), '') AS comment"
    r" FROM pg_database WHERE datname LIKE 'warmstack\_%'"
)
"""Asked of the server as a whole: nothing of ours ever connects to a template."""

_STATEMENT: Final = 60.0
"""Seconds that one statement of ours may take."""

_BUSY: Final = 10.0
"""Seconds for which a refusal because of somebody's connection is tried again."""


def initdb_arguments(major: int | None) -> list[str]:
    """Return what initdb is told, whoever runs it.

    One round of hashing for the password where the server knows the setting: it is random and
    long, and every connection of every test would pay for the usual 4,096 rounds.
    """
    return ["--no-sync", *(["--set", "scram_iterations=1"] if (major or 0) >= 16 else [])]


def quote(name: str) -> str:
    """Return *name* as a quoted SQL identifier.

    >>> quote('a"b')
    '"a""b"'
    """
    escaped = name.replace('"', '""')
    return f'"{escaped}"'


def literal(text: str) -> str:
    """Return *text* as a quoted SQL string."""
    escaped = text.replace("'", "''")
    return f"'{escaped}'"


class Database(NamedTuple):
    """A database of ours, as the server lists it; *sealed* marks a template that is complete."""

    name: DatabaseName
    sealed: bool
    comment: str


class Admin:
    """The connection of this process to the maintenance database, usable from any thread.

    A second connection, made when it is first needed, drops databases in the background.
    """

    def __init__(self, endpoint: Endpoint, portal: Portal, connection: Any) -> None:
        self.endpoint = endpoint
        self._portal = portal
        self._connection = connection
        self._turn = asyncio.Lock()
        self._janitor: Any = None
        self._janitors_turn = asyncio.Lock()
        # "16.14", or "16.14 (Debian 16.14-1)": the server's own words, known since it greeted us.
        self.version = connection.get_settings().server_version.split()[0]
        self._major = connection.get_server_version().major

    @classmethod
    def connect(
        cls, endpoint: Endpoint, fingerprint: str, *, portal: Portal, timeout: float
    ) -> Self:
        """Connect to the server of ours that answers to *fingerprint*, within *timeout* seconds.

        Raises `NotReady` when nothing answers yet, `NotOurs` when another server does.
        """
        return portal.call(cls._connect, endpoint, fingerprint, portal, timeout)

    @classmethod
    async def _connect(
        cls, endpoint: Endpoint, fingerprint: str, portal: Portal, seconds: float
    ) -> Self:
        try:
            async with asyncio.timeout(seconds):
                connection = await _connection(endpoint, _MAINTENANCE)
                name = await connection.fetchval("SELECT current_setting('cluster_name')")
        except (
            asyncpg.InvalidPasswordError,
            asyncpg.InvalidAuthorizationSpecificationError,
        ) as error:
            raise NotOurs(f"it does not take the password: {error}") from error
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise NotReady(f"{endpoint.host}:{endpoint.port}: {error or 'no answer'}") from error
        if name != f"warmstack-{fingerprint}":
            connection.terminate()
            raise NotOurs(f"it calls itself {name!r}")
        return cls(endpoint, portal, connection)

    def url(self, database: DatabaseName, driver: str = "asyncpg") -> str:
        """Return the SQLAlchemy URL of a database of ours."""
        return url(self.endpoint, str(database), driver)

    def users(self) -> int:
        """Return how many other processes of ours are connected to this server."""
        query = (
            "SELECT count(DISTINCT pid) FROM pg_stat_activity"
            f" WHERE application_name = {literal(_APPLICATION)} AND pid <> pg_backend_pid()"
        )
        return int(self._run(self._fetchval, query))

    def databases(self) -> list[Database]:
        """Return every database of ours, asked of the server without connecting to any of them."""
        return _databases(self._run(self._fetch, _DATABASES))

    def find_template(self, name: DatabaseName) -> str | None:
        """Return the comment of the template if it is complete; it stays until we let go.

        A shared lock is what says that it is in use; whoever drops it takes an exclusive one.
        """
        # Two statements: the second one must see what happened before the lock was ours.
        key = name.lock_key
        if not self._run(self._fetchval, f"SELECT pg_try_advisory_lock_shared({key})"):
            return None
        if (comment := self.sealed(name)) is None:
            self._run(self._fetchval, f"SELECT pg_advisory_unlock_shared({key})")
        return comment

    def sealed(self, name: DatabaseName) -> str | None:
        """Return the comment of the sealed template of this name; None when there is none."""
        query = (
            "SELECT coalesce(shobj_description(oid, 'pg_database'), '') FROM pg_database"
            f" WHERE datname = {literal(str(name))} AND datistemplate AND NOT datallowconn"
        )
        comment: str | None = self._run(self._fetchval, query)
        return comment

    def lock(self, name: DatabaseName, *, timeout: float, say: Callable[[str], None]) -> None:
        """Wait for the exclusive lock of *name*, for *timeout* seconds at most.

        *say* is told when it has to wait. Raises `TemplateFailed`, naming the holder.
        """
        if self.try_lock(name):
            return
        say("another process builds the template, waiting for it ...")
        deadline = time.monotonic() + timeout
        while not self.try_lock(name):
            if time.monotonic() > deadline:
                raise TemplateFailed.locked(seconds=timeout, holder=self._holder(name))
            time.sleep(0.02)

    def try_lock(self, name: DatabaseName) -> bool:
        """Take the exclusive lock of *name* if it is free."""
        return bool(self._run(self._fetchval, f"SELECT pg_try_advisory_lock({name.lock_key})"))

    def unlock(self, name: DatabaseName) -> None:
        """Let go of the exclusive lock of *name*."""
        self._run(self._fetchval, f"SELECT pg_advisory_unlock({name.lock_key})")

    def share(self, name: DatabaseName) -> None:
        """Take the shared lock of a template, which says that it is in use."""
        self._run(self._fetchval, f"SELECT pg_advisory_lock_shared({name.lock_key})")

    def create(self, name: DatabaseName) -> None:
        """Make an empty database."""
        self._run(self._execute, f"CREATE DATABASE {quote(str(name))}")

    def clone(self, template: DatabaseName) -> DatabaseName:
        """Return the name of a new clone of *template*, which this process owns.

        Raises `CloneFailed` with PostgreSQL's own words.
        """
        name = DatabaseName.new(State.IN_USE, template.fingerprint)
        # The lock comes first: a database in use without one belongs to nobody, and is swept.
        self._run(self._fetchval, f"SELECT pg_advisory_lock({name.lock_key})")
        # FILE_COPY is the faster one where durability is off, and brings the
        # template's relation cache along. Before PostgreSQL 15 it is the only way there is.
        strategy = " STRATEGY FILE_COPY" if self._major >= 15 else ""
        statement = f"CREATE DATABASE {quote(str(name))} TEMPLATE {quote(str(template))}{strategy}"
        try:
            self._run(self._execute, statement)
        except asyncpg.PostgresError as error:
            raise CloneFailed.refused(
                template=str(template), cause=str(error), looked_at=[statement]
            ) from error
        return name

    def drop(self, name: DatabaseName) -> None:
        """Drop a database of ours, whoever is connected to it."""
        self._run(self._execute, _drop_statement(name))

    def drop_later(self, name: DatabaseName) -> Future[None]:
        """Drop a database of ours in the background, then let go of its lock."""
        return self._portal.submit(self._drop_in_background, name)

    def sweep(self, doomed: Callable[[list[Database]], list[DatabaseName]]) -> Future[None]:
        """Drop in the background what *doomed* picks of our databases and nobody holds a lock on.

        The locks are tried on the second connection, so that those of this process count too.
        """
        return self._portal.submit(self._sweep, doomed)

    def read(self, name: DatabaseName, query: str) -> list[str]:
        """Return the text column that *query* gives in a database of ours; no table, no rows."""
        return self._run(self._read, name, query)

    def settle(self, draft: DatabaseName) -> None:
        """End what the build left connected to *draft*, and be the last to have been connected.

        A connection leaves PostgreSQL's relation cache file behind, which a clone by FILE_COPY
        brings along: each first connection to a clone is then faster.
        """
        self._run(
            self._execute,
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            f" WHERE datname = {literal(str(draft))}",
        )
        self.read(draft, "SELECT 'settled'")

    def seal(self, draft: DatabaseName, name: DatabaseName, comment: str) -> None:
        """Turn *draft* into the template *name*, in one transaction: from now on it counts."""
        final = quote(str(name))
        self._run(
            self._execute,
            f"BEGIN; ALTER DATABASE {quote(str(draft))} RENAME TO {final};"
            f" COMMENT ON DATABASE {final} IS {literal(comment)};"
            f" ALTER DATABASE {final} IS_TEMPLATE true ALLOW_CONNECTIONS false; COMMIT",
        )

    def close(self) -> None:
        """Let go of every lock and end the connections. Closing twice is fine."""
        self._portal.call(self._close)

    # What follows runs on the portal's loop.

    def _run(
        self,
        function: Callable[P, Coroutine[Any, Any, T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        try:
            return self._portal.call(function, *args, **kwargs)
        except (OSError, asyncpg.InterfaceError, asyncpg.PostgresConnectionError) as error:
            raise ServerFailed.lost(title=TITLE, cause=str(error)) from error

    async def _fetch(self, query: str) -> Sequence[Any]:
        async with self._turn:
            rows: Sequence[Any] = await self._connection.fetch(query)
        return rows

    async def _fetchval(self, query: str) -> Any:
        async with self._turn:
            return await self._connection.fetchval(query)

    async def _execute(self, statement: str) -> None:
        async with self._turn:
            await _retried(self._connection, statement)

    async def _read(self, name: DatabaseName, query: str) -> list[str]:
        connection = await _connection(self.endpoint, str(name))
        try:
            return [row[0] for row in await connection.fetch(query)]
        except asyncpg.UndefinedTableError:
            return []
        finally:
            await connection.close()

    async def _second(self) -> Any:
        if self._janitor is None:
            self._janitor = await _connection(self.endpoint, _MAINTENANCE)
        return self._janitor

    async def _sweep(self, doomed: Callable[[list[Database]], list[DatabaseName]]) -> None:
        async with self._janitors_turn:
            names = doomed(_databases(await (await self._second()).fetch(_DATABASES)))
        for name in names:
            # Turn by turn, so that the drop of a test's clone need not wait for all of them.
            async with self._janitors_turn:
                janitor = await self._second()
                if await janitor.fetchval(f"SELECT pg_try_advisory_lock({name.lock_key})"):
                    await _retried(janitor, _unseal_statement(name))
                    await _retried(janitor, _drop_statement(name))
                    await janitor.fetchval(f"SELECT pg_advisory_unlock({name.lock_key})")

    async def _drop_in_background(self, name: DatabaseName) -> None:
        async with self._janitors_turn:
            await _retried(await self._second(), _drop_statement(name))
        await self._fetchval(f"SELECT pg_advisory_unlock({name.lock_key})")

    async def _close(self) -> None:
        for connection in (self._janitor, self._connection):
            if connection is not None and not connection.is_closed():
                try:
                    async with asyncio.timeout(2):
                        await connection.close()
                except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    connection.terminate()

    def _holder(self, name: DatabaseName) -> str:
        """Return who holds the lock of *name*, for an error's text."""
        # pg_locks shows a 64-bit key as its two halves (documentation, "pg_locks").
        key = name.lock_key % 2**64
        rows = self._run(
            self._fetch,
            "SELECT a.pid, a.client_addr, a.backend_start FROM pg_locks l"
            " JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory' AND l.granted"
            f" AND l.classid::bigint = {key >> 32} AND l.objid::bigint = {key & 0xFFFFFFFF}",
        )
        holders = [
            f"backend {row['pid']} of {row['client_addr']}, since {row['backend_start']:%H:%M:%S}"
            for row in rows
        ]
        return ", ".join(holders) or "nobody any more"


def url(endpoint: Endpoint, database: str, driver: str | None) -> str:
    """Return the SQLAlchemy URL of a database; without a driver it is what psql takes."""
    scheme = f"postgresql+{driver}" if driver else "postgresql"
    place = f"{endpoint.host}:{endpoint.port}"
    return f"{scheme}://{USER}:{endpoint.password}@{place}/{database}"


async def _connection(endpoint: Endpoint, database: str) -> Any:
    """Return a connection; its statements have a deadline, and Nagle and TLS are left out."""
    return await asyncpg.connect(
        host=endpoint.host,
        port=endpoint.port,
        user=USER,
        password=endpoint.password,
        database=database,
        ssl=False,
        timeout=_BUSY,
        command_timeout=_STATEMENT,
        server_settings={"application_name": _APPLICATION},
    )


async def _retried(connection: Any, statement: str) -> None:
    """Execute *statement*, again while somebody is still leaving the database it is about."""
    deadline = time.monotonic() + _BUSY
    while True:
        try:
            await connection.execute(statement)
        except asyncpg.ObjectInUseError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.02)
        else:
            return


def _databases(rows: Sequence[Any]) -> list[Database]:
    """Return the databases of ours among *rows* of `_DATABASES`."""
    named = [(DatabaseName.parse(row["datname"]), row) for row in rows]
    return [Database(name, row["sealed"], row["comment"]) for name, row in named if name]


def _drop_statement(name: DatabaseName) -> str:
    return f"DROP DATABASE IF EXISTS {quote(str(name))} WITH (FORCE)"


def _unseal_statement(name: DatabaseName) -> str:
    # A template can't be dropped; for all others this changes nothing.
    return f"ALTER DATABASE {quote(str(name))} IS_TEMPLATE false"
