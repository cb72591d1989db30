"""Create the books, each of which has an author."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the table."""
    op.execute(
        "CREATE TABLE book ("
        "id integer PRIMARY KEY, title text NOT NULL, author_id integer REFERENCES author)"
    )


def downgrade() -> None:
    """Drop the table."""
    op.execute("DROP TABLE book")
