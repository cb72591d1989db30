"""The template: built once, rebuilt when its sources change, sealed last, and repaired if damaged.

If the runtime makes no difference, the servers are embedded, and one PostgreSQL serves the whole
file.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from projects import Bench, Library, keeping, until
from pytest_warmstack.options import RuntimeName, Settings
from pytest_warmstack.postgres import sql
from pytest_warmstack.postgres.retention import Retention
from pytest_warmstack.postgres.template import templates
from pytest_warmstack.postgres.template.dependencies import FileState
from pytest_warmstack.postgres.template.layers import Custom

REUSE = "--reuse-containers"

SCHEMA = """
from pathlib import Path
from sqlalchemy import text

async def test_schema(db_session):
    rows = await db_session.scalars(text(
        "SELECT table_name || '.' || column_name FROM information_schema.columns"
        " WHERE table_schema = 'public' AND table_name <> 'alembic_version' ORDER BY 1"
    ))
    Path("schema.log").write_text("\\n".join(rows))
"""

COLUMNS = ["author.id", "author.name", "book.author_id", "book.id", "book.title"]

WAIT = """
    import time
    from pathlib import Path
    Path("migrating").touch()
    deadline = time.monotonic() + 60
    while not Path("go").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
"""

STAYING = """
import time
from pathlib import Path

def test_that_stays(db_url):
    deadline = time.monotonic() + 60
    while not Path("end").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
