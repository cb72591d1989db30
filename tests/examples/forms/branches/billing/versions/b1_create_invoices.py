"""Create the invoices, where billing's own revisions begin."""

from alembic import op

revision = "b1"
down_revision = None
branch_labels = ("billing",)


def upgrade() -> None:
    """Create the table."""
    op.execute("CREATE TABLE invoice (id integer PRIMARY KEY)")


def downgrade() -> None:
    """Drop the table."""
    op.execute("DROP TABLE invoice")
