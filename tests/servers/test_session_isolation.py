"""The isolation `session`: one database for all tests of a process."""

from __future__ import annotations

import shutil

import pytest

from projects import Library, until

REUSE = "--reuse-containers"
SESSION = "--warmstack-isolation=session"

AUTHORS = """
from pathlib import Path
from sqlalchemy import text


def note(line):
    with Path(__file__).with_name("noted.log").open("a") as log:
        log.write(f"{line}\\n")


async def add(engine, number):
    async with engine.begin() as connection:
        await connection.execute(text(f"INSERT INTO author VALUES ({number}, 'Octavia')"))


async def count(session):
    return await session.scalar(text("SELECT count(*) FROM author"))
"""

CONFTEST = """
import asyncpg
import pytest
import pytest_asyncio
from authors import note


@pytest.fixture(scope="session")
def application(db_url, db_engine):
    note(f"application {db_url}")
    return db_engine


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def seeded(db_dsn):
    connection = await asyncpg.connect(db_dsn, ssl=False)
    await connection.execute("INSERT INTO author VALUES (1, 'Ursula')")
    await connection.close()
    yield
    connection = await asyncpg.connect(db_dsn, ssl=False)
    note(f"at the end {await connection.fetchval('SELECT count(*) FROM author')}")
    await connection.close()

"""

TESTS = """
import pytest
from authors import add, count


@pytest.fixture(scope="module")
def of_module(db_url):
    return db_url


class TestClass:
    @pytest.fixture(scope="class")
    @classmethod
    def of_class(cls, db_url):
        return db_url

    async def test_in_a_class(self, seeded, application, of_class, of_module, db_url, db_engine):
        assert of_class == of_module == db_url
        assert application is db_engine
        await add(db_engine, NUMBER)


async def test_in_another_loop(application, db_session, db_engine):
    assert application is db_engine is db_session.bind
    assert await count(db_session) == NUMBER


@pytest.mark.warmstack_isolation("clone")
async def test_with_a_database_of_its_own(db_session):
    assert await count(db_session) == 0
"""


def noted(project: Library) -> list[str]:
    """Return what the tests noted."""
    return project.lines("noted.log")


@pytest.fixture
def suite(kept: Library) -> Library:
    """A suite of two modules, whose session-scoped fixtures use the database."""
    (kept.folder / "test_library.py").unlink()
    kept.write("conftest.py", CONFTEST)
    kept.write("authors.py", AUTHORS)
    for number in (2, 3):
        kept.write(f"test_{number}.py", TESTS.replace("NUMBER", str(number)))
    return kept


@pytest.mark.parametrize("arguments", [(SESSION,), ("-o", "warmstack_isolation=session")])
def test_fixtures_of_every_scope_share_one_database(
    suite: Library, arguments: tuple[str, ...]
) -> None:
    """By its URL and by one engine, in every module; it is dropped after the last test."""
    result = suite.run(REUSE, *arguments, "-W", "error")

    result.assert_outcomes(passed=6)
    first, last = noted(suite)
    assert first.startswith("application postgresql+asyncpg://")
    assert last == "at the end 3"
    result.stdout.no_fnmatch_line("*it left*")
    until(lambda: not suite.databases("u"), "all used clones are dropped", seconds=15)


def test_each_worker_of_xdist_has_one(suite: Library) -> None:
    """As each has servers' connections of its own."""
    result = suite.run(REUSE, SESSION, "-n2", "--dist=loadfile", "-k", "of_its_own or class")

    result.assert_outcomes(passed=4)
    assert len({line for line in noted(suite) if line.startswith("application")}) == 2
    assert noted(suite).count("at the end 2") == 2


def test_marked_modules_classes_and_tests_share_one(kept: Library) -> None:
    """The other tests have a clone each, and fixtures of a marked module may use the database."""
    marker = 'pytest.mark.warmstack_isolation("session")'
    kept.write("conftest.py", CONFTEST)
    kept.write("authors.py", AUTHORS)
    kept.write(
        "test_marked.py",
        f"import pytest\nfrom authors import *\npytestmark = {marker}\n\n"
        "async def test_it(seeded, application, db_engine, db_url):\n"
        "    await add(db_engine, 2)\n    note(f'shared {db_url}')\n",
    )
    kept.write(
        "test_others.py",
        f"import pytest\nfrom authors import *\n\n@{marker}\nclass TestClass:\n"
        "    async def test_it(self, seeded, application, db_engine, db_session, db_url):\n"
        "        assert application is db_engine\n        note(f'shared {db_url}')\n"
        "        assert await count(db_session) == 2\n\n"
        f"@{marker}\nasync def test_it(db_session, db_url):\n"
        "    assert await count(db_session) == 2\n    note(f'shared {db_url}')\n\n"
        "async def test_other(db_session, db_url):\n"
        "    assert await count(db_session) == 0\n    note(f'own {db_url}')\n",
    )

    kept.run(REUSE, "-W", "error", "test_marked.py", "test_others.py").assert_outcomes(passed=4)

    urls = [line.partition(" ") for line in noted(kept) if "at the end" not in line]
    assert len(urls) == 5
    assert len({url for word, _, url in urls if word in {"shared", "application"}}) == 1
    assert len({url for _, _, url in urls}) == 2


