"""Books for the tests."""

from __future__ import annotations

import pytest
from library import Author, Book
from sqlalchemy.orm import Session


@pytest.fixture
def books(db_sync_session: Session) -> list[Book]:
    """Three books, which are committed."""
    books = [
        Book(id=1, title="Rocannon's World", author=Author(id=1, name="Ursula")),
        Book(id=2, title="Kindred", author=Author(id=2, name="Octavia")),
        Book(id=3, title="Solaris", author=Author(id=3, name="Stanisław")),
    ]
    db_sync_session.add_all(books)
    db_sync_session.commit()
    return books
