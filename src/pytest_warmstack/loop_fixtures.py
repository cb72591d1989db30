"""The asynchronous fixtures, where URLs become engines and clients, once for each event loop.

pytest-asyncio gives a fixture its loop by a scope that is fixed when it is declared, while the
test's loop depends on its marker; a connection used in another loop than its own breaks. So a
fixture is declared anew for each loop that a test runs in. Nothing asynchronous outlives a test.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession


def declare(loop: str) -> ModuleType:
    """Return a pytest plugin with the fixtures for tests in *loop*.

    *loop* is one of pytest-asyncio's scopes, or `anyio` for tests that anyio's plugin runs.
    """

    def fixture(name: str) -> Callable[[Callable[..., Any]], Any]:
        full = f"_warmstack_{name}_{loop}"
        if loop == "anyio":
            return pytest.fixture(name=full)
        return pytest_asyncio.fixture(name=full, loop_scope=loop)  # type: ignore[call-overload, no-any-return]

    @fixture("engine")
    async def engine(db_url: str) -> AsyncIterator[AsyncEngine]:
        from sqlalchemy.ext.asyncio import create_async_engine

        # The server speaks no TLS; asking it on every connection costs a round trip.
        engine = create_async_engine(db_url, connect_args={"ssl": False})
        yield engine
        await engine.dispose()

    @fixture("session")
    async def session(db_engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
        from sqlalchemy.ext.asyncio import AsyncSession

        # An attribute that was expired would be loaded when it is read, which asyncio can't do.
        async with AsyncSession(db_engine, expire_on_commit=False) as session:
            yield session

    @fixture("redis")
    async def redis(redis_url: str) -> AsyncIterator[Redis]:
        from redis.asyncio import Redis

        client: Redis = Redis.from_url(redis_url)
        yield client
        await client.aclose()

    # pytest finds fixtures by looking through a plugin's names.
    plugin = ModuleType(f"pytest_warmstack.loop_fixtures.{loop}")
    plugin.engine, plugin.session, plugin.redis = engine, session, redis  # type: ignore[attr-defined]
    return plugin
