import pytest
from sqlalchemy import text

pytestmark = [pytest.mark.warmstack_isolation("module"), pytest.mark.asyncio(loop_scope="module")]


@pytest.fixture(scope="module")
async def catalogue(db_engine):
    async with db_engine.begin() as connection:
        await connection.execute(
            text("INSERT INTO customers (name) SELECT 'x' FROM generate_series(1, 1000)")
        )


async def test_a(catalogue, db_session):
    assert (await db_session.execute(text("SELECT count(*) FROM customers"))).scalar() == 1000
