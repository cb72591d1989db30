"""Run the migrations on the database that a key of the project's own names."""

from alembic import context
from sqlalchemy import create_engine, pool

url = context.config.get_main_option("shop.database")

with create_engine(url, poolclass=pool.NullPool).connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
