"""Bad input: each kind causes one error that says what failed, why, and what to do.

One embedded PostgreSQL serves the whole file. The text always contains the messages of Alembic, of
PostgreSQL or of the project's own code, and no incomplete database is left.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import pytest

from projects import Library
from pytest_warmstack.options import RuntimeName

REUSE: Final = "--reuse-containers"
SECONDS: Final = 20
"""Within this time a run has to end, however its migrations hang."""

TITLES: Final = ("Why:", "Looked at:", "What to do:")

ENV: Final = "migrations/env.py"
FIRST: Final = "migrations/versions/0001_create_authors.py"
LAST: Final = "migrations/versions/0003_index_titles.py"

CALL: Final = "asyncio.run(connect_and_upgrade())"
"""The line of env.py that does it all."""

CREATE_AUTHOR: Final = (
    'op.execute("CREATE TABLE author (id integer PRIMARY KEY, name text NOT NULL)")'
)
CREATE_INDEX: Final = 'op.execute("CREATE INDEX book_title ON book (title)")'
"""What the first and the last revision do."""

URL: Final = 'config.get_main_option("sqlalchemy.url").replace("+asyncpg", "")'
"""The template's address, in env.py, as drivers take it."""

HELLO: Final = "the library opens"
"""What env.py prints."""

TEST: Final = """
async def test_the_database_is_at_the_head(db_session):
    from sqlalchemy import text

    version = await db_session.scalar(text("SELECT version_num FROM alembic_version"))
    assert version == "0003"
"""


@pytest.fixture(scope="module")
def kept_project(embedded_programs: None, library_in: Callable[..., Library]) -> Iterator[Library]:
    """A project with a kept PostgreSQL for all tests of this file."""
    library = library_in(RuntimeName.EMBEDDED)
    prepare(library)
    succeed(library)
    yield library
    library.end()


@pytest.fixture
def kept(kept_project: Library) -> Iterator[Library]:
    """The same with its files as they were."""
    prepare(kept_project)
    yield kept_project
    kept_project.quit()


def prepare(project: Library) -> None:
    """Bring the project back to what works: one test of the database, an env.py that prints."""
    project.reset()
    project.write("test_head.py", TEST)
    project.edit(ENV, "config = context.config\n", f"config = context.config\nprint({HELLO!r})\n")


def succeed(project: Library) -> None:
    """See that the project's test passes, and that nothing half-built is left."""
    project.run(REUSE, "test_head.py").assert_outcomes(passed=1)
    assert project.databases("b") == []
    assert project.databases("u") == []


