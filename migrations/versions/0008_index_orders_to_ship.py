"""Index the orders that wait to be shipped.

They are few among many, and packers ask for the oldest of them all day.

Revision ID: 0008
Revises: 0007
Create Date: 2025-01-20 13:36:49
"""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create a partial index."""
    op.create_index(
        "ix_orders_to_ship",
        "orders",
        ["placed_at"],
        postgresql_where=sa.text("status = 'paid'"),
    )


def downgrade() -> None:
    """Drop the index."""
    op.drop_index("ix_orders_to_ship", "orders")
