"""A clone for each test by hand, made when the test asks for it."""

import os
from collections.abc import AsyncIterator
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio
from rollback import LOOP, worker
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

pytest_plugins = ["rollback"]


@pytest_asyncio.fixture(scope=LOOP, loop_scope=LOOP)
async def admin() -> AsyncIterator[asyncpg.Connection]:
    """Yield the connection that makes and drops databases."""
    admin = await asyncpg.connect(f"{os.environ['BENCH_SERVER']}/postgres", ssl=False)
    yield admin
    await admin.close()


@pytest_asyncio.fixture(loop_scope=LOOP)
async def db_session(admin: asyncpg.Connection) -> AsyncIterator[AsyncSession]:
    """Yield a session on a copy of the migrated database."""
    name = f"clone_{uuid4().hex}"
    await admin.execute(f"CREATE DATABASE {name} TEMPLATE standing_template STRATEGY FILE_COPY")
    url = f"{os.environ['BENCH_SERVER']}/{name}".replace("postgresql", "postgresql+asyncpg", 1)
    engine = create_async_engine(url, connect_args={"ssl": False})
    async with AsyncSession(engine, expire_on_commit=False) as session:
        yield session
    await engine.dispose()
    await admin.execute(f"DROP DATABASE {name}")


@pytest.fixture(scope="session")
def cache_url() -> str:
    """Return the URL of a Redis database for this process."""
    return f"{os.environ['BENCH_REDIS']}/{200 + worker()}"
