"""Create books and stock.

Revision ID: 0002
Revises: 0001
Create Date: 2024-02-05 16:31:07
"""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create both tables."""
    op.create_table(
        "books",
        sa.Column("id", sa.Integer(), sa.Identity(), primary_key=True),
        sa.Column("isbn", sa.Text(), nullable=False, unique=True),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("price", sa.Numeric(10, 2), nullable=False),
        sa.CheckConstraint("price > 0", "price_positive"),
    )
    op.create_table(
        "stock",
        sa.Column("book_id", sa.Integer(), sa.ForeignKey("books.id"), primary_key=True),
        sa.Column("copies", sa.Integer(), nullable=False, server_default="0"),
        sa.CheckConstraint("copies >= 0", "copies_not_negative"),
    )


def downgrade() -> None:
    """Drop both tables."""
    op.drop_table("stock")
    op.drop_table("books")
