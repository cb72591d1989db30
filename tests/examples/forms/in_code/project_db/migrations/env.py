"""Run the migrations on the database that a key of the project's own names."""

from alembic import context
from sqlalchemy import Connection, create_engine, pool

url = context.config.get_main_option("shop.database")


def migrate(connection: Connection) -> None:
    """Run the migrations on *connection*."""
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()


if shared := context.config.attributes.get("connection"):
    migrate(shared)
else:
    with create_engine(url, poolclass=pool.NullPool).connect() as connection:
        migrate(connection)
