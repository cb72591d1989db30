"""What asyncpg finds out about types is shared between tests, and always what the database says."""

from __future__ import annotations

from typing import Final

import pytest

from projects import Library

REUSE: Final = "--reuse-containers"

SCHEMA: Final = """
CREATE TYPE mood AS ENUM ('glad', 'sad');
CREATE DOMAIN title AS text CHECK (value <> '');
CREATE TYPE place AS (street text, number int);
CREATE TABLE note (id serial PRIMARY KEY, mood mood, moods mood[], title title, titles title[],
    place place);
INSERT INTO note (mood, moods, title, titles, place)
    VALUES ('glad', '{glad,sad}', 'a', '{b}', '(c,1)');
"""

CONFTEST: Final = """
from asyncpg.connection import Connection

ASKED = []
original = Connection._introspect_types

async def introspect(self, oids, timeout):
    ASKED.append(sorted(oids))
    return await original(self, oids, timeout)

Connection._introspect_types = introspect

def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"asked: {len(ASKED)}")
"""

SUITE: Final = """
import pytest
from sqlalchemy import text

async def value(engine, query):
    async with engine.connect() as connection:
        return await connection.scalar(text(query))

async def raw(engine):
    async with engine.connect() as connection:
        return (await connection.get_raw_connection()).driver_connection

@pytest.mark.parametrize("number", range(5))
async def test_plain_use(db_engine, number):
    assert await value(db_engine, "SELECT moods FROM note") == ["glad", "sad"]
    assert await value(db_engine, "SELECT mood FROM note") == "glad"
    assert await value(db_engine, "SELECT titles FROM note") == ["b"]
"""

CHANGES: Final = """
async def test_a_renamed_type(db_engine):
    driver = await raw(db_engine)
    await driver.execute("CREATE SCHEMA s; ALTER TYPE mood RENAME TO humour;"
        " ALTER TYPE humour SET SCHEMA s")
    statement = await driver.prepare("SELECT mood FROM note")
    (attribute,) = statement.get_attributes()
    assert (attribute.type.schema, attribute.type.name) == ("s", "humour")

async def test_another_type_of_the_same_name(db_engine):
    driver = await raw(db_engine)
    await driver.execute("DROP TABLE note; DROP TYPE mood; CREATE TYPE mood AS (a int, b int);"
        " CREATE TABLE note (mood mood, moods mood[]);"
        " INSERT INTO note VALUES ((1, 2), '{\\"(3,4)\\"}')")
    assert await driver.fetchval("SELECT mood FROM note") == (1, 2)
    assert await driver.fetchval("SELECT moods FROM note") == [(3, 4)]

async def test_a_type_of_its_own(db_engine):
    driver = await raw(db_engine)
    await driver.execute("CREATE TYPE own AS ENUM ('x'); CREATE TABLE owned (own own[]);"
        " INSERT INTO owned VALUES ('{x}')")
    assert await driver.fetchval("SELECT own FROM owned") == ["x"]

@pytest.mark.parametrize("number", range(2))
async def test_a_composite_that_grows(db_engine, number):
    driver = await raw(db_engine)
    assert await driver.fetchval("SELECT place FROM note") == ("c", 1)
    await driver.execute("ALTER TYPE place ADD ATTRIBUTE town text")
    await driver.reload_schema_state()
    assert await driver.fetchval("SELECT place FROM note") == ("c", 1, None)

async def test_a_codec_of_its_own(db_engine):
    driver = await raw(db_engine)
    await driver.set_type_codec("mood", encoder=str.lower, decoder=str.upper)
    assert await driver.fetchval("SELECT mood FROM note") == "GLAD"
    assert await driver.fetchval("SELECT moods FROM note") == ["GLAD", "SAD"]

async def test_after_all(db_engine):
    assert await value(db_engine, "SELECT moods FROM note") == ["glad", "sad"]
"""


@pytest.fixture
def project(kept: Library) -> Library:
    """A project whose tables have types of their own."""
    kept.write("schema.sql", SCHEMA)
    kept.write("conftest.py", CONFTEST)
    kept.configure("warmstack_schema = schema.sql", "warmstack_alembic = none")
    return kept


def test_types_are_looked_up_once_for_all_tests(project: Library) -> None:
    """Five tests, each with a loop and connections of its own, ask once for each statement."""
    project.write("test_types.py", SUITE)

    result = project.run(REUSE, "test_types.py")

    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines(["asked: 2"])


def test_a_test_that_changes_types_gets_what_it_made(project: Library) -> None:
    """Renamed, replaced, new, or with more attributes; the next test has those of the template."""
    project.write("test_types.py", SUITE + CHANGES)

    result = project.run(REUSE, "test_types.py")

    result.assert_outcomes(passed=12)
