"""An application that reads its addresses when it is imported, tested with lines in pytest.ini."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Sequence
from typing import Final

import pytest

from projects import Library, assert_nothing_left, until

REUSE: Final = "--reuse-containers"

APP: Final = """
import os

import redis
import redis.asyncio
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

URL = os.environ["DATABASE_URL"]
engine = create_async_engine(URL)
sync_engine = create_engine(os.environ["SYNC_URL"])
cache = redis.asyncio.from_url(os.environ["REDIS_URL"])
sync_cache = redis.Redis(
    host=os.environ["REDIS_HOST"],
    port=int(os.environ["REDIS_PORT"]),
    password=os.environ["REDIS_PASSWORD"],
    db=int(os.environ["REDIS_DB"]),
)
ADD = text("INSERT INTO author VALUES (1, :name)")
COUNT = text("SELECT count(*) FROM author")


async def add(name):
    async with engine.begin() as connection:
        await connection.execute(ADD, {"name": name})
    await cache.set("last", name)


async def count():
    async with engine.connect() as connection:
        return await connection.scalar(COUNT)


def sync_add(name):
    with sync_engine.begin() as connection:
        connection.execute(ADD, {"name": name})
    sync_cache.set("last", name)


def sync_count():
    with sync_engine.connect() as connection:
        return connection.scalar(COUNT)
"""

LINES: Final = (
    "warmstack_env =",
    "    DATABASE_URL={db_url}",
    "    SYNC_URL=postgresql+psycopg://{db_user}:{db_password}@{db_host}:{db_port}/{db_name}",
    "    DSN={db_dsn}",
    "    REDIS_URL={redis_url}",
    "    REDIS_HOST={redis_host}",
    "    REDIS_PORT={redis_port}",
    "    REDIS_PASSWORD={redis_password}",
    "    REDIS_DB={redis_db}",
    "    OTHER=1",
)

TESTS: Final = """
import os
import subprocess
import sys
import threading

import app
import asyncpg
import pytest

@pytest.mark.parametrize("number", range(3))
async def test_async(db_url, number):
    # The URL of an external server may have options that the server doesn't need.
    assert db_url == app.URL.partition("?")[0]
    assert app.URL == os.environ["DATABASE_URL"]
    assert await app.count() == 0
    assert await app.cache.get("last") is None
    await app.add("ada")
    assert await app.count() == 1

@pytest.mark.parametrize("number", range(3))
def test_sync(redis_url, number):
    assert redis_url == os.environ["REDIS_URL"]
    assert app.sync_count() == 0
    assert app.sync_cache.get("last") is None
    app.sync_add("ada")
    assert app.sync_count() == 1

@pytest.mark.warmstack
def test_marked_and_in_a_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(app.sync_count()))
    thread.start()
    thread.join()
    assert found == [0]
    app.sync_add("ada")

@pytest.mark.parametrize("number", range(2))
async def test_raw_driver_and_fixture(db_session, number):
    connection = await asyncpg.connect(os.environ["DSN"])
    assert await connection.fetchval("SELECT count(*) FROM author") == 0
    await connection.execute("INSERT INTO author VALUES (2, 'bob')")
    await connection.close()
    assert await app.count() == 1
    assert len((await db_session.execute(app.text("SELECT * FROM author"))).all()) == 1

@pytest.mark.warmstack
def test_a_process_that_it_starts():
    code = "import app; app.sync_add('ada'); app.sync_cache.set('by', 'child')"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert app.sync_count() == 1
    assert app.sync_cache.get("by") == b"child"

def test_other_lines_are_set_too():
    assert os.environ["OTHER"] == "1"
