from sqlalchemy import text


async def test_the_migrations_got_what_was_written(db_session):
    written = '{"beta": {"url": true}} postgresql'
    assert await db_session.scalar(text("SELECT name FROM customers")) == written
