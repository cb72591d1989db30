"""Guests and bookings."""

from alembic import op

revision = "0004"
down_revision = "0003"

STATEMENTS = """
CREATE TABLE guests (
    id serial PRIMARY KEY,
    name text NOT NULL,
    emails text[] NOT NULL,
    preferences jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE TABLE guest_documents (
    id serial PRIMARY KEY,
    guest_id integer NOT NULL REFERENCES guests ON DELETE CASCADE,
    kind text NOT NULL,
    number text NOT NULL
);
CREATE INDEX ON guest_documents (guest_id);
CREATE TABLE tags (
    id serial PRIMARY KEY,
    name text NOT NULL UNIQUE
);
CREATE TYPE bookingstatus AS ENUM ('open', 'confirmed', 'cancelled');
CREATE TYPE channel AS ENUM ('web', 'phone', 'agency');
CREATE TABLE bookings (
    id serial PRIMARY KEY,
    property_id integer NOT NULL REFERENCES properties ON DELETE CASCADE,
    reference text NOT NULL UNIQUE,
    status bookingstatus NOT NULL,
    channel channel NOT NULL,
    arrives date NOT NULL,
    leaves date NOT NULL,
    notes text[] NOT NULL,
    source json NOT NULL,
    version integer NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON bookings (property_id);
CREATE INDEX ON bookings (status);
CREATE TABLE booking_tags (
    booking_id integer NOT NULL REFERENCES bookings ON DELETE CASCADE,
    tag_id integer NOT NULL REFERENCES tags ON DELETE CASCADE,
    PRIMARY KEY (booking_id, tag_id)
);
CREATE TABLE booking_rooms (
    id serial PRIMARY KEY,
    booking_id integer NOT NULL REFERENCES bookings ON DELETE CASCADE,
    room_id integer NOT NULL REFERENCES rooms ON DELETE CASCADE,
    arrives date NOT NULL,
    price numeric(10, 2) NOT NULL,
    UNIQUE (room_id, arrives)
);
CREATE INDEX ON booking_rooms (booking_id);
CREATE INDEX ON booking_rooms (room_id);
CREATE TABLE booking_guests (
    booking_id integer NOT NULL REFERENCES bookings ON DELETE CASCADE,
    guest_id integer NOT NULL REFERENCES guests ON DELETE CASCADE,
    is_payer boolean NOT NULL,
    PRIMARY KEY (booking_id, guest_id)
);
CREATE TABLE booking_extras (
    id serial PRIMARY KEY,
    booking_id integer NOT NULL REFERENCES bookings ON DELETE CASCADE,
    extra_id integer NOT NULL REFERENCES extras ON DELETE CASCADE,
    quantity integer NOT NULL
);
CREATE INDEX ON booking_extras (booking_id);
CREATE INDEX ON booking_extras (extra_id);
"""


def upgrade() -> None:
    """Run the statements, one after the other, as asyncpg takes them."""
    for statement in STATEMENTS.split(";\n")[:-1]:
        op.execute(statement)
