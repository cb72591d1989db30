"""Pools that outlive a test, its database or its event loop, on real servers and with each driver.

Warnings are errors here, and so is what a pool or a loop would only log.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any, Final

import asyncpg
import psycopg
import psycopg2
import psycopg_pool
import pytest
import redis
import redis.asyncio
import uvloop
from sqlalchemy import QueuePool, create_engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from external_servers import Cluster, cluster, redis_server
from projects import until
from pytest_warmstack.drivers import Target
from pytest_warmstack.pools import Pools

LOOPS: Final = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
PID: Final = "SELECT pg_backend_pid()"


@pytest.fixture(scope="module")
def server() -> Iterator[Cluster]:
    """A PostgreSQL with the databases `shop`, which is swapped, and `other`."""
    with cluster() as server:
        for name in ("shop", "other"):
            server.sql(f"CREATE DATABASE {name}", "SELECT 1")
        yield server


@pytest.fixture(scope="module")
def redis_port() -> Iterator[int]:
    """The port of a Redis."""
    with redis_server() as client:
        yield client.connection_pool.connection_kwargs["port"]


@pytest.fixture
def pools(caplog: pytest.LogCaptureFixture) -> Iterator[Pools]:
    """What is under test; the database `shop` and the Redis database 1 are its own."""
    own = {("postgres", "shop"), ("redis", "1")}

    def is_own(target: Target) -> bool:
        return (target.service, target.database) in own

    pools = Pools(is_own)
    pools.install()
    yield pools
    gc.collect()
    assert pools._opened == {}, "it keeps connections alive"
    pools.uninstall()
    assert [each for each in caplog.records if each.levelno >= logging.WARNING] == []


def dsn(server: Cluster, driver: str = "", database: str = "shop") -> str:
    """Return the URL of a database."""
    url = f"{server.url()}/{database}"
    return url.replace("postgresql:", f"postgresql+{driver}:") if driver else url


def connected(server: Cluster, database: str = "shop") -> int:
    """Return how many connections the server has to a database."""
    query = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}'"
    return int(server.sql(query)[0][0])


def forget(pools: Pools, server: Cluster) -> None:
    """Forget all pools, and wait until the server has noticed."""
    pools.forget_pools("shop")
    until(lambda: connected(server) == 0, "the server has no connection")


@pytest.fixture(params=LOOPS)
def loops(request: pytest.FixtureRequest) -> Callable[[], asyncio.Runner]:
    """Make runners of event loops."""
    return lambda: asyncio.Runner(loop_factory=LOOPS[request.param])


# Connections


def test_connections_without_a_loop_are_cut(server: Cluster, pools: Pools) -> None:
    """Their owners get the driver's error for a lost connection; other databases stay."""
    two, three = psycopg2.connect(dsn(server)), psycopg.connect(dsn(server))
    other = psycopg2.connect(dsn(server, database="other"))
    assert [each.target.driver for each in pools.open_to("shop")] == ["psycopg2", "psycopg"]
    assert connected(server) == 2
    forget(pools, server)

    assert pools.open_to("shop") == []
    with pytest.raises(psycopg2.OperationalError):
        two.cursor().execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError):
        three.execute("SELECT 1")
    other.cursor().execute("SELECT 1")
    other.close()


async def open_all(server: Cluster) -> list[Any]:
    """Return a connection of each asynchronous driver."""
    return [
        await asyncpg.connect(dsn(server)),
        await psycopg.AsyncConnection.connect(dsn(server)),
    ]


async def make_pool(server: Cluster) -> Any:
    """Return a pool of asyncpg."""
    return await asyncpg.create_pool(dsn(server), min_size=1, max_size=1)


def test_connections_of_a_loop_that_rests_are_cut(
    server: Cluster, pools: Pools, loops: Callable[[], asyncio.Runner]
) -> None:
    """As between two tests that share a loop."""
    with loops() as runner:
        opened = runner.run(open_all(server))
        assert [each.is_elsewhere() for each in pools.open_to("shop")] == [True, True]
        forget(pools, server)
        assert opened[0].is_closed()
        assert opened[1].closed


def test_connections_of_a_closed_loop_are_cut(server: Cluster, pools: Pools) -> None:
    """As after a test with a loop of its own."""
    with asyncio.Runner() as runner:
        opened = runner.run(open_all(server))
        opened.append(runner.run(make_pool(server)))
    forget(pools, server)

    assert opened[0].is_closed()
    assert opened[1].closed


