"""The asynchronous fixtures, where URLs become engines and clients, once for each event loop.

pytest-asyncio gives a fixture its loop by a scope that is fixed when it is declared, while the
test's loop depends on its marker; a connection used in another loop than its own breaks. So a
fixture is declared anew for each loop that a test runs in. Nothing asynchronous outlives its loop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import pytest
import pytest_asyncio

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

    from pytest_warmstack.engines import Engines, Undoing
    from pytest_warmstack.postgres.clones import Shared

SHARED: Final[pytest.StashKey[Shared]] = pytest.StashKey()
"""Where a test that undoes what it does keeps the clone that it shares with others like it."""

UNDOING: Final[pytest.StashKey[Undoing]] = pytest.StashKey()
"""Where it keeps the connection, of its loop's own, over which it does that."""


def declare(loop: str) -> ModuleType:
    """Return a pytest plugin with the fixtures for tests in *loop*.

    *loop* is one of pytest-asyncio's scopes, or `anyio` for tests that anyio's plugin runs.
    """

    def fixture(name: str, scope: str = "function") -> Callable[[Callable[..., Any]], Any]:
        full = f"_warmstack_{name}_{loop}"
        if loop == "anyio":
            return pytest.fixture(name=full)
        return pytest_asyncio.fixture(name=full, scope=scope, loop_scope=loop)  # type: ignore[call-overload, no-any-return]

    @fixture("undoing", scope=loop)
    async def undoing() -> AsyncIterator[Undoing]:
        from pytest_warmstack.engines import Undoing

        undoing = Undoing()
        yield undoing
        undoing.close()

    @fixture("engine")
    async def engine(
        request: pytest.FixtureRequest, db_url: str, _warmstack_engines: Engines
    ) -> AsyncIterator[AsyncEngine]:
        undoing = request.node.stash.get(UNDOING, None)
        if undoing is None:
            engine = _warmstack_engines.make(db_url)
            yield engine
            await _warmstack_engines.end(engine)
            return
        shared = request.node.stash[SHARED]
        engine = _warmstack_engines.make(db_url, await undoing.begin(shared))
        yield engine
        await _warmstack_engines.end(engine, close=False)
        shared.trouble = await undoing.end()

    @fixture("session")
    async def session(
        request: pytest.FixtureRequest, db_engine: AsyncEngine
    ) -> AsyncIterator[AsyncSession]:
        from sqlalchemy.ext.asyncio import AsyncSession

        # An attribute that was expired would be loaded when it is read, which asyncio can't do.
        session = AsyncSession(db_engine, expire_on_commit=False)
        yield session
        undoing = request.node.stash.get(UNDOING, None)
        await (session.close() if undoing is None else undoing.leave(session))

    @fixture("redis")
    async def redis(redis_url: str) -> AsyncIterator[Redis]:
        from redis.asyncio import Redis

        client: Redis = Redis.from_url(redis_url)
        yield client
        await client.aclose()

    # pytest finds fixtures by looking through a plugin's names.
    plugin = ModuleType(f"pytest_warmstack.loop_fixtures.{loop}")
    plugin.undoing, plugin.engine = undoing, engine  # type: ignore[attr-defined]
    plugin.session, plugin.redis = session, redis  # type: ignore[attr-defined]
    return plugin
