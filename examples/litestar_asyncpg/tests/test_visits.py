"""With Litestar's synchronous and asynchronous test clients, and with a connection of the test."""

from collections.abc import AsyncIterator, Iterator

import asyncpg
import pytest
from litestar import Litestar
from litestar.testing import AsyncTestClient, TestClient

from visits.app import app


@pytest.fixture
def client() -> Iterator[TestClient[Litestar]]:
    with TestClient(app) as client:
        yield client


@pytest.fixture
async def async_client() -> AsyncIterator[AsyncTestClient[Litestar]]:
    async with AsyncTestClient(app) as client:
        yield client


@pytest.mark.parametrize("page", ["home", "shop"])
def test_visits_are_counted(client: TestClient[Litestar], page: str) -> None:
    assert client.post("/visits", json={"page": page}).json() == 1
    assert client.post("/visits", json={"page": page}).json() == 2

    assert client.get("/visits").json() == {page: 2}


@pytest.mark.parametrize("page", ["home", "shop"])
async def test_a_visit_is_stored(
    async_client: AsyncTestClient[Litestar], db_dsn: str, page: str
) -> None:
    await async_client.post("/visits", json={"page": page})

    connection = await asyncpg.connect(db_dsn)
    assert await connection.fetchval("SELECT page FROM visits WHERE id = 1") == page
    await connection.close()
