"""Create the authors."""

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the table."""
    op.execute("CREATE TABLE author (id integer PRIMARY KEY, name text NOT NULL)")


def downgrade() -> None:
    """Drop the table."""
    op.execute("DROP TABLE author")
