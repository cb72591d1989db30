"""The databases of one server: create, copy, seal, list, lock and drop them."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import wraps
from typing import Any, Concatenate, Final, ParamSpec, Protocol, Self, TypeVar

from pytest_warmstack import originals
from pytest_warmstack.background import BackgroundLoop, sleep
from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.postgres import Database, DatabaseName, State, sql
from pytest_warmstack.postgres.connections import (
    APPLICATION,
    DATABASE_IN_USE,
    Connection,
    ServerFacts,
    StatementRefused,
    greet,
    name_of,
    rejection,
)
from pytest_warmstack.servers.errors import ConnectionLost, raise_if_out_of_resources
from pytest_warmstack.servers.model import (
    Endpoint,
    NotOurs,
    NotReady,
    postgres_url,
)

RENEWAL_TIME: Final = 0.25
"""Seconds to wait before an unlocked database is dropped.

Its owner may be renewing a lost connection.
"""

COUNTS_AT_ONCE: Final = 15
"""The first version of PostgreSQL whose counters are right when a connection has ended."""

HOLDER_INTERVAL: Final = 1.0
"""Seconds between two looks at who holds a lock that a process waits for."""

_WAITING: Final = "waiting for another build"
_NO_TABLE: Final = "42P01"
_NO_RIGHT: Final = "42501"
"""SQLSTATEs (PostgreSQL's documentation, appendix A)."""

T = TypeVar("T")
P = ParamSpec("P")


class _HasBackground(Protocol):
    background: BackgroundLoop


S = TypeVar("S", bound=_HasBackground)


def in_background(
    method: Callable[Concatenate[S, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[S, P], Future[T]]:
    """Make an asynchronous method return a future immediately; any thread can call it."""

    @wraps(method)
    def submit(self: S, /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        return self.background.submit(method, self, *args, **kwargs)

    return submit


def blocking(
    method: Callable[Concatenate[S, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[S, P], T]:
    """Make an asynchronous method wait for its result; any thread can call it."""

    @wraps(method)
    def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self.background.call(method, self, *args, **kwargs)

    return call


class Databases:
    """The databases of one server, which any thread can use.

    All statements use *main*, one connection to the maintenance database. It holds the advisory
    locks of this process, so PostgreSQL releases them whenever the process ends.
    """

    also = ""

    def __init__(self, main: Connection, background: BackgroundLoop, facts: ServerFacts) -> None:
        self.main = main
        self.background = background
        self.endpoint = main.endpoint
        self.version = main.version
        self.pooled = facts.pooled
        # Older versions count too late; only a superuser can silence triggers and reset counters.
        self.may_put_back = main.major >= COUNTS_AT_ONCE and facts.super and not facts.pooled
        self._role = facts.role
        self._epoch = facts.now - originals.monotonic()
        # Without durability FILE_COPY is faster, and copies the template's relation cache too;
        # with durability it waits for two checkpoints. Before PostgreSQL 15 it is the only way.
        self._by_file = main.major >= 15 and not facts.durable
        self._properties: dict[DatabaseName, Any] = {}

    @classmethod
    def connect(
        cls, endpoint: Endpoint, fingerprint: str, *, background: BackgroundLoop, timeout: float
    ) -> Self:
        """Connect within *timeout* seconds to the server with this *fingerprint*.

        An external server has no fingerprint. Raises `NotReady` if nothing answers yet, `NotOurs`
        if another server answers or the server rejects this client, and `ServerFailed` if the
        server can't be used.
        """
        return background.call(cls._connect, endpoint, fingerprint, background, timeout)

    @classmethod
    async def _connect(
        cls, endpoint: Endpoint, fingerprint: str, background: BackgroundLoop, seconds: float
    ) -> Self:
        connection = Connection(endpoint)
        try:
            async with connection.turn(seconds):
                facts = await greet(connection, fingerprint, seconds)
        except BaseException as error:
            connection.terminate()
            if not isinstance(error, (ConnectionLost, StatementRefused)):
                raise
            if why := rejection(error):
                raise NotOurs(why) from error
            raise_if_out_of_resources(error)
            raise NotReady(f"{endpoint.place}: {error.why}") from error
        return cls(connection, background, facts)

    def now(self) -> float:
        """Return the server's time in seconds since the epoch."""
        return self._epoch + originals.monotonic()

    def url(self, name: DatabaseName, driver: str = "asyncpg") -> str:
        """Return the SQLAlchemy URL of a database."""
        return postgres_url(self.endpoint, str(name), driver)

    @blocking
    async def use(self, seconds: float) -> None:
        """Let a connection that only looks count as a use, if it answers within *seconds*.

        Raises `ConnectionLost` if it doesn't.
        """
        self.endpoint = self.main.endpoint = self.main.endpoint.replace(looks=False)
        await self.main.try_to_execute(sql.settings(name_of(self.endpoint)), seconds)

    @blocking
    async def abandon(self) -> None:
        """End the connection without waiting for the server."""
        self.main.terminate()

    def close(self) -> None:
        """Close the connection, which releases every lock. Closing twice is fine.

        This doesn't wait for the server.
        """
        self.background.call(self._end)

    async def _end(self) -> None:
        self.main.end()

    # What the server knows

    @blocking
    async def ask(self, query: str) -> Sequence[Any]:
        """Return the rows of *query* in the maintenance database."""
        return await self.main.fetch(query)

    @blocking
    async def all(self) -> list[Database]:
        """Return the databases that this package made; connects to none of them."""
        return databases_of(await self.main.fetch(sql.DATABASES))

    @blocking
    async def templates(self) -> list[Database]:
        """Return the complete templates, with their whole comments."""
        return databases_of(await self.main.fetch(sql.TEMPLATES))

    @blocking
    async def users(self) -> int:
        """Return how many other processes with this package are connected to the server."""
        return int(await self.main.fetchval(sql.USERS, APPLICATION))

    def used(self) -> float:
        """Return when a template was last used, in seconds since the epoch; 0 without any."""
        return max((each.used for each in self.all()), default=0.0)

    @blocking
    async def activity(self, name: DatabaseName) -> list[str]:
        """Return what each connection to a database is doing, as PostgreSQL reports it."""
        return [
            f"backend {row['pid']}: {row['state']} for {row['seconds']} s"
            f"{' (waits for ' + row['waits'] + ')' if row['waits'] else ''}"
            f"{', blocked by ' + str(row['blockers']) if row['blockers'] else ''}"
            f": {row['query'][:500]}"
            for row in await self.main.fetch(sql.ACTIVITY, str(name))
        ]

    @blocking
    async def read(self, name: DatabaseName, query: str) -> list[str]:
        """Return the text column of *query* in a database; empty if the table doesn't exist."""
        try:
            async with Connection(self.endpoint, str(name)) as connection:
                return [row[0] for row in await connection.fetch(query)]
        except StatementRefused as error:
            if error.state != _NO_TABLE:
                raise
            return []

    # Locks

    def locked(self) -> set[int]:
        """Return the keys of the locks that processes hold."""
        return {row["key"] for row in self.ask(sql.LOCKS)}

    @blocking
    async def find_template(self, name: DatabaseName) -> bool:
        """Return whether the template exists and is complete; hold it until this process ends.

        A shared lock marks it as in use: dropping a template requires the exclusive lock.
        """
        # Take the lock first: afterwards no other process can change the answer.
        if not await self.main.lock(name.lock_key, shared=True):
            return False
        properties = await self._fetch_properties(name)
        if properties and properties["sealed"]:
            self._properties[name] = properties
            return True
        await self.main.unlock(name.lock_key, shared=True)
        return False

    def lock(self, name: DatabaseName, *, timeout: float, say: Callable[[str], None]) -> str:
        """Take the exclusive lock of *name*, or return who still holds it after *timeout* seconds.

        While it waits, *say* shows who holds the lock.
        """
        if self.try_lock(name):
            return ""
        say(_WAITING)
        begin = originals.monotonic()
        look = begin + HOLDER_INTERVAL / 2  # Most waits are shorter than this.
        while not self.try_lock(name):
            now = originals.monotonic()
            if now > begin + timeout:
                return self._holder_of(name)
            if now > look:
                look = now + HOLDER_INTERVAL
                say(f"{_WAITING}: {self._holder_of(name)}")
            originals.sleep(0.02)
        return ""

    def _holder_of(self, name: DatabaseName) -> str:
        holders = [
            f"process {row['application'].rpartition(' ')[2]}, connected since"
            f" {row['backend_start'].astimezone():%H:%M:%S}"
            for row in self.ask(sql.LOCKS)
            if row["key"] == name.lock_key and row["backend_start"]
        ]
        return ", ".join(holders) or "a process that has ended since"

    @blocking
    async def try_lock(self, name: DatabaseName) -> bool:
        """Take the exclusive lock of *name* if it is free; return whether it was."""
        return await self.main.lock(name.lock_key)

    @blocking
    async def unlock(self, name: DatabaseName) -> None:
        """Release the exclusive lock of *name*."""
        await self.main.unlock(name.lock_key)

    @blocking
    async def share(self, name: DatabaseName) -> None:
        """Take the shared lock of a template, which marks it as in use."""
        await self.main.lock(name.lock_key, shared=True)

    # Building a template

    @in_background
    async def create(self, name: DatabaseName) -> None:
        """Begin to create an empty database that is as small as possible.

        PostgreSQL's own tables contain free space, and have maps of it that initdb's vacuum made: a
        fifth of the files of a clone. Rewriting the tables removes both.
        """
        template = "template1" if await self._is_template1_changed() else "template0"
        await self.main.execute(sql.create(name, template), sql.comment(name, sql.DRAFT))
        async with Connection(self.endpoint, str(name)) as connection:
            tables = await connection.fetchval(sql.OWN_TABLES)
            await connection.execute(f"VACUUM (FULL) {tables}")

    async def _is_template1_changed(self) -> bool:
        """Return whether someone has changed template1, in order to have that in every database.

        If not, template0 is better: it accepts no connections, and its collations have no version
        that could differ.
        """
        try:
            async with Connection(self.endpoint, "template1") as connection:
                return bool(await connection.fetchval(sql.IS_CHANGED))
        except WarmstackError:
            return False

    def copy_statement(self, source: DatabaseName, name: DatabaseName) -> str:
        """Return the statement that copies a database, with the fastest strategy on this server."""
        return sql.copy(source, name, by_file=self._by_file)

    @blocking
    async def copy(self, source: DatabaseName, name: DatabaseName) -> None:
        """Copy a database that has no connections, with its settings and grants.

        Raises `CloneFailed`.
        """
        with clone_errors(source):
            await self.main.execute(self.copy_statement(source, name))
            await self.apply_properties(source, name)

    async def apply_properties(self, source: DatabaseName, name: DatabaseName) -> None:
        """Copy the settings and grants, which PostgreSQL doesn't copy, from *source* to *name*."""
        properties = self._properties.get(source) or await self._fetch_properties(source)
        if source.state is State.TEMPLATE:  # A draft still changes.
            self._properties[source] = properties
        if properties and (statements := sql.apply_properties(properties, name, self._role)):
            await self.main.execute("; ".join(statements))

    async def _fetch_properties(self, name: DatabaseName) -> Any:
        rows = await self.main.fetch(sql.properties(name))
        return rows[0] if rows else None

    @blocking
    async def mark(self, name: DatabaseName, comment: str) -> None:
        """Replace the comment of a template."""
        await self.main.execute(sql.comment(name, comment))

    @blocking
    async def settle(self, draft: DatabaseName) -> None:
        """End the connections that the build left open to *draft*, and connect once more.

        A connection leaves PostgreSQL's relation cache file behind. FILE_COPY copies that file into
        each clone, which makes the first connection to a clone faster.
        """
        oid = await self.main.fetchval(sql.OID, str(draft))
        await self.main.fetch(sql.END_SESSIONS, oid)
        async with Connection(self.endpoint, str(draft)) as connection:
            await connection.fetch("SELECT 'settled'")
        if self.pooled:
            await self.main.fetch(sql.END_SESSIONS, oid)

    @blocking
    async def seal(self, draft: DatabaseName, name: DatabaseName, comment: str, note: str) -> None:
        """Turn *draft* into the complete template *name*.

        *note* is the statement that notes its use.
        """
        # Sent together, they are one transaction (documentation, "Multiple Statements in a Simple
        # Query"), and a refusal leaves no transaction open.
        await self.main.execute(
            "; ".join([sql.rename(draft, name), sql.comment(name, comment), note, sql.seal(name)])
        )

    # Dropping

    @blocking
    async def drop(self, name: DatabaseName) -> None:
        """Drop a database, and end the connections to it."""
        await self.main.execute(sql.drop(str(name)))

    @blocking
    async def drop_unlocked(self, names: Sequence[DatabaseName]) -> list[DatabaseName]:
        """Drop the databases whose locks no process holds; return the dropped ones."""
        return await drop_unlocked(self.main, names)


@contextmanager
def clone_errors(source: DatabaseName) -> Iterator[None]:
    """Turn a refusal to copy *source* into `CloneFailed`."""
    try:
        yield
    except StatementRefused as error:
        from pytest_warmstack.postgres.errors import CloneFailed

        raise CloneFailed.refused(
            template=str(source), cause=error.why, looked_at=error.looked_at
        ) from error


async def drop_unlocked(
    connection: Connection, names: Sequence[DatabaseName]
) -> list[DatabaseName]:
    """Drop the databases whose locks no process holds; return the dropped ones.

    The locks of this process count only if another *connection* holds them.
    """
    if not names:
        return []
    held = {row["key"] for row in await connection.fetch(sql.LOCKS)}
    free = [name for name in names if name.lock_key not in held]
    owned = [name for name in free if name.state in {State.IN_USE, State.BUILDING}]
    gone = [name for name in free if name not in owned and await _drop_if_free(connection, name)]
    if owned:
        await sleep(RENEWAL_TIME)
    return gone + [name for name in owned if await _drop_if_free(connection, name)]


async def _drop_if_free(connection: Connection, name: DatabaseName) -> bool:
    """Drop a database if its lock is free; return whether it was. It need not exist any more."""
    # One turn for each, so that the drop of a test's clone doesn't wait for all of them; and only
    # one turn, because the lock belongs to the connection.
    async with connection.turn():
        if not await connection.fetchval(f"SELECT pg_try_advisory_lock({name.lock_key})"):
            return False
        try:
            await drop_sealed(connection, str(name))
        except StatementRefused as error:
            if error.state not in {DATABASE_IN_USE, _NO_RIGHT}:
                raise
            # The next run tries again; only the owner can drop a database of another role.
            return False
        finally:
            await connection.fetchval(f"SELECT pg_advisory_unlock({name.lock_key})")
        return True


async def drop_sealed(connection: Connection, name: str) -> None:
    """Drop a database, even if it is a template."""
    # After an interrupted drop, altering the database ends the connection (PostgreSQL's
    # dbcommands.c, AlterDatabase); dropping it again does not.
    if await connection.fetchval(sql.IS_TEMPLATE, name):
        await connection.execute(sql.unseal(name))
    await connection.execute(sql.drop(name))


def databases_of(rows: Sequence[Any]) -> list[Database]:
    """Return the databases with names of this package among *rows* of `sql.DATABASES`."""
    databases = []
    for row in rows:
        if (name := DatabaseName.parse(row["datname"])) is not None:
            used, project = sql.parse_note(row["note"])
            if name.state is State.DEVELOPMENT:
                values = sql.read_development(row["comment"])
                used, project = values.get("used", 0.0), values.get("project", "")
            databases.append(
                Database(
                    name,
                    row["sealed"],
                    used,
                    row["comment"],
                    row.get("visits", 0),
                    project,
                    row.get("now", 0.0) - used,
                )
            )
    return databases