def refused(project: Library, *words: str, printed: str = HELLO, **variables: str) -> str:
    """Return the text with which the set-up of the project's test fails, once *words* are in it.

    It has four parts, in order, and what the project's code *printed* is among what was looked
    at. The run ends soon, with one error, and nothing half-built is left.
    """
    result = project.run(REUSE, "test_head.py", **variables)
    result.assert_outcomes(errors=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert result.duration < SECONDS
    assert project.databases("b") == []
    assert project.databases("u") == []
    text = told(result)
    what, *parts = split(text)
    assert what.endswith(".")
    assert printed in parts[TITLES.index("Looked at:")]
    for each in words:
        assert each in text
    return text


def told(result: pytest.RunResult) -> str:
    """Return what pytest shows of the one error, from the line after its heading."""
    (begin,) = (
        number + 1 for number, line in enumerate(result.outlines) if "ERROR at setup of" in line
    )
    (end,) = (
        number
        for number, line in enumerate(result.outlines)
        if line.startswith("warmstack: set-up:")
    )
    return "\n".join(result.outlines[begin:end])


def split(text: str) -> list[str]:
    """Return the four parts of an error's text; fail when one is missing, or stands elsewhere."""
    if "\nLooked at:" not in text:  # Where it would only repeat the headline.
        text = text.replace("\nWhat to do:", "\nLooked at: nothing\nWhat to do:")
    parts = [text]
    for title in TITLES:
        before, found, after = parts.pop().partition(f"\n{title}")
        assert found, f"{title} is missing, or not in its place"
        parts += [before, after]
    for part in parts:
        assert part.strip()
        assert not any(line.startswith(TITLES) for line in part.splitlines())
    return parts


def line_of(project: Library, name: str, text: str) -> str:
    """Return the words for the one line of a file that holds *text*."""
    (number,) = (number for number, line in enumerate(project.lines(name), start=1) if text in line)
    return f"{name.rpartition('/')[2]}, line {number}"


@contextmanager
def untouched() -> Iterator[int]:
    """Yield a port where somebody else's server listens, and see that nobody knocks there."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.accept()


# Revisions


def test_a_revision_that_raises_is_named_with_its_own_words(kept: Library) -> None:
    """The text has the revision's id, file and line, and the exception as it was raised."""
    kept.edit(LAST, CREATE_INDEX, 'raise RuntimeError("no shelf is left")')

    text = refused(kept, "RuntimeError: no shelf is left", "revision 0003")

    assert line_of(kept, LAST, "raise") in text


def test_two_revisions_with_one_id_are_an_error(kept: Library) -> None:
    """Alembic only warns, and runs one of the two; nobody wants the half of a schema."""
    kept.write("migrations/versions/0003_again.py", (kept.folder / LAST).read_text())

    refused(kept, "Revision 0003 is present more than once", printed="")


def test_a_down_revision_that_is_not_there_is_named(kept: Library) -> None:
    """Alembic's error is a bare key; what it says before that is in the text."""
    kept.edit(LAST, 'down_revision = "0002"', 'down_revision = "0007"')

    refused(kept, "Revision 0007 referenced from 0007 -> 0003", "is not present", printed="")


def test_a_first_revision_that_needs_tables_of_somebody_else_is_told_how(kept: Library) -> None:
    """PostgreSQL's words, and the option that brings such tables."""
    kept.edit(FIRST, CREATE_AUTHOR, 'op.add_column("member", sa.Column("name", sa.Text()))')
    kept.edit(FIRST, "from alembic import op", "import sqlalchemy as sa\nfrom alembic import op")

    text = refused(kept, 'relation "member" does not exist', "revision 0001")

    assert "warmstack_schema" in split(text)[-1]


def test_an_extension_that_the_server_has_not_got_is_told_with_a_way_to_another_server(
    kept: Library,
) -> None:
    """PostgreSQL's words, and where another image or other binaries are chosen."""
    kept.edit(LAST, CREATE_INDEX, 'op.execute("CREATE EXTENSION postgis")')

    text = refused(kept, 'extension "postgis" is not available', "revision 0003")

    todo = split(text)[-1]
    assert "in Docker, with an image that has it" in todo
    assert "WARMSTACK_POSTGRES_IMAGE" in todo


# Alembic's configuration


def test_a_configuration_that_is_not_there_is_named_with_who_asked_for_it(kept: Library) -> None:
    """The text has the whole path, and the option with its place."""
    kept.configure("warmstack_alembic = conf/alembic.ini")

    refused(
        kept, str(kept.folder / "conf/alembic.ini"), "warmstack_alembic", "pytest.ini", printed=""
    )


def test_a_script_location_that_is_not_there_is_named(kept: Library) -> None:
    """The text has Alembic's words, and the whole path of the file that names it."""
    kept.edit("alembic.ini", "script_location = migrations", "script_location = scripts")

    refused(kept, "Path doesn't exist", "scripts", str(kept.folder / "alembic.ini"), printed="")


# env.py


def test_an_env_py_that_is_no_python_is_named_with_its_line(kept: Library) -> None:
    """The text names file and line of the slip."""
    kept.edit(ENV, CALL, "def broken(:")

    text = refused(kept, "SyntaxError", printed="")

    assert line_of(kept, ENV, "def broken(:") in text


def test_an_env_py_that_does_nothing_is_an_error(kept: Library) -> None:
    """However well it ends: the text has what the database holds, and what it should."""
    kept.edit(ENV, CALL, "pass")

    refused(kept, "alembic_version holds nothing, the heads are 0003")


def test_an_env_py_that_exits_is_an_error(kept: Library) -> None:
    """It says that all is well, and has not run a revision; the text has the line."""
    kept.edit(ENV, CALL, "import sys; sys.exit(0)")

    text = refused(kept, "SystemExit: 0")

    assert line_of(kept, ENV, "sys.exit(0)") in text


@pytest.mark.parametrize(
    "lines",
    [
        "engine = create_async_engine(config.get_main_option('sqlalchemy.url'))\n"
        "loop = asyncio.new_event_loop()\n"
        "connection = loop.run_until_complete(engine.connect())\n"
        "loop.run_until_complete(connection.run_sync(upgrade))\n",
        f"{CALL}\n"
        "loop = asyncio.new_event_loop()\n"
        f"connection = loop.run_until_complete(asyncpg.connect({URL}))\n"
        "loop.run_until_complete(connection.execute('BEGIN; LOCK TABLE author'))\n",
    ],
    ids=["an engine that is not disposed", "a transaction that does not end"],
)
def test_an_env_py_that_leaves_a_connection_open_builds_all_the_same(
    kept: Library, lines: str
) -> None:
    """The connection ends with the process, and the template is sealed."""
    kept.edit(ENV, CALL, lines)
    kept.edit(
        ENV,
        "from sqlalchemy.ext.asyncio import async_engine_from_config",
        "import asyncpg\n"
        "from sqlalchemy.ext.asyncio import async_engine_from_config, create_async_engine",
    )

    succeed(kept)


# Migrations that never end

DEADLINE: Final = "3"


def test_an_env_py_that_never_ends_is_told_with_the_line_that_it_was_at(kept: Library) -> None:
    """The text has the number of seconds, who may change it, and the line of the loop."""
    kept.edit(ENV, CALL, "while True: pass")

    text = refused(
        kept,
        f"within {DEADLINE} seconds",
        "WARMSTACK_MIGRATE_TIMEOUT",
        WARMSTACK_MIGRATE_TIMEOUT=DEADLINE,
    )

    assert line_of(kept, ENV, "while True") in text


def test_a_statement_that_never_ends_is_told_with_its_revision(kept: Library) -> None:
    """The text has what PostgreSQL was asked to do, and which revision asked."""
    kept.edit(LAST, CREATE_INDEX, 'op.execute("SELECT pg_sleep(1000)")')

    refused(
        kept,
        f"within {DEADLINE} seconds",
        "in revision 0003 (0003_index_titles.py)",
        "SELECT pg_sleep(1000)",
        WARMSTACK_MIGRATE_TIMEOUT=DEADLINE,
    )


def test_a_statement_that_waits_for_a_lock_is_told_as_one_that_waits(kept: Library) -> None:
    """env.py itself holds the lock, on another connection; the text says what it waits for."""
    kept.edit(LAST, CREATE_INDEX, 'op.execute("SELECT pg_advisory_xact_lock(7)")')
    kept.edit(
        ENV,
        "    async with engine.connect() as connection:\n",
        "    holder = await engine.connect()\n"
        "    await holder.exec_driver_sql('SELECT pg_advisory_xact_lock(7)')\n"
        "    async with engine.connect() as connection:\n",
    )

    refused(
        kept,
        f"within {DEADLINE} seconds",
        "in revision 0003 (0003_index_titles.py)",
        "(waits for Lock: advisory), blocked by [",
        "]: SELECT pg_advisory_xact_lock(7)",
        WARMSTACK_MIGRATE_TIMEOUT=DEADLINE,
    )


# Migrations that connect elsewhere


@pytest.mark.parametrize(
    "lines",
    [
        "from sqlalchemy.ext.asyncio import create_async_engine\n"
        "async def elsewhere():\n"
        "    engine = create_async_engine(f'postgresql+asyncpg://{ADDRESS}')\n"
        "    async with engine.connect() as connection:\n"
        "        await connection.run_sync(upgrade)\n"
        "asyncio.run(elsewhere())",
        "import asyncpg\nasyncio.run(asyncpg.connect(f'postgresql://{ADDRESS}'))",
    ],
    ids=["an engine", "asyncpg alone"],
)
def test_an_env_py_with_an_address_of_its_own_is_stopped_before_it_connects(
    kept: Library, lines: str
) -> None:
    """The text has the address, and three ways to wire the template's, each with its line."""
    with untouched() as port:
        address = f"librarian:secret@127.0.0.1:{port}/orders"
        kept.edit(ENV, CALL, f"ADDRESS = {address!r}\n{lines}")

        text = refused(
            kept,
            f"127.0.0.1:{port}/orders; the connection was blocked.",
            WARMSTACK_MIGRATE_TIMEOUT="10",
        )

    todo = split(text)[-1]
    assert 'url = config.get_main_option("sqlalchemy.url")' in todo
    assert 'url = config.attributes.get("url") or YOUR_OWN_URL' in todo
    assert "warmstack_env = DATABASE_URL={db_url}" in todo
    assert "secret" not in text


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_driver_alone_does_not_get_to_another_database_of_the_same_server(
    kept: Library, driver: str
) -> None:
    """A connection past SQLAlchemy, in a library written in C, is stopped as well."""
    kept.edit(
        ENV,
        CALL,
        f"import {driver}\n"
        f"connection = {driver}.connect({URL}, dbname='postgres')\n"
        "connection.cursor().execute('CREATE TABLE IF NOT EXISTS stray (id integer)')\n"
        "connection.commit()\n"
        "connection.close()\n"
        f"{CALL}",
    )

    text = refused(kept, "postgres; the connection was blocked.")

    assert "warmstack_env = DATABASE_URL={db_url}" in split(text)[-1]
    assert kept.sql("SELECT to_regclass('stray') IS NULL")[0][0]


@pytest.mark.parametrize(
    "line",
    [
        "import redis; redis.Redis(host='127.0.0.1', port={port}).ping()",
        "import socket; socket.create_connection(('127.0.0.1', {port})).recv(1)",
    ],
    ids=["redis", "a socket"],
)
def test_a_revision_that_connects_to_any_other_server_is_stopped(kept: Library, line: str) -> None:
    """No PostgreSQL needs to be meant: the text has the address, and nothing arrives there."""
    with untouched() as port:
        kept.edit(LAST, CREATE_INDEX, line.format(port=port))

        text = refused(kept, f"127.0.0.1:{port}", WARMSTACK_MIGRATE_TIMEOUT="10")

    assert line_of(kept, LAST, f"{port}") in text


# Seeds


def test_a_seed_of_sql_that_fails_is_told_with_file_and_line(kept: Library) -> None:
    """PostgreSQL's words, and where in the file the statement begins."""
    kept.write(
        "seed.sql",
        "INSERT INTO author VALUES (1, 'Ada');\n\n"
        "-- Nobody has made that table; this is a comment.\n"
        "INSERT INTO writer VALUES (2, 'Grace');\n",
    )
    kept.configure("warmstack_seed = seed.sql")

    text = refused(kept, 'relation "writer" does not exist', printed="")

    assert line_of(kept, "seed.sql", "INSERT INTO writer") in text


def test_a_seed_function_that_raises_is_told_with_file_and_line(kept: Library) -> None:
    """The exception in its own words, and what the function printed before."""
    kept.write(
        "seeds.py",
        "def fill(*_, **__):\n"
        "    print('the shelves are filled')\n"
        "    raise ValueError('no author is born yet')\n",
    )
    kept.configure("pythonpath = .", "warmstack_seed = seeds:fill")

    text = refused(
        kept, "ValueError: no author is born yet", "seeds:fill", printed="the shelves are filled"
    )

    assert line_of(kept, "seeds.py", "raise") in text


def test_a_seed_module_that_raises_is_told_with_file_and_line(kept: Library) -> None:
    """The same when it fails while it is imported."""
    kept.write("seeds.py", "import catalogue\n\n\ndef fill(*_, **__):\n    pass\n")
    kept.configure("pythonpath = .", "warmstack_seed = seeds:fill")

    text = refused(kept, "No module named 'catalogue'", "seeds:fill", printed="")

    assert line_of(kept, "seeds.py", "import catalogue") in text


@pytest.mark.parametrize(
    ("seed", "words"),
    [
        ("nowhere:fill", "No module named 'nowhere'"),
        ("seeds:empty", "empty"),
    ],
    ids=["no such module", "no such attribute"],
)
def test_a_seed_that_is_not_there_is_named_with_who_asked_for_it(
    kept: Library, seed: str, words: str
) -> None:
    """The text has the line as it stands in the configuration, and the option with its place."""
    kept.write("seeds.py", "def fill(*_, **__):\n    pass\n")
    kept.configure("pythonpath = .", f"warmstack_seed = {seed}")

    refused(kept, seed, words, "warmstack_seed", "pytest.ini", printed="")


# Schemas without migrations


@pytest.mark.parametrize("option", ["warmstack_schema", "warmstack_seed"])
def test_a_missing_file_of_the_schema_or_seed_stops_the_run_at_its_start(
    kept: Library, option: str
) -> None:
    """Before a server is started; the text has the path, and the option with its place."""
    kept.configure(f"{option} = missing.sql")

    result = kept.run(REUSE, "test_head.py")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "PostgreSQL" not in result.stdout.str()
    error = result.stderr.str()
    assert len(split(error)) == 1 + len(TITLES)
    for words in (str(kept.folder / "missing.sql"), option, "pytest.ini"):
        assert words in error


def test_a_schema_of_sql_that_fails_is_told_with_file_and_line(kept: Library) -> None:
    """PostgreSQL's words, and where in the file the statement begins."""
    kept.write("schema.sql", "CREATE TABLE member (id integer);\n\nCREATE TABEL loan ();\n")
    kept.configure("warmstack_schema = schema.sql")

    text = refused(kept, 'syntax error at or near "TABEL"', printed="")

    assert line_of(kept, "schema.sql", "TABEL") in text


def test_a_schema_that_is_neither_metadata_nor_a_function_is_told_what_it_is(
    kept: Library,
) -> None:
    """The text has the line, and what was found there."""
    kept.write("models.py", "Base = 42\n")
    kept.configure("pythonpath = .", "warmstack_schema = models:Base")

    refused(kept, "models:Base", "int", "MetaData", "function", printed="")


# Values that no run can begin with


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("warmstack_keep_templates", "0"),
        ("warmstack_keep_templates", "many"),
        ("warmstack_seed", "seeds.fill"),
    ],
)
def test_a_value_that_is_none_stops_the_run_at_its_start(
    kept: Library, option: str, value: str
) -> None:
    """The text has the value, the option, its place and what it takes; no test is collected."""
    kept.configure(f"{option} = {value}")

    result = kept.run(REUSE, "test_head.py")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    error = result.stderr.str()
    assert len(split(error)) == 1 + len(TITLES)
    for words in (value, option, "pytest.ini"):
        assert words in error
    assert "Traceback" not in error
    assert result.duration < SECONDS