"""
COUNT: Final = 11


def application(project: Library, *more: str, tests: str = TESTS) -> None:
    """Lay down the application, imported by a conftest file, and its lines."""
    project.write("app.py", APP)
    project.write("conftest.py", "import app\n")
    project.write("test_app.py", tests)
    project.configure(*LINES, *more)


@pytest.mark.parametrize("scope", ["function", "session"])
def test_the_application_is_not_changed(project: Library, scope: str) -> None:
    """Engines, clients, raw drivers, threads and processes meet this test's own databases."""
    application(project, f"asyncio_default_test_loop_scope = {scope}")

    for arguments in ([], [REUSE], [REUSE], [REUSE, "-n2"]):
        project.run("test_app.py", *arguments).assert_outcomes(passed=COUNT)


def test_workers_have_addresses_of_their_own(embedded_project: Library) -> None:
    """They have them before conftest files, although all use one server."""
    application(
        embedded_project,
        tests="import app, os, pytest\n\n@pytest.mark.parametrize('number', range(8))\n"
        "def test_place(db_url, number, worker_id):\n"
        "    assert db_url == app.URL\n"
        "    print('PLACE', worker_id, db_url.rpartition('/')[2], os.environ['REDIS_URL'][-3:])\n"
        "    app.sync_add(worker_id)\n",
    )

    result = embedded_project.run("test_app.py", "-n3", "-rP", "--dist=load")

    result.assert_outcomes(passed=8)
    places = {line for line in result.outlines if line.startswith("PLACE")}
    assert len(places) == len({line.split()[1] for line in places}) > 1
    assert len({line.split()[2] for line in places}) == len(places)
    assert len({line.split()[3] for line in places}) == len(places)
    assert_nothing_left(embedded_project.folder)


def test_unit_tests_start_nothing(embedded_project: Library) -> None:
    """The addresses are reserved, and no server is behind them."""
    project = embedded_project
    application(
        project,
        tests="import app, pytest, sys\n\n"
        "def test_unit():\n"
        "    assert app.URL.startswith('postgresql+asyncpg://postgres:')\n"
        "    assert 'docker' not in sys.modules\n"
        "    with pytest.raises(Exception, match='No test has a database of Redis now'):\n"
        "        app.sync_cache.ping()\n",
    )

    for arguments in ([], [REUSE]):
        project.run("test_app.py", *arguments).assert_outcomes(passed=1)
        assert project.folders() == []


