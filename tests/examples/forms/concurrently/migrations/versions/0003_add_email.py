"""Add the customer's email, in a transaction again."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the column."""
    op.execute("ALTER TABLE customer ADD email text")


def downgrade() -> None:
    """Drop the column."""
    op.execute("ALTER TABLE customer DROP email")
