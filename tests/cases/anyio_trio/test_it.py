import pytest
from sqlalchemy import text

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request):
    # As anyio's own fixture where trio is installed.
    return request.param


async def test_db(db_session, redis_client):
    assert (await db_session.execute(text("SELECT count(*) FROM customers"))).scalar() == 0
    await redis_client.set("a", 1)


async def test_engine(db_engine):
    async with db_engine.connect() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM customers"))).scalar() == 0
