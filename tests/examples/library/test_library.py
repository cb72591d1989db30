"""The library's own tests: two that would see each other's rows, two of Redis, and one of neither.

Each leaves the ids of the servers that it used, so that others can look whether they live on.
"""

from pathlib import Path

from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from pytest_warmstack import ServerHandle


def _leave(server: ServerHandle) -> None:
    with Path(__file__).with_name("servers.log").open("a") as log:
        log.write(f"{server.id}\n")


async def test_a_book_is_found_by_its_author(
    db_session: AsyncSession, postgres_container: ServerHandle
) -> None:
    """A committed book is found again."""
    _leave(postgres_container)
    await db_session.execute(text("INSERT INTO author VALUES (1, 'Ursula')"))
    await db_session.execute(text("INSERT INTO book VALUES (1, 'Rocannon', 1)"))
    await db_session.commit()
    found = await db_session.scalar(
        text("SELECT title FROM book JOIN author ON author.id = author_id WHERE name = 'Ursula'")
    )
    assert found == "Rocannon"


async def test_the_shelves_are_empty_at_first(db_session: AsyncSession) -> None:
    """No other test's book is there, and the same book can be added again."""
    assert await db_session.scalar(text("SELECT count(*) FROM book")) == 0
    await db_session.execute(text("INSERT INTO author VALUES (1, 'Ursula')"))
    await db_session.commit()


async def test_a_reader_is_remembered(redis_client: Redis, redis_container: ServerHandle) -> None:
    """A key that was set is read again."""
    _leave(redis_container)
    await redis_client.set("reader", "Ada")
    assert await redis_client.get("reader") == b"Ada"


async def test_nobody_reads_at_first(redis_client: Redis) -> None:
    """No other test's key is there."""
    assert await redis_client.dbsize() == 0
    await redis_client.set("reader", "Grace")


def test_pages_add_up() -> None:
    """A test that needs no server."""
    assert 200 + 121 == 321
