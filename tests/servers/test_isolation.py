"""Isolation of tests: clones for tests, classes or modules, or a rollback; and the engines."""

from __future__ import annotations

import re

import pytest

from projects import Library

REUSE = "--reuse-containers"

BEGIN = """
import asyncio
from pathlib import Path
import asyncpg
import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

INSERT = text("INSERT INTO author VALUES (1, 'Ursula')")

async def authors(session):
    return await session.scalar(text("SELECT count(*) FROM author"))

async def add(session):
    assert await authors(session) == 0
    await session.execute(INSERT)
    await session.commit()

LEFT = []

def note(line):
    with Path("noted.log").open("a") as log:
        log.write(f"{line}\\n")
"""

UNDONE = """
pytestmark = [
    pytest.mark.warmstack_isolation("rollback"), pytest.mark.asyncio(loop_scope="SCOPE")
]

@pytest.mark.parametrize("number", range(3))
async def test_a_commit_is_a_savepoint(db_session, db_engine, db_url, number):
    note(db_url)
    await add(db_session)
    with pytest.raises(IntegrityError):
        await db_session.execute(INSERT)
    await db_session.rollback()
    assert await authors(db_session) == 1
    await db_session.rollback()
    async with AsyncSession(db_engine) as other:
        assert await authors(other) == 1

async def test_what_no_transaction_undoes(db_session):
    await db_session.execute(text("SELECT pg_advisory_lock(7)"))
    await db_session.execute(text("SET app.tenant = 'one'"))
    await db_session.execute(text("CREATE TEMP TABLE mine (id int)"))
    await db_session.commit()

async def test_is_undone_all_the_same(db_session, db_url):
    note(db_url)
    query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database = (" \\
        "SELECT oid FROM pg_database WHERE datname = current_database())"
    assert await db_session.scalar(text(query)) == 0
    assert not await db_session.scalar(text("SELECT current_setting('app.tenant', true)"))
    assert await db_session.scalar(text("SELECT to_regclass('pg_temp.mine')")) is None
"""

LEAKING = """
pytestmark = [
    pytest.mark.warmstack_isolation("rollback"), pytest.mark.asyncio(loop_scope="SCOPE")
]

@pytest.fixture(autouse=True)
def noted(db_url):
    note(db_url)

async def test_that_commits_by_hand(db_session):
    await db_session.execute(INSERT)
    await db_session.execute(text("COMMIT"))

async def test_after_it(db_session):
    await add(db_session)

async def test_that_connects_by_itself(db_url):
    connection = await asyncpg.connect(db_url.replace("+asyncpg", ""), ssl=False)
    await connection.execute(str(INSERT))
    await connection.close()

async def test_after_that(db_session):
    await add(db_session)

async def test_that_disposes(db_session, db_engine):
    await add(db_session)
    await db_session.close()
    await db_engine.dispose()
    async with db_engine.begin() as connection:
        await connection.execute(INSERT)

async def test_after_this(db_session):
    await add(db_session)

async def test_that_commits_and_begins_again(db_session):
    await db_session.execute(INSERT)
    await db_session.execute(text("COMMIT AND CHAIN"))

async def test_after_that_one(db_session):
    await add(db_session)

async def test_that_leaves_a_statement_running(db_session):
    await db_session.execute(INSERT)
    connection = await (await db_session.connection()).get_raw_connection()
    LEFT.append(asyncio.ensure_future(connection.driver_connection.execute("SELECT pg_sleep(60)")))
    LEFT[-1].add_done_callback(lambda done: done.cancelled() or done.exception())
    await asyncio.sleep(0.01)
    db_session.sync_session.expunge_all()

async def test_after_this_one(db_session):
    await add(db_session)

async def test_at_last(db_session):
    await add(db_session)
"""

SHARED = """
@pytest.mark.warmstack_isolation("class")
class TestClass:
    @pytest.mark.parametrize("number", range(3))
    async def test_in_turn(self, db_session, db_url, number):
        note(f"class {db_url}")
        assert await authors(db_session) == number
        await db_session.execute(text(f"INSERT INTO author VALUES ({number}, 'Ursula')"))
        await db_session.commit()

    @pytest.mark.warmstack_isolation("clone")
    async def test_the_closest_word_counts(self, db_session):
        await add(db_session)

async def test_on_its_own(db_session):
    await add(db_session)

@pytest.mark.warmstack_isolation("module")
@pytest.mark.parametrize("number", range(2))
async def test_of_the_module(db_session, db_url, number):
    note(f"module {db_url}")
    assert await authors(db_session) == number
    await db_session.execute(text(f"INSERT INTO author VALUES ({number}, 'Ursula')"))
    await db_session.commit()

@pytest.mark.warmstack_isolation("never")
def test_a_bad_word(db_url):
    pass

@pytest.mark.warmstack_isolation
def test_no_word(db_url):
    pass
"""

