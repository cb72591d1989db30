"""With FastAPI's `TestClient`: the tests know only the application."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from orders.main import app


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client


@pytest.mark.parametrize("item", ["tea", "milk", "sugar"])
def test_an_order_is_confirmed_in_the_background(client: TestClient, item: str) -> None:
    created = client.post("/orders", json={"item": item, "quantity": 2})

    assert created.status_code == 201
    assert created.json() == {"id": 1, "item": item, "quantity": 2, "status": "new"}
    assert client.get("/orders/1").json()["status"] == "confirmed"
    assert client.get("/orders").json() == {"orders": 1}


def test_the_cache_starts_empty(client: TestClient) -> None:
    assert client.get("/orders/1").status_code == 404


def test_without_the_lifespan() -> None:
    client = TestClient(app)

    assert client.post("/orders", json={"item": "tea"}).json()["id"] == 1
    assert client.get("/orders/1").json()["item"] == "tea"