def test_variables_are_put_back(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that had a value have it again, and the others are gone."""
    import os

    monkeypatch.setenv("DATABASE_URL", "postgresql+psycopg://me@prod/shop?application_name=shop")
    monkeypatch.delenv("SHOP", raising=False)
    pytester.makeini(
        "[pytest]\nwarmstack_runtime = embedded\nwarmstack_env =\n"
        "    DATABASE_URL={db_url}\n    SHOP=1\n"
    )
    pytester.makepyfile(
        "import os\ndef test_it():\n    url = os.environ['DATABASE_URL']\n"
        "    assert url.startswith('postgresql+psycopg://postgres:')\n"
        "    assert url.endswith('?application_name=shop')\n    assert os.environ['SHOP'] == '1'\n"
    )

    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.inline_run("-p", "warmstack", "-p", "no:cacheprovider").assertoutcome(passed=1)

    assert os.environ["DATABASE_URL"].startswith("postgresql+psycopg://me@prod")
    assert "SHOP" not in os.environ


AUTOUSE: Final = """
import app
import pytest

def test_one():
    app.sync_add("ada")
    assert app.sync_count() == 1

def test_two():
    app.sync_add("ada")
    assert app.sync_count() == 1
"""


@pytest.mark.slow
@pytest.mark.parametrize("line", ["test_app.py", "more/", "mor*/test_?.py", "database"])
def test_tests_are_named_by_a_path_or_a_marker(embedded_project: Library, line: str) -> None:
    """They request no fixture."""
    project = embedded_project
    tests = AUTOUSE
    if line == "database":
        tests = f"{AUTOUSE}\npytestmark = pytest.mark.database\n"
    application(
        project, f"warmstack_autouse = {line}", "markers = database: it uses one", tests=tests
    )
    name = "test_app.py"
    if line.startswith("mor"):
        project.write("more/test_a.py", tests)
        name = "more"

    project.run(name).assert_outcomes(passed=2)


def test_a_line_that_names_nothing_is_told(embedded_project: Library) -> None:
    """It may be misspelt."""
    application(embedded_project, "warmstack_autouse = test_ap.py", tests=AUTOUSE)

    result = embedded_project.run("test_app.py")

    result.stdout.fnmatch_lines(
        [
            "warmstack: warmstack_autouse: test_ap.py is neither a path below library nor a marker;"
            " did you mean test_app.py?"
        ]
    )


@pytest.mark.parametrize(
    ("lines", "tests"),
    [
        (["warmstack_autouse = test_library.py"], ""),
        ([], "import pytest\n\n@pytest.mark.warmstack\ndef test_it(): pass\n"),
    ],
    ids=["setting", "marker"],
)
def test_tests_that_can_not_reach_their_database_are_refused(
    embedded_project: Library, lines: Sequence[str], tests: str
) -> None:
    """Without `warmstack_env`, the application has no address."""
    embedded_project.configure(*lines)
    embedded_project.write("test_more.py", tests)

    result = embedded_project.run()

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [
            "*No variable of warmstack_env leads to the databases of tests.",
            "*DATABASE_URL={db_url}*",
        ]
    )


def test_a_test_that_never_connects_costs_no_clone(embedded_project: Library) -> None:
    """PostgreSQL tells whether a connection came; the next test gets the same database."""
    application(
        embedded_project,
        "warmstack_autouse = test_app.py",
        tests="import asyncio, asyncpg, app, pytest\n\n"
        "async def oid(url):\n"
        "    connection = await asyncpg.connect(url)\n"
        "    name = app.URL.rpartition('/')[2]\n"
        "    query = 'SELECT oid FROM pg_database WHERE datname = $1'\n"
        "    found = await connection.fetchval(query, name)\n"
        "    await connection.close()\n"
        "    return found\n\n"
        "oids = []\n\n"
        "@pytest.mark.parametrize('number', range(6))\n"
        "def test_it(postgres_container, number):\n"
        "    url = postgres_container.get_connection_url(driver=None)\n"
        "    oids.append(asyncio.run(oid(url)))\n"
        "    if number == 3:\n"
        "        app.sync_add('ada')\n"
        "def test_all():\n"
        "    assert len(set(oids[:4])) == len(set(oids[4:])) == 1\n"
        "    assert oids[3] != oids[4]\n",
    )

    embedded_project.run("test_app.py").assert_outcomes(passed=7)


ONE: Final = "import app\n\ndef test_it(db_url, redis_url):\n    app.sync_add('ada')\n"
"""The test of a run that is about addresses."""


def addresses(project: Library) -> list[tuple[int, str]]:
    """Run `ONE`, and return the port and the password of each server that is remembered then."""
    project.run(REUSE, "test_app.py").assert_outcomes(passed=1)
    kept = [project.kept(each) for each in ("postgres", "redis")]
    return [(each.port, each.password) for each in kept]


@pytest.mark.slow
def test_a_kept_server_has_the_same_port_again(embedded_project: Library) -> None:
    """A GUI client knows the port; the password is new if pytest's cache was removed."""
    application(embedded_project, tests=ONE)

    first = addresses(embedded_project)
    embedded_project.warmstack("clean")
    assert addresses(embedded_project) == first
    embedded_project.warmstack("clean")
    shutil.rmtree(embedded_project.folder / ".pytest_cache")
    again = addresses(embedded_project)
    assert [port for port, _ in again] == [port for port, _ in first]
    assert again != first


def test_a_server_that_has_ended_starts_again_at_its_address(project: Library) -> None:
    """Also in Docker, whose engine would start a stopped container on another port."""
    application(project, tests=ONE)
    first = addresses(project)
    for service in ("postgres", "redis"):
        project.stop(service, signal.SIGKILL)

    assert addresses(project) == first


@pytest.mark.slow
def test_a_running_server_is_found_without_the_cache(project: Library) -> None:
    """Its address is asked for before the application is imported."""
    application(project, tests=ONE)
    first = addresses(project)

    for option in (("-p", "no:cacheprovider"), ("--cache-clear",)):
        project.run(REUSE, *option, "test_app.py").assert_outcomes(passed=1)

    assert addresses(project) == first


@pytest.mark.slow
def test_two_runs_at_once(embedded_project: Library) -> None:
    """Each has its own database and its own index on the same servers, warm and cold."""
    project = embedded_project
    application(project, tests=WAITING)

    for _ in range(2):
        runs = [project.start(REUSE, "test_app.py", OUT=str(number)) for number in range(2)]
        files = [project.folder / f"running{number}" for number in range(2)]
        until(lambda files=files: all(file.exists() for file in files), "both run")
        (project.folder / "go").touch()
        for run in runs:
            run.wait().assert_outcomes(passed=1)
        assert len({file.read_text() for file in files}) == 2
        for file in (*files, project.folder / "go"):
            file.unlink()


WAITING: Final = """
import os
import time
from pathlib import Path

import app

def test_it(db_url):
    assert app.sync_count() == 0
    assert app.sync_cache.get("last") is None
    app.sync_add(os.environ["OUT"])
    Path("running" + os.environ["OUT"]).write_text(db_url + os.environ["REDIS_DB"])
    deadline = time.monotonic() + 60
    while not Path("go").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert app.sync_count() == 1
    assert app.sync_cache.get("last").decode() == os.environ["OUT"]
"""


@pytest.mark.slow
def test_each_process_has_its_own_redis(embedded_project: Library) -> None:
    """Its address is known when it runs, so it is started before the application is imported."""
    application(embedded_project, "warmstack_redis = per-process")

    for arguments in ([], [REUSE], [REUSE, "-n2"]):
        embedded_project.run("test_app.py", *arguments).assert_outcomes(passed=COUNT)


@pytest.mark.slow
def test_external_servers(embedded_project: Library, guest: Library) -> None:
    """Their addresses are those of the URLs."""
    embedded_project.run(REUSE, "test_library.py").assert_outcomes(passed=5)
    postgres, redis = (embedded_project.kept(each) for each in ("postgres", "redis"))
    guest.configure(
        "warmstack_postgres_url = "
        f"postgresql://postgres:{postgres.password}@{postgres.place}?sslmode=disable",
        f"warmstack_redis_url = redis://:{redis.password}@{redis.place}",
    )
    application(guest)

    for arguments in ([], ["-n2"]):
        guest.run("test_app.py", *arguments).assert_outcomes(passed=COUNT)


def test_migrations_get_the_template(embedded_project: Library) -> None:
    """The driver of the migrations is not that of the application."""
    project = embedded_project
    project.write("alembic.ini", "[alembic]\nscript_location = migrations\n")
    project.write(
        "migrations/env.py",
        "import os\nfrom alembic import context\nfrom sqlalchemy import create_engine\n"
        "with create_engine(os.environ['DATABASE_URL']).connect() as connection:\n"
        "    context.configure(connection=connection)\n"
        "    with context.begin_transaction():\n        context.run_migrations()\n",
    )
    application(project)

    project.run("test_app.py").assert_outcomes(passed=COUNT)


SHARED: Final = """
import app
import pytest

pytestmark = pytest.mark.warmstack_isolation("module")

@pytest.fixture(scope="module")
def data(db_url):
    app.sync_add("ada")

def test_one(data):
    assert app.sync_count() == 1

@pytest.mark.warmstack_isolation("clone")
def test_own(db_url):
    assert app.sync_count() == 0

def test_two(data):
    assert app.sync_count() == 1
"""


def test_a_module_has_its_database_again_after_a_test_with_its_own(
    embedded_project: Library,
) -> None:
    """The address leads to the one, to the other, and back."""
    application(embedded_project, tests=SHARED)

    embedded_project.run("test_app.py").assert_outcomes(passed=3)


SLOW_TO_LEAVE: Final = """
import asyncio
from threading import Event
from pytest_warmstack.postgres.address import Address

over, leave = Event(), Address.leave

async def late(*args):
    await asyncio.get_running_loop().run_in_executor(None, over.wait, 20)
    return await leave(*args)

Address.leave = late

def pytest_runtest_teardown(item):
    if item.name == "test_two":
        over.set()
"""


def test_a_module_does_not_wait_for_a_database_that_leaves_the_address(
    embedded_project: Library,
) -> None:
    """It leaves in the background, and may be late: the next test finds its own database there."""
    application(embedded_project, tests=SHARED)
    embedded_project.write("conftest.py", SLOW_TO_LEAVE)

    result = embedded_project.run("test_app.py")

    result.assert_outcomes(passed=3)
    result.stdout.no_fnmatch_line("*Traceback*")


def test_the_database_of_a_failed_test_is_saved(kept: Library) -> None:
    """It has its own name again, so that the next test can have the address."""
    application(
        kept,
        tests="import app\n\ndef test_fails(db_url):\n    app.sync_add('ada')\n    assert 0\n\n"
        "def test_next(db_url):\n    assert app.sync_count() == 0\n",
    )

    result = kept.run(REUSE, "test_app.py")

    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*test_fails: its database is saved: warmstack psql *"])


def test_the_connection_that_a_test_leaves_busy_is_reported(embedded_project: Library) -> None:
    """A pool that keeps an idle connection is no leak."""
    application(
        embedded_project,
        tests="import app\n\ndef test_idle(db_url):\n    app.sync_add('ada')\n\n"
        "def test_busy(db_url):\n    global left\n    left = app.sync_engine.connect()\n"
        "    left.execute(app.COUNT)\n\n"
        "def test_next(db_url):\n    assert app.sync_count() == 0\n",
    )

    result = embedded_project.run("test_app.py")

    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["*test_busy*left a connection*idle in transaction*"])
    result.stdout.no_fnmatch_line("*test_idle*left*")


