"""Whatever a test leaves behind, the next test has a clean database, and the clone is dropped."""

from __future__ import annotations

import asyncio

import psycopg2
import pytest
from psycopg2.extras import LogicalReplicationConnection

from projects import Bench, Library, keeping, query, until, with_command, with_options
from pytest_warmstack.options import RuntimeName
from pytest_warmstack.postgres import DatabaseName, State
from pytest_warmstack.postgres.errors import CloneFailed
from pytest_warmstack.servers.model import USER

REUSE = "--reuse-containers"

BEGIN = """
import asyncio
import asyncpg
import psycopg
import pytest
import threading
from contextlib import suppress
from psycopg.pq import TransactionStatus
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

LEFT = []

@pytest.fixture(autouse=True)
async def clean(db_session):
    assert await db_session.scalar(text("SELECT count(*) FROM author")) == 0
    await db_session.commit()

def sleep(connection):
    with suppress(psycopg.OperationalError):
        connection.execute("SELECT pg_sleep(600)")

async def connect(db_url, name):
    connection = await asyncpg.connect(
        db_url.replace("+asyncpg", ""), ssl=False, server_settings={"application_name": name}
    )
    LEFT.append(connection)
    return connection

INSERT = "INSERT INTO author VALUES (1, 'Ursula')"
"""

FORGOTTEN = {
    "idle": "await (await connect(db_url, 'idle')).execute(INSERT)",
    "transaction": "await (await connect(db_url, 'transaction')).execute('BEGIN; ' + INSERT)",
    "locks": "await (await connect(db_url, 'locks')).execute("
    "'BEGIN; LOCK TABLE author; SELECT pg_advisory_lock(1)')",
    "listening": "await (await connect(db_url, 'listening')).execute('LISTEN news')",
    "temporary": "await (await connect(db_url, 'temporary')).execute('CREATE TEMP TABLE t ()')",
    "sleeping": "connection = psycopg.connect(db_url.replace('+asyncpg', ''),"
    " application_name='sleeping')\n"
    "    threading.Thread(target=sleep, args=(connection,), daemon=True).start()\n"
    "    while connection.info.transaction_status != TransactionStatus.ACTIVE:\n"
    "        await asyncio.sleep(0.01)",
    "pool": "pool = await asyncpg.create_pool(db_url.replace('+asyncpg', ''), min_size=3,"
    " server_settings={'application_name': 'pool'})\n"
    "    LEFT.append(pool)\n"
    "    await pool.execute(INSERT)",
    "driver": "connection = psycopg.connect(db_url.replace('+asyncpg', ''),"
    " application_name='driver')\n"
    "    LEFT.append(connection)\n"
    "    connection.execute(INSERT)",
    "engine": "engine = create_engine(db_url.replace('asyncpg', 'psycopg'),"
    " connect_args={'application_name': 'engine'})\n"
    "    LEFT.append(engine)\n"
    "    with engine.begin() as connection:\n"
    "        connection.execute(text(INSERT))",
}
"""What a test forgets, by the application_name of its connection."""

TIDY = """
async def test_tidy_connection(db_url):
    connection = await connect(db_url, "tidy")
    await connection.execute(INSERT)
    await connection.close()

def test_tidy_driver(db_url):
    with psycopg.connect(db_url.replace("+asyncpg", ""), application_name="tidy") as connection:
        connection.execute(INSERT)

async def test_tidy_pool(db_url):
    async with asyncpg.create_pool(db_url.replace("+asyncpg", ""), min_size=3) as pool:
        await pool.execute(INSERT)

async def test_tidy_engine(db_engine):
    # Never given back; it is our engine's, and goes with it.
    connection = await db_engine.connect()
    await connection.execute(text(INSERT))
    LEFT.append(connection)
"""