def test_connections_of_a_running_loop_are_cut(
    server: Cluster, pools: Pools, loops: Callable[[], asyncio.Runner]
) -> None:
    """From within it, and from outside, as with a test client in a thread."""

    async def inside() -> None:
        opened = await open_all(server)
        assert [each.is_elsewhere() for each in pools.open_to("shop")] == [False, False]
        pools.forget_pools("shop")
        assert opened[0].is_closed()
        assert opened[1].closed

    with loops() as runner:
        runner.run(inside())

    ready, leave = threading.Event(), threading.Event()

    async def outside() -> None:
        opened = await open_all(server)
        ready.set()
        await asyncio.to_thread(leave.wait)
        assert opened[0].is_closed()
        assert opened[1].closed

    def run() -> None:
        with loops() as runner:
            runner.run(outside())

    thread = threading.Thread(target=run)
    thread.start()
    assert ready.wait(10)
    forget(pools, server)
    leave.set()
    thread.join()


def test_threads_that_wait_for_an_answer_get_an_error(server: Cluster, pools: Pools) -> None:
    """The call that cuts does not wait for them."""
    errors: list[type[Exception]] = []

    def wait(connection: Any) -> None:
        try:
            connection.cursor().execute("SELECT pg_sleep(60)")
        except Exception as error:
            errors.append(type(error))

    two, three = psycopg2.connect(dsn(server)), psycopg.connect(dsn(server))
    threads = [threading.Thread(target=wait, args=(each,)) for each in (two, three)]
    for each in threads:
        each.start()
    active = "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)' AND state = 'active'"
    until(lambda: len(server.sql(active)) == 2, "both wait")
    pools.forget_pools("shop")
    for each in threads:
        each.join(10)
    server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'shop'")

    assert set(errors) == {psycopg2.OperationalError, psycopg.OperationalError}
    assert len(errors) == 2


# SQLAlchemy


def engines(server: Cluster) -> list[Any]:
    """Return engines with each synchronous driver, and a pool without an engine."""
    return [
        create_engine(dsn(server, "psycopg2")),
        create_engine(dsn(server, "psycopg")),
        create_engine("postgresql+psycopg2://", creator=lambda: psycopg2.connect(dsn(server))),
        QueuePool(lambda: psycopg.connect(dsn(server))),
    ]


def backend(pool: Any) -> int:
    """Return the process that serves a connection of an engine, or of a pool."""
    connection = pool.raw_connection() if hasattr(pool, "raw_connection") else pool.connect()
    cursor = connection.cursor()
    cursor.execute(PID)
    (process,) = cursor.fetchone()
    connection.close()
    return int(process)


def test_synchronous_engines_connect_again(server: Cluster, pools: Pools) -> None:
    """Their pools keep a connection until the database is swapped."""
    made = engines(server)
    for each in made[:2]:
        with each.connect() as connection:
            connection.execute(text("SELECT 1"))
    before = [backend(each) for each in made]
    assert [backend(each) for each in made] == before
    forget(pools, server)
    after = [backend(each) for each in made]

    assert set(before).isdisjoint(after)
    for each in made:
        each.dispose()


@pytest.fixture(params=["asyncpg", "psycopg_async"])
def engine(request: pytest.FixtureRequest, server: Cluster) -> AsyncEngine:
    """An engine as an application makes it at import."""
    return create_async_engine(dsn(server, request.param), pool_size=1, max_overflow=0)


async def async_backend(engine: AsyncEngine) -> int:
    """Return the process that serves the connection of an engine."""
    async with engine.connect() as connection:
        return int(await connection.scalar(text(PID)))


def test_a_global_engine_works_in_each_loop(
    engine: AsyncEngine, server: Cluster, pools: Pools
) -> None:
    """Its pool has a connection of the last loop, which is closed; it has room for one."""
    seen = set()
    for _ in range(3):
        with asyncio.Runner() as runner:
            seen.add(runner.run(async_backend(engine)))
            seen.add(runner.run(async_backend(engine)))

    assert len(seen) == 3
    until(lambda: connected(server) == 1, "the others are closed")
    forget(pools, server)


def test_a_global_engine_connects_again_in_the_same_loop(
    engine: AsyncEngine, server: Cluster, pools: Pools, loops: Callable[[], asyncio.Runner]
) -> None:
    """A loop for the whole run: between two tests it rests."""
    with loops() as runner:
        before = runner.run(async_backend(engine))
        assert runner.run(async_backend(engine)) == before
        forget(pools, server)
        assert runner.run(async_backend(engine)) != before
        runner.run(engine.dispose())


def test_a_session_that_a_test_left_open_does_not_fill_the_pool(
    engine: AsyncEngine, server: Cluster, pools: Pools
) -> None:
    """The pool has room for one connection."""

    async def leave() -> Any:
        connection = await engine.connect()
        await connection.execute(text("SELECT 1"))
        return connection

    with asyncio.Runner() as runner:
        left = [runner.run(leave())]
        forget(pools, server)
        runner.run(asyncio.wait_for(async_backend(engine), 5))
        runner.run(left.pop().invalidate())
        runner.run(engine.dispose())


