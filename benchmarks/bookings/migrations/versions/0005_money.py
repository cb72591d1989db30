"""Vouchers, invoices and payments."""

from alembic import op

revision = "0005"
down_revision = "0004"

STATEMENTS = """
CREATE TABLE vouchers (
    id serial PRIMARY KEY,
    organisation_id integer NOT NULL REFERENCES organisations ON DELETE CASCADE,
    code text NOT NULL UNIQUE,
    percent integer NOT NULL
);
CREATE INDEX ON vouchers (organisation_id);
CREATE TABLE redemptions (
    voucher_id integer NOT NULL REFERENCES vouchers ON DELETE CASCADE,
    booking_id integer NOT NULL REFERENCES bookings ON DELETE CASCADE,
    amount numeric(10, 2) NOT NULL,
    PRIMARY KEY (voucher_id, booking_id)
);
CREATE TABLE invoices (
    id serial PRIMARY KEY,
    booking_id integer NOT NULL REFERENCES bookings ON DELETE CASCADE,
    currency currency NOT NULL,
    issued date NOT NULL
);
CREATE INDEX ON invoices (booking_id);
CREATE TABLE invoice_lines (
    id serial PRIMARY KEY,
    invoice_id integer NOT NULL REFERENCES invoices ON DELETE CASCADE,
    text text NOT NULL,
    amount numeric(10, 2) NOT NULL
);
CREATE INDEX ON invoice_lines (invoice_id);
CREATE TYPE paymentmethod AS ENUM ('card', 'cash');
CREATE TYPE paymentstatus AS ENUM ('pending', 'captured', 'refunded');
CREATE TABLE payments (
    id serial PRIMARY KEY,
    invoice_id integer NOT NULL REFERENCES invoices ON DELETE CASCADE,
    method paymentmethod NOT NULL,
    status paymentstatus NOT NULL,
    amount numeric(10, 2) NOT NULL,
    gateway jsonb NOT NULL
);
CREATE INDEX ON payments (invoice_id);
CREATE TABLE refunds (
    id serial PRIMARY KEY,
    payment_id integer NOT NULL REFERENCES payments ON DELETE CASCADE,
    amount numeric(10, 2) NOT NULL,
    reason text NOT NULL
);
CREATE INDEX ON refunds (payment_id);
"""


def upgrade() -> None:
    """Run the statements, one after the other, as asyncpg takes them."""
    for statement in STATEMENTS.split(";\n")[:-1]:
        op.execute(statement)
