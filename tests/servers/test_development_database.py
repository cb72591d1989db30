"""`warmstack url` and `warmstack run`: a database and a Redis that stay between tests."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import psycopg
import pytest
from redis import Redis
from sqlalchemy import create_engine, text

from external_servers import Cluster, cluster, redis_server
from projects import WAITING, Library, assert_nothing_left, script, until
from pytest_warmstack.postgres import DatabaseName

REUSE = "--reuse-containers"

LINES = """warmstack_env =
    DATABASE_URL=postgresql+psycopg://{db_user}:{db_password}@{db_host}:{db_port}/{db_name}
    ASYNC_URL={db_url}
    DB_NAME={db_name}"""

REVISION = """
from alembic import op

revision = "{revision}"
down_revision = "{down}"


def upgrade():
    op.execute("CREATE TABLE shelf_{revision} (id integer PRIMARY KEY)")
"""

TELLS = """
import json, os, sys
names = ("DATABASE_URL", "ASYNC_URL", "DB_NAME", "OWN")
print(json.dumps([[os.environ.get(name) for name in names], sys.argv[1:], os.getpid()]))
raise SystemExit(23)
"""


def printed(result: pytest.RunResult) -> str:
    """Return the one line that a command printed."""
    assert result.ret == 0, [*result.outlines, *result.errlines]
    (line,) = result.outlines
    return line


def told(result: pytest.RunResult) -> list[str]:
    """Return what a command wrote to standard error, but for what took long on a slow machine."""
    slow = "warmstack: (starting|planning|reading|running|revision) .*"
    return [line for line in result.errlines if not re.fullmatch(slow, line)]


def address(project: Library, *arguments: str, **variables: str) -> str:
    """Return what `warmstack url` prints; it says nothing else."""
    result = project.warmstack("url", *arguments, **variables)
    line = printed(result)
    assert told(result) == []
    return line


def rows(url: str, query: str = "SELECT name FROM author ORDER BY id") -> list[Any]:
    """Return the first column of *query*, over psycopg."""
    with psycopg.connect(url) as connection:
        return [row[0] for row in connection.execute(query.encode()).fetchall()]


def add_author(url: str, number: int, name: str) -> None:
    """Write a row, as the developer does."""
    with psycopg.connect(url) as connection:
        connection.execute("INSERT INTO author VALUES (%s, %s)", (number, name))


def add_revision(project: Library, number: int) -> None:
    """Add a revision to the project's history."""
    names = f"{number:04}", f"{number - 1:04}"
    content = REVISION.format(revision=names[0], down=names[1])
    project.write(f"migrations/versions/{names[0]}_more.py", content)


def keys(url: str) -> dict[str, str]:
    """Return the keys of a Redis database with their values."""
    with Redis.from_url(url, decode_responses=True) as client:
        return {key: client.get(key) for key in client.scan_iter()}


def set_key(url: str, key: str, value: str) -> None:
    """Write a key, as the developer does."""
    with Redis.from_url(url) as client:
        client.set(key, value)


# url


def test_the_url_is_printed_alone_and_works_for_every_client(project: Library) -> None:
    """Also where conftest.py prints; psycopg, asyncpg and SQLAlchemy connect to the same rows."""
    project.write("conftest.py", "import sys\nprint('hello')\nprint('more', file=sys.__stdout__)\n")

    first = project.warmstack("url")

    url = printed(first)
    assert re.fullmatch(r"postgresql://postgres:\w+@[\d.]+:\d+/warmstack_dev_[0-9a-f_]+", url)
    add_author(url, 1, "Ursula")

    async def read() -> Any:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval("SELECT name FROM author")
        finally:
            await connection.close()

    assert asyncio.run(read()) == "Ursula"
    for driver in ("psycopg", "psycopg2"):
        own = printed(project.warmstack("url", "--driver", driver))
        assert own == url.replace("postgresql://", f"postgresql+{driver}://")
        engine = create_engine(own)
        with engine.connect() as connection:
            assert connection.execute(text("SELECT name FROM author")).scalars().all() == ["Ursula"]
        engine.dispose()
    asynchronous = printed(project.warmstack("url", "--driver=asyncpg"))
    assert asynchronous == url.replace("postgresql://", "postgresql+asyncpg://")
    assert printed(project.warmstack("url", "--driver", "none")) == url
    assert project.executions() == 1
    wrong = project.warmstack("url", "--driver", "mysql")
    assert wrong.ret == 2


