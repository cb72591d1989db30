"""Find customers by their names; the index is made while the table is in use."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create the index, outside of a transaction."""
    with op.get_context().autocommit_block():
        op.create_index("customer_name", "customer", ["name"], postgresql_concurrently=True)


def downgrade() -> None:
    """Drop the index."""
    with op.get_context().autocommit_block():
        op.drop_index("customer_name", postgresql_concurrently=True)