"""


@pytest.fixture(scope="module")
def kept_project(embedded_programs: None, library_in: Callable[..., Library]) -> Iterator[Library]:
    """A project with a kept PostgreSQL for all tests of this file."""
    library = library_in(RuntimeName.EMBEDDED)
    yield library
    library.end()


@pytest.fixture
def kept(kept_project: Library) -> Iterator[Library]:
    """The same with its files as they were, and a test that writes down the schema it sees."""
    kept_project.reset()
    for name in ("migrating", "go", "end"):
        (kept_project.folder / name).unlink(missing_ok=True)
    kept_project.write("test_schema.py", SCHEMA)
    yield kept_project
    kept_project.quit()


def schema(project: Library) -> list[str]:
    """Return the columns that a test of the next run sees."""
    project.run(REUSE, "test_schema.py").assert_outcomes(passed=1)
    return project.lines("schema.log")


def revision(number: str, after: str, body: str) -> str:
    """Return a revision file."""
    return (
        f"from alembic import op\nrevision, down_revision = {number!r}, {after!r}\n"
        f"def upgrade():\n    {body.strip()}\n"
    )


def make_wait(project: Library) -> None:
    """Make the last revision say that it runs, and wait until it may go on."""
    step = '    op.execute("CREATE'
    # Unlike any revision before, so that no template of it is found.
    unique = f"    # {os.urandom(8).hex()}\n"
    project.edit("migrations/versions/0003_index_titles.py", step, WAIT + unique + step)


def refused(project: Library, **variables: str) -> str:
    """Return the text with which the set-up of a test fails; nothing half-built may be left."""
    result = project.run(REUSE, "test_schema.py", **variables)
    result.assert_outcomes(errors=1)
    assert project.databases("b") == []
    assert project.databases("u") == []
    return str(result.stdout)


def test_many_workers_build_once(embedded_project: Library) -> None:
    """Four workers of one run need the migrations a single time."""
    project = embedded_project
    project.write("test_schema.py", SCHEMA)

    project.run("-n", "4").assert_outcomes(passed=6)

    assert project.executions() == 1
    assert project.lines("schema.log") == COLUMNS


def test_two_invocations_at_once_build_once(kept: Library) -> None:
    """The second one waits for the build, and not for the end of the run that built."""
    make_wait(kept)
    kept.write("test_wait.py", STAYING)
    first = kept.start(REUSE, "test_wait.py")
    until((kept.folder / "migrating").exists, "the first one migrates")
    second = kept.start(REUSE, "test_schema.py", WARMSTACK_MIGRATE_TIMEOUT="15")
    out = second.stem.with_suffix(".out")
    until(lambda: "waiting for another build: process" in out.read_text(), "the second one waits")

    (kept.folder / "go").touch()

    second.wait().assert_outcomes(passed=1)
    assert first.process.poll() is None
    (kept.folder / "end").touch()
    first.wait().assert_outcomes(passed=1)
    assert kept.executions() == 1


def test_an_edited_revision_is_in_the_next_runs_schema(kept: Library) -> None:
    """The next run has the new schema by itself; after the way back the old template is found."""
    assert schema(kept) == COLUMNS
    path = "migrations/versions/0001_create_authors.py"
    before = kept.executions()

    kept.edit(path, "name text NOT NULL", "name text NOT NULL, born date")
    assert schema(kept) == sorted([*COLUMNS, "author.born"])
    assert kept.executions() == before + 1

    kept.edit(path, ", born date", "")
    assert schema(kept) == COLUMNS
    assert kept.executions() == before + 1


def test_an_added_revision_is_in_the_next_runs_schema(kept: Library) -> None:
    """So is one that was not there before."""
    kept.write(
        "migrations/versions/0004_add.py",
        revision("0004", "0003", 'op.execute("CREATE TABLE reader (id integer)")'),
    )

    assert schema(kept) == [*COLUMNS, "reader.id"]


def test_an_edited_env_py_builds_anew(kept: Library) -> None:
    """What env.py does around the migrations is part of what they build."""
    kept.edit(
        "migrations/env.py",
        "        context.run_migrations()",
        "        context.run_migrations()\n"
        '        connection.exec_driver_sql("CREATE TABLE shelf (id integer)")',
    )

    assert schema(kept) == [*COLUMNS, "shelf.id"]
    assert kept.executions() == 1


def test_alembics_log_reads_as_it_does_elsewhere(kept: Library) -> None:
    """It tells what it runs by the name of the function."""
    kept.edit("migrations/versions/0002_create_books.py", "REFERENCES author)", "REFERENCES x)")
    env = kept.folder / "migrations/env.py"
    env.write_text(f"import logging\n\nlogging.basicConfig(level='INFO')\n{env.read_text()}")

    result = kept.run(REUSE)

    result.stdout.fnmatch_lines(["*Running upgrade 0001 -> 0002, *"])
    result.stdout.no_fnmatch_line("*Running migrate *")


def test_a_failing_revision_fails_each_test_of_the_database_and_no_other(kept: Library) -> None:
    """The text holds PostgreSQL's words, revision, file and line; mended, the next run is green."""
    path = "migrations/versions/0002_create_books.py"
    kept.edit(path, "REFERENCES author)", "REFERENCES writer)")
    line = 1 + kept.lines(path).index("    op.execute(")

    result = kept.run(REUSE)

    result.assert_outcomes(passed=3, errors=3)
    text = str(result.stdout)
    words = f"The migrations failed in revision 0002 (0002_create_books.py, line {line})."
    assert text.count(f"E       {words}") + text.count(f"\n{words}") == 3
    assert 'relation "writer" does not exist' in text
    assert text.count("\nWhy:") == 1
    assert text.count(f"{words} (Same error as above; ") == 2
    # Of the traceback what is the project's own, and none of what is the libraries'.
    assert f'0002_create_books.py", line {line}, in upgrade' in text
    assert "site-packages" not in text
    # What was looked at and what to do is told once, however many tests meet the error.
    assert text.count("What to do:") == 1
    assert kept.databases("b") == []
    assert kept.databases("u") == []
    sealed = kept.sql("SELECT datname FROM pg_database WHERE datistemplate AND NOT datallowconn")
    assert set(kept.databases("t")) == {row[0] for row in sealed if row[0].startswith("warmstack_")}

    kept.edit(path, "REFERENCES writer)", "REFERENCES author)")
    kept.run(REUSE).assert_outcomes(passed=6)


def test_a_down_revision_that_is_not_there_is_named_with_alembics_own_warning(
    kept: Library,
) -> None:
    """Alembic's error is a bare key; its warning, which says which revision is meant, is shown."""
    kept.edit(
        "migrations/versions/0002_create_books.py", 'down_revision = "0001"', 'down_revision = "7"'
    )

    assert "Revision 7 referenced from 7 -> 0002" in refused(kept)


