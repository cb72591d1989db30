"""Further databases for one test: `db_factory`."""

from __future__ import annotations

import pytest

from projects import Library, until

REUSE = "--reuse-containers"

BEGIN = """
import asyncio
import asyncpg
import pytest
from sqlalchemy import create_engine, text
from pytest_warmstack import Database, DatabaseFactory, WarmstackError

TABLES = "SELECT coalesce(string_agg(tablename, ' ' ORDER BY tablename), '') FROM pg_tables" \\
    " WHERE schemaname = 'public' AND tablename != 'alembic_version'"


async def value(dsn, query=TABLES):
    connection = await asyncpg.connect(dsn, ssl=False)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


def plain(dsn, query=TABLES):
    engine = create_engine(dsn.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        found = connection.scalar(text(query))
    engine.dispose()
    return found
"""

USES = """
async def test_another_clone(db_factory: DatabaseFactory, db_session, db_dsn):
    await db_session.execute(text("INSERT INTO author VALUES (1, 'Ursula')"))
    await db_session.commit()
    first, second = db_factory(), db_factory()
    assert isinstance(first, Database)
    assert len({db_dsn, first.dsn, second.dsn}) == 3
    assert first.url == first.dsn.replace("postgresql:", "postgresql+asyncpg:")
    assert first.dsn.endswith(first.name)
    assert "***" in repr(first)
    async with first.engine.begin() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM author")) == 0
        await connection.execute(text("INSERT INTO author VALUES (2, 'Octavia')"))
    assert first.engine is first.engine
    assert await value(first.dsn, "SELECT count(*) FROM author") == 1
    assert await value(second.dsn, "SELECT count(*) FROM author") == 0
    assert await value(db_dsn, "SELECT count(*) FROM author WHERE id = 2") == 0


async def test_an_empty_one(db_factory):
    empty = db_factory.empty()
    assert await value(empty.dsn, "SELECT current_database()") == empty.name
    assert await value(empty.dsn) == ""
    async with empty.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE mine (id int)"))
    assert await value(empty.dsn) == "mine"
    assert await value(db_factory.empty().dsn) == ""


def test_without_a_loop(db_factory):
    assert plain(db_factory().dsn) == "author book"
    assert plain(db_factory.empty().dsn) == ""
    database = db_factory()

    async def count():
        async with database.engine.connect() as connection:
            return await connection.scalar(text("SELECT count(*) FROM book"))

    assert asyncio.run(count()) == 0


@pytest.mark.warmstack_isolation("rollback")
@pytest.mark.parametrize("number", range(2))
async def test_beside_a_rollback(db_session, db_factory, number):
    database = db_factory()
    async with database.engine.begin() as connection:
        await connection.execute(text("INSERT INTO author VALUES (1, 'Ursula')"))
    assert await db_session.scalar(text("SELECT count(*) FROM author")) == 0


@pytest.mark.warmstack_isolation("class")
class TestClass:
    @pytest.fixture(scope="class")
    @classmethod
    def second(cls, db_factory):
        return db_factory()

    @pytest.mark.parametrize("number", range(2))
    async def test_it_has_the_scope_of_the_isolation(self, second, number):
        assert await value(second.dsn, "SELECT count(*) FROM author") == number
        async with second.engine.begin() as connection:
            await connection.execute(text(f"INSERT INTO author VALUES ({number}, 'U')"))
"""

ENV = """
import os

from alembic import context
from sqlalchemy import create_engine, text

config = context.config
url = config.get_main_option("sqlalchemy.url").replace("+asyncpg", "+psycopg")
with create_engine(url).begin() as connection:
    context.configure(connection=connection)
    context.run_migrations()
    for word in context.get_x_argument():
        connection.execute(text(f"CREATE TABLE {word.replace('=', '_')} (id int)"))
"""

