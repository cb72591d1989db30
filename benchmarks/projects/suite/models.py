"""What the tests write by SQLAlchemy's ORM."""

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    """The base of the models."""


class Thing(Base):
    """A row of the first table."""

    __tablename__ = "table_01"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