@pytest.mark.slow
def test_a_port_that_was_taken_meanwhile(embedded_project: Library) -> None:
    """The error says so, and the next run has another port."""
    project = embedded_project
    application(project)
    project.write(
        "conftest.py",
        "import app, os, socket\nfrom pathlib import Path\n\n"
        "def pytest_collection_finish():\n"
        "    if not Path('taken').exists():\n"
        "        global taken\n"
        "        taken = socket.create_server((os.environ['REDIS_HOST'],\n"
        "                                      int(os.environ['REDIS_PORT'])))\n"
        "        Path('taken').touch()\n",
    )

    refused = project.run(REUSE, "test_app.py", "-k", "test_sync and 1")

    refused.assert_outcomes(errors=1, deselected=COUNT - 1)
    refused.stdout.fnmatch_lines(
        ["*Another program uses the port that was reserved for Redis.", "*run again*"]
    )
    project.run(REUSE, "test_app.py").assert_outcomes(passed=COUNT)


def test_an_application_that_connects_when_it_is_imported(embedded_project: Library) -> None:
    """The error comes with the stack that did it, also from a test that has no database."""
    project = embedded_project
    application(project, tests="def test_it(db_url): pass\n")
    project.write("early.py", "import app\n\nBOOKS = app.sync_count()\n")
    project.write("test_early.py", "import early\n\ndef test_it(db_url): pass\n")
    project.write("test_unit.py", "import app\n\ndef test_it():\n    app.sync_count()\n")

    early, unit = project.run("test_early.py"), project.run("test_app.py", "test_unit.py")

    early.assert_outcomes(errors=1)
    early.stdout.fnmatch_lines(
        [
            "early.py:3: in <module>",
            "*No test has a database of PostgreSQL now, but psycopg connects to it.",
            "*connect when the application starts, not when it is imported",
        ]
    )
    unit.assert_outcomes(passed=1, failed=1)
    unit.stdout.fnmatch_lines(
        ["*test_unit.py::test_it has none", "*warmstack_autouse = test_unit.py, in pytest.ini*"]
    )


