"""Connections that a test opens in other event loops than its own work, and are closed."""

from __future__ import annotations

from typing import Final

import pytest

from projects import Library, until

APPLICATION: Final = """
import asyncio

from fastapi import Depends, FastAPI
from sqlalchemy import text


def get_engine(): ...
def get_redis(): ...
def get_session(): ...


app = FastAPI()


@app.post("/authors")
async def create(engine=Depends(get_engine), redis=Depends(get_redis)):
    async with engine.begin() as connection:
        await connection.execute(
            text("INSERT INTO author SELECT coalesce(max(id), 0) + 1, 'Ada' FROM author")
        )
        n = await connection.scalar(text("SELECT count(*) FROM author"))
    return {"n": n, "hits": await redis.incr("hits")}


@app.post("/two")
async def two(engine=Depends(get_engine)):
    async with engine.connect() as one, engine.connect() as other:
        return await one.scalar(text("SELECT 1")) + await other.scalar(text("SELECT 1"))


@app.post("/session")
async def with_session(session=Depends(get_session)):
    await session.execute(text("INSERT INTO author VALUES (7, 'Grace')"))
    return await session.scalar(text("SELECT count(*) FROM author"))


async def work(engine, redis):
    async with engine.connect() as connection:
        await connection.execute(text("INSERT INTO author VALUES (1, 'Ada')"))
    await redis.set("a", 1)
    return await redis.get("a")
"""

WAYS: Final = {
    "a test client": """
        def test(client):
            assert client.post("/authors").json() == {"n": 1, "hits": 1}
            assert client.post("/authors").json() == {"n": 2, "hits": 2}
    """,
    "a test client that is not entered": """
        def test(bare_client):
            assert bare_client.post("/authors").json() == {"n": 1, "hits": 1}
            assert bare_client.post("/authors").json() == {"n": 2, "hits": 2}
    """,
    "two connections at once": """
        def test(client):
            assert client.post("/two").json() == 2
    """,
    "a session of the test's": """
        def test(client, db_session):
            app.dependency_overrides[get_session] = lambda: db_session
            assert client.post("/session").json() == 1
    """,
    "asyncio.run": """
        def test(db_engine, redis_client):
            for _ in range(2):
                assert asyncio.run(work(db_engine, redis_client)) == b"1"
    """,
    "uvloop": """
        import uvloop

        # Its loop does not end when it closes connections and a warning is an error.
        @pytest.mark.filterwarnings("ignore")
        def test(db_engine, redis_client):
            for _ in range(2):
                assert uvloop.run(work(db_engine, redis_client)) == b"1"
    """,
    "the test's own loop as well": """
        async def test(db_engine, redis_client):
            assert await work(db_engine, redis_client) == b"1"
            other = asyncio.to_thread(asyncio.run, work(db_engine, redis_client))
            assert await other == b"1"
            assert await work(db_engine, redis_client) == b"1"
    """,
    "unittest's loop": """
        import unittest

        class Test(unittest.IsolatedAsyncioTestCase):
            @pytest.fixture(autouse=True)
            def take(self, db_engine, redis_client):
                self.engine, self.redis = db_engine, redis_client

            async def test(self):
                assert await work(self.engine, self.redis) == b"1"
    """,
    "a thread whose loop goes on": """
        import threading

        def test(going_on, db_engine, redis_client):
            done = asyncio.run_coroutine_threadsafe(work(db_engine, redis_client), going_on)
            assert done.result(10) == b"1"
    """,
    "a transaction that is left open": """
        left = []

        async def begin(engine):
            connection = await engine.connect()
            left.append(connection)
            await connection.execute(text("LOCK TABLE author"))

        @pytest.mark.filterwarnings("ignore:The garbage collector is trying")
        def test(db_engine):
            asyncio.run(begin(db_engine))
    """,
    "a loop of the module's": """
        pytestmark = pytest.mark.warmstack_isolation("module")

        @pytest_asyncio.fixture(scope="module", loop_scope="module")
        async def seeded(db_engine):
            await work(db_engine, MagicRedis())

        @pytest.mark.asyncio(loop_scope="module")
        async def test(seeded, db_engine, redis_client):
            assert await work(db_engine, redis_client) == b"1"

        def test_in_another_loop(seeded, db_engine, redis_client):
            assert asyncio.run(work(db_engine, redis_client)) == b"1"
    """,
}