ODD = """
async def maintenance(container, statement):
    connection = await asyncpg.connect(container.get_connection_url(driver=None), ssl=False)
    await connection.execute(statement)
    await connection.close()

def name(db_url):
    return db_url.rpartition("/")[2]

async def close(db_engine):
    await db_engine.dispose()

@pytest.fixture
async def alone(clean, db_session, db_engine, db_url):
    # Nobody is connected to the database, so that it can be renamed.
    await db_session.close()
    await db_engine.dispose()
    return name(db_url)

async def test_prepared(db_session):
    await db_session.execute(text(INSERT))
    await db_session.execute(text("PREPARE TRANSACTION 'forgotten'"))

async def test_dropped(alone, postgres_container):
    await maintenance(postgres_container, f"DROP DATABASE {alone} WITH (FORCE)")

async def test_renamed(alone, postgres_container):
    await maintenance(postgres_container, f"ALTER DATABASE {alone} RENAME TO mine")

async def test_renamed_and_sat_in(alone, db_url, postgres_container):
    await maintenance(postgres_container, f"ALTER DATABASE {alone} RENAME TO mine_too")
    await connect(db_url.replace(alone, "mine_too"), "sitting")

async def test_template(alone, postgres_container):
    await maintenance(postgres_container, f"ALTER DATABASE {alone} IS_TEMPLATE true")

async def test_closed(alone, postgres_container):
    await maintenance(postgres_container, f"ALTER DATABASE {alone} ALLOW_CONNECTIONS false")

async def test_closed_and_prepared(alone, db_url, postgres_container):
    connection = await connect(db_url, "")
    await connection.execute(f"BEGIN; {INSERT}; PREPARE TRANSACTION 'again'")
    await connection.close()
    await maintenance(
        postgres_container, f"ALTER DATABASE {alone} ALLOW_CONNECTIONS false CONNECTION LIMIT 0"
    )

async def test_subscribed(db_engine):
    async with db_engine.connect() as connection:
        connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
        options = "CONNECTION 'dbname=x' PUBLICATION p WITH (connect = false)"
        await connection.execute(text(f"CREATE SUBSCRIPTION news {options}"))

async def test_after_all_that(db_session):
    pass
"""


HALF_WAY = """
import socket
import struct
import pytest

LEFT = []

@pytest.mark.parametrize("number", range(5))
def test_that_never_logs_in(db_url, postgres_container, number):
    # What is left of `asyncpg.connect` if the event loop is closed while it waits.
    place = postgres_container.host, postgres_container.port
    left = socket.create_connection(place, timeout=10)
    words = ["user", "postgres", "database", db_url.rpartition("/")[2], ""]
    message = struct.pack("!i", 196608) + b"".join(word.encode() + b"\\0" for word in words)
    left.sendall(struct.pack("!i", len(message) + 4) + message)
    assert left.recv(1) == b"R"
    LEFT.append(left)
"""


def assert_only_templates_and_stock(project: Library) -> None:
    """Fail unless every other database goes within a bound; others than ours, too."""
    names = "SELECT datname FROM pg_database WHERE NOT (datname ~ '^warmstack_[rt]_'"
    plain = " OR datname IN ('postgres', 'template0', 'template1'))"
    until(lambda: not project.sql(names + plain), "every clone is gone", seconds=15)


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "workers"])
def test_what_a_test_forgot_is_cut_and_told(kept: Library, workers: tuple[str, ...]) -> None:
    """With the test's name and the connection's; those that close what they open are not told."""
    tests = [f"async def test_{name}(db_url):\n    {body}\n" for name, body in FORGOTTEN.items()]
    kept.write("test_left.py", "\n".join([BEGIN, *tests, TIDY]))

    result = kept.run(REUSE, "test_left.py", "-p", "no:unraisableexception", *workers)

    result.assert_outcomes(passed=len(FORGOTTEN) + 4)
    told = [line for line in result.outlines if "it left a connection" in line]
    for name in FORGOTTEN:
        lines = [line for line in told if f"test_left.py::test_{name}:" in line]
        # Two that the pool never handed out, and one that it put back.
        assert len(lines) == {"pool": 2, "engine": 0}.get(name, 1), name
        assert all(f"'{name}'" in line for line in lines)
    (pooled,) = [line for line in result.outlines if "as in an engine's pool" in line]
    assert "and 1 other test: 2 idle connections stayed open" in pooled
    assert len(told) == len(FORGOTTEN)
    assert any("idle in transaction" in line and "LOCK TABLE author" in line for line in told)
    assert any("active" in line and "pg_sleep" in line for line in told)
    assert_only_templates_and_stock(kept)


