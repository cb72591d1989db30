"""Create the customers, and two of them."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create and fill the table."""
    customer = op.create_table(
        "customer",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
    )
    op.bulk_insert(customer, [{"id": 1, "name": "Ada Lovelace"}, {"id": 2, "name": "100% Grace"}])


def downgrade() -> None:
    """Drop the table."""
    op.drop_table("customer")