# What the words are about


def test_a_seed_without_a_statement_is_no_error(kept: Library) -> None:
    """A file of comments alone is well."""
    kept.write("seed.sql", "-- Nothing yet.\n")
    kept.configure("warmstack_seed = seed.sql")

    succeed(kept)


def test_a_seed_that_does_not_commit_is_an_error(kept: Library) -> None:
    """Rows are never lost without a word."""
    kept.write("seed.sql", "BEGIN;\nINSERT INTO author VALUES (1, 'Ada');\n")
    kept.configure("warmstack_seed = seed.sql")

    refused(kept, "seed.sql", printed="")


@pytest.mark.parametrize(
    ("seed", "name", "text"),
    [
        ("seed.sql", "seed.sql", "SELECT pg_sleep(1000);\n"),
        ("seeds:fill", "seeds.py", "import time\ndef fill():\n    time.sleep(1000)\n"),
    ],
)
def test_a_seed_that_never_ends_is_named(kept: Library, seed: str, name: str, text: str) -> None:
    """And not the migrations, and no env.py, which have ended well."""
    kept.write(name, text)
    kept.configure("pythonpath = .", f"warmstack_seed = {seed}")
    # Not found from before: env.py runs in this build, too.
    kept.edit(ENV, CALL, f"{CALL}  # {seed}")

    told = refused(kept, seed, WARMSTACK_MIGRATE_TIMEOUT=DEADLINE)

    assert "env.py" not in told
    assert "The migrations" not in told


