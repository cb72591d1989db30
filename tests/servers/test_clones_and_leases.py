"""Every test, every process and every concurrent run has its own database and Redis."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis

from projects import Bench, Library, until, with_command, with_options
from pytest_warmstack.options import RuntimeName
from pytest_warmstack.redis.errors import LeaseFailed
from pytest_warmstack.redis.leases import Leases
from pytest_warmstack.servers.model import Server

REUSE = "--reuse-containers"

ALIKE = """
import os
import time
from pathlib import Path
import pytest
from sqlalchemy import text

@pytest.mark.parametrize("number", range(8))
async def test_alike(db_session, redis_client, redis_url, number):
    path = Path("processes.log")
    with path.open("a") as log:
        log.write(f"{os.getpid()} {redis_url.rpartition('/')[2]}\\n")
    # All of them at once.
    deadline = time.monotonic() + 20
    while len({line.split()[0] for line in path.read_text().splitlines()}) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert await redis_client.dbsize() == 0
    assert await db_session.scalar(text("SELECT count(*) FROM author")) == 0
    await redis_client.set("reader", number)
    await db_session.execute(text("INSERT INTO author VALUES (1, 'Ursula')"))
    await db_session.commit()
"""

BLOCKING = """
import signal
from pathlib import Path

def test_that_never_ends(db_url, redis_url):
    Path("running").touch()
    signal.pause()
"""

INDEX = """
from pathlib import Path

def test_index(redis_url):
    Path("index.log").write_text(redis_url.rpartition("/")[2])
