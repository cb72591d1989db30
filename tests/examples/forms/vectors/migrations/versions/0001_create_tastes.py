"""Create what customers like, as vectors."""

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the extension and a table that needs it."""
    op.execute("CREATE EXTENSION vector")
    op.execute("CREATE TABLE taste (likes vector(3))")
    op.execute("INSERT INTO taste VALUES ('[1,2,3]')")


def downgrade() -> None:
    """Drop both."""
    op.execute("DROP TABLE taste")
    op.execute("DROP EXTENSION vector")
