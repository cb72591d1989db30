"""The fixtures: a migrated database and an empty Redis for every test, as URLs and as clients.

URLs become engines and clients here, in the test's own event loop. Nothing asynchronous outlives
a test.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeVar

import pytest
import pytest_asyncio

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

    from pytest_warmstack.runtime.base import ServerHandle
    from pytest_warmstack.workbench import Workbench

T = TypeVar("T")

WORKBENCH: Final = pytest.StashKey[Callable[[], "Workbench"]]()
"""Where the pytest config keeps the way to the set-up of this process."""

NEEDS: Final = {"_warmstack_postgres": "postgres", "_warmstack_redis": "redis"}
"""The fixtures behind all others, and the server that each needs.

A fixture that the user has put in the place of one of ours does not ask for them.
"""


@pytest.fixture(scope="session")
def _warmstack_postgres(pytestconfig: pytest.Config) -> Workbench:
    """The set-up of this process, for a test that needs PostgreSQL."""
    return pytestconfig.stash[WORKBENCH]()


@pytest.fixture(scope="session")
def _warmstack_redis(pytestconfig: pytest.Config) -> Workbench:
    """The set-up of this process, for a test that needs Redis."""
    return pytestconfig.stash[WORKBENCH]()


@pytest.fixture(scope="session")
def postgres_container(_warmstack_postgres: Workbench) -> ServerHandle:
    """The PostgreSQL server."""
    return _had(_warmstack_postgres.postgres).handle()


@pytest.fixture(scope="session")
def redis_container(_warmstack_redis: Workbench) -> ServerHandle:
    """The Redis server."""
    return _had(_warmstack_redis.redis).handle()


@pytest.fixture
def db_url(_warmstack_postgres: Workbench) -> Iterator[str]:
    """The SQLAlchemy URL of a migrated database that is this test's own."""
    clone = _had(_warmstack_postgres.take_clone)
    yield clone.url
    _warmstack_postgres.give_back(clone)


@pytest.fixture
def redis_url(_warmstack_redis: Workbench) -> str:
    """The URL of a Redis database that is empty now and that no other process uses."""
    return _had(_warmstack_redis.take_lease).url


@pytest.fixture
def db_engine(request: pytest.FixtureRequest, db_url: str) -> AsyncEngine:
    """An engine of the test's own database, disposed of when the test is done."""
    engine: AsyncEngine = _in_the_loop_of_the_test(request, "engine")
    return engine


@pytest.fixture
def db_session(request: pytest.FixtureRequest, db_engine: AsyncEngine) -> AsyncSession:
    """A session on the test's own database; what it commits, no other test sees."""
    session: AsyncSession = _in_the_loop_of_the_test(request, "session")
    return session


@pytest.fixture
def redis_client(request: pytest.FixtureRequest, redis_url: str) -> Redis:
    """A client of an empty Redis database, closed when the test is done."""
    client: Redis = _in_the_loop_of_the_test(request, "redis")
    return client


def _had(get: Callable[[], T]) -> T:
    """Return what *get* gives; an error of ours fails the test with its text alone."""
    from pytest_warmstack.errors import WarmstackError

    try:
        return get()
    except WarmstackError as error:
        text = str(error)
    # Outside the handler: what led to the error is in its text, and no chain of tracebacks helps.
    pytest.fail(text, pytrace=False)


def _in_the_loop_of_the_test(request: pytest.FixtureRequest, name: str) -> Any:
    """Return the fixture *name* of the family that runs in the same event loop as the test.

    pytest-asyncio gives a fixture its loop by a scope that is fixed when it is declared, while
    the test's loop depends on its marker; a connection used in another loop than its own breaks.
    So each of the asynchronous fixtures is declared once for each loop, and here one is picked.
    """
    return request.getfixturevalue(f"_warmstack_{name}_{_loop(request)}")


def _loop(request: pytest.FixtureRequest) -> str:
    """Return which loop the test runs in: a scope of pytest-asyncio's, or `anyio`."""
    # No asyncio marker, and the fixture that tells anyio's plugin to run coroutines.
    marker = request.node.get_closest_marker("asyncio")
    if marker is None and "anyio_backend" in request.fixturenames:
        return "anyio"
    if marker is not None and (
        scope := marker.kwargs.get("loop_scope") or marker.kwargs.get("scope")
    ):
        return str(scope)
    if not request.config.pluginmanager.hasplugin("asyncio"):
        pytest.fail(
            f"{request.fixturename} needs an event loop, and neither pytest-asyncio nor anyio's"
            " plugin gives this test one. Use db_url or redis_url, or switch one of them on.",
            pytrace=False,
        )
    return str(request.config.getini("asyncio_default_test_loop_scope") or "function")


def _declared(name: str, loop: str) -> Callable[[Callable[..., Any]], Any]:
    """Return the decorator that declares a fixture for tests that run in that *loop*."""
    full = f"_warmstack_{name}_{loop}"
    if loop == "anyio":
        return pytest.fixture(name=full)
    return pytest_asyncio.fixture(name=full, loop_scope=loop)  # type: ignore[call-overload, no-any-return]


def _engine_in(loop: str) -> Any:
    @_declared("engine", loop)
    async def engine(db_url: str) -> AsyncIterator[AsyncEngine]:
        from sqlalchemy.ext.asyncio import create_async_engine

        # The server speaks no TLS; asking it on every connection costs a millisecond.
        engine = create_async_engine(db_url, connect_args={"ssl": False})
        yield engine
        await engine.dispose()

    return engine


def _session_in(loop: str) -> Any:
    @_declared("session", loop)
    async def session(db_engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
        from sqlalchemy.ext.asyncio import AsyncSession

        # An attribute that was expired would be loaded when it is read, which asyncio can't do.
        async with AsyncSession(db_engine, expire_on_commit=False) as session:
            yield session

    return session


def _redis_in(loop: str) -> Any:
    @_declared("redis", loop)
    async def redis(redis_url: str) -> AsyncIterator[Redis]:
        from redis.asyncio import Redis

        client: Redis = Redis.from_url(redis_url)
        yield client
        await client.aclose()

    return redis


for _each in ("function", "class", "module", "package", "session", "anyio"):
    for _make in (_engine_in, _session_in, _redis_in):
        # pytest finds fixtures by looking through a module's names.
        globals()[f"{_make.__name__}_{_each}"] = _make(_each)
