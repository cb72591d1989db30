"""The bookshop's tables, as its code sees them."""

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, ClassVar

from sqlalchemy import (
    CheckConstraint,
    DateTime,
    Enum,
    ForeignKey,
    Identity,
    Index,
    MetaData,
    Numeric,
    Text,
    func,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

Id = Annotated[int, mapped_column(Identity(), primary_key=True)]
Now = Annotated[datetime, mapped_column(server_default=func.now())]


class Base(DeclarativeBase):
    """What all tables share: the names of constraints and the types of columns."""

    metadata = MetaData(
        naming_convention={
            "pk": "pk_%(table_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "ix": "ix_%(table_name)s_%(column_0_name)s",
        }
    )
    type_annotation_map: ClassVar = {
        str: Text,
        Decimal: Numeric(10, 2),
        datetime: DateTime(timezone=True),
    }


class Customer(Base):
    """Somebody who buys books, known by one e-mail address in any spelling of its case."""

    __tablename__ = "customers"
    __table_args__ = (Index("uq_customers_email", text("lower(email)"), unique=True),)

    id: Mapped[Id]
    name: Mapped[str]
    email: Mapped[str]
    joined_at: Mapped[Now]


class Author(Base):
    """Somebody who writes books."""

    __tablename__ = "authors"

    id: Mapped[Id]
    name: Mapped[str] = mapped_column(unique=True)


class Book(Base):
    """A book on sale, with today's price."""

    __tablename__ = "books"
    __table_args__ = (CheckConstraint("price > 0", "price_positive"),)

    id: Mapped[Id]
    isbn: Mapped[str] = mapped_column(unique=True)
    title: Mapped[str]
    price: Mapped[Decimal]
    author_id: Mapped[int] = mapped_column(ForeignKey("authors.id"), index=True)

    author: Mapped[Author] = relationship(lazy="joined", innerjoin=True)


class Stock(Base):
    """How many copies of a book are in the house."""

    __tablename__ = "stock"
    __table_args__ = (CheckConstraint("copies >= 0", "copies_not_negative"),)

    book_id: Mapped[int] = mapped_column(ForeignKey("books.id"), primary_key=True)
    copies: Mapped[int] = mapped_column(server_default="0")

    book: Mapped[Book] = relationship(lazy="joined", innerjoin=True)


class OrderStatus(StrEnum):
    """The stations of an order."""

    PLACED = "placed"
    PAID = "paid"
    SHIPPED = "shipped"
    REFUNDED = "refunded"


class Order(Base):
    """What a customer ordered; a trigger keeps its total equal to the sum of its lines."""

    __tablename__ = "orders"
    __table_args__ = (
        Index("ix_orders_to_ship", "placed_at", postgresql_where=text("status = 'paid'")),
    )

    id: Mapped[Id]
    customer_id: Mapped[int] = mapped_column(ForeignKey("customers.id"), index=True)
    status: Mapped[OrderStatus] = mapped_column(
        Enum(
            OrderStatus,
            name="order_status",
            values_callable=lambda statuses: [status.value for status in statuses],
        ),
        server_default=OrderStatus.PLACED.value,
    )
    total: Mapped[Decimal] = mapped_column(server_default="0")
    placed_at: Mapped[Now]

    customer: Mapped[Customer] = relationship()
    lines: Mapped[list["OrderLine"]] = relationship(
        lazy="selectin", cascade="all, delete-orphan", passive_deletes=True
    )


class OrderLine(Base):
    """Copies of one book in an order, at the price of that day."""

    __tablename__ = "order_lines"
    __table_args__ = (CheckConstraint("quantity > 0", "quantity_positive"),)

    order_id: Mapped[int] = mapped_column(
        ForeignKey("orders.id", ondelete="CASCADE"), primary_key=True
    )
    book_id: Mapped[int] = mapped_column(ForeignKey("books.id"), primary_key=True)
    quantity: Mapped[int]
    unit_price: Mapped[Decimal]


class Payment(Base):
    """Money received for an order; at most one payment of an order is not refunded."""

    __tablename__ = "payments"
    __table_args__ = (
        CheckConstraint("amount > 0", "amount_positive"),
        Index(
            "uq_payments_order_id",
            "order_id",
            unique=True,
            postgresql_where=text("refunded_at IS NULL"),
        ),
    )

    id: Mapped[Id]
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"))
    amount: Mapped[Decimal]
    paid_at: Mapped[Now]
    refunded_at: Mapped[datetime | None]
