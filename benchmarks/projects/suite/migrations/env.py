"""Run the migrations, as in Alembic's template for asyncio."""

import asyncio
import os

from alembic import context
from models import Base
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool


def migrate(connection: Connection) -> None:
    """Run the migrations on *connection*."""
    context.configure(connection=connection, target_metadata=Base.metadata)
    with context.begin_transaction():
        context.run_migrations()


async def main() -> None:
    """Connect to the database and run the migrations."""
    url = context.config.get_main_option("sqlalchemy.url") or os.environ["BENCH_DATABASE"]
    engine = create_async_engine(url, poolclass=NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
    await engine.dispose()


asyncio.run(main())
