"""What the platform does; each function works in a session, and its caller commits."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

from sqlalchemy import Select, exists, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import joinedload, selectinload

from bookings.models import (
    Attachment,
    AuditEvent,
    Booking,
    BookingExtra,
    BookingGuest,
    BookingRoom,
    BookingStatus,
    Channel,
    Currency,
    Extra,
    Guest,
    Invoice,
    InvoiceLine,
    Message,
    OutboxMessage,
    Payment,
    PaymentMethod,
    PaymentStatus,
    Property,
    RatePlan,
    Redemption,
    Refund,
    Room,
    RoomType,
    Season,
    Tag,
    Voucher,
)


class SoldOut(Exception):
    """There is no room for these nights."""


async def free_rooms(session: AsyncSession, place: Property, arrives: date) -> Sequence[Room]:
    """Return the rooms of a property that are free on this date."""
    taken = exists().where(BookingRoom.room_id == Room.id, BookingRoom.arrives == arrives)
    return (
        await session.scalars(
            select(Room)
            .join(Room.room_type)
            .where(RoomType.property_id == place.id, ~taken)
            .order_by(Room.floor, Room.number)
        )
    ).all()


async def price(session: AsyncSession, room: Room, arrives: date, nights: int) -> Decimal:
    """Return what a room costs for these nights."""
    plan = await session.scalar(
        select(RatePlan).where(
            RatePlan.room_type_id == room.room_type_id, RatePlan.currency == Currency.EUR
        )
    )
    factor = await session.scalar(
        select(Season.factor).where(
            Season.property_id == room.room_type.property_id,
            Season.begins <= arrives,
            Season.ends > arrives,
        )
    )
    rates = {rate.weekday: rate.price for rate in plan.rates} if plan else {}
    days = [(arrives + timedelta(days=night)).weekday() for night in range(nights)]
    return sum((rates[day] for day in days), Decimal()) * (factor or 1)


async def book(
    session: AsyncSession,
    place: Property,
    guests: Sequence[Guest],
    arrives: date,
    *,
    reference: str,
    nights: int = 2,
    channel: Channel = Channel.WEB,
    extra: str = "breakfast",
    code: str = "",
) -> Booking:
    """Book the first free room, with an invoice; raises SoldOut."""
    free = await free_rooms(session, place, arrives)
    if not free:
        raise SoldOut(f"{place.name}: {arrives}")
    amount = await price(session, free[0], arrives, nights)
    booking = Booking(
        property_id=place.id,
        reference=reference,
        channel=channel,
        arrives=arrives,
        leaves=arrives + timedelta(days=nights),
        notes=["late arrival"],
        source={"campaign": channel.value, "clicks": [1, 2, 3]},
        rooms=[BookingRoom(room=free[0], arrives=arrives, price=amount)],
        guests=[BookingGuest(guest_id=each.id, is_payer=each is guests[0]) for each in guests],
    )
    invoice = Invoice(currency=Currency.EUR, issued=arrives)
    invoice.lines.append(InvoiceLine(text=f"{nights} nights", amount=amount))
    for found in await session.scalars(
        select(Extra).where(Extra.property_id == place.id, Extra.name == extra)
    ):
        booking.extras.append(BookingExtra(extra=found, quantity=nights))
        invoice.lines.append(InvoiceLine(text=found.name, amount=found.price * nights))
    booking.invoices.append(invoice)
    session.add(booking)
    await session.flush()
    if code:
        voucher = (await session.scalars(select(Voucher).where(Voucher.code == code))).one()
        saved = amount * voucher.percent / 100
        session.add(Redemption(voucher=voucher, booking=booking, amount=saved))
        session.add(InvoiceLine(invoice_id=invoice.id, text=voucher.code, amount=-saved))
    await record(session, booking, "booked", nights=nights, guests=len(guests))
    return booking


async def record(session: AsyncSession, booking: Booking, action: str, **details: Any) -> None:
    """Note what was done, for people and for other services."""
    subject = f"booking {booking.reference}"
    session.add(AuditEvent(subject=subject, action=action, details=details))
    session.add(OutboxMessage(topic=f"bookings.{action}", payload={"id": booking.id, **details}))
    await session.flush()


async def load(session: AsyncSession, reference: str) -> Booking:
    """Return a booking with everything that its page shows."""
    return (
        await session.scalars(
            select(Booking)
            .where(Booking.reference == reference)
            .options(
                joinedload(Booking.property, innerjoin=True),
                selectinload(Booking.rooms),
                selectinload(Booking.guests),
                selectinload(Booking.extras),
                selectinload(Booking.invoices).selectinload(Invoice.lines),
                selectinload(Booking.invoices)
                .selectinload(Invoice.payments)
                .selectinload(Payment.refunds),
                selectinload(Booking.messages),
                selectinload(Booking.redemptions).joinedload(Redemption.voucher),
                joinedload(Booking.review),
            )
            .execution_options(populate_existing=True)
        )
    ).one()


async def pay(session: AsyncSession, booking: Booking, method: PaymentMethod) -> Payment:
    """Pay all that is open, and confirm the booking; it was loaded with its invoices."""
    invoice = booking.invoices[0]
    payment = Payment(
        method=method,
        status=PaymentStatus.PENDING,
        amount=sum((line.amount for line in invoice.lines), Decimal()),
        gateway={"id": f"pay_{booking.id}", "attempts": [{"ok": True}]},
        refunds=[],
    )
    invoice.payments.append(payment)
    await session.flush()
    payment.status = PaymentStatus.CAPTURED
    booking.status = BookingStatus.CONFIRMED
    await record(session, booking, "paid", amount=str(payment.amount))
    return payment


async def cancel(session: AsyncSession, booking: Booking, reason: str) -> None:
    """Cancel a booking, free its rooms, and give the money back."""
    booking.status = BookingStatus.CANCELLED
    booking.notes = [*booking.notes, reason]
    booking.rooms.clear()
    for payment in booking.invoices[0].payments:
        payment.refunds.append(Refund(amount=payment.amount, reason=reason))
        payment.status = PaymentStatus.REFUNDED
    await record(session, booking, "cancelled", reason=reason)


async def write(session: AsyncSession, booking: Booking, text: str, *files: str) -> Message:
    """Write a message about a booking."""
    attachments = [Attachment(name=file, info={"type": file[-3:]}) for file in files]
    message = Message(booking_id=booking.id, text=text, labels=["guest"], attachments=attachments)
    session.add(message)
    await session.flush()
    return message


async def tag(session: AsyncSession, booking: Booking, *names: str) -> None:
    """Give a booking tags, and make those that there are not yet."""
    for name in names:
        found = await session.scalar(select(Tag).where(Tag.name == name))
        booking.tags.append(found or Tag(name=name))
        await session.flush()


def search(
    place: Property,
    *statuses: BookingStatus,
    channel: Channel | None = None,
    guest: str = "",
    tagged: str = "",
) -> Select[Any]:
    """Return the query for bookings, newest first."""
    query = select(Booking).where(Booking.property_id == place.id).order_by(Booking.id.desc())
    if statuses:
        query = query.where(Booking.status.in_(statuses))
    if channel:
        query = query.where(Booking.channel == channel)
    if guest:
        query = query.where(Booking.guests.any(BookingGuest.guest.has(Guest.name.icontains(guest))))
    if tagged:
        query = query.where(Booking.tags.any(Tag.name == tagged))
    return query.options(selectinload(Booking.guests), selectinload(Booking.rooms))


async def revenue(session: AsyncSession) -> Sequence[Any]:
    """Return what each property earned in each currency: bookings and money."""
    return (
        await session.execute(
            select(
                Property.name,
                Invoice.currency,
                func.count(Booking.id.distinct()),
                func.sum(InvoiceLine.amount),
            )
            .join(Property.bookings)
            .join(Booking.invoices)
            .join(Invoice.lines)
            .where(Booking.status != BookingStatus.CANCELLED)
            .group_by(Property.name, Invoice.currency)
            .order_by(Property.name)
        )
    ).all()