def test_a_variable_that_the_application_does_not_read(embedded_project: Library) -> None:
    """No connection ever comes to the address."""
    project = embedded_project
    project.configure("warmstack_env = DATABASE_URI={db_url}")
    project.write("test_app.py", "def test_it(db_url): pass\n")
    (project.folder / "test_library.py").unlink()

    result = project.run()

    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["warmstack: no test has connected to its database, to which DATABASE_URI leads: *"]
    )
    # Some tests need no database.
    project.run("test_app.py").stdout.no_fnmatch_line("*no test has connected*")
    project.write("test_app.py", USES)
    project.run().stdout.no_fnmatch_line("*no test has connected*")


USES: Final = """
import asyncpg

async def test_it(db_dsn):
    await (await asyncpg.connect(db_dsn)).close()
"""


@pytest.mark.slow
def test_what_pytest_env_sets_is_overridden(embedded_project: Library) -> None:
    """Its variables are set first."""
    project = embedded_project
    application(
        project, "env =", "    DATABASE_URL=postgresql+asyncpg://me@prod/shop", "    MORE=1"
    )

    project.run("test_app.py", "-p", "env").assert_outcomes(passed=COUNT)


@pytest.mark.slow
@pytest.mark.parametrize("isolation", ["clone", "class", "module", "session"])
def test_each_isolation_leads_the_address_to_its_database(
    embedded_project: Library, isolation: str
) -> None:
    """Tests that share a database see each other's rows; two services never do."""
    project = embedded_project
    shared = isolation == "session"
    application(project, f"warmstack_isolation = {isolation}", "warmstack_autouse = one two")
    (project.folder / "pytest.ini").write_text(
        (project.folder / "pytest.ini").read_text().replace("= one two", "=\n    one/\n    two/")
    )
    for name in ("one", "two"):
        for file in ("alembic.ini", "migrations"):
            copy = project.folder / name / file
            copy.parent.mkdir(exist_ok=True)
            (shutil.copytree if file == "migrations" else shutil.copy)(project.folder / file, copy)
        project.write(
            f"{name}/test_{name}.py",
            "import app\nimport pytest\n\n"
            f"SHARED = {isolation != 'clone'}\n\n"
            "class TestAll:\n"
            "    def test_first(self):\n"
            f"        app.sync_add('{name}')\n\n"
            "    def test_second(self):\n"
            "        assert app.sync_count() == SHARED\n"
            "        if SHARED:\n"
            "            with app.sync_engine.connect() as connection:\n"
            "                found = connection.scalar(app.text('SELECT name FROM author'))\n"
            f"            assert found == '{name}'\n",
        )
    for file in ("alembic.ini", "migrations", "test_library.py", "test_app.py"):
        path = project.folder / file
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    order = [
        f"{name}/test_{name}.py::TestAll::test_{each}"
        for each in ("first", "second")
        for name in ("one", "two")
    ]

    project.run(*(order if shared else ["one", "two"])).assert_outcomes(passed=4)


