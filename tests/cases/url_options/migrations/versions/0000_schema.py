"""schema"""

from alembic import op

revision = "0000"
down_revision = None


def upgrade():
    op.execute("CREATE SCHEMA shop")


def downgrade():
    op.execute("DROP SCHEMA shop")