def test_an_engine_is_disposed_of_in_another_loop(
    engine: AsyncEngine, server: Cluster, pools: Pools
) -> None:
    """As a fixture for the whole run does at the end."""
    asyncio.run(async_backend(engine))
    asyncio.run(engine.dispose())

    until(lambda: connected(server) == 0, "the server has no connection")


def test_connections_to_other_databases_are_left_alone(server: Cluster, pools: Pools) -> None:
    """An engine of another database keeps its connection in its loop."""
    engine = create_async_engine(dsn(server, "asyncpg", "other"))
    with asyncio.Runner() as runner:
        before = runner.run(async_backend(engine))
        pools.forget_pools("shop")
        assert runner.run(async_backend(engine)) == before
        runner.run(engine.dispose())


def test_nothing_is_left_after_the_end(server: Cluster, pools: Pools) -> None:
    """SQLAlchemy's classes have no listener any more."""
    pools.uninstall()
    engine = create_engine(dsn(server, "psycopg2"))
    backend(engine)

    assert pools._opened == {}
    assert not engine.pool.dispatch.checkout
    assert not engine.dispatch.engine_connect
    engine.dispose()
    pools.install()


# Pools of drivers


def test_a_pool_of_asyncpg_connects_again_in_its_loop(
    server: Cluster, pools: Pools, loops: Callable[[], asyncio.Runner]
) -> None:
    """It replaces closed connections itself. It can't leave its loop."""

    async def process(pool: Any) -> int:
        return int(await pool.fetchval(PID))

    with loops() as runner:
        pool = runner.run(make_pool(server))
        before = runner.run(process(pool))
        pools.forget_pools("shop")
        assert runner.run(process(pool)) != before
        runner.run(pool.close())


def test_a_pool_of_psycopg_connects_again_if_it_checks(server: Cluster, pools: Pools) -> None:
    """The line that an application has to write is `check=ConnectionPool.check_connection`."""
    check = psycopg_pool.ConnectionPool.check_connection
    with psycopg_pool.ConnectionPool(dsn(server), min_size=1, open=True, check=check) as pool:
        with pool.connection() as connection:
            before = connection.execute(PID).fetchone()
        pools.forget_pools("shop")
        with pool.connection() as connection:
            assert connection.execute(PID).fetchone() != before


def test_an_asynchronous_pool_of_psycopg_connects_again_if_it_checks(
    server: Cluster, pools: Pools
) -> None:
    """The same line."""

    async def use() -> None:
        check = psycopg_pool.AsyncConnectionPool.check_connection
        pool = psycopg_pool.AsyncConnectionPool(dsn(server), min_size=1, open=False, check=check)
        async with pool:
            async with pool.connection() as connection:
                before = await (await connection.execute(PID)).fetchone()
            pools.forget_pools("shop")
            async with pool.connection() as connection:
                assert await (await connection.execute(PID)).fetchone() != before

    asyncio.run(use())


# Redis


def test_a_global_client_of_redis_works_in_each_loop(redis_port: int, pools: Pools) -> None:
    """The pooled connection of a closed loop is dropped, and opened again."""
    client = redis.asyncio.Redis(host="127.0.0.1", port=redis_port, db=1, max_connections=1)

    async def identity() -> int:
        await client.set("key", "value")
        return int(await client.client_id())

    seen = []
    for _ in range(3):
        with asyncio.Runner() as runner:
            seen.append(runner.run(identity()))
            assert runner.run(identity()) == seen[-1]
    asyncio.run(client.aclose())

    assert len(set(seen)) == 3


def test_a_client_of_redis_in_two_loops_that_rest(redis_port: int, pools: Pools) -> None:
    """Both loops are there, and take turns."""
    client = redis.asyncio.Redis(host="127.0.0.1", port=redis_port, db=1)

    async def ping() -> Any:
        return await client.ping()

    with asyncio.Runner() as one, asyncio.Runner() as two:
        for runner in (one, two, one, two):
            assert runner.run(ping())
        one.run(client.aclose())


def test_a_synchronous_client_of_redis_notices_a_cut(redis_port: int, pools: Pools) -> None:
    """redis-py looks at the socket before it uses it again."""
    client = redis.Redis(host="127.0.0.1", port=redis_port, db=1)
    before = client.client_id()
    for each in list(pools._opened.values()):
        each.cut()

    assert client.client_id() != before
    client.close()


def test_other_databases_of_redis_are_left_alone(redis_port: int, pools: Pools) -> None:
    """A client of another database keeps its connection in its loop."""
    client = redis.asyncio.Redis(host="127.0.0.1", port=redis_port, db=2)

    async def identity() -> int:
        return int(await client.client_id())

    with asyncio.Runner() as runner:
        before = runner.run(identity())
        assert runner.run(identity()) == before
        runner.run(client.aclose())
