"""Create the parcels, a base of its own that needs the shop's last revision."""

from alembic import op

revision = "d1"
down_revision = None
depends_on = "s3"


def upgrade() -> None:
    """Create the table."""
    op.execute("CREATE TABLE parcel (customer_id integer REFERENCES customer, phone text)")


def downgrade() -> None:
    """Drop the table."""
    op.execute("DROP TABLE parcel")
