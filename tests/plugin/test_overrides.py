"""The plugin's fixtures among the user's: overridden, built upon, requested late, left dirty."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Run = Callable[..., pytest.RunResult]

COUNT = """
import asyncio
import time

import asyncpg


async def clones(container):
    "Return how many databases of tests are on the server, once none is, or after a while."
    connection = await asyncpg.connect(
        container.get_connection_url(driver=None), ssl=False, timeout=10
    )
    try:
        deadline = time.monotonic() + 10
        while True:
            left = await connection.fetchval(
                r"SELECT count(*) FROM pg_database WHERE datname LIKE 'warmstack\\_u\\_%'"
            )
            if not left or time.monotonic() > deadline:
                return left
            await asyncio.sleep(0.02)
    finally:
        await connection.close()
"""
"""A module of the inner project that counts the clones on its server."""


@pytest.fixture(autouse=True)
def auto_mode(pytester: pytest.Pytester) -> None:
    """Have coroutines run without markers; every warning is an error."""
    pytester.makefile(
        ".ini",
        pytest="[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
        "filterwarnings = error\n",
    )


def test_the_users_own_fixture_of_the_same_name_takes_our_place(
    pytester: pytest.Pytester, run: Run
) -> None:
    """A `db_session` in a conftest.py wins, and may be built on ours of that name."""
    pytester.makeconftest(
        """
        import pytest
        from sqlalchemy import text

        @pytest.fixture
        async def db_session(db_session):
            await db_session.execute(text("CREATE TABLE mine (id int)"))
            await db_session.commit()
            db_session.info["mine"] = True
            return db_session
        """
    )
    pytester.makepyfile(
        test_built_on="""
        from sqlalchemy import text

        async def test_it(db_session, db_engine):
            assert db_session.info["mine"]
            async with db_engine.connect() as connection:
                assert (await connection.scalar(text("SELECT count(*) FROM mine"))) == 0
        """,
        test_replaced="""
        import pytest

        @pytest.fixture
        def db_session():
            return "a session of mine"

        def test_it(db_session):
            assert db_session == "a session of mine"
        """,
    )

    result = run()

    result.assert_outcomes(passed=2)


def test_a_replaced_fixture_starts_nothing(pytester: pytest.Pytester, run: Run) -> None:
    """Who brings a `db_url` and a `redis_url` of their own needs no server of ours."""
    pytester.makeconftest(
        """
        import pytest

        @pytest.fixture
        def db_url():
            return "postgresql+asyncpg://somebody@127.0.0.1:1/else"

        @pytest.fixture(scope="session")
        def redis_url():
            return "redis://127.0.0.1:1/0"
        """
    )
    pytester.makepyfile(
        """
        async def test_it(db_engine, redis_client):
            assert db_engine.url.port == 1
            assert redis_client.connection_pool.connection_kwargs["port"] == 1
        """
    )

    result = run()

    result.assert_outcomes(passed=1)
    assert "warmstack:" not in result.stdout.str()


def test_classes_parameters_and_generators_work_on_top_of_the_session(
    pytester: pytest.Pytester, run: Run
) -> None:
    """Every shape that a test or a fixture can have gets a database of its own each time."""
    pytester.makepyfile(
        """
        import pytest
        from sqlalchemy import text

        async def names(session):
            return list(await session.scalars(text("SELECT name FROM people ORDER BY name")))

        @pytest.fixture
        async def people(db_session):
            await db_session.execute(text("CREATE TABLE people (name text)"))
            yield db_session
            assert "ada" in await names(db_session)

        @pytest.fixture(params=["bob", "eve"])
        async def friend(request, people):
            await people.execute(text("INSERT INTO people VALUES (:n)"), {"n": request.param})
            return request.param

        class TestPeople:
            @pytest.fixture(autouse=True)
            async def ada(self, people):
                await people.execute(text("INSERT INTO people VALUES ('ada')"))

            async def test_alone(self, people):
                assert await names(people) == ["ada"]

            @pytest.mark.parametrize("third", ["mia", "zoe"])
            async def test_friends(self, people, friend, third):
                await people.execute(text("INSERT INTO people VALUES (:n)"), {"n": third})
                await people.commit()
                assert await names(people) == ["ada", friend, third]
        """
    )

    result = run()

    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines(["warmstack: set-up: * 5 clones of *"])


def test_what_no_test_asked_for_by_name_is_started_when_it_is_asked_for(
    pytester: pytest.Pytester, run: Run
) -> None:
    """`getfixturevalue` in a test that names nothing of ours gets a server all the same."""
    pytester.makepyfile(
        """
        def test_late(request):
            url = request.getfixturevalue("db_url")
            assert url.startswith("postgresql+asyncpg://")
            assert request.getfixturevalue("db_url") == url

        def test_later(request):
            engine = request.getfixturevalue("db_engine")
            client = request.getfixturevalue("redis_client")
            assert engine.url.database.startswith("warmstack_u_")
            assert client.connection_pool.connection_kwargs["db"] > 0
        """
    )

    result = run()

    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["warmstack: set-up: servers *, 2 clones of *, 1 flush *, end *"])


def test_every_clone_is_given_back_whatever_became_of_its_test(
    pytester: pytest.Pytester, run: Run
) -> None:
    """A test that fails, errs in its fixtures, or leaves connections open leaves no database."""
    pytester.makepyfile(
        counting=COUNT,
        test_in_order="""
        import asyncpg
        import pytest
        from counting import clones
        from sqlalchemy import text

        kept = []

        @pytest.fixture
        def broken_before(db_url):
            raise RuntimeError("before")

        @pytest.fixture
        async def broken_after(db_session):
            yield
            raise RuntimeError("after")

        async def test_fails(db_session):
            await db_session.execute(text("CREATE TABLE t (id int)"))
            raise AssertionError

        def test_errs_before(broken_before): pass

        async def test_errs_after(broken_after, db_session):
            await db_session.execute(text("CREATE TABLE t (id int)"))

        async def test_breaks_its_transaction(db_session):
            with pytest.raises(Exception, match="does not exist"):
                await db_session.execute(text("SELECT * FROM nowhere"))

        @pytest.mark.asyncio(loop_scope="session")
        async def test_leaves_a_connection_in_a_transaction(db_url):
            connection = await asyncpg.connect(db_url.replace("+asyncpg", ""), ssl=False)
            await connection.execute("BEGIN; CREATE TABLE t (id int)")
            kept.append(connection)

        async def test_closes_everything_itself(db_session, db_engine, redis_client):
            await db_session.close()
            await db_engine.dispose()
            await redis_client.aclose()

        @pytest.mark.asyncio(loop_scope="session")
        async def test_nothing_is_left(postgres_container):
            assert len(kept) == 1
            assert await clones(postgres_container) == 0
            kept.pop().terminate()
        """,
    )

    result = run()

    result.assert_outcomes(passed=5, failed=1, errors=2)
    result.stdout.fnmatch_lines(["warmstack: set-up: *, 6 clones of *"])


def test_the_handles_of_the_servers_know_what_testcontainers_know(
    pytester: pytest.Pytester, run: Run
) -> None:
    """Host, port and URL come from the methods that people have in their fingers."""
    pytester.makepyfile(
        """
        import pytest_warmstack

        def test_postgres(postgres_container, db_url):
            place = f"127.0.0.1:{postgres_container.port}"
            assert isinstance(postgres_container, pytest_warmstack.ServerHandle)
            assert postgres_container.host == postgres_container.get_container_host_ip()
            assert postgres_container.port == postgres_container.get_exposed_port(5432)
            assert f"@{place}/warmstack_u_" in db_url
            url = postgres_container.get_connection_url()
            assert url.startswith("postgresql+asyncpg://postgres:")
            assert url.endswith(f"@{place}/postgres")
            plain = postgres_container.get_connection_url(driver=None)
            assert plain == url.replace("+asyncpg", "")
            assert postgres_container.get_connection_url(host="db").endswith(
                f"@db:{postgres_container.port}/postgres"
            )
            assert postgres_container.version.startswith("16.")
            assert postgres_container.runtime == "embedded"
            assert plain.split(":")[2].split("@")[0] not in repr(postgres_container)

        def test_redis(redis_container, redis_url):
            place = f"127.0.0.1:{redis_container.get_exposed_port(6379)}"
            assert redis_container.get_connection_url() == redis_url
            assert f"@{place}/" in redis_url
            assert not redis_url.endswith("/0")
            assert redis_container.version.startswith("7.")
        """
    )

    result = run()

    result.assert_outcomes(passed=2)
