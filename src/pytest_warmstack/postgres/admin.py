"""The SQL of the maintenance database, and the only room where names are quoted into SQL.

Locks and clones of a process hang on the connection that is made here: they end with it, however
the process ends.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from contextlib import suppress
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
_SEALED: Final = "datistemplate AND NOT datallowconn"
_COMMENT: Final = "coalesce(shobj_description(d.oid, 'pg_database'), '')"
_SETTINGS: Final = (
    "(SELECT array_agg(each) FROM pg_db_role_setting s, unnest(s.setconfig) each"
    " WHERE s.setdatabase = d.oid AND s.setrole = 0)"
)
_DATABASES: Final = (
    f"SELECT datname, {_SEALED} AS sealed, {_SETTINGS} AS settings"
    r" FROM pg_database d WHERE datname LIKE 'warmstack\_%'"
)
"""Asked of the server as a whole: nothing of ours ever connects to a template."""

_TEMPLATES: Final = (
    f"SELECT datname, {_SEALED} AS sealed, {_SETTINGS} AS settings, {_COMMENT} AS comment"
    rf" FROM pg_database d WHERE datname LIKE 'warmstack\_t\_%' AND {_SEALED}"
)
_PROPERTIES: Final = (
    f"SELECT {_SEALED} AS sealed, pg_get_userbyid(d.datdba) AS owner, datconnlimit,"
    " (SELECT json_agg(json_build_array(coalesce(pg_get_userbyid(nullif(a.grantee, 0)), ''),"
    " a.privilege_type, a.is_grantable)) FROM aclexplode(d.datacl) a) AS grants,"
    " (SELECT json_agg(json_build_array(coalesce(r.rolname, ''), s.setconfig))"
    " FROM pg_db_role_setting s LEFT JOIN pg_roles r ON r.oid = s.setrole"
    " WHERE s.setdatabase = d.oid) AS settings"
    " FROM pg_database d WHERE datname = {name}"
)
"""What belongs to a database and is not copied with it (documentation, "CREATE DATABASE")."""

_USED: Final = "warmstack.used"
"""The setting of a template that tells when it was used last, in epoch seconds.