def test_a_seed_that_ends_the_process_is_not_said_to_be_env_py(kept: Library) -> None:
    """The place is the seed's."""
    kept.write("seeds.py", "import os\ndef fill():\n    os._exit(0)\n")
    kept.configure("pythonpath = .", "warmstack_seed = seeds:fill")
    kept.edit(ENV, CALL, f"{CALL}  # exit")

    assert "env.py" not in split(refused(kept, "seeds:fill"))[0]


def test_a_seed_that_is_not_utf_8_is_told_in_the_projects_terms(kept: Library) -> None:
    """No file of Python's own is named."""
    (kept.folder / "seed.sql").write_bytes("SELECT 'é';\n".encode("latin-1"))
    kept.configure("warmstack_seed = seed.sql")

    assert "<frozen" not in refused(kept, "seed.sql", printed="")


def test_a_seed_module_that_is_not_there_is_told_in_the_projects_terms(kept: Library) -> None:
    """No file of Python's own is named."""
    kept.configure("warmstack_seed = nowhere:fill")

    assert "<frozen" not in refused(kept, "No module named 'nowhere'", printed="")


def test_a_declarative_base_without_a_model_is_an_error(kept: Library) -> None:
    """Its tables are in another module, and who names this one would get none."""
    kept.write(
        "models.py",
        "from sqlalchemy.orm import DeclarativeBase\n\n\nclass Base(DeclarativeBase):\n    pass\n",
    )
    kept.configure("pythonpath = .", "warmstack_schema = models:Base")

    refused(kept, "models:Base has no table", printed="")


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        (LAST, 'revision = "0003"\ndown', 'revision = = "0003"\ndown'),
        (LAST, 'revision = "0003"\ndown', 'raise KeyError("SHOP")\nrevision = "0003"\ndown'),
        (LAST, 'down_revision = "0002"\n', ""),
        (LAST, 'down_revision = "0002"', 'down_revision = "0002"\ndepends_on = "9999"'),
        (FIRST, "down_revision = None", 'down_revision = "0003"'),
    ],
    ids=["syntax", "raises", "no down_revision", "depends_on", "cycle"],
)
def test_a_revision_that_can_not_be_loaded_is_no_fault_of_the_configuration(
    kept: Library, name: str, old: str, new: str
) -> None:
    """The first line of the text is about the revisions, and not about alembic.ini."""
    kept.edit(name, old, new)

    assert "alembic.ini" not in split(refused(kept, printed=""))[0]


