"""Messages and reviews."""

from alembic import op

revision = "0006"
down_revision = "0005"

STATEMENTS = """
CREATE TABLE messages (
    id serial PRIMARY KEY,
    booking_id integer NOT NULL REFERENCES bookings ON DELETE CASCADE,
    text text NOT NULL,
    labels text[] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON messages (booking_id);
CREATE TABLE attachments (
    id serial PRIMARY KEY,
    message_id integer NOT NULL REFERENCES messages ON DELETE CASCADE,
    name text NOT NULL,
    info jsonb NOT NULL
);
CREATE INDEX ON attachments (message_id);
CREATE TABLE reviews (
    id serial PRIMARY KEY,
    booking_id integer NOT NULL REFERENCES bookings ON DELETE CASCADE,
    scores jsonb NOT NULL,
    text text NOT NULL
);
CREATE INDEX ON reviews (booking_id);
"""


def upgrade() -> None:
    """Run the statements, one after the other, as asyncpg takes them."""
    for statement in STATEMENTS.split(";\n")[:-1]:
        op.execute(statement)
