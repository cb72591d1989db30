"""The asynchronous fixtures in every event loop that a test may run in.

In each run, two tests per scope use all fixtures at once, together with fixtures of the user. Every
warning is an error, so using a connection in the wrong loop would be noticed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., pytest.RunResult]

SCOPES = ("function", "class", "module", "package", "session")

TESTS = """
import asyncio

import pytest
import pytest_asyncio
from sqlalchemy import text

loops = []


@{fixture}
async def a_row(db_session):
    await db_session.execute(text("CREATE TABLE orders (id int)"))
    await db_session.execute(text("INSERT INTO orders VALUES (1)"))
    await db_session.commit()
    return asyncio.get_running_loop()


@{fixture}
async def a_key(redis_client, a_row):
    assert await redis_client.set("stock", 3, nx=True)
    yield asyncio.get_running_loop()
    assert await redis_client.get("stock") == b"2"


{decorator}
class TestOrders:
    async def look(self, db_engine, db_session, redis_client, a_row, a_key):
        loop = asyncio.get_running_loop()
        assert a_row is a_key is loop
        loops.append(loop)
        async with db_engine.connect() as connection:
            assert (await connection.scalar(text("SELECT count(*) FROM orders"))) == 1
        await db_session.execute(text("INSERT INTO orders VALUES (2)"))
        assert (await db_session.scalar(text("SELECT count(*) FROM orders"))) == 2
        await db_session.commit()
        assert await redis_client.decr("stock") == 2
        assert await redis_client.dbsize() == 1

    async def test_one(self, db_engine, db_session, redis_client, a_row, a_key):
        await self.look(db_engine, db_session, redis_client, a_row, a_key)

    async def test_two(self, db_engine, db_session, redis_client, a_row, a_key):
        await self.look(db_engine, db_session, redis_client, a_row, a_key)
        assert (loops[0] is loops[1]) is {shared}


def test_three(db_url, redis_url):
    import asyncpg
    import redis

    async def count():
        connection = await asyncpg.connect(db_url.replace("+asyncpg", ""), ssl=False)
        try:
            return await connection.fetchval("SELECT count(*) FROM pg_tables WHERE tablename = $1",
                                             "orders")
        finally:
            await connection.close()

    assert asyncio.run(count()) == 0
    with redis.Redis.from_url(redis_url) as client:
        assert client.dbsize() == 0
"""
"""Two tests that share nothing but, perhaps, their loop; and one without any loop."""


def write(pytester: pytest.Pytester, scope: str, *, fixture: str, decorator: str) -> None:
    """Write tests whose loop is that of *scope*; each file is in a package of its own."""
    package = pytester.mkpydir(f"in_{scope}")
    text = TESTS.format(fixture=fixture, decorator=decorator, shared=scope != "function")
    (package / f"test_{scope}.py").write_text(text)


def ini(pytester: pytest.Pytester, *, mode: str = "strict", scope: str = "function") -> None:
    """Write a pytest.ini that chooses pytest-asyncio's mode and default loops."""
    pytester.makefile(
        ".ini",
        pytest="[pytest]\n"
        f"asyncio_mode = {mode}\n"
        f"asyncio_default_fixture_loop_scope = {scope}\n"
        f"asyncio_default_test_loop_scope = {scope}\n",
    )


@pytest.mark.parametrize("mode", ["strict", "auto"])
def test_a_marker_chooses_the_loop(pytester: pytest.Pytester, run: Run, mode: str) -> None:
    """The scope that a test's marker names is where its session, engine and client live."""
    ini(pytester, mode=mode)
    for scope in SCOPES:
        write(
            pytester,
            scope,
            decorator=f'@pytest.mark.asyncio(loop_scope="{scope}")',
            fixture=f'pytest_asyncio.fixture(loop_scope="{scope}")',
        )

    result = run("-W", "error")

    result.assert_outcomes(passed=3 * len(SCOPES))


@pytest.mark.parametrize(
    ("mode", "scope"),
    [
        ("strict", "class"),
        ("auto", "module"),
        ("strict", "package"),
        ("auto", "session"),
    ],
)
def test_the_configured_default_chooses_the_loop(
    pytester: pytest.Pytester, run: Run, mode: str, scope: str
) -> None:
    """Without a scope of its own, a test runs in the loop that pytest-asyncio was configured to."""
    ini(pytester, mode=mode, scope=scope)
    auto = mode == "auto"
    write(
        pytester,
        scope,
        decorator="" if auto else "@pytest.mark.asyncio",
        fixture="pytest.fixture" if auto else "pytest_asyncio.fixture",
    )

    result = run("-W", "error")

    result.assert_outcomes(passed=3)


def test_a_marker_wins_over_the_configured_default(pytester: pytest.Pytester, run: Run) -> None:
    """Single tests may leave the loop that the others share, and come back."""
    ini(pytester, mode="auto", scope="session")
    write(
        pytester,
        "function",
        decorator='@pytest.mark.asyncio(loop_scope="function")',
        fixture='pytest_asyncio.fixture(loop_scope="function")',
    )
    write(pytester, "session", decorator="", fixture="pytest.fixture")

    result = run("-W", "error")

    result.assert_outcomes(passed=6)