def test_a_template_without_its_seal_is_rubbish(kept: Library) -> None:
    """A template that is not sealed is no template: it is swept, and another one is built."""
    unique = f'"""{os.urandom(8).hex()}"""'
    kept.edit("migrations/versions/0001_create_authors.py", '"""Create the authors."""', unique)
    before = set(kept.databases("t")) if kept.hint_file("postgres").exists() else set()
    schema(kept)
    (name,) = set(kept.databases("t")) - before
    kept.sql(f'ALTER DATABASE "{name}" IS_TEMPLATE false ALLOW_CONNECTIONS true', "SELECT 1")
    kept.sql("DROP TABLE book", "SELECT 1", database=name)

    assert schema(kept) == COLUMNS

    assert kept.executions() == 2
    until(lambda: name not in kept.databases("t"), "it is swept")


def test_a_build_that_was_killed_is_swept_and_done_again(kept: Library) -> None:
    """After kill -9 in the middle of the migrations the next run builds, and the draft is gone."""
    kept.edit(
        "migrations/versions/0003_index_titles.py",
        '    op.execute("CREATE',
        WAIT + '    op.execute("CREATE',
    )
    running = kept.start(REUSE, "test_schema.py")
    until((kept.folder / "migrating").exists, "it migrates")
    running.kill()
    assert len(kept.databases("b")) == 1
    (kept.folder / "go").touch()
    before = kept.executions()

    assert schema(kept) == COLUMNS

    assert kept.executions() == before + 1
    assert kept.databases("b") == []


def test_migrations_that_connect_by_a_function_of_their_own_are_stopped_too(kept: Library) -> None:
    """An engine may be given a function to connect with; where that has got to is asked."""
    kept.edit(
        "migrations/env.py",
        "poolclass=pool.NullPool,",
        "poolclass=pool.NullPool,\n        async_creator=elsewhere,",
    )
    kept.edit(
        "migrations/env.py",
        "config = context.config\n",
        "config = context.config\n\n\n"
        "async def elsewhere():\n"
        "    import asyncpg\n\n"
        '    url = config.get_main_option("sqlalchemy.url").replace("+asyncpg", "")\n'
        '    return await asyncpg.connect(url, database="postgres")\n\n\n',
    )

    port = kept.kept("postgres").port
    assert f"tried to connect to postgresql://127.0.0.1:{port}/postgres; the" in refused(kept)


@pytest.mark.parametrize("how", ["url", "connect_args"])
def test_migrations_that_connect_elsewhere_are_stopped_before_they_do(
    kept: Library, how: str
) -> None:
    """Not a byte reaches the developer's own database, and the text names three ways to wire it."""
    with socket.create_server(("127.0.0.1", 0)) as real:
        port = real.getsockname()[1]
        if how == "url":
            kept.edit(
                "migrations/env.py",
                "config.get_section(config.config_ini_section, {}),",
                f'{{"sqlalchemy.url": "postgresql+asyncpg://me:secret@localhost:{port}/orders"}},',
            )
        else:
            kept.edit(
                "migrations/env.py",
                "poolclass=pool.NullPool,",
                "poolclass=pool.NullPool,\n"
                f'        connect_args={{"port": {port}, "database": "orders"}},',
            )

        text = refused(kept)

        real.setblocking(False)
        with pytest.raises(BlockingIOError):
            real.accept()
    assert f"127.0.0.1:{port}/orders; the connection was blocked." in text
    assert 'config.get_main_option("sqlalchemy.url")' in text
    assert 'config.attributes.get("url")' in text
    assert "warmstack_env = DATABASE_URL={db_url}" in text
    assert "secret" not in text


def test_migrations_of_another_kind_of_database_are_stopped_too(kept: Library) -> None:
    """A file database is no template either, and no file appears."""
    kept.write(
        "migrations/env.py",
        'import sqlalchemy\nsqlalchemy.create_engine("sqlite:///orders.sqlite3").connect()\n',
    )

    assert "sqlite" in refused(kept)
    assert not (kept.folder / "orders.sqlite3").exists()


