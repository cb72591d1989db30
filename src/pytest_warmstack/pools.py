"""The open connections of this process, and the pools that have them.

A pool of the application outlives a test, its database and often its event loop. `Pools` ends the
connections behind its back, and makes SQLAlchemy and redis-py open new ones where they are needed.

A pool of asyncpg replaces its connections itself, but can't leave its event loop: make it where the
loop begins, in the lifespan of the application for example. A pool of psycopg gives out a cut
connection unless it has `check=ConnectionPool.check_connection` (`AsyncConnectionPool` likewise).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any, Final

from pytest_warmstack import drivers
from pytest_warmstack.drivers import POSTGRES, Observer, OpenConnection, Target

_SQLALCHEMY: Final = "sqlalchemy"


class Pools(Observer):
    """The open connections of this process, from `install` to `uninstall`; all are held weakly.

    *is_own* decides whether a connection is one whose event loop matters here: pools replace it if
    it belongs to another loop than the running one. Other connections are left alone.
    """

    def __init__(self, is_own: Callable[[Target], bool]) -> None:
        self._is_own = is_own
        self._lock = threading.Lock()
        # By the ids of the drivers' objects, which may have no hash.
        self._opened: dict[int, OpenConnection] = {}
        self._ends: dict[int, weakref.ref[Any]] = {}
        self._engines: weakref.WeakSet[Any] = weakref.WeakSet()
        self._sqlalchemy: Any = None
        self._installed = False

    def install(self) -> None:
        """Begin to see connections and SQLAlchemy's engines, whenever they are imported."""
        self._installed = True
        drivers.install(self)
        drivers.when_imported(_SQLALCHEMY, self._listen)

    def uninstall(self) -> None:
        """Stop; connections and engines stay as they are."""
        self._installed = False
        drivers.uninstall(self)
        if (sqlalchemy := self._sqlalchemy) is not None:
            self._sqlalchemy = None
            sqlalchemy.event.remove(sqlalchemy.Pool, "checkout", self._replace)
            sqlalchemy.event.remove(sqlalchemy.Pool, "close", self._leave)
            sqlalchemy.event.remove(sqlalchemy.Engine, "engine_connect", self._remember)

    def forget_pools(self, database: str) -> None:
        """Cut all connections to the PostgreSQL *database*, and empty the pools of its engines.

        No loop has to run. Pools without an engine, such as those of `creator` functions, replace
        each connection when they give it out.
        """
        for each in self.open_to(database):
            each.cut()
        with self._lock:
            engines = [each for each in self._engines if each.url.database == database]
        for engine in engines:
            engine.dispose(close=False)

    def cut(self, is_wanted: Callable[[Target], bool], service: str) -> None:
        """Cut the connections of *service* that *is_wanted* accepts."""
        for each in self._open(service, is_wanted):
            each.cut()

    def open_to(self, database: str) -> list[OpenConnection]:
        """Return the connections to the PostgreSQL *database* that no one has cut."""
        return self._open(POSTGRES, lambda target: target.database == database)

    def _open(self, service: str, is_wanted: Callable[[Target], bool]) -> list[OpenConnection]:
        return [
            each
            for each in self._opened.copy().values()
            if each.target.service == service and is_wanted(each.target)
            if not each.is_cut and each.connection is not None
        ]

    # What the drivers tell.

    def opened(self, connection: OpenConnection) -> None:
        """Remember a connection."""
        key = id(connection.connection)

        def forget(reference: object) -> None:
            if self._ends.get(key) is reference:
                self._opened.pop(key, None)
                self._ends.pop(key, None)

        self._opened[key] = connection
        self._ends[key] = weakref.ref(connection.connection, forget)

    def reused(self, connection: OpenConnection) -> None:
        """Cut a connection to a Redis database of this process that another loop opened."""
        if self._is_own(connection.target):
            connection.cut()

    # What SQLAlchemy tells.

    def _listen(self, sqlalchemy: Any) -> None:
        if not self._installed or self._sqlalchemy is sqlalchemy:
            return
        self._sqlalchemy = sqlalchemy
        sqlalchemy.event.listen(sqlalchemy.Pool, "checkout", self._replace)
        sqlalchemy.event.listen(sqlalchemy.Pool, "close", self._leave)
        sqlalchemy.event.listen(sqlalchemy.Engine, "engine_connect", self._remember)

    def _remember(self, connection: Any) -> None:
        engine = connection.engine
        with self._lock:
            # An engine with execution options of its own is a view of another one.
            self._engines.add(getattr(engine, "_proxied", engine))

    def _replace(self, _connection: Any, record: Any, _proxy: Any) -> None:
        """Make a pool replace a connection that was cut, or that another event loop opened."""
        if self._is_useless(record):
            raise self._sqlalchemy.exc.DisconnectionError

    def _leave(self, _connection: Any, record: Any) -> None:
        """End a connection of another event loop, which its pool closes now and can't."""
        self._is_useless(record)

    def _is_useless(self, record: Any) -> bool:
        driver = record.driver_connection
        opened = self._opened.get(id(driver))
        if opened is None or opened.connection is not driver:
            return False
        if not opened.is_cut and opened.is_elsewhere() and self._is_own(opened.target):
            opened.cut()
        return opened.is_cut
