"""What most tests start with."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

from sqlalchemy.ext.asyncio import AsyncSession

from bookings.models import (
    Address,
    Amenity,
    Currency,
    Extra,
    Guest,
    GuestDocument,
    Membership,
    Organisation,
    Photo,
    Property,
    Rate,
    RatePlan,
    Role,
    Room,
    RoomKind,
    RoomType,
    Season,
    User,
    Voucher,
)


async def open_property(session: AsyncSession, number: int, *, rooms: int = 3) -> Property:
    """Commit an organisation with users, and a property with rooms and prices."""
    place = Property(
        name=f"Hotel {number}",
        amenities=[Amenity.WIFI, Amenity.BAR if number % 2 else Amenity.POOL],
        policy={"pets": bool(number % 2), "check_in": {"from": 14, "to": 22}},
        address=Address(street=f"{number} High Street", city="Leeds", country="GB"),
        extras=[
            Extra(name="breakfast", price=Decimal(9)),
            Extra(name="parking", price=Decimal("5.50")),
        ],
        photos=[Photo(path=f"/{number}/{each}.jpg", size=[640, 480]) for each in range(3)],
        seasons=[
            Season(
                name="summer",
                begins=date(2026, 6, 1),
                ends=date(2026, 9, 1),
                factor=Decimal("1.5"),
            )
        ],
        room_types=[
            RoomType(
                kind=kind,
                beds=[1] * (place + 1),
                features={"area": 12 + 8 * place, "view": ["sea", "yard"][place % 2]},
                rooms=[Room(number=f"{place}{each:02}", floor=place) for each in range(rooms)],
                rate_plans=[
                    RatePlan(
                        currency=currency,
                        rules={"min_nights": 1},
                        rates=[Rate(weekday=day, price=Decimal(60 + day)) for day in range(7)],
                    )
                    for currency in (Currency.EUR, Currency.GBP)
                ],
            )
            for place, kind in enumerate((RoomKind.SINGLE, RoomKind.DOUBLE))
        ],
    )
    people = [
        Membership(role=role, user=User(email=f"{role}{number}@example.org", name=role.title()))
        for role in Role
    ]
    organisation = Organisation(
        name=f"Company {number}",
        settings={"locale": "en", "features": {"vouchers": True}},
        memberships=people,
        properties=[place],
        vouchers=[Voucher(code=f"SPRING{number}", percent=10)],
    )
    session.add(organisation)
    await session.commit()
    return place


async def guests_of(session: AsyncSession, number: int, count: int = 2) -> list[Guest]:
    """Commit guests with their documents."""
    guests = [
        Guest(
            name=f"Guest {number} {each}",
            emails=[f"g{number}.{each}@example.org", f"g{each}@example.com"],
            preferences={"floor": each, "pillows": {"soft": each % 2 == 0}, "diet": ["vegan"]},
            documents=[GuestDocument(kind="passport", number=f"P{number}{each}")],
        )
        for each in range(count)
    ]
    session.add_all(guests)
    await session.commit()
    return guests