def test_runs_and_their_sweeps_leave_it_alone(project: Library) -> None:
    """Its rows are there after runs, on workers too, and after more templates than are kept."""
    url, cache = address(project), address(project, "--redis")
    add_author(url, 1, "Ursula")
    set_key(cache, "reader", "Ada")
    project.configure("warmstack_keep_templates = 1", "warmstack_keep_failed = 1")

    for number in (4, 5, 6):
        add_revision(project, number)
        project.run(REUSE, "-n2" if number == 5 else "-q").assert_outcomes(passed=5)
    project.write("test_fails.py", "def test_it(db_url):\n    assert False\n")
    project.run(REUSE).assert_outcomes(passed=5, failed=1)

    assert len(project.databases("t_")) < 4
    assert len(project.databases("dev")) == 1
    assert rows(url) == ["Ursula"]
    assert keys(cache) == {"reader": "Ada"}
    assert printed(project.warmstack("url")) == url


def test_a_changed_template_is_told_in_a_line_and_the_rows_stay(embedded_project: Library) -> None:
    """The line names --fresh, which replaces the database under the same name."""
    project = embedded_project
    url = address(project)
    add_author(url, 1, "Ursula")
    add_revision(project, 4)

    changed = project.warmstack("url")

    assert printed(changed) == url
    assert rows(url) == ["Ursula"]
    (line,) = told(changed)
    assert line.startswith("warmstack: the template (of 3 revisions, now of 4 revisions) has")
    assert "--fresh" in line
    assert told(project.warmstack("url")) == [line]

    # A client that is connected doesn't hold it up.
    with closing(psycopg.connect(url)) as connection:
        connection.execute("SELECT 1")
        assert address(project, "--fresh") == url
    assert rows(url) == []
    assert rows(url, "SELECT version_num FROM alembic_version") == ["0004"]
    assert address(project) == url

    project.edit("migrations/versions/0004_more.py", "shelf_", "board_")
    (line,) = told(project.warmstack("url"))
    assert line.startswith("warmstack: the template (of 4 revisions) has changed")


def test_a_template_that_is_only_built_again_has_not_changed(embedded_project: Library) -> None:
    """Nor has one that was removed, and whose revisions the same files make once more."""
    project = embedded_project
    project.write("demo.sql", "INSERT INTO author VALUES (7, 'Doris');")
    project.configure("warmstack_seed = demo.sql")
    url = address(project)
    project.run(REUSE, "--warmstack-rebuild").assert_outcomes(passed=5)

    assert address(project) == url

    project.write("demo.sql", "INSERT INTO author VALUES (7, 'Joanna');")
    (line,) = told(project.warmstack("url"))
    assert line.startswith("warmstack: the template (of 3 revisions, seed demo.sql) has changed")
    assert rows(url) == ["Doris"]


def test_two_commands_at_once_make_one_database(project: Library) -> None:
    """Both print the same address, which works; nothing else is left of the two."""
    both = [project.start("url", command=("pytest_warmstack.cli",)) for _ in range(2)]
    urls = {printed(each.wait()) for each in both}

    (url,) = urls
    assert rows(url) == []
    assert len(project.databases("dev")) == 1
    assert len(project.databases("u")) == 0


def test_a_command_waits_while_another_one_makes_it(embedded_project: Library) -> None:
    """Seen by the lock that it asks for again and again; it replaces nothing meanwhile."""
    project = embedded_project
    url = address(project)
    name = DatabaseName.parse(url.rpartition("/")[2])
    assert name is not None
    asked = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'pytest-warmstack%'"
        " AND query LIKE '%pg_try_advisory_lock(key)%'"
    )
    oid = f"SELECT oid FROM pg_database WHERE datname = '{name}'"
    before = rows(url, oid)
    with closing(psycopg.connect(f"{url.rpartition('/')[0]}/postgres", autocommit=True)) as other:
        other.execute("SELECT pg_advisory_lock(%s)", (name.lock_key,))
        running = project.start("url", "--fresh", command=("pytest_warmstack.cli",))
        until(
            lambda: project.sql(asked)[0][0] or running.process.poll() is not None,
            "the command asks for the lock",
        )
        assert running.process.poll() is None
        assert rows(url, oid) == before

    assert printed(running.wait()) == url
    assert rows(url, oid) != before


