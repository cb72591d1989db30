"""An engine for each test that costs little more than its connections.

Consecutive engines share what is the same for all clones of a template: the dialect, which queries
the server's properties, and the compiled statements, which SQLAlchemy caches per dialect. The pool,
the connections and the engine's own listeners are new, so tests don't share them. An engine works
in every event loop, but each of its connections belongs to one.
"""

from __future__ import annotations

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
from pytest_warmstack.background import is_running_here
from pytest_warmstack.drivers import cut_asyncpg, loop_of
from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.postgres import DatabaseName
from pytest_warmstack.postgres.clones import Shared
from pytest_warmstack.postgres.connections import APPLICATION, NEUTRAL, StatementRefused, explained
from pytest_warmstack.servers.errors import ConnectionLost

_CACHE_SIZE: Final = 500
"""How many compiled statements are cached: SQLAlchemy's default for an engine."""

_SAVEPOINT: Final = "warmstack_begin"
"""The name of the savepoint at the beginning of a test that rolls back."""

_NO_SAVEPOINT: Final = frozenset({"3B001", "25P01"})
"""SQLSTATEs: no such savepoint, no transaction (PostgreSQL's documentation, appendix A)."""

_COMMITTED: Final = "it ended the transaction around it, as COMMIT does"
_NOT_UNDONE: Final = "what it did could not be undone"


class Engines:
    """The engines of one process, which pass one dialect on to each other.

    If another engine has the dialect, a new engine gets a new dialect.
    """

    def __init__(self) -> None:
        self._dialect: Dialect | None = None
        self._compiled: Any = LRUCache(_CACHE_SIZE)
        self._opened: WeakKeyDictionary[Engine, list[Any]] = WeakKeyDictionary()

    def make(self, url: str, rollback: RollbackConnection | None = None) -> AsyncEngine:
        """Return an engine for *url*, the URL of a clone; with *rollback*, for its connection only.

        The pool reuses a connection only in the event loop that opened it; elsewhere it opens
        another one.
        """
        dialect, self._dialect = self._dialect, None
        if dialect is None:
            engine = self._make_first(url, rollback)
        else:
            engine = self._make_next(dialect, url, rollback)
        opened: list[Any] = []
        self._opened[engine.sync_engine] = opened
        event.listen(
            engine.sync_engine,
            "connect",
            lambda connection, _record: opened.append(connection.driver_connection),
        )
        if rollback is None:
            event.listen(engine.sync_engine, "checkout", _replace_in_other_loop)
            event.listen(engine.sync_engine, "before_cursor_execute", _check_loop)
        return engine

    def end(self, engine: AsyncEngine, *, close: bool = True) -> None:
        """End an engine; with *close*, end its connections too, even those that a test left open.

        This needs no event loop and doesn't wait for the server: it cuts the connections.
        """
        opened = self._opened.pop(engine.sync_engine, [])
        if close:
            for connection in opened:
                cut_asyncpg(connection)
        engine.sync_engine.dispose(close=False)
        dialect = engine.sync_engine.dialect
        # Don't reuse a dialect to which the test added a listener (SQLAlchemy's DialectEvents), or
        # one that doesn't know the server yet, because the engine never connected.
        knows_server = getattr(dialect, "server_version_info", None) is not None
        if "_has_events" not in vars(dialect) and knows_server:
            self._dialect = dialect

    def leave_other_loops(self, engine: AsyncEngine) -> bool:
        """Cut the connections of other event loops; return whether there were any."""
        elsewhere = [
            each
            for each in self._opened.get(engine.sync_engine, ())
            if not each.is_closed() and not _is_here(each)
        ]
        for connection in elsewhere:
            cut_asyncpg(connection)
        return bool(elsewhere)

    def _make_first(self, url: str, rollback: RollbackConnection | None) -> AsyncEngine:
        options: dict[str, Any] = {"connect_args": _connect_options(make_url(url))}
        if rollback is not None:
            options = {"async_creator": rollback.connection, "poolclass": _pool_of(rollback)}
        cache = {"compiled_cache": self._compiled}
        return create_async_engine(url, execution_options=cache, **options)

    def _make_next(
        self, dialect: Dialect, url: str, rollback: RollbackConnection | None
    ) -> AsyncEngine:
        """Return an engine with an existing *dialect*, made in the way of `create_engine`."""
        parsed = make_url(url)
        arguments, options = dialect.create_connect_args(parsed)
        options.update(_connect_options(parsed))
        if rollback is not None:
            arguments, options = [], {"async_creator_fn": rollback.connection}

        def open_connection(rec: Any) -> Any:
            # The test's listeners may change the arguments, or connect themselves.
            own, named = list(arguments), dict(options)
            for listener in dialect.dispatch.do_connect:
                if (connection := listener(dialect, rec, own, named)) is not None:
                    return connection
            return dialect.connect(*own, **named)

        kind = _pool_of(rollback) if rollback is not None else AsyncAdaptedQueuePool
        pool: Pool = kind(open_connection, dialect=dialect)
        if (on_connect := dialect.on_connect_url(parsed)) is not None:
            event.listen(pool, "connect", lambda connection, _record: on_connect(connection))
        engine = Engine(pool, dialect, parsed, execution_options={"compiled_cache": self._compiled})
        return AsyncEngine(engine)


