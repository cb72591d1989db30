"""What is asked of the server as a whole: which databases of ours there are, and the templates.

Locks of a process hang on the connection that is made here: they end with it, however the process
ends.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, Final, NamedTuple, ParamSpec, Self, TypeVar

from pytest_warmstack import originals
from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.postgres import external, sql
from pytest_warmstack.postgres.connections import (
    APPLICATION,
    TITLE,
    Connection,
    Maintenance,
    connect,
    connect_patiently,
    rejection,
)
from pytest_warmstack.postgres.errors import CloneFailed, StatementRefused
from pytest_warmstack.postgres.sql import literal, quote
from pytest_warmstack.postgres.template.errors import TemplateFailed
from pytest_warmstack.servers.errors import (
    ConnectionLost,
    ServerFailed,
    raise_if_out_of_resources,
)
from pytest_warmstack.servers.identity import DatabaseName, State
from pytest_warmstack.servers.model import (
    USER,
    Endpoint,
    NotOurs,
    NotReady,
    postgres_url,
)

OLDEST: Final = 14
"""The oldest version that we work with: `pg_stat_database.sessions` came with it."""

_NO_TABLE: Final = "42P01"
"""SQLSTATE of a query for a table that is not there (documentation, appendix A)."""

T = TypeVar("T")
P = ParamSpec("P")


def initdb_arguments(major: int | None) -> list[str]:
    """Return what initdb is told, whoever runs it.

    One round of hashing for the password where the server knows the setting: it is random and
    long, and every connection of every test would pay for the usual 4,096 rounds.
    """
    return ["--no-sync", *(["--set", "scram_iterations=1"] if (major or 0) >= 16 else [])]


class Database(NamedTuple):
    """A database of ours, as the server lists it; *sealed* marks a template that is complete.

    *used* tells when a template was used last, in epoch seconds, and for which *project*; *unused*
    how many seconds ago that was, by the server's own clock; *visits* how many connections there
    have been to the database. The *comment* is not always whole: it is
    long.
    """

    name: DatabaseName
    sealed: bool
    used: float = 0.0
    comment: str = ""
    visits: int = 0
    project: str = ""
    unused: float = 0.0


class Admin:
    """The connection of this process to the maintenance database, usable from any thread."""

    also = ""

    def __init__(
        self,
        endpoint: Endpoint,
        background: BackgroundLoop,
        connection: Connection,
        *,
        role: str,
        durable: bool,
        now: float,
        pooled: bool = False,
    ) -> None:
        self.endpoint = endpoint
        self.pooled = pooled
        self.background = background
        self.main = Maintenance(endpoint, connection)
        # What makes a copy of a database like it, as the texts before and after the copy's name.
        self._dress: dict[DatabaseName, list[tuple[str, str]]] = {}
        self.version = connection.version
        self.major = connection.major
        self._role = role
        self._epoch = now - originals.monotonic()
        # FILE_COPY is the faster one where durability is off, and brings the template's relation
        # cache along; else it waits for two checkpoints. Before PostgreSQL 15 it is all there is.
        self._by_file = self.major >= 15 and not durable

    @classmethod
    def connect(
        cls, endpoint: Endpoint, fingerprint: str, *, background: BackgroundLoop, timeout: float
    ) -> Self:
        """Connect to the server of ours that answers to *fingerprint*, within *timeout* seconds.

        Without a fingerprint it is somebody else's. Raises `NotReady` when nothing answers yet,
        `NotOurs` when another server does, or does not let us in, and `ServerFailed` when
        somebody else's can't be used.
        """
        return background.call(cls._connect, endpoint, fingerprint, background, timeout)

    @classmethod
    async def _connect(
        cls, endpoint: Endpoint, fingerprint: str, background: BackgroundLoop, seconds: float
    ) -> Self:
        try:
            connection = await connect_patiently(endpoint, seconds)
            _see_that_it_is_new_enough(connection)
            if not fingerprint:
                known = await external.greet(endpoint, connection, seconds)
                return cls(
                    known.endpoint,
                    background,
                    connection,
                    role=known.role,
                    durable=known.durable,
                    now=known.now,
                    pooled=known.pooled,
                )
            name, fsync, now = await connection.fetchrow(sql.NAME, seconds=seconds)
        except (ConnectionLost, StatementRefused) as error:
            if why := rejection(error):
                raise NotOurs(why) from error
            raise_if_out_of_resources(error)
            raise NotReady(f"{endpoint.place}: {error.why}") from error
        if name != f"warmstack-{fingerprint}":
            connection.terminate()
            raise NotOurs(f"it calls itself {name!r}")
        return cls(endpoint, background, connection, role=USER, durable=fsync == "on", now=now)

    def now(self) -> float:
        """Return the server's time of day, in seconds since the epoch."""
        return self._epoch + originals.monotonic()

    def url(self, database: DatabaseName, driver: str = "asyncpg") -> str:
        """Return the SQLAlchemy URL of a database of ours."""
        return postgres_url(self.endpoint, str(database), driver)

    def copying(self, source: DatabaseName, name: DatabaseName) -> str:
        """Return the statement that copies a database, in the way that is fastest here."""
        return sql.copy(source, name, by_file=self._by_file)

    def ask(self, query: str) -> Sequence[Any]:
        """Return the rows of *query*, asked in the maintenance database."""
        return self._run(self.main.fetch, query)

    def users(self) -> int:
        """Return how many other processes of ours are connected to this server."""
        query = (
            "SELECT count(DISTINCT pid) FROM pg_stat_activity"
            f" WHERE application_name LIKE {literal(APPLICATION + '%')}"
            " AND pid <> pg_backend_pid()"
        )
        return int(self._run(self.main.fetchval, query))

    def held(self) -> set[int]:
        """Return the keys of the locks that some process holds."""
        return {row["key"] for row in self.ask(sql.HELD)}

    def used(self) -> float:
        """Return when the server was used last, as its templates tell; 0 when it has none."""
        return max((each.used for each in self.databases()), default=0.0)

    def databases(self) -> list[Database]:
        """Return every database of ours, asked of the server without connecting to any of them."""
        return databases_of(self._run(self.main.fetch, sql.DATABASES))

    def templates(self) -> list[Database]:
        """Return the templates that are complete, with their comments."""
        return databases_of(self._run(self.main.fetch, sql.TEMPLATES))

    def find_template(self, name: DatabaseName) -> bool:
        """Tell whether the template is there and complete; it then stays until we let go.

        A shared lock is what says that it is in use; whoever drops it takes an exclusive one.
        """
        # Two statements: the second one must see what happened before the lock was ours.
        if not self._run(self.main.lock, name.lock_key, shared=True):
            return False
        if not self._properties(name):
            self._run(self.main.unlock, name.lock_key, shared=True)
            return False
        return True

    def lock(self, name: DatabaseName, *, timeout: float, say: Callable[[str], None]) -> None:
        """Wait for the exclusive lock of *name*, for *timeout* seconds at most.

        *say* is told when it has to wait. Raises `TemplateFailed`, naming the holder.
        """
        if self.try_lock(name):
            return
        say("another process builds the template, waiting for it ...")
        deadline = originals.monotonic() + timeout
        while not self.try_lock(name):
            if originals.monotonic() > deadline:
                raise TemplateFailed.locked(seconds=timeout, holder=self._holder(name))
            originals.sleep(0.02)

    def try_lock(self, name: DatabaseName) -> bool:
        """Take the exclusive lock of *name* if it is free."""
        return self._run(self.main.lock, name.lock_key)

    def unlock(self, name: DatabaseName) -> None:
        """Let go of the exclusive lock of *name*."""
        self._run(self.main.unlock, name.lock_key)

    def share(self, name: DatabaseName) -> None:
        """Take the shared lock of a template, which says that it is in use."""
        self._run(self.main.lock, name.lock_key, shared=True)

    def create(self, name: DatabaseName) -> Future[None]:
        """Begin to make an empty database, of which there is as little to copy as can be.

        PostgreSQL's own tables come with free space and with maps of it, which initdb's vacuum
        made: a fifth of the files that a clone consists of. Rewritten, they are without.
        """
        return self.background.submit(self._create, name)

    def copy(self, source: DatabaseName, name: DatabaseName) -> None:
        """Copy a database that nobody is connected to, with its own settings and grants.

        Raises `CloneFailed` with PostgreSQL's own words.
        """
        dress = sql.dressing(self.dress(source), name)
        try:
            self._run(self.main.execute, self.copying(source, name))
            if dress:
                self._run(self.main.execute, dress)
        except StatementRefused as error:
            raise CloneFailed.refused(
                template=str(source), cause=error.why, looked_at=error.looked_at
            ) from error

    def dress(self, source: DatabaseName) -> list[tuple[str, str]]:
        """Return what gives a copy of *source* what copying does not (see `sql.dress`)."""
        if source not in self._dress:
            self._properties(source)
        pairs = self._dress.get(source, [])
        if source.state is not State.TEMPLATE:
            self._dress.pop(source, None)  # It is still being built.
        return pairs

    def mark(self, name: DatabaseName, comment: str) -> None:
        """Replace the comment of a template."""
        self._run(self.main.execute, sql.comment(name, comment))

    def activity(self, name: DatabaseName) -> list[str]:
        """Return what each connection to a database of ours is doing, in PostgreSQL's words."""
        rows = self._run(
            self.main.fetch,
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
        self._run(self.main.execute, sql.drop(str(name)))

    def read(self, name: DatabaseName, query: str) -> list[str]:
        """Return the text column that *query* gives in a database of ours; no table, no rows."""
        return self._run(self._read, name, query)

    def settle(self, draft: DatabaseName) -> None:
        """End what the build left connected to *draft*, and be the last to have been connected.

        A connection leaves PostgreSQL's relation cache file behind, which a clone by FILE_COPY
        brings along: each first connection to a clone is then faster.
        """
        end = (
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            f" WHERE datname = {literal(str(draft))} AND backend_type = 'client backend'"
        )
        self._run(self.main.execute, end)
        self.read(draft, "SELECT 'settled'")
        if self.pooled:
            self._run(self.main.execute, end)

    def seal(self, draft: DatabaseName, name: DatabaseName, comment: str, note: str) -> None:
        """Turn *draft* into the template *name*, in one transaction: from now on it counts.

        *note* is the statement that notes when it was used.
        """
        self._run(
            self.main.execute,
            # Sent as one, they are one transaction (documentation, "Multiple Statements in a Simple
            # Query"), and a refusal leaves none open.
            f"{sql.rename(draft, name)}; {sql.comment(name, comment)}; {note};"
            f" ALTER DATABASE {quote(str(name))} IS_TEMPLATE true ALLOW_CONNECTIONS false",
        )

    def close(self) -> None:
        """Let go of every lock and end the connection. Closing twice is fine."""
        self.background.call(self.main.close)

    # What follows runs on the background loop.

    def _run(
        self,
        function: Callable[P, Coroutine[Any, Any, T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        return self.background.call(function, *args, **kwargs)

    async def _read(self, name: DatabaseName, query: str) -> list[str]:
        connection = await connect(self.endpoint, str(name))
        try:
            return [row[0] for row in await connection.fetch(query)]
        except StatementRefused as error:
            if error.state != _NO_TABLE:
                raise
            return []
        finally:
            await connection.close()

    async def _create(self, name: DatabaseName) -> None:
        await self.main.execute(
            sql.create(name, await self._beginning()), sql.comment(name, sql.DRAFT)
        )
        connection = await connect(self.endpoint, str(name))
        try:
            tables = await connection.fetchval(sql.OWN_TABLES)
            await connection.execute(f"VACUUM (FULL) {tables}")
        finally:
            await connection.close()

    async def _beginning(self) -> str:
        """Return what an empty database is copied from.

        That is template0, which takes no connections and whose collations have no version that
        could differ; but template1 where it holds more, since whoever has put that there wants it
        in every database.
        """
        try:
            connection = await connect(self.endpoint, "template1")
        except (ConnectionLost, StatementRefused):
            return "template0"
        try:
            return "template1" if await connection.fetchval(sql.IS_CHANGED) else "template0"
        finally:
            await connection.close()

    def _properties(self, name: DatabaseName) -> bool:
        """Look at what a copy of a database does not get by itself; tell whether it is sealed."""
        rows = self._run(self.main.fetch, sql.properties(name))
        for row in rows:
            self._dress[name] = sql.dress(row, self._role)
        return any(row["sealed"] for row in rows)

    def _holder(self, name: DatabaseName) -> str:
        """Return who holds the lock of *name*, for an error's text."""
        # pg_locks shows a 64-bit key as its two halves (documentation, "pg_locks").
        key = name.lock_key % 2**64
        rows = self._run(
            self.main.fetch,
            "SELECT a.application_name, a.client_addr, a.backend_start FROM pg_locks l"
            " JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory' AND l.granted"
            f" AND l.classid::bigint = {key >> 32} AND l.objid::bigint = {key & 0xFFFFFFFF}",
        )
        holders = [
            f"{row['application_name']}, connected from {row['client_addr']} since"
            f" {row['backend_start']:%H:%M:%S}"
            for row in rows
        ]
        return ", ".join(holders) or "nobody any more"


def _see_that_it_is_new_enough(connection: Connection) -> None:
    """Raise `ServerFailed` when the server is older than what this package works with."""
    if connection.major < OLDEST:
        connection.terminate()
        raise ServerFailed.unsupported(
            title=TITLE,
            found=connection.version,
            wanted=f"PostgreSQL {OLDEST} or newer, which counts the connections to a database",
        )


def databases_of(rows: Sequence[Any]) -> list[Database]:
    """Return the databases of ours among *rows* of `sql.DATABASES`."""
    named = [(DatabaseName.parse(row["datname"]), row) for row in rows]
    return [
        Database(
            name,
            row["sealed"],
            comment=row.get("comment", ""),
            visits=row.get("visits", 0),
            **_noted(row),
        )
        for name, row in named
        if name
    ]


def _noted(row: Any) -> dict[str, Any]:
    noted = sql.noted(row["note"])
    return {**noted, "unused": row.get("now", 0.0) - noted.get("used", 0.0)}
