"""Migrations by hand, for suites whose tool has none of its own."""

from alembic import command
from alembic.config import Config


def migrate(url: str) -> None:
    """Bring the database at *url* to the head of the revisions."""
    config = Config("alembic.ini")
    config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
    command.upgrade(config, "head")
