"""A test forgets a connection; the next one looks at how often its own code slept."""

import asyncio
import asyncpg
from sqlalchemy import text

forgotten = []


async def retry(session, times):
    for n in range(times):
        await session.execute(text("SELECT pg_sleep(0.04)"))
        await asyncio.sleep(2**n)


async def test_uses_a_pool_and_forgets_it(db_url):
    forgotten.append(await asyncpg.connect(db_url.replace("+asyncpg", "")))


async def test_backoff(db_session, monkeypatch):
    slept = []

    async def fake(seconds):
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", fake)
    await retry(db_session, 3)
    assert slept == [1, 2, 4]
