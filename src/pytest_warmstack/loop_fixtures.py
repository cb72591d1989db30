"""The asynchronous fixtures, where URLs become sessions and clients, once for each event loop.

pytest-asyncio gives a fixture its loop by a scope that is fixed when it is declared, while the
test's loop depends on its marker; a connection used in another loop than its own breaks. So a
fixture is declared anew for each loop that a test runs in. Nothing asynchronous outlives its loop.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import pytest
import pytest_asyncio

from pytest_warmstack import background
from pytest_warmstack.postgres.errors import LoopFailed

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

    from pytest_warmstack.postgres.clones import Shared
    from pytest_warmstack.postgres.engines import Engines, RollbackConnection

SHARED: Final[pytest.StashKey[Shared]] = pytest.StashKey()
"""Where a test that undoes what it does keeps the clone that it shares with others like it."""

ROLLBACK: Final[pytest.StashKey[RollbackConnection]] = pytest.StashKey()
"""Where it keeps the connection, of its loop's own, over which it does that."""

BEGUN: Final[pytest.StashKey[background.Begun]] = pytest.StashKey()
"""Where it keeps what its session and client have begun."""


def declare(loop: str) -> ModuleType:
    """Return a pytest plugin with the fixtures for tests in *loop*.

    *loop* is one of pytest-asyncio's scopes, or `anyio` for tests that anyio's plugin runs.
    """

    def fixture(name: str, scope: str = "function") -> Callable[[Callable[..., Any]], Any]:
        full = f"_warmstack_{name}_{loop}"
        if loop == "anyio":
            return pytest.fixture(name=full)
        return pytest_asyncio.fixture(name=full, scope=scope, loop_scope=loop)  # type: ignore[call-overload, no-any-return]

    @fixture("rollback_connection", scope=loop)
    async def rollback_connection() -> AsyncIterator[RollbackConnection]:
        from pytest_warmstack.postgres.engines import RollbackConnection

        connection = RollbackConnection()
        yield connection
        connection.close()

    @fixture("rollback")
    async def rollback(request: pytest.FixtureRequest) -> AsyncIterator[RollbackConnection]:
        shared, connection = request.node.stash[SHARED], request.node.stash[ROLLBACK]
        await connection.begin(shared)
        yield connection
        shared.trouble = await connection.end()

    @fixture("other_engine")
    async def other_engine(db_url: str) -> AsyncIterator[AsyncEngine]:
        from sqlalchemy.ext.asyncio import create_async_engine

        engine = create_async_engine(db_url)
        yield engine
        await engine.dispose()

    @fixture("session")
    async def session(
        request: pytest.FixtureRequest, db_engine: AsyncEngine, _warmstack_engines: Engines
    ) -> AsyncIterator[AsyncSession]:
        from sqlalchemy.ext.asyncio import AsyncSession

        # An attribute that was expired would be loaded when it is read, which asyncio can't do.
        session = AsyncSession(db_engine, expire_on_commit=False)
        background.watch(session, "db_session", _begun(request.node))
        yield session
        rollback = request.node.stash.get(ROLLBACK, None)
        if rollback is not None:
            await rollback.leave(session)
        elif _warmstack_engines.leave_other_loops(db_engine):
            # Its own connection may be one of those, and then there is no way to end it in order.
            await session.invalidate()
        else:
            await session.close()

    @fixture("redis")
    async def redis(request: pytest.FixtureRequest, redis_url: str) -> AsyncIterator[Redis]:
        from pytest_warmstack.redis.connections import client

        async with client(redis_url, _begun(request.node)) as redis:
            yield redis

    # pytest finds fixtures by looking through a plugin's names.
    plugin = ModuleType(f"pytest_warmstack.loop_fixtures.{loop}")
    fixtures = (rollback_connection, rollback, other_engine, session, redis)
    for number, each in enumerate(fixtures):
        setattr(plugin, f"fixture_{number}", each)
    plugin.pytest_runtest_call = _see_what_is_awaited  # type: ignore[attr-defined]
    return plugin


def _begun(node: pytest.Item) -> background.Begun:
    """Return what the clients of the test *node* have begun."""
    return node.stash.setdefault(BEGUN, background.Begun())


@pytest.hookimpl(wrapper=True)
def _see_what_is_awaited(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a test, or its fixture, that began something and did not await it."""
    try:
        result = yield
    except BaseException as error:
        if names := _forgotten(item):
            error.add_note(LoopFailed.forgotten(names=names).line)
        raise
    if names := _forgotten(item):
        pytest.fail(str(LoopFailed.forgotten(names=names)), pytrace=False)
    return result


def _forgotten(item: pytest.Item) -> list[str]:
    begun = item.stash.get(BEGUN, None)
    return begun.forgotten() if begun is not None else []
