"""Connections that stay open from test to test: tests open few, and see no traces of others."""

from __future__ import annotations

from typing import Final

import pytest

from projects import Library

REUSE: Final = "--reuse-containers"
AHEAD: Final = ("-o", "warmstack_clones_ahead=1")

SCHEMA: Final = """
CREATE TYPE mood AS ENUM ('glad', 'sad');
CREATE TABLE note (id serial PRIMARY KEY, mood mood, moods mood[], body text);
CREATE FUNCTION told() RETURNS trigger LANGUAGE plpgsql AS
    $$BEGIN RAISE NOTICE 'told'; RETURN new; END$$;
"""

CONFTEST: Final = """
import time
import pytest
from pytest_warmstack.session import session_of

@pytest.fixture
def until_put_back(pytestconfig):
    # The first clone is replaced: it is read before any test what it is to be put back to.
    factory = session_of(pytestconfig).environment._factory()
    deadline = time.monotonic() + 20
    while factory._baseline is None:
        assert time.monotonic() < deadline, "no baseline within 20 s"
        time.sleep(0.01)
"""

BEGIN: Final = """
import asyncio
from pathlib import Path
import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession

pytestmark = pytest.mark.asyncio(loop_scope="session")
INSERT = "INSERT INTO note (mood, moods) VALUES ('glad', '{glad,sad}')"
HELD = []

def note(line):
    with Path("noted.log").open("a") as log:
        log.write(f"{line}\\n")

async def driver(engine):
    async with engine.connect() as connection:
        return (await connection.get_raw_connection()).driver_connection

async def execute(engine, *statements):
    async with engine.begin() as connection:
        for statement in statements:
            await connection.execute(text(statement))

async def check(engine, after):
    async with engine.connect() as connection:
        async def value(query):
            return await connection.scalar(text(query))
        note(f"{after} {await value('SELECT pg_backend_pid()')}")
        assert await value("SELECT count(*) FROM note") == 0
        assert await value("SHOW statement_timeout") == "0"
        assert await value("SHOW transaction_isolation") == "read committed"
        assert await value("SHOW transaction_read_only") == "off"
        assert await value("SHOW search_path") == '"$user", public'
        assert await value("SELECT current_user = session_user AND rolsuper FROM pg_roles"
            " WHERE rolname = current_user")
        assert await value("SELECT count(*) FROM pg_listening_channels()") == 0
        assert await value("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database"
            " = (SELECT oid FROM pg_database WHERE datname = current_database())") == 0
        assert await value("SELECT count(*) FROM pg_cursors WHERE name = 'c'") == 0
        assert await value("SELECT count(*) FROM pg_prepared_statements WHERE from_sql") == 0
        assert await value("SELECT to_regclass('pg_temp.mine')") is None
        assert await value("SELECT current_setting('app.tenant', true) IS NULL")
        raw = (await connection.get_raw_connection()).driver_connection
        assert await raw.fetchval("SELECT '{\\"a\\": 1}'::jsonb") == {"a": 1}
        assert not raw._listeners and not raw._log_listeners and not raw._query_loggers
        assert not raw._termination_listeners
        assert await value("SELECT moods FROM (VALUES ('{sad}'::mood[])) v (moods)") == ["sad"]
        with pytest.raises(DBAPIError, match="not yet defined"):
            await value("SELECT currval('note_id_seq')")
        await connection.rollback()
        assert await value("SELECT nextval('note_id_seq')") == 1

async def test_first(db_engine):
    await check(db_engine, "nothing")

async def test_second(until_put_back, db_engine):
    await check(db_engine, "nothing")
"""

