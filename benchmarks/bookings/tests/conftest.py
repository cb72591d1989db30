"""A database for each test: the plugin's, or, by hand, a rollback on one that stands.

`BENCH_BY_HAND` is empty, `one engine` or `engine per test`; `BENCH_TESTS` is how many tests there
are, of all kinds in turn.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)

BY_HAND = os.environ.get("BENCH_BY_HAND", "")

if BY_HAND:

    @asynccontextmanager
    async def new_engine() -> AsyncIterator[AsyncEngine]:
        engine = create_async_engine(os.environ["BENCH_DB"], connect_args={"ssl": False})
        yield engine
        await engine.dispose()

    @asynccontextmanager
    async def rolled_back(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
        async with engine.connect() as connection:
            around = await connection.begin()
            yield connection
            await around.rollback()

    if BY_HAND == "one engine":

        @pytest_asyncio.fixture(scope="session", loop_scope="session")
        async def engine() -> AsyncIterator[AsyncEngine]:
            async with new_engine() as engine:
                yield engine

        @pytest_asyncio.fixture(loop_scope="session")
        async def connection(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
            async with rolled_back(engine) as connection:
                yield connection
    else:

        @pytest_asyncio.fixture
        async def connection() -> AsyncIterator[AsyncConnection]:
            async with new_engine() as engine, rolled_back(engine) as connection:
                yield connection

    @pytest.fixture
    def sessions(connection: AsyncConnection) -> async_sessionmaker[AsyncSession]:
        return async_sessionmaker(
            connection, join_transaction_mode="create_savepoint", expire_on_commit=False
        )

    @pytest_asyncio.fixture(loop_scope="session" if BY_HAND == "one engine" else "function")
    async def db_session(
        sessions: async_sessionmaker[AsyncSession],
    ) -> AsyncIterator[AsyncSession]:
        async with sessions() as session:
            yield session

else:

    @pytest.fixture
    def sessions(db_engine: AsyncEngine) -> async_sessionmaker[AsyncSession]:
        return async_sessionmaker(db_engine, expire_on_commit=False)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make `BENCH_TESTS` tests in all; without it, one of each kind."""
    if "number" not in metafunc.fixturenames:
        return
    kinds = [name for name in vars(metafunc.module) if name.startswith("test_")]
    numbers = range(int(os.environ.get("BENCH_TESTS", len(kinds))))
    place = kinds.index(metafunc.function.__name__)
    metafunc.parametrize("number", numbers[place :: len(kinds)])
