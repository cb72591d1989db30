"""Clones that are put back after a test and used again, in whole runs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from projects import Library

REUSE = "--reuse-containers"

COUNTED = """
import sys
from pathlib import Path

import pytest

@pytest.fixture(autouse=True)
def copies(request):
    yield
    # Read late, so that the plugin imports its modules when it needs them.
    databases = sys.modules["pytest_warmstack.postgres.databases"].Databases
    if not hasattr(databases, "copied"):
        copy = databases.copy_statement
        databases.copied = Path("copies.log")

        def counted(self, source, name):
            with Path("copies.log").open("a") as log:
                log.write(f"{name}\\n")
            return copy(self, source, name)

        databases.copy_statement = counted
"""

BEGIN = """
from pathlib import Path

import asyncpg
import pytest
from sqlalchemy import text

OID = text("SELECT oid FROM pg_database WHERE datname = current_database()")

async def add(session, name="Ursula"):
    with Path("oids.log").open("a") as log:
        log.write(f"{await session.scalar(OID)}\\n")
    assert await session.scalar(text("SELECT count(*) FROM author")) == 0
    assert await session.scalar(text("SELECT sum(n_tup_ins) FROM pg_stat_user_tables")) == 0
    assert await session.scalar(text("SELECT to_regclass('left_behind')")) is None
    await session.execute(text("INSERT INTO author VALUES (1, :name)"), {"name": name})
    await session.commit()

"""

PLAIN = """
@pytest.mark.parametrize("number", range(200))
async def test_that_adds_an_author(db_session, number):
    await add(db_session, f"author {number}")
"""

DDL = """
@pytest.mark.parametrize("number", range(12))
async def test_that_makes_a_table(db_session, number):
    await add(db_session)
    if number == 6:
        await db_session.execute(text("CREATE TABLE left_behind (id int)"))
        await db_session.commit()
"""

LEAK = """
LEFT = []

@pytest.mark.parametrize("number", range(12))
async def test_that_leaves_a_connection(db_session, db_dsn, number):
    await add(db_session)
    if number == 6:
        LEFT.append(await asyncpg.connect(db_dsn, ssl=False))
        await LEFT[0].execute("INSERT INTO author VALUES (2, 'left')")
"""

ROLLED_BACK = """
@pytest.mark.parametrize("number", range(12))
async def test_that_rolls_back(db_session, number):
    await add(db_session)
    await db_session.execute(text("INSERT INTO author VALUES (2, 'undone')"))
    await db_session.rollback()
"""

AT_ADDRESS = """
import os

from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

engine = create_async_engine(os.environ["LIBRARY_URL"], connect_args={"ssl": False})

@pytest.mark.warmstack
@pytest.mark.parametrize("number", range(30))
async def test_that_adds_an_author(number):
    async with AsyncSession(engine) as session:
        await add(session)
"""

FRESH = """
@pytest.mark.parametrize("number", range(8))
async def test_with_any(db_session, number):
    await add(db_session)

@pytest.mark.parametrize("number", range(4))
@pytest.mark.warmstack_isolation("fresh-clone")
async def test_with_a_fresh_one(db_session, number):
    await add(db_session)
    mark = await db_session.scalar(text(
        "SELECT pg_stat_get_db_stat_reset_time(oid) FROM pg_database"
        " WHERE datname = current_database()"
    ))
    assert mark is None
"""


def oids(project: Library) -> Sequence[str]:
    """Return the databases of the tests of the last run, in order, and forget them."""
    lines = project.lines("oids.log")
    project.write("oids.log", "")
    return lines


def run(project: Library, tests: str, *arguments: str, passed: int) -> str:
    """Run *tests*, and return what the run says."""
    project.write("test_reused.py", BEGIN + tests)
    project.write("oids.log", "")
    result = project.run(REUSE, *arguments, "test_reused.py")
    result.assert_outcomes(passed=passed)
    return str(result.stdout)


@pytest.mark.parametrize("scope", ["function", "session"])
def test_two_hundred_plain_tests_make_ten_databases_or_fewer(kept: Library, scope: str) -> None:
    """Each test has an empty one; the same few are put back again and again."""
    kept.write("conftest.py", COUNTED)
    kept.write("copies.log", "")

    text = run(kept, PLAIN, "-o", f"asyncio_default_test_loop_scope={scope}", passed=200)

    assert len(oids(kept)) == 200
    # The first copies are made before the first test has ended.
    assert len(kept.lines("copies.log")) <= 8
    assert "replaced" not in text


def test_a_database_with_another_schema_is_replaced(kept: Library) -> None:
    """No test sees the table, and the run says how many databases were replaced."""
    text = run(kept, DDL, passed=12)

    assert "12 clones of" in text
    assert "(1 replaced)" in text


def test_a_database_with_an_open_connection_is_replaced(kept: Library) -> None:
    """The connection is reported as always."""
    text = run(kept, LEAK, passed=12)

    assert "test_that_leaves_a_connection[6]: it left a connection open" in text
    assert "(1 replaced)" in text


def test_what_was_rolled_back_needs_no_new_database(kept: Library) -> None:
    """Its rows are counted, and there are none to delete."""
    text = run(kept, ROLLED_BACK, passed=12)

    assert len(set(oids(kept))) <= 8
    assert "replaced" not in text


def test_databases_at_an_exported_address_are_put_back(kept: Library) -> None:
    """Under the name that the application has read, one after the other."""
    kept.configure("warmstack_env = LIBRARY_URL={db_url}")

    text = run(kept, AT_ADDRESS, passed=30)

    assert len(set(oids(kept))) <= 8
    assert "replaced" not in text


def test_a_fresh_clone_was_never_put_back(kept: Library) -> None:
    """By the marker for some tests, by the setting for all."""
    run(kept, FRESH, passed=12)
    used = oids(kept)
    assert len(set(used[-4:])) == 4
    assert not set(used[-4:]) & set(used[:-4])

    run(kept, FRESH, "-o", "warmstack_isolation=fresh-clone", passed=12)
    used = oids(kept)
    assert len(set(used)) == len(used) == 12


def test_clones_that_were_put_back_are_not_left_for_the_next_run(kept: Library) -> None:
    """The stock has new ones only."""
    run(kept, PLAIN, passed=200)
    used = set(oids(kept))

    ready = kept.sql("SELECT oid FROM pg_database WHERE datname LIKE 'warmstack\\_r\\_%'")

    assert ready
    assert not {str(row["oid"]) for row in ready} & used