STAY: Final = {
    "rows": "await execute(db_engine, INSERT, INSERT)",
    "setting": "await execute(db_engine, 'SET statement_timeout = 1234', 'SET search_path = a')",
    "role": "await execute(db_engine, 'SET ROLE pg_monitor')",
    "session_role": "await execute(db_engine, 'SET SESSION AUTHORIZATION pg_monitor')",
    "characteristics": "await execute(db_engine,"
    " 'SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY, ISOLATION LEVEL SERIALIZABLE')",
    "listen": "await execute(db_engine, 'LISTEN news')",
    "advisory_lock": "await execute(db_engine, 'SELECT pg_advisory_lock(7)')",
    "cursor": "await execute(db_engine, 'DECLARE c CURSOR WITH HOLD FOR SELECT 1')",
    "currval": "await execute(db_engine, \"SELECT nextval('note_id_seq')\")",
    "isolation_level": """
    async with db_engine.connect() as connection:
        await connection.execution_options(isolation_level="SERIALIZABLE",
            postgresql_readonly=True)
        await connection.execute(text("SELECT 1"))""",
    "connect_listener": """
    @event.listens_for(db_engine.sync_engine, "connect")
    def listen(connection, record):
        note("connect event")
        connection.cursor().execute("SET statement_timeout = 99")
    await execute(db_engine, "SELECT 1")""",
    "failed_statement": """
    with pytest.raises(DBAPIError):
        await execute(db_engine, INSERT, "SELECT 1 / 0")""",
    "no_use": "",
    "old_engine": """
    await execute(db_engine, INSERT)
    HELD.append(db_engine)""",
    "two_connections": """
    one, other = await db_engine.connect(), await db_engine.connect()
    await other.execute(text("SET statement_timeout = 77"))
    await one.close()
    await other.close()""",
}
"""What a test does, after which the next one has its connection."""

GO: Final = {
    "prepared": "await execute(db_engine, 'PREPARE mine AS SELECT 1')",
    "custom_setting": "await execute(db_engine, \"SET app.tenant = 'one'\")",
    "local_setting": "await execute(db_engine, \"SET LOCAL app.tenant = 'one'\")",
    "set_config": "await execute(db_engine, \"SELECT set_config('app.tenant', 'one', false)\")",
    "temporary_table": "await execute(db_engine, 'CREATE TEMP TABLE mine (id int)')",
    "ddl": "await execute(db_engine, 'ALTER TYPE mood RENAME TO humour')",
    "listener": "await (await driver(db_engine)).add_listener('news', print)",
    "log_listener": "(await driver(db_engine)).add_log_listener(print)",
    "termination_listener": "(await driver(db_engine)).add_termination_listener(lambda _: None)",
    "query_logger": "(await driver(db_engine)).add_query_logger(lambda _: None)",
    "codec": "await (await driver(db_engine)).set_type_codec('jsonb', schema='pg_catalog',"
    " encoder=str, decoder=str)",
    "closed": "await (await driver(db_engine)).close()",
    "broken": """
    with pytest.raises(DBAPIError):
        await execute(db_engine, "SELECT pg_terminate_backend(pg_backend_pid())")""",
    "open_transaction": """
    connection = await db_engine.connect()
    await connection.execute(text(INSERT))
    HELD.append(connection)""",
    "transaction_by_hand": "await (await driver(db_engine)).execute('BEGIN; ' + INSERT)",
    "disposed": """
    await execute(db_engine, INSERT)
    await db_engine.dispose()""",
    "running_statement": """
    raw = await driver(db_engine)
    HELD.append(asyncio.ensure_future(raw.execute("SELECT pg_sleep(60)")))
    HELD[-1].add_done_callback(lambda done: done.cancelled() or done.exception())
    await asyncio.sleep(0.01)""",
    "sync_use": "await asyncio.to_thread(asyncio.run, execute(db_engine, INSERT))",
}
"""What a test does, after which the next one has a new connection."""


def suite() -> str:
    """Return a module in which each test that leaves something is followed by one that looks."""
    parts = [BEGIN]
    for name, body in {**STAY, **GO}.items():
        pid = f"note(f'{name} {{await pid(db_engine)}}')"
        lines = [body.strip(), pid] if name in STAY else [pid, body.strip()]
        if not body:  # Its connection is that of the test before it.
            lines = ["note('no_use ' + Path('noted.log').read_text().split()[-1])"]
        parts.append(f"async def test_{name}(db_engine):\n    " + "\n    ".join(lines))
        parts.append(
            f"async def test_after_{name}(db_engine):\n    await check(db_engine, 'after')"
        )
    parts.append(
        "async def pid(engine):\n    async with engine.connect() as connection:\n"
        "        return await connection.scalar(text('SELECT pg_backend_pid()'))\n"
        "@pytest.mark.parametrize('number', range(4))\n"
        "async def test_last(db_engine, number):\n    await check(db_engine, 'nothing')\n"
    )
    return "\n".join(parts)