def test_a_refusal_that_env_py_swallows_is_told_all_the_same(kept: Library) -> None:
    """An `except Exception` around the connection does not turn it into a success."""
    kept.write(
        "migrations/env.py",
        "import sqlalchemy\n"
        "try:\n"
        '    sqlalchemy.create_engine("sqlite:///orders.sqlite3").connect()\n'
        "except Exception:\n"
        "    pass\n",
    )

    assert "the connection was blocked." in refused(kept)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("asyncio.run(connect_and_upgrade())", "pass"),
        ("        context.run_migrations()", "        pass"),
        ("    with context.begin_transaction():\n        context", "    if True:\n        context"),
    ],
    ids=["nothing is connected", "nothing is run", "nothing is committed"],
)
def test_migrations_that_end_without_reaching_the_heads_are_an_error(
    kept: Library, old: str, new: str
) -> None:
    """An env.py that ends well and leaves an empty database does not make a template."""
    kept.edit("migrations/env.py", old, new)

    text = refused(kept)

    assert "ended without an error, but the database is not at the heads" in text
    assert "alembic_version holds nothing, the heads are 0003" in text


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("import os; os._exit(0)", "ended early with exit status 0"),
        ("def broken(:", "SyntaxError"),
        ("raise KeyError('DATABASE_URL')", "KeyError: 'DATABASE_URL'"),
    ],
)
def test_an_env_py_that_ends_early_is_an_error(kept: Library, line: str, words: str) -> None:
    """Whatever ends env.py before its end, the text says it, and where."""
    kept.edit("migrations/env.py", "asyncio.run(connect_and_upgrade())", line)
    number = 1 + kept.lines("migrations/env.py").index(line)

    text = refused(kept)

    assert words in text
    assert f"env.py, line {number}" in text or "os._exit" in line


def test_a_revision_that_is_no_python_is_an_error_with_its_place(kept: Library) -> None:
    """The text names file and line of the slip."""
    path = "migrations/versions/0003_index_titles.py"
    kept.edit(path, 'revision = "0003"', 'revision = = "0003"')
    number = 1 + kept.lines(path).index('revision = = "0003"')

    text = refused(kept)

    assert f"0003_index_titles.py, line {number}" in text
    assert "SyntaxError" in text


def test_every_head_is_applied(kept: Library) -> None:
    """A project with two branches gets both, as with `alembic upgrade heads`."""
    kept.write(
        "migrations/versions/0002b_branch.py",
        revision("0002b", "0001", 'op.execute("CREATE TABLE branch (id integer)")'),
    )

    assert schema(kept) == sorted([*COLUMNS, "branch.id"])


def test_migrations_that_never_end_are_stopped_at_the_deadline(kept: Library) -> None:
    """The text names the seconds, and the process is gone."""
    kept.edit(
        "migrations/env.py",
        "asyncio.run(connect_and_upgrade())",
        "import select; select.select([], [], [])",
    )

    text = refused(kept, WARMSTACK_MIGRATE_TIMEOUT="2")

    assert "The migrations did not finish within 2 seconds." in text
    assert "WARMSTACK_MIGRATE_TIMEOUT" in text


def test_a_connection_that_is_left_open_does_not_hinder_the_build(kept: Library) -> None:
    """A process that env.py started and that still sits in the database is shown the door."""
    kept.write(
        "sitter.py",
        "import asyncio, sys, asyncpg\n"
        "async def sit():\n"
        "    connection = await asyncpg.connect(sys.argv[1], ssl=False)\n"
        "    await connection.execute('BEGIN; SELECT 1')\n"
        "    print('sits', flush=True)\n"
        "    while not connection.is_closed():\n"
        "        await asyncio.sleep(0.02)\n"
        "asyncio.run(asyncio.wait_for(sit(), 60))\n",
    )
    kept.edit(
        "migrations/env.py",
        "asyncio.run(connect_and_upgrade())",
        "asyncio.run(connect_and_upgrade())\n"
        "import subprocess, sys\n"
        'url = config.get_main_option("sqlalchemy.url").replace("+asyncpg", "")\n'
        'sitter = [sys.executable, "sitter.py", url]\n'
        "child = subprocess.Popen(sitter, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)\n"
        "child.stdout.readline()\n",
    )

    assert schema(kept) == COLUMNS


