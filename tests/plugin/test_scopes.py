"""`db_url` and `db_engine` in the scope of a class or module that shares a database."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., pytest.RunResult]

TABLES = """
import pytest
import pytest_asyncio
from sqlalchemy import text


async def fill(engine, rows):
    async with engine.begin() as connection:
        await connection.execute(text(f"INSERT INTO t1 SELECT generate_series(1, {rows})"))


async def count(session):
    return await session.scalar(text("SELECT count(*) FROM t1"))
"""


@pytest.fixture(autouse=True)
def project(pytester: pytest.Pytester, alembic: Path) -> None:
    """A project with two tables; every warning is an error."""
    pytester.makefile(
        ".ini",
        pytest="[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
        "filterwarnings = error\n",
    )
    pytester.makepyfile(tables=TABLES)


def test_a_fixture_of_the_module_seeds_the_modules_database(
    pytester: pytest.Pytester, run: Run
) -> None:
    """Once, by URL or by engine, in whatever loop; another module has none of it."""
    pytester.makepyfile(
        test_seeded="""
        from tables import *

        pytestmark = pytest.mark.warmstack_isolation("module")
        urls = set()

        @pytest_asyncio.fixture(scope="module", loop_scope="module")
        async def seeded(db_url, db_engine):
            await fill(db_engine, 3)
            urls.add(db_url)

        async def test_one(seeded, db_session, db_url):
            assert await count(db_session) == 3
            assert urls == {db_url}

        async def test_two(seeded, db_session, db_url):
            assert await count(db_session) == 3
            assert urls == {db_url}
        """,
        test_other="""
        from tables import *

        async def test_it(db_session):
            assert await count(db_session) == 0
        """,
    )

    run().assert_outcomes(passed=3)


def test_the_setting_counts_as_the_marker_does(pytester: pytest.Pytester, run: Run) -> None:
    """Each module has its own; the class scope is for the tests of a class."""
    pytester.makepyfile(
        """
        from tables import *

        class TestOne:
            @pytest_asyncio.fixture(scope="class", loop_scope="class")
            @classmethod
            async def seeded(cls, db_engine):
                await fill(db_engine, 2)

            async def test_one(self, seeded, db_session):
                assert await count(db_session) == 2
                await db_session.execute(text("DELETE FROM t1"))
                await db_session.commit()

            async def test_two(self, seeded, db_session):
                assert await count(db_session) == 0

        class TestTwo:
            async def test_it(self, db_session):
                assert await count(db_session) == 0
        """
    )

    run("-o", "warmstack_isolation=class").assert_outcomes(passed=3)


def test_the_closest_marker_wins(pytester: pytest.Pytester, run: Run) -> None:
    """That of a test, then that of its class, then that of its module."""
    pytester.makepyfile(
        """
        from tables import *

        pytestmark = pytest.mark.warmstack_isolation("module")
        urls = {}

        @pytest.fixture(scope="module")
        def of_module(db_url):
            urls["module"] = db_url

        def test_the_modules(of_module, db_url):
            assert db_url == urls["module"]

        @pytest.mark.warmstack_isolation("clone")
        @pytest.mark.parametrize("n", range(2))
        async def test_a_database_of_its_own(db_session, db_url, db_engine, n):
            assert db_url not in urls.values()
            urls[n] = db_url
            await fill(db_engine, 1)
            assert await count(db_session) == 1

        @pytest.mark.warmstack_isolation("class")
        class TestClass:
            @pytest.fixture(scope="class")
            @classmethod
            def of_class(cls, db_url):
                urls["class"] = db_url

            def test_the_classes(self, of_class, db_url):
                assert db_url == urls["class"] != urls["module"]

            @pytest.mark.warmstack_isolation("module")
            def test_the_modules_again(self, db_url):
                assert db_url == urls["module"]

        @pytest.mark.warmstack_isolation("clone")
        class TestClones:
            def test_a_clone(self, db_url):
                assert db_url not in urls.values()
        """
    )

    run().assert_outcomes(passed=6)


@pytest.mark.parametrize("place", ["conftest", "test_replaced"])
def test_a_fixture_of_the_users_own_stays_in_place(
    pytester: pytest.Pytester, run: Run, place: str
) -> None:
    """Whoever has a `db_url` in a conftest or in the module gets no other one."""
    own = """
        import pytest

        @pytest.fixture(scope="module")
        def db_url():
            return "postgresql+asyncpg://somebody@127.0.0.1:1/else"
    """
    tests = """
        import pytest

        pytestmark = pytest.mark.warmstack_isolation("module")

        async def test_it(db_engine):
            assert db_engine.url.port == 1
    """
    files = {"conftest": "", "test_replaced": tests}
    files[place] = f"{own}\n{files[place]}"
    pytester.makepyfile(**files)

    run().assert_outcomes(passed=1)


@pytest.mark.parametrize(
    ("scope", "given", "line"),
    [
        ("class", "db_url", "db_url has the scope class with warmstack_isolation = class in *"),
        ("module", "db_dsn", '* pytestmark = pytest.mark.warmstack_isolation("module") in *'),
        ("package", "db_engine", "* warmstack_isolation = session in pytest.ini, *"),
        ("session", "db_session", "db_session belongs to one test, so * session on db_engine; *"),
    ],
)
def test_a_fixture_of_a_wider_scope_can_not_have_the_database_of_a_test(
    pytester: pytest.Pytester, run: Run, scope: str, given: str, line: str
) -> None:
    """With the isolation `clone`, pytest says so, and the report which word gives that scope."""
    pytester.makepyfile(
        f"""
        import pytest

        @pytest.fixture(scope="{scope}")
        def seeded({given}):
            return {given}

        def test_it(seeded): ...
        """
    )

    result = run()

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines([f"*ScopeMismatch*function scoped fixture {given}*", line])


def test_a_listener_on_all_engines_costs_no_test_its_compiled_statements(
    pytester: pytest.Pytester, run: Run
) -> None:
    """As a monitoring library listens; one on the engine of a test still goes with that engine."""
    pytester.makepyfile(
        """
        import pytest
        from sqlalchemy import Engine, event

        dialects = []

        @pytest.fixture(scope="session", autouse=True)
        def monitoring():
            def listener(*arguments): ...
            event.listen(Engine, "handle_error", listener)
            event.listen(Engine, "do_connect", listener)
            yield
            event.remove(Engine, "handle_error", listener)
            event.remove(Engine, "do_connect", listener)

        @pytest.mark.parametrize("n", range(4))
        async def test_reuse(db_engine, n):
            async with db_engine.connect():
                dialects.append(db_engine.sync_engine.dialect)
            assert len({id(each) for each in dialects}) == 1

        async def test_own_listener(db_engine):
            event.listen(db_engine.sync_engine, "do_connect", lambda *arguments: None)

        async def test_without_it(db_engine):
            assert db_engine.sync_engine.dialect is not dialects[0]
        """
    )

    run().assert_outcomes(passed=6)
