"""A test that forgets to await fails; one that doesn't need to await is left alone."""

from __future__ import annotations

import textwrap
from collections.abc import Callable

import pytest

Run = Callable[..., pytest.RunResult]

MODELS = """
import asyncio
import functools
import unittest

import pytest
from sqlalchemy import text

INSERT = text("INSERT INTO t1 (name) VALUES ('a')")
COUNT = text("SELECT count(*) FROM t1")
"""


@pytest.fixture(autouse=True)
def project(pytester: pytest.Pytester, alembic: object) -> None:
    """A project in pytest-asyncio's auto mode."""
    pytester.makeini(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
    )


FORGOTTEN = {
    "a def": """
        def test_it(db_session):
            db_session.commit()
    """,
    "an async def": """
        async def test_it(db_session):
            await db_session.execute(INSERT)
            db_session.commit()
    """,
    "a fixture": """
        @pytest.fixture
        def seeded(db_session):
            db_session.execute(INSERT)
            db_session.commit()

        async def test_it(seeded): pass
    """,
    "a method of unittest": """
        class Test(unittest.TestCase):
            @pytest.fixture(autouse=True)
            def session(self, db_session):
                self.session = db_session

            def test_it(self):
                self.session.commit()
    """,
    "a variable that keeps it": """
        kept = []

        def test_it(db_session):
            kept.append(db_session.commit())
    """,
    "a warning that is ignored": """
        @pytest.mark.filterwarnings("ignore")
        def test_it(db_session):
            db_session.commit()
    """,
}
"""Tests that passed, and of which nothing happened."""


@pytest.mark.parametrize("kind", FORGOTTEN)
def test_what_is_never_awaited_fails_the_test(
    pytester: pytest.Pytester, run: Run, kind: str
) -> None:
    """The error names what was called, and Python has nothing left to warn of."""
    pytester.makepyfile(MODELS + textwrap.dedent(FORGOTTEN[kind]))

    result = run("-W", "error")

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*The test never awaited db_session.*commit().",
            "*- await it, in an async def: await db_session.*",
            "*- or, in a def, use db_sync_session",
        ]
    )
    assert "PytestUnraisableExceptionWarning" not in result.stdout.str()


@pytest.mark.parametrize(
    ("call", "named"),
    [
        ("redis_client.set('a', 1)", "redis_client.set()"),
        ("redis_client.pipeline().set('a', 1).execute()", "redis_client.pipeline().execute()"),
    ],
)
def test_a_command_of_redis_that_is_never_awaited_fails_the_test(
    pytester: pytest.Pytester, run: Run, call: str, named: str
) -> None:
    """Of a pipeline as well."""
    pytester.makepyfile(f"def test_it(redis_client):\n    {call}\n")

    result = run("-W", "error")

    result.assert_outcomes(failed=1)
    assert f"The test never awaited {named}." in result.stdout.str()
    result.stdout.fnmatch_lines(["*- or, in a def, use redis_sync_client"])


def test_a_failure_that_comes_of_it_has_a_note(pytester: pytest.Pytester, run: Run) -> None:
    """The failure itself stays as it is."""
    pytester.makepyfile(
        MODELS + "def test_it(db_session):\n    assert db_session.scalar(COUNT).bit_count() == 0\n"
    )

    result = run("-W", "error")

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["E *AttributeError: 'coroutine' object has no*", "E *never awaited db_session.scalar().*"]
    )


def test_what_is_awaited_in_whatever_way_passes(pytester: pytest.Pytester, run: Run) -> None:
    """By a loop of the test's, by a wrapper, by a task, by somebody who gets the session."""
    pytester.makepyfile(
        MODELS
        + textwrap.dedent(
            """
        def wrapped(function):
            @functools.wraps(function)
            async def wrapper(*args, **kwargs):
                return await function(*args, **kwargs)
            return wrapper

        def in_a_loop(function):
            @functools.wraps(function)
            def wrapper(*args, **kwargs):
                return asyncio.run(function(*args, **kwargs))
            return wrapper

        async def use(session):
            await session.execute(INSERT)
            await session.commit()
            assert await session.scalar(COUNT) == 1

        def test_run(db_session):
            asyncio.run(use(db_session))

        def test_directly(db_session):
            loop = asyncio.new_event_loop()
            loop.run_until_complete(db_session.execute(INSERT))
            loop.run_until_complete(db_session.commit())
            loop.close()

        @wrapped
        async def test_wrapped(db_session):
            await use(db_session)

        @in_a_loop
        async def test_in_a_loop(db_session):
            await use(db_session)

        async def test_tasks(db_session):
            await asyncio.gather(db_session.execute(INSERT))
            await asyncio.wait_for(db_session.commit(), 5)

        async def test_closed(db_session):
            db_session.execute(INSERT).close()

        def test_handed_on(db_session):
            db_session.add

        @pytest.fixture
        def by_a_def(db_session):
            return lambda: use(db_session)

        async def test_through_a_fixture(by_a_def):
            await by_a_def()

        async def test_its_kind(db_session, redis_client):
            from unittest.mock import AsyncMock, create_autospec
            from redis.asyncio import Redis
            from sqlalchemy.ext.asyncio import AsyncSession
            assert isinstance(db_session, AsyncSession) and isinstance(redis_client, Redis)
            assert repr(type(db_session)) == repr(AsyncSession)
            assert asyncio.iscoroutinefunction(db_session.commit)
            assert isinstance(create_autospec(db_session).commit, AsyncMock)
            async with redis_client.pipeline() as pipe:
                assert await pipe.set("a", 1).get("a").execute() == [True, b"1"]
        """
        )
    )

    result = run("-W", "error")

    result.assert_outcomes(passed=9)
