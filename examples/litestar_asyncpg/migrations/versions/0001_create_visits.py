from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.execute(
        "CREATE TABLE visits (id serial PRIMARY KEY, page text NOT NULL,"
        " at timestamptz NOT NULL DEFAULT now())"
    )
