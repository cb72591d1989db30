"""The bookshop's own fixtures, built on those of the plugin."""

import pytest_asyncio
from sqlalchemy.ext.asyncio import AsyncSession

from shop.models import Book, Customer
from shop.service import add_book


@pytest_asyncio.fixture
async def ada(db_session: AsyncSession) -> Customer:
    """Give a customer, committed."""
    customer = Customer(name="Ada", email="ada@example.org")
    db_session.add(customer)
    await db_session.commit()
    return customer


@pytest_asyncio.fixture
async def dune(db_session: AsyncSession) -> Book:
    """Give a book of which three copies are in stock, committed."""
    book = await add_book(
        db_session,
        isbn="9780441172719",
        title="Dune",
        author="Frank Herbert",
        price="9.99",
        copies=3,
    )
    await db_session.commit()
    return book
