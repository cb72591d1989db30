"""Give authors a table of their own.

The books of one author were joined by the spelling of a name. Each name moves
to one row, and the books point to it.

Revision ID: 0006
Revises: 0005
Create Date: 2024-09-02 08:55:38
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Move the names out of books."""
    op.create_table(
        "authors",
        sa.Column("id", sa.Integer(), sa.Identity(), primary_key=True),
        sa.Column("name", sa.Text(), nullable=False, unique=True),
    )
    op.execute("INSERT INTO authors (name) SELECT DISTINCT author FROM books ORDER BY author")

    op.add_column("books", sa.Column("author_id", sa.Integer()))
    op.execute(
        "UPDATE books SET author_id = authors.id FROM authors WHERE authors.name = books.author"
    )
    op.alter_column("books", "author_id", nullable=False)
    op.create_foreign_key(None, "books", "authors", ["author_id"], ["id"])
    op.create_index(None, "books", ["author_id"])
    op.drop_column("books", "author")


def downgrade() -> None:
    """Write the names back into books."""
    op.add_column("books", sa.Column("author", sa.Text()))
    op.execute(
        "UPDATE books SET author = authors.name FROM authors WHERE authors.id = books.author_id"
    )
    op.alter_column("books", "author", nullable=False)
    op.drop_column("books", "author_id")
    op.drop_table("authors")
