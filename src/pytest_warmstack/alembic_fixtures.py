"""The fixtures of pytest-alembic, on a database of their own; registered if it is installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_warmstack.fixtures import further_databases, key_of, result_or_fail

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    from pytest_warmstack.environment import Environment
    from pytest_warmstack.factory import Database, DatabaseFactory

_DATABASE: Final[pytest.StashKey[Database]] = pytest.StashKey()
"""The key of the database of a test that uses this module's `alembic_engine`."""


@pytest.fixture
def _warmstack_alembic_factory(
    request: pytest.FixtureRequest, _warmstack_postgres: Environment
) -> Iterator[DatabaseFactory]:
    """Makes the database, at the address that the code of migrations may have read."""
    yield from further_databases(request, _warmstack_postgres, at_address=True)


@pytest.fixture
def alembic_engine(
    request: pytest.FixtureRequest, _warmstack_alembic_factory: DatabaseFactory
) -> Iterator[Engine | AsyncEngine]:
    """An engine of a database of this test's own, in which no migration has run.

    It is synchronous if psycopg or psycopg2 is installed, else an `AsyncEngine`.
    """
    from sqlalchemy import NullPool, create_engine, make_url

    from pytest_warmstack.postgres.template.child.database_url import for_code

    database = result_or_fail(lambda: _warmstack_alembic_factory.empty(schema=True))
    request.node.stash[_DATABASE] = database
    url = for_code(make_url(database.dsn))
    if url.drivername == "postgresql+asyncpg":
        yield database.engine
        return
    engine = create_engine(url, poolclass=NullPool)
    yield engine
    engine.dispose()


@pytest.fixture
def alembic_config(
    request: pytest.FixtureRequest, alembic_engine: object, _warmstack_postgres: Environment
) -> Iterator[Config | dict[str, Any]]:
    """The project's Alembic configuration, whose URL leads to the database of `alembic_engine`.

    While the test runs, the variables of `warmstack_env` have that URL too. If you override
    `alembic_engine`, this is pytest-alembic's own default.
    """
    database = request.node.stash.get(_DATABASE, None)
    environment = _warmstack_postgres
    found = database and result_or_fail(
        lambda: environment.in_process(key_of(request), database.name)
    )
    if not found:
        yield {}
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(found.configuration.folder)
        patch.setattr(sys, "path", found.path)
        config, variables = result_or_fail(found.make)
        for name, value in variables.items():
            patch.setenv(name, value)
        yield config
