"""An engine for each test that costs little more than its connections.

Consecutive engines share what is the same for all clones of a template: the dialect, which queries
the server's properties, and the compiled statements, which SQLAlchemy caches per dialect. The pool,
the connections and the engine's own listeners are new, so tests don't share them. An engine works
in every event loop, but each of its connections belongs to one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final
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
from pytest_warmstack.postgres.driver_connections import DriverConnection, connection_class
from pytest_warmstack.postgres.kept import cache_of, give_cache
from pytest_warmstack.servers.errors import ConnectionLost

if TYPE_CHECKING:
    from pytest_warmstack.postgres.kept import Arguments, KeptConnection

Connect = Callable[[Dialect, list[Any], dict[str, Any]], Any]
"""A function that opens a connection with a dialect and the arguments of its driver."""

_CACHE_SIZE: Final = 500
"""How many compiled statements are cached: SQLAlchemy's default for an engine."""

SAVEPOINT: Final = "warmstack_begin"
"""The name of the savepoint at the beginning of a test that rolls back."""

_NO_SAVEPOINT: Final = frozenset({"3B001", "25P01"})
"""SQLSTATEs: no such savepoint, no transaction (PostgreSQL's documentation, appendix A)."""

_COMMITTED: Final = "it ended the transaction around it, as COMMIT does"
CLOSED: Final = "its connection was closed"
NOT_UNDONE: Final = "what it did could not be undone"


class EngineMaker:
    """Makes engines that pass one dialect on to each other, for each template.

    If another engine has the dialect, a new engine gets a new dialect. *create* makes an engine as
    `create_engine` does, *cut* ends a connection of the driver.
    """

    def __init__(self, create: Callable[..., Engine], cut: Callable[[Any], None]) -> None:
        self._create = create
        self._cut = cut
        # A dialect knows the types of the extensions in a template (psycopg's hstore).
        self._dialects: dict[str, Dialect] = {}
        self._compiled: Any = LRUCache(_CACHE_SIZE)
        self._opened: WeakKeyDictionary[Engine, list[Any]] = WeakKeyDictionary()

    def opened(self, engine: Engine) -> list[Any]:
        """Return the connections of the driver that *engine* has opened; some may be closed."""
        return [*self._opened.get(engine, ())]

    def _is_set_up(self, connection: Any) -> bool:
        """Return whether a connection has what the dialect gives a new one."""
        return False

    def _make(
        self, url: URL, pool: type[Pool], options: Mapping[str, Any], connect: Connect
    ) -> Engine:
        """Return an engine for the clone at *url*, in the way of `create_engine`.

        *options* are for the driver; *connect* is called with the dialect and all arguments.
        """

        def open_connection(rec: Any) -> Any:
            arguments, named = dialect.create_connect_args(url)
            # The test's listeners may change the arguments, or connect themselves.
            own, named = list(arguments), {**named, **options}
            for listener in dialect.dispatch.do_connect:
                if (connection := listener(dialect, rec, own, named)) is not None:
                    return connection
            return connect(dialect, own, named)

        cache = {"compiled_cache": self._compiled}
        template = _template_of(url)
        if template not in self._dialects:
            engine = self._create(
                url, creator=open_connection, poolclass=pool, execution_options=cache
            )
            dialect = engine.dialect
        else:
            dialect = self._dialects.pop(template)
            made = pool(open_connection, dialect=dialect)
            if (on_connect := dialect.on_connect_url(url)) is not None:

                def set_up(connection: Any, _record: Any) -> None:
                    if not self._is_set_up(connection):
                        on_connect(connection)

                event.listen(made, "connect", set_up)
            engine = Engine(made, dialect, url, execution_options=cache)
        opened: list[Any] = []
        self._opened[engine] = opened
        event.listen(
            engine, "connect", lambda _connection, record: opened.append(record.driver_connection)
        )
        return engine

    def _end(self, engine: Engine, *, close: bool) -> None:
        """End an engine; with *close*, end its connections too, even those that a test left open.

        This doesn't wait for the server: it cuts the connections.
        """
        opened = self._opened.pop(engine, [])
        if close:
            for connection in opened:
                self._cut(connection)
        engine.dispose(close=False)
        dialect = engine.dialect
        # Don't reuse a dialect to which the test added a listener (SQLAlchemy's DialectEvents), or
        # one that doesn't know the server yet, because the engine never connected.
        knows_server = getattr(dialect, "server_version_info", None) is not None
        if "_has_events" not in vars(dialect) and knows_server:
            self._dialects[_template_of(engine.url)] = dialect


