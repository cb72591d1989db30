"""Create the view of bestsellers.

Revision ID: 0009
Revises: 0008
Create Date: 2025-04-08 09:41:30
"""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the view."""
    op.execute(
        """
        CREATE VIEW bestsellers AS
        SELECT books.id, books.title, sum(order_lines.quantity)::integer AS sold
        FROM books
        JOIN order_lines ON order_lines.book_id = books.id
        JOIN orders ON orders.id = order_lines.order_id
        WHERE orders.status IN ('paid', 'shipped')
        GROUP BY books.id
        """
    )


def downgrade() -> None:
    """Drop the view."""
    op.execute("DROP VIEW bestsellers")
