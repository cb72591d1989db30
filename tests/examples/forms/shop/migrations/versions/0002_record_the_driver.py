"""Record with which driver the migrations ran."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Create a table with one row, the driver's name."""
    driver = op.create_table("driver", sa.Column("name", sa.Text, nullable=False))
    op.bulk_insert(driver, [{"name": op.get_bind().dialect.driver}])


def downgrade() -> None:
    """Drop the table."""
    op.drop_table("driver")
