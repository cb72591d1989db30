"""Give each customer a first name, from what the table holds."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

customer = sa.table(
    "customer", sa.column("id", sa.Integer), sa.column("name", sa.Text), sa.column("first", sa.Text)
)


def upgrade() -> None:
    """Read every row, and write it back."""
    op.add_column("customer", sa.Column("first", sa.Text))
    connection = op.get_bind()
    for each in connection.execute(sa.select(customer.c.id, customer.c.name)).all():
        first = each.name.split()[0]
        connection.execute(sa.update(customer).where(customer.c.id == each.id).values(first=first))
    op.alter_column("customer", "first", nullable=False)


def downgrade() -> None:
    """Drop the column."""
    op.drop_column("customer", "first")