ENGINES = """
from sqlalchemy.ext.asyncio import AsyncEngine

SEEN = []

async def each(db_engine, db_session, db_url):
    assert db_engine.url.render_as_string(hide_password=False) == db_url
    assert db_session.bind is db_engine
    assert db_engine not in SEEN
    SEEN.append(db_engine)
    await add(db_session)
    assert len({id(engine.pool) for engine in SEEN}) == len(SEEN)
    assert len({id(engine.dialect) for engine in SEEN}) == 1

for scope in ("function", "class", "module", "session"):
    for turn in range(2):
        def declare(scope=scope):
            @pytest.mark.asyncio(loop_scope=scope)
            async def test(db_engine, db_session, db_url):
                await each(db_engine, db_session, db_url)
            return test
        globals()[f"test_{turn}_in_a_loop_of_scope_{scope}"] = declare()

async def test_types_go_both_ways(db_session):
    query = "SELECT '{\\"a\\": 1}'::jsonb, '[1]'::json, '{1,2}'::int[], gen_random_uuid()"
    row = (await db_session.execute(text(query))).one()
    assert row[:3] == ({"a": 1}, [1], [1, 2])
    result = await db_session.stream(text("SELECT generate_series(1, 3)"))
    assert [row[0] async for row in result] == [1, 2, 3]

async def test_that_listens(db_engine, db_session):
    def met(*args, **kwargs):
        note("met")
    event.listen(db_engine.sync_engine, "before_cursor_execute", met)
    event.listen(db_engine.sync_engine, "checkout", met)
    event.listen(db_engine.sync_engine, "handle_error", met)
    event.listen(db_engine.sync_engine, "do_execute", met)
    await authors(db_session)
    note("end")

async def test_that_connects_in_its_own_way(db_engine, db_session):
    @event.listens_for(db_engine.sync_engine, "do_connect")
    def begun(dialect, record, arguments, options):
        options["server_settings"] = {"application_name": "its own"}
    name = text("SELECT current_setting('application_name')")
    assert await db_session.scalar(name) == "its own"

async def test_that_meets_no_listener(db_engine, db_session):
    await add(db_session)
    with pytest.raises(IntegrityError):
        await db_session.execute(INSERT)

async def test_that_gives_nothing_back(db_engine):
    connection = await db_engine.connect()
    await connection.execute(INSERT)
    SEEN.append(connection)

async def test_in_another_way(db_engine):
    async with db_engine.connect() as connection:
        serial = await connection.execution_options(isolation_level="SERIALIZABLE")
        level = text("SHOW transaction_isolation")
        assert await serial.scalar(level) == "serializable"

async def test_in_the_usual_way(db_session):
    assert await db_session.scalar(text("SHOW transaction_isolation")) == "read committed"
"""

OWN_URL = """
import os
import pytest

@pytest.fixture
def db_url(db_url):
    return db_url.replace("asyncpg", "psycopg")
"""


def noted(project: Library) -> list[str]:
    """Return what the tests noted."""
    return project.lines("noted.log")


def accused(result: pytest.RunResult) -> dict[str, str]:
    """Return why a test's database was not used again, by the test's name."""
    pattern = r"warmstack: .*::(\w+): (.*); its database was not used again"
    found = [match for line in result.outlines if (match := re.match(pattern, line))]
    assert len(found) == len({match[1] for match in found})
    return {match[1]: match[2] for match in found}


@pytest.mark.parametrize("scope", ["function", "class", "module", "session"])
def test_what_tests_do_is_undone_in_every_loop_scope(kept: Library, scope: str) -> None:
    """They share one database, commit, fail and go on, and see nothing of each other."""
    kept.write("test_undone.py", BEGIN + UNDONE.replace("SCOPE", scope))

    result = kept.run(REUSE, "test_undone.py")

    result.assert_outcomes(passed=5)
    assert len(noted(kept)) == 4
    assert len(set(noted(kept))) == 1
    assert accused(result) == {}
    assert kept.databases("u") == []


def test_what_tests_do_is_undone_under_anyio(kept: Library) -> None:
    """Its plugin has loops of its own."""
    text = BEGIN + UNDONE.replace('pytest.mark.asyncio(loop_scope="SCOPE")', "pytest.mark.anyio")
    kept.write("test_undone.py", text.replace("db_url, number", "db_url, number, anyio_backend"))
    kept.write(
        "conftest.py",
        "import pytest\n@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n",
    )

    result = kept.run(REUSE, "-p", "anyio", "-o", "asyncio_mode=strict", "test_undone.py")

    result.assert_outcomes(passed=5)
    assert accused(result) == {}


