"""An engine for every test that costs it little more than its connections.

What is the same for all clones of a template is kept from one engine to the next: the dialect,
which asks the server what it is, and the compiled statements, which SQLAlchemy keeps by dialect.
The pool, the connections and the engine's own listeners are new, so nothing of a test is met by
another. An engine belongs to no event loop: each of its connections does.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop
from contextlib import suppress
from typing import Any, Final
from weakref import WeakKeyDictionary

# Not `asyncpg.connect`, which a test may replace.
from asyncpg.connection import connect
from sqlalchemy import (
    URL,
    AsyncAdaptedQueuePool,
    Dialect,
    Engine,
    Pool,
    StaticPool,
    event,
    make_url,
)
from sqlalchemy.exc import DBAPIError, DisconnectionError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry
from sqlalchemy.util import LRUCache

from pytest_warmstack import originals
from pytest_warmstack.background import end_transport, is_running_here
from pytest_warmstack.postgres.clones import Shared
from pytest_warmstack.postgres.connections import APPLICATION, NEUTRAL, explained
from pytest_warmstack.postgres.errors import LoopFailed, StatementRefused
from pytest_warmstack.servers.errors import ConnectionLost
from pytest_warmstack.servers.identity import DatabaseName

_STATEMENTS: Final = 500
"""Compiled statements that are kept, as many as an engine keeps by default."""

_BEGIN: Final = "warmstack_begin"
"""The savepoint at the begin of a test that undoes what it does."""

_ENDED: Final = "it ended the transaction around it, as COMMIT does"

_NOWHERE: Final = frozenset({"3B001", "25P01"})
"""No such savepoint, no transaction (PostgreSQL's documentation, "PostgreSQL Error Codes")."""

_STAYS: Final = "what it did could not be undone"


class Engines:
    """The engines of one process.

    They hand on one dialect: it is with one engine at a time, and a second one that is made
    meanwhile gets a new one.
    """

    def __init__(self) -> None:
        self._dialect: Dialect | None = None
        self._compiled: Any = LRUCache(_STATEMENTS)
        self._opened: WeakKeyDictionary[Engine, list[Any]] = WeakKeyDictionary()

    def make(self, url: str, rollback: RollbackConnection | None = None) -> AsyncEngine:
        """Return an engine for *url*, the URL of a clone.

        With *rollback* it has the one connection of that alone. A connection that comes back to the
        pool is handed out again in the loop that it was opened in; in another one a new one is made
        in its place.
        """
        dialect, self._dialect = self._dialect, None
        if dialect is None:
            engine = self._first(url, rollback)
        else:
            engine = self._next(dialect, url, rollback)
        opened: list[Any] = []
        self._opened[engine.sync_engine] = opened
        event.listen(
            engine.sync_engine,
            "connect",
            lambda connection, _record: opened.append(connection.driver_connection),
        )
        if rollback is None:
            event.listen(engine.sync_engine, "checkout", _stay_in_loop)
            event.listen(engine.sync_engine, "before_cursor_execute", _see_loop)
        return engine

    def end(self, engine: AsyncEngine, *, close: bool = True) -> None:
        """End an engine, and, with *close*, its connections, those too that a test has not closed.

        No loop is needed for it: they are cut off, not asked to end. That also saves each test the
        wait for the server's answer.
        """
        opened = self._opened.pop(engine.sync_engine, [])
        if close:
            for connection in opened:
                cut(connection)
        engine.sync_engine.dispose(close=False)
        dialect = engine.sync_engine.dialect
        # A listener of the test's may hang on the dialect (SQLAlchemy's DialectEvents); one that
        # hangs on the class is met by all engines anyway. And an engine that never connected has
        # a dialect that does not know the server yet.
        if "_has_events" not in vars(dialect) and _knows_server(dialect):
            self._dialect = dialect

    def leave_other_loops(self, engine: AsyncEngine) -> bool:
        """Cut the connections that were opened in other loops; tell whether there were any."""
        elsewhere = [
            each
            for each in self._opened.get(engine.sync_engine, ())
            if not each.is_closed() and not _is_here(each)
        ]
        for connection in elsewhere:
            cut(connection)
        return bool(elsewhere)

    def _first(self, url: str, rollback: RollbackConnection | None) -> AsyncEngine:
        """Return an engine as everybody makes one."""
        options: dict[str, Any] = {"execution_options": {"compiled_cache": self._compiled}}
        if rollback is None:
            return create_async_engine(url, connect_args=_plain(make_url(url)), **options)
        return create_async_engine(
            url, async_creator=rollback.connection, poolclass=_pool_of(rollback), **options
        )

    def _next(self, dialect: Dialect, url: str, rollback: RollbackConnection | None) -> AsyncEngine:
        """Return an engine with the *dialect* of the one before, made as SQLAlchemy does."""
        parsed = make_url(url)
        arguments, options = dialect.create_connect_args(parsed)
        options.update(_plain(parsed))
        if rollback is not None:
            arguments, options = [], {"async_creator_fn": rollback.connection}

        def opened(rec: Any) -> Any:
            # A listener of the test's may change them, or connect by itself.
            own, named = list(arguments), dict(options)
            for listener in dialect.dispatch.do_connect:
                if (connection := listener(dialect, rec, own, named)) is not None:
                    return connection
            return dialect.connect(*own, **named)

        kind = _pool_of(rollback) if rollback is not None else AsyncAdaptedQueuePool
        pool: Pool = kind(opened, dialect=dialect)
        if (begin := dialect.on_connect_url(parsed)) is not None:
            event.listen(pool, "connect", lambda connection, _record: begin(connection))
        engine = Engine(pool, dialect, parsed, execution_options={"compiled_cache": self._compiled})
        return AsyncEngine(engine)


def cut(connection: Any) -> None:
    """End a connection of asyncpg, whatever loop it was opened in."""
    if not connection.is_closed():
        loop = _loop_of(connection)
        end_transport(loop, connection._transport, connection.terminate)  # noqa: SLF001 - as below
        if loop.is_closed():  # There the first call does not come to its end.
            connection.terminate()


def _is_here(connection: Any) -> bool:
    """Tell whether a connection of asyncpg belongs to the loop that runs the calling code."""
    return is_running_here(_loop_of(connection))


def _loop_of(connection: Any) -> AbstractEventLoop:
    """Return the loop that a connection of asyncpg was opened in; no public name gives it."""
    loop: AbstractEventLoop = connection._loop  # noqa: SLF001
    return loop


def _stay_in_loop(connection: Any, _record: Any, _proxy: Any) -> None:
    """Have the pool open another connection where this one belongs to another loop."""
    driver = connection.driver_connection
    if not _is_here(driver):
        cut(driver)
        raise DisconnectionError


def _see_loop(connection: Any, *_: Any) -> None:
    """Raise `LoopFailed` where a connection that is in use is used in another loop as well.

    As the one of a session does whose transaction began in a request of a test client.
    """
    driver = connection.connection.driver_connection
    if not driver.is_closed() and not _is_here(driver):
        raise LoopFailed.transaction()


class RollbackConnection:
    """One connection to the shared clone, for the tests of one loop, whose work is rolled back.

    Around each test is a transaction that is never committed. asyncpg turns every transaction
    that begins inside of it into a savepoint, so SQLAlchemy's commits are none.
    """

    def __init__(self) -> None:
        self._shared: Shared | None = None
        self._connection: Any = None
        self._around: Any = None
        self._connects = 0
        self._trouble = ""

    async def begin(self, shared: Shared) -> None:
        """Begin the transaction around a test in *shared*.

        Raises `ConnectionLost` or `StatementRefused`.
        """
        if self._shared is not shared:
            self.close()
        self._shared = shared
        self._trouble = ""
        if self._is_closed():
            await self._connect(shared)
        self._connects = 0
        await self._begin()

    async def connection(self) -> Any:
        """Return the connection; a new one when the test had it closed."""
        if self._shared is not None and self._is_closed():
            await self._connect(self._shared)
            await self._begin()
        return self._connection

    def see_loop(self) -> None:
        """Raise `LoopFailed` where the connection can't be used: in another event loop."""
        if not self._is_closed() and not _is_here(self._connection):
            raise LoopFailed.rollback()

    async def leave(self, session: AsyncSession) -> None:
        """Close *session*; what it could not undo, `end` will tell of."""
        connection = None
        with suppress(SQLAlchemyError, LoopFailed):  # One that has failed gives none.
            connection = await session.connection() if session.in_transaction() else None
        try:
            if not self._look():
                await session.close()
                return
        except DBAPIError as error:
            gone = getattr(error.orig, "sqlstate", None) in _NOWHERE
            self._trouble = _ENDED if gone else f"{_STAYS}: {error.orig}"
        # Without the transaction around it, there is nothing that it could go back to.
        if connection is not None:
            await connection.invalidate()
        await session.invalidate()

    def _look(self) -> str:
        """Return why the test's database can't be used again, if so."""
        if not self._trouble:
            if self._connects or self._is_closed():
                self._trouble = "its connection was closed"
            elif not self._connection.is_in_transaction():
                self._trouble = _ENDED
        return self._trouble

    async def end(self) -> str:
        """Undo what the test did; return why its database can't be used again, if so."""
        if not self._look():
            try:
                with explained(f"ROLLBACK TO SAVEPOINT {_BEGIN}"):
                    # It is not there in a transaction that only looks like ours (COMMIT AND CHAIN).
                    await self._connection.execute(f"ROLLBACK TO SAVEPOINT {_BEGIN}")
                    await self._around.rollback()
                    # What no transaction undoes: advisory locks, LISTEN, settings.
                    await self._connection.reset()
            except (StatementRefused, ConnectionLost) as error:
                # Without the savepoint it is another transaction. Else a statement still runs, say:
                # what it holds, it would hold until it ends.
                gone = isinstance(error, StatementRefused) and error.state in _NOWHERE
                self._trouble = _ENDED if gone else f"{_STAYS}: {error.why}"
        if self._trouble:
            self.close()
        return self._trouble

    def close(self) -> None:
        """End the connection, if there is one."""
        if self._connection is not None:
            cut(self._connection)
        self._connection = None

    def _is_closed(self) -> bool:
        return self._connection is None or bool(self._connection.is_closed())

    async def _begin(self) -> None:
        with explained("BEGIN"):
            self._around = self._connection.transaction()
            await self._around.start()
            await self._connection.execute(f"SAVEPOINT {_BEGIN}")

    async def _connect(self, shared: Shared) -> None:
        url = make_url(shared.clone.url)
        with explained(f"connect to {url.host}:{url.port}"):
            self._connection = await connect(
                host=url.host,
                port=url.port,
                user=url.username,
                password=url.password or "",
                database=url.database,
                ssl=url.query.get("ssl", False),
                **NEUTRAL,
                server_settings={"application_name": f"{APPLICATION} {originals.getpid()}"},
            )
        shared.connections += 1
        self._connects += 1


def _pool_of(rollback: RollbackConnection) -> type[StaticPool]:
    """Return a pool that has the connection of *rollback* alone, for code in its own loop."""

    class Pool(StaticPool):
        def _do_get(self) -> ConnectionPoolEntry:
            rollback.see_loop()
            return super()._do_get()

    return Pool


def _plain(url: URL) -> dict[str, Any]:
    """Return what keeps the driver from the environment, and from TLS unless the URL asks for it.

    A managed server speaks none; to ask on every connection costs a round trip.
    """
    ssl = {} if "ssl" in url.query else {"ssl": False}
    return {**NEUTRAL, **ssl, "password": url.password or ""}


def is_clone(url: str | URL) -> bool:
    """Tell whether *url* is that of a clone; a `db_url` of the user's own may lead anywhere."""
    parsed = make_url(url)
    named = DatabaseName.parse(parsed.database or "") is not None
    return named and parsed.drivername == "postgresql+asyncpg"


def _knows_server(dialect: Dialect) -> bool:
    return getattr(dialect, "server_version_info", None) is not None