def test_a_broken_migration_is_the_error_of_the_template(embedded_project: Library) -> None:
    """Status 1, nothing on standard output; the rows that were there stay."""
    project = embedded_project
    url = address(project)
    add_author(url, 1, "Ursula")
    project.edit("migrations/env.py", "run_migrations()", "run_the_migrations()")
    add_revision(project, 4)

    for arguments in (("url",), ("url", "--fresh")):
        result = project.warmstack(*arguments)
        assert result.ret == 1
        assert result.outlines == []
        assert "The migrations failed in env.py" in result.stderr.str()
        assert "pytest_warmstack/" not in result.stderr.str()
    assert rows(url) == ["Ursula"]

    project.write("conftest.py", "raise RuntimeError('this conftest is broken')\n")
    broken = project.warmstack("url")
    assert (broken.ret, broken.outlines) == (1, [])
    broken.stderr.fnmatch_lines(["*this conftest is broken"])


def test_clean_removes_it_but_spares_it_while_a_client_is_connected(project: Library) -> None:
    """`status` lists it and counts the client; `clean --force` removes it all the same."""
    url, cache = address(project), address(project, "--redis")
    name, number = url.rpartition("/")[2], cache.rpartition("/")[2]

    with closing(psycopg.connect(url)) as connection:
        connection.execute("SELECT 1")
        status = project.warmstack("status", "--project", str(project.folder))
        spared = project.warmstack("clean")
        connection.execute("SELECT 1")
    assert spared.ret == 1
    spared.stdout.fnmatch_lines(["spared postgres *: a run in progress uses it, or a client of *"])
    status.stdout.fnmatch_lines(
        [
            "  PostgreSQL *, used by 1 *",
            f"    {name} for development of alembic.ini, *",
            f"    database {number} for development",
        ]
    )

    until(lambda: project.warmstack("clean").ret == 0, "the server has noticed the end")
    assert_nothing_left(project.folder)


def test_psql_opens_it(embedded_project: Library, tmp_path: Path) -> None:
    """As `dev`, also while a test's database has a name with these letters."""
    project, path = embedded_project, script(tmp_path / "bin", "psql")
    project.write("test_dev.py", "def test_dev(db_url):\n    assert False\n")
    project.run(REUSE, "test_dev.py").assert_outcomes(failed=1)

    missing = project.warmstack("psql", "dev", PATH=path)
    url = address(project)
    result = project.warmstack("psql", "dev", PATH=path)

    assert missing.ret == 1
    assert "warmstack url" in missing.stderr.str()
    assert f"--dbname={url.rpartition('/')[2]}" in result.stdout.str().split()


def test_each_configuration_has_its_own(embedded_project: Library) -> None:
    """Chosen by the folder, by --alembic, or asked for; each has its own tables."""
    project = embedded_project
    for name in ("users", "orders"):
        project.write(f"{name}/alembic.ini", (project.folder / "alembic.ini").read_text())
        for path in (project.folder / "migrations").rglob("*.py"):
            below = path.relative_to(project.folder)
            project.write(f"{name}/{below}", path.read_text().replace("author", f"{name}_author"))
    (project.folder / "alembic.ini").unlink()

    def tables(url: str) -> list[Any]:
        found = "SELECT tablename FROM pg_tables WHERE tablename LIKE '%author' ORDER BY 1"
        return rows(url, found)

    unclear = project.warmstack("url")
    assert (unclear.ret, unclear.outlines) == (1, [])
    assert "--alembic orders/alembic.ini" in unclear.stderr.str()
    (project.folder / "docs").mkdir()
    none = project.warmstack("url", "--alembic", "docs")
    assert (none.ret, f"{project.folder / 'docs'} has none" in none.stderr.str()) == (1, True)
    users = address(project, "--alembic", "users")
    orders = address(project, "--alembic", "orders/alembic.ini")
    assert tables(users) == ["users_author"]
    assert tables(orders) == ["orders_author"]
    below = project.start("url", command=("pytest_warmstack.cli",), below="users").wait()
    assert printed(below) == users
    # A file with another name is what `warmstack_alembic` takes it for.
    (project.folder / "users/alembic.ini").rename(project.folder / "users.ini")
    project.edit("users.ini", "= migrations", "= users/migrations")
    named = address(project, "--alembic", "users.ini")
    assert tables(named) == ["users_author"]
    assert len({users, orders, named}) == 3
    several = project.warmstack("psql", "dev")
    assert (several.ret, "(orders/alembic.ini)" in several.stderr.str()) == (1, True)


