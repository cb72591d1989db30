"""The tables of the platform, 32 of them."""

from __future__ import annotations

import enum
from datetime import date, datetime
from decimal import Decimal
from typing import Annotated, Any, ClassVar

from sqlalchemy import (
    JSON,
    Column,
    DateTime,
    Enum,
    ForeignKey,
    Integer,
    MetaData,
    Numeric,
    Table,
    Text,
    UniqueConstraint,
    func,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedColumn, mapped_column, relationship


class Currency(enum.StrEnum):
    """What a price is in."""

    EUR = "eur"
    GBP = "gbp"
    USD = "usd"


class Role(enum.StrEnum):
    """What a user may do in an organisation."""

    OWNER = "owner"
    CLERK = "clerk"
    CLEANER = "cleaner"


class Amenity(enum.StrEnum):
    """What a property has."""

    WIFI = "wifi"
    POOL = "pool"
    PARKING = "parking"
    BAR = "bar"


class RoomKind(enum.StrEnum):
    """How large a room is."""

    SINGLE = "single"
    DOUBLE = "double"
    SUITE = "suite"


class BookingStatus(enum.StrEnum):
    """How far a booking is."""

    OPEN = "open"
    CONFIRMED = "confirmed"
    CANCELLED = "cancelled"


class Channel(enum.StrEnum):
    """Where a booking came from."""

    WEB = "web"
    PHONE = "phone"
    AGENCY = "agency"


class PaymentMethod(enum.StrEnum):
    """How a guest pays."""

    CARD = "card"
    CASH = "cash"


class PaymentStatus(enum.StrEnum):
    """How far a payment is."""

    PENDING = "pending"
    CAPTURED = "captured"
    REFUNDED = "refunded"


class TaskStatus(enum.StrEnum):
    """How far a task is."""

    TODO = "todo"
    DONE = "done"


def words(kind: type[enum.Enum]) -> Enum:
    """Return the type of a column of *kind*: PostgreSQL knows its values, not its names."""
    return Enum(kind, values_callable=lambda kind: [each.value for each in kind])


class Base(DeclarativeBase):
    """The base of all models; constraints are named as PostgreSQL names them."""

    metadata = MetaData(
        naming_convention={
            "pk": "%(table_name)s_pkey",
            "fk": "%(table_name)s_%(column_0_name)s_fkey",
            "uq": "%(table_name)s_%(column_0_N_name)s_key",
            "ix": "%(table_name)s_%(column_0_N_name)s_idx",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        str: Text,
        Decimal: Numeric(10, 2),
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
        list[str]: ARRAY(Text),
        list[int]: ARRAY(Integer),
        enum.Enum: words(enum.Enum),
    }


Id = Annotated[int, mapped_column(primary_key=True)]
Made = Annotated[datetime, mapped_column(server_default=func.now())]


def belongs_to(table: str, *, key: bool = False) -> MappedColumn[Any]:
    """Return a foreign key of a row that is deleted with that of *table*."""
    return mapped_column(
        ForeignKey(f"{table}.id", ondelete="CASCADE"), index=not key, primary_key=key
    )


def children(owner: str, **options: Any) -> Any:
    """Return a relationship to rows that are deleted with theirs."""
    return relationship(
        back_populates=owner,
        cascade="all, delete-orphan",
        passive_deletes=True,
        **{"lazy": "raise", **options},
    )


def parent(owned: str, **options: Any) -> Any:
    """Return a relationship to the row that this one belongs to."""
    return relationship(back_populates=owned, **{"lazy": "raise", **options})


# Organisations and users.


class Organisation(Base):
    """A company that lets rooms."""

    __tablename__ = "organisations"

    id: Mapped[Id]
    name: Mapped[str] = mapped_column(unique=True)
    settings: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[Made]
    memberships: Mapped[list[Membership]] = children("organisation")
    properties: Mapped[list[Property]] = children("organisation")
    vouchers: Mapped[list[Voucher]] = children("organisation")


class User(Base):
    """Somebody who works for organisations."""

    __tablename__ = "users"

    id: Mapped[Id]
    email: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    languages: Mapped[list[str]] = mapped_column(default=list)
    created_at: Mapped[Made]
    memberships: Mapped[list[Membership]] = children("user")


class Membership(Base):
    """The role of a user in an organisation."""

    __tablename__ = "memberships"

    organisation_id: Mapped[int] = belongs_to("organisations", key=True)
    user_id: Mapped[int] = belongs_to("users", key=True)
    role: Mapped[Role]
    organisation: Mapped[Organisation] = parent("memberships")
    user: Mapped[User] = parent("memberships", lazy="joined")


class AuditEvent(Base):
    """What was done, and to what."""

    __tablename__ = "audit_events"

    id: Mapped[Id]
    subject: Mapped[str] = mapped_column(index=True)
    action: Mapped[str]
    details: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[Made]


class OutboxMessage(Base):
    """An event that other services are to get."""

    __tablename__ = "outbox_messages"

    id: Mapped[Id]
    topic: Mapped[str]
    payload: Mapped[dict[str, Any]] = mapped_column(JSON)
    sent_at: Mapped[datetime | None]


# Properties and rooms.


class Address(Base):
    """Where a property is."""

    __tablename__ = "addresses"

    id: Mapped[Id]
    street: Mapped[str]
    city: Mapped[str] = mapped_column(index=True)
    country: Mapped[str]


class Property(Base):
    """A house with rooms."""

    __tablename__ = "properties"

    id: Mapped[Id]
    organisation_id: Mapped[int] = belongs_to("organisations")
    address_id: Mapped[int] = belongs_to("addresses")
    name: Mapped[str]
    amenities: Mapped[list[Amenity]] = mapped_column(ARRAY(words(Amenity)))
    policy: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[Made]
    organisation: Mapped[Organisation] = parent("properties")
    address: Mapped[Address] = relationship(lazy="joined", innerjoin=True)
    room_types: Mapped[list[RoomType]] = children("property")
    seasons: Mapped[list[Season]] = children("property")
    extras: Mapped[list[Extra]] = children("property")
    photos: Mapped[list[Photo]] = children("property")
    bookings: Mapped[list[Booking]] = children("property")


class Photo(Base):
    """A picture of a property."""

    __tablename__ = "photos"

    id: Mapped[Id]
    property_id: Mapped[int] = belongs_to("properties")
    path: Mapped[str]
    size: Mapped[list[int]]
    property: Mapped[Property] = parent("photos")


class Season(Base):
    """Dates in which prices are higher or lower."""

    __tablename__ = "seasons"

    id: Mapped[Id]
    property_id: Mapped[int] = belongs_to("properties")
    name: Mapped[str]
    begins: Mapped[date]
    ends: Mapped[date]
    factor: Mapped[Decimal]
    property: Mapped[Property] = parent("seasons")


class RoomType(Base):
    """A kind of room in a property."""

    __tablename__ = "room_types"

    id: Mapped[Id]
    property_id: Mapped[int] = belongs_to("properties")
    kind: Mapped[RoomKind]
    beds: Mapped[list[int]]
    features: Mapped[dict[str, Any]] = mapped_column(default=dict)
    property: Mapped[Property] = parent("room_types")
    rooms: Mapped[list[Room]] = children("room_type")
    rate_plans: Mapped[list[RatePlan]] = children("room_type")


class Room(Base):
    """A room that one can book."""

    __tablename__ = "rooms"
    __table_args__ = (UniqueConstraint("room_type_id", "number"),)

    id: Mapped[Id]
    room_type_id: Mapped[int] = belongs_to("room_types")
    number: Mapped[str]
    floor: Mapped[int]
    room_type: Mapped[RoomType] = parent("rooms", lazy="joined", innerjoin=True)
    tasks: Mapped[list[CleaningTask]] = children("room")


class RatePlan(Base):
    """What a room of a type costs in a currency."""

    __tablename__ = "rate_plans"

    id: Mapped[Id]
    room_type_id: Mapped[int] = belongs_to("room_types")
    currency: Mapped[Currency]
    rules: Mapped[dict[str, Any]] = mapped_column(default=dict)
    room_type: Mapped[RoomType] = parent("rate_plans")
    rates: Mapped[list[Rate]] = children("rate_plan", lazy="selectin", order_by="Rate.weekday")


class Rate(Base):
    """The price of a night, by the day of the week."""

    __tablename__ = "rates"

    rate_plan_id: Mapped[int] = belongs_to("rate_plans", key=True)
    weekday: Mapped[int] = mapped_column(primary_key=True)
    price: Mapped[Decimal]
    rate_plan: Mapped[RatePlan] = parent("rates")


class Extra(Base):
    """What can be had with a room, such as breakfast."""

    __tablename__ = "extras"

    id: Mapped[Id]
    property_id: Mapped[int] = belongs_to("properties")
    name: Mapped[str]
    price: Mapped[Decimal]
    property: Mapped[Property] = parent("extras")


class CleaningTask(Base):
    """What is to be done in a room."""

    __tablename__ = "cleaning_tasks"

    id: Mapped[Id]
    room_id: Mapped[int] = belongs_to("rooms")
    user_id: Mapped[int | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    day: Mapped[date]
    status: Mapped[TaskStatus] = mapped_column(default=TaskStatus.TODO)
    checklist: Mapped[list[str]] = mapped_column(default=list)
    room: Mapped[Room] = parent("tasks")


# Guests and bookings.


class Guest(Base):
    """Somebody who sleeps in a room."""

    __tablename__ = "guests"

    id: Mapped[Id]
    name: Mapped[str]
    emails: Mapped[list[str]] = mapped_column(default=list)
    preferences: Mapped[dict[str, Any]] = mapped_column(default=dict)
    created_at: Mapped[Made]
    documents: Mapped[list[GuestDocument]] = children("guest")
    bookings: Mapped[list[BookingGuest]] = children("guest")


class GuestDocument(Base):
    """A passport, or the like."""

    __tablename__ = "guest_documents"

    id: Mapped[Id]
    guest_id: Mapped[int] = belongs_to("guests")
    kind: Mapped[str]
    number: Mapped[str]
    guest: Mapped[Guest] = parent("documents")


booking_tags = Table(
    "booking_tags",
    Base.metadata,
    Column("booking_id", ForeignKey("bookings.id", ondelete="CASCADE"), primary_key=True),
    Column("tag_id", ForeignKey("tags.id", ondelete="CASCADE"), primary_key=True),
)


class Tag(Base):
    """A word for bookings."""

    __tablename__ = "tags"

    id: Mapped[Id]
    name: Mapped[str] = mapped_column(unique=True)


class Booking(Base):
    """Rooms for guests, from one date to another."""

    __tablename__ = "bookings"

    id: Mapped[Id]
    property_id: Mapped[int] = belongs_to("properties")
    reference: Mapped[str] = mapped_column(unique=True)
    status: Mapped[BookingStatus] = mapped_column(default=BookingStatus.OPEN, index=True)
    channel: Mapped[Channel]
    arrives: Mapped[date]
    leaves: Mapped[date]
    notes: Mapped[list[str]] = mapped_column(default=list)
    source: Mapped[dict[str, Any]] = mapped_column(JSON, default=dict)
    version: Mapped[int] = mapped_column()
    created_at: Mapped[Made]
    property: Mapped[Property] = parent("bookings")
    rooms: Mapped[list[BookingRoom]] = children("booking")
    guests: Mapped[list[BookingGuest]] = children("booking")
    extras: Mapped[list[BookingExtra]] = children("booking")
    invoices: Mapped[list[Invoice]] = children("booking")
    messages: Mapped[list[Message]] = children("booking", order_by="Message.id")
    review: Mapped[Review | None] = children("booking", uselist=False)
    redemptions: Mapped[list[Redemption]] = children("booking")
    tags: Mapped[list[Tag]] = relationship(secondary=booking_tags, lazy="selectin")

    __mapper_args__ = {"version_id_col": version}  # noqa: RUF012 - as SQLAlchemy declares it


class BookingRoom(Base):
    """A room of a booking, and what it costs."""

    __tablename__ = "booking_rooms"
    __table_args__ = (UniqueConstraint("room_id", "arrives"),)

    id: Mapped[Id]
    booking_id: Mapped[int] = belongs_to("bookings")
    room_id: Mapped[int] = belongs_to("rooms")
    arrives: Mapped[date]
    price: Mapped[Decimal]
    booking: Mapped[Booking] = parent("rooms")
    room: Mapped[Room] = relationship(lazy="joined", innerjoin=True)


class BookingGuest(Base):
    """A guest of a booking."""

    __tablename__ = "booking_guests"

    booking_id: Mapped[int] = belongs_to("bookings", key=True)
    guest_id: Mapped[int] = belongs_to("guests", key=True)
    is_payer: Mapped[bool]
    booking: Mapped[Booking] = parent("guests")
    guest: Mapped[Guest] = parent("bookings", lazy="joined", innerjoin=True)


class BookingExtra(Base):
    """An extra of a booking."""

    __tablename__ = "booking_extras"

    id: Mapped[Id]
    booking_id: Mapped[int] = belongs_to("bookings")
    extra_id: Mapped[int] = belongs_to("extras")
    quantity: Mapped[int]
    booking: Mapped[Booking] = parent("extras")
    extra: Mapped[Extra] = relationship(lazy="joined", innerjoin=True)


# Money.


class Voucher(Base):
    """A discount."""

    __tablename__ = "vouchers"

    id: Mapped[Id]
    organisation_id: Mapped[int] = belongs_to("organisations")
    code: Mapped[str] = mapped_column(unique=True)
    percent: Mapped[int]
    organisation: Mapped[Organisation] = parent("vouchers")


class Redemption(Base):
    """A voucher that was used for a booking."""

    __tablename__ = "redemptions"

    voucher_id: Mapped[int] = belongs_to("vouchers", key=True)
    booking_id: Mapped[int] = belongs_to("bookings", key=True)
    amount: Mapped[Decimal]
    booking: Mapped[Booking] = parent("redemptions")
    voucher: Mapped[Voucher] = relationship(lazy="raise")


class Invoice(Base):
    """What is to be paid for a booking."""

    __tablename__ = "invoices"

    id: Mapped[Id]
    booking_id: Mapped[int] = belongs_to("bookings")
    currency: Mapped[Currency]
    issued: Mapped[date]
    booking: Mapped[Booking] = parent("invoices")
    lines: Mapped[list[InvoiceLine]] = children("invoice")
    payments: Mapped[list[Payment]] = children("invoice")


class InvoiceLine(Base):
    """A line of an invoice."""

    __tablename__ = "invoice_lines"

    id: Mapped[Id]
    invoice_id: Mapped[int] = belongs_to("invoices")
    text: Mapped[str]
    amount: Mapped[Decimal]
    invoice: Mapped[Invoice] = parent("lines")


class Payment(Base):
    """Money that a guest paid."""

    __tablename__ = "payments"

    id: Mapped[Id]
    invoice_id: Mapped[int] = belongs_to("invoices")
    method: Mapped[PaymentMethod]
    status: Mapped[PaymentStatus]
    amount: Mapped[Decimal]
    gateway: Mapped[dict[str, Any]] = mapped_column(default=dict)
    invoice: Mapped[Invoice] = parent("payments")
    refunds: Mapped[list[Refund]] = children("payment")


class Refund(Base):
    """Money that went back."""

    __tablename__ = "refunds"

    id: Mapped[Id]
    payment_id: Mapped[int] = belongs_to("payments")
    amount: Mapped[Decimal]
    reason: Mapped[str]
    payment: Mapped[Payment] = parent("refunds")


# Words.


class Message(Base):
    """What a guest and a clerk write to each other."""

    __tablename__ = "messages"

    id: Mapped[Id]
    booking_id: Mapped[int] = belongs_to("bookings")
    text: Mapped[str]
    labels: Mapped[list[str]] = mapped_column(default=list)
    created_at: Mapped[Made]
    booking: Mapped[Booking] = parent("messages")
    attachments: Mapped[list[Attachment]] = children("message", lazy="selectin")


class Attachment(Base):
    """A file of a message."""

    __tablename__ = "attachments"

    id: Mapped[Id]
    message_id: Mapped[int] = belongs_to("messages")
    name: Mapped[str]
    info: Mapped[dict[str, Any]] = mapped_column(default=dict)
    message: Mapped[Message] = parent("attachments")


class Review(Base):
    """What a guest thinks of it."""

    __tablename__ = "reviews"

    id: Mapped[Id]
    booking_id: Mapped[int] = belongs_to("bookings")
    scores: Mapped[dict[str, Any]]
    text: Mapped[str]
    booking: Mapped[Booking] = parent("review")
