"""What has to be true of a PostgreSQL that somebody else runs, before we use it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final, NamedTuple

from pytest_warmstack.postgres import sql
from pytest_warmstack.postgres.connections import Connection, connect
from pytest_warmstack.postgres.errors import StatementRefused
from pytest_warmstack.servers.errors import ConnectionLost, ServerFailed
from pytest_warmstack.servers.model import Endpoint

_LOOKS: Final = 6
"""How often two connections are asked in turn which backends answer them."""


_PATIENCE: Final = 10.0
"""Seconds that a pooler may take to give us a second backend."""


_OTHER_BACKEND: Final = frozenset({"26000", "42P05"})
"""SQLSTATEs when one backend prepared a statement and another is to execute it.

No such statement, and a statement of that name is there (documentation, appendix A).
"""


class Known(NamedTuple):
    """What there is to know of it: how to connect from now on, and as which *role* it takes us.

    A server that is *durable* writes to a disk and waits for that. One that is *pooled* keeps
    connections open that their users have closed. *now* is its time of day, in seconds since the
    epoch.
    """

    endpoint: Endpoint
    role: str
    durable: bool
    pooled: bool
    now: float


async def greet(endpoint: Endpoint, connection: Connection, seconds: float) -> Known:
    """Return what is known of the server that *connection* leads to.

    Raises `ServerFailed` when it can't be used: behind a pooler that shares its connections or
    has too few of them, a standby, or a role that may not create databases. The connection is then
    ended.
    """
    try:
        facts = await _facts(endpoint, connection, seconds)
        # PostgreSQL tells a client the number of its backend (documentation, "BackendKeyData"); a
        # pooler tells one that it made up.
        pooled = facts["pid"] != connection.pid
        if pooled:
            await _see_that_backends_last(endpoint, connection, _PATIENCE)
        _see_that_we_can_write(endpoint, facts)
    except BaseException:
        connection.terminate()
        raise
    return Known(
        # Without TLS there is no need to ask for it again each time, which costs a round trip. Of
        # a pooler the server knows only how that one has come.
        endpoint if facts["tls"] or pooled else replace(endpoint, query=""),
        facts["role"],
        facts["fsync"] == "on",
        pooled,
        facts["now"],
    )


def _see_that_we_can_write(endpoint: Endpoint, facts: Any) -> None:
    if facts["standby"]:
        raise ServerFailed.read_only(place=endpoint.place)
    if not facts["creates"]:
        raise ServerFailed.no_right(place=endpoint.place, role=facts["role"])


async def _facts(endpoint: Endpoint, connection: Connection, seconds: float) -> Any:
    try:
        return await connection.fetchrow(sql.GREETING, seconds=seconds)
    except StatementRefused as error:
        if error.state not in _OTHER_BACKEND:
            raise
        raise ServerFailed.pooled(place=endpoint.place, cause=error.why) from error


async def _see_that_backends_last(
    endpoint: Endpoint, connection: Connection, seconds: float
) -> None:
    """Raise `ServerFailed` unless two connections keep their backends, as in session mode."""
    seen: list[set[int]] = [set(), set()]
    other = None
    try:
        other = await connect(endpoint, seconds=seconds)
        for _ in range(_LOOKS):
            for backends, each in zip(seen, (connection, other), strict=True):
                backends.add(await each.fetchval(sql.BACKEND, seconds=seconds))
    except ConnectionLost as error:
        if not error.timed_out:
            raise
        raise ServerFailed.pool_too_small(place=endpoint.place, seconds=seconds) from error
    finally:
        if other is not None:
            other.terminate()
    if len(seen[0]) > 1 or len(seen[1]) > 1 or seen[0] == seen[1]:
        numbers = ", ".join(map(str, sorted(seen[0] | seen[1])))
        cause = f"two connections were answered by the same backends in turn ({numbers})"
        raise ServerFailed.pooled(place=endpoint.place, cause=cause)
