"""Create payments, and allow one that is not refunded per order.

Revision ID: 0004
Revises: 0003
Create Date: 2024-03-11 14:47:21
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table and its partial unique index."""
    op.create_table(
        "payments",
        sa.Column("id", sa.Integer(), sa.Identity(), primary_key=True),
        sa.Column("order_id", sa.Integer(), sa.ForeignKey("orders.id"), nullable=False),
        sa.Column("amount", sa.Numeric(10, 2), nullable=False),
        sa.Column(
            "paid_at",
            sa.DateTime(timezone=True),
            nullable=False,
            server_default=sa.func.now(),
        ),
        sa.Column("refunded_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint("amount > 0", "amount_positive"),
    )
    op.create_index(
        "uq_payments_order_id",
        "payments",
        ["order_id"],
        unique=True,
        postgresql_where=sa.text("refunded_at IS NULL"),
    )


def downgrade() -> None:
    """Drop the index and the table."""
    op.drop_index("uq_payments_order_id", "payments")
    op.drop_table("payments")
