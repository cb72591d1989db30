import sqlalchemy as sa
from alembic import op

revision = "a001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "revenue",
        sa.Column("day", sa.Date, primary_key=True),
        sa.Column("cents", sa.BigInteger, nullable=False),
    )
