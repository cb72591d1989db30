"""Run the library's migrations, and leave a line for each time that this happens."""

import asyncio
from pathlib import Path

from alembic import context
from sqlalchemy import pool
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import async_engine_from_config

config = context.config

# What env.py itself opens is no dependency of the template.
with Path(__file__).parents[1].joinpath("executions.log").open("a") as log:
    log.write("env.py\n")


def upgrade(connection: Connection) -> None:
    """Run the migrations on *connection*, in one transaction."""
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()


async def connect_and_upgrade() -> None:
    """Connect to the database that the configuration names, and upgrade it."""
    engine = async_engine_from_config(
        config.get_section(config.config_ini_section, {}),
        prefix="sqlalchemy.",
        poolclass=pool.NullPool,
    )
    async with engine.connect() as connection:
        await connection.run_sync(upgrade)
    await engine.dispose()


asyncio.run(connect_and_upgrade())
