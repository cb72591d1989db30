"""Alembic's configuration, built in code, and ways to use it."""

import os
from pathlib import Path

from alembic import command
from alembic.config import Config


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
