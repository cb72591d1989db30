"""A test that would reach the developer's own database is stopped before a byte is sent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis

from external_servers import Cluster, cluster, redis_server
from projects import Library

REUSE = "--reuse-containers"


@pytest.fixture(scope="module")
def developers() -> Iterator[Cluster]:
    """The developer's PostgreSQL, which logs every connection."""
    with cluster("log_connections=on") as server:
        server.sql("CREATE DATABASE shop", "SELECT 1")
        yield server


@pytest.fixture(scope="module")
def developers_redis() -> Iterator[Redis]:
    """The developer's Redis, which counts connections."""
    with redis_server() as client:
        yield client


@pytest.fixture
def variables(developers: Cluster, developers_redis: Redis) -> dict[str, str]:
    """What the application reads: the addresses of the developer's servers."""
    port = developers_redis.connection_pool.connection_kwargs["port"]
    return {
        "DATABASE_URL": f"{developers.url()}/shop",
        "REDIS_URL": f"redis://127.0.0.1:{port}/0",
    }


def connections(server: Cluster, redis: Redis) -> tuple[int, Any]:
    """Return how many connections both servers have had."""
    log = (server.folder / "log").read_text(errors="replace")
    return log.count("connection received"), redis.info("stats")["total_connections_received"]


BEGIN = """
import asyncio, os, threading
import asyncpg, psycopg, psycopg2, pytest, redis, redis.asyncio
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from pytest_warmstack import WarmstackError

URL, REDIS = os.environ["DATABASE_URL"], os.environ["REDIS_URL"]

def url(driver, url=None):
    return (url or URL).replace("postgresql:", f"postgresql+{driver}:")

async def of_engine(url):
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        await connection.execute(text("SELECT 1"))
    await engine.dispose()

async def of_asyncpg(url):
    await (await asyncpg.connect(url)).close()

async def of_pool(url):
    async with asyncpg.create_pool(url, min_size=1) as pool:
        await pool.execute("SELECT 1")

async def of_psycopg(url):
    await (await psycopg.AsyncConnection.connect(url)).close()

async def of_redis(url):
    async with redis.asyncio.Redis.from_url(url) as client:
        await client.ping()

def of_sync_engine(url):
    engine = create_engine(url)
    engine.connect().close()
    engine.dispose()

def all_ways(plain, redis_url):
    yield lambda: asyncio.run(of_asyncpg(plain))
    yield lambda: asyncio.run(of_pool(plain))
    yield lambda: asyncio.run(of_psycopg(plain))
    yield lambda: asyncio.run(of_engine(url("asyncpg", plain)))
    yield lambda: asyncio.run(of_engine(url("psycopg", plain)))
    yield lambda: psycopg.connect(plain).close()
    yield lambda: psycopg2.connect(plain).close()
    yield lambda: of_sync_engine(url("psycopg2", plain))
    yield lambda: of_sync_engine(url("psycopg", plain))
    yield lambda: asyncio.run(of_redis(redis_url))
    yield lambda: redis.Redis.from_url(redis_url).close() or redis.Redis.from_url(redis_url).ping()
"""

REFUSED = """
def test_each_driver(db_dsn, redis_url):
    for number, connect in enumerate(all_ways(URL, REDIS)):
        with pytest.raises(WarmstackError, match="^Refused a connection to another") as caught:
            connect()
        assert "ci:ci" not in str(caught.value)
    assert number == 10

def test_threads(db_dsn, redis_url):
    caught = []
    def work(connect):
        try:
            connect()
        except WarmstackError as error:
            caught.append(error)
    for connect in all_ways(URL, REDIS):
        thread = threading.Thread(target=work, args=(connect,))
        thread.start()
        thread.join()
    assert len(caught) == 11

@pytest.fixture
def around(db_url):
    with pytest.raises(WarmstackError):
        psycopg2.connect(URL)
    yield
    with pytest.raises(WarmstackError):
        psycopg2.connect(URL)

def test_set_up_and_tear_down(around):
    pass

def test_a_fixture_requested_late(request):
    request.getfixturevalue("redis_url")
    with pytest.raises(WarmstackError):
        psycopg2.connect(URL)

@pytest.mark.parametrize("isolation", ["clone", "rollback"])
def test_the_databases_of_the_plugin(request, postgres_container, redis_url, isolation):
    request.node.add_marker(pytest.mark.warmstack_isolation(isolation))
    for connect in all_ways(request.getfixturevalue("db_dsn"), redis_url):
        connect()
    psycopg2.connect(postgres_container.get_connection_url(driver=None)).close()

async def test_the_session(db_session, redis_client):
    await db_session.execute(text("SELECT 1"))
    await redis_client.ping()
"""


def test_no_driver_reaches_the_developers_servers(
    kept: Library, developers: Cluster, developers_redis: Redis, variables: dict[str, str]
) -> None:
    """In set-up, call and tear-down, in threads; the plugin's own servers are reached."""
    kept.write("test_stray.py", BEGIN + REFUSED)
    before = connections(developers, developers_redis)
    kept.run(REUSE, "test_stray.py", **variables).assert_outcomes(passed=7)

    assert connections(developers, developers_redis) == before