@pytest.mark.parametrize("order", ["anyio first", "anyio last", "anyio alone"])
def test_a_test_of_anyios_plugin_has_its_fixtures_in_its_loop(
    pytester: pytest.Pytester, run: Run, order: str
) -> None:
    """The marker `anyio`, on the backend asyncio, is as good as pytest-asyncio's."""
    pytester.makeconftest(
        """
        import pytest

        @pytest.fixture(params=["asyncio"])
        def anyio_backend(request):
            return request.param
        """
    )
    write(pytester, "function", decorator="@pytest.mark.anyio", fixture="pytest.fixture")
    # pytest takes the plugin `asyncio` for Python's module of that name, which anyio imports.
    strict = ["-W", "error", "-W", "ignore::pytest.PytestAssertRewriteWarning"]

    if order == "anyio alone":
        result = run(*strict, "-p", "no:asyncio", plugins=["anyio"])
    else:
        ini(pytester)
        first = order == "anyio first"
        result = run(*strict, **{"before" if first else "plugins": ["anyio"]})

    result.assert_outcomes(passed=3)


def test_another_backend_of_anyio_is_refused_with_the_line_that_selects_asyncio(
    pytester: pytest.Pytester, run: Run
) -> None:
    """It is shown once; the tests on asyncio pass, and those that need no loop as well."""
    ini(pytester)
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture(params=["asyncio", ("trio", {})], ids=["asyncio", "trio"])
        def anyio_backend(request):
            return request.param

        @pytest.mark.anyio
        async def test_session(db_session): pass

        @pytest.mark.anyio
        async def test_engine(db_engine): pass

        @pytest.mark.anyio
        async def test_client(redis_client): pass

        def test_that_needs_no_loop(anyio_backend, db_engine, redis_url): pass
        """
    )

    result = run(plugins=["anyio"])

    result.assert_outcomes(passed=5, errors=3)
    text = result.stdout.str()
    headline = "The fixtures of pytest-warmstack support only the asyncio backend of AnyIO."
    assert text.count(f"\n{headline}\nWhy: this test runs on trio, ") == 1
    assert text.count('\n    def anyio_backend():\n        return "asyncio"\n') == 1
    assert text.count(f"\n{headline} (Same error as above; ") == 2


def test_synchronous_tests_may_use_the_asynchronous_fixtures(
    pytester: pytest.Pytester, run: Run
) -> None:
    """A test that only hands the session on, as one of a web framework's client may, can do so."""
    ini(pytester)
    pytester.makepyfile(
        """
        def test_it(db_session, redis_client, db_url):
            assert db_session.bind.url.render_as_string(hide_password=False) == db_url
            assert redis_client.connection_pool.connection_kwargs["db"] > 0
        """
    )

    result = run("-W", "error")

    result.assert_outcomes(passed=1)


def test_without_any_loop_the_test_fails_with_a_sentence(
    pytester: pytest.Pytester, run: Run
) -> None:
    """Neither pytest-asyncio nor anyio: the fixture says what it needs and what works without."""
    pytester.makepyfile(
        """
        async def test_async(redis_client): pass

        def test_sync(redis_client): pass

        def test_that_needs_no_loop(redis_url): pass
        """
    )

    result = run("-W", "error", "-p", "no:asyncio")

    result.assert_outcomes(errors=2, passed=1)
    result.stdout.fnmatch_lines(
        [
            "*ERROR at setup of test_async*",
            "redis_client needs an event loop, and neither pytest-asyncio nor anyio's plugin gives"
            " this test one. Use db_sync_session or redis_sync_client, or switch a plugin on.",
        ],
        consecutive=True,
    )
    assert "Traceback" not in result.stdout.str()


def test_fixtures_of_the_same_test_share_one_database(pytester: pytest.Pytester, run: Run) -> None:
    """The URL, the engine and the session of a test lead to the same clone, and no other test's."""
    ini(pytester, mode="auto")
    pytester.makepyfile(
        """
        import pytest
        from sqlalchemy import text

        seen = set()

        @pytest.mark.parametrize("turn", range(3))
        async def test_it(turn, db_url, db_engine, db_session):
            name = await db_session.scalar(text("SELECT current_database()"))
            assert db_url.endswith("/" + name)
            assert db_engine.url.database == name
            assert db_session.bind is db_engine
            assert name not in seen
            seen.add(name)
        """
    )

    result = run("-W", "error")

    result.assert_outcomes(passed=3)


OWN_LOOP = """
import pytest_asyncio
from redis.asyncio import Redis
from sqlalchemy import text


@pytest_asyncio.fixture(scope="session")
async def client(redis_process_url):
    async with Redis.from_url(redis_process_url) as client:
        yield client


async def test_one(client, db_session):
    await client.set("a", 1)
    assert await db_session.scalar(text("SELECT 1")) == 1


async def test_two(client, redis_url, db_session):
    assert await client.get("a") is None
    assert await db_session.scalar(text("SELECT 1")) == 1
"""


def test_two_lines_replace_an_event_loop_fixture(pytester: pytest.Pytester, run: Run) -> None:
    """They are those that the documentation has, and without them the client is of another loop."""
    page = Path(__file__, "../../../docs/application.md").resolve().read_text()
    section = page.partition("## Coming from pytest-asyncio before 1.0")[2]
    lines = section.partition("```ini\n")[2].partition("```")[0]
    pytester.makepyfile(OWN_LOOP)
    base = "[pytest]\nasyncio_mode = auto\nwarmstack_alembic = none\n"

    pytester.makefile(".ini", pytest=f"{base}{lines}")
    run("-W", "error").assert_outcomes(passed=2)

    pytester.makefile(".ini", pytest=base)
    assert "different loop" in run().stdout.str()
