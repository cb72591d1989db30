"""What goes wrong inside a running PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pytest_warmstack.errors import WarmstackError


class StatementRefused(WarmstackError):
    """A server refused a statement of this package; `state` is the SQLSTATE."""

    state = ""

    @classmethod
    def by_server(cls, *, title: str, statement: str, cause: str, state: str) -> StatementRefused:
        """Tell what the server called *title* answered to *statement*."""
        error = cls(
            f"{title} refused a statement of pytest-warmstack.",
            why=cause,
            looked_at=[f"{statement}\n(SQLSTATE {state or 'unknown'})"],
            todo=[
                *_refusal_hints(state),
                "see the server's answer above: a setting, a right or a test on this server "
                "stands in the way",
                "if the server is a managed one, warmstack clean starts it from nothing",
            ],
        )
        error.state = state
        return error


class CloneFailed(WarmstackError):
    """A clone could not be made for a test."""

    @classmethod
    def refused(cls, *, template: str, cause: str, looked_at: Iterable[str]) -> CloneFailed:
        """PostgreSQL refused to clone the template."""
        return cls(
            f"PostgreSQL made no clone of the template {template}.",
            why=cause,
            looked_at=looked_at,
            todo=["run again; when it persists: warmstack clean, which starts from nothing"],
        )

    @classmethod
    def too_slow(cls, *, seconds: float) -> CloneFailed:
        """PostgreSQL has not made a clone within *seconds*."""
        return cls(
            f"PostgreSQL made no clone of the template within {seconds:g} seconds.",
            why="the background work that makes clones has not ended",
            todo=[
                "see what the server is doing: warmstack status, warmstack logs postgres",
                "or start from nothing: warmstack clean",
            ],
        )

    @classmethod
    def not_dropped_in_time(cls, *, seconds: float) -> CloneFailed:
        """PostgreSQL has not dropped the databases of earlier tests within *seconds*."""
        return cls(
            f"The databases of earlier tests were not dropped within {seconds:g} seconds.",
            why="so many of them wait to be dropped that this test gets none",
            todo=[
                "see what the server is doing: warmstack status, warmstack logs postgres",
                "or start from nothing: warmstack clean",
            ],
        )

    @classmethod
    def not_kept(cls, *, name: str, cause: str) -> CloneFailed:
        """PostgreSQL refused to give the database of a failed test the name of a kept one."""
        return cls(
            f"The database {name} of a test that failed could not be kept.",
            why=cause,
            looked_at=["PostgreSQL's answer to its new name"],
            todo=["see whether the test gave it another name, then run the test again"],
        )

    @classmethod
    def kept(cls, *, name: str, seconds: float, cause: str) -> CloneFailed:
        """PostgreSQL refused to drop the database of a test that is done."""
        return cls(
            f"The database {name} of a test that is done could not be dropped.",
            why=f"{cause}, for {seconds:g} seconds",
            looked_at=["its connections, prepared transactions, subscriptions and slots"],
            todo=["see what the test left in it; the next run tries again"],
        )


class LoopFailed(WarmstackError):
    """A connection is used in another event loop than its own."""

    @classmethod
    def rollback(cls) -> LoopFailed:
        """Tell that code in another event loop than the test's asks for the one connection."""
        return cls(
            "Rollback isolation does not work across event loops.",
            why="its one connection belongs to the event loop of the test, and this code runs in "
            "another loop or thread, as under a TestClient, asyncio.run or async_to_sync",
            todo=[
                'give this test a database of its own: @pytest.mark.warmstack_isolation("clone")',
                _OWN_LOOP,
            ],
        )

    @classmethod
    def backend(cls, *, name: str) -> LoopFailed:
        """AnyIO's plugin runs the test on another backend, called *name*."""
        return cls(
            "The fixtures of pytest-warmstack work on the asyncio backend of AnyIO only.",
            why=f"this test runs on {name}, and asyncpg and redis-py need asyncio",
            todo=[
                'select it, in conftest.py:\n@pytest.fixture(scope="session")\n'
                'def anyio_backend():\n    return "asyncio"',
                'or for one test: @pytest.mark.parametrize("anyio_backend", ["asyncio"])',
            ],
        )

    @classmethod
    def forgotten(cls, *, names: Sequence[str]) -> LoopFailed:
        """The test, or a fixture of it, called *names* and did not await them."""
        client = names[0].partition(".")[0]
        plain = (
            "Session(create_engine(db_url.replace('+asyncpg', '+psycopg'))), which needs psycopg"
        )
        if client == "redis_client":
            plain = "redis.Redis.from_url(redis_url)"
        return cls(
            f"The test never awaited {', '.join(dict.fromkeys(names))}.",
            why=f"{client} is asynchronous: what its methods return does nothing until it is "
            "awaited, so nothing of this happened",
            todo=[
                f"await it, in an async def: await {names[0]}",
                f"or, in a def, use what is not asynchronous: {plain}",
            ],
        )

    @classmethod
    def transaction(cls) -> LoopFailed:
        """Tell that a session or connection is used in two event loops within one transaction."""
        return cls(
            "This session or connection has a transaction open in another event loop.",
            why="a transaction belongs to one connection, and a connection to the event loop that "
            "opened it; each request of a TestClient that is not entered by `with` has a new loop",
            todo=[
                "commit or roll back before the other loop uses the session",
                "or give the application db_engine, with a session of its own for each request",
                _OWN_LOOP,
            ],
        )


def _refusal_hints(state: str) -> list[str]:
    """Return what helps against a refusal, known by its SQLSTATE.

    (PostgreSQL's documentation, appendix "PostgreSQL Error Codes".)
    """
    return {
        "42501": ["give the role in the URL the right that is missing, or name another role"],
        "53100": ["free space where the server keeps its data"],
        "53200": ["give the server more memory"],
        "55006": ["end the sessions that are connected to the database"],
        "25006": ["name a primary server in the URL: this one is read-only"],
    }.get(state, [])


_OWN_LOOP = (
    "or call the application in the test's own loop: httpx.AsyncClient(transport="
    "httpx.ASGITransport(app))"
)