def test_one_id_in_two_folders_is_told_like_one_in_the_same_folder(kept: Library) -> None:
    """Alembic trips over it before it can be asked."""
    for each in ("0001_create_authors.py", "0002_create_books.py", "0003_index_titles.py"):
        kept.write(f"more/{each}", (kept.folder / "migrations/versions" / each).read_text())
    kept.edit(
        "alembic.ini",
        "script_location = migrations\n",
        "script_location = migrations\nversion_locations = migrations/versions more\n",
    )

    text = refused(kept, "Revision 0001 is present more than once", printed="")

    assert "alembic.ini" not in split(text)[0]


def test_a_section_that_is_not_there_is_named(kept: Library) -> None:
    """Else nobody knows where script_location is missed."""
    kept.configure("warmstack_alembic_section = shop")

    refused(kept, "shop", printed="")


def test_a_function_that_is_not_there_is_named_with_who_asked_for_it(kept: Library) -> None:
    """As a seed is."""
    kept.configure("pythonpath = .", "warmstack_alembic = nowhere:make")

    refused(kept, "nowhere:make", "warmstack_alembic", "pytest.ini", printed="")


def test_the_variables_of_libpq_are_a_way_to_the_template(kept: Library) -> None:
    """A project that is configured by PGHOST and its like is wired by warmstack_env."""
    kept.configure(
        "warmstack_env =",
        *(
            f"    PG{name}={{db_{value}}}"
            for name, value in (
                ("HOST", "host"),
                ("PORT", "port"),
                ("DATABASE", "name"),
                ("USER", "user"),
                ("PASSWORD", "password"),
            )
        ),
    )
    kept.write(
        ENV,
        "import sqlalchemy\nfrom alembic import context\n"
        "with sqlalchemy.create_engine('postgresql+psycopg://').connect() as connection:\n"
        "    context.configure(connection=connection)\n"
        "    with context.begin_transaction():\n"
        "        context.run_migrations()\n",
    )

    succeed(kept)


