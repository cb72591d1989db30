"""Add the customer's phone, in a branch."""

from alembic import op

revision = "s2b"
down_revision = "s1"


def upgrade() -> None:
    """Add the column."""
    op.execute("ALTER TABLE customer ADD phone text")


def downgrade() -> None:
    """Drop the column."""
    op.execute("ALTER TABLE customer DROP phone")
