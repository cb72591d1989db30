"""Databases that are made, or completed, without Alembic: schema, seed, custom layers.

One embedded PostgreSQL serves the whole file.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from typing import Any, Final

import pytest

from projects import Library
from pytest_warmstack.postgres.template.child.arguments import understood

REUSE: Final = "--reuse-containers"

TEST: Final = """
import json
from pathlib import Path
from sqlalchemy import text

async def test_rows(db_session):
    rows = await db_session.execute(text(Path("query.sql").read_text()))
    Path("rows.json").write_text(json.dumps([list(row) for row in rows]))
"""

MODELS: Final = """
from sqlalchemy import String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

class Base(DeclarativeBase):
    pass

class Country(Base):
    __tablename__ = "country"
    code: Mapped[str] = mapped_column(String(2), primary_key=True)
    name: Mapped[str]
"""

SEEDS: Final = """
from sqlalchemy import text
from sqlalchemy.orm import Session
from models import Country

def by_session(connection):
    with Session(connection) as session:
        session.add(Country(code="AT", name="Austria"))
        session.commit()

async def by_statement(connection):
    await connection.execute(text("INSERT INTO country VALUES ('BE', 'Belgium')"))
"""

TAKERS: Final = """
import asyncio
import asyncpg
import psycopg
import psycopg2
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.ext.asyncio import async_sessionmaker
from sqlalchemy.orm import Session, sessionmaker
from models import Country

INSERT = "INSERT INTO country VALUES ('{}', '')"

class Own(Session):
    pass

def session(db: Own):
    assert isinstance(db, Own)
    db.add(Country(code="01", name=""))

def committed(session):
    session.add(Country(code="02", name=""))
    session.commit()
    session.close()

async def async_session(db: "AsyncSession | None"):
    country = Country(code="03", name="")
    db.add(country)
    await db.commit()
    assert country.code == "03"

async def async_begun(session):
    async with session.begin():
        session.add(Country(code="04", name=""))

def engine(engine: Engine):
    with engine.begin() as connection:
        connection.execute(text(INSERT.format("05")))

async def async_engine(engine):
    async with engine.begin() as connection:
        await connection.execute(text(INSERT.format("06")))

def factory(factory: sessionmaker):
    with factory.begin() as session:
        session.add(Country(code="07", name=""))

async def async_factory(session_factory):
    async with session_factory() as session:
        country = Country(code="08", name="")
        session.add(country)
        await session.commit()
        assert country.code == "08"

def closed(connection):
    connection.execute(text(INSERT.format("09")))
    connection.commit()
    connection.close()

async def asyncpg_left_open(conn: asyncpg.Connection):
    await conn.execute("BEGIN")
    await conn.execute(INSERT.format("10"))

def psycopg_(conn: psycopg.Connection):
    conn.execute(INSERT.format("11"))

async def async_psycopg(conn: psycopg.AsyncConnection):
    await conn.execute(INSERT.format("12"))

def psycopg2_(conn: psycopg2.extensions.connection):
    conn.cursor().execute(INSERT.format("13"))

def url(db_url: str):
    with create_engine(db_url).begin() as connection:
        connection.execute(text(INSERT.format("14")))

async def async_url(url: str):
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.execute(text(INSERT.format("15")))
    await engine.dispose()

def own_loop(dsn):
    async def main():
        connection = await asyncpg.connect(dsn)
        await connection.execute(INSERT.format("16"))
        await connection.close()
    asyncio.run(main())

def several(session: Session, /, url, *, conn, number=17):
    session.add(Country(code=str(number), name=""))
    conn.execute(text(INSERT.format(number + 1)))
"""
"""Functions with each kind of parameter that is understood; each adds the row of its number."""

DUMP: Final = """\
--
-- PostgreSQL database dump
--

\\restrict 1DkGVrYx5iGSg

SET client_encoding = 'UTF8';
SELECT pg_catalog.set_config('search_path', '', false);

CREATE TABLE public.country (code character(2) NOT NULL, name text);

COPY public.country (code, name) FROM stdin;
CH\tSwitzerland
XX\t\\N
\\.

CREATE FUNCTION public.shout(text) RETURNS text LANGUAGE sql AS $$ SELECT upper($1); $$;

\\unrestrict 1DkGVrYx5iGSg
"""

LAYERS: Final = """
import asyncpg

class Search:
    name = "search"

    def fingerprint(self):
        return {mark!r}

    async def apply(self, url):
        connection = await asyncpg.connect(url)
        await connection.execute({statement!r})
        await connection.close()

def pytest_warmstack_template_layers(config):
    return [Search()]