def test_what_is_left_and_who_failed_are_reported_once(kept: Library) -> None:
    """The saved database names the tests that failed with it, and no other test."""
    kept.write(
        "test_failing.py",
        "import asyncpg, pytest\nLEFT = []\n\n"
        "async def test_that_leaves_a_connection(db_dsn):\n"
        "    LEFT.append(await asyncpg.connect(db_dsn, ssl=False))\n\n"
        "async def test_that_fails(db_engine):\n    assert 0\n\n"
        "@pytest.mark.warmstack_isolation('clone')\n"
        "async def test_that_fails_alone(db_engine):\n    assert 0\n\n"
        "def test_without_a_database():\n    assert 0\n",
    )
    options = ("-p", "no:unraisableexception", "--asyncio-mode=auto")
    kept.configure("asyncio_default_test_loop_scope = session")

    result = kept.run(REUSE, SESSION, *options, "test_failing.py")

    result.assert_outcomes(passed=1, failed=3)
    lines = [line for line in result.outlines if "its database is saved" in line]
    assert [line.split(": ")[1] for line in lines] == [
        "test_failing.py::test_that_fails_alone",
        "test_failing.py::test_that_fails",
    ]
    result = kept.run(REUSE, SESSION, *options, "test_failing.py", "-k", "leaves")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["warmstack: the tests of this process: it left a connection*"])


def test_a_fixture_of_the_users_own_stays_in_place(suite: Library) -> None:
    """In a folder of its own; the others have the shared database."""
    suite.write(
        "below/conftest.py",
        "import pytest\n@pytest.fixture(scope='session')\ndef db_url():\n"
        "    return 'postgresql+asyncpg://somebody@127.0.0.1:1/else'\n",
    )
    suite.write(
        "below/test_own.py",
        "def test_own(db_engine, db_dsn):\n"
        "    assert db_engine.url.port == 1\n    assert db_dsn.endswith(':1/else')\n",
    )

    suite.run(REUSE, SESSION).assert_outcomes(passed=7)


def test_each_alembic_configuration_has_one(embedded_project: Library) -> None:
    """A session-scoped fixture of a service has the database of that service."""
    project = embedded_project
    root = project.folder
    for name in ("users", "orders"):
        service = root / "services" / name
        service.mkdir(parents=True)
        shutil.copy(root / "alembic.ini", service)
        shutil.copytree(root / "migrations", service / "migrations")
        project.write(
            f"services/{name}/conftest.py",
            "import pytest\nSEEN = set()\n\n@pytest.fixture(scope='session')\n"
            "def of_service(db_url, db_engine):\n    SEEN.add(db_url)\n    return db_engine\n",
        )
        for number in (1, 2):
            project.write(
                f"services/{name}/tests/test_{name}_{number}.py",
                "from sqlalchemy import text\n\n"
                "async def test_it(of_service, db_engine, db_session, db_url):\n"
                "    assert of_service is db_engine\n"
                f"    assert await db_session.scalar(text('SELECT count(*) FROM {name}'))"
                f" == {number} - 1\n"
                f"    await db_session.execute(text('INSERT INTO {name} VALUES ({number})'))\n"
                "    await db_session.commit()\n",
            )
        versions = service / "migrations" / "versions"
        shutil.rmtree(versions)
        project.write(
            f"services/{name}/migrations/versions/one.py",
            "from alembic import op\nrevision = '1'\ndown_revision = None\n\n"
            f"def upgrade():\n    op.execute('CREATE TABLE {name} (id int)')\n",
        )
    (root / "alembic.ini").unlink()
    (root / "test_library.py").unlink()

    # In turn, so that no database is the last one that was made.
    tests = [
        f"services/{name}/tests/test_{name}_{n}.py" for n in (1, 2) for name in ("users", "orders")
    ]
    project.run(REUSE, SESSION, *tests).assert_outcomes(passed=4)

    until(lambda: not project.databases("u"), "all used clones are dropped", seconds=15)
