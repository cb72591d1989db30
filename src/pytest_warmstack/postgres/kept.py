"""The connection of `db_engine` that stays open from test to test where tests share a loop.

So a test needs no new connection, its statements are prepared already, and its database is put back
on that very connection. Of several idle ones, the first stays, if its session can be made like a
new one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final
from weakref import ref

from pytest_warmstack.background import is_running_here
from pytest_warmstack.drivers import cut_asyncpg, loop_of
from pytest_warmstack.postgres.clones import Clone
from pytest_warmstack.postgres.driver_connections import HAS_SETTERS, DriverConnection

_CACHE: Final = ("_prepared_statement_cache", "_invalidate_schema_cache_asof")
"""Attributes of SQLAlchemy's connections: its prepared statements, and when it began to have them.

They are left alone if a version of SQLAlchemy doesn't have them.
"""

Arguments = tuple[Sequence[Any], Mapping[str, Any]]
"""The positional and named arguments with which a connection was opened."""


def cache_of(adapted: Any) -> dict[str, Any]:
    """Return what SQLAlchemy's connection *adapted* has prepared, if that is right for others."""
    driver = adapted.driver_connection
    if driver.is_outdated:
        driver.forget_prepared()
        driver.is_outdated = False
        return {}
    return {name: getattr(adapted, name) for name in _CACHE if hasattr(adapted, name)}


def give_cache(adapted: Any, cache: Mapping[str, Any]) -> None:
    """Let a new connection of SQLAlchemy have what another one has prepared for its driver's."""
    for name, value in cache.items():
        setattr(adapted, name, value)
    adapted.driver_connection.prepared = cache.get(_CACHE[0])


class KeptConnection:
    """A connection of asyncpg for the tests of one event loop, one after the other.

    Between two tests, `ready` is its database, which has been put back; during a test, `used` is
    the test's database. `key` is that of their template.
    """

    def __init__(self) -> None:
        self.ready: Clone | None = None
        self.used: Clone | None = None
        self.key: Any = None
        self.driver: DriverConnection | None = None
        self._arguments: Arguments | None = None
        self._cache: dict[str, Any] = {}
        self._is_given = False
        self._setting: set[object] = set()
        self._engine: tuple[Any, ref[Any], str, Callable[[], None]] | None = None

    def connect(self, dialect: Any, arguments: Sequence[Any], options: Mapping[str, Any]) -> Any:
        """Return the connection for SQLAlchemy, once for each test; None if it does not fit."""
        driver = self.driver
        fits = (
            driver is not None
            and not self._is_given
            and (arguments, options) == self._arguments
            and not driver.is_closed()
            and is_running_here(loop_of(driver))
        )
        if not fits:
            return None
        self._is_given = True

        async def give(*_: object, **__: object) -> Any:
            return driver

        adapted = dialect.connect(*arguments, **{**options, "async_creator_fn": give})
        give_cache(adapted, self._cache)
        return adapted

    def keep(self, adapted: Any, arguments: Arguments) -> None:
        """Keep the connection that SQLAlchemy has *adapted*, and opened with *arguments*.

        If another one was kept, cut that one.
        """
        driver = adapted.driver_connection
        if driver is not self.driver:
            self.cut()
        if not isinstance(driver, DriverConnection):  # A listener of the test has opened it.
            cut_asyncpg(driver)
            return
        self.driver, self._arguments, self._is_given = driver, arguments, False
        self._cache = cache_of(adapted)

    async def clean(self) -> bool:
        """Clean the session of the connection; return whether that was possible."""
        driver = self.driver
        if driver is None or not is_running_here(loop_of(driver)):
            return False
        with suppress(Exception):  # It is cut, and the next test gets another one.
            return await driver.clean() and not await self._has_setters(driver)
        return False

    async def _has_setters(self, driver: DriverConnection) -> bool:
        """Return whether functions of the template set what can't be reset."""
        template = type(driver)  # There is one class for each template.
        if template not in self._setting and await driver.fetchval(HAS_SETTERS):
            return True
        self._setting.add(template)
        return False

    def keep_engine(self, engine: Any, url: str, end: Callable[[], None]) -> None:
        """Keep the asynchronous *engine* for *url*; *end* is called if no further test gets it."""
        self._engine = engine.sync_engine, ref(engine), url, end

    def take_engine(self, url: str) -> Any:
        """Return the synchronous engine of the test before, if it is one for *url*; else None.

        If something still has the asynchronous one, None: no two tests have the same.
        """
        if (kept := self._engine) is None:
            return None
        engine, held, known, end = kept
        self._engine = None
        if known == url and held() is None:
            return engine
        end()
        return None

    def lose(self) -> None:
        """End the connection; someone else takes care of its database."""
        self.take_engine("")
        self.cut()
        self.ready = self.used = None

    def cut(self) -> None:
        """End the connection, if there is one."""
        if self.driver is not None:
            cut_asyncpg(self.driver)
        self.driver, self._arguments, self._cache = None, None, {}