@pytest.fixture
def project(kept: Library) -> Library:
    """A project with a schema of its own."""
    kept.write("schema.sql", SCHEMA)
    kept.write("conftest.py", CONFTEST)
    kept.configure("warmstack_schema = schema.sql", "warmstack_alembic = none")
    return kept


def test_no_trace_of_a_session_reaches_the_next_test(project: Library) -> None:
    """Neither in the server nor in the driver; what can't be undone ends the connection."""
    project.write("test_traces.py", suite())

    result = project.run(REUSE, *AHEAD, "test_traces.py", "-vv")

    result.assert_outcomes(passed=2 * len(STAY) + 2 * len(GO) + 6)
    lines = [line.split() for line in project.lines("noted.log") if line != "connect event"]
    pids = [(name, pid, lines[number + 1][1]) for number, (name, pid) in enumerate(lines[:-1])]
    same = {name for name, pid, after in pids if name not in {"nothing", "after"} and pid == after}
    assert same == set(STAY)
    # A connection that stays is a new one for the listeners of the test.
    assert project.lines("noted.log").count("connect event") == 1
    assert project.databases("u") == []


ROUNDS = """
import pytest
from sqlalchemy import text

KEPT = []

@pytest.mark.asyncio(loop_scope="SCOPE")
@pytest.mark.parametrize("number", range(COUNT))
async def test_round(db_session, redis_client, number):
    await db_session.execute(text("INSERT INTO note (mood) VALUES ('glad')"))
    await db_session.commit()
    assert await db_session.scalar(text("SELECT count(*) FROM note")) == 1
    await redis_client.set("number", number)
    assert await redis_client.dbsize() == 1
"""

COUNTING = """
import collections
import asyncpg.connect_utils
from redis.asyncio.connection import Connection

OPENED = collections.Counter()
originals = asyncpg.connect_utils._connect_addr, Connection._connect

async def connect_addr(**options):
    if options["params"].database != "postgres":
        OPENED["postgres"] += 1
    return await originals[0](**options)

async def connect(self):
    OPENED["redis"] += 1
    await originals[1](self)

asyncpg.connect_utils._connect_addr, Connection._connect = connect_addr, connect

def pytest_terminal_summary(terminalreporter):
    terminalreporter.write_line(f"opened: {OPENED['postgres']} {OPENED['redis']}")
"""


def opened(result: pytest.RunResult) -> tuple[int, int]:
    """Return how many connections a run opened to clones and to its Redis database."""
    (line,) = [each for each in result.outlines if each.startswith("opened: ")]
    _, postgres, redis = line.split()
    return int(postgres), int(redis)


@pytest.mark.parametrize("scope", ["class", "module", "package", "session"])
def test_two_hundred_tests_in_one_loop_open_few_connections(project: Library, scope: str) -> None:
    """A few at the beginning, and a few at the end, for the clones that are left."""
    project.write("conftest.py", COUNTING)
    text = ROUNDS.replace("SCOPE", scope).replace("COUNT", "200")
    if scope == "class":
        head, body = text.split("@pytest.mark.asyncio")
        body = f"@pytest.mark.asyncio{body}".replace("(db_session", "(self, db_session")
        text = head + "class TestRounds:\n" + "".join(f"    {line}\n" for line in body.splitlines())
    project.write("test_rounds.py", text)

    result = project.run(REUSE, "test_rounds.py")

    result.assert_outcomes(passed=200)
    postgres, redis = opened(result)
    assert postgres <= 20
    assert redis == 1


def test_tests_with_a_loop_each_share_a_connection_to_redis(project: Library) -> None:
    """Its socket goes from loop to loop."""
    project.write("conftest.py", COUNTING)
    project.write("test_rounds.py", ROUNDS.replace("SCOPE", "function").replace("COUNT", "20"))

    result = project.run(REUSE, "test_rounds.py")

    result.assert_outcomes(passed=20)
    assert opened(result)[1] == 1


