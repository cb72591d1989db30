"""Properties, and what belongs to one."""

from alembic import op

revision = "0002"
down_revision = "0001"

STATEMENTS = """
CREATE TABLE addresses (
    id serial PRIMARY KEY,
    street text NOT NULL,
    city text NOT NULL,
    country text NOT NULL
);
CREATE INDEX ON addresses (city);
CREATE TYPE amenity AS ENUM ('wifi', 'pool', 'parking', 'bar');
CREATE TABLE properties (
    id serial PRIMARY KEY,
    organisation_id integer NOT NULL REFERENCES organisations ON DELETE CASCADE,
    address_id integer NOT NULL REFERENCES addresses ON DELETE CASCADE,
    name text NOT NULL,
    amenities amenity[] NOT NULL,
    policy jsonb NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX ON properties (address_id);
CREATE INDEX ON properties (organisation_id);
CREATE TABLE photos (
    id serial PRIMARY KEY,
    property_id integer NOT NULL REFERENCES properties ON DELETE CASCADE,
    path text NOT NULL,
    size integer[] NOT NULL
);
CREATE INDEX ON photos (property_id);
CREATE TABLE seasons (
    id serial PRIMARY KEY,
    property_id integer NOT NULL REFERENCES properties ON DELETE CASCADE,
    name text NOT NULL,
    begins date NOT NULL,
    ends date NOT NULL,
    factor numeric(10, 2) NOT NULL
);
CREATE INDEX ON seasons (property_id);
CREATE TABLE extras (
    id serial PRIMARY KEY,
    property_id integer NOT NULL REFERENCES properties ON DELETE CASCADE,
    name text NOT NULL,
    price numeric(10, 2) NOT NULL
);
CREATE INDEX ON extras (property_id);
"""


def upgrade() -> None:
    """Run the statements, one after the other, as asyncpg takes them."""
    for statement in STATEMENTS.split(";\n")[:-1]:
        op.execute(statement)