UNITTEST: Final = """
import unittest

import app
import pytest

@pytest.mark.warmstack
class Books(unittest.TestCase):
    def setUp(self):
        app.sync_add("ada")

    def test_one(self):
        self.assertEqual(app.sync_count(), 1)

    def test_two(self):
        self.assertEqual(app.sync_count(), 1)

@pytest.mark.warmstack
class AsyncBooks(unittest.IsolatedAsyncioTestCase):
    async def test_one(self):
        await app.add("ada")
        self.assertEqual(await app.count(), 1)

    async def test_two(self):
        self.assertEqual(await app.count(), 0)
"""


def test_classes_of_unittest(embedded_project: Library) -> None:
    """They can request no fixture, so the marker is their way."""
    application(embedded_project, tests=UNITTEST)

    embedded_project.run("test_app.py").assert_outcomes(passed=4)


WIDE: Final = """
import app
import pytest

@pytest.fixture(scope="session")
def client():
    # As a client that runs the application's lifespan.
    assert app.sync_count() == 0
    app.sync_add("ada")
    yield app
    app.sync_engine.dispose()

@pytest.mark.parametrize("number", range(3))
def test_it(client, db_url, number):
    assert app.sync_count() == (number == 0)
"""


def test_a_wide_fixture_that_connects_finds_the_database_of_the_first_test(
    embedded_project: Library,
) -> None:
    """The database is requested before all else; the next test has a fresh one."""
    application(embedded_project, tests=WIDE)

    embedded_project.run("test_app.py").assert_outcomes(passed=3)


