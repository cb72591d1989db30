import httpx
import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.main import app, get_redis, get_session
from app.models import Order


@pytest.fixture
async def client(db_engine, redis_client):
    async def session():
        async with AsyncSession(db_engine, expire_on_commit=False) as made:
            yield made

    app.dependency_overrides[get_session] = session
    app.dependency_overrides[get_redis] = lambda: redis_client
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as it:
        yield it
    app.dependency_overrides.clear()


@pytest.mark.parametrize("item", ["tea", "milk"])
async def test_an_order_is_stored_and_told(client, db_session, redis_client, item):
    response = await client.post(f"/orders/{item}")

    assert response.json() == 1
    assert (await db_session.scalars(select(Order.item))).all() == [item]
    assert await redis_client.xlen("orders") == 1
