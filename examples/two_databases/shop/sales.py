import os
from datetime import date

from psycopg_pool import ConnectionPool

pool = ConnectionPool(
    os.environ["DATABASE_URL"],
    min_size=1,
    max_size=5,
    open=False,
    check=ConnectionPool.check_connection,
)


def sell(day: date, cents: int) -> None:
    with pool.connection() as connection:
        connection.execute("INSERT INTO sales (day, cents) VALUES (%s, %s)", [day, cents])