def test_a_test_that_rolls_back_beside_the_application(embedded_project: Library) -> None:
    """The application commits, so the next test gets another database, and the run says why."""
    application(
        embedded_project,
        "warmstack_isolation = rollback",
        tests="import app\n\nasync def test_own(db_session):\n"
        "    await db_session.execute(app.ADD, {'name': 'ada'})\n"
        "    await db_session.commit()\n\n"
        "async def test_application(db_session):\n    await app.add('bob')\n\n"
        "async def test_next(db_session):\n    assert await app.count() == 0\n",
    )

    result = embedded_project.run("test_app.py")

    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(["*test_application: it connected to its database without*"])


EAGER: Final = """
import os
import subprocess
import sys
import time

import app
import pytest

LOOP = '''
import os, psycopg
while True:
    try:
        with psycopg.connect(os.environ["DSN"], connect_timeout=5) as connection:
            connection.execute("SELECT 1")
    except psycopg.Error:
        pass
'''

@pytest.fixture(scope="session", autouse=True)
def others():
    made = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(2)]
    yield
    for each in made:
        each.kill()
        each.wait()

@pytest.mark.parametrize("number", range(8))
def test_it(db_url, number):
    assert app.sync_count() == 0
    app.sync_add("ada")
    assert number % 4
"""


@pytest.mark.slow
def test_processes_that_reconnect_at_once(kept: Library) -> None:
    """Each database gets its own name again all the same, so that those of failures are saved."""
    application(kept, tests=EAGER)

    result = kept.run(REUSE, "test_app.py")

    result.assert_outcomes(passed=6, failed=2)
    saved = [line for line in result.outlines if "its database is saved: warmstack psql" in line]
    assert len(saved) == 2


UNCOVERED: Final = """
import app
import pytest

def test_covered(redis_url):
    app.sync_cache.set("left", "1")

def test_unit():
    app.sync_cache.keys("*")

async def test_async_unit():
    await app.cache.keys("*")
"""


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [(), (REUSE,), ("-k", "unit")], ids=str)
def test_a_test_that_has_no_redis_is_told(kept: Library, arguments: Sequence[str]) -> None:
    """It never reads what another test has left, whether or not the server runs already."""
    application(kept, tests=UNCOVERED)

    result = kept.run("test_app.py", *arguments)

    result.assert_outcomes(
        passed=int("-k" not in arguments), failed=2, deselected="-k" in arguments
    )
    result.stdout.fnmatch_lines(
        [
            "*NoDatabaseYet: No test has a database of Redis now, but redis-py connects to it.",
            "*is behind REDIS_URL, REDIS_HOST, *; test_app.py::test_unit has none",
        ]
    )
