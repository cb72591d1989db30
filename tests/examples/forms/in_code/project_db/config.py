"""Alembic's configuration, built in code, and ways to use it."""

import asyncio
import os
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import create_async_engine


def make_config(url: str) -> Config:
    """Return the configuration for the database at *url*, which has a key of its own."""
    config = Config()
    scripts = str(Path(__file__).with_name("migrations"))
    config.set_main_option("script_location", scripts.replace("%", "%%"))
    config.set_main_option("shop.database", url.replace("%", "%%"))
    return config


def make_config_of_the_environment() -> Config:
    """Return the configuration for the database that the environment names."""
    return make_config(os.environ["DATABASE_URL"])


def migrate(url: str) -> None:
    """Bring the database at *url* to the heads."""
    command.upgrade(make_config(url), "heads")


async def make_config_in_a_loop(*, url: str) -> Config:
    """Return the same configuration, after something asynchronous."""
    await asyncio.sleep(0)
    return make_config(url)


async def migrate_in_a_loop(url: str) -> None:
    """Bring the database to the heads over a connection of a loop's own."""
    engine = create_async_engine(url.replace("+psycopg", "+asyncpg"))
    config = make_config(url)

    def upgrade(connection: Connection) -> None:
        config.attributes["connection"] = connection
        command.upgrade(config, "heads")

    async with engine.begin() as connection:
        await connection.run_sync(upgrade)
    await engine.dispose()


async def migrate_by_env_py(url: str) -> None:
    """Bring the database to the heads, though env.py has a loop of its own."""
    command.upgrade(make_config(url), "heads")
