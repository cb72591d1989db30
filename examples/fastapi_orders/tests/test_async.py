"""With `httpx`: the tests also look into the database and into Redis."""

from collections.abc import AsyncIterator

import pytest
from httpx import ASGITransport, AsyncClient
from redis.asyncio import Redis
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from orders.main import app
from orders.models import Order


@pytest.fixture
async def client() -> AsyncIterator[AsyncClient]:
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
        yield client


@pytest.mark.parametrize("item", ["tea", "milk", "sugar"])
async def test_an_order_is_stored(client: AsyncClient, db_session: AsyncSession, item: str) -> None:
    response = await client.post("/orders", json={"item": item})

    assert response.status_code == 201
    order = (await db_session.scalars(select(Order))).one()
    assert (order.item, order.status) == (item, "confirmed")


async def test_an_order_is_cached(client: AsyncClient, redis_client: Redis) -> None:
    await client.post("/orders", json={"item": "tea"})

    response = await client.get("/orders/1")

    assert await redis_client.get("order:1") == response.content


async def test_a_row_of_the_test_is_seen(client: AsyncClient, db_session: AsyncSession) -> None:
    db_session.add(Order(item="coffee", quantity=3))
    await db_session.commit()

    assert (await client.get("/orders/1")).json()["item"] == "coffee"


async def test_a_wrong_order_is_refused(client: AsyncClient) -> None:
    response = await client.post("/orders", json={"item": "tea", "quantity": 0})

    assert response.status_code == 422
    assert (await client.get("/orders")).json() == {"orders": 0}
