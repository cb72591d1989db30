"""Create the shelves."""

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the table."""
    op.execute("CREATE TABLE shelf (id integer PRIMARY KEY)")


def downgrade() -> None:
    """Drop the table."""
    op.execute("DROP TABLE shelf")
