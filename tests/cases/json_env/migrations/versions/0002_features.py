"""features"""

import os

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade():
    customers = sa.table("customers", sa.column("name"))
    name = os.environ["FEATURES"] + " " + os.environ["DATABASE_URL"].partition("+")[0]
    op.bulk_insert(customers, [{"name": name}])
