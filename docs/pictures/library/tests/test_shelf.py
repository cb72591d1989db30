"""A test that fails: what it tests sends a query for each row."""

from __future__ import annotations

from library import Book, shelf
from sqlalchemy.orm import Session

from pytest_warmstack import Queries


def test_shelf(db_sync_session: Session, books: list[Book], db_queries: Queries) -> None:
    """Two queries are enough for any number of books."""
    shelf(db_sync_session)
    db_queries.assert_at_most(2)