FREE = """
def test_covered(db_dsn):
    with pytest.raises(WarmstackError):
        psycopg2.connect(URL)

def test_not_covered():
    for connect in all_ways(URL, REDIS):
        connect()
"""


def test_a_test_without_our_fixtures_connects_to_whatever_it_likes(
    kept: Library, variables: dict[str, str]
) -> None:
    """Also in a run whose other tests are covered."""
    kept.write("test_free.py", BEGIN + FREE)
    kept.run(REUSE, "test_free.py", **variables).assert_outcomes(passed=2)


def test_listed_addresses_are_reached(
    kept: Library, developers: Cluster, variables: dict[str, str]
) -> None:
    """The line is the one that the refusal advises."""
    stray = "def test_one(db_url, redis_url):\n    psycopg2.connect(URL).close()\n"
    kept.write("test_listed.py", BEGIN + stray)
    refused = kept.run(REUSE, "test_listed.py", **variables)
    refused.assert_outcomes(failed=1)
    line = f"warmstack_allow = {developers.endpoint.place}"
    refused.stdout.fnmatch_lines([f"E *{line}"])
    kept.configure(line)

    kept.run(REUSE, "test_listed.py", **variables).assert_outcomes(passed=1)


def test_a_line_that_is_no_address_is_explained(kept: Library) -> None:
    """Before anything starts."""
    kept.configure("warmstack_allow = db")
    done = kept.run(REUSE)

    done.stderr.fnmatch_lines(
        ["ERROR: Invalid value 'db' for warmstack_allow.", "Why: it takes lines like host:5432, *"]
    )


SWALLOWED = """
def answer():
    try:
        psycopg2.connect(URL)
    except Exception:
        return 500
    return 200

def test_swallowed(db_url):
    assert answer() == 200

def test_nothing_refused(db_url):
    assert answer is None

def test_passed(db_url):
    answer()
"""


def test_a_refusal_that_the_application_swallowed_is_in_the_report(
    kept: Library, variables: dict[str, str]
) -> None:
    """Once, in the report of the test that failed; without a password."""
    kept.write("test_swallowed.py", BEGIN + SWALLOWED)
    done = kept.run(REUSE, "test_swallowed.py", **variables)

    done.assert_outcomes(failed=2, passed=1)
    text = done.stdout.str()
    assert text.count("warmstack: refused connections") == 1
    assert text.count("Refused a connection to another PostgreSQL than the test's: 127.0.0.1:") == 1
    assert "warmstack_env = DATABASE_URL=postgresql://{db_user}:{db_password}@{db_host}:" in text
    assert "test_swallowed.py::test_swallowed uses a server of pytest-warmstack" in text
    assert "ci:ci" not in text


TIMEOUT = """
import time

@pytest.mark.timeout(1)
def test_slow(db_url):
    time.sleep(60)

def test_not_covered():
    psycopg2.connect(URL).close()

def test_covered(db_url):
    with pytest.raises(WarmstackError):
        psycopg2.connect(URL)
"""


def test_the_guard_survives_a_timeout(kept: Library, variables: dict[str, str]) -> None:
    """pytest-timeout interrupts a covered test; the next ones are as always."""
    kept.write("test_timeout.py", BEGIN + TIMEOUT)
    done = kept.run(REUSE, "-p", "pytest_timeout", "test_timeout.py", **variables)

    done.assert_outcomes(failed=1, passed=2)


CONTAINER = """
from testcontainers.community.redis import RedisContainer

def test_containers(db_url):
    with RedisContainer("IMAGE") as container:
        container.get_client().ping()
    with pytest.raises(WarmstackError):
        redis.Redis.from_url(REDIS).ping()
"""


@pytest.mark.docker
def test_containers_that_the_suite_starts_are_reached(
    docker_project: Library, variables: dict[str, str]
) -> None:
    """Those of testcontainers are known by its label; others are still refused."""
    assert docker_project.images is not None
    text = CONTAINER.replace("IMAGE", docker_project.images.redis)
    docker_project.write("test_containers.py", BEGIN + text)
    done = docker_project.run(
        "test_containers.py", TESTCONTAINERS_RYUK_DISABLED="true", **variables
    )

    done.assert_outcomes(passed=1)


def test_on_an_external_server_only_our_databases_are_reached(
    guest: Library, developers: Cluster
) -> None:
    """The server of the tests is also the developer's."""
    stray = """
def test_own(db_dsn):
    for _, connect in zip(range(9), all_ways(db_dsn, REDIS)):
        connect()

def test_other(db_url):
    with pytest.raises(WarmstackError, match="database shop"):
        psycopg2.connect(URL)
"""
    guest.write("test_guest.py", BEGIN + stray)
    own = {"WARMSTACK_POSTGRES_URL": developers.url()}
    urls = {"DATABASE_URL": f"{developers.url()}/shop", "REDIS_URL": ""}
    done = guest.run("test_guest.py", **own, **urls)
    developers.clear()

    done.assert_outcomes(passed=2)
