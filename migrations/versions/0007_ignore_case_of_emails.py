"""Ignore the case of e-mail addresses.

Ada@example.org and ada@example.org had become two customers.

Revision ID: 0007
Revises: 0006
Create Date: 2024-11-14 17:08:02
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the address unique in lower case."""
    op.drop_constraint("uq_customers_email", "customers", type_="unique")
    op.create_index("uq_customers_email", "customers", [sa.text("lower(email)")], unique=True)


def downgrade() -> None:
    """Make the address unique as it is written."""
    op.drop_index("uq_customers_email", "customers")
    op.create_unique_constraint("uq_customers_email", "customers", ["email"])
