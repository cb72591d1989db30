"""Find books by their titles."""

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Create the index."""
    op.execute("CREATE INDEX book_title ON book (title)")


def downgrade() -> None:
    """Drop the index."""
    op.execute("DROP INDEX book_title")
