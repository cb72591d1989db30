from sqlalchemy import text


async def test_a_table_lies_in_its_schema(db_session):
    assert await db_session.scalar(text("SELECT count(*) FROM shop.customers")) == 0
