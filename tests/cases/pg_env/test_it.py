import os

import psycopg
from sqlalchemy import text


async def test_the_plugins_connections_know_nothing_of_it(db_session, db_engine):
    assert await db_session.scalar(text("SELECT count(*) FROM customers")) == 0
    assert await db_session.scalar(text("SHOW search_path")) == '"$user", public'


def test_a_connection_of_the_tests_own_does(db_dsn, monkeypatch):
    for name in os.environ:
        if name.startswith("PG") and name != "PGOPTIONS":
            monkeypatch.delenv(name)
    with psycopg.connect(db_dsn) as connection:
        assert connection.execute("SHOW search_path").fetchone() == ("nowhere",)