def test_the_url_can_be_given_by_the_environment(kept: Library) -> None:
    """An env.py that reads DATABASE_URL needs one line of configuration."""
    kept.edit(
        "migrations/env.py",
        "config.get_section(config.config_ini_section, {}),",
        '{"sqlalchemy.url": __import__("os").environ["DATABASE_URL"]},',
    )
    kept.configure("warmstack_env = DATABASE_URL={db_url}")

    assert schema(kept) == COLUMNS


def test_logging_of_env_py_does_not_silence_the_tests(kept: Library) -> None:
    """`fileConfig` switches off every logger of its process, which is not the tests' own."""
    kept.write(
        "alembic.ini",
        "[alembic]\nscript_location = migrations\n"
        "[loggers]\nkeys = root\n[handlers]\nkeys =\n[formatters]\nkeys =\n"
        "[logger_root]\nlevel = CRITICAL\nhandlers =\n",
    )
    kept.edit(
        "migrations/env.py",
        "config = context.config",
        "config = context.config\n"
        "from logging.config import fileConfig\n"
        "fileConfig(config.config_file_name)",
    )
    kept.write(
        "test_logs.py",
        "import logging\n"
        'LOGGER = logging.getLogger("library")\n'
        "def test_a_warning_is_caught(db_url, caplog):\n"
        '    LOGGER.warning("overdue")\n'
        '    assert caplog.messages == ["overdue"]\n',
    )

    kept.run(REUSE, "test_logs.py").assert_outcomes(passed=1)
    assert kept.executions() == 1


def test_without_alembic_each_test_has_an_empty_database(kept: Library) -> None:
    """The header says so."""
    (kept.folder / "alembic.ini").unlink()

    result = kept.run(REUSE, "test_schema.py")

    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["warmstack: template of an empty database: *"])
    assert kept.lines("schema.log") == []


@dataclass(frozen=True)
class Counting:
    """A layer that makes one table, and counts how often it does."""

    number: int
    built: list[int]

    name = "counting"

    def fingerprint(self) -> str:
        """Return the number."""
        return str(self.number)

    def apply(self, url: str) -> None:
        """Count."""
        assert url.startswith("postgresql://")
        self.built.append(self.number)


@pytest.mark.parametrize("runtime", [RuntimeName.EMBEDDED], indirect=True)
def test_only_the_templates_that_were_used_last_stay(standing: Bench) -> None:
    """Of seven templates four stay, the last used; one that a living run uses stays as well."""
    mine, others = (standing.ensure(standing.postgres).client for _ in range(2))
    built: list[int] = []

    def ensure(admin: Any, number: int) -> templates.Template:
        request = templates.TemplateRequest(
            layers=[Custom(Counting(number, built), timeout=10)],
            settings=Settings(),
            file_state=FileState(str(standing.folder)),
            say=lambda _: None,
        )
        return templates.ensure(admin, request)

    used_by_another = ensure(others, 0).name
    names = [ensure(mine, number).name for number in range(1, 7)]
    mine.close()
    sweeper = standing.ensure(standing.postgres).client
    note = sql.note(names[0], used=time.time(), project="")
    with keeping(sweeper, names[0]) as clone_factory:
        clone_factory.sweep(Retention(templates=4), notes=[note]).result(timeout=30)

    left = {each.name for each in sweeper.all()}
    assert left == {used_by_another, names[0], *names[-3:]}
    assert built == list(range(7))
    standing.leave()


def test_an_interrupt_of_the_whole_terminal_leaves_no_draft(kept: Library) -> None:
    """Ctrl-C in the middle of the migrations, as a terminal sends it, leaves nothing half-built."""
    kept.edit(
        "migrations/versions/0003_index_titles.py",
        '    op.execute("CREATE',
        WAIT + '    op.execute("CREATE',
    )
    running = kept.start(REUSE, "test_schema.py")
    until((kept.folder / "migrating").exists, "it migrates")

    os.killpg(running.process.pid, signal.SIGINT)

    assert running.wait().ret == pytest.ExitCode.INTERRUPTED
    (kept.folder / "go").touch()
    assert schema(kept) == COLUMNS
    assert kept.databases("b") == []