def test_what_keeps_a_database_without_a_connection_is_ended(kept: Library) -> None:
    """Prepared transactions and subscriptions; and a clone under another name, or sealed, goes."""
    kept.write("test_odd.py", BEGIN + ODD)

    result = kept.run(REUSE, "test_odd.py", "-p", "no:unraisableexception")

    result.assert_outcomes(passed=9)
    (told,) = [line for line in result.outlines if "test_odd.py::" in line and "left" in line]
    assert "test_renamed_and_sat_in" in told
    assert "'sitting'" in told
    assert_only_templates_and_stock(kept)
    assert kept.sql("SELECT count(*) FROM pg_prepared_xacts")[0][0] == 0
    assert kept.sql("SELECT count(*) FROM pg_subscription")[0][0] == 0


@pytest.mark.parametrize("runtime", [RuntimeName.EMBEDDED], indirect=True)
def test_a_replication_slot_does_not_keep_a_clone(bench: Bench, runtime: str) -> None:
    """Neither one that nobody reads nor one that somebody does, where a server has them."""
    spec = with_command(
        with_options(bench.postgres, wal_level="logical"),
        lambda words: [*words, "-c", "wal_level=logical", "-c", "max_wal_senders=4"],
    )
    server = bench.ensure(spec)
    admin, place = server.client, server.endpoint
    template = DatabaseName(State.TEMPLATE, "e" * 16)
    admin.create(template).result(30)
    with keeping(admin, template) as clone_factory:
        clone = clone_factory.prepare().result(30)
        for name in ("quiet", "read"):
            slot = f"SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')"
            asyncio.run(query(place, slot, database=str(clone.name)))
        reader = psycopg2.connect(
            host=place.host,
            port=place.port,
            user=USER,
            password=place.password,
            dbname=str(clone.name),
            application_name="reader",
            connection_factory=LogicalReplicationConnection,
        )
        reader.cursor().start_replication(
            "read", options={"proto_version": "1", "publication_names": "none"}
        )

        assert [leak.application for leak in clone_factory.drop(clone).result(30)] == ["reader"]

        reader.close()
    assert asyncio.run(query(place, "SELECT * FROM pg_replication_slots")) == []
    assert clone.name not in {each.name for each in admin.all()}


@pytest.mark.parametrize("runtime", [RuntimeName.EMBEDDED], indirect=True)
def test_a_drop_that_can_not_be_done_ends_with_an_error(
    bench: Bench, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a bound: here somebody locks the list of databases, which stands for all the rest."""
    monkeypatch.setattr("pytest_warmstack.postgres.clones.BUSY_TIMEOUT", 0.5)
    monkeypatch.setattr("pytest_warmstack.postgres.connections.STATEMENT_TIMEOUT", 0.3)
    admin, other = (bench.ensure(bench.postgres).client for _ in range(2))
    template = DatabaseName(State.TEMPLATE, "d" * 16)
    admin.create(template).result(30)
    with keeping(admin, template) as clone_factory:
        clone = clone_factory.prepare().result(30)
        other.background.call(other.main.execute, "BEGIN; LOCK TABLE pg_database IN SHARE MODE")

        with pytest.raises(CloneFailed, match="Could not drop the database") as caught:
            clone_factory.drop(clone).result(30)
        assert "0.5 seconds" in str(caught.value)

        other.background.call(other.main.execute, "ROLLBACK")
        assert clone_factory.drop(clone).result(30) == []
    assert clone.name not in {each.name for each in admin.all()}


def test_a_client_that_never_logs_in_holds_up_no_drop(kept: Library) -> None:
    """For longer than a few seconds: PostgreSQL would wait for it for a minute."""
    kept.write("test_left.py", HALF_WAY)

    result = kept.run(REUSE, "test_left.py")

    result.assert_outcomes(passed=5)
    assert result.duration < 25
    assert_only_templates_and_stock(kept)
