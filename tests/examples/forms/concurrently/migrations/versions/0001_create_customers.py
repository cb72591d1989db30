"""Create the customers."""

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the table."""
    op.execute("CREATE TABLE customer (id integer PRIMARY KEY, name text)")


def downgrade() -> None:
    """Drop the table."""
    op.execute("DROP TABLE customer")