def _is_here(connection: Any) -> bool:
    """Return whether the current event loop opened a connection of asyncpg."""
    return is_running_here(loop_of(connection))


def _replace_in_other_loop(connection: Any, _record: Any, _proxy: Any) -> None:
    """Make the pool replace a connection that another event loop opened."""
    driver = connection.driver_connection
    if not _is_here(driver):
        cut_asyncpg(driver)
        raise DisconnectionError


def _check_loop(connection: Any, *_: Any) -> None:
    """Raise `LoopFailed` if a connection in use is also used in another event loop.

    An example is a session whose transaction began in a request of a test client.
    """
    driver = connection.connection.driver_connection
    if not driver.is_closed() and not _is_here(driver):
        from pytest_warmstack.postgres.errors import LoopFailed

        raise LoopFailed.transaction()


class RollbackConnection:
    """One connection to the shared clone, for the tests of one event loop that roll back.

    Around each test is a transaction that is never committed. asyncpg turns every transaction
    inside it into a savepoint, so that SQLAlchemy's commits commit nothing.
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
        """Return the connection, or a new one if the test closed it."""
        if self._shared is not None and self._is_closed():
            await self._connect(self._shared)
            await self._begin()
        return self._connection

    def check_loop(self) -> None:
        """Raise `LoopFailed` if the current event loop can't use the connection."""
        if not self._is_closed() and not _is_here(self._connection):
            from pytest_warmstack.postgres.errors import LoopFailed

            raise LoopFailed.rollback()

    async def leave(self, session: AsyncSession) -> None:
        """Close *session*. `end` reports what that could not undo."""
        connection = None
        with suppress(SQLAlchemyError, WarmstackError):  # A failed session has no connection.
            connection = await session.connection() if session.in_transaction() else None
        try:
            if not self._check():
                await session.close()
                return
        except DBAPIError as error:
            self._trouble = _trouble(getattr(error.orig, "sqlstate", None), str(error.orig))
        # Without the transaction around it, the session can't roll back to a savepoint.
        if connection is not None:
            await connection.invalidate()
        await session.invalidate()

    async def end(self) -> str:
        """Roll the test back; return why its database can't be reused, or "" if it can."""
        if not self._check():
            try:
                with explained(f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}"):
                    # After COMMIT AND CHAIN there is a transaction, but no savepoint.
                    await self._connection.execute(f"ROLLBACK TO SAVEPOINT {_SAVEPOINT}")
                    await self._around.rollback()
                    # A rollback doesn't undo advisory locks, LISTEN and settings.
                    await self._connection.reset()
            except (StatementRefused, ConnectionLost) as error:
                # For example, a statement is still running; it holds locks until it ends.
                self._trouble = _trouble(getattr(error, "state", None), error.why)
        if self._trouble:
            self.close()
        return self._trouble

    def close(self) -> None:
        """End the connection, if there is one."""
        if self._connection is not None:
            cut_asyncpg(self._connection)
        self._connection = None

    def _check(self) -> str:
        """Return why the test's database can't be reused, or "" if it can."""
        if not self._trouble:
            if self._connects or self._is_closed():
                self._trouble = "its connection was closed"
            elif not self._connection.is_in_transaction():
                self._trouble = _COMMITTED
        return self._trouble

    def _is_closed(self) -> bool:
        return self._connection is None or bool(self._connection.is_closed())

    async def _begin(self) -> None:
        with explained("BEGIN"):
            self._around = self._connection.transaction()
            await self._around.start()
            await self._connection.execute(f"SAVEPOINT {_SAVEPOINT}")

    async def _connect(self, shared: Shared) -> None:
        url = make_url(shared.clone.url)
        with explained(f"connect to {url.host}:{url.port}"):
            self._connection = await connect(
                host=url.host,
                port=url.port,
                user=url.username,
                database=url.database,
                server_settings={"application_name": f"{APPLICATION} {originals.getpid()}"},
                **{"ssl": url.query.get("ssl"), **_connect_options(url)},
            )
        shared.connections += 1
        self._connects += 1


def _trouble(state: str | None, cause: str) -> str:
    return _COMMITTED if state in _NO_SAVEPOINT else f"{_NOT_UNDONE}: {cause}"


def _pool_of(rollback: RollbackConnection) -> type[StaticPool]:
    """Return a pool with only the connection of *rollback*, for code in its event loop."""

    class Pool(StaticPool):
        def _do_get(self) -> ConnectionPoolEntry:
            rollback.check_loop()
            return super()._do_get()

    return Pool


def _connect_options(url: URL) -> dict[str, Any]:
    """Return options with which asyncpg ignores the environment.

    They also switch TLS off, unless *url* asks for it: managed servers have no TLS, and asking for
    it costs a round trip for each connection.
    """
    ssl = {} if "ssl" in url.query else {"ssl": False}
    return {**NEUTRAL, **ssl, "password": url.password or ""}


def is_clone(url: str | URL) -> bool:
    """Return whether *url* is the URL of a clone; a `db_url` of the user may lead anywhere."""
    parsed = make_url(url)
    named = DatabaseName.parse(parsed.database or "") is not None
    return named and parsed.drivername == "postgresql+asyncpg"
