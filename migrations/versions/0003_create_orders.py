"""Create orders and their lines.

Revision ID: 0003
Revises: 0002
Create Date: 2024-02-19 11:02:55
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

order_status = postgresql.ENUM(
    "placed", "paid", "shipped", "refunded", name="order_status", create_type=False
)


def upgrade() -> None:
    """Create the type, then the tables that use it."""
    order_status.create(op.get_bind())
    op.create_table(
        "orders",
        sa.Column("id", sa.Integer(), sa.Identity(), primary_key=True),
        sa.Column(
            "customer_id",
            sa.Integer(),
            sa.ForeignKey("customers.id"),
            nullable=False,
            index=True,
        ),
        sa.Column("status", order_status, nullable=False, server_default="placed"),
        sa.Column(
            "placed_at",
            sa.DateTime(timezone=True),
            nullable=False,
            server_default=sa.func.now(),
        ),
    )
    op.create_table(
        "order_lines",
        sa.Column(
            "order_id",
            sa.Integer(),
            sa.ForeignKey("orders.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("book_id", sa.Integer(), sa.ForeignKey("books.id"), primary_key=True),
        sa.Column("quantity", sa.Integer(), nullable=False),
        sa.Column("unit_price", sa.Numeric(10, 2), nullable=False),
        sa.CheckConstraint("quantity > 0", "quantity_positive"),
    )


def downgrade() -> None:
    """Drop the tables, then the type they used."""
    op.drop_table("order_lines")
    op.drop_table("orders")
    order_status.drop(op.get_bind())
