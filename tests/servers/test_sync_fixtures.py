"""The synchronous fixtures: in every isolation, with either driver, and without event loops."""

from __future__ import annotations

import re

import pytest

from projects import Library

REUSE = "--reuse-containers"

BEGIN = """
import os
import threading
from pathlib import Path
import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

INSERT = text("INSERT INTO author VALUES (1, 'Ursula')")

def authors(session):
    return session.scalar(text("SELECT count(*) FROM author"))

def add(session):
    assert authors(session) == 0
    session.execute(INSERT)
    session.commit()

def note(line):
    with Path("noted.log").open("a") as log:
        log.write(f"{line}\\n")

LEFT = []
"""

BLOCK = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name in {NAMES}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

for name in [each for each in sys.modules if each.partition(".")[0] in {NAMES}]:
    del sys.modules[name]
sys.meta_path.insert(0, Block())
"""
"""A conftest.py without drivers; the runs here are forked from a process that may have them."""

NO_LOOP = ("--disable-plugin-autoload", "-p", "warmstack", "-p", "no:asyncio")
ANYIO = ("--disable-plugin-autoload", "-p", "warmstack", "-p", "no:asyncio", "-p", "anyio")

DRIVERS = ["psycopg", "psycopg2"]


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest, kept: Library) -> str:
    """The one driver that the project has."""
    name: str = request.param
    hidden = {each for each in DRIVERS if each != name}
    kept.write("conftest.py", BLOCK.replace("{NAMES}", repr(hidden)))
    kept.edit("pytest.ini", "asyncio_mode = auto\n", "")
    kept.edit("pytest.ini", "asyncio_default_fixture_loop_scope = function\n", "")
    return name


def run(project: Library, *arguments: str, **variables: str) -> pytest.RunResult:
    """Return the result of a run without any plugin for event loops, in which warnings are errors.

    SQLAlchemy 2.1 and psycopg2 know of a connection that was cut off only when they use it.
    """
    command = ("pytest", *NO_LOOP)
    options = (REUSE, "-W", "error", *arguments)
    return project.start(*options, command=command, **variables).wait()


def accused(result: pytest.RunResult) -> dict[str, str]:
    """Return why a test's database was not used again, by the test's name."""
    pattern = r"warmstack: .*::(\w+): (.*); its database was not used again"
    return {match[1]: match[2] for line in result.outlines if (match := re.match(pattern, line))}


CLONE = """
ENGINES = []

@pytest.mark.parametrize("number", range(3))
def test_a_database_of_its_own(db_sync_engine, db_sync_session, db_url, number):
    assert db_sync_engine.dialect.driver == DRIVER
    assert db_sync_engine.url.render_as_string(hide_password=False) == db_url.replace(
        "asyncpg", DRIVER)
    assert isinstance(db_sync_session, Session) and db_sync_session.bind is db_sync_engine
    assert all(each.url.database != db_sync_engine.url.database for each in ENGINES)
    ENGINES.append(db_sync_engine)
    assert len({id(each.pool) for each in ENGINES}) == len(ENGINES)
    assert len({id(each.dialect) for each in ENGINES}) == 1
    add(db_sync_session)
    with pytest.raises(IntegrityError):
        db_sync_session.execute(INSERT)
    db_sync_session.rollback()
    assert authors(db_sync_session) == 1

def test_threads_have_connections_of_their_own(db_sync_engine, db_sync_session):
    db_sync_session.execute(INSERT)
    seen = []
    def look():
        with Session(db_sync_engine) as session:
            seen.append(authors(session))
    for _ in range(2):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        db_sync_session.commit()
    assert seen == [0, 1]

def test_that_leaves_connections_open(db_sync_engine, db_sync_session):
    LEFT.append(db_sync_engine.connect())
    LEFT[-1].execute(INSERT)
    LEFT.append(db_sync_engine.connect())
    LEFT[-1].execute(text("SELECT pg_advisory_lock(1)"))
    authors(db_sync_session)
    LEFT.append(db_sync_session)