ENGINES = """
from sqlalchemy import event, text
import pytest

pytestmark = pytest.mark.asyncio(loop_scope="session")
MADE, HELD, MET = [], [], []

def met(*_, **__):
    MET.append(1)

async def nothing(engine):
    pass

async def connected(engine):
    async with engine.begin() as connection:
        await connection.execute(text("INSERT INTO note (mood) VALUES ('glad')"))

async def watched(engine):
    event.listen(engine.sync_engine, "before_cursor_execute", met)

async def watched_and_left(engine):
    event.listen(engine.sync_engine, "before_cursor_execute", met)
    event.remove(engine.sync_engine, "before_cursor_execute", met)

async def pool_watched(engine):
    event.listen(engine.pool, "checkin", met)

async def connect_watched(engine):
    event.listen(engine.sync_engine, "connect", met)

async def dialect_watched(engine):
    event.listen(engine.sync_engine, "do_execute", met)

async def options(engine):
    engine.sync_engine.update_execution_options(mine=1)

async def echoing(engine):
    engine.echo = True

async def disposed(engine):
    await engine.dispose()

async def pool_changed(engine):
    engine.pool._recycle = 60

async def held(engine):
    HELD.append(engine)

STAY = [nothing, connected, watched_and_left]
GO = [watched, pool_watched, connect_watched, dialect_watched, options, echoing, disposed,
    pool_changed, held]

async def test_first(db_engine):
    await connected(db_engine)

async def test_second(until_put_back, db_engine):
    await connected(db_engine)

@pytest.mark.parametrize("act", [each for act in STAY + GO for each in (act, connected)])
async def test_acts(db_engine, act):
    await connected(db_engine)
    MET.clear()
    await act(db_engine)
    MADE.append((act, db_engine.sync_engine))

async def test_last(db_engine):
    MET.clear()
    await connected(db_engine)
    assert not MET
    assert db_engine.pool.checkedin() == 1
    stayed = {act for (act, engine), (_, after) in zip(MADE, MADE[1:]) if engine is after}
    assert stayed == {connected, *STAY}

async def test_connects_as_a_new_one(db_engine):
    assert db_engine.pool.checkedin() == 0
    event.listen(db_engine.sync_engine, "connect", met)
    await connected(db_engine)
    assert MET == [1]

@pytest.mark.parametrize("number", range(4))
async def test_more(db_engine, number):
    pass
"""


def test_an_engine_stays_if_nothing_can_tell(project: Library) -> None:
    """Neither a test that has changed it, nor one that still has it, shares it with the next."""
    project.write("test_engines.py", ENGINES)

    result = project.run(REUSE, *AHEAD, "test_engines.py")

    result.assert_outcomes(passed=32)


OUTDATED = """
import pytest
from sqlalchemy import event, text

pytestmark = pytest.mark.asyncio(loop_scope="session")
ALL = text("SELECT * FROM note")
ALTER = text("ALTER TABLE note ADD COLUMN more int")
DOCUMENT = text("SELECT '{}'::jsonb")

async def plain(session):
    await session.execute(text("INSERT INTO note (body) VALUES ('a') ON CONFLICT DO NOTHING"))
    assert len((await session.execute(ALL)).keys()) == 4
    assert await session.scalar(DOCUMENT) == {}

async def altered(session):
    await session.execute(ALTER)
    assert len((await session.execute(ALL)).keys()) == 5

async def moved(session):
    await session.execute(text("CREATE SCHEMA other"))
    await session.execute(text("CREATE TABLE other.note (id int)"))
    await session.execute(text("SET search_path = other"))
    assert len((await session.execute(ALL)).keys()) == 1

async def coded(session):
    raw = (await (await session.connection()).get_raw_connection()).driver_connection
    await raw.set_type_codec("jsonb", schema="pg_catalog", encoder=str, decoder=lambda text: 1)
    assert await session.scalar(DOCUMENT) == 1

async def test_first(db_session):
    await plain(db_session)

async def test_second(until_put_back, db_session):
    await plain(db_session)

@pytest.mark.parametrize("act", [plain, altered, plain, moved, plain, coded, plain, altered, plain])
async def test_acts(db_session, act):
    await act(db_session)

@pytest.mark.parametrize("number", range(4))
async def test_more(db_session, number):
    await plain(db_session)
"""