def test_a_driver_alone_over_a_unix_socket_is_told_the_three_ways(kept: Library) -> None:
    """The socket of the developer's own PostgreSQL is a database, too."""
    kept.edit(
        ENV,
        CALL,
        "import asyncpg\n"
        "asyncio.run(asyncpg.connect('postgresql://me@/orders?host=/var/run/postgresql'))\n",
    )

    text = refused(kept, "/var/run/postgresql")

    assert "warmstack_env = DATABASE_URL={db_url}" in split(text)[-1]
    assert 'config.get_main_option("sqlalchemy.url")' in split(text)[-1]


def test_a_revision_that_connects_elsewhere_is_told_why_it_may_not(kept: Library) -> None:
    """Who asks another server for something learns that only the template may be asked."""
    kept.edit(LAST, CREATE_INDEX, "import redis; redis.Redis(port=1).ping()")

    text = refused(kept, "127.0.0.1:1")

    assert "may connect to the template" in text


def test_a_process_that_ignores_signals_leaves_no_empty_list(kept: Library) -> None:
    """When nobody knows what it does, the text says so."""
    kept.edit(
        ENV, CALL, "import signal; signal.signal(signal.SIGUSR1, signal.SIG_IGN)\nwhile True: pass"
    )

    text = refused(kept, WARMSTACK_MIGRATE_TIMEOUT=DEADLINE)

    assert "what it was doing:\n  -" not in text


