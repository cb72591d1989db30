"""The application whose tests the pictures show."""

from __future__ import annotations

from sqlalchemy import ForeignKey, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship


class Base(DeclarativeBase):
    """The base of the tables."""


class Author(Base):
    """A person who has written books."""

    __tablename__ = "author"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Book(Base):
    """A book of one author."""

    __tablename__ = "book"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]
    author_id: Mapped[int] = mapped_column(ForeignKey("author.id"))
    author: Mapped[Author] = relationship()


def shelf(session: Session) -> list[str]:
    """Return all books, with a query for the author of each: what the picture finds."""
    books = session.scalars(select(Book).order_by(Book.id)).all()
    return [f"{book.author.name}: {book.title}" for book in books]


def rename(session: Session, old: str, new: str) -> None:
    """Rename an author; it forgets to commit."""
    author = session.scalars(select(Author).where(Author.name == old)).one()
    author.name = new
