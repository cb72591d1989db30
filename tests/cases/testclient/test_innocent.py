"""A request that uses two connections at once; the next test has done nothing wrong."""

from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text


def get_engine():
    raise NotImplementedError


app = FastAPI()


@app.post("/two")
async def two(engine=Depends(get_engine)):
    async with engine.connect() as one, engine.connect() as other:
        return await one.scalar(text("SELECT 1")) + await other.scalar(text("SELECT 1"))


def test_1_client(db_engine):
    app.dependency_overrides[get_engine] = lambda: db_engine
    with TestClient(app) as client:
        assert client.post("/two").json() == 2


async def test_2_innocent(db_session):
    assert (await db_session.execute(text("SELECT 1"))).scalar() == 1


async def test_3_innocent(db_session):
    assert (await db_session.execute(text("SELECT 1"))).scalar() == 1
