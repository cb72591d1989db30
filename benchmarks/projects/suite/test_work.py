"""One test's work: five inserts by the ORM, a commit, a count, a key written and read in Redis."""

import asyncio
import os
import time

import pytest
from models import Thing
from redis.asyncio import Redis
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession


@pytest.mark.parametrize("number", range(int(os.environ["BENCH_TESTS"])))
async def test_work(db_session: AsyncSession, redis_client: Redis, number: int) -> None:
    """Write and read, and take as long as was asked for."""
    begin = time.perf_counter()
    for row in range(5):
        db_session.add(Thing(name=f"{number} {row}"))
        await db_session.flush()
    await db_session.commit()
    assert await db_session.scalar(select(func.count()).select_from(Thing)) == 5
    await redis_client.set("key", number)
    assert await redis_client.get("key") == str(number).encode()
    await asyncio.sleep(float(os.environ["BENCH_SECONDS"]) - (time.perf_counter() - begin))
