import asyncpg
import psycopg
import psycopg2
import pytest
import sqlalchemy as sa

COUNT = "SELECT count(*) FROM customers"


async def test_asyncpg(db_dsn):
    connection = await asyncpg.connect(db_dsn)
    assert await connection.fetchval(COUNT) == 0
    await connection.close()


def test_psycopg(db_dsn):
    with psycopg.connect(db_dsn) as connection:
        assert connection.execute(COUNT).fetchone() == (0,)


def test_psycopg2(db_dsn):
    connection = psycopg2.connect(db_dsn)
    with connection.cursor() as cursor:
        cursor.execute(COUNT)
        assert cursor.fetchone() == (0,)
    connection.close()


def test_sqlalchemy(db_dsn):
    engine = sa.create_engine(db_dsn.replace("postgresql://", "postgresql+psycopg://"))
    with engine.connect() as connection:
        assert connection.scalar(sa.text(COUNT)) == 0
    engine.dispose()


def test_it_is_the_same_database_as_that_of_db_url(db_url, db_dsn):
    assert sa.make_url(db_url).set(drivername="postgresql") == sa.make_url(db_dsn)


@pytest.mark.warmstack_isolation("class")
class TestShared:
    @pytest.fixture(scope="class", autouse=True)
    def ada(self, db_dsn):
        with psycopg.connect(db_dsn) as connection:
            connection.execute("INSERT INTO customers (name) VALUES ('Ada')")

    def test_a_fixture_of_the_class_may_ask_for_it(self, db_dsn):
        with psycopg.connect(db_dsn) as connection:
            assert connection.execute(COUNT).fetchone() == (1,)
