"""Each change that a test makes to its database is undone exactly, or the database is replaced."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from projects import Bench, until
from put_back_databases import Clone, Databases, Operation
from pytest_warmstack import redis
from pytest_warmstack.background import BackgroundLoop
from pytest_warmstack.options import RuntimeName, Settings
from pytest_warmstack.postgres import server as postgres
from pytest_warmstack.postgres.connections import StatementRefused
from pytest_warmstack.postgres.put_back import Baseline, NotPutBack

pytestmark = pytest.mark.parametrize("runtime", [RuntimeName.EMBEDDED], indirect=True)

PLAIN: Final = "INSERT INTO plain (name) SELECT 'n' || i FROM generate_series(1, {n}) i"

UNDONE: Final = {
    "nothing": [],
    "rows": [PLAIN.format(n=3), "UPDATE plain SET mood = 'sad'", "DELETE FROM plain WHERE id = 2"],
    "rows of a rolled back transaction": ["BEGIN", PLAIN.format(n=3), "ROLLBACK"],
    "rows of an aborted transaction": ["BEGIN", PLAIN.format(n=3)],
    "many rows in a table that others refer to": [PLAIN.format(n=300)],
    "rows in tables with triggers and rules that always fire": [
        "INSERT INTO held VALUES (1)", "INSERT INTO replicated VALUES (1)"
    ],
    "rows in a published table": ["INSERT INTO announced VALUES (1)"],
    "very many rows in a table that others refer to": [
        "INSERT INTO plain (name) SELECT i FROM generate_series(1, 3000) i"
    ],
    "very many rows": ["INSERT INTO spread (n) SELECT i FROM generate_series(1, 30000) i"],
    "very many rows of a parent whose child has rows": [
        "INSERT INTO animal (name) SELECT 'Tom' FROM generate_series(1, 5000)"
    ],
    "very many rows in a table that was analyzed while it was empty": [
        "INSERT INTO analyzed (note) SELECT 'x' FROM generate_series(1, 5000)"
    ],
    "large values beside many rows of the template": [
        "INSERT INTO large (note) VALUES (repeat('x', 100000))"
    ],
    "large values": ["INSERT INTO plain (name, body) VALUES ('big', repeat('x', 1000000))"],
    "rows that refer to each other": [
        "BEGIN",
        "INSERT INTO egg VALUES (1, 1)",
        "INSERT INTO hen VALUES (1, 1)",
        "COMMIT",
        "INSERT INTO tree (parent_id) VALUES (NULL)",
        "INSERT INTO tree (parent_id) VALUES (1)",
    ],
    "rows of a cascade": [PLAIN.format(n=1), "INSERT INTO other.numbered (plain_id) VALUES (1)"],
    "rows without columns": ["INSERT INTO nothing DEFAULT VALUES"],
    "odd names": ['INSERT INTO "Odd ""schema"."Odd \'table" VALUES (1)'],
    "rows of a parent whose child has rows": ["INSERT INTO animal (name) VALUES ('Tom')"],
    "rows of a parent whose child has rows, among others": [
        "INSERT INTO nothing DEFAULT VALUES", "INSERT INTO animal (name) VALUES ('Tom')",
        "INSERT INTO fast (note) VALUES ('x')",
    ],
    "rows in partitions": ["INSERT INTO log SELECT i, 'a', 'n' FROM generate_series(1, 30) i"],
    "rows in an unlogged table": ["INSERT INTO fast (note) VALUES ('x')"],
    "rows behind policies": ["INSERT INTO secret (owner) VALUES ('x')"],
    "rows in a table that was analyzed while it was empty": [
        "INSERT INTO analyzed (note) SELECT 'x' FROM generate_series(1, 500)"
    ],
    "rows that were not counted": ["SET track_counts = off", "INSERT INTO nothing DEFAULT VALUES"],
    "rows beside those of the template": [
        "INSERT INTO country VALUES ('new', 'New')",
        "INSERT INTO plant VALUES ('yew')",
        "INSERT INTO large (n, note) SELECT i, 'new' FROM generate_series(1, 30) i",
        "INSERT INTO document (body) VALUES (repeat('x', 1000000))",
    ],
    "many values beside a few of the template": [
        "INSERT INTO document (body) SELECT repeat('x', 3000) FROM generate_series(1, 200)"
    ],
    "changes of new rows beside a few of the template": [
        "INSERT INTO country VALUES ('new', 'New'), ('newer', 'Newer')",
        "UPDATE country SET name = 'Changed' WHERE code = 'new'",
        "DELETE FROM country WHERE code = 'newer'",
    ],
    "changes of the template's rows that were rolled back": [
        "BEGIN", "UPDATE country SET name = 'x'", "DELETE FROM dog", "ROLLBACK"
    ],
    "locks of the template's rows": ["SELECT FROM city FOR UPDATE", "SELECT FROM large FOR SHARE"],
    "sequences": [
        "SELECT nextval('free'), setval('started', 7, false), nextval('backwards')",
        'SELECT setval(\'"Odd ""schema"."Odd sequence"\', 5)',
    ],
    "a committed prepared transaction": [
        "BEGIN", PLAIN.format(n=1), "PREPARE TRANSACTION 'a'", "COMMIT PREPARED 'a'"
    ],
    "a rolled back prepared transaction": [
        "BEGIN", PLAIN.format(n=1), "PREPARE TRANSACTION 'a'", "ROLLBACK PREPARED 'a'"
    ],
    "triggers and foreign keys set off": [
        "SET session_replication_role = replica", "INSERT INTO hen VALUES (1, 77)"
    ],
    "locks, notifications and cursors": [
        "SELECT pg_advisory_lock(1)", "LISTEN a", "NOTIFY a",
        "DECLARE c CURSOR WITH HOLD FOR SELECT * FROM large",
    ],
    "a terminated connection": [PLAIN.format(n=1), "SELECT pg_terminate_backend(pg_backend_pid())"],
}  # fmt: skip
"""What tests do, by a name for it."""

REPLACED: Final = {
    "UPDATE country SET name = 'x' WHERE code = 'c1'": "rows of the template in public.country",
    "DELETE FROM dog WHERE name = 'Rex'": "rows of the template in public.dog",
    "UPDATE large SET note = 'x' WHERE id = 1": "rows of the template in public.large",
    "INSERT INTO large (n) SELECT 1 FROM generate_series(1, 3000)": "many rows into public.large",
    "INSERT INTO country SELECT 'n' || i FROM generate_series(1, 1000) i": "many rows into",
    "INSERT INTO large_raw SELECT 1, 'y' FROM generate_series(1, 500)": "many rows into",
    "INSERT INTO watched VALUES (2)": "public.watched, which has triggers or rules",
    "INSERT INTO ruled VALUES (2)": "public.ruled, which has triggers or rules",
    "CREATE TABLE made (n integer)": "the schema (made, pg_attribute, pg_class",
    "BEGIN; CREATE TABLE made (n integer); ROLLBACK": "the schema (pg_attribute, pg_class",
    "SET track_counts = off; CREATE TABLE made (n integer)": "the schema (made)",
    "SET track_counts = off; ALTER TABLE plain ADD extra integer": "the schema (plain)",
    "CREATE TEMPORARY TABLE made (n integer)": "the schema (pg_attribute, pg_class",
    "CREATE VIEW made AS SELECT 1": "the schema (pg_attribute, pg_class",
    "CREATE FUNCTION made() RETURNS integer LANGUAGE sql AS 'SELECT 1'": "pg_proc",
    "CREATE TYPE made AS ENUM ('a')": "the schema (pg_depend, pg_enum",
    "CREATE INDEX ON plain (amount)": "pg_index",
    "DROP EXTENSION plpgsql CASCADE": "the schema (pg_depend",
    "ALTER TABLE plain RENAME TO renamed": "the schema (renamed, pg_class",
    "ALTER SEQUENCE free RESTART": "the schema (free",
    "ALTER SEQUENCE free INCREMENT 7": "pg_sequence",
    "ALTER TABLE city DISABLE TRIGGER ALL": "pg_trigger",
    "COMMENT ON TABLE plain IS 'x'": "the schema (pg_description)",
    "GRANT SELECT ON plain TO exact_role": "the schema (plain, pg_class",
    "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC": "pg_default_acl",
    "TRUNCATE tree": "the schema (tree, pg_class",
    "REFRESH MATERIALIZED VIEW cities": "the schema (",
    "DELETE FROM information_schema.sql_features": "the schema (sql_features)",
    "SELECT lo_create(1)": "the schema (pg_largeobject_metadata)",
    "SELECT lo_put(4711, 0, 'changed')": "the schema (pg_largeobject)",
    "ANALYZE analyzed": "ran VACUUM or ANALYZE on analyzed",
    "VACUUM plain": "ran VACUUM or ANALYZE on pg_toast_",
    "VACUUM pg_class": "ran VACUUM or ANALYZE on pg_class",
    "SELECT pg_stat_reset()": "reset the statistics",
    "SELECT pg_stat_reset_single_table_counters('plain'::regclass)": "reset the statistics",
    "SELECT pg_stat_reset_shared('bgwriter')": "outlived its server",
    "BEGIN; INSERT INTO fast DEFAULT VALUES; PREPARE TRANSACTION '{database}'": "prepared",
    "CREATE SUBSCRIPTION made CONNECTION 'port=1' PUBLICATION p WITH (connect = false)": (
        "left a replication slot or a subscription"
    ),
    "ALTER DATABASE {database} SET work_mem = '5MB'": "settings, privileges or the comment",
    "ALTER ROLE exact_role IN DATABASE {database} SET work_mem = '5MB'": "settings, privileges",
    "ALTER ROLE exact_role SET track_counts = off": "settings, privileges or the comment",
    "ALTER DATABASE {database} OWNER TO exact_role": "settings, privileges or the comment",
    "ALTER DATABASE {database} CONNECTION LIMIT 7": "settings, privileges or the comment",
    "GRANT CREATE ON DATABASE {database} TO exact_role": "settings, privileges or the comment",
    "COMMENT ON DATABASE {database} IS 'x'": "settings, privileges or the comment",
}
"""Statements after which a database is replaced, and part of the reason."""


@pytest.fixture(scope="module")
def databases(standing: Bench, background: BackgroundLoop) -> Iterator[Databases]:
    """The template, and what makes clones of it."""
    databases = Databases(standing, standing.ensure(standing.postgres), background)
    yield databases
    databases.close()
    standing.leave()


@pytest.fixture
def clone(databases: Databases) -> Iterator[Clone]:
    """A clone for one test."""
    with databases.clone() as clone:
        yield clone


@pytest.mark.parametrize("name", UNDONE)
def test_what_can_be_undone_is_undone(clone: Clone, name: str) -> None:
    """Nothing is left of it, and the database is used again: three times."""
    for _ in range(3):
        answers = clone.run([Operation(0, text) for text in UNDONE[name]])
        assert not any(answer[:5].isalnum() and answer[5:6] == ":" for answer in answers[:-1])

        clone.put_back()

    assert clone.differences(thorough=True) == []


def test_pg_dump_can_not_tell_a_database_that_was_put_back(clone: Clone) -> None:
    """Neither in the schema nor in rows, their order and the sequences."""
    for statements in UNDONE.values():
        clone.run([Operation(0, text) for text in statements])
        clone.put_back()

    assert clone.dump() == clone.databases.fresh_dump()


@pytest.mark.parametrize("statements", REPLACED)
def test_what_can_not_be_undone_replaces_the_database(clone: Clone, statements: str) -> None:
    """The reason names it, also if other things were done that can be undone."""
    clone.sql(PLAIN.format(n=3), "SELECT nextval('free')")
    # Each on its own, for those that can't be in a transaction.
    clone.sql(*statements.split("; "))
    try:
        with pytest.raises(NotPutBack) as caught:
            clone.put_back()
    finally:
        clone.databases.reset()

    assert REPLACED[statements] in str(caught.value)


def test_a_table_that_can_not_be_deleted_from_replaces_the_database(clone: Clone) -> None:
    """PostgreSQL refuses to delete what is published without an identity of its rows."""
    clone.sql("INSERT INTO spoken VALUES (2)")

    with pytest.raises(StatementRefused, match="does not have a replica identity"):
        clone.put_back()


def test_an_open_connection_replaces_the_database(clone: Clone) -> None:
    """What it does may not have been counted yet."""
    with clone.connect(), pytest.raises(NotPutBack, match="left a connection open"):
        clone.put_back()


def test_a_database_that_was_dropped_is_replaced(clone: Clone) -> None:
    """Another one with its name, such as an application makes itself, is no clone."""
    clone.databases.drop(clone.name)
    with clone.databases.connect("postgres") as connection:
        connection.execute(f"CREATE DATABASE {clone.name}")

    with pytest.raises(NotPutBack, match="dropped its database"):
        clone.put_back()


def test_a_database_that_changed_its_name_with_another_is_replaced(clone: Clone) -> None:
    """What is at the name is not the clone."""
    clone.sql("UPDATE country SET name = 'x'")
    with clone.databases.clone() as other, clone.databases.connect("postgres") as connection:
        for old, new in [
            (clone.name, "exact_x"),
            (other.name, clone.name),
            ("exact_x", other.name),
        ]:
            connection.execute(f"ALTER DATABASE {old} RENAME TO {new}")

        with pytest.raises(NotPutBack, match="renamed its database"):
            clone.put_back()


def test_later_rows_have_the_order_that_they_have_in_a_new_clone(databases: Databases) -> None:
    """PostgreSQL would put them in the places of dead rows, before earlier ones."""
    rows = "INSERT INTO fast (note) SELECT 'x' FROM generate_series(1, {n})"
    city = "INSERT INTO city (country) VALUES ('c1')"
    before = [rows.format(n=20), "UPDATE fast SET note = 'y'", city]
    after = [
        rows.format(n=60),
        "SELECT count(*) FROM fast",
        "UPDATE fast SET note = 'z' WHERE id % 3 = 0",
        rows.format(n=30),
        "SELECT count(*) FROM fast",
        rows.format(n=1),
        "SELECT id FROM fast",
        # The template has deleted one of its cities.
        city,
        "SELECT id FROM city",
    ]
    with databases.clone() as clone, databases.clone() as fresh:
        for _ in range(5):
            clone.sql(*before)
            clone.put_back()

        answers = [each.run([Operation(0, text) for text in after]) for each in (clone, fresh)]

    assert answers[0] == answers[1]


def test_a_crash_replaces_the_database(bench: Bench, background: BackgroundLoop) -> None:
    """The server discards its statistics, though its first process lives on."""
    databases = Databases(bench, bench.ensure(bench.postgres), background)
    with databases.clone() as clone:
        clone.sql("UPDATE country SET name = 'x'", "CHECKPOINT")
        killed = clone.connect()
        os.kill(killed.info.backend_pid, signal.SIGKILL)
        killed.close()
        until(databases.is_back, "the server is back")

        with pytest.raises(NotPutBack, match="outlived its server"):
            clone.put_back()
    databases.close()


def test_without_counters_nothing_is_put_back(databases: Databases, clone: Clone) -> None:
    """The template, too, may have them set off."""
    clone.sql("ALTER DATABASE {database} SET track_counts = off")

    baseline = databases.read_baseline(clone)

    assert baseline.refusal == "has track_counts set off"
    with pytest.raises(NotPutBack, match="track_counts"):
        clone.put_back(baseline)


@pytest.fixture
def newest(runtime: str, tmp_path: Path, background: BackgroundLoop) -> Iterator[Bench]:
    """A server of the newest version."""
    settings = Settings(postgres_version=18)
    spec = postgres.spec(settings, background)
    bench = Bench(runtime, tmp_path.resolve(), spec, redis.spec(settings))
    yield bench
    bench.end()


def test_with_triggers_for_logins_nothing_is_put_back(
    newest: Bench, background: BackgroundLoop
) -> None:
    """They would fire for the plugin, and write to the next test's database (PostgreSQL 17)."""
    trigger = (
        "CREATE FUNCTION greet() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';"
        "CREATE EVENT TRIGGER greet ON login EXECUTE FUNCTION greet()"
    )
    databases = Databases(newest, newest.ensure(newest.postgres), background, trigger)
    with databases.clone() as clone, pytest.raises(NotPutBack, match="event trigger for logins"):
        clone.put_back()
    databases.close()


def test_the_newest_version_puts_back(newest: Bench, background: BackgroundLoop) -> None:
    """Its VACUUM would go on to the tables that inherit."""
    databases = Databases(newest, newest.ensure(newest.postgres), background)
    with databases.clone() as clone:
        for statements in UNDONE.values():
            clone.run([Operation(0, text) for text in statements])
            clone.put_back()
            assert clone.differences() == []
    databases.close()


def test_the_baseline_is_the_same_in_each_clone(databases: Databases, clone: Clone) -> None:
    """So one is enough for all."""
    baseline: Baseline = databases.read_baseline(clone)

    assert baseline == databases.baseline