MULTIDB_ENV = """
from alembic import context
from sqlalchemy import engine_from_config, pool

config = context.config
for name in config.get_main_option("databases").replace(" ", "").split(","):
    engine = engine_from_config(
        config.get_section(name), prefix="sqlalchemy.", poolclass=pool.NullPool
    )
    with engine.connect() as connection:
        context.configure(connection=connection, upgrade_token=f"{name}_upgrades")
        with context.begin_transaction():
            context.run_migrations(engine_name=name)
"""

MULTIDB_INI = """
[alembic]
script_location = %(here)s/multidb
path_separator = os
databases = main, analytics

[main]
sqlalchemy.url = postgresql+psycopg://shop:shop@localhost/shop

[analytics]
sqlalchemy.url = driver://shop:shop@localhost/analytics
"""


def write_history(project: Library, folder: str, table: str, env: str = ENV) -> None:
    """Write a script location in *folder* whose one revision makes *table*."""
    project.write(f"{folder}/env.py", env)
    project.write(
        f"{folder}/versions/one.py",
        "from alembic import op\nrevision = 'one'\ndown_revision = None\n\n\n"
        f"def upgrade(engine_name=''):\n    op.execute(f'CREATE TABLE {table} (id int)')\n",
    )


@pytest.fixture
def several(kept: Library) -> Library:
    """A project with a second configuration, `analytics`, and a second section in the first."""
    write_history(kept, "analytics/migrations", "events")
    write_history(kept, "reports", "reports")
    ini = "[alembic]\nscript_location = %(here)s/migrations\npath_separator = os\n"
    kept.write("analytics/alembic.ini", ini)
    with (kept.folder / "alembic.ini").open("a") as file:
        file.write("[reports]\nscript_location = %(here)s/reports\npath_separator = os\n")
    return kept


def test_each_call_gives_another_database(kept: Library) -> None:
    """In a `def` and an `async def`, beside every isolation; nothing is left afterwards."""
    kept.write("test_uses.py", BEGIN + USES)

    for _ in range(2):
        result = kept.run(REUSE, "-W", "error", "test_uses.py")

        result.assert_outcomes(passed=7)
        result.stdout.no_fnmatch_line("*it left*")
        result.stdout.no_fnmatch_line("*the databases are empty*")
        until(lambda: not kept.databases("u"), "all used clones are dropped", seconds=15)


def test_another_configuration_is_named_by_a_file_or_a_folder(several: Library) -> None:
    """Only its migrations are applied; the schema and the seed are for the tests' own database."""
    several.write("seed.sql", "INSERT INTO author VALUES (1, 'Ursula')")
    several.configure("warmstack_seed = seed.sql")
    several.write(
        "test_other.py",
        BEGIN
        + """
from pathlib import Path

@pytest.mark.parametrize("alembic", ["analytics", "analytics/alembic.ini", Path("analytics")])
async def test_other(db_factory, db_dsn, alembic):
    assert await value(db_factory(alembic=alembic).dsn) == "events"
    assert await value(db_dsn, "SELECT count(*) FROM author") == 1
    assert await value(db_factory().dsn, "SELECT count(*) FROM author") == 1

async def test_of_a_section(db_factory):
    assert await value(db_factory(section="reports").dsn) == "reports"

async def test_with_arguments(db_factory):
    database = db_factory(alembic="analytics", x=["tenant=one", "tenant=two"])
    assert await value(database.dsn) == "events tenant_one tenant_two"
    assert await value(db_factory(alembic="analytics", x=["a=b"]).dsn) == "a_b events"
""",
    )

    several.run(REUSE, "test_other.py").assert_outcomes(passed=5)
    several.run(REUSE, "-n2", "test_other.py").assert_outcomes(passed=5)


