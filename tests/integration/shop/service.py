"""What the bookshop does: orders in PostgreSQL, carts and rate limits in Redis.

Functions that take a session flush but do not commit, so the caller decides
what one transaction is. Only `checkout` commits, because it must know that the
order stands before it empties the cart.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from redis.asyncio import Redis
from sqlalchemy import Integer, Text, column, select, table
from sqlalchemy.ext.asyncio import AsyncSession

from shop.models import Author, Book, Customer, Order, OrderLine, OrderStatus, Payment, Stock

CART_LIFETIME = timedelta(days=7)

# A view, not a table: named here, so that the models hold only what they create.
bestsellers = table("bestsellers", column("title", Text), column("sold", Integer))


class OutOfStockError(Exception):
    """There are fewer copies than the customer wants."""


class NotPaidError(Exception):
    """Only a paid order can be refunded."""


async def add_book(
    session: AsyncSession, *, isbn: str, title: str, author: str, price: str, copies: int
) -> Book:
    """Put *copies* of a new book on the shelf, by an author old or new."""
    writer = await session.scalar(select(Author).where(Author.name == author))
    writer = writer or Author(name=author)
    book = Book(isbn=isbn, title=title, author=writer, price=Decimal(price))
    session.add(Stock(book=book, copies=copies))
    await session.flush()
    return book


async def place_order(
    session: AsyncSession, customer: Customer, basket: Mapping[int, int]
) -> Order:
    """Order *basket*, copies by book id, and take the copies from stock, all or nothing."""
    stock = await _lock_stock(session, basket)
    for book_id, quantity in basket.items():
        if book_id not in stock or stock[book_id].copies < quantity:
            raise OutOfStockError(book_id)

    order = Order(customer=customer)
    for book_id, quantity in basket.items():
        stock[book_id].copies -= quantity
        price = stock[book_id].book.price
        order.lines.append(OrderLine(book_id=book_id, quantity=quantity, unit_price=price))
    session.add(order)
    await session.flush()
    await session.refresh(order, ["total"])  # the trigger's work
    return order


async def pay(session: AsyncSession, order: Order) -> Payment:
    """Receive the money for *order*."""
    payment = Payment(order_id=order.id, amount=order.total)
    session.add(payment)
    order.status = OrderStatus.PAID
    await session.flush()
    return payment


async def refund(session: AsyncSession, order: Order) -> Payment:
    """Give the money for *order* back and put its copies on the shelf again."""
    payment = await session.scalar(
        select(Payment)
        .where(Payment.order_id == order.id, Payment.refunded_at.is_(None))
        .with_for_update()
    )
    if payment is None:
        raise NotPaidError(order.id)

    returned = {line.book_id: line.quantity for line in order.lines}
    for book_id, stock in (await _lock_stock(session, returned)).items():
        stock.copies += returned[book_id]
    payment.refunded_at = datetime.now(UTC)
    order.status = OrderStatus.REFUNDED
    await session.flush()
    return payment


async def ship_next(session: AsyncSession) -> Order | None:
    """Ship the oldest paid order that no other packer holds, if there is one."""
    order = await session.scalar(
        select(Order)
        .where(Order.status == OrderStatus.PAID)
        .order_by(Order.placed_at, Order.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    if order is not None:
        order.status = OrderStatus.SHIPPED
        await session.flush()
    return order


async def top_books(session: AsyncSession, limit: int = 10) -> list[tuple[str, int]]:
    """Return the titles sold most and how often, the best first."""
    title, sold = bestsellers.c.title, bestsellers.c.sold
    query = select(title, sold).order_by(sold.desc(), title).limit(limit)
    return [(row.title, row.sold) for row in await session.execute(query)]


async def add_to_cart(redis: Redis, customer_id: int, book_id: int, quantity: int = 1) -> None:
    """Put *quantity* copies of a book in the cart, and keep the cart for another week."""
    async with redis.pipeline() as pipe:
        pipe.hincrby(f"cart:{customer_id}", str(book_id), quantity)
        pipe.expire(f"cart:{customer_id}", CART_LIFETIME)
        await pipe.execute()


async def cart(redis: Redis, customer_id: int) -> dict[int, int]:
    """Return the copies in the cart by book id."""
    entries = await redis.hgetall(f"cart:{customer_id}")
    return {int(book_id): int(quantity) for book_id, quantity in entries.items()}


async def checkout(session: AsyncSession, redis: Redis, customer: Customer) -> Order:
    """Make the customer's cart an order, commit it, and empty the cart."""
    order = await place_order(session, customer, await cart(redis, customer.id))
    await session.commit()
    await redis.delete(f"cart:{customer.id}")
    return order


async def allow(redis: Redis, who: str, *, limit: int, window: timedelta) -> bool:
    """Tell whether *who* may act once more: at most *limit* times in each *window*."""
    async with redis.pipeline() as pipe:
        pipe.incr(f"rate:{who}")
        pipe.pexpire(f"rate:{who}", window, nx=True)
        count, _ = await pipe.execute()
    return int(count) <= limit


async def _lock_stock(session: AsyncSession, book_ids: Mapping[int, int]) -> dict[int, Stock]:
    # In order of id, so that two baskets with the same books cannot deadlock.
    rows = await session.scalars(
        select(Stock)
        .where(Stock.book_id.in_(book_ids))
        .order_by(Stock.book_id)
        .with_for_update(of=Stock)
        .execution_options(populate_existing=True)
    )
    return {stock.book_id: stock for stock in rows}
