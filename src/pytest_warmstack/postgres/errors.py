"""Errors about clones, drivers and event loops. Only a failure imports this module."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from pytest_warmstack.errors import WarmstackError

_OWN_LOOP: Final = (
    "or call the application in the test's own loop: httpx.AsyncClient(transport="
    "httpx.ASGITransport(app))"
)


class CloneFailed(WarmstackError):
    """A clone could not be made, saved or dropped."""

    @classmethod
    def refused(cls, *, template: str, cause: str, looked_at: Iterable[str]) -> CloneFailed:
        """PostgreSQL refused to clone the *template*."""
        return cls(
            f"PostgreSQL could not clone the template {template}.",
            why=cause,
            looked_at=looked_at,
            todo=["run again; if it happens again, start with a new server: warmstack clean"],
        )

    @classmethod
    def too_slow(cls, *, cause: str, seconds: float) -> CloneFailed:
        """A test got no database within *seconds*, because of *cause*."""
        return cls(
            f"The database of this test was not ready within {seconds:g} seconds.",
            why=cause,
            todo=[
                "check what the server is doing: warmstack status, warmstack logs postgres",
                "or start with a new server: warmstack clean",
            ],
        )

    @classmethod
    def not_saved(cls, *, name: str, cause: str) -> CloneFailed:
        """PostgreSQL refused to rename the database of a failed test."""
        return cls(
            f"Could not save the database {name} of a failed test.",
            why=cause,
            todo=["check whether the test renamed the database, then run the test again"],
        )

    @classmethod
    def not_dropped(cls, *, name: str, seconds: float, cause: str) -> CloneFailed:
        """PostgreSQL refused for *seconds* to drop a database whose user has finished."""
        return cls(
            f"Could not drop the database {name}.",
            why=f"{cause}, for {seconds:g} seconds",
            looked_at=["its connections, prepared transactions, subscriptions and slots"],
            todo=[
                "check what a test or a program left in the database; the next run tries again to "
                "drop it, and so does warmstack url --fresh"
            ],
        )


class DriverMissing(WarmstackError):
    """No synchronous driver of PostgreSQL is installed."""

    @classmethod
    def synchronous(cls, *, looked_at: Iterable[str]) -> DriverMissing:
        """Neither psycopg nor psycopg2 can be imported."""
        return cls(
            "No synchronous driver of PostgreSQL is installed.",
            why="db_sync_engine and db_sync_session need psycopg or psycopg2",
            looked_at=looked_at,
            todo=[
                'pip install "psycopg[binary]"',
                "or, in an async def, use db_engine and db_session, which need no other driver",
            ],
        )


class RollbackFailed(WarmstackError):
    """A test can't be rolled back as it is."""

    @classmethod
    def two_connections(cls) -> RollbackFailed:
        """The test uses an asynchronous and a synchronous engine."""
        return cls(
            "With rollback isolation, a test can't use db_engine and db_sync_engine together.",
            why="each has a connection of its own, whose transaction is never committed, so "
            "neither would see the rows of the other; db_session uses db_engine, and "
            "db_sync_session uses db_sync_engine",
            todo=[
                'give this test its own database: @pytest.mark.warmstack_isolation("clone")',
                "or use only asynchronous, or only synchronous fixtures in it",
            ],
        )


class LoopFailed(WarmstackError):
    """Asynchronous code runs in the wrong event loop, or was not awaited."""

    @classmethod
    def rollback(cls) -> LoopFailed:
        """Code in another event loop uses the one connection of a test with rollback isolation."""
        return cls(
            "Rollback isolation does not work across event loops.",
            why="the test has one connection, which belongs to the test's event loop; this code "
            "runs in another loop or thread, as under a TestClient, asyncio.run or async_to_sync",
            todo=[
                'give this test its own database: @pytest.mark.warmstack_isolation("clone")',
                _OWN_LOOP,
            ],
        )

    @classmethod
    def transaction(cls) -> LoopFailed:
        """Two event loops use a session or connection in the same transaction."""
        return cls(
            "This session or connection has a transaction open in another event loop.",
            why="a transaction belongs to one connection, and a connection to the event loop that "
            "opened it; without `with`, a TestClient has a new loop for each "
            "request",
            todo=[
                "commit or roll back before the other loop uses the session",
                "or give the application db_engine, and let it open a session for each request",
                _OWN_LOOP,
            ],
        )

    @classmethod
    def backend(cls, *, name: str) -> LoopFailed:
        """AnyIO's plugin runs the test on *name*, a backend other than asyncio."""
        return cls(
            "The fixtures of pytest-warmstack support only the asyncio backend of AnyIO.",
            why=f"this test runs on {name}, and asyncpg and redis-py need asyncio",
            todo=[
                'select asyncio in conftest.py:\n@pytest.fixture(scope="session")\n'
                'def anyio_backend():\n    return "asyncio"',
                'or select it for one test: @pytest.mark.parametrize("anyio_backend", ["asyncio"])',
            ],
        )

    @classmethod
    def forgotten(cls, *, names: Sequence[str]) -> LoopFailed:
        """The test, or one of its fixtures, called the methods *names* and did not await them."""
        client = names[0].partition(".")[0]
        plain = "redis_sync_client" if client == "redis_client" else "db_sync_session"
        return cls(
            f"The test never awaited {', '.join(dict.fromkeys(names))}.",
            why=f"{client} is asynchronous: its methods do nothing until you await them",
            todo=[
                f"await it, in an async def: await {names[0]}",
                f"or, in a def, use {plain}",
            ],
        )
