"""Uses each fixture with the type that the README names for it.

`tests/unit/test_public_types.py` compares the annotations of the parameters with the fixtures: a
type checker doesn't know which fixture gives a parameter.
"""

from __future__ import annotations

from typing import assert_type

from redis import Redis as SyncRedis
from redis.asyncio import Redis
from sqlalchemy import Engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session as SyncSession

from pytest_warmstack import (
    Database,
    DatabaseAddress,
    DatabaseFactory,
    Queries,
    Query,
    ServerHandle,
)


def test_urls(db_url: str, db_dsn: str) -> None:
    """URLs are text."""
    assert_type(db_url.replace("asyncpg", "psycopg"), str)
    assert_type(db_dsn.upper(), str)


def test_parts_of_the_url(db_address: DatabaseAddress) -> None:
    """They have the types that drivers take."""
    assert_type(db_address.host, str)
    assert_type(db_address.port, int)
    assert_type(db_address.name, str)


def test_further_databases(db_factory: DatabaseFactory) -> None:
    """Each one has its URLs and an engine."""
    further = db_factory(alembic="analytics/alembic.ini", section="main", x=["tenant=one"])
    assert_type(further, Database)
    assert_type(db_factory.empty(schema=True).dsn, str)
    assert_type(further.engine, AsyncEngine)
    db_factory("analytics")  # type: ignore[call-arg]


def test_urls_of_redis(redis_url: str, redis_urls: tuple[str, ...], redis_process_url: str) -> None:
    """So are those of Redis."""
    assert_type(redis_urls[0], str)
    assert_type(redis_url + redis_process_url, str)


async def test_database(db_engine: AsyncEngine, db_session: AsyncSession) -> None:
    """The engine and the session are those of SQLAlchemy."""
    async with db_engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
    db_session.add(object())
    assert_type((await db_session.execute(text("SELECT 1"))).closed, bool)


async def test_redis(redis_client: Redis) -> None:
    """The client is that of redis-py."""
    await redis_client.set("a", "1")
    assert_type(await redis_client.aclose(), None)


def test_synchronous_code(
    db_sync_engine: Engine, db_sync_session: SyncSession, redis_sync_client: SyncRedis
) -> None:
    """There is a synchronous fixture beside each asynchronous one."""
    with db_sync_engine.connect() as connection:
        connection.execute(text("SELECT 1"))
    assert_type(db_sync_session.execute(text("SELECT 1")).closed, bool)
    assert_type(redis_sync_client.close(), None)


def test_statements(db_queries: Queries) -> None:
    """They are a sequence of records."""
    db_queries.assert_at_most(2)
    with db_queries.recording() as part:
        assert_type(part, Queries)
    db_queries.clear()
    assert_type(db_queries[1:], Queries)
    assert_type(db_queries[0], Query)
    for each in db_queries:
        assert_type(each.statement, str)
        assert_type(each.seconds, float)
        assert_type(each.caller, str)
        assert_type(each.executemany, bool)
    db_queries.assert_at_most("two")  # type: ignore[arg-type]


def test_servers(postgres_container: ServerHandle, redis_container: ServerHandle) -> None:
    """A server has the methods of testcontainers' containers."""
    assert_type(postgres_container.host, str)
    assert_type(postgres_container.port, int)
    assert_type(postgres_container.password, str)
    assert_type(postgres_container.runtime, str)
    assert_type(postgres_container.version, str)
    assert_type(postgres_container.get_container_host_ip(), str)
    assert_type(postgres_container.get_exposed_port(5432), int)
    assert_type(postgres_container.get_exposed_port(), int)
    assert_type(postgres_container.get_connection_url(), str)
    assert_type(postgres_container.get_connection_url(host="db", driver="psycopg"), str)
    assert_type(redis_container.get_connection_url(driver=None), str)
    redis_container.port = 1  # type: ignore[misc]
