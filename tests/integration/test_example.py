"""How a project's tests look: ask for a session or a client, and use it as the code does."""

from datetime import timedelta
from decimal import Decimal

import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncSession

from shop import service
from shop.models import Book, Customer, OrderStatus, Stock

pytestmark = [pytest.mark.integration, pytest.mark.asyncio]


async def test_an_order_takes_its_copies_from_stock(
    db_session: AsyncSession, ada: Customer, dune: Book
) -> None:
    """Two of three copies ordered leave one, and the order knows its total."""
    order = await service.place_order(db_session, ada, {dune.id: 2})
    await db_session.commit()

    stock = await db_session.get_one(Stock, dune.id)
    assert stock.copies == 1
    assert order.total == Decimal("19.98")


async def test_a_refund_puts_the_copies_back(
    db_session: AsyncSession, ada: Customer, dune: Book
) -> None:
    """A refunded order has its money and its copies returned."""
    order = await service.place_order(db_session, ada, {dune.id: 2})
    await service.pay(db_session, order)

    payment = await service.refund(db_session, order)

    stock = await db_session.get_one(Stock, dune.id)
    assert stock.copies == 3
    assert order.status is OrderStatus.REFUNDED
    assert payment.refunded_at is not None


async def test_an_order_that_is_not_paid_cannot_be_refunded(
    db_session: AsyncSession, ada: Customer, dune: Book
) -> None:
    """A refund without a payment is refused."""
    order = await service.place_order(db_session, ada, {dune.id: 1})

    with pytest.raises(service.NotPaidError):
        await service.refund(db_session, order)


async def test_a_cart_counts_its_copies(redis_client: Redis) -> None:
    """Adding a book twice puts two copies in the cart."""
    await service.add_to_cart(redis_client, customer_id=1, book_id=7)
    await service.add_to_cart(redis_client, customer_id=1, book_id=7)

    assert await service.cart(redis_client, customer_id=1) == {7: 2}


async def test_a_checkout_turns_the_cart_into_an_order(
    db_session: AsyncSession, redis_client: Redis, ada: Customer, dune: Book
) -> None:
    """What was in the cart is ordered, and the cart is empty."""
    await service.add_to_cart(redis_client, ada.id, dune.id)

    order = await service.checkout(db_session, redis_client, ada)

    assert [line.book_id for line in order.lines] == [dune.id]
    assert await service.cart(redis_client, ada.id) == {}


async def test_a_rate_limit_refuses_the_request_beyond_it(redis_client: Redis) -> None:
    """Of four requests in a minute that allows three, the last is refused."""
    minute = timedelta(minutes=1)

    answers = [await service.allow(redis_client, "ada", limit=3, window=minute) for _ in range(4)]

    assert answers == [True, True, True, False]
