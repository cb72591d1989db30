"""Create what the models say."""

from alembic import op
from catalogue.ddl import add_stamp
from catalogue.models import Base

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create all tables, with stamps."""
    Base.metadata.create_all(op.get_bind())
    for table in Base.metadata.tables:
        add_stamp(table)


def downgrade() -> None:
    """Drop them."""
    Base.metadata.drop_all(op.get_bind())