@pytest.mark.parametrize("isolation", ["clone", "rollback"])
def test_what_is_prepared_is_never_outdated(project: Library, isolation: str) -> None:
    """A statement of an earlier test doesn't fail, or return something else, after a change."""
    text = OUTDATED
    if isolation == "rollback":
        text = text.replace("until_put_back, ", "")
    project.write("test_outdated.py", text)

    result = project.run(REUSE, *AHEAD, f"--warmstack-isolation={isolation}", "test_outdated.py")

    result.assert_outcomes(passed=15)


REDIS = """
import asyncio
import pytest
from redis.asyncio import Redis

IDS, HELD = [], []

async def check(client, stays):
    info = await client.client_info()
    assert (info["id"] == IDS[-1]) == stays
    named = {key: info[key] for key in ("name", "flags", "sub", "psub", "redir", "resp")}
    assert named == {"name": "", "flags": "N", "sub": 0, "psub": 0, "redir": "-1",
        "resp": "3"}
    assert info["db"] == client.connection_pool.connection_kwargs["db"]
    assert await client.dbsize() == 0

async def commands(client, pool):
    await client.set("a", 1)

async def transaction(client, pool):
    async with client.pipeline() as pipeline:
        await pipeline.watch("a")
        pipeline.multi()
        pipeline.set("a", 1)
        await pipeline.execute()

async def watched(client, pool):
    connection = await pool.get_connection()
    await connection.send_command("WATCH", "a")
    await connection.read_response()
    await pool.release(connection)

async def blocked(client, pool):
    assert await client.blpop("nothing", timeout=0.01) is None

async def failed(client, pool):
    with pytest.raises(Exception, match="WRONGTYPE"):
        await client.set("a", 1)
        await client.lpush("a", 1)

async def subscribed(client, pool):
    pubsub = client.pubsub()
    await pubsub.subscribe("news")
    HELD.append(pubsub)

async def left_transaction(client, pool):
    await client.execute_command("MULTI")

async def named(client, pool):
    await client.client_setname("mine")

async def selected(client, pool):
    await client.execute_command("SELECT", 0)

async def tracking(client, pool):
    await client.execute_command("CLIENT", "TRACKING", "ON")

async def unevictable(client, pool):
    await client.client_no_evict("ON")

async def called_otherwise(client, pool):
    await client.client_setinfo("LIB-NAME", "mine")

async def in_use(client, pool):
    HELD.append(await pool.get_connection())

async def several(client, pool):
    await asyncio.gather(*(client.set(str(number), 1) for number in range(5)))

async def closed(client, pool):
    await client.set("a", 1)
    await client.aclose()

async def killed(client, pool):
    await client.client_kill_filter(_id=await client.client_id(), skipme=False)

async def with_options(client, pool):
    pool.connection_kwargs["client_name"] = "mine"
    await pool.disconnect()
    pool.reset()
    await client.set("a", 1)

async def silent(client, pool):
    connection = await pool.get_connection()
    await connection.send_command("CLIENT", "REPLY", "SKIP")
    await pool.release(connection)

STAY = [commands, transaction, watched, blocked, failed]
GO = [subscribed, left_transaction, named, selected, tracking, unevictable, called_otherwise,
    in_use, several, closed, killed, with_options, silent]

pytestmark = pytest.mark.asyncio(loop_scope="SCOPE")

@pytest.mark.parametrize(
    ("act", "checks"), [(act, checks) for act in STAY + GO for checks in (False, True)],
    ids=lambda value: getattr(value, "__name__", value),
)
async def test_traces(redis_client, act, checks):
    if checks:
        await check(redis_client, act in STAY)
    else:
        IDS.append(await redis_client.client_id())
        await act(redis_client, redis_client.connection_pool)
"""


@pytest.mark.parametrize("scope", ["function", "session"])
def test_no_trace_of_a_client_reaches_the_next_test(project: Library, scope: str) -> None:
    """Of what the server knows about a connection to Redis, and redis-py."""
    project.write("test_redis.py", REDIS.replace("SCOPE", scope))

    result = project.run(REUSE, "test_redis.py")

    result.assert_outcomes(passed=36)
