"""Create the customers, where the shop's revisions begin."""

from alembic import op

revision = "s1"
down_revision = None
branch_labels = ("shop",)


def upgrade() -> None:
    """Create the table."""
    op.execute("CREATE TABLE customer (id integer PRIMARY KEY)")


def downgrade() -> None:
    """Drop the table."""
    op.execute("DROP TABLE customer")
