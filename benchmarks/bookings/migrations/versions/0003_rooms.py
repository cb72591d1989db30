"""Rooms, their prices, and their cleaning."""

from alembic import op

revision = "0003"
down_revision = "0002"

STATEMENTS = """
CREATE TYPE roomkind AS ENUM ('single', 'double', 'suite');
CREATE TABLE room_types (
    id serial PRIMARY KEY,
    property_id integer NOT NULL REFERENCES properties ON DELETE CASCADE,
    kind roomkind NOT NULL,
    beds integer[] NOT NULL,
    features jsonb NOT NULL
);
CREATE INDEX ON room_types (property_id);
CREATE TABLE rooms (
    id serial PRIMARY KEY,
    room_type_id integer NOT NULL REFERENCES room_types ON DELETE CASCADE,
    number text NOT NULL,
    floor integer NOT NULL,
    UNIQUE (room_type_id, number)
);
CREATE INDEX ON rooms (room_type_id);
CREATE TYPE currency AS ENUM ('eur', 'gbp', 'usd');
CREATE TABLE rate_plans (
    id serial PRIMARY KEY,
    room_type_id integer NOT NULL REFERENCES room_types ON DELETE CASCADE,
    currency currency NOT NULL,
    rules jsonb NOT NULL
);
CREATE INDEX ON rate_plans (room_type_id);
CREATE TABLE rates (
    rate_plan_id integer NOT NULL REFERENCES rate_plans ON DELETE CASCADE,
    weekday integer NOT NULL,
    price numeric(10, 2) NOT NULL,
    PRIMARY KEY (rate_plan_id, weekday)
);
CREATE TYPE taskstatus AS ENUM ('todo', 'done');
CREATE TABLE cleaning_tasks (
    id serial PRIMARY KEY,
    room_id integer NOT NULL REFERENCES rooms ON DELETE CASCADE,
    user_id integer REFERENCES users ON DELETE SET NULL,
    day date NOT NULL,
    status taskstatus NOT NULL,
    checklist text[] NOT NULL
);
CREATE INDEX ON cleaning_tasks (room_id);
"""


def upgrade() -> None:
    """Run the statements, one after the other, as asyncpg takes them."""
    for statement in STATEMENTS.split(";\n")[:-1]:
        op.execute(statement)
