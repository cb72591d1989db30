"""Create a role that may read."""

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the role, which belongs to the whole server, and a table that it may read."""
    op.execute("CREATE ROLE shop_reader")
    op.execute("CREATE TABLE customer (id integer)")
    op.execute("GRANT SELECT ON customer TO shop_reader")


def downgrade() -> None:
    """Drop both."""
    op.execute("DROP TABLE customer")
    op.execute("DROP ROLE shop_reader")
