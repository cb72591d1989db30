"""Create the prices, in the currency that `-x currency=CODE` names."""

import sqlalchemy as sa
from alembic import context, op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create the table with one row."""
    arguments = context.get_x_argument(as_dictionary=True)
    price = op.create_table(
        "price",
        sa.Column("amount", sa.Integer),
        sa.Column("currency", sa.Text, server_default=arguments["currency"]),
        schema=arguments["tenant"],
    )
    op.bulk_insert(price, [{"amount": 12}])


def downgrade() -> None:
    """Drop the table."""
    op.drop_table("price", schema=context.get_x_argument(as_dictionary=True)["tenant"])