A setting, and not part of its comment, since that is long and this is written on every run.
"""

_LISTS: Final = {
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
}
"""Settings whose value is a list of quoted names (GUC_LIST_QUOTE in PostgreSQL's guc_tables.c)."""

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
    """A database of ours, as the server lists it; *sealed* marks a template that is complete.

    *used* tells when a template was used last, in epoch seconds. The *comment* is not always asked
    for: it is long.
    """

    name: DatabaseName
    sealed: bool
    used: float = 0.0
    comment: str = ""


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
        # What makes a copy of a database like it, as the texts before and after the copy's name.
        self._dress: dict[DatabaseName, list[tuple[str, str]]] = {}
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

    def templates(self) -> list[Database]:
        """Return the templates that are complete, with their comments."""
        return _databases(self._run(self._fetch, _TEMPLATES))

    def find_template(self, name: DatabaseName) -> bool:
        """Tell whether the template is there and complete; it then stays until we let go.

        A shared lock is what says that it is in use; whoever drops it takes an exclusive one.
        """
        # Two statements: the second one must see what happened before the lock was ours.
        key = name.lock_key
        if not self._run(self._fetchval, f"SELECT pg_try_advisory_lock_shared({key})"):
            return False
        if not self._properties(name):
            self._run(self._fetchval, f"SELECT pg_advisory_unlock_shared({key})")
            return False
        return True

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
        self.copy(template, name)
        return name

    def copy(self, source: DatabaseName, name: DatabaseName) -> None:
        """Copy a database that nobody is connected to, with its own settings and grants.

        Raises `CloneFailed` with PostgreSQL's own words.
        """
        # FILE_COPY is the faster one where durability is off, and brings the
        # template's relation cache along. Before PostgreSQL 15 it is the only way there is.
        strategy = " STRATEGY FILE_COPY" if self._major >= 15 else ""
        statement = f"CREATE DATABASE {quote(str(name))} TEMPLATE {quote(str(source))}{strategy}"
        if source not in self._dress:
            self._properties(source)
        pairs = self._dress.get(source, [])
        if source.state is not State.TEMPLATE:
            self._dress.pop(source, None)  # It is still being built.
        dress = [f"{before}{quote(str(name))}{after}" for before, after in pairs]
        try:
            self._run(self._execute, statement)
            if dress:
                statement = "; ".join(dress)
                self._run(self._execute, statement)
        except asyncpg.PostgresError as error:
            raise CloneFailed.refused(
                template=str(source), cause=str(error), looked_at=[statement]
            ) from error

    def mark(self, name: DatabaseName, comment: str) -> None:
        """Replace the comment of a template."""
        self._run(self._execute, f"COMMENT ON DATABASE {quote(str(name))} IS {literal(comment)}")

    def activity(self, name: DatabaseName) -> list[str]:
        """Return what each connection to a database of ours is doing, in PostgreSQL's words."""
        rows = self._run(
            self._fetch,
            "SELECT pid, state, coalesce(wait_event_type || ': ' || wait_event, '') AS waits,"
            " pg_blocking_pids(pid) AS blockers,"
            " extract(epoch FROM now() - query_start)::int AS seconds, query"
            f" FROM pg_stat_activity WHERE datname = {literal(str(name))} AND state IS NOT NULL",
        )
        return [
            f"backend {row['pid']}: {row['state']} for {row['seconds']} s"
            f"{' (waits for ' + row['waits'] + ')' if row['waits'] else ''}"
            f"{', blocked by ' + str(row['blockers']) if row['blockers'] else ''}"
            f": {row['query'][:500]}"
            for row in rows
        ]

    def drop(self, name: DatabaseName) -> None:
        """Drop a database of ours, whoever is connected to it."""
        self._run(self._execute, _drop_statement(name))

    def drop_later(self, name: DatabaseName) -> Future[None]:
        """Drop a database of ours in the background, then let go of its lock."""
        return self._portal.submit(self._drop_in_background, name)

    def sweep(
        self,
        doomed: Callable[[list[Database]], list[DatabaseName]],
        *,
        used: Sequence[DatabaseName] = (),
    ) -> Future[None]:
        """Drop in the background what *doomed* picks of our databases and nobody holds a lock on.

        Before, write down that the templates *used* were just used, the first one last. The locks
        are tried on the second connection, so that those of this process count too.
        """
        return self._portal.submit(self._sweep, doomed, used)

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

    def seal(self, draft: DatabaseName, name: DatabaseName, comment: str, *, used: float) -> None:
        """Turn *draft* into the template *name*, in one transaction: from now on it counts."""
        final = quote(str(name))
        self._run(
            self._execute,
            f"BEGIN; ALTER DATABASE {quote(str(draft))} RENAME TO {final};"
            f" COMMENT ON DATABASE {final} IS {literal(comment)};"
            f" ALTER DATABASE {final} SET {_USED} TO '{used}';"
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

    async def _sweep(
        self,
        doomed: Callable[[list[Database]], list[DatabaseName]],
        used: Sequence[DatabaseName],
    ) -> None:
        async with self._janitors_turn:
            now = time.time()
            for before, name in enumerate(used):
                # Another run may write the same at the same time; either is right.
                with suppress(asyncpg.PostgresError):
                    await (await self._second()).execute(
                        f"ALTER DATABASE {quote(str(name))} SET {_USED} TO '{now - before / 1000}'"
                    )
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

    def _properties(self, name: DatabaseName) -> bool:
        """Look at what a copy of a database does not get by itself; tell whether it is sealed."""
        rows = self._run(self._fetch, _PROPERTIES.format(name=literal(str(name))))
        for row in rows:
            self._dress[name] = _dress(row)
        return any(row["sealed"] for row in rows)

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
    return [
        Database(name, row["sealed"], _used(row["settings"]), row.get("comment", ""))
        for name, row in named
        if name
    ]


def _used(settings: Sequence[str] | None) -> float:
    """Return when a template was used last, as its settings tell; 0 when they don't."""
    for setting in settings or ():
        name, _, value = setting.partition("=")
        if name == _USED:
            with suppress(ValueError):
                return float(value)
    return 0.0


def _dress(row: Any) -> list[tuple[str, str]]:
    """Return the statements that make a copy like its source, around the name of the copy."""
    statements = []
    if row["owner"] != USER:
        statements.append(("ALTER DATABASE ", f" OWNER TO {quote(row['owner'])}"))
    if row["datconnlimit"] >= 0:
        statements.append(("ALTER DATABASE ", f" CONNECTION LIMIT {row['datconnlimit']}"))
    for role, settings in json.loads(row["settings"] or "[]"):
        for setting in settings:
            name, _, value = setting.partition("=")
            if name != _USED:
                to = f" SET {_setting(name)} TO {_value(name, value)}"
                whom = f"ALTER ROLE {quote(role)} IN DATABASE " if role else "ALTER DATABASE "
                statements.append((whom, to))
    if row["grants"] is not None:
        # Grants that were never touched are no grants here; with the first, all are listed.
        statements += [("REVOKE ALL ON DATABASE ", f" FROM PUBLIC, {quote(row['owner'])}")]
        for grantee, privilege, grantable in json.loads(row["grants"]):
            option = " WITH GRANT OPTION" if grantable and grantee != row["owner"] else ""
            to = f" TO {quote(grantee) if grantee else 'PUBLIC'}{option}"
            statements.append((f"GRANT {privilege} ON DATABASE ", to))
    return statements


def _setting(name: str) -> str:
    """Return the name of a setting, which may be that of an extension, as SQL."""
    return ".".join(quote(part) for part in name.split("."))


def _value(name: str, value: str) -> str:
    """Return the value of a setting, as PostgreSQL stores it, as SQL."""
    if name.lower() in _LISTS:
        return value.replace('""', "''") or "''"
    return literal(value)


def _drop_statement(name: DatabaseName) -> str:
    return f"DROP DATABASE IF EXISTS {quote(str(name))} WITH (FORCE)"


def _unseal_statement(name: DatabaseName) -> str:
    # A template can't be dropped; for all others this changes nothing.
    return f"ALTER DATABASE {quote(str(name))} IS_TEMPLATE false"
