"""A test that fails: what it tests doesn't commit."""

from __future__ import annotations

from library import Author, Book, rename
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session


def test_rename(db_sync_engine: Engine, db_sync_session: Session, books: list[Book]) -> None:
    """The new name is there for others."""
    rename(db_sync_session, "Ursula", "Ursula K. Le Guin")
    db_sync_session.close()
    with db_sync_engine.connect() as connection:
        name = connection.scalar(select(Author.name).where(Author.id == 1))
    assert name == "Ursula K. Le Guin"
