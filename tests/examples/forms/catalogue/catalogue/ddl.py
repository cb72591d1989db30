"""What several migrations do."""

from alembic import op


def add_stamp(table: str) -> None:
    """Add the time of its last change to every row of *table*."""
    op.execute(f"ALTER TABLE {table} ADD changed timestamptz NOT NULL DEFAULT now()")
