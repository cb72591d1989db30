"""Add the customer's email, in a branch."""

from alembic import op

revision = "s2a"
down_revision = "s1"


def upgrade() -> None:
    """Add the column."""
    op.execute("ALTER TABLE customer ADD email text")


def downgrade() -> None:
    """Drop the column."""
    op.execute("ALTER TABLE customer DROP email")
