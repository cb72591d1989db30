"""Further databases for a test: what the fixture `db_factory` gives."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from pytest_warmstack.errors import WarmstackError
from pytest_warmstack.servers.model import plain_url

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from pytest_warmstack.environment import ConfiguredTemplate, Environment, TemplateKey
    from pytest_warmstack.postgres.clones import Clone
    from pytest_warmstack.postgres.engines import Engines


class Database:
    """A further database of a test, dropped after the test.

    `name` is its name on the server, `url` its SQLAlchemy URL (`postgresql+asyncpg://...`), and
    `dsn` the same URL without a driver, for all other clients.
    """

    def __init__(self, clone: Clone, engines: Callable[[], Engines]) -> None:
        self.name = str(clone.name)
        self.url = clone.url
        self.dsn: str = plain_url(clone.url)
        self._engines = engines

    def __repr__(self) -> str:
        """Show the URL without its password."""
        return f"<{type(self).__name__} {self.dsn!r}>"

    @cached_property
    def engine(self) -> AsyncEngine:
        """An `AsyncEngine` of this database, disposed of after the test. It works in every loop."""
        return self._engines().make(self.url)

    def _end(self) -> None:
        """End the engine's connections, if there is an engine."""
        if "engine" in vars(self):
            self._engines().end(self.engine)


class DatabaseFactory:
    """Makes further databases for a test; call it, in a `def` or in an `async def`."""

    def __init__(
        self,
        environment: Environment,
        key: TemplateKey,
        engines: Callable[[], Engines],
        *,
        at_address: bool = False,
    ) -> None:
        self._environment = environment
        self._key = key
        self._at_address = at_address
        self._engines = engines
        self._made: list[tuple[Database, Clone, ConfiguredTemplate]] = []

    def __call__(
        self, *, alembic: str | os.PathLike[str] = "", section: str = "", x: Sequence[str] = ()
    ) -> Database:
        """Return another clone of the test's template, or one of another Alembic configuration.

        *alembic* names another configuration: a file or a function as in `warmstack_alembic`, or a
        folder that has one. *section* is a section of alembic.ini, as in `alembic -n`, or one of
        the databases that its line `databases` lists. *x* has arguments for env.py, such as
        `tenant=one`, as in `alembic -x`. With any of these, only migrations are applied, and
        neither `warmstack_schema` nor `warmstack_seed`.

        Raises `WarmstackError` if the database can't be made.
        """
        __tracebackhide__ = True
        environment, key = self._environment, self._key
        return self._take(
            lambda: environment.source(key, alembic=os.fspath(alembic), section=section, x=tuple(x))
        )

    def empty(self, *, schema: bool = False) -> Database:
        """Return a database without tables, or with *schema*, what `warmstack_schema` makes.

        Raises `WarmstackError` if it can't be made.
        """
        __tracebackhide__ = True
        return self._take(lambda: self._environment.empty_source(schema=schema))

    @property
    def clones(self) -> list[Clone]:
        """The databases that were made so far."""
        return [clone for _, clone, _ in self._made]

    def _take(self, source_of: Callable[[], ConfiguredTemplate]) -> Database:
        __tracebackhide__ = True
        try:
            source = source_of()
            clone = self._environment.take_further(source, at_address=self._at_address)
        except WarmstackError as error:
            failure = error.with_traceback(None)
        else:
            database = Database(clone, self._engines)
            self._made.append((database, clone, source))
            return database
        # Outside of the handler: the text has the cause, so a chain of tracebacks adds nothing.
        raise failure from None

    def close(self, test: str, *, failed: str) -> None:
        """Take all databases of *test* back; if *failed* names tests that failed, save them."""
        for number, (database, clone, source) in enumerate(self._made, start=1):
            database._end()  # noqa: SLF001 - of this module
            end = f" (db_factory {number})"
            self._environment.give_back_further(
                clone, source, test + end, failed=failed and failed + end
            )
        self._made.clear()
