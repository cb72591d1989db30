"""The usual recipe by hand: each test in a transaction that is rolled back.

A suite gives it the fixtures `database_url` and `cache_url`. Engine and client are made for each
test, or once if the tests share an event loop.
"""

import os
from collections.abc import AsyncIterator

import pytest_asyncio
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

LOOP = os.environ["BENCH_LOOP"]


@pytest_asyncio.fixture(scope=LOOP, loop_scope=LOOP)
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """Yield an engine, without the round trip that asks for TLS."""
    engine = create_async_engine(database_url, connect_args={"ssl": False})
    yield engine
    await engine.dispose()


@pytest_asyncio.fixture(loop_scope=LOOP)
async def db_session(engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
    """Yield a session whose commits are savepoints."""
    async with engine.connect() as connection:
        outer = await connection.begin()
        async with AsyncSession(
            connection, join_transaction_mode="create_savepoint", expire_on_commit=False
        ) as session:
            yield session
        await outer.rollback()


@pytest_asyncio.fixture(scope=LOOP, loop_scope=LOOP)
async def cache(cache_url: str) -> AsyncIterator[Redis]:
    """Yield a client."""
    async with Redis.from_url(cache_url) as client:
        yield client


@pytest_asyncio.fixture(loop_scope=LOOP)
async def redis_client(cache: Redis) -> Redis:
    """Return the client, its database empty."""
    await cache.flushdb()
    return cache


def worker() -> int:
    """Return the number of this process, so that workers don't share a Redis database."""
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
