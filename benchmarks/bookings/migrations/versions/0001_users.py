"""Organisations, their users, and what these did."""

from alembic import op

revision = "0001"
down_revision = None

STATEMENTS = """
CREATE TABLE organisations (
    id serial PRIMARY KEY,
    name text NOT NULL UNIQUE,
    settings jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE users (
    id serial PRIMARY KEY,
    email text NOT NULL UNIQUE,
    name text NOT NULL,
    languages text[] NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TYPE role AS ENUM ('owner', 'clerk', 'cleaner');
CREATE TABLE memberships (
    organisation_id integer NOT NULL REFERENCES organisations ON DELETE CASCADE,
    user_id integer NOT NULL REFERENCES users ON DELETE CASCADE,
    role role NOT NULL,
    PRIMARY KEY (organisation_id, user_id)
);
CREATE TABLE audit_events (
    id serial PRIMARY KEY,
    subject text NOT NULL,
    action text NOT NULL,
    details jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON audit_events (subject);
CREATE TABLE outbox_messages (
    id serial PRIMARY KEY,
    topic text NOT NULL,
    payload json NOT NULL,
    sent_at timestamptz
);
"""


def upgrade() -> None:
    """Run the statements, one after the other, as asyncpg takes them."""
    for statement in STATEMENTS.split(";\n")[:-1]:
        op.execute(statement)
