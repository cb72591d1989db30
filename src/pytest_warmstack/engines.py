"""An engine for every test that costs it little more than its connections.

What is the same for all clones of a template is kept from one engine to the next: the dialect,
which asks the server what it is, and the compiled statements, which SQLAlchemy keeps by dialect.
The pool, the connections and the engine's own listeners are new, so nothing of a test is met by
another, and each engine may live in a loop of its own.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

import asyncpg
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
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.util import LRUCache

from pytest_warmstack.identity import DatabaseName
from pytest_warmstack.postgres.clones import Shared
from pytest_warmstack.postgres.connections import APPLICATION, LOST

_STATEMENTS: Final = 500
"""Compiled statements that are kept, as many as an engine keeps by default."""

_BEGIN: Final = "warmstack_begin"
"""The savepoint at the begin of a test that undoes what it does."""

_ENDED: Final = "it ended the transaction around it, as COMMIT does"

_NOWHERE: Final = frozenset({"3B001", "25P01"})
"""No such savepoint, no transaction (PostgreSQL's documentation, "PostgreSQL Error Codes")."""

_STAYS: Final = "what it did could not be undone"

Connect = Callable[[], Awaitable[Any]]


class Engines:
    """The engines of one process, one after the other."""

    def __init__(self) -> None:
        self._dialect: Dialect | None = None
        self._compiled: Any = LRUCache(_STATEMENTS)
        self._opened: list[Any] = []

    def make(self, url: str, connect: Connect | None = None) -> AsyncEngine:
        """Return an engine for *url*; with *connect*, one that has that one connection alone.

        One whose URL is not that of a clone is left as everybody makes it: a `db_url` of the
        user's own may lead anywhere, with any driver.
        """
        if not _is_clone(url):
            return create_async_engine(url)
        if self._dialect is None:
            engine = self._first(url, connect)
        else:
            engine = self._next(self._dialect, url, connect)
        event.listen(engine.sync_engine, "connect", self._note)
        return engine

    async def end(self, engine: AsyncEngine, *, close: bool = True) -> None:
        """End an engine, and, with *close*, its connections, those too that a test has not closed.

        They are cut off, not asked to end: that saves each test the wait for the server's answer.
        """
        if not _is_clone(engine.url):
            await engine.dispose()
            return
        for connection in self._opened:
            if close and not connection.is_closed():
                connection.terminate()
        self._opened.clear()
        await engine.dispose(close=False)
        dialect = engine.sync_engine.dialect
        # A listener of the test's may hang on the dialect (SQLAlchemy's DialectEvents); and an
        # engine that never connected has one that does not know the server yet.
        fit = not getattr(dialect, "_has_events", False) and _knows_server(dialect)
        self._dialect = dialect if fit else None

    def _note(self, connection: Any, _record: Any) -> None:
        self._opened.append(connection.driver_connection)

    def _first(self, url: str, connect: Connect | None) -> AsyncEngine:
        """Return an engine as everybody makes one."""
        options: dict[str, Any] = {"execution_options": {"compiled_cache": self._compiled}}
        if connect is not None:
            return create_async_engine(url, async_creator=connect, poolclass=StaticPool, **options)
        return create_async_engine(url, connect_args=_plain(make_url(url)), **options)

    def _next(self, dialect: Dialect, url: str, connect: Connect | None) -> AsyncEngine:
        """Return an engine with the *dialect* of the one before, made as SQLAlchemy does."""
        parsed = make_url(url)
        arguments, options = dialect.create_connect_args(parsed)
        options.update(_plain(parsed))
        if connect is not None:
            arguments, options = [], {"async_creator_fn": connect}

        def opened(rec: Any) -> Any:
            # A listener of the test's may change them, or connect by itself.
            own, named = list(arguments), dict(options)
            for listener in dialect.dispatch.do_connect:
                if (connection := listener(dialect, rec, own, named)) is not None:
                    return connection
            return dialect.connect(*own, **named)

        pool: Pool = (StaticPool if connect else AsyncAdaptedQueuePool)(opened, dialect=dialect)
        if (begin := dialect.on_connect_url(parsed)) is not None:
            event.listen(pool, "connect", lambda connection, _record: begin(connection))
        engine = Engine(pool, dialect, parsed, execution_options={"compiled_cache": self._compiled})
        return AsyncEngine(engine)


class Undoing:
    """One connection to the shared clone, for the tests of one loop: what they do is undone.

    Around each test is a transaction that is never committed. asyncpg turns every transaction
    that begins inside of it into a savepoint, so SQLAlchemy's commits are none.
    """

    def __init__(self) -> None:
        self._shared: Shared | None = None
        self._connection: Any = None
        self._around: Any = None
        self._connects = 0
        self._trouble = ""

    async def begin(self, shared: Shared) -> Connect:
        """Begin the transaction around a test in *shared*; return what gives its connection."""
        if self._shared is not shared:
            self.close()
        self._shared = shared
        self._trouble = ""

        async def connection() -> Any:
            # Anew when the test had it closed.
            if self._is_closed():
                await self._connect(shared)
                await self._begin()
            return self._connection

        if self._is_closed():
            await self._connect(shared)
        self._connects = 0
        await self._begin()
        return connection

    async def leave(self, session: AsyncSession) -> None:
        """Close *session*; what it could not undo, `end` will tell of."""
        connection = None
        with suppress(SQLAlchemyError):  # One that has failed gives none.
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
                # It is not there in a transaction that only looks like ours (COMMIT AND CHAIN).
                await self._connection.execute(f"ROLLBACK TO SAVEPOINT {_BEGIN}")
                await self._around.rollback()
                # What no transaction undoes: advisory locks, LISTEN, settings.
                await self._connection.reset()
            except asyncpg.InvalidSavepointSpecificationError:
                self._trouble = _ENDED
            except (asyncpg.PostgresError, *LOST) as error:
                # A statement that still runs, say: what it holds, it would hold until it ends.
                self._trouble = f"{_STAYS}: {error}"
        if self._trouble:
            self.close()
        return self._trouble

    def close(self) -> None:
        """End the connection, if there is one."""
        if not self._is_closed():
            self._connection.terminate()
        self._connection = None

    def _is_closed(self) -> bool:
        return self._connection is None or bool(self._connection.is_closed())

    async def _begin(self) -> None:
        self._around = self._connection.transaction()
        await self._around.start()
        await self._connection.execute(f"SAVEPOINT {_BEGIN}")

    async def _connect(self, shared: Shared) -> None:
        url = make_url(shared.clone.url)
        self._connection = await asyncpg.connect(
            host=url.host,
            port=url.port,
            user=url.username,
            password=url.password,
            database=url.database,
            ssl=url.query.get("ssl", False),
            server_settings={"application_name": f"{APPLICATION} {os.getpid()}"},
        )
        shared.connections += 1
        self._connects += 1


def _plain(url: URL) -> dict[str, Any]:
    """Return what keeps the driver from asking for TLS, unless the URL wants it.

    A server of ours speaks none; to ask on every connection costs a round trip.
    """
    return {} if "ssl" in url.query else {"ssl": False}


def _is_clone(url: str | URL) -> bool:
    parsed = make_url(url)
    named = DatabaseName.parse(parsed.database or "") is not None
    return named and parsed.drivername == "postgresql+asyncpg"


def _knows_server(dialect: Dialect) -> bool:
    return getattr(dialect, "server_version_info", None) is not None