def _template_of(url: URL) -> str:
    name = DatabaseName.parse(url.database or "")
    return name.fingerprint if name is not None else ""


class Engines(EngineMaker):
    """The asynchronous engines of one process."""

    def __init__(self) -> None:
        super().__init__(
            lambda *args, **kw: create_async_engine(*args, **kw).sync_engine, cut_asyncpg
        )
        # SQLAlchemy's connections and their arguments, of engines whose connection may be kept.
        self._adapted: WeakKeyDictionary[Engine, list[tuple[Any, Arguments]]] = WeakKeyDictionary()
        # What has the engine that stays.
        self._idle: KeptConnection | None = None
        # Where its pool keeps them, and what it was like before the test.
        self._as_made: WeakKeyDictionary[Engine, tuple[list[Any], object]] = WeakKeyDictionary()

    def make(
        self,
        url: str,
        rollback: RollbackConnection | None = None,
        kept: KeptConnection | None = None,
    ) -> AsyncEngine:
        """Return an engine for *url*, the URL of a clone; with *rollback*, for its connection only.

        The pool reuses a connection only in the event loop that opened it; elsewhere it opens
        another one. Its first connection is that of *kept*.
        """
        idle, self._idle = self._idle, None
        if idle is not None:
            # The engine of another event loop would keep the dialect.
            same = idle.take_engine(url if idle is kept else "")
            if same is not None:
                return AsyncEngine(same)
        parsed = make_url(url)
        pool = AsyncAdaptedQueuePool if rollback is None else _pool_of(rollback)
        adapted: list[tuple[Any, Arguments]] = []

        def connect(dialect: Dialect, arguments: list[Any], options: dict[str, Any]) -> Any:
            if rollback is not None:
                return rollback.adapt(dialect.connect(async_creator_fn=rollback.connection))
            # asyncpg gets copies: SQLAlchemy takes its own options out.
            given = list(arguments), dict(options)
            connection = kept.connect(dialect, *given) if kept is not None else None
            if connection is None:
                connection = dialect.connect(*arguments, **options)
            adapted.append((connection, given))
            return connection

        engine = self._make(parsed, pool, _connect_options(parsed), connect)
        if rollback is None:
            event.listen(engine, "checkout", _replace_in_other_loop)
            event.listen(engine, "before_cursor_execute", _check_loop)
        # The test's own listeners come later, and what they change counts.
        event.listen(engine, "connect", _begin_to_note)
        if kept is not None:
            records: list[Any] = []
            event.listen(engine, "connect", lambda _connection, record: records.append(record))
            self._adapted[engine] = adapted
            self._as_made[engine] = records, _state(engine)
        return AsyncEngine(engine)

    def _is_set_up(self, connection: Any) -> bool:
        return _is_noting(connection.driver_connection)

    def leave(self, engine: AsyncEngine, url: str, kept: KeptConnection) -> None:
        """End an engine for *url*; keep one of its connections if all are idle.

        If there is no other connection and the test hasn't changed the engine, the engine stays
        too. Its pool is empty then, so it connects as a new one does.
        """
        own = engine.sync_engine
        opened, adapted = self._opened.get(own, []), self._adapted.get(own, [])
        living = [each for each in opened if not each.is_closed()]
        known = [each for each in adapted if each[0].driver_connection in living]
        # The pool counts the connections that are in use.
        is_idle = len(living) == len(known) and not own.pool.checkedout()  # type: ignore[attr-defined]
        if living and is_idle:
            # The one that was kept before is the first, and knows most statements.
            opened.remove(known[0][0].driver_connection)
            kept.keep(*known[0])
        elif opened:
            kept.cut()
        records, as_made = self._as_made[own]
        if not (is_idle and len(living) <= 1 and _state(own) == as_made):
            self._end(own, close=True)
            return
        for record in records:
            record.dbapi_connection = None  # The pool forgets it, and doesn't close it.
        own.pool.dispose()
        opened.clear()
        adapted.clear()
        records.clear()
        kept.keep_engine(engine, url, partial(self._end, own, close=False))
        self._idle = kept

    def end(self, engine: AsyncEngine, *, close: bool = True) -> None:
        """End an engine; with *close*, end its connections too, even those that a test left open.

        This needs no event loop.
        """
        self._end(engine.sync_engine, close=close)

    def leave_other_loops(self, engine: AsyncEngine, loop: asyncio.AbstractEventLoop) -> bool:
        """Cut the connections of other event loops than *loop*; return whether there were any."""
        elsewhere = [
            each
            for each in self._opened.get(engine.sync_engine, ())
            if not each.is_closed() and loop_of(each) is not loop
        ]
        for connection in elsewhere:
            cut_asyncpg(connection)
        return bool(elsewhere)