# Redis


def test_no_run_leases_the_redis_database(project: Library) -> None:
    """With the application's number of databases; --fresh empties it, and no other."""
    project.configure("warmstack_redis_databases = 3")
    cache = address(project, "--redis")
    assert cache.endswith("/253")
    set_key(cache, "reader", "Ada")
    set_key(cache.replace("/253", "/255"), "reader", "Grace")

    project.run(REUSE, "-n2", "-k", "read").assert_outcomes(passed=2)

    assert keys(cache) == {"reader": "Ada"}
    assert keys(cache.replace("/253", "/255")) == {"reader": "Grace"}
    assert address(project, "--redis") == cache
    assert keys(cache) == {"reader": "Ada"}
    assert address(project, "--redis", "--fresh") == cache
    assert keys(cache) == keys(cache.replace("/253", "/255")) == {}


def test_where_each_process_has_a_redis_no_run_uses_the_one_for_development(
    embedded_project: Library,
) -> None:
    """Then the application can't name a number, so it is 0, on a server of its own."""
    project = embedded_project
    project.configure("warmstack_redis = per-process")
    cache = address(project, "--redis")
    assert cache.endswith("/0")
    set_key(cache, "reader", "Ada")

    project.run(REUSE, "-k", "read").assert_outcomes(passed=2)

    assert keys(cache) == {"reader": "Ada"}
    assert address(project, "--redis") == cache
    assert address(project, "--redis", "--fresh") == cache
    assert keys(cache) == {}


# External servers


@dataclass(frozen=True)
class External:
    """A PostgreSQL and a Redis that another team runs."""

    postgres: Cluster
    redis: Redis

    @property
    def variables(self) -> dict[str, str]:
        """The variables that lead a run to them."""
        port = self.redis.connection_pool.connection_kwargs["port"]
        return {
            "WARMSTACK_POSTGRES_URL": self.postgres.url(),
            "WARMSTACK_REDIS_URL": f"redis://127.0.0.1:{port}",
        }


@pytest.fixture
def external() -> Iterator[External]:
    """Servers with five databases in Redis, one of which holds keys."""
    with cluster() as postgres, redis_server("databases 5") as redis:
        redis.execute_command("SELECT", 4)
        redis.set("theirs", "1")
        yield External(postgres, redis)