"""


@pytest.fixture
def kept(kept_project: Library) -> Iterator[Library]:
    """The same with its files as they were, and a test that writes down what it finds."""
    kept_project.reset()
    kept_project.configure("pythonpath = .")
    kept_project.write("test_rows.py", TEST)
    kept_project.write("models.py", MODELS)
    kept_project.write("seeds.py", SEEDS)
    yield kept_project
    kept_project.quit()


@pytest.fixture
def bare(kept: Library) -> Library:
    """A project without Alembic."""
    (kept.folder / "alembic.ini").unlink()
    return kept


def rows(project: Library, query: str, header: str) -> list[Any]:
    """Return what *query* finds in a test's database; the template's line is like *header*."""
    project.write("query.sql", query)
    result = project.run(REUSE, "test_rows.py")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([f"warmstack: template of {header}"])
    found: list[Any] = json.loads((project.folder / "rows.json").read_text())
    return found


@pytest.mark.parametrize("name", ["models:Base.metadata", "models:Base"])
def test_models_can_be_the_schema(bare: Library, name: str) -> None:
    """Their tables are made, with rows by functions that get a connection of either kind."""
    bare.configure(
        f"warmstack_schema = {name}",
        "warmstack_seed =",
        "    seeds:by_session",
        "    seeds:by_statement",
    )

    found = rows(
        bare, "SELECT code FROM country ORDER BY 1", f"schema {name}, 2 seed scripts: *built in *"
    )

    assert found == [["AT"], ["BE"]]


def test_a_function_gets_what_it_takes(bare: Library) -> None:
    """What it opens nothing of is committed and closed after it, in whatever way it left it."""
    bare.write("takers.py", TAKERS)
    names = re.findall(r"^(?:async )?def (\w+)", TAKERS, re.MULTILINE)
    bare.configure(
        "warmstack_schema = models:Base.metadata",
        "warmstack_seed =",
        *(f"    takers:{name}" for name in names),
    )

    found = rows(bare, "SELECT code FROM country ORDER BY 1", f"*, {len(names)} seed scripts: *")

    # The last function has two.
    assert found == [[f"{number:02}"] for number in range(1, len(names) + 2)]


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("def init(client): pass", "its parameter (client) is not supported"),
        ("async def init(db: Session): pass", "its parameter (db: *) is not asynchronous, *"),
        ("def init(db: AsyncSession): pass", "it is not an async def, *"),
    ],
)
def test_a_function_that_takes_something_else_is_refused(
    bare: Library, function: str, words: str
) -> None:
    """The error lists what is understood."""
    bare.write(
        "takers.py",
        "from sqlalchemy.orm import Session\n"
        "from sqlalchemy.ext.asyncio import AsyncSession\n"
        f"{function}\n",
    )
    bare.configure("warmstack_schema = models:Base.metadata", "warmstack_seed = takers:init")

    result = bare.run(REUSE, "test_rows.py")

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [
            "*The seed function takers:init can't be called.",
            f"*Why: {words}",
            *(f"*{line}" for line in understood()),
        ]
    )


def test_a_changed_model_makes_another_schema(bare: Library) -> None:
    """Without Alembic the models are what the template is made of."""
    bare.configure("warmstack_schema = models:Base.metadata")
    columns = (
        "SELECT column_name FROM information_schema.columns WHERE table_name = 'country' ORDER BY 1"
    )
    before = rows(bare, columns, "schema *: * in *")

    bare.edit("models.py", "    name: Mapped[str]", "    name: Mapped[str]\n    iso: Mapped[int]")
    after = rows(bare, columns, "schema *: rebuilt in * (models:Base.metadata changed)")

    assert before == [["code"], ["name"]]
    assert after == [["code"], ["iso"], ["name"]]


@pytest.mark.parametrize("setting", ["schema", "seed"])
def test_only_the_tables_of_models_count(bare: Library, setting: str) -> None:
    """Not what their modules hold besides: a comment, a method, another import."""
    bare.configure(f"warmstack_{setting} = models:Base.metadata")
    bare.write("helpers.py", "ANSWER = 41\n")
    bare.edit("models.py", "class Country", "import helpers\n\n\nclass Country")
    rows(bare, "SELECT 1", f"{setting} models:Base.metadata: *")

    bare.edit("models.py", "import helpers", "import helpers  # a comment")
    bare.write("helpers.py", "ANSWER = 42\n")
    rows(bare, "SELECT 1", f"{setting} models:Base.metadata: found in *")
    bare.edit("models.py", "import helpers  # a comment\n", "")
    rows(bare, "SELECT 1", f"{setting} models:Base.metadata: found in *")
    bare.write("helpers.py", "ANSWER = 43\n")
    rows(bare, "SELECT 1", f"{setting} models:Base.metadata: found in *")


def test_what_a_listener_of_the_models_does_counts(bare: Library) -> None:
    """Its statements are a part of what makes the tables, with the values that they carry."""
    bare.configure("warmstack_schema = models:Base.metadata")
    bare.write("codes.txt", "AT")
    listener = """
        from pathlib import Path
        from sqlalchemy import event, insert

        @event.listens_for(Country.__table__, "after_create")
        def fill(table, connection, **_):
            code = (Path(__file__).parent / "codes.txt").read_text()
            connection.execute(insert(table).values(code=code, name="x"))
    """
    with (bare.folder / "models.py").open("a") as file:
        file.write(textwrap.dedent(listener))
    codes = "SELECT code FROM country"
    assert rows(bare, codes, "*: *built in *") == [["AT"]]

    bare.write("codes.txt", "BE")

    assert rows(bare, codes, "*: rebuilt in * (models:Base.metadata changed)") == [["BE"]]


def test_a_project_can_say_that_it_has_no_alembic(kept: Library) -> None:
    """Although there is an alembic.ini at its root: its tests make the tables themselves."""
    kept.configure("warmstack_alembic = none")

    found = rows(
        kept,
        "SELECT to_regclass('book')::text",
        "an empty database: *built in *",
    )

    assert found == [[None]]
    assert kept.executions() == 0


def test_what_pg_dump_wrote_can_be_the_schema(bare: Library) -> None:
    """With its rows, and the commands of psql that it puts around them."""
    bare.write("dump.sql", DUMP)
    bare.configure("warmstack_schema = dump.sql")

    found = rows(
        bare,
        "SELECT code, public.shout(name) FROM public.country ORDER BY 1",
        "schema dump.sql: *built in *",
    )

    assert found == [["CH", "SWITZERLAND"], ["XX", None]]


def test_a_dump_for_a_newer_server_names_the_setting_and_its_version(bare: Library) -> None:
    """And the pg_dump that wrote it, from the head of the file."""
    head = "--\n-- Dumped from database version 13.4\n-- Dumped by pg_dump version 99.2 (X)\n\n"
    bare.write("dump.sql", f"{head}SET lock_timeout = 0;\nSET hypothetical_timeout = 0;\n")
    bare.configure("warmstack_schema = dump.sql")
    bare.write("test_it.py", "def test_it(db_url): ...\n")

    result = bare.run("--reuse-containers", "test_it.py")

    result.assert_outcomes(errors=1)
    text = result.stdout.str()
    assert "PostgreSQL 99 and later know hypothetical_timeout; pg_dump 99.2 wrote the file" in text
    assert "WARMSTACK_POSTGRES_VERSION=99 for an embedded server" in text


def test_a_schema_comes_before_the_migrations(kept: Library) -> None:
    """A project that had tables before Alembic begins with them."""
    kept.write("schema.sql", "CREATE TABLE shelf (id integer PRIMARY KEY);")
    kept.edit(
        "migrations/versions/0003_index_titles.py",
        '    op.execute("CREATE',
        '    op.execute("ALTER TABLE book ADD shelf_id integer REFERENCES shelf")\n'
        '    op.execute("CREATE',
    )
    kept.configure("warmstack_schema = schema.sql")

    found = rows(
        kept, "SELECT count(shelf_id) FROM book", "schema schema.sql, 3 revisions: *built in *"
    )

    assert found == [[0]]


def test_tables_that_only_tests_know_can_be_a_seed(kept: Library) -> None:
    """Beside those of the migrations."""
    kept.configure("warmstack_seed = models:Base.metadata")

    found = rows(
        kept,
        "SELECT (SELECT count(*) FROM book), (SELECT count(*) FROM country)",
        "3 revisions, seed models:Base.metadata: * in *",
    )

    assert found == [[0, 0]]


def test_a_layer_of_the_projects_own_lies_between_migrations_and_seed(kept: Library) -> None:
    """It may be asynchronous; another fingerprint applies it anew, and no migration."""
    statement = "CREATE VIEW titles AS SELECT title FROM book"
    kept.write("conftest.py", LAYERS.format(mark="1", statement=statement))
    kept.write("seed.sql", "INSERT INTO author VALUES (1, (SELECT count(*)::text FROM titles));")
    kept.configure("warmstack_seed = seed.sql")
    query = "SELECT count(*) FROM titles, author"
    before = rows(kept, query, "3 revisions, search, seed seed.sql: * in *")
    ran = kept.executions()

    statement += " ORDER BY title"
    kept.write("conftest.py", LAYERS.format(mark="2", statement=statement))
    after = rows(
        kept,
        query,
        "3 revisions, search, seed seed.sql: extended by search, seed seed.sql from 3 revisions *",
    )

    assert before == after == [[0]]
    assert kept.executions() == ran


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("SELECT 1/0", "The template layer search failed.\nWhy: DivisionByZeroError: "),
        ("SELECT pg_sleep(60)", "The layer search did not finish within 2 seconds."),
    ],
)
def test_a_layer_of_the_projects_own_that_fails_leaves_nothing(
    kept: Library, statement: str, words: str
) -> None:
    """It has the same deadline as the migrations."""
    kept.write("conftest.py", LAYERS.format(mark=statement, statement=statement))

    result = kept.run(REUSE, "test_rows.py", WARMSTACK_MIGRATE_TIMEOUT="2")

    result.assert_outcomes(errors=1)
    assert words in str(result.stdout)
    assert kept.databases("b") == []