def _state(engine: Engine) -> object:
    """Return what a test may change about *engine*: its attributes, its pool, listeners."""
    pool = dict(vars(engine.pool))
    pool.pop("_overflow", None)  # It counts the connections.
    dispatches: list[Any] = [engine.dispatch, engine.pool.dispatch, engine.dialect.dispatch]
    try:
        listeners = [
            [tuple(getattr(each, name).listeners) for name in each._event_names]  # noqa: SLF001 - there is no public way
            for each in dispatches
        ]
    except AttributeError:
        return object()  # It equals nothing, so no engine stays.
    return dict(vars(engine)), pool, listeners


def _is_noting(connection: Any) -> bool:
    return isinstance(connection, DriverConnection) and connection.is_noting


def _begin_to_note(connection: Any, _record: Any) -> None:
    driver = connection.driver_connection
    if isinstance(driver, DriverConnection):
        driver.is_noting = True


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
        # SQLAlchemy's connection in this test, and what earlier ones have prepared.
        self._adapted: Any = None
        self._cache: dict[str, Any] = {}

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

    def adapt(self, adapted: Any) -> Any:
        """Return SQLAlchemy's connection *adapted*, which knows what is prepared already."""
        give_cache(adapted, self._cache)
        self._adapted = adapted
        return adapted

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
            self._trouble = trouble_of(getattr(error.orig, "sqlstate", None), str(error.orig))
        # Without the transaction around it, the session can't roll back to a savepoint.
        if connection is not None:
            await connection.invalidate()
        await session.invalidate()

    async def end(self) -> str:
        """Roll the test back; return why its database can't be reused, or "" if it can."""
        if not self._check():
            try:
                with explained(f"ROLLBACK TO SAVEPOINT {SAVEPOINT}"):
                    # After COMMIT AND CHAIN there is a transaction, but no savepoint.
                    await self._connection.execute(f"ROLLBACK TO SAVEPOINT {SAVEPOINT}")
                    await self._around.rollback()
                    # A rollback doesn't undo advisory locks, LISTEN and settings.
                    await self._connection.reset()
            except (StatementRefused, ConnectionLost) as error:
                # For example, a statement is still running; it holds locks until it ends.
                self._trouble = trouble_of(getattr(error, "state", None), error.why)
            else:
                self._keep_what_is_set_up()
        if self._trouble:
            self.close()
        return self._trouble

    def _keep_what_is_set_up(self) -> None:
        """Keep what SQLAlchemy has set up, for the next test, unless this one has changed it."""
        driver, adapted, self._adapted = self._connection, self._adapted, None
        if adapted is not None:
            self._cache = cache_of(adapted)
        if driver.is_tuned:
            driver.is_noting = driver.is_tuned = False  # It is set up again.

    def close(self) -> None:
        """End the connection, if there is one."""
        if self._connection is not None:
            cut_asyncpg(self._connection)
        self._connection = self._adapted = None
        self._cache = {}

    def _check(self) -> str:
        """Return why the test's database can't be reused, or "" if it can."""
        if not self._trouble:
            if self._connects or self._is_closed():
                self._trouble = CLOSED
            elif not self._connection.is_in_transaction():
                self._trouble = _COMMITTED
        return self._trouble

    def _is_closed(self) -> bool:
        return self._connection is None or bool(self._connection.is_closed())

    async def _begin(self) -> None:
        with explained("BEGIN"):
            self._around = self._connection.transaction()
            await self._around.start()
            await self._connection.execute(f"SAVEPOINT {SAVEPOINT}")

    async def _connect(self, shared: Shared) -> None:
        self._cache = {}
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


def trouble_of(state: str | None, cause: str) -> str:
    """Return why a database can't be reused after an error with the SQLSTATE *state*."""
    return _COMMITTED if state in _NO_SAVEPOINT else f"{NOT_UNDONE}: {cause}"


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
    sharing = {"connection_class": connection_class(_template_of(url))}
    return {**NEUTRAL, **ssl, **sharing, "password": url.password or ""}


def is_clone(url: str | URL) -> bool:
    """Return whether *url* is the URL of a clone; a `db_url` of the user may lead anywhere."""
    parsed = make_url(url)
    named = DatabaseName.parse(parsed.database or "") is not None
    return named and parsed.drivername == "postgresql+asyncpg"