def test_external_servers_have_one_for_each_checkout(
    guest: Library, external: External, tmp_path: Path
) -> None:
    """`clean` removes those of its own checkout, although both have the same name."""
    (tmp_path / "library").mkdir()
    other = Library(tmp_path / "library", guest.runtime)
    urls = [address(each, **external.variables) for each in (guest, other)]
    caches = [address(each, "--redis", **external.variables) for each in (guest, other)]
    assert len({*urls, *caches}) == 4
    # The last database is not empty, so no project owns it.
    assert [each.rpartition("/")[2] for each in caches] == ["3", "2"]
    for number, (url, cache) in enumerate(zip(urls, caches, strict=True)):
        add_author(url, number, f"Ursula {number}")
        set_key(cache, "reader", str(number))

    guest.run(REUSE, **external.variables).assert_outcomes(passed=5)
    # While a run has the only other database, the next one gets none.
    guest.write("test_wait.py", WAITING)
    running = guest.start("test_wait.py", **external.variables)
    until((guest.folder / "running").exists, "the test runs")
    refused = other.run("-k", "reader", **external.variables)
    (guest.folder / "go").touch()
    running.wait().assert_outcomes(passed=1)
    refused.assert_outcomes(errors=1)
    assert [rows(url) for url in urls] == [["Ursula 0"], ["Ursula 1"]]
    assert [keys(cache) for cache in caches] == [{"reader": "0"}, {"reader": "1"}]
    guest.warmstack("status", **external.variables).stdout.fnmatch_lines(
        [f"*{urls[0].rpartition('/')[2].partition('?')[0]} for development of alembic.ini*"]
    )

    old = guest.warmstack("clean", "--older-than=1h", **external.variables)
    dry = guest.warmstack("clean", "--dry-run", **external.variables)
    assert [keys(cache) for cache in caches] == [{"reader": "0"}, {"reader": "1"}]
    clean = guest.warmstack("clean", **external.variables)

    assert [each.ret for each in (old, dry, clean)] == [0, 0, 0]
    assert "dev" not in old.stdout.str()
    dry.stdout.fnmatch_lines(["would remove Redis database 3 for development (external, *)"])
    clean.stdout.fnmatch_lines(
        ["removed Redis database 3 for development (external, *)", "removed database *_dev_*"]
    )
    assert rows(urls[1]) == ["Ursula 1"]
    assert [keys(cache) for cache in caches] == [{}, {"reader": "1"}]
    assert len(external.postgres.databases("dev")) == 1
    assert address(guest, "--redis", **external.variables) == caches[0]


# run


def test_a_command_gets_the_variables_and_its_status_is_the_status(project: Library) -> None:
    """It replaces the command `warmstack`, and what conftest.py sets does not reach it."""
    project.configure(LINES)
    project.write("conftest.py", "import os\nos.environ['OWN'] = 'conftest'\nprint('hello')\n")
    project.write("tells.py", TELLS)

    running = project.start(
        *("run", "--", sys.executable, "tells.py", "--fresh", "-x"),
        command=("pytest_warmstack.cli",),
    )
    result = running.wait()

    assert result.ret == 23
    ((url, asynchronous, name, own), arguments, pid) = json.loads(result.outlines[-1])
    assert len(result.outlines) == 1
    assert (arguments, own) == (["--fresh", "-x"], None)
    assert pid == running.process.pid
    plain = address(project)
    assert url == plain.replace("postgresql://", "postgresql+psycopg://")
    assert asynchronous == plain.replace("postgresql://", "postgresql+asyncpg://")
    assert name == plain.rpartition("/")[2]

    add_author(plain, 1, "Ursula")
    kept = project.warmstack("run", "--", "true", ASYNC_URL="postgres://me@elsewhere/shop")
    assert (kept.ret, rows(plain)) == (0, ["Ursula"])
    own_driver = project.warmstack(
        *("run", "--fresh", "--", "sh", "-c", "echo $ASYNC_URL"),
        ASYNC_URL="postgresql+psycopg2://x",
    )
    assert own_driver.outlines == [plain.replace("postgresql://", "postgresql+psycopg2://")]
    assert rows(plain) == []


ENV = """
import os
from alembic import context
from sqlalchemy import create_engine, pool
import models

engine = create_engine(os.environ["DATABASE_URL"], poolclass=pool.NullPool)
with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=models.metadata)
    with context.begin_transaction():
        context.run_migrations()
"""

MODELS = """
from sqlalchemy import Column, Integer, MetaData, Table, Text
metadata = MetaData()
Table("author", metadata, Column("id", Integer, primary_key=True),
      Column("name", Text, nullable=False))
Table("publisher", metadata, Column("id", Integer, primary_key=True))
"""