def test_the_databases_of_multidb_are_sections(kept: Library) -> None:
    """Alembic's own template: the setting chooses the database of `db_url`, a call another."""
    kept.write("alembic.ini", MULTIDB_INI)
    write_history(kept, "multidb", "of_{engine_name}", MULTIDB_ENV)
    kept.write(
        "test_multidb.py",
        BEGIN
        + """
async def test_both(db_factory, db_dsn):
    assert await value(db_dsn) == "of_main"
    assert await value(db_factory(section="analytics").dsn) == "of_analytics"
    assert await value(db_factory(section="main").dsn) == "of_main"
""",
    )

    refused = kept.run(REUSE, "test_multidb.py")
    refused.assert_outcomes(errors=1)
    refused.stdout.fnmatch_lines(
        ["*warmstack_alembic_section = main", '*db_factory(section="analytics")']
    )
    kept.configure("warmstack_alembic_section = main")
    kept.run(REUSE, "test_multidb.py").assert_outcomes(passed=1)


def test_what_can_not_be_made_raises_for_the_call(several: Library) -> None:
    """The test may go on, and other tests are not affected."""
    write_history(several, "broken", "good AS SELECT 1/0 --")
    with (several.folder / "alembic.ini").open("a") as file:
        file.write("[broken]\nscript_location = %(here)s/broken\npath_separator = os\n")
    several.write(
        "test_bad.py",
        BEGIN
        + """
@pytest.mark.parametrize(("arguments", "words"), [
    ({"alembic": "nowhere/alembic.ini"}, "nowhere/alembic.ini does not exist"),
    ({"alembic": "versions"}, "does not exist"),
    ({"section": "missing"}, "has no section .missing., but "),
    ({"section": "broken"}, "division by zero"),
])
async def test_bad(db_factory, arguments, words):
    with pytest.raises(WarmstackError, match=words):
        db_factory(**arguments)
    assert await value(db_factory().dsn) == "author book"

def test_shown(db_factory):
    db_factory(alembic="nowhere")
""",
    )

    result = several.run(REUSE, "test_bad.py")

    result.assert_outcomes(passed=4, failed=1)
    result.stdout.fnmatch_lines(
        [">*db_factory(alembic=*", "E*The Alembic configuration * does not exist.", "test_bad.py:*"]
    )
    result.stdout.no_fnmatch_line("*factory.py*")


def test_leaks_are_reported_and_failures_saved_as_for_the_tests_own(kept: Library) -> None:
    """Each database of a failed test can be opened by the name that the run shows."""
    kept.write(
        "test_failing.py",
        BEGIN
        + """
LEFT = []

@pytest.mark.asyncio(loop_scope="session")
async def test_that_leaks(db_factory):
    LEFT.append(await asyncpg.connect(db_factory.empty().dsn, ssl=False))

async def test_that_fails(db_factory, db_session):
    async with db_factory().engine.begin() as connection:
        await connection.execute(text("INSERT INTO author VALUES (1, 'Ursula')"))
    async with db_factory.empty().engine.begin() as connection:
        await connection.execute(text("CREATE TABLE mine (id int)"))
    assert 0
""",
    )

    result = kept.run(REUSE, "-p", "no:unraisableexception", "test_failing.py")

    result.assert_outcomes(passed=1, failed=1)
    test = "test_failing.py::test_that_fails"
    result.stdout.fnmatch_lines(
        ["warmstack: test_failing.py::test_that_leaks (db_factory 1): it left a connection*"]
    )
    saved = dict(
        line.removeprefix("warmstack: ").split(": its database is saved: warmstack psql ")
        for line in result.outlines
        if "its database is saved" in line
    )
    assert saved.keys() == {test, f"{test} (db_factory 1)", f"{test} (db_factory 2)"}
    by_number = {name.rpartition("_")[2]: name for name in kept.databases("k")}
    first, second = (by_number[saved[f"{test} (db_factory {number})"]] for number in (1, 2))
    assert kept.sql("SELECT name FROM author", database=first)[0][0] == "Ursula"
    assert kept.sql("SELECT count(*) FROM mine", database=second)[0][0] == 0