"""


@pytest.fixture
def redis(request: pytest.FixtureRequest, standing: Bench) -> Iterator[Server[Any]]:
    """A Redis, and whoever connects to it for a lease."""
    yield standing.ensure(standing.redis)
    standing.leave()


def leases(bench: Bench) -> Leases:
    """Return the leases of one more process."""
    server = bench.ensure(bench.redis)
    return Leases(
        server,
        lambda: bench.redis.connect(server.endpoint, server.fingerprint, 5),
        found=lambda test, trouble: pytest.fail(f"{test}: {trouble}"),
    )


embedded_only = pytest.mark.parametrize("runtime", [RuntimeName.EMBEDDED], indirect=True)


def test_what_tests_commit_no_other_test_sees(embedded_project: Library) -> None:
    """Eight tests in four processes commit the same row and set the same key, and all pass."""
    project = embedded_project
    project.write("test_alike.py", ALIKE)

    result = project.run("-n", "4", "-x", "test_alike.py", REUSE, WARMSTACK_MIGRATE_TIMEOUT="15")
    result.assert_outcomes(passed=8)

    pairs = {tuple(line.split()) for line in project.lines("processes.log")}
    assert len(pairs) == len({process for process, _ in pairs}) == 4
    # One Redis database for each process, and the database of the leases for none.
    assert {index for _, index in pairs} == {"1", "2", "3", "4"}
    assert project.databases("u") == []
    assert len(project.databases("t")) == 1


def test_clones_are_dropped_whoever_sits_in_them(kept: Library) -> None:
    """A transaction that a test leaves open does not keep its database alive."""
    kept.write(
        "test_sit.py",
        "import asyncpg\n"
        "LEFT = []\n"
        "async def test_that_leaves_a_transaction_open(db_url):\n"
        '    connection = await asyncpg.connect(db_url.replace("+asyncpg", ""), ssl=False)\n'
        '    await connection.execute("BEGIN; LOCK TABLE author")\n'
        "    LEFT.append(connection)\n"
        "async def test_after_it(db_session):\n"
        "    pass\n",
    )

    kept.run(REUSE, "test_sit.py").assert_outcomes(passed=2)

    assert kept.databases("u") == []


def test_what_a_killed_run_held_is_free_for_the_next(kept: Library) -> None:
    """After kill -9 its clone is swept by the next run, and its Redis database can be had again.

    It is not the first choice: its owner may live and have lost its connection.
    """
    kept.write("test_block.py", BLOCKING)
    kept.write("test_index.py", INDEX)
    running = kept.start(REUSE, "test_block.py")
    until((kept.folder / "running").exists, "the test runs")
    (clone,) = kept.databases("u")
    kept.run(REUSE, "test_index.py", "-k", "index").assert_outcomes(passed=1)
    assert kept.lines("index.log") == ["2"]

    running.kill()
    assert kept.databases("u") == [clone]

    kept.run(REUSE, "test_index.py", "test_library.py", "-k", "index or author").assert_outcomes(
        passed=2, deselected=4
    )
    assert kept.lines("index.log") == ["2"]
    assert kept.databases("u") == []
    every = "--warmstack-redis-databases=255"
    kept.run(REUSE, "test_index.py", "-k", "index", every).assert_outcomes(passed=1)
    assert kept.lines("index.log") == ["1"]


def test_what_a_living_run_holds_is_spared(kept: Library) -> None:
    """Another run of the project sweeps around the clone of a test that still goes on."""
    kept.write(
        "test_wait.py",
        "import time\n"
        "from pathlib import Path\n"
        "from sqlalchemy import text\n"
        "async def test_that_waits(db_session, redis_client):\n"
        '    await redis_client.set("reader", "Ada")\n'
        "    await db_session.execute(text(\"INSERT INTO author VALUES (1, 'Ursula')\"))\n"
        "    await db_session.commit()\n"
        '    Path("running").touch()\n'
        "    deadline = time.monotonic() + 60\n"
        '    while not Path("go").exists():\n'
        "        assert time.monotonic() < deadline\n"
        "        time.sleep(0.02)\n"
        '    assert await db_session.scalar(text("SELECT count(*) FROM author")) == 1\n'
        '    assert await redis_client.get("reader") == b"Ada"\n',
    )
    running = kept.start(REUSE, "test_wait.py")
    until((kept.folder / "running").exists, "the test runs")
    (clone,) = kept.databases("u")

    kept.run(REUSE, "test_library.py").assert_outcomes(passed=5)

    assert kept.databases("u") == [clone]
    (kept.folder / "go").touch()
    running.wait().assert_outcomes(passed=1)
    assert kept.databases("u") == []


def test_a_test_may_kill_every_client(kept: Library) -> None:
    """Our own connections among them: the next test has an empty Redis and a database again."""
    kept.write(
        "test_kill.py",
        "import asyncio, redis\n"
        "async def test_that_kills(redis_url, redis_container):\n"
        "    client = redis.Redis.from_url(redis_url)\n"
        '    client.set("reader", "Ada")\n'
        '    client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")\n'
        "    client.close()\n"
        "async def test_after_it(redis_client):\n"
        "    assert await redis_client.dbsize() == 0\n"
        '    await redis_client.set("reader", "Grace")\n'
        "async def test_at_last(redis_client):\n"
        "    assert await redis_client.dbsize() == 0\n",
    )

    kept.run(REUSE, "test_kill.py").assert_outcomes(passed=3)


def test_a_test_may_end_every_connection_to_postgresql(kept: Library) -> None:
    """Ours among them, and those of another run, whose clone stays its own although it sweeps."""
    kept.write(
        "test_wait.py",
        "import time\n"
        "from pathlib import Path\n"
        "import pytest\n"
        "from sqlalchemy import text\n"
        "@pytest.mark.parametrize('number', range(3))\n"
        "async def test_that_waits(db_session, number):\n"
        "    await db_session.execute(text(\"INSERT INTO author VALUES (1, 'Ursula')\"))\n"
        "    await db_session.commit()\n"
        "    await db_session.close()\n"
        '    Path("running").touch()\n'
        "    deadline = time.monotonic() + 60\n"
        '    while not Path("go").exists():\n'
        "        assert time.monotonic() < deadline\n"
        "        time.sleep(0.02)\n"
        "    await db_session.bind.dispose(close=False)\n"
        '    assert await db_session.scalar(text("SELECT count(*) FROM author")) == 1\n',
    )
    kept.write(
        "test_end.py",
        "import pytest\n"
        "from sqlalchemy import text\n"
        "@pytest.mark.parametrize('number', range(8))\n"
        "async def test_that_ends_all(db_session, number):\n"
        '    assert await db_session.scalar(text("SELECT count(*) FROM author")) == 0\n'
        "    await db_session.execute(text(\"INSERT INTO author VALUES (1, 'Ursula')\"))\n"
        '    end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE "\\\n'
        "        \"backend_type = 'client backend' AND pid <> pg_backend_pid()\"\n"
        "    assert await db_session.scalar(text(end)) >= 1\n"
        "    await db_session.commit()\n",
    )
    running = kept.start(REUSE, "test_wait.py")
    until((kept.folder / "running").exists, "the test runs")
    clones = set(kept.databases("u"))

    kept.run(REUSE, "test_end.py").assert_outcomes(passed=8)
    kept.run(REUSE, "test_library.py").assert_outcomes(passed=5)

    assert clones <= set(kept.databases("u"))
    (kept.folder / "go").touch()
    running.wait().assert_outcomes(passed=3)
    kept.run(REUSE, "test_library.py").assert_outcomes(passed=5)
    assert kept.databases("u") == []


@embedded_only
def test_a_flush_of_everything_gives_no_database_away(standing: Bench, redis: Server[Any]) -> None:
    """FLUSHALL removes the keys that hold the leases; the connections hold them all the same."""
    first = leases(standing)
    lease = first.acquire("a test")
    with Redis.from_url(lease.urls[0]) as client:
        client.flushall()

    second = leases(standing)

    assert (lease.index, second.acquire("a test").index) == (1, 2)
    assert first.acquire("a test") == lease


@embedded_only
def test_a_database_is_empty_each_time_and_nobody_elses_is_touched(
    standing: Bench, redis: Server[Any]
) -> None:
    """Each test's turn empties the database of its own process only."""
    first, second = leases(standing), leases(standing)
    with (
        Redis.from_url(first.acquire("a test").urls[0]) as mine,
        Redis.from_url(second.acquire("a test").urls[0]) as theirs,
    ):
        mine.set("reader", "Ada")
        theirs.set("reader", "Grace")

        first.acquire("a test")

        assert mine.dbsize() == 0
        assert theirs.get("reader") == b"Grace"


@embedded_only
def test_when_every_database_is_taken_the_text_says_so(bench: Bench) -> None:
    """A third process on a server with two databases to lease gets none, until one is free."""
    spec = with_command(
        with_options(bench.redis, databases="3"), lambda words: [*words, "--databases", "3"]
    )
    servers = [bench.ensure(spec) for _ in range(3)]
    assert len({server.id for server in servers}) == 1
    first, second, third = (
        Leases(
            server,
            lambda: pytest.fail("a connection was lost"),
            found=lambda test, trouble: pytest.fail(f"{test}: {trouble}"),
        )
        for server in servers
    )
    assert (first.acquire("a test").index, second.acquire("a test").index) == (1, 2)

    with pytest.raises(LeaseFailed) as caught:
        third.acquire("a test")
    text = str(caught.value)
    assert "Every database of the Redis server is in use." in text
    assert "2 running processes hold the 2 databases" in text

    first.close()
    assert third.acquire("a test").index == 1
