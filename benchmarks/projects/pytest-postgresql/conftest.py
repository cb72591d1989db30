"""pytest-postgresql and pytest-redis: a copy of a template for each test, made for it.

Both use a standing server (`noproc`), or, with BENCH_START, start one for the session (`proc`).
"""

import os
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest_asyncio
from migrated import migrate
from pytest_postgresql import factories as postgresql_factories
from pytest_redis import factories as redis_factories
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine


def asyncpg_url(host: str, port: int | str, user: str, password: str, dbname: str) -> str:
    """Return the URL that SQLAlchemy and asyncpg take."""
    return f"postgresql+asyncpg://{user}:{password or ''}@{host}:{port}/{dbname}"


def load(*, autocommit: bool, **where: Any) -> None:
    """Migrate the template."""
    migrate(asyncpg_url(**where))


if "BENCH_START" in os.environ:
    server = postgresql_factories.postgresql_proc(load=[load])
    redis_server = redis_factories.redis_proc()
else:
    server = postgresql_factories.postgresql_noproc(load=[load])
    redis_server = redis_factories.redis_noproc()

postgresql = postgresql_factories.postgresql("server")
redis_client = redis_factories.redisdb_async("redis_server")


@pytest_asyncio.fixture(loop_scope=os.environ["BENCH_LOOP"])
async def db_session(postgresql: psycopg.Connection) -> AsyncIterator[AsyncSession]:
    """Yield a session on the copy."""
    info = postgresql.info
    url = asyncpg_url(info.host, info.port, info.user, info.password, info.dbname)
    engine = create_async_engine(url, connect_args={"ssl": False})
    async with AsyncSession(engine, expire_on_commit=False) as session:
        yield session
    await engine.dispose()
