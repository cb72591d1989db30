"""Synchronous engines for tests, with psycopg or psycopg2, and the rollback around a test."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from socket import SHUT_RDWR
from types import ModuleType
from typing import Any, Final

from sqlalchemy import (
    URL,
    Connection,
    Dialect,
    Engine,
    QueuePool,
    StaticPool,
    create_engine,
    event,
    make_url,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from pytest_warmstack import originals
from pytest_warmstack.postgres.clones import Shared
from pytest_warmstack.postgres.connections import APPLICATION
from pytest_warmstack.postgres.engines import (
    CLOSED,
    NOT_UNDONE,
    SAVEPOINT,
    EngineMaker,
    trouble_of,
)

DRIVERS: Final = ("psycopg", "psycopg2")
"""The drivers that can be used, the best one first."""

BUSY_TIMEOUT: Final = 0.25
"""Seconds that a thread may take to leave a connection of psycopg that was cut."""

_NEUTRAL: Final = {
    "application_name": (10, ""),
    "client_encoding": (10, "utf8"),
    "connect_timeout": (10, "60"),
    "hostaddr": (10, ""),
    "krbsrvname": (10, "postgres"),
    "options": (10, ""),
    "passfile": (10, f"{os.devnull}/none"),  # An empty value would mean ~/.pgpass.
    "requirepeer": (10, ""),
    "target_session_attrs": (10, "any"),
    "gssencmode": (12, "disable"),
    "channel_binding": (13, "prefer"),
    "sslnegotiation": (17, "postgres"),
    "min_protocol_version": (18, "3.0"),
}
"""Options that libpq would otherwise read from variables or files; each since a version of it."""

_NOT_OPTIONS: Final = ("PGSERVICE", "PGREQUIREAUTH", "PGDATESTYLE", "PGTZ", "PGGEQO")
"""The variables of libpq that no option overrides."""

_IDLE, _ACTIVE, _FAILED = 0, 1, 3
"""States of a transaction, in the numbers of libpq's `PGTransactionStatusType`."""

_RESET: Final = "SELECT pg_advisory_unlock_all(); UNLISTEN *; RESET ALL"
"""Undoes what a rollback doesn't: advisory locks, LISTEN and settings."""


def find_driver() -> ModuleType:
    """Return the best driver that is installed. Raises `DriverMissing`."""
    causes = []
    for name in DRIVERS:
        try:
            return import_module(name)
        except ImportError as error:
            causes.append(f"import {name}: {error}")
    from pytest_warmstack.postgres.errors import DriverMissing

    raise DriverMissing.synchronous(looked_at=causes)


class SyncEngines(EngineMaker):
    """The synchronous engines of one process. Raises `DriverMissing`."""

    def __init__(self) -> None:
        super().__init__(create_engine, cut)
        self.driver = find_driver()

    def make(self, url: str, rollback: SyncRollbackConnection | None = None) -> Engine:
        """Return an engine for *url*, the `db_url` of a clone.

        With *rollback*, it is for its connection only.
        """
        parsed = self.url_of(url)

        def connect(dialect: Dialect, arguments: list[Any], options: dict[str, Any]) -> Any:
            if rollback is not None:
                return rollback.connection(self.driver, options)
            with _hiding:
                return dialect.connect(*arguments, **options)

        pool = QueuePool if rollback is None else StaticPool
        return self._make(parsed, pool, _connect_options(self.driver, parsed), connect)

    def end(self, engine: Engine, *, close: bool = True) -> None:
        """End an engine; with *close*, end all its connections too."""
        self._end(engine, close=close)

    def url_of(self, url: str) -> URL:
        """Return the URL of a database for the driver, instead of that for asyncpg."""
        parsed = make_url(url)
        if parsed.drivername != "postgresql+asyncpg":
            return parsed
        query = {"sslmode" if key == "ssl" else key: value for key, value in parsed.query.items()}
        return parsed.set(drivername=f"postgresql+{self.driver.__name__}", query=query)


class SyncRollbackConnection:
    """One connection to the shared clone, for the synchronous tests that roll back.

    Around each test is a transaction that is never committed. The connection's own commits and
    rollbacks, which SQLAlchemy calls, end at a savepoint in it.
    """

    def __init__(self) -> None:
        self._shared: Shared | None = None
        self._connection: Any = None
        self._lock = threading.Lock()
        self._is_begun = False
        self._trouble = ""

    def begin(self, shared: Shared) -> None:
        """Begin a test in *shared*; the transaction begins when the test first connects."""
        if self._shared is not shared:
            self.close()
        self._shared = shared
        self._is_begun = False
        self._trouble = ""

    def connection(self, driver: Any, options: dict[str, Any]) -> Any:
        """Return the connection, or a new one with *options* if the test closed it."""
        with self._lock:
            if self._is_closed():
                if self._is_begun:
                    self._trouble = self._trouble or CLOSED
                self._is_begun = False
                self._connection = _connect_rolled_back(driver, options)
                if self._shared is not None:
                    self._shared.connections += 1
            if not self._is_begun:
                self._connection.warmstack_execute(f"SAVEPOINT {SAVEPOINT}")
                self._is_begun = True
            return self._connection

    def check(self) -> str:
        """Return why the test's database can't be reused, or "" if it can."""
        if self._is_begun and not self._trouble:
            if self._is_closed():
                self._trouble = CLOSED
            elif _status(self._connection) == _ACTIVE:
                self._trouble = f"{NOT_UNDONE}: a statement is still running"
        return self._trouble

    def end(self) -> str:
        """Roll the test back; return why its database can't be reused, or "" if it can."""
        if self._is_begun and not self.check():
            try:
                # After COMMIT, also COMMIT AND CHAIN, there is no savepoint.
                self._connection.warmstack_execute(f"ROLLBACK TO SAVEPOINT {SAVEPOINT}")
                self._connection.warmstack_end()
            except Exception as error:  # Of either driver.
                self._trouble = trouble_of(_sqlstate(error), str(error))
        self._is_begun = False
        if self._trouble:
            self.close()
        return self._trouble

    def close(self) -> None:
        """End the connection, if there is one."""
        if self._connection is not None:
            cut(self._connection)
        self._connection = None

    def _is_closed(self) -> bool:
        return self._connection is None or bool(self._connection.closed)