def test_alembic_finds_what_the_models_have_and_the_database_has_not(
    embedded_project: Library,
) -> None:
    """And once the new revision was applied by hand, the database is not called outdated."""
    project = embedded_project
    project.configure(LINES)
    project.write("migrations/env.py", ENV)
    project.write("migrations/script.py.mako", MAKO)
    project.write("models.py", MODELS)
    project.edit("alembic.ini", "[alembic]", "[alembic]\nprepend_sys_path = .")
    for name in ("0002_create_books", "0003_index_titles"):
        (project.folder / f"migrations/versions/{name}.py").unlink()
    alembic = ("run", "--", sys.executable, "-m", "alembic")

    made = project.warmstack(*alembic, "revision", "--autogenerate", "--rev-id", "0002")

    assert made.ret == 0, made.errlines
    (path,) = (project.folder / "migrations/versions").glob("0002_*.py")
    assert "create_table('publisher'" in path.read_text()
    upgrade = project.warmstack(*alembic, "upgrade", "head")
    assert upgrade.ret == 0, upgrade.errlines
    assert any("has changed" in line for line in upgrade.errlines)
    url = address(project)
    assert rows(url, "SELECT id FROM publisher") == []
    # An edit of what was applied is another matter.
    path.write_text(path.read_text().replace("publisher", "imprint"))
    (line,) = told(project.warmstack("url"))
    assert "has changed" in line


MAKO = '''"""${message}"""
from alembic import op
import sqlalchemy as sa

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}


def upgrade():
    ${upgrades if upgrades else "pass"}
'''


def test_a_command_that_can_not_run_is_an_error_before_anything_is_started(
    embedded_project: Library,
) -> None:
    """A shell's 127, 2 without a command, 1 without a line that names a database."""
    project = embedded_project
    no_lines = project.warmstack("run", "--", "true")
    project.configure("warmstack_env =\n    APP_MODE=test")
    no_address = project.warmstack("run", "--", "true")
    project.edit("pytest.ini", "APP_MODE=test", "DATABASE_URL={db_url}")
    missing = project.warmstack("run", "--", "no-such-command", "-x")
    forgotten = project.warmstack("run", "alembic", "upgrade")

    assert no_lines.ret == no_address.ret == 1
    no_lines.stderr.fnmatch_lines(
        ["*write in pytest.ini:", "*warmstack_env = DATABASE_URL={db_url}"]
    )
    no_address.stderr.fnmatch_lines(["*add to warmstack_env in pytest.ini:"])
    assert missing.ret == 127
    missing.stderr.fnmatch_lines(["warmstack: Could not find the command no-such-command."])
    assert forgotten.ret == 2
    forgotten.stderr.fnmatch_lines(["*write the command after --, as in: warmstack run -- alem*"])
    assert_nothing_left(project.folder)


WAITS = """
import pathlib, signal, time
pathlib.Path("pipe").write_text(str(signal.getsignal(signal.SIGPIPE)))
pathlib.Path("running").touch()
try:
    time.sleep(60)
except KeyboardInterrupt:
    raise SystemExit(41)
"""


def test_signals_are_the_commands_own(embedded_project: Library) -> None:
    """Ctrl-C reaches it, and its answer is the status; a pipe that closes ends it."""
    project = embedded_project
    project.configure(LINES)
    project.write("waits.py", WAITS)
    running = project.start(
        "run", "--", sys.executable, "waits.py", command=("pytest_warmstack.cli",)
    )
    until((project.folder / "running").exists, "the command runs")

    assert running.interrupt().ret == 41

    piped = project.warmstack("run", "--", "sh", "-c", "yes | head -n 1; kill -PIPE $$")
    assert piped.outlines == ["y"]
    assert piped.ret in {-signal.SIGPIPE, 128 + signal.SIGPIPE}
    assert "Broken pipe" not in piped.stderr.str()


def test_ctrl_c_while_it_is_prepared_ends_the_command(embedded_project: Library) -> None:
    """With 130, as a shell says it; nothing is run, and no build is left."""
    project = embedded_project
    project.configure(LINES)
    project.edit("migrations/env.py", "asyncio.run(", "import time\ntime.sleep(60)\nasyncio.run(")
    running = project.start("run", "--", "touch", "ran", command=("pytest_warmstack.cli",))
    until(lambda: project.executions(), "the migrations run")

    # As a terminal does it: the whole group.
    os.killpg(running.process.pid, signal.SIGINT)
    result = running.wait()

    assert result.ret == 130
    assert not (project.folder / "ran").exists()
    assert "Traceback" not in result.stderr.str()
    assert project.databases("b") == project.databases("dev") == []