def test_a_process_that_was_killed_is_told_with_the_signals_name(kept: Library) -> None:
    """Exit status -9 is no words."""
    kept.edit(ENV, CALL, "import os; os.kill(os.getpid(), 9)")

    refused(kept, "SIGKILL")


def test_a_script_location_that_is_not_there_is_told_with_its_whole_path(kept: Library) -> None:
    """Relative to what, nobody has to guess."""
    kept.edit("alembic.ini", "script_location = migrations", "script_location = scripts")

    refused(kept, "script_location", str(kept.folder / "scripts"), printed="")


def test_a_file_of_sql_is_told_without_our_own_class(kept: Library) -> None:
    """PostgreSQL's words need no SqlError before them."""
    kept.write("seed.sql", "INSERT INTO writer VALUES (2, 'Grace');\n")
    kept.configure("warmstack_seed = seed.sql")

    assert "SqlError" not in refused(kept, printed="")


def test_revisions_that_come_after_a_run_without_any_are_seen(kept: Library) -> None:
    """A folder of revisions that was not there is one that has changed when it is."""
    versions = kept.folder / "migrations/versions"
    away = versions.rename(kept.folder / "away")
    try:
        kept.run(REUSE, "test_head.py")
    finally:
        away.rename(versions)

    succeed(kept)
