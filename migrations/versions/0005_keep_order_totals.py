"""Keep the total of each order in the order.

Summing the lines on every page had become slow. Old orders are filled in here;
from now on a trigger follows the lines.

Revision ID: 0005
Revises: 0004
Create Date: 2024-05-27 10:20:13
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column, fill it, require it, and let a trigger keep it."""
    op.add_column("orders", sa.Column("total", sa.Numeric(10, 2)))
    op.execute(
        """
        UPDATE orders SET total = (
            SELECT coalesce(sum(quantity * unit_price), 0)
            FROM order_lines WHERE order_id = orders.id
        )
        """
    )
    op.alter_column("orders", "total", nullable=False, server_default="0")
    op.execute(
        """
        CREATE FUNCTION keep_order_total() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            UPDATE orders SET total = (
                SELECT coalesce(sum(quantity * unit_price), 0)
                FROM order_lines WHERE order_id = orders.id
            )
            WHERE id IN (old.order_id, new.order_id);
            RETURN NULL;
        END
        $$
        """
    )
    op.execute(
        """
        CREATE TRIGGER keep_order_total
        AFTER INSERT OR UPDATE OR DELETE ON order_lines
        FOR EACH ROW EXECUTE FUNCTION keep_order_total()
        """
    )


def downgrade() -> None:
    """Drop the trigger, its function and the column."""
    op.execute("DROP TRIGGER keep_order_total ON order_lines")
    op.execute("DROP FUNCTION keep_order_total()")
    op.drop_column("orders", "total")