def _connect_rolled_back(driver: Any, options: dict[str, Any]) -> Any:
    """Return a connection that ends its transactions at a savepoint."""
    own = {**options, "application_name": f"{APPLICATION} {originals.getpid()}"}
    with _hiding:
        if driver.__name__ == "psycopg2":
            return driver.connect(connection_factory=_rolled_back(driver), **own)
        return _rolled_back(driver).connect(**own)


def _rolled_back(driver: Any) -> Any:
    """Return a class of connections whose `commit` and `rollback` end at the savepoint.

    Two statements in one text need no second answer.
    """
    base: Any = getattr(driver, "Connection", None) or driver.extensions.connection

    class RolledBack(base):  # type: ignore[misc]
        def commit(self) -> None:
            status = _status(self)
            if status == _FAILED:  # As the server does.
                self.rollback()
            elif status != _IDLE:  # Else the test has ended the transaction.
                self.warmstack_execute(f"RELEASE SAVEPOINT {SAVEPOINT}; SAVEPOINT {SAVEPOINT}")

        def rollback(self) -> None:
            if _status(self) == _IDLE:
                return
            try:
                self.warmstack_execute(f"ROLLBACK TO SAVEPOINT {SAVEPOINT}")
            except driver.Error:  # The test has begun another transaction.
                super().rollback()

        def warmstack_execute(self, statements: str) -> None:
            with self.cursor() as cursor:
                cursor.execute(statements)

        def warmstack_end(self) -> None:
            """Roll the test's transaction back, and reset the rest."""
            super().rollback()
            self.warmstack_execute(_RESET)
            super().commit()

    return RolledBack


@contextmanager
def open_session(engine: Engine) -> Iterator[Session]:
    """Yield a session; then close it, even if a thread still waits for one of its statements."""
    session = Session(engine)
    used: list[Any] = []

    @event.listens_for(session, "after_begin")
    def note(_session: Session, _transaction: object, connection: Connection) -> None:
        used[:] = [connection.connection.driver_connection]

    yield session
    for each in used:
        if session.in_transaction() and not each.closed and _status(each) == _ACTIVE:
            cut(each)
    try:
        session.close()
    except DBAPIError:  # The connection was lost.
        session.invalidate()


def cut(connection: Any) -> None:
    """End a connection of psycopg or psycopg2, even if a thread waits for its answer."""
    if connection.closed:
        return
    with suppress(OSError), originals.Socket(fileno=os.dup(connection.fileno())) as copy:
        copy.shutdown(SHUT_RDWR)
    # That woke the thread up. psycopg2 waits for it, and psycopg must not close before it leaves.
    lock = getattr(connection, "lock", None)
    if lock is None:
        connection.close()
    elif lock.acquire(timeout=BUSY_TIMEOUT):
        try:
            connection.close()
        finally:
            lock.release()


def _connect_options(driver: Any, url: URL) -> dict[str, Any]:
    """Return options with which libpq ignores variables and files, except certificates for TLS.

    They also switch TLS off, unless *url* asks for it.
    """
    is_old = driver.__name__ == "psycopg2"
    version = driver.extensions.libpq_version() if is_old else driver.pq.version()
    neutral = {key: value for key, (since, value) in _NEUTRAL.items() if version >= since * 10_000}
    ssl = {} if "sslmode" in url.query else {"sslmode": "disable"}
    return {**neutral, **ssl, "password": url.password or ""}


class _Hiding:
    """Hides the variables that no option overrides, while any thread opens a connection."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._hidden: dict[str, str] = {}

    def __enter__(self) -> None:
        with self._lock:
            self._count += 1
            found = [name for name in _NOT_OPTIONS if name in os.environ]
            self._hidden.update((name, os.environ.pop(name)) for name in found)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._count -= 1
            if not self._count:
                os.environ.update(self._hidden)
                self._hidden.clear()


_hiding: Final = _Hiding()


def _status(connection: Any) -> int:
    return int(connection.info.transaction_status)


def _sqlstate(error: Exception) -> str | None:
    return getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