def test_that_connects_elsewhere(db_sync_engine):
    @event.listens_for(db_sync_engine, "do_connect")
    def begun(dialect, record, arguments, options):
        options["application_name"] = "its own"
    with db_sync_engine.connect() as connection:
        name = text("SELECT current_setting('application_name')")
        assert connection.scalar(name) == "its own"

def test_that_connects_again(db_sync_engine):
    with db_sync_engine.connect() as connection:
        name = text("SELECT current_setting('application_name')")
        assert connection.scalar(name) == ""

def test_all_is_there_that_a_driver_can_do(db_sync_session):
    query = "SELECT '{\\"a\\": 1}'::jsonb, '[1]'::json, '{1,2}'::int[]"
    assert db_sync_session.execute(text(query)).one() == ({"a": 1}, [1], [1, 2])
    rows = db_sync_session.execute(
        text("SELECT generate_series(1, 3)"), execution_options={"yield_per": 1})
    assert [row[0] for row in rows] == [1, 2, 3]

def test_the_isolation_level(db_sync_engine):
    with db_sync_engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("VACUUM"))

def test_that_ends_every_connection(db_sync_session, db_sync_engine):
    db_sync_session.execute(INSERT)
    with db_sync_engine.connect() as connection:
        connection.execute(text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"))

def test_after_it(db_sync_session):
    add(db_sync_session)
"""


def test_every_test_has_a_database_of_its_own(kept: Library, driver: str) -> None:
    """Engines share a dialect, and nothing that a test leaves behind."""
    kept.write("test_clone.py", f"{BEGIN}DRIVER = {driver!r}\n{CLONE}")

    result = run(kept, "test_clone.py")

    result.assert_outcomes(passed=11)
    assert "it left a connection" not in result.stdout.str()
    assert kept.databases("u") == []


RUNNING = """
THREADS = []

def leave_running(session, statement):
    driver = session.connection().connection.driver_connection
    def wait():
        try:
            session.execute(text(statement))
        except DBAPIError:
            note("ended")
    THREADS.append(threading.Thread(target=wait))
    THREADS[-1].start()
    while driver.info.transaction_status != 1:
        pass

def test_that_leaves_statements_running(db_sync_engine, db_sync_session):
    first = Session(db_sync_engine)
    first.execute(text("LOCK TABLE author"))
    leave_running(db_sync_session, "SELECT count(*) FROM author")
    leave_running(first, "SELECT pg_sleep(60)")

def test_after_it(db_sync_session):
    for thread in THREADS:
        thread.join(10)
        assert not thread.is_alive()
    add(db_sync_session)
"""


def test_a_thread_that_waits_for_an_answer_holds_nothing_up(kept: Library, driver: str) -> None:
    """Neither the test's session nor its engine waits for it; the thread gets an error."""
    kept.write("test_running.py", BEGIN + RUNNING)

    result = run(kept, "test_running.py")

    result.assert_outcomes(passed=2)
    assert kept.lines("noted.log") == ["ended", "ended"]
    assert kept.databases("u") == []


WIDER = """
pytestmark = pytest.mark.warmstack_isolation("WORD")

class TestShared:
    @pytest.fixture(scope="class")
    @classmethod
    def engine(cls, db_sync_engine, db_address, db_dsn):
        assert db_sync_engine.url.database == db_address.name
        with Session(db_sync_engine) as session:
            add(session)
        return db_sync_engine

    @pytest.mark.parametrize("number", range(2))
    def test_each(self, engine, db_sync_engine, db_sync_session, db_address, db_dsn, number):
        assert engine is db_sync_engine
        assert authors(db_sync_session) == number + 1
        db_sync_session.execute(text(f"INSERT INTO author VALUES ({number + 2}, 'U')"))
        db_sync_session.commit()
        assert db_dsn.endswith(f"/{db_address.name}")
        note(f"{type(self).__name__} {db_address.name}")

    @pytest.mark.warmstack_isolation("clone")
    def test_the_closest_word_counts(self, db_sync_session, db_address):
        add(db_sync_session)
        note(f"own {db_address.name}")

class TestAfter:
    def test_it(self, db_sync_session, db_address):
        assert authors(db_sync_session) == (3 if "WORD" == "module" else 0)
        note(f"{type(self).__name__} {db_address.name}")
"""


@pytest.mark.parametrize("word", ["class", "module"])
def test_a_class_or_a_module_shares_an_engine(kept: Library, driver: str, word: str) -> None:
    """A fixture of that scope can have it, and the parts of its address."""
    kept.write("test_wider.py", BEGIN + WIDER.replace("WORD", word))

    result = run(kept, "test_wider.py")

    result.assert_outcomes(passed=4)
    lines = [line.split() for line in kept.lines("noted.log")]
    named = {name: {database for each, database in lines if each == name} for name, _ in lines}
    assert named["own"].isdisjoint(named["TestShared"])
    assert (named["TestAfter"] == named["TestShared"]) == (word == "module")
    assert kept.databases("u") == []


UNDONE = """
pytestmark = pytest.mark.warmstack_isolation("rollback")

@pytest.mark.parametrize("number", range(3))
def test_a_commit_is_a_savepoint(db_sync_session, db_sync_engine, db_url, number):
    note(db_url)
    add(db_sync_session)
    with pytest.raises(IntegrityError):
        db_sync_session.execute(INSERT)
    db_sync_session.rollback()
    assert authors(db_sync_session) == 1
    db_sync_session.execute(text("INSERT INTO author VALUES (2, 'Ada')"))
    db_sync_session.rollback()
    with Session(db_sync_engine) as other, other.begin():
        assert authors(other) == 1
        with other.begin_nested():
            other.execute(text("INSERT INTO author VALUES (2, 'Ada')"))
    assert authors(db_sync_session) == 2

def test_a_commit_of_what_failed_is_a_rollback(db_sync_engine):
    with db_sync_engine.connect() as connection:
        connection.execute(INSERT)
        driver = connection.connection.driver_connection
        with pytest.raises(DBAPIError):
            connection.exec_driver_sql("SELECT 1 / 0")
        driver.commit()
        assert authors(connection) == 0

def test_what_no_transaction_undoes(db_sync_session):
    db_sync_session.execute(text("SELECT pg_advisory_lock(7)"))
    db_sync_session.execute(text("SET app.tenant = 'one'"))
    db_sync_session.execute(text("LISTEN news"))
    db_sync_session.execute(text("CREATE TEMP TABLE mine (id int)"))
    db_sync_session.commit()

def test_is_undone_all_the_same(db_sync_session, db_url):
    note(db_url)
    query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (" \\
        "SELECT oid FROM pg_database WHERE datname = current_database())"
    assert db_sync_session.scalar(text(query)) == 0
    assert not db_sync_session.scalar(text("SELECT current_setting('app.tenant', true)"))
    assert db_sync_session.scalar(text("SELECT to_regclass('pg_temp.mine')")) is None
    assert db_sync_session.scalar(text("SELECT count(*) FROM pg_listening_channels()")) == 0

def test_a_thread_uses_the_same_connection(db_sync_engine, db_sync_session):
    add(db_sync_session)
    seen = []
    def look():
        with Session(db_sync_engine) as session:
            seen.append(authors(session))
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [1]

@pytest.mark.parametrize("number", range(6))
def test_a_table_of_the_tests_own(db_sync_session, number):
    kind = "int" if number % 2 else "text"
    db_sync_session.execute(text(f"CREATE TABLE own AS SELECT '1'::{kind} AS a"))
    for _ in range(8):
        assert db_sync_session.scalar(text("SELECT a FROM own")) in (1, "1")
    db_sync_session.commit()

def test_rows_one_by_one(db_sync_session):
    rows = db_sync_session.execute(
        text("SELECT generate_series(1, 3)"), execution_options={"yield_per": 1})
    assert [row[0] for row in rows] == [1, 2, 3]

def test_that_connects_never(db_sync_session, db_sync_engine): pass
"""


def test_what_tests_do_is_undone(kept: Library, driver: str) -> None:
    """They share one database, commit, fail and go on, and see nothing of each other."""
    kept.write("test_undone.py", BEGIN + UNDONE)

    result = run(kept, "test_undone.py")

    result.assert_outcomes(passed=15)
    assert accused(result) == {}
    assert len(kept.lines("noted.log")) == 4
    assert len(set(kept.lines("noted.log"))) == 1
    assert "it left a connection" not in result.stdout.str()
    assert kept.databases("u") == []


LEAKING = """
pytestmark = pytest.mark.warmstack_isolation("rollback")

@pytest.fixture(autouse=True)
def noted(db_url):
    note(db_url)

def test_that_commits_by_hand(db_sync_session):
    db_sync_session.execute(INSERT)
    db_sync_session.execute(text("COMMIT"))
    db_sync_session.commit()

def test_after_it(db_sync_session):
    add(db_sync_session)

def test_that_connects_by_itself(db_sync_engine):
    own = create_engine(db_sync_engine.url, connect_args={"sslmode": "disable"})
    with own.begin() as connection:
        connection.execute(INSERT)
    own.dispose()

def test_after_that(db_sync_session):
    add(db_sync_session)

def test_that_disposes(db_sync_session, db_sync_engine):
    add(db_sync_session)
    db_sync_session.close()
    db_sync_engine.dispose()
    with db_sync_engine.begin() as connection:
        connection.execute(INSERT)

def test_after_this(db_sync_session):
    add(db_sync_session)

def test_that_commits_and_begins_again(db_sync_session):
    db_sync_session.execute(INSERT)
    db_sync_session.execute(text("COMMIT AND CHAIN"))

def test_after_that_one(db_sync_session):
    add(db_sync_session)

def test_that_leaves_a_statement_running(db_sync_session):
    db_sync_session.execute(INSERT)
    driver = db_sync_session.connection().connection.driver_connection
    def wait():
        try:
            db_sync_session.execute(text("SELECT pg_sleep(60)"))
        except DBAPIError:
            note("ended")
    LEFT.append(threading.Thread(target=wait))
    LEFT[-1].start()
    while driver.info.transaction_status != 1:
        pass

def test_after_this_one(db_sync_session):
    LEFT[-1].join(10)
    assert not LEFT[-1].is_alive()
    add(db_sync_session)

def test_whose_connection_is_ended(db_sync_session, db_sync_engine):
    db_sync_session.execute(INSERT)
    with pytest.raises(DBAPIError):
        db_sync_session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

def test_at_last(db_sync_session):
    add(db_sync_session)
"""


def test_one_that_commits_for_real_is_found_out(kept: Library, driver: str) -> None:
    """By COMMIT, over a connection of its own, or by a pool that it ended: another one follows."""
    kept.write("test_leaking.py", BEGIN + LEAKING)

    result = run(kept, "test_leaking.py")

    result.assert_outcomes(passed=12)
    why = accused(result)
    assert why == {
        "test_that_commits_by_hand": "it ended the transaction around it, as COMMIT does",
        "test_that_connects_by_itself": "it connected to its database without db_engine or"
        " db_sync_engine",
        "test_that_disposes": "its connection was closed",
        "test_that_commits_and_begins_again": "it ended the transaction around it, as COMMIT does",
        "test_that_leaves_a_statement_running": "what it did could not be undone: a statement is"
        " still running",
        "test_whose_connection_is_ended": "its connection was closed",
    }
    # One database for each test that spoils it and the one after it.
    urls = [line for line in kept.lines("noted.log") if line != "ended"]
    assert [urls.count(url) for url in dict.fromkeys(urls)] == [1, 2, 2, 2, 2, 2, 1]
    assert "ended" in kept.lines("noted.log")


BOTH = """
@pytest.mark.warmstack_isolation("rollback")
@pytest.mark.parametrize("number", range(2))
async def test_async_first(db_session, db_sync_session, number): pass

@pytest.mark.warmstack_isolation("rollback")
async def test_sync_first(db_sync_engine, db_engine): pass

@pytest.mark.warmstack_isolation("rollback")
@pytest.mark.parametrize("number", range(2))
class TestInTurn:
    async def test_sync(self, db_sync_session, db_url, number):
        note(db_url)
        add(db_sync_session)

    async def test_async(self, db_session, db_url, number):
        note(db_url)
        assert await db_session.scalar(text("SELECT count(*) FROM author")) == 0
        await db_session.execute(INSERT)
        await db_session.commit()

async def test_a_clone_has_both(db_session, db_sync_session):
    add(db_sync_session)
    assert await db_session.scalar(text("SELECT count(*) FROM author")) == 1
"""


def test_a_rollback_has_one_connection(kept: Library) -> None:
    """A test that uses both kinds of fixtures fails; two tests of both kinds share a database."""
    kept.write("test_both.py", BEGIN + BOTH)

    result = kept.run(REUSE, "test_both.py", "-W", "error")

    result.assert_outcomes(passed=5, errors=3)
    text = result.stdout.str()
    assert text.count("a test can't use db_engine and db_sync_engine together") == 3
    assert '@pytest.mark.warmstack_isolation("clone")' in text
    assert accused(result) == {}
    assert len(set(kept.lines("noted.log"))) == 1


def test_psycopg_is_preferred(kept: Library) -> None:
    """Both drivers are installed; and an async def can use a synchronous session."""
    kept.write(
        "test_preferred.py",
        BEGIN + "async def test_it(db_sync_session, redis_sync_client):\n"
        "    assert db_sync_session.bind.dialect.driver == 'psycopg'\n"
        "    add(db_sync_session)\n"
        "    redis_sync_client.set('a', 1)\n",
    )

    kept.run(REUSE, "test_preferred.py", "-W", "error").assert_outcomes(passed=1)


def test_without_a_driver_only_what_needs_it_fails(kept: Library) -> None:
    """The error has the line to install one."""
    kept.write("conftest.py", BLOCK.replace("{NAMES}", repr(set(DRIVERS))))
    kept.write(
        "test_none.py",
        "import pytest\n"
        "@pytest.mark.parametrize('number', range(2))\n"
        "def test_session(db_sync_session, number): pass\n"
        "async def test_other(db_session, db_url, db_dsn, redis_sync_client):\n"
        "    assert redis_sync_client.ping()\n",
    )

    result = kept.run(REUSE, "test_none.py")

    result.assert_outcomes(passed=1, errors=2)
    result.stdout.fnmatch_lines(
        [
            "No synchronous driver of PostgreSQL is installed.",
            "*import psycopg: No module named 'psycopg'",
            "*import psycopg2: No module named 'psycopg2'",
            '*pip install "psycopg?binary?"',
        ]
    )
    assert result.stdout.str().count('- pip install "psycopg') == 1


PLAIN = """
def test_everything(
    db_url, db_dsn, db_address, db_sync_engine, db_sync_session, redis_url, redis_urls,
    redis_sync_client, redis_process_url, postgres_container, redis_container
):
    from pytest_warmstack import DatabaseAddress
    import redis
    add(db_sync_session)
    assert isinstance(db_address, DatabaseAddress)
    url = db_sync_engine.url
    assert (db_address.host, db_address.port) == (url.host, url.port)
    assert (db_address.host, db_address.port) == (postgres_container.host, postgres_container.port)
    assert (db_address.user, db_address.name) == (url.username, url.database)
    assert db_address.password == url.password == postgres_container.password
    assert db_address.password not in repr(db_address)
    with pytest.raises(AttributeError):
        db_address.host = "other"
    assert type(redis_sync_client) is redis.Redis
    assert redis_sync_client.dbsize() == 0
    redis_sync_client.set("a", 1)
    assert redis_url == redis_urls[0] == redis_process_url
    with redis.Redis.from_url(redis_url) as other:
        assert other.get("a") == b"1"
    LEFT.append(redis_sync_client)
    waiting = redis_sync_client.pubsub()
    waiting.subscribe("news")
    LEFT.append(waiting)

def test_closed(redis_sync_client):
    first, waiting = LEFT
    assert first is not redis_sync_client
    assert not waiting.connection.is_connected if hasattr(waiting.connection, "is_connected") \
        else waiting.connection._sock is None
    assert redis_sync_client.dbsize() == 0

def test_what_needs_a_loop(db_session): pass
"""


@pytest.mark.parametrize("plan", ["shared", "per-process"])
def test_a_def_needs_no_event_loop(kept: Library, driver: str, plan: str) -> None:
    """All synchronous fixtures, with no plugin for event loops; an asynchronous one says so."""
    kept.write("test_plain.py", BEGIN + PLAIN)

    result = run(kept, "test_plain.py", f"--warmstack-redis={plan}")

    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*db_session needs an event loop*Use db_sync_session or*"])
    assert "it left" not in result.stdout.str()


UNDER_ANYIO = """
pytestmark = pytest.mark.anyio

@pytest.fixture(scope="module")
def anyio_backend():
    return "asyncio"

@pytest.mark.parametrize("word", ["clone", "class", "module", "rollback"])
class TestEach:
    pass

def declare(word):
    @pytest.mark.warmstack_isolation(word)
    class Test:
        async def test_async(self, db_session, db_engine, db_url, db_dsn, db_address, redis_client,
                             redis_url, redis_urls, redis_process_url, postgres_container,
                             redis_container):
            assert db_session.bind is db_engine
            await db_session.execute(INSERT)
            await db_session.commit()
            await redis_client.set("a", 1)
            assert await redis_client.dbsize() == 1

        async def test_sync_in_async(self, db_sync_session, redis_sync_client):
            count = 1 if word in ("class", "module") else 0
            assert authors(db_sync_session) == count
            db_sync_session.execute(text("INSERT INTO author VALUES (2, 'Ada')"))
            db_sync_session.commit()
            assert redis_sync_client.dbsize() == 0

        def test_sync(self, db_sync_session, redis_sync_client):
            count = 2 if word in ("class", "module") else 0
            assert authors(db_sync_session) == count
            db_sync_session.execute(text("DELETE FROM author"))
            db_sync_session.commit()
    return Test

TestClone, TestClass, TestModule, TestRollback = map(
    declare, ["clone", "class", "module", "rollback"])

@pytest.mark.warmstack_isolation("module")
class TestFixtures:
    @pytest.fixture(scope="module")
    @staticmethod
    async def seeded(anyio_backend, db_engine):
        async with db_engine.begin() as connection:
            await connection.execute(text("DELETE FROM author"))
            await connection.execute(INSERT)

    async def test_it(self, seeded, db_session):
        assert await db_session.scalar(text("SELECT count(*) FROM author")) == 1
"""


def test_all_fixtures_work_with_the_plugin_of_anyio_alone(kept: Library) -> None:
    """In place of pytest-asyncio, in every isolation."""
    kept.edit("pytest.ini", "asyncio_mode = auto\n", "")
    kept.edit("pytest.ini", "asyncio_default_fixture_loop_scope = function\n", "")
    kept.write("test_anyio.py", BEGIN + UNDER_ANYIO)

    result = kept.start(REUSE, "-W", "error", "test_anyio.py", command=("pytest", *ANYIO)).wait()

    result.assert_outcomes(passed=13)
    assert accused(result) == {}
    assert "it left a connection" not in result.stdout.str()


def test_variables_and_files_of_libpq_change_nothing(kept: Library, driver: str) -> None:
    """Neither for an engine of a clone nor for a rollback; the test's own connections have them."""
    file = kept.write("home/.pgpass", "*:*:*:*:wrong\n")
    file.chmod(0o600)
    kept.write(
        "test_variables.py",
        BEGIN + "import importlib\n"
        "@pytest.mark.parametrize('word', [\n"
        "    pytest.param(each, marks=pytest.mark.warmstack_isolation(each))\n"
        "    for each in ('clone', 'rollback')])\n"
        "def test_it(db_sync_session, word):\n"
        "    before = dict(os.environ)\n"
        "    add(db_sync_session)\n"
        "    assert dict(os.environ) == before\n"
        "    shown = [db_sync_session.scalar(text(f'SHOW {name}')) for name in\n"
        "             ('work_mem', 'DateStyle', 'TimeZone', 'geqo', 'client_encoding')]\n"
        "    assert shown[0] == '4MB'\n"
        "    assert shown[1] == 'ISO, MDY'\n"
        "    assert shown[2] != 'Pacific/Chatham'\n"
        "    assert shown[3:] == ['on', 'UTF8']\n"
        "def test_own(db_dsn, monkeypatch):\n"
        "    for name in os.environ.keys() - {'PGOPTIONS'}:\n"
        "        if name.startswith('PG'):\n"
        "            monkeypatch.delenv(name)\n"
        f"    driver = importlib.import_module({driver!r})\n"
        "    connection = driver.connect(str(db_dsn))\n"
        "    cursor = connection.cursor()\n"
        "    cursor.execute('SHOW work_mem')\n"
        "    assert cursor.fetchone() == ('7MB',)\n"
        "    connection.close()\n",
    )
    variables = {
        "HOME": str(file.parent),
        "PGHOST": "nowhere.invalid",
        "PGHOSTADDR": "127.0.0.9",
        "PGPORT": "1",
        "PGUSER": "nobody",
        "PGPASSWORD": "wrong",
        "PGDATABASE": "none",
        "PGSERVICE": "none",
        "PGOPTIONS": "-c work_mem=7MB",
        "PGSSLMODE": "require",
        "PGSSLNEGOTIATION": "direct",
        "PGGSSENCMODE": "require",
        "PGCHANNELBINDING": "require",
        "PGREQUIREAUTH": "none",
        "PGMINPROTOCOLVERSION": "3.2",
        "PGCONNECT_TIMEOUT": "soon",
        "PGTARGETSESSIONATTRS": "standby",
        "PGCLIENTENCODING": "LATIN1",
        "PGAPPNAME": "other",
        "PGDATESTYLE": "German",
        "PGTZ": "Pacific/Chatham",
        "PGGEQO": "off",
    }

    run(kept, "test_variables.py", **variables).assert_outcomes(passed=3)


def test_a_url_of_the_users_own_leads_where_it_says(kept: Library) -> None:
    """With its driver, or with the installed one in place of asyncpg."""
    kept.write(
        "conftest.py",
        "import pytest\n"
        "@pytest.fixture(params=['postgresql+psycopg2', 'postgresql+psycopg', 'sqlite'])\n"
        "def db_url(db_url, request):\n"
        "    if request.param == 'sqlite':\n"
        "        return 'sqlite://'\n"
        "    return db_url.replace('postgresql+asyncpg', request.param)\n",
    )
    kept.write(
        "test_own.py",
        BEGIN + "def test_own(db_url, db_sync_engine):\n"
        "    assert db_sync_engine.url.drivername == db_url.partition(':')[0]\n"
        "    with db_sync_engine.connect() as connection:\n"
        "        assert connection.scalar(text('SELECT 1')) == 1\n",
    )

    kept.run(REUSE, "test_own.py").assert_outcomes(passed=3)
