"""The tests of the platform, as a suite of some age has them.

*db_session* prepares and looks; the platform's own code has sessions of its own, from *sessions*.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from factories import guests_of, open_property
from sqlalchemy import ColumnElement, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import joinedload, selectinload
from sqlalchemy.orm.exc import StaleDataError

from bookings import service
from bookings.models import (
    Amenity,
    AuditEvent,
    Booking,
    BookingRoom,
    BookingStatus,
    Channel,
    CleaningTask,
    Currency,
    Guest,
    InvoiceLine,
    Membership,
    Organisation,
    OutboxMessage,
    PaymentMethod,
    Property,
    Rate,
    Review,
    Role,
    Room,
    RoomType,
    TaskStatus,
    User,
)

Sessions = async_sessionmaker[AsyncSession]

DAY = date(2026, 5, 4)


async def test_a_room_is_booked(db_session: AsyncSession, sessions: Sessions, number: int) -> None:
    place = await open_property(db_session, number)
    guests = await guests_of(db_session, number)
    nights = 1 + number % 5
    async with sessions() as session, session.begin():
        await service.book(
            session, place, guests, DAY, reference="A", nights=nights, code=f"SPRING{number}"
        )

    booking = await service.load(db_session, "A")
    assert booking.property.name == place.name
    assert [each.room.room_type.kind for each in booking.rooms] == ["single"]
    assert [each.guest.name for each in booking.guests] == [each.name for each in guests]
    assert [each.quantity for each in booking.extras] == [nights]
    (invoice,) = booking.invoices
    assert len(invoice.lines) == 3
    assert sum(each.amount for each in invoice.lines) == (
        booking.rooms[0].price * Decimal("0.9") + 9 * nights
    ).quantize(Decimal("0.01"))
    assert booking.redemptions[0].voucher.percent == 10


async def test_bookings_are_listed(
    db_session: AsyncSession, sessions: Sessions, number: int
) -> None:
    place = await open_property(db_session, number)
    guests = await guests_of(db_session, number)
    async with sessions() as session:
        for turn, channel in enumerate([Channel.WEB, Channel.PHONE]):
            await service.book(
                session, place, guests[: 1 + turn % 2], DAY, reference=str(turn), channel=channel
            )
            await session.commit()
    first = await db_session.scalar(select(Booking).where(Booking.reference == "0"))
    assert first is not None
    await service.tag(db_session, first, "vip", "regular")
    await db_session.commit()

    async def found(**filters: Any) -> list[str]:
        async with sessions() as session:
            rows = await session.scalars(service.search(place, **filters))
            return [each.reference for each in rows]

    assert await found() == ["1", "0"]
    assert await found(channel=Channel.PHONE) == ["1"]
    assert await found(guest=f"{number} 1") == ["1"]
    assert await found(tagged="vip") == ["0"]


async def test_a_booking_is_changed(
    db_session: AsyncSession, sessions: Sessions, number: int
) -> None:
    place = await open_property(db_session, number)
    guests = await guests_of(db_session, number, 3)
    await service.book(db_session, place, guests[:2], DAY, reference="A")
    await db_session.commit()
    before = await service.load(db_session, "A")
    assert before.version == 1
    for turn in range(1 + number % 2):
        async with sessions() as session, session.begin():
            booking = await service.load(session, "A")
            booking.leaves += timedelta(days=1)
            booking.notes = [*booking.notes, f"longer {turn}"]
            booking.guests.pop()
            booking.extras[0].quantity += 1
            booking.source = {**booking.source, "changed": turn}
            await service.record(session, booking, "changed", turn=turn)

    booking = await service.load(db_session, "A")
    changes = booking.source["changed"] + 1
    assert (booking.leaves - booking.arrives).days == 2 + changes
    assert len(booking.notes) == 1 + changes
    assert len(booking.guests) == 2 - changes
    assert booking.version == 1 + changes
    actions = select(AuditEvent.action).order_by(AuditEvent.id)
    assert (await db_session.scalars(actions)).all() == ["booked", *["changed"] * changes]


async def test_a_cancelled_booking_is_refunded(
    db_session: AsyncSession, sessions: Sessions, number: int
) -> None:
    place = await open_property(db_session, number, rooms=1)
    guests = await guests_of(db_session, number)
    method = list(PaymentMethod)[number % 2]
    async with sessions() as session, session.begin():
        await service.book(session, place, guests, DAY, reference="A")
    async with sessions() as session, session.begin():
        booking = await service.load(session, "A")
        payment = await service.pay(session, booking, method)
    assert len(await service.free_rooms(db_session, place, DAY)) == 1
    async with sessions() as session, session.begin():
        await service.cancel(session, await session.merge(booking, load=False), "ill")

    booking = await service.load(db_session, "A")
    assert booking.status is BookingStatus.CANCELLED
    assert booking.rooms == []
    (paid,) = booking.invoices[0].payments
    assert [each.amount for each in paid.refunds] == [payment.amount]
    assert len(await service.free_rooms(db_session, place, DAY)) == 2


async def test_an_organisation_is_deleted_with_all_it_has(
    db_session: AsyncSession, sessions: Sessions, number: int
) -> None:
    place = await open_property(db_session, number)
    guests = await guests_of(db_session, number)
    async with sessions() as session, session.begin():
        booking = await service.book(session, place, guests, DAY, reference="A")
        await service.write(session, booking, "Hello", "map.pdf", "menu.pdf")

    async def remaining() -> dict[str, int]:
        row = await db_session.execute(
            select(
                select(func.count(User.id)).scalar_subquery().label("users"),
                select(func.count(Guest.id)).scalar_subquery().label("guests"),
                select(func.count(Booking.id)).scalar_subquery().label("bookings"),
                select(func.count(Rate.weekday)).scalar_subquery().label("rates"),
                select(func.count(InvoiceLine.id)).scalar_subquery().label("lines"),
            )
        )
        return dict(row.mappings().one())

    assert await remaining() == {"users": 3, "guests": 2, "bookings": 1, "rates": 28, "lines": 2}
    async with sessions() as session, session.begin():
        organisation = await session.get_one(
            Organisation,
            place.organisation_id,
            options=[
                selectinload(Organisation.memberships),
                selectinload(Organisation.properties).selectinload(Property.room_types),
            ],
        )
        await session.delete(organisation)

    assert await remaining() == {"users": 3, "guests": 2, "bookings": 0, "rates": 0, "lines": 0}


async def test_revenue_is_summed(db_session: AsyncSession, sessions: Sessions, number: int) -> None:
    guests = await guests_of(db_session, number)
    place = await open_property(db_session, number)
    for each in range(2):
        await service.book(db_session, place, guests, DAY, reference=str(each), nights=7)
    await db_session.commit()
    week = sum(range(60, 67)) + 9 * 7
    (row,) = await service.revenue(db_session)
    assert tuple(row) == (place.name, Currency.EUR, 2, 2 * week)
    async with sessions() as session, session.begin():
        await service.cancel(session, await service.load(session, "1"), "ill")

    async with sessions() as session:
        (row,) = await service.revenue(session)
    assert tuple(row) == (place.name, Currency.EUR, 1, week)


async def test_documents_and_arrays_are_searched(db_session: AsyncSession, number: int) -> None:
    place = await open_property(db_session, number)
    await guests_of(db_session, number, 4)

    async def names(*conditions: ColumnElement[bool]) -> list[str]:
        query = select(Guest.name).where(*conditions).order_by(Guest.id)
        return [each.rpartition(" ")[2] for each in await db_session.scalars(query)]

    preferences = Guest.preferences
    assert await names(preferences["floor"].as_integer() > 1) == ["2", "3"]
    assert await names(preferences.contains({"pillows": {"soft": True}})) == ["0", "2"]
    assert await names(preferences["diet"].contains(["vegan"])) == ["0", "1", "2", "3"]
    assert await names(Guest.emails.contains(["g1@example.com"])) == ["1"]
    guest = (await db_session.scalars(select(Guest).order_by(Guest.id).limit(1))).one()
    guest.preferences = {**guest.preferences, "floor": 9}
    guest.emails = [*guest.emails, "new@example.org"]
    await db_session.commit()
    assert await names(preferences["floor"].as_integer() > 8) == ["0"]
    assert await names(func.cardinality(Guest.emails) == 3) == ["0"]
    has = Property.amenities.contains([Amenity.WIFI])
    assert await db_session.scalar(select(Property.name).where(has)) == place.name
    areas = select(RoomType.features["area"].as_integer()).order_by(RoomType.id)
    assert (await db_session.scalars(areas)).all() == [12, 20]


async def test_two_clerks_change_one_booking(
    db_session: AsyncSession, sessions: Sessions, number: int
) -> None:
    place = await open_property(db_session, number)
    guests = await guests_of(db_session, number)
    await service.book(db_session, place, guests, DAY, reference="A")
    await db_session.commit()
    async with sessions() as slow:
        seen = await service.load(slow, "A")
        await slow.commit()
        async with sessions() as fast, fast.begin():
            booking = await service.load(fast, "A")
            booking.arrives += timedelta(days=1 + number % 6)
            await service.record(fast, booking, "moved")
        seen.notes = ["lost"]
        with pytest.raises(StaleDataError):
            await slow.commit()
        await slow.rollback()

    booking = await service.load(db_session, "A")
    assert booking.notes == ["late arrival"]
    assert booking.arrives == DAY + timedelta(days=1 + number % 6)


async def test_an_overbooking_is_rolled_back(
    db_session: AsyncSession, sessions: Sessions, number: int
) -> None:
    place = await open_property(db_session, number, rooms=1)
    guests = await guests_of(db_session, number)
    async with sessions() as session:
        for turn in range(2):
            await service.book(session, place, guests, DAY, reference=f"{turn}")
            await session.commit()
        with pytest.raises(service.SoldOut):
            await service.book(session, place, guests, DAY, reference="2")
        await session.rollback()
        booking = await service.load(session, "0")
        room = booking.rooms[0].room_id
        with pytest.raises(IntegrityError, match="booking_rooms_room_id_arrives_key"):
            async with session.begin_nested():
                session.add(
                    BookingRoom(booking_id=booking.id, room_id=room, arrives=DAY, price=Decimal(1))
                )
        await service.record(session, booking, "refused", room=room)
        await session.commit()

    assert await db_session.scalar(select(func.count(BookingRoom.id))) == 2
    last = select(AuditEvent.action).order_by(AuditEvent.id.desc()).limit(1)
    assert await db_session.scalar(last) == "refused"


async def test_rooms_are_cleaned(db_session: AsyncSession, sessions: Sessions, number: int) -> None:
    place = await open_property(db_session, number, rooms=2 + number % 3)
    cleaner = await db_session.scalar(
        select(User).join(User.memberships).where(Membership.role == Role.CLEANER)
    )
    assert cleaner is not None
    rooms = await service.free_rooms(db_session, place, DAY)
    await db_session.execute(
        insert(CleaningTask),
        [
            {"room_id": room.id, "day": DAY, "user_id": cleaner.id, "checklist": ["bed", "bath"]}
            for room in rooms
        ],
    )
    await db_session.commit()
    for room in rooms[::2]:
        async with sessions() as session, session.begin():
            task = (await session.scalars(select(CleaningTask).filter_by(room_id=room.id))).one()
            task.status = TaskStatus.DONE
    async with sessions() as session, session.begin():
        todo = CleaningTask.status == TaskStatus.TODO
        later = DAY + timedelta(days=1)
        moved = update(CleaningTask).where(todo).values(day=later).returning(CleaningTask.id)
        assert len((await session.scalars(moved)).all()) == len(rooms) // 2
        await session.execute(delete(User).where(User.id == cleaner.id))

    tasks = await db_session.scalars(
        select(CleaningTask)
        .options(joinedload(CleaningTask.room))
        .join(CleaningTask.room)
        .order_by(Room.floor, Room.number)
        .execution_options(populate_existing=True)
    )
    assert [(each.status, each.user_id) for each in tasks] == [
        (TaskStatus.TODO if place % 2 else TaskStatus.DONE, None) for place in range(len(rooms))
    ]


async def test_guests_write_and_judge(
    db_session: AsyncSession, sessions: Sessions, number: int
) -> None:
    place = await open_property(db_session, number)
    guests = await guests_of(db_session, number)
    booking = await service.book(db_session, place, guests, DAY, reference="A")
    await db_session.commit()
    for turn in range(3):
        async with sessions() as session, session.begin():
            await service.write(session, booking, f"Message {turn}", *["map.pdf"] * turn)
    async with sessions() as session, session.begin():
        scores = {"clean": number % 10, "staff": 9}
        session.add(Review(booking_id=booking.id, scores=scores, text="Nice"))

    booking = await service.load(db_session, "A")
    assert [len(each.attachments) for each in booking.messages] == [0, 1, 2]
    assert booking.review is not None
    assert booking.review.scores["clean"] == number % 10
    mean = select(func.avg(Review.scores["clean"].as_float()))
    assert await db_session.scalar(mean) == number % 10


async def test_the_outbox_is_sent(
    db_session: AsyncSession, sessions: Sessions, number: int
) -> None:
    place = await open_property(db_session, number)
    guests = await guests_of(db_session, number)
    booking = await service.book(db_session, place, guests, DAY, reference="A")
    for turn in range(4):
        await service.record(db_session, booking, "seen", turn=turn)
    await db_session.commit()
    sent: list[str] = []
    while True:
        async with sessions() as worker, worker.begin():
            batch = await worker.scalars(
                select(OutboxMessage)
                .where(OutboxMessage.sent_at.is_(None))
                .order_by(OutboxMessage.id)
                .limit(2)
                .with_for_update(skip_locked=True)
            )
            before = len(sent)
            for message in batch:
                sent.append(message.topic)
                message.sent_at = datetime.now(UTC)
        open_ones = select(func.count(OutboxMessage.id)).where(OutboxMessage.sent_at.is_(None))
        assert await db_session.scalar(open_ones) == 5 - len(sent)
        if len(sent) == before:
            break

    assert sent == ["bookings.booked", *["bookings.seen"] * 4]
