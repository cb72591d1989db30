"""Tests that pass."""

from __future__ import annotations

from library import Author, Book, shelf
from redis.asyncio import Redis
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session


async def test_a_book_is_found(db_session: AsyncSession) -> None:
    """A committed book is found again."""
    db_session.add(Book(id=1, title="Kindred", author=Author(id=1, name="Octavia")))
    await db_session.commit()
    assert await db_session.scalar(select(Book.title)) == "Kindred"


async def test_there_are_no_books_at_first(db_session: AsyncSession) -> None:
    """No test sees what another one commits."""
    assert await db_session.scalar(select(func.count()).select_from(Book)) == 0


def test_the_shelf_has_all_books(db_sync_session: Session, books: list[Book]) -> None:
    """A synchronous test."""
    assert len(shelf(db_sync_session)) == len(books)


async def test_a_reader_is_remembered(redis_client: Redis) -> None:
    """A key is read again."""
    await redis_client.set("reader", "Ada")
    assert await redis_client.get("reader") == b"Ada"