@pytest.mark.parametrize("arguments", [("function",), ("session",), ("session", "-n", "2")])
def test_one_that_commits_for_real_is_found_out(kept: Library, arguments: tuple[str, ...]) -> None:
    """By COMMIT, over a connection of its own, or by a pool that it ended: another one follows."""
    scope, *options = arguments
    kept.write("test_leaking.py", BEGIN + LEAKING.replace("SCOPE", scope))

    result = kept.run(REUSE, "test_leaking.py", *options)

    result.assert_outcomes(passed=11)
    why = accused(result)
    assert why.keys() == {
        "test_that_commits_and_begins_again",
        "test_that_leaves_a_statement_running",
        "test_that_commits_by_hand",
        "test_that_connects_by_itself",
        "test_that_disposes",
    }
    assert "COMMIT" in why["test_that_commits_by_hand"]
    assert "without db_engine" in why["test_that_connects_by_itself"]
    assert "closed" in why["test_that_disposes"]
    assert "COMMIT" in why["test_that_commits_and_begins_again"]
    assert "another operation is in progress" in why["test_that_leaves_a_statement_running"]
    if not options:
        # One database for each test that spoils it and the one after it, another for the last.
        urls = noted(kept)
        assert [urls.count(url) for url in dict.fromkeys(urls)] == [1, 2, 2, 2, 2, 2]


def test_a_class_or_a_module_shares_a_database_and_the_closest_word_counts(kept: Library) -> None:
    """What one test commits the next one of it sees, and nobody else."""
    kept.write("test_shared.py", BEGIN + SHARED)

    result = kept.run(REUSE, "test_shared.py", "--strict-markers")

    result.assert_outcomes(passed=7, errors=2)
    lines = noted(kept)
    assert len(lines) == 5
    assert len(set(lines)) == 2
    result.stdout.re_match_lines(
        [
            r"(E +)?Invalid value 'never' for the marker warmstack_isolation\.",
            ".*one of clone, fresh-clone, class, module, session, rollback.*",
        ]
    )
    assert kept.databases("u") == []


@pytest.mark.parametrize("place", ["ini", "variable", "command line"])
def test_a_word_for_all_tests(kept: Library, place: str) -> None:
    """In the configuration, the environment or the command; a marker still wins."""
    kept.write(
        "test_all.py",
        BEGIN + "@pytest.mark.parametrize('number', range(2))\n"
        "async def test_of_all(db_session, number):\n"
        "    assert await authors(db_session) == number\n"
        "    await db_session.execute(text(f\"INSERT INTO author VALUES ({number}, 'U')\"))\n"
        "    await db_session.commit()\n"
        "@pytest.mark.warmstack_isolation('clone')\n"
        "async def test_marked(db_session):\n"
        "    await add(db_session)\n",
    )
    if place == "ini":
        kept.configure("warmstack_isolation = module")
    options = ["--warmstack-isolation=module"] if place == "command line" else []
    variables = {"WARMSTACK_ISOLATION": "module"} if place == "variable" else {}

    kept.run(REUSE, "test_all.py", *options, **variables).assert_outcomes(passed=3)


# The engines


def test_engines_share_a_dialect_and_nothing_else(kept: Library) -> None:
    """In every loop scope: a new URL, pool and listeners, and no second look at the server."""
    kept.write("test_engines.py", BEGIN + ENGINES)
    warnings = ("-W", "error", "-W", "ignore:The garbage collector")

    result = kept.run(REUSE, "test_engines.py", *warnings, "-p", "no:randomly")

    result.assert_outcomes(passed=15)
    lines = noted(kept)
    assert "met" in lines
    assert lines[-1] == "end"
    assert "it left a connection" not in result.stdout.str()


def test_the_server_is_looked_at_once(kept: Library) -> None:
    """What a dialect asks when it first connects, it asks once in a process."""
    kept.write(
        "test_asked.py",
        BEGIN + "@pytest.fixture(scope='session', autouse=True)\n"
        "def asked():\n"
        "    from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg as dialect\n"
        "    first = dialect.initialize\n"
        "    def initialize(self, connection):\n"
        "        note('asked')\n"
        "        return first(self, connection)\n"
        "    dialect.initialize = initialize\n"
        "    yield\n"
        "    dialect.initialize = first\n"
        "@pytest.mark.parametrize('number', range(6))\n"
        "async def test_asked(db_session, number):\n"
        "    await add(db_session)\n",
    )

    kept.run(REUSE, "test_asked.py").assert_outcomes(passed=6)

    assert noted(kept) == ["asked"]


def test_an_engine_of_another_driver_is_as_everybody_makes_it(kept: Library) -> None:
    """The URL is the user's own, and so is what it leads to."""
    kept.write("conftest.py", OWN_URL)
    kept.write(
        "test_own.py",
        BEGIN + "@pytest.mark.parametrize('number', range(2))\n"
        "async def test_own(db_engine, db_session, number):\n"
        "    assert db_engine.dialect.driver == 'psycopg'\n"
        "    await add(db_session)\n",
    )

    kept.run(REUSE, "test_own.py").assert_outcomes(passed=2)