INNOCENT: Final = """
import pytest
from sqlalchemy import text


@pytest.mark.parametrize("n", range(3))
async def test_that_comes_later(db_session, redis_client, n):
    assert await db_session.scalar(text("SELECT count(*) FROM author")) == 0
    assert await redis_client.dbsize() == 0
"""

CONFTEST: Final = """
import asyncio
import threading

import pytest
from fastapi.testclient import TestClient
from application import app, get_engine, get_redis


@pytest.fixture
def bare_client(db_engine, redis_client):
    app.dependency_overrides[get_engine] = lambda: db_engine
    app.dependency_overrides[get_redis] = lambda: redis_client
    yield TestClient(app)
    app.dependency_overrides.clear()


@pytest.fixture
def client(bare_client):
    with bare_client:
        yield bare_client


@pytest.fixture(scope="session")
def going_on():
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
"""

IMPORTS: Final = """
import asyncio
import pytest
import pytest_asyncio
from sqlalchemy import text
from application import app, get_session, work

class MagicRedis:
    async def set(self, key, value): ...
    async def get(self, key): ...

"""


def files(project: Library, way: str, isolation: str = "clone") -> None:
    """Write the tests of a *way*, and an innocent one after them."""
    lines = [line.removeprefix("        ") for line in WAYS[way].splitlines()]
    project.write("application.py", APPLICATION)
    project.write("conftest.py", CONFTEST)
    project.write("test_1_way.py", IMPORTS + "\n".join(lines))
    project.write("test_2_innocent.py", INNOCENT)
    project.configure(
        f"warmstack_isolation = {isolation}",
        "filterwarnings =",
        "    error",
        "    ignore::DeprecationWarning",
        "    ignore:Using `httpx` with",
    )


@pytest.mark.parametrize("way", [*WAYS])
def test_connections_of_another_loop_are_used_and_ended(kept: Library, way: str) -> None:
    """Every warning is an error here: no socket and no transport is left to be found."""
    files(kept, way)

    result = kept.run("--reuse-containers", "test_1_way.py", "test_2_innocent.py")

    result.assert_outcomes(passed=3 + WAYS[way].count("def test"))
    result.stdout.no_fnmatch_line("*it left a*")
    until(lambda: not kept.databases("u"), "all used clones are dropped", seconds=15)


@pytest.mark.parametrize(
    "way",
    ["a test client", "a session of the test's", "asyncio.run", "unittest's loop", "uvloop"],
)
def test_rollback_isolation_says_that_it_has_one_loop(kept: Library, way: str) -> None:
    """In one sentence, and the tests that come later do not suffer from it."""
    files(kept, way, isolation="rollback")

    result = kept.run("--reuse-containers", "test_1_way.py", "test_2_innocent.py")

    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(["*Rollback isolation does not work across event loops.*"])


OPEN: Final = {
    "two requests in a loop each": """
        def test(bare_client, db_session):
            app.dependency_overrides[get_session] = lambda: db_session
            assert bare_client.post("/session").json() == 1
            bare_client.post("/session")
    """,
    "the test, then a request": """
        async def test(client, db_session):
            app.dependency_overrides[get_session] = lambda: db_session
            await db_session.execute(text("INSERT INTO author VALUES (1, 'Ada')"))
            client.post("/session")
    """,
    "a request, then the test": """
        async def test(client, db_session):
            app.dependency_overrides[get_session] = lambda: db_session
            assert client.post("/session").json() == 1
            await db_session.execute(text("SELECT 1"))
    """,
}
WAYS.update(OPEN)


@pytest.mark.parametrize("way", OPEN)
def test_a_transaction_says_that_it_has_one_loop(kept: Library, way: str) -> None:
    """With what to do, and the tests that come later do not suffer from it."""
    files(kept, way)

    result = kept.run("--reuse-containers", "test_1_way.py", "test_2_innocent.py")

    result.assert_outcomes(passed=3, failed=1)
    result.stdout.fnmatch_lines(
        ["E *This session or connection has a transaction open in another event loop."]
    )
    result.stdout.no_fnmatch_line("*attached to a different loop*")
